"""Scripts that become use.py in exported folders. None of them imports this package."""
