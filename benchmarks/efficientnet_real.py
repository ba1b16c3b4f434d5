"""EfficientNet-lite0 with published ImageNet weights on two photographs, beside torch.

    uv run python benchmarks/efficientnet_real.py --reference-python PATH

PATH is a Python with torch and safetensors. The published weights are a pickle, which this process
never opens: torch reads it with weights_only=True and writes safetensors. Without PATH, a folder
that was converted before is used.
"""

import argparse
import json
import subprocess
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding
from sklearn.datasets import load_sample_images

from bigmodel_jax.core import params
from bigmodel_jax.data import cache
from bigmodel_jax.models.efficientnet import PRESETS
from bigmodel_jax.pretrained import folder
from bigmodel_jax.pretrained.efficientnet import EFFICIENTNET
from bigmodel_jax.pretrained.family import spec_by_path
from bigmodel_jax.pretrained.packages import fetch

PARITY = Path(__file__).parents[1] / "tests" / "parity"
EXPECTED = {"china.jpg": (698, "palace"), "flower.jpg": (985, "daisy")}

CONVERT = """
import sys, torch
from safetensors.torch import save_file
weights = torch.load(sys.argv[1], weights_only=True, map_location="cpu")
save_file({n: x.contiguous() for n, x in weights.items() if not n.endswith("num_batches_tracked")}, sys.argv[2])
"""
FORWARD = """
import json, sys, time, numpy as np, torch
sys.path.insert(0, sys.argv[1])
from safetensors.torch import load_file
from references.efficientnet import forward
out = sys.argv[2]
weights, config = load_file(f"{out}/model.safetensors"), json.load(open(f"{out}/config.json"))
pixels = torch.from_numpy(np.load(f"{out}/image.npy")).permute(0, 3, 1, 2).contiguous()
seconds = []
with torch.no_grad():
    for _ in range(5):
        begin = time.perf_counter()
        logits = forward(weights, pixels, config=config)
        seconds.append(time.perf_counter() - begin)
np.save(f"{out}/logits.npy", logits.numpy())
print(min(seconds[1:]))
"""


def photographs() -> tuple[list[str], np.ndarray]:
    """(names, central squares at 224 pixels as (value - 127) / 128, (2, 224, 224, 3))."""
    found = load_sample_images()
    out = []
    for image in found.images:
        height, width, _ = image.shape
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        square = jnp.asarray(image[top : top + side, left : left + side], jnp.float32)
        out.append((jax.image.resize(square, (224, 224, 3), "bicubic") - 127) / 128)
    return [Path(name).name for name in found.filenames], np.stack(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference-python", help="a Python with torch and safetensors")
    args = parser.parse_args()
    cfg, out = PRESETS["efficientnet-lite0"], cache.root() / "efficientnet-lite0"
    if args.reference_python:
        out.mkdir(parents=True, exist_ok=True)
        pickle = str(fetch("efficientnet-lite0"))
        subprocess.run([args.reference_python, "-c", CONVERT, pickle, str(out / folder.WEIGHTS)], check=True)
        hf = {"architectures": [EFFICIENTNET.architecture], **EFFICIENTNET.to_hf(cfg)}
        (out / "config.json").write_text(json.dumps(hf, indent=2) + "\n")
    family, cfg = folder.read_config(out)
    shardings = dict.fromkeys(spec_by_path(cfg), SingleDeviceSharding(jax.devices()[0]))
    weights = folder.load_params(family, cfg, folder.open_weights(out), shardings, "float32")
    names, images = photographs()
    apply = jax.jit(lambda tree, image: cfg.make().apply(tree, {"image": image}).value)
    seconds = []
    for _ in range(5):
        begin = time.perf_counter()
        logits = apply(params.from_paths(weights), images).block_until_ready()
        seconds.append(time.perf_counter() - begin)
    print("photograph   class  probability  expected")
    for name, row in zip(names, np.asarray(jax.nn.softmax(logits)), strict=True):
        print(f"{name:11}  {row.argmax():5}  {row.max():11.3f}  {EXPECTED[name][0]} {EXPECTED[name][1]}")
    print(f"logits: standard deviation {float(logits.std()):.2f}; both images in {min(seconds[1:]):.3f} s")
    if args.reference_python:
        np.save(out / "image.npy", images)
        command = [args.reference_python, "-c", FORWARD, str(PARITY), str(out)]
        theirs = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
        worst = np.max(np.abs(np.asarray(logits) - np.load(out / "logits.npy")))
        print(f"torch: {theirs:.3f} s, so {theirs / min(seconds[1:]):.2f} x ours; largest difference {worst:.1e}")
    assert all(np.argmax(row) == EXPECTED[name][0] for name, row in zip(names, logits, strict=True))


if __name__ == "__main__":
    main()
