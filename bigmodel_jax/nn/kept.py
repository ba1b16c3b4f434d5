"""Names of what a layer may keep for its backward pass: given where it is made (`checkpoint_name`), chosen in stack.py."""

INPUT, QKV, ATTN, MLP = "input", "qkv", "attn", "mlp"
