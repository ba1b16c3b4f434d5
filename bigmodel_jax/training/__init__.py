"""Training runs: the step, the loop around it, evaluation, and a run's folder."""
