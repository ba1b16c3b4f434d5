"""Compares mutated config.json files that we read with what transformers makes of them; run by
hand, in two Pythons.

    uv run python tests/parity/compare_mutations.py ours FOLDER [--count 200]
    REFERENCE_PYTHON tests/parity/compare_mutations.py theirs FOLDER

`ours` writes the first COUNT of the mutations of tests/pretrained/mutations_test.py that we do not
refuse (of families that transformers has) as folders, with the outputs that we compute. `theirs`
loads each with transformers, computes the same outputs and prints one line per mutation that is not
equal, then the counts.
"""

import argparse
import collections
import json
import random
import warnings
from pathlib import Path

import numpy as np

from mutations import mutate

FIXTURES = Path(__file__).parent / "fixtures"
ABSENT_IN_TRANSFORMERS = ("dit", "efficientnet", "alexnet", "vgg", "vgg_bn", "pixart", "mmdit")
FOLDERS = sorted(p.parent.name for p in FIXTURES.glob("*/config.json") if any(p.parent.glob("*.safetensors")))
TOLERANCE = 1e-3
# Names of outputs: ours -> theirs.
OUTPUTS = {"hidden": "last_hidden_state", "pooled": "pooler_output", "next_sentence": "seq_relationship_logits"}


def inputs(config: dict) -> dict[str, np.ndarray]:
    """What a model of this kind reads: tokens, two sides of tokens, an image, or an image with a
    text."""
    rng = np.random.default_rng(0)
    vision, text = config.get("vision_config") or config, config.get("text_config") or config
    found = {}
    if "patch_size" in vision or "num_channels" in vision:
        size = vision.get("image_size", 32)
        height, width = size if isinstance(size, list) else (size, size)
        found["image"] = rng.normal(size=(2, height, width, vision.get("num_channels", 3))).astype(np.float32)
    if "vocab_size" in text:
        length = min(13, text.get("max_position_embeddings", 13))
        found["tokens"] = rng.integers(8, text["vocab_size"], (2, length))
    if "d_kv" in config or "encoder_layers" in config:
        found["encoder_tokens"] = rng.integers(8, 90, (2, 11))
    return found


def ours(folder: Path, count: int) -> None:
    import jax
    import jax.numpy as jnp

    from bigmodel_jax.config import Config
    from bigmodel_jax.config_checks import validate
    from bigmodel_jax.data import DataConfig
    from bigmodel_jax.objectives import Objective
    from bigmodel_jax.pretrained import folder as hf_folder
    from reference import read

    written = 0
    for seed in range(1000):
        name = FOLDERS[seed % len(FOLDERS)]
        if name in ABSENT_IN_TRANSFORMERS or written == count:
            continue
        m = mutate(json.loads((FIXTURES / name / "config.json").read_text()), random.Random(seed))
        case = folder / f"{seed:04}-{name}"
        case.mkdir(parents=True, exist_ok=True)
        (case / "config.json").write_text(json.dumps(m.config))
        weights = case / "model.safetensors"
        weights.unlink(missing_ok=True)
        weights.symlink_to(FIXTURES / name / "model.safetensors")
        (case / "mutation.json").write_text(json.dumps([m.path, m.kind]))
        batch = inputs(json.loads((FIXTURES / name / "config.json").read_text()))
        try:
            family, cfg = hf_folder.read_config(case)
            validate(Config(model=cfg, objective=Objective(), data=DataConfig()))
            tree = read(family, cfg, hf_folder.open_weights(case))
        except ValueError:
            continue
        value = jax.jit(cfg.make().apply)(tree, {n: jnp.asarray(x) for n, x in batch.items()}).value
        found = named(value, getattr(cfg, "head", ""))
        np.savez(
            case / "ours.npz", **{f"in/{n}": x for n, x in batch.items()}, **{f"out/{n}": x for n, x in found.items()}
        )
        written += 1
    print(f"{written} written")


def named(value, head: str) -> dict[str, np.ndarray]:
    """Our outputs under transformers' names."""
    if isinstance(value, dict):
        return {OUTPUTS.get(n, "prediction_logits"): np.asarray(x) for n, x in value.items()}
    if head == "question_answering":
        return {"start_logits": np.asarray(value[..., 0]), "end_logits": np.asarray(value[..., 1])}
    value = np.asarray(value)
    if value.ndim == 3 and value.shape[1] == 2 and head != "token_classification" and value.shape[0] == 2 and not head:
        return {"logits": value, "image_embeds": value[:, 0], "text_embeds": value[:, 1]}
    return {"logits": value}


def theirs(folder: Path) -> None:
    import torch
    import transformers

    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    seen = collections.Counter()
    for case in sorted(folder.glob("*/ours.npz")):
        arrays = dict(np.load(case))
        what = compare(case.parent, arrays, torch, transformers)
        seen[what.partition(":")[0]] += 1
        if not what.startswith("equal"):
            path, kind = json.loads((case.parent / "mutation.json").read_text())
            print(f"{case.parent.name} {'.'.join(path)} {kind}: {what}", flush=True)
    print(dict(seen))


def compare(folder: Path, arrays: dict, torch, transformers) -> str:
    fixture = json.loads((FIXTURES / folder.name.partition("-")[2] / "config.json").read_text())
    model = getattr(transformers, fixture["architectures"][0])
    names = {"tokens": "input_ids", "encoder_tokens": "input_ids", "image": "pixel_values"}
    batch = {n.removeprefix("in/"): torch.from_numpy(x) for n, x in arrays.items() if n.startswith("in/")}
    if "encoder_tokens" in batch:
        names["tokens"] = "decoder_input_ids"
    if "image" in batch:
        batch["image"] = batch["image"].permute(0, 3, 1, 2)
    try:
        loaded = model.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        with torch.no_grad():
            out = loaded(**{names[n]: x for n, x in batch.items()})
    except Exception as error:  # whatever a library says of a file that it does not take
        return f"refused by transformers: {type(error).__name__} {' '.join(str(error).split())[:120]}"
    worst = 0.0
    compared = 0
    for name, value in arrays.items():
        their = getattr(out, name.removeprefix("out/"), None) if name.startswith("out/") else None
        if isinstance(their, torch.Tensor) and tuple(their.shape) == value.shape:
            worst, compared = max(worst, float(np.max(np.abs(their.numpy() - value)))), compared + 1
    if not compared:
        return "nothing to compare"
    return f"equal: {worst:.1e}" if worst <= TOLERANCE else f"different: {worst:.1e}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("side", choices=["ours", "theirs"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=200)
    args = parser.parse_args()
    ours(args.folder, args.count) if args.side == "ours" else theirs(args.folder)


if __name__ == "__main__":
    main()
