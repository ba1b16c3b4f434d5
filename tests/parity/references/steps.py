"""Twenty steps of AdamW, as an objective's losses are compared along them."""

from collections.abc import Callable

import numpy as np
import torch

STEPS = 20


def trained(model, loss_and_backward: Callable[[], float], rate: float = 3e-3) -> np.ndarray:
    """Returns the loss before each step. Only matrices decay, and gradients are clipped to norm
    1."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer, losses = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95)), []
    for _ in range(STEPS):
        optimizer.zero_grad()
        losses.append(loss_and_backward())
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    return np.array(losses)
