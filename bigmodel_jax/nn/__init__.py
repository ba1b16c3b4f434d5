"""Layers as functions: each file has spec functions (what parameters), then apply functions (arrays in, arrays out)."""
