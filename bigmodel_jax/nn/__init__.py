"""Layers as functions.

Each file has spec functions, which declare parameters, and apply functions, which map arrays to
arrays.
"""
