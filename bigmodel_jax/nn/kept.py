"""Names of activations that a layer may keep for its backward pass.

`checkpoint_name` gives an activation its name where the activation is made. stack.py selects among
the names.
"""

INPUT, QKV, ATTN, MLP = "input", "qkv", "attn", "mlp"
