"""Texts to tokens: tokenizers that are trained here, and published ones in every form."""
