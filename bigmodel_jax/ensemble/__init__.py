"""Combines several runs by averaging their predictions or their weights."""
