"""The algebra of pytrees: parameters, shardings, precision, metrics. Knows no model."""
