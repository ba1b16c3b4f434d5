"""Makes models smaller by quantization and pruning."""
