"""Speech data: recordings and synthetic voices become spectrograms with transcripts."""
