"""Attention: its door and definition (attention.py), and the forms in which it is computed."""
