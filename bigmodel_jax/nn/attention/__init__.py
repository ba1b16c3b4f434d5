"""Attention: its definition and entry point (attention.py), and its implementations."""
