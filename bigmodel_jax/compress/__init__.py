"""Smaller models: quantised and pruned weights."""
