"""Steps that clean records: each file one kind of step, each step a frozen dataclass whose fields are its thresholds."""
