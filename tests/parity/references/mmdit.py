"""SD3's transformer of diffusers: a tiny random model, and what its flow-matching scheduler makes
of noise with it."""

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from references.vision import channels_last, images
from references.weights import randomize

ROWS, LENGTH, WIDTH, POOLED, CHANNELS, SIDE = 4, 7, 24, 20, 3, 8
CONFIG = {
    "sample_size": SIDE,
    "patch_size": 2,
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "num_layers": 3,
    "attention_head_dim": 8,
    "num_attention_heads": 4,
    "joint_attention_dim": WIDTH,
    "caption_projection_dim": 32,
    "pooled_projection_dim": POOLED,
    "pos_embed_max_size": 7,
    "qk_norm": "rms_norm",
}
SAMPLING = {"steps": 5, "guidance": 2.5, "shift": 3.0}


def sampled(model, noise, text, pooled) -> tuple[torch.Tensor, torch.Tensor]:
    """(images, sigmas) of Euler's steps over equal steps that the scheduler shifts, guided away
    from zeros."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    steps = SAMPLING["steps"]
    scheduler = FlowMatchEulerDiscreteScheduler(shift=SAMPLING["shift"])
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1.0 / steps, steps))
    states, vectors = (torch.cat([a, torch.zeros_like(a)]) for a in (text, pooled))
    x = noise
    for t in scheduler.timesteps:
        options = {"encoder_hidden_states": states, "pooled_projections": vectors}
        given, hidden = model(x.repeat(2, 1, 1, 1), timestep=t.repeat(2 * len(x)), **options).sample.chunk(2)
        x = scheduler.step(hidden + SAMPLING["guidance"] * (given - hidden), t, x).prev_sample
    return x, scheduler.sigmas


def write(folder: Path) -> None:
    from diffusers import SD3Transformer2DModel  # only this family needs it

    model = SD3Transformer2DModel(**CONFIG).float().eval()
    randomize(model)
    model.save_pretrained(folder)
    saved = json.loads((folder / "config.json").read_text())
    saved.pop("_name_or_path", None)
    (folder / "config.json").write_text(json.dumps(saved, indent=2) + "\n")
    states, hooks = [], []

    def record(_, args, kwargs):
        states.append(torch.cat([kwargs["hidden_states"], kwargs["encoder_hidden_states"]], dim=1))

    for layer in model.transformer_blocks:
        hooks.append(layer.register_forward_pre_hook(record, with_kwargs=True))
    pixels, noise = images(1, ROWS, CHANNELS, SIDE, SIDE), images(2, ROWS, CHANNELS, SIDE, SIDE)
    draw = torch.Generator().manual_seed(3)
    text, pooled = (
        torch.randn(ROWS, LENGTH, WIDTH, generator=draw),
        torch.randn(ROWS, POOLED, generator=draw),
    )
    t = torch.tensor([0.0, 3.5, 500.0, 1000.0])
    out = model(pixels, encoder_hidden_states=text, pooled_projections=pooled, timestep=t).sample
    loss = F.mse_loss(out, noise)
    loss.backward()
    for hook in hooks:
        hook.remove()
    save_file({n: p.grad for n, p in model.named_parameters()}, folder / "gradients.safetensors")
    with torch.no_grad():
        made, sigmas = sampled(model, noise, text, pooled)
    arrays = {"image": channels_last(pixels), "noise": channels_last(noise), "logits": channels_last(out)}
    arrays |= {f"states/{n}": x.detach().numpy() for n, x in enumerate(states)}
    arrays |= {"timestep": t.numpy(), "text_states": text.numpy(), "text_pooled": pooled.numpy()}
    arrays |= {"loss": loss.detach().numpy(), "sampled": channels_last(made), "sigmas": sigmas.numpy()}
    np.savez_compressed(folder / "reference.npz", **arrays)


MMDIT = {"mmdit": write}
