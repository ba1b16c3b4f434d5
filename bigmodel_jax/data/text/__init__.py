"""Data sets of texts: documents, conversations, pairs, questions, labels; how tokens become rows."""
