"""Sweeps: many runs of one config, with fields chosen by Optuna; and runs over several seeds."""
