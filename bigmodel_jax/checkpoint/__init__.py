"""Checkpoints: {state, data position, config} in one atomic, asynchronous, verified save."""
