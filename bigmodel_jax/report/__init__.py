"""What a run tells: metrics on disk, the bar on the terminal, throughput, plots and the page."""
