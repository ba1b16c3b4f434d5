"""Gradients of a pipeline-parallel model with the 1F1B schedule."""
