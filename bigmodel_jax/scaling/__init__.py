"""How a config scales: the same step measured on 1, 2, 4 … devices, planned where they do not exist."""
