"""Corpora that are cleaned once by a list of steps; read `prepare.py` first, then `outcome.py`."""
