"""Prunes a run's weights to one or several sparsities, evaluates and heals them, and keeps the last
as a run."""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from bigmodel_jax.compress import prune_calibration, prune_masks, prune_structured
from bigmodel_jax.config import Config
from bigmodel_jax.config_checks import validate
from bigmodel_jax.core import params, sharding
from bigmodel_jax.core.params import Tree
from bigmodel_jax.models.adapters import AdapterConfig
from bigmodel_jax.optim.pruning import PruneConfig, targets
from bigmodel_jax.report.counted import counting
from bigmodel_jax.report.stages import Stages
from bigmodel_jax.report.writers import plain
from bigmodel_jax.sweep.metric import judged_by
from bigmodel_jax.training import new_run
from bigmodel_jax.training import run as running
from bigmodel_jax.training.beginning import open_data
from bigmodel_jax.training.checks import check_data
from bigmodel_jax.training.eval_step import make_eval_step
from bigmodel_jax.training.evaluate import evaluate
from bigmodel_jax.training.saved import load_weights
from bigmodel_jax.training.set_evaluations import validation

Kind = Literal["magnitude", "wanda", "structured_layers", "mlp_channels"]
SPARSE = ("magnitude", "wanda")  # kinds that keep the model's shapes


class Asked(NamedTuple):
    """The verb's options. sparsities: in increasing order. The model of the last one is kept."""

    kind: Kind
    sparsities: tuple[float, ...]
    pattern: str = ""
    targets: str = ""
    heal: int = 0
    lr: float | None = None
    calibration: int = 8
    metric: str = ""
    which: str = ""


class Pruned(NamedTuple):
    """A pruned model. config: the pruned model's config; about: facts for the record."""

    config: Config
    weights: Tree
    about: dict[str, Any]


@dataclasses.dataclass
class Subject:
    """The run to prune. config: the config of its evaluation; told: the config in its folder;
    batches: the calibration batches."""

    config: Config
    told: Config
    run_dir: Path
    mesh: Any
    weights: Tree
    batches: list[dict]

    def scalars(self, config: Config, weights: Tree, text: str) -> dict[str, float]:
        """The metrics of a model on the validation split."""
        step, batches = make_eval_step(config, self.mesh), validation(config, self.mesh, self.run_dir, resumes=True)
        with counting(len(batches), f"Evaluating {text}") as advance:

            def counted(*args):
                advance()
                return step(*args)

            found = evaluate(config, counted, weights, batches)
        return {name: plain(value) for name, value in found.items() if isinstance(value, float)}


def prune_run(config: Config, run_dir: Path, folder: Path, asked: Asked, stages: Stages) -> dict[str, Any]:
    """Prunes a run into the new run `folder`, and returns the record for the page.

    Raises ValueError, one line, before anything is written, if the run cannot be pruned this way.
    """
    new_run.check_free(folder)
    _check(config, asked)
    read = dataclasses.replace(config, data=config.data.of_run(run_dir))
    validate(read, jax.device_count())
    check_data(read)
    key, direction = judged_by(read, asked.metric)
    mesh = sharding.make_mesh(config.parallel)
    weights, step = load_weights(config, run_dir, mesh, asked.which)
    subject = Subject(read, config, run_dir, mesh, weights, _calibration(read, mesh, asked))
    make = _maker(subject, asked)
    dense = subject.scalars(read, weights, "the run as it is")
    if key not in dense:
        raise ValueError(f"--metric {key}: the evaluation gave no such number; it gave {', '.join(sorted(dense))}")
    record = asked._asdict() | {"run": str(run_dir), "step": step, "dense": _point(read, weights, dense), "points": []}
    record |= {"metric": key, "better": "more" if direction == "maximize" else "less"}
    for sparsity in asked.sparsities:
        found = make(sparsity)
        scalars = subject.scalars(found.config, found.weights, f"at {sparsity:.0%}")
        point = _point(found.config, found.weights, scalars) | {"asked": sparsity} | found.about
        kept = found
        if asked.heal:
            kept = _heal(subject, found, asked, stages)
            point["healed"] = subject.scalars(kept.config, kept.weights, f"at {sparsity:.0%}, healed")
            # Healing must keep the mask. Fewer zeros mean a defect.
            if (zeros := _point(kept.config, kept.weights, {})["zeros"]) < point["zeros"]:
                raise RuntimeError(f"prune: {point['zeros'] - zeros} zeros were lost in the healing")
        record["points"].append(point)
    new_run.write(_as_kept(subject, kept, asked), run_dir, folder, kept.weights)
    return record


