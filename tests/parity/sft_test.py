"""Supervised fine-tuning equals that of TRL's SFTTrainer.

The tests compare the trained tokens, loss and gradients of a batch, and the losses of 20 steps.

Our side reads the same records through ChatData, template, masks and packing included.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.config import Config, TrainConfig
from bigmodel_jax.core import params, sharding
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.data import DataConfig
from bigmodel_jax.data.sources.table_files import TableFiles
from bigmodel_jax.data.text.chat_data import ChatData
from bigmodel_jax.objectives import NextToken
from bigmodel_jax.optim import OptimConfig
from bigmodel_jax.pretrained import folder
from bigmodel_jax.training.state import init_state, state_shardings
from bigmodel_jax.training.step import make_train_step
from reference import distance, fixture_folder, read

# What TRL was given, and our data of the same rows: (records, template, packing).
CASES = {
    "assistant": ("talks", True, "none"),
    "packed": ("talks", True, "first_fit"),
    "completion": ("pairs", False, "none"),
}
LAYOUTS = {
    "one": ParallelConfig(data=1),
    "data": ParallelConfig(data=8),
    "fsdp": ParallelConfig(data=1, fsdp=8),
    "fsdp_tensor": ParallelConfig(data=2, fsdp=2, tensor=2),
}


@pytest.fixture(scope="module")
def path(request, tmp_path_factory):
    python = request.config.getoption("--reference-python")
    return fixture_folder("sft", python, tmp_path_factory.mktemp("reference"))


@pytest.fixture(scope="module")
def arrays(path):
    with np.load(path / "reference.npz") as found:
        return dict(found)


def weights(path, source=None):
    family, cfg = folder.read_config(path)
    return cfg, read(family, cfg, dict(folder.open_file(source)) if source else folder.open_weights(path))


def batch_of(case, path, tmp_path):
    """Every row of our data as one batch."""
    records, template, packing = CASES[case]
    data = ChatData(
        source=TableFiles(str(path / f"{records}.jsonl")),
        tokenizer_path=str(path / "tokenizer.json"),
        template_path=str(path / "chat_template.jinja") if template else "",
        seq_len=48,
        packing=packing,
        cache_dir=str(tmp_path),
    )
    rows = data.open("train")
    return rows.batch(np.arange(len(rows)), None)


def documents(batch):
    """Sorted (tokens that are fed, targets that are trained, -1 where one is not) of each
    document."""
    out = []
    for row in range(len(batch["tokens"])):
        one = {name: x[row] for name, x in batch.items()}
        for segment in range(1, one["segment_ids"].max() + 1):
            where = one["segment_ids"] == segment
            asked = np.where(one["weights"] > 0, one["targets"], -1)[where]
            out.append((one["tokens"][where].tolist(), asked.tolist()))
    return sorted(out)


def their_documents(arrays, case):
    """The same of TRL's arrays: a label is of the token where it stands, a target of the next
    one."""
    ids, labels = arrays[f"{case}/input_ids"], arrays[f"{case}/labels"]
    out = []
    for row in range(len(ids)):
        positions = arrays[f"{case}/position_ids"][row] if case == "packed" else np.arange(ids.shape[1])
        for one in np.split(np.arange(ids.shape[1]), np.flatnonzero(positions == 0)[1:]):
            tokens, asked = ids[row, one], np.append(labels[row, one][1:], -100)
            length = int(np.max(np.flatnonzero(tokens != 0), initial=-1)) + 1  # padding is token 0
            out.append((tokens[:length].tolist(), np.where(asked == -100, -1, asked)[:length].tolist()))
    return sorted(out)


@pytest.mark.parametrize("case", CASES)
def test_the_tokens_that_are_trained(case, path, arrays, tmp_path):
    ours, theirs = documents(batch_of(case, path, tmp_path)), their_documents(arrays, case)
    if case == "completion":  # TRL feeds the end that we only ask for
        theirs = sorted((tokens[:-1], asked[:-1]) for tokens, asked in theirs)
    assert ours == theirs
    assert 0 < sum(x >= 0 for _, asked in ours for x in asked) < sum(len(asked) for _, asked in ours)


@pytest.mark.slow
@pytest.mark.parametrize("case", [pytest.param(x, marks=[] if x == "packed" else pytest.mark.slow) for x in CASES])
def test_loss_and_gradients(case, path, arrays, tmp_path, measured):
    """The loss agrees to 1e-5 of the sum of its terms, which are all positive, and a gradient to
    1e-4 of its norm."""
    cfg, tree = weights(path)
    theirs = params.paths(weights(path, path / f"{case}.safetensors")[1])
    batch, model = jax.tree.map(jnp.asarray, batch_of(case, path, tmp_path)), cfg.make()

    @jax.jit
    def loss(tree):
        mean = NextToken().loss(model, tree, batch, rng=None, train=True).mean
        return mean.total / mean.count

    value, ours = jax.value_and_grad(loss)(tree)
    error = abs(float(value) / float(arrays[f"{case}/loss"]) - 1)
    assert measured(f"sft {case}", "forward", error) <= 1e-5
    errors = {p: distance(g, theirs[p]) / np.linalg.norm(theirs[p]) for p, g in params.paths(ours).items()}
    worst = max(errors, key=errors.get)
    assert measured(f"sft {case}", "backward", errors[worst]) <= 1e-4, worst


def step_batches(arrays, rows=8):
    """TRL's packed batch of each step, one long row, and rows without weight that make it divisible
    by the devices."""
    found = zip(
        *(arrays[f"train/{name}"].astype(np.int32) for name in ("input_ids", "labels", "position_ids")), strict=True
    )
    for ids, labels, positions in found:
        targets = np.append(labels[1:], -100)
        row = {
            "tokens": ids,
            "targets": np.maximum(targets, 0),
            "weights": (targets != -100).astype(np.float32),
            "segment_ids": np.cumsum(positions == 0).astype(np.int32),
            "positions": positions,
        }
        yield {name: np.stack([x] + [np.zeros_like(x)] * (rows - 1)) for name, x in row.items()}


@pytest.mark.exhaustive  # the loss and its gradients are compared above
@pytest.mark.parametrize("layout", LAYOUTS)
def test_twenty_steps(layout, path, arrays, measured):
    """This package's train step takes the steps with the constants of TRL's AdamW on TRL's batches,
    on one device and on eight."""
    cfg, tree = weights(path)
    config = Config(
        model=cfg,
        objective=NextToken(),
        data=DataConfig(),
        optim=OptimConfig(lr=3e-3, schedule="constant", betas=(0.9, 0.95), weight_decay=0.1, clip=1.0),
        parallel=LAYOUTS[layout],
        train=TrainConfig(steps=len(arrays["train/losses"]), batch_size=8),
    )
    mesh = sharding.make_mesh(config.parallel, jax.devices()[: 1 if layout == "one" else 8])
    step, state = make_train_step(config, mesh), init_state(config, mesh)
    state = dataclasses.replace(state, params=jax.device_put(tree, state_shardings(config, mesh).params))
    losses = []
    for batch in step_batches(arrays):
        state, sums = step(state, batch)
        losses.append(float(sums["loss"].compute()))
    assert losses[-1] < losses[0] - 0.5, "it learns nothing"
    assert measured("sft", "training", distance(losses, arrays["train/losses"])) <= 1e-3
