"""The text of a compiled program, read: its instructions, collectives, cost and memory."""