def _check(config: Config, asked: Asked) -> None:
    if type(config.adapters) is not AdapterConfig:
        raise ValueError("prune: the run has adapters; export it merged, and import that, to prune it")
    if config.mup.base:
        raise ValueError(
            "prune: the run has mup.base, against whose widths its weights are scaled; export and import it first"
        )
    spec = config.make_model().spec
    if any(p.kind == "constant" for p in params.paths(spec).values()):
        raise ValueError(
            "prune: the run has constant parameters (a reference, a teacher, frozen groups), which are not pruned"
        )
    if asked.kind not in SPARSE:
        if asked.kind == "structured_layers":
            prune_structured.check_layers(config.model)
        else:
            prune_structured.channel_readers(config.model)
        return
    for path, p in targets(asked.targets, spec, "--targets").items():
        inputs = prune_masks.matrices_shape(path, p)[1]
        if asked.pattern and inputs % (m := prune_masks.parse_pattern(asked.pattern).m):
            raise ValueError(
                f"--pattern = {asked.pattern!r}: {path} has {inputs} inputs, no multiple of {m}; --targets leaves it out"
            )


def _calibration(config: Config, mesh, asked: Asked) -> list[dict]:
    """The first training batches; none for pruning by magnitude, which needs no inputs."""
    if asked.kind == "magnitude":
        return []
    train, found = open_data(config, mesh)[0], []
    train.seek(0)
    with counting(asked.calibration, "Reading calibration batches") as advance:
        for _ in range(asked.calibration):
            found.append(train.next(None))
            advance()
    return found


# ---------------------------------------------------------------- the kinds


def _maker(subject: Subject, asked: Asked):
    """A function sparsity -> pruned model. What all sparsities share of the calibration is computed
    once."""
    make = {"structured_layers": _layers, "mlp_channels": _channels}.get(asked.kind, _sparse)
    return make(subject, asked)


def _sparse(subject: Subject, asked: Asked):
    config, spec = subject.config, subject.config.make_model().spec
    wanted = targets(asked.targets, spec, "--targets")
    flat = params.paths(subject.weights)
    squares = {}
    if asked.kind == "wanda":
        squares = prune_calibration.input_squares(config, subject.mesh, subject.weights, subject.batches, wanted)

    def make(sparsity: float) -> Pruned:
        new = dict(flat)
        for path, p in wanted.items():
            w = prune_masks.as_matrices(path, p, flat[path])
            scores = (
                prune_masks.wanda(w, jnp.asarray(squares[path], jnp.float32)) if squares else prune_masks.magnitude(w)
            )
            # A pattern fixes the sparsity.
            if asked.pattern:
                keep = prune_masks.n_of_m(scores, prune_masks.parse_pattern(asked.pattern))
            else:
                keep = prune_masks.smallest_out(scores, sparsity, by_output=bool(squares))
            new[path] = jax.device_put(jnp.where(keep, w, 0).reshape(p.shape), flat[path].sharding)
        return Pruned(config, params.from_paths(new), {"matrices": len(wanted)})

    return make


