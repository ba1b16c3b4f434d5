"""Evaluates the project's own models on tasks of EleutherAI's lm-eval."""
