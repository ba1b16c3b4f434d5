"""Text data: documents, conversations, pairs, questions and labels, tokenized and packed into
rows.
"""
