"""Several runs as one: their predictions averaged, or their weights."""
