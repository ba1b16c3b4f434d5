"""Exports a run's weights in formats that other programs read. `formats.FORMATS` lists the formats."""
