"""The state, the step, the evaluation and the loop of a run."""
