"""Names of activations that a layer may keep for its backward pass.

`checkpoint_name` gives them where the activations are made; stack.py selects among them.
"""

INPUT, QKV, ATTN, MLP = "input", "qkv", "attn", "mlp"
