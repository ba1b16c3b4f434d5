"""Self-play on games: rules as pure functions, tree search, self-play, and evaluation matches."""
