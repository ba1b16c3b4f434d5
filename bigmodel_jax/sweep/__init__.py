"""Sweeps: many runs of one config, whose fields an optimizer of hyperparameters chooses (Optuna), and runs over seeds."""
