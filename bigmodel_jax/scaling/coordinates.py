"""The coordinate check of muP: how the size of activations depends on width after a few steps.

Source: arXiv:2203.03466, appendix D.1. Under muP the size does not depend on width; in standard
parametrization it grows.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from bigmodel_jax.config import Config
from bigmodel_jax.config_checks import validate
from bigmodel_jax.core import files, params, sharding
from bigmodel_jax.core.precision import cast
from bigmodel_jax.data import make_iterator
from bigmodel_jax.models import ModelConfig
from bigmodel_jax.models.mup import MupConfig
from bigmodel_jax.nn import taps
from bigmodel_jax.report.plot_style import LIGHT
from bigmodel_jax.report.width_plots import coordinates
from bigmodel_jax.training.state import init_constants, init_state
from bigmodel_jax.training.step import make_train_step

TAPS = ("residual", "attention")
OUTPUT = "output"
# {activation: its size before step 0, 1, ... and after the last step}
Sizes = dict[str, list[float]]


def of_widths(config: Config, times: int) -> ModelConfig:
    """The model whose widths are `times` those in `mup.base`.

    A number of layers in `mup.base` stays as it is.
    """
    base = tuple(text for text in config.mup.base if not text.startswith("num_layers="))
    wider = []
    for text in base:
        name, _, sizes = text.partition("=")
        wider.append(f"{name}={','.join(str(int(size) * times) for size in sizes.split(','))}")
    layers = tuple(text for text in config.mup.base if text not in base)
    return MupConfig((*wider, *layers)).base_of(config.model)


def sizes_of(config: Config, batches: Sequence[dict], mesh: Mesh) -> Sizes:
    """The mean absolute value of the last layer's taps and of the model's output.

    All are measured for the first batch, before each step on the batches and after the last step.
    """
    model, state = config.make_model(), init_state(config, mesh)
    constants, step = init_constants(config, mesh), make_train_step(config, mesh)

    @jax.jit
    def seen(state, constants):
        with sharding.use(mesh, config.parallel.rules, config.parallel):
            weights = cast(params.merge(state.params, state.frozen, constants), config.precision.compute)
            # The measurements always use the first batch, so that only the weights differ.
            batch, _ = config.objective.inputs(batches[0], None)
            out, found = taps.read(model.apply, lambda _, x: x, TAPS)(weights, batch)
        last = {name: x[-1] for name, x in found.items()} | {OUTPUT: out.value}
        return {name: jnp.abs(x.astype(jnp.float32)).mean() for name, x in last.items()}

    rows = [seen(state, constants)]
    for batch in batches:
        state, _ = step(state, batch, constants)
        rows.append(seen(state, constants))
    return {name: [float(row[name]) for row in rows] for name in rows[0]}


def check(config: Config, times: Sequence[int], steps: int, output: Path) -> dict[str, dict[int, Sizes]]:
    """{form: {times the base's widths: sizes}} for muP and standard parametrization.

    It trains on a few batches of the data, and writes coordinates.json and a picture per activation
    to the folder `output`.
    """
    if not config.mup.base:
        raise ValueError(
            "scale --coordinates compares widths with mup.base, which is (); give --mup.base embed_dim=64 ..."
        )
    # The first few steps must have the full learning rate to show an effect.
    config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, warmup_steps=0, warmup_share=0.0))
    # Layers that are dropped at random would change the sizes as well.
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, stochastic_depth=0.0))
    forms = {"standard": MupConfig(), "mup": config.mup}
    models = {n: of_widths(config, n) for n in times}
    of = {
        form: {n: dataclasses.replace(config, model=m, mup=mup) for n, m in models.items()}
        for form, mup in forms.items()
    }
    for one in of["mup"].values():
        validate(one, jax.device_count())
    mesh = sharding.make_mesh(config.parallel)
    layout = {"mesh": mesh, "rules": config.parallel.rules}
    batches = make_iterator(config.data, batch_size=config.train.batch_size, seed=config.train.seed, **layout)
    batches = [next(batches) for _ in range(steps)]
    found = {form: {n: sizes_of(one, batches, mesh) for n, one in by_width.items()} for form, by_width in of.items()}
    output.mkdir(parents=True, exist_ok=True)
    files.replace(output / "coordinates.json", json.dumps(found).encode())
    for name in found["mup"][times[0]]:
        files.replace(output / f"{name}.png", coordinates(curves(found, name), LIGHT, name))
    return found


def curves(found: dict[str, dict[int, Sizes]], name: str) -> dict[str, dict[int, list[tuple[float, float]]]]:
    """Curves of one activation over width: {form: {step: [(times the base's widths, size)]}}."""
    steps = range(len(next(iter(found["mup"].values()))[name]))
    return {form: {s: [(n, x[name][s]) for n, x in widths.items()] for s in steps} for form, widths in found.items()}


def growth(found: dict[int, Sizes], name: str) -> float:
    """The exponent with which the size grows with width after the last step; 0 = it does not
    grow."""
    widths = np.log(list(found))
    return float(np.polyfit(widths, np.log([sizes[name][-1] for sizes in found.values()]), 1)[0])
