"""EleutherAI's lm-eval, answered by the project's own models."""
