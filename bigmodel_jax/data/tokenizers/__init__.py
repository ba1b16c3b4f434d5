"""Tokenizers: trained on the data here, or read from published files of every format."""
