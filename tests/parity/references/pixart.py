"""PixArt of diffusers: a tiny random model, and what its DDIM scheduler makes of noise with it."""

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from references.vision import channels_last, images
from references.weights import randomize

ROWS, LENGTH, WIDTH, CHANNELS, SIDE = 4, 7, 24, 3, 8
CONFIG = {
    "num_attention_heads": 4,
    "attention_head_dim": 8,
    "in_channels": CHANNELS,
    "out_channels": 2 * CHANNELS,
    "num_layers": 2,
    "cross_attention_dim": 32,
    "sample_size": SIDE,
    "patch_size": 2,
    "interpolation_scale": 2,
    "caption_channels": WIDTH,
    "use_additional_conditions": False,
}
SAMPLING = {"steps": 5, "guidance": 2.5}


def sampled(model, noise, text, mask) -> torch.Tensor:
    """DDIM from the last timestep on, guided away from states of zero, which are no text."""
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(beta_start=1e-4, beta_end=0.02, timestep_spacing="trailing", clip_sample=True)
    scheduler.set_timesteps(SAMPLING["steps"])
    both, x = torch.cat([text, torch.zeros_like(text)]), noise
    for t in scheduler.timesteps:
        options = {"encoder_hidden_states": both, "encoder_attention_mask": mask.repeat(2, 1)}
        out = model(x.repeat(2, 1, 1, 1), timestep=t.repeat(2 * len(x)), **options).sample[:, :CHANNELS]
        given, hidden = out.chunk(2)
        x = scheduler.step(hidden + SAMPLING["guidance"] * (given - hidden), t, x).prev_sample
    return x


def write(folder: Path) -> None:
    from diffusers import PixArtTransformer2DModel  # only this family needs it

    model = PixArtTransformer2DModel(**CONFIG).float().eval()
    randomize(model)
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config.pop("_name_or_path", None)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    states, hooks = [], []
    for layer in model.transformer_blocks:
        hooks.append(layer.register_forward_pre_hook(lambda _, args, kwargs: states.append(args[0]), with_kwargs=True))
    pixels, noise = images(1, ROWS, CHANNELS, SIDE, SIDE), images(2, ROWS, CHANNELS, SIDE, SIDE)
    text = torch.randn(ROWS, LENGTH, WIDTH, generator=torch.Generator().manual_seed(3))
    mask = torch.ones(ROWS, LENGTH, dtype=torch.long)
    for row in range(ROWS):
        mask[row, LENGTH - row :] = 0
    t = torch.tensor([0, 3, 500, 999])
    out = model(pixels, timestep=t, encoder_hidden_states=text, encoder_attention_mask=mask).sample
    loss = F.mse_loss(out[:, :CHANNELS], noise) + out[:, CHANNELS:].square().mean()
    loss.backward()
    for hook in hooks:
        hook.remove()
    save_file({n: p.grad for n, p in model.named_parameters()}, folder / "gradients.safetensors")
    with torch.no_grad():
        made = sampled(model, noise, text, mask)
    arrays = {"image": channels_last(pixels), "noise": channels_last(noise), "logits": channels_last(out)}
    arrays |= {f"states/{n}": x.detach().numpy() for n, x in enumerate(states)}
    arrays |= {"timestep": t.numpy(), "text_states": text.numpy(), "segment_ids": mask.numpy()}
    arrays |= {"loss": loss.detach().numpy(), "sampled": channels_last(made)}
    np.savez_compressed(folder / "reference.npz", **arrays)


PIXART = {"pixart": write}
