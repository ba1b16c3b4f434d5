"""Explains a network's output for one input: attention, attributions, logit lens and activation
patching."""
