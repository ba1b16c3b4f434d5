"""Exports a run's weights in formats for other programs, which `formats.FORMATS` lists."""
