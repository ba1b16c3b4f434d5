"""Names by which `plan` and profiles tell what a step does by itself from what autodiff does (`jax.named_scope`)."""

SUM_GRADIENTS = "sum_gradients"
SAVE_ACTIVATIONS = "save_activations"
