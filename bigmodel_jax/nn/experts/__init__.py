"""Mixture of experts: routing, the experts' products, and the
exchange of tokens between devices.
"""
