"""Steps that clean records; each step is a frozen dataclass whose fields are its thresholds."""
