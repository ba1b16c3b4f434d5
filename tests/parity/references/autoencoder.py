"""diffusers' AutoencoderKL: tiny random models, the means, log variances and reconstructions that
they give."""

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from references.vision import channels_last, images
from references.weights import randomize

ROWS, CHANNELS, SIDE = 3, 3, 16
CONFIG = {
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "block_out_channels": [8, 16, 16],
    "layers_per_block": 1,
    "latent_channels": 2,
    "norm_num_groups": 4,
    "sample_size": SIDE,
}
PLAIN = {"use_quant_conv": False, "use_post_quant_conv": False, "mid_block_add_attention": False}


def write(folder: Path, **changes) -> None:
    from diffusers import AutoencoderKL  # only this family needs it

    model = AutoencoderKL(**CONFIG, **changes).float().eval()
    randomize(model)
    model.save_pretrained(folder)
    saved = json.loads((folder / "config.json").read_text())
    saved.pop("_name_or_path", None)
    (folder / "config.json").write_text(json.dumps(saved, indent=2) + "\n")
    pixels = images(1, ROWS, CHANNELS, SIDE, SIDE)
    noise = torch.randn(
        ROWS, CONFIG["latent_channels"], SIDE // 4, SIDE // 4, generator=torch.Generator().manual_seed(2)
    )
    latent = model.encode(pixels).latent_dist
    out = model.decode(latent.mean + latent.std * noise).sample
    loss = F.mse_loss(out, pixels) + 1e-2 * latent.kl().mean()
    loss.backward()
    save_file({n: p.grad for n, p in model.named_parameters()}, folder / "gradients.safetensors")
    arrays = {
        "image": pixels,
        "noise": noise,
        "mean": latent.mean,
        "log_variance": latent.logvar,
        "reconstruction": out,
    }
    kept = {name: channels_last(x) for name, x in arrays.items()}
    np.savez_compressed(folder / "reference.npz", **kept, loss=loss.detach().numpy(), kl=latent.kl().detach().numpy())


AUTOENCODERS = {"autoencoder": write, "autoencoder_plain": lambda folder: write(folder, **PLAIN)}
