"""Report on runs: metrics on disk, the terminal's progress bar, throughput, plots, HTML pages."""
