"""Text data: documents, conversations, pairs, questions and labels as rows of tokens."""
