"""A corpus prepared from a source by a list of steps: read `prepare.py` (the order of work), then `outcome.py`."""
