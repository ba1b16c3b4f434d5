"""Names (`jax.named_scope`) by which `plan` and profiles tell a step's own work from autodiff's."""

SUM_GRADIENTS = "sum_gradients"
SAVE_ACTIVATIONS = "save_activations"
