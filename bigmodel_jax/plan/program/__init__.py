"""Parse the text of a compiled program: instructions, collectives, cost and memory."""
