"""Speech: recordings and synthetic voices as spectrograms with transcripts."""
