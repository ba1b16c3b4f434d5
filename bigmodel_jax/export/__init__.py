"""A run's weights written in forms that other programs read; `formats.FORMATS` is the table of them."""
