"""Checkpoints: atomic, asynchronous and verified saves of state, data position and config."""
