"""Layers as functions: each file has spec functions, which declare
parameters, and apply functions, which map arrays to arrays.
"""
