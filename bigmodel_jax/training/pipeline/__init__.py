"""Gradients of a pipeline whose loss is inside it: 1F1B."""
