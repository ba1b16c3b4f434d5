"""Measures how a config scales: the same step on 1, 2, 4 ... devices, planned if they do not
exist."""
