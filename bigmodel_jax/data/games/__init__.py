"""Games that a model plays against itself: rules as pure functions, search, self-play, matches against fixed players."""
