"""Steps that clean records. Each step is a frozen dataclass whose fields are its thresholds."""