def _layers(subject: Subject, asked: Asked):
    influence = prune_calibration.block_influence(subject.config, subject.mesh, subject.weights, subject.batches)

    def make(sparsity: float) -> Pruned:
        model, tree, gone = prune_structured.fewer_layers(subject.config.model, subject.weights, influence, sparsity)
        about = {"gone": gone, "influence": influence.tolist(), "num_layers": model.num_layers}
        return _smaller(subject, model, tree, about)

    return make


def _channels(subject: Subject, asked: Asked):
    model = subject.config.model
    readers = prune_structured.channel_readers(model)
    squares = prune_calibration.input_squares(subject.config, subject.mesh, subject.weights, subject.batches, readers)
    scores = prune_structured.channel_scores(subject.weights, readers, squares)

    def make(sparsity: float) -> Pruned:
        width = max(1, round((1 - sparsity) * model.mlp_dim))
        new, tree = prune_structured.narrower(model, subject.weights, prune_structured.kept_channels(scores, width))
        return _smaller(subject, new, tree, {"mlp_dim": width})

    return make


def _smaller(subject: Subject, model: Any, tree: Tree, about: dict[str, Any]) -> Pruned:
    config = dataclasses.replace(subject.config, model=model)
    validate(config, jax.device_count())
    where = sharding.placed(config.make_model().spec, subject.mesh, config.parallel)
    return Pruned(config, jax.device_put(tree, where), about)


# ---------------------------------------------------------------- healing


def _heal(subject: Subject, found: Pruned, asked: Asked, stages: Stages) -> Pruned:
    """The pruned model after a short fine-tune on the run's own data. Pruned weights stay zero."""
    # Healing is an ordinary run that starts from the pruned weights, in a temporary folder.
    with tempfile.TemporaryDirectory(prefix="prune-") as scratch:
        start, run_dir = Path(scratch) / "start", Path(scratch) / "run"
        config = _as_kept(subject, found, asked)
        new_run.write(config, subject.run_dir, start, found.weights)
        optim = dataclasses.replace(
            config.optim, warmup_steps=0, warmup_share=0.1, lr=asked.lr or 0.1 * config.optim.lr
        )
        changes = {"steps": asked.heal, "epochs": None, "init_from": str(start), "init_state": "weights"}
        train = dataclasses.replace(config.train, **changes)
        short = {"eval": dataclasses.replace(config.eval, every=0, sets=(), patience=0, baselines=False)}
        short["checkpoint"] = dataclasses.replace(
            config.checkpoint, every=0, local_dir="", local_every=0, best_metric=""
        )
        healing = dataclasses.replace(config, optim=optim, train=train, **short)
        running.train(healing, run_dir, stages, page=False)
        weights = load_weights(healing, run_dir, subject.mesh)[0]
    return found._replace(weights=weights)


def _as_kept(subject: Subject, found: Pruned, asked: Asked) -> Config:
    """The config for the new run's folder. With it a fine-tune keeps the zeros."""
    optim = subject.told.optim
    if asked.kind in SPARSE:
        optim = dataclasses.replace(optim, prune=PruneConfig(keep=True, targets=asked.targets))
    elif optim.prune.sparsity:  # the run was pruned during training, and must not be pruned again
        optim = dataclasses.replace(optim, prune=PruneConfig(keep=True, targets=optim.prune.targets))
    return dataclasses.replace(subject.told, model=found.config.model, optim=optim)


# ---------------------------------------------------------------- the record


def _point(config: Config, weights: Tree, scalars: dict[str, Any]) -> dict[str, Any]:
    """Sizes of a model; parameters: their number; zeros: number of exact zeros in its matrices."""
    spec, flat = params.paths(config.make_model().spec), params.paths(weights)
    matrices = targets("", config.make_model().spec)
    zeros = sum(int(jnp.sum(flat[path] == 0)) for path in matrices)
    sizes = sum(p.size for p in matrices.values())
    return {
        "parameters": sum(p.size for p in spec.values()),
        "zeros": zeros,
        "share": zeros / max(sizes, 1),
        "scalars": scalars,
    }
