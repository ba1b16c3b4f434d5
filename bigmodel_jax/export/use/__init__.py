"""Scripts that are copied into exported folders as use.py; none of them imports this package."""
