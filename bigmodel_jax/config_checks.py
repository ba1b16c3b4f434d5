"""Checks a config for every mistake that can be found before data is opened or a step compiled."""

import dataclasses
import importlib.util
import math

from bigmodel_jax import config_metrics, config_reads, eval_sets
from bigmodel_jax.config import Config, check_parts, flat
from bigmodel_jax.core import params, paths, ranges
from bigmodel_jax.core.sharding import AXES, ParallelConfig, Rules, axis_names, factor, partition_spec, slice_axis
from bigmodel_jax.core.spelling import nearest
from bigmodel_jax.models import compute

# A field whose name has one of these endings holds a file or a folder.
PATH_ENDS = ("path", "dir", "folder", "file")
# Fields that may also hold a bucket's address, by the end of their names, with the allowed schemes.
ADDRESSES = {
    "source.train": ("gs", "s3"),
    "source.validation": ("gs", "s3"),
    "source.test": ("gs", "s3"),
    "train.init_from": ("gs",),
    "objective.teacher": ("gs",),
    "objective.reference_run": ("gs",),
}


def validate(config: Config, num_devices: int | None = None) -> None:
    """Raises ValueError for any mistake that can be found before data is opened or a step compiled.

    num_devices: devices of the mesh; None leaves out the checks that depend on it.
    """
    check_parts(config)
    ranges.check(config)
    check_paths(config)
    check_duration(config)
    _check_rules(config.parallel.rules)
    # Models check their sizes against the mesh, so an axis of -1 must be resolved first.
    parallel = _with_sizes(config.parallel, num_devices)
    config.model.validate(parallel)
    config.adapters.validate(config.model, config.model.make(), parallel)
    config.mup.validate(config)
    spec = config.make_model().spec
    params.check_sizes(spec)
    config.optim.check_widths(spec)
    config_reads.check_adapters_off(config.objective, config.adapters)
    config_reads.check_whole_batch(config.objective, config.train.microbatches, config.parallel)
    config.objective.validate(config)
    config.data.validate(config.train.batch_size)
    _check_batch(config, num_devices)
    config_reads.check(config.model, config.objective, config.data)
    _check_sets(config, num_devices)
    config_metrics.check(config, eval_sets.declared(config), eval_sets.every(config))
    _check_local(config)
    for name in config.report.trackers:
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"report.trackers = {name!r}: the package is not installed: uv sync --extra {name}")


def _with_sizes(parallel: ParallelConfig, num_devices: int | None) -> ParallelConfig:
    """`parallel` with the axis of size -1 computed, if the number of devices is known."""
    if num_devices is None:
        return parallel
    return dataclasses.replace(parallel, **dict(zip(AXES, factor(parallel, num_devices), strict=True)))


def check_duration(config: Config) -> None:
    """Checks the length of the run and the state that it starts from.

    training/epochs.py turns epochs into steps. Raises ValueError if steps and epochs are both
    given, if epochs are given for data without an end, if the optimizer cannot run for so many
    steps, or if `init_state` is "all" without a run to take the state from.
    """
    train, data = config.train, type(config.data)
    if train.init_state == "all" and not train.init_from:
        raise ValueError("train.init_state = 'all' needs train.init_from, such as runs/other@400")
    if train.epochs is None:
        return config.optim.validate(train.steps)
    if train.steps is not None:
        raise ValueError(f"train.steps = {train.steps} and train.epochs = {train.epochs:g} are both given; give one")
    if data.endless:
        raise ValueError(f"train.epochs = {train.epochs:g}: {data.__name__} has no last row; give train.steps")


def check_paths(config: Config) -> None:
    """Raises ValueError if a field for a file or folder holds a bucket's address that it does not
    allow.

    This covers the fields of users' own classes. Where an address is allowed, one object of the
    bucket is requested, to see that it can be read.
    """
    for name, value in flat(config).items():
        schemes = next((schemes for end, schemes in ADDRESSES.items() if name.endswith(end)), None)
        if isinstance(value, str) and (schemes or name.rpartition(".")[2].endswith(PATH_ENDS)):
            for part in value.split(","):
                paths.check(name, part.strip(), schemes or ())


def _check_rules(rules: Rules) -> None:
    for field in dataclasses.fields(rules):
        value = getattr(rules, field.name)
        for axis in () if value is None else (value,) if isinstance(value, str) else value:
            if axis not in AXES:
                raise ValueError(
                    f"parallel.rules.{field.name} = {axis!r}; allowed: {', '.join(AXES)}{nearest(str(axis), AXES)}"
                )


def _check_batch(config: Config, num_devices: int | None) -> None:
    if num_devices is None:
        return
    sizes = dict(zip(AXES, factor(config.parallel, num_devices), strict=True))
    if config.parallel.strategy == "pmap" and num_devices != sizes["data"]:
        raise ValueError("parallel.strategy = 'pmap' is data-parallel only: every axis but parallel.data must be 1")
    if config.parallel.strategy == "pmap" and config.parallel.offload_optimizer:
        raise ValueError("parallel.offload_optimizer = True needs parallel.strategy = 'jit'")
    stages = sizes["stage"]
    _check_pipeline(config, stages)
    _check_rows(config, sizes)
    _check_sequence(config, sizes["seq"], sizes["tensor"])
    _check_slices(config, sizes)
    _check_deterministic(config, sizes)
    # Each pipeline microbatch is cut over the other batch axes, so the stage axis is not counted as
    # a shard.
    axes = [a for a in axis_names(config.parallel.rules.batch) if sizes[a] > 1 and not (a == "stage" and stages > 1)]
    shards = math.prod(sizes[a] for a in axes)
    pieces = [f"{shards} data shards ({' x '.join(f'parallel.{a}' for a in axes) or 'parallel.data'})"]
    if stages > 1:
        microbatches = config.parallel.pipeline_microbatches or stages
        shards *= microbatches
        pieces.append(f"parallel.pipeline_microbatches = {microbatches}")
    for name, value, more in (
        ("train.batch_size", config.train.batch_size, config.train.microbatches),
        ("eval.batch_size", config.eval.batch_size, 1),
    ):
        if value % (shards * more):
            product = " x ".join([*pieces, *([f"train.microbatches = {more}"] if more > 1 else [])])
            raise ValueError(f"{name} = {value} is not divisible by {shards * more} = {product}")


def _check_pipeline(config: Config, stages: int) -> None:
    """Raises ValueError if the stages do not divide the layers or the pipeline's microbatches."""
    parallel, rounds = config.parallel, config.parallel.pipeline_rounds
    if stages == 1:
        if rounds > 1 or parallel.pipeline_microbatches > 1 or parallel.pipeline_schedule != "gpipe":
            raise ValueError(
                "parallel.pipeline_microbatches, pipeline_rounds and pipeline_schedule need parallel.stage of 2 or more"
            )
        return
    if parallel.pipeline_microbatches % stages:
        raise ValueError(
            f"parallel.pipeline_microbatches = {parallel.pipeline_microbatches} is not a multiple of "
            f"parallel.stage = {stages}"
        )
    if "stage" not in axis_names(parallel.rules.batch):
        raise ValueError(
            f"parallel.rules.batch = {parallel.rules.batch}; it must hold 'stage' where parallel.stage = {stages}"
        )
    spec = params.paths(config.make_model().spec)
    layers = {path: p.shape[p.axes.index("layers")] for path, p in spec.items() if "layers" in p.axes}
    if not layers:
        name = type(config.model).__name__
        raise ValueError(f"parallel.stage = {stages}: {name} has no stack of equal layers to cut")
    if parallel.pipeline_schedule == "1f1b":
        _check_1f1b(config, layers)
    for path, num in layers.items():
        if num % (stages * rounds):
            product = f"parallel.stage = {stages}" + f" x parallel.pipeline_rounds = {rounds}" * (rounds > 1)
            stack, size = path.split("/")[0].removeprefix("layers") or "the model", config.model.BLOCK_LAYERS
            what = f"blocks of {size} layers" if size > 1 else "layers"
            raise ValueError(f"the {num} {what} of {stack} are not divisible by {product}")


def _check_1f1b(config: Config, layers: dict[str, int]) -> None:
    """Raises ValueError for what the 1f1b schedule cannot do.

    layers: the number of layers of each stacked parameter, by path.
    """
    if not config.objective.scores:
        raise ValueError(
            f"parallel.pipeline_schedule = '1f1b' needs an objective that defines score(out, batch), and "
            f"{type(config.objective).__name__} defines its loss() alone; 'gpipe' takes any objective"
        )
    remat = compute.remat(config.model)
    if remat.startswith("offload") and not config.parallel.pipeline_remat:
        raise ValueError(
            f"model.compute.remat = {remat!r} needs parallel.pipeline_remat = True with parallel.pipeline_schedule = '1f1b', "
            "which keeps activations that wait for their backward pass on the device"
        )
    if {path.partition("layers/")[0] for path in layers} != {""}:
        raise ValueError(
            f"parallel.pipeline_schedule = '1f1b' is for models of one stack of layers, and {type(config.model).__name__} "
            "has several; 'gpipe' takes any number"
        )
    if config.make_model().parts is None:
        raise ValueError(
            f"parallel.pipeline_schedule = '1f1b' is for models in parts (models/base.py, Parts), and "
            f"{type(config.model).__name__} brings `apply` alone; 'gpipe' takes any model with a stack"
        )


def _check_rows(config: Config, sizes: dict[str, int]) -> None:
    """Raises ValueError if the mesh does not divide the size of a row along a sharded axis."""
    for name, field in config.data.row().items():
        spec = partition_spec(("batch", *field.axes), config.parallel.rules)
        for size, axes in zip(field.shape or (), spec[1:], strict=False):
            cut = [axis for axis in axis_names(axes) if sizes[axis] > 1]
            if size % math.prod(sizes[axis] for axis in cut):
                # Name the field that the user set: the integer field of the data that has this
                # value, if any.
                option = next(
                    (n for n, value in vars(config.data).items() if type(value) is int and value == size), None
                )
                what = f"data.{option} = {size}" if option else f"data: {name!r} has {size} places, which"
                product = " x ".join(f"parallel.{axis} = {sizes[axis]}" for axis in cut)
                raise ValueError(f"{what} is not divisible by {product}")


def _check_sequence(config: Config, pieces: int, tensor: int) -> None:
    """Raises ValueError if Ulysses cannot divide the heads, or the attention kernel cannot run as a
    ring."""
    # A model without heads passes, because the default is divisible by both.
    heads = getattr(config.model, "num_heads", tensor * pieces)
    if config.parallel.context == "ulysses" and heads % (tensor * pieces):
        product = f"parallel.seq = {pieces}" + (f" x parallel.tensor = {tensor}" if tensor > 1 else "")
        raise ValueError(
            f"model.num_heads = {heads} is not divisible by {product}: parallel.context = 'ulysses' exchanges heads for "
            "the sequence; 'ring' takes any number of heads"
        )
    asked = getattr(compute.of(config.model), "attention", "auto")
    if pieces > 1 and config.parallel.context == "ring" and asked not in ("auto", "chunked", "plain"):
        raise ValueError(
            f"model.compute.attention = {asked!r} needs parallel.context = 'ulysses' where parallel.seq is above 1 "
            f"(here {pieces}); with 'ring' allowed: 'auto', 'chunked', 'plain'"
        )


def _check_slices(config: Config, sizes: dict[str, int]) -> None:
    parallel = config.parallel
    if parallel.slices > 1 and parallel.strategy == "pmap":
        raise ValueError(f"parallel.slices = {parallel.slices} with parallel.strategy = 'pmap'; slices need 'jit'")
    across = slice_axis(parallel, tuple(sizes.values()))
    # Only compressed gradients need more than a mesh axis that spans the slices.
    if parallel.slices == 1 or parallel.slice_gradients == "float32":
        return
    if across != "data":
        raise ValueError(
            f"parallel.slice_gradients = {parallel.slice_gradients!r} needs parallel.data divisible by parallel.slices; "
            f"here {across} goes across the {parallel.slices} slices"
        )
    if sizes["stage"] > 1:
        raise ValueError(
            f"parallel.stage = {sizes['stage']} with parallel.slice_gradients = {parallel.slice_gradients!r}; it must be 1"
        )


def _check_deterministic(config: Config, sizes: dict[str, int]) -> None:
    parallel, shards = config.parallel, sizes["data"] * sizes["fsdp"]
    if not parallel.deterministic:
        return
    groups = parallel.deterministic_groups
    for name, value, allowed in (
        *((f"parallel.{axis}", size, 1) for axis, size in sizes.items() if axis not in ("data", "fsdp")),
        ("parallel.strategy", parallel.strategy, "jit"),
        ("parallel.slice_gradients", parallel.slice_gradients, "float32"),
        ("train.microbatches", config.train.microbatches, 1),
    ):
        if value != allowed:
            raise ValueError(f"{name} = {value!r} with parallel.deterministic = True; it must be {allowed!r}")
    if groups < 2 or groups & (groups - 1):
        raise ValueError(f"parallel.deterministic_groups = {groups}; it must be a power of 2, at least 2")
    # A device must have at least two groups, because its part of the binary tree must hold an
    # addition.
    if groups % (2 * shards):
        raise ValueError(
            f"parallel.deterministic_groups = {groups} is not divisible by {2 * shards} = 2 x {shards} data shards "
            "(parallel.data x parallel.fsdp)"
        )
    if config.train.batch_size % groups:
        raise ValueError(
            f"train.batch_size = {config.train.batch_size} is not divisible by parallel.deterministic_groups = {groups}"
        )


def _check_sets(config: Config, num_devices: int | None) -> None:
    eval_sets.check(config)
    for option, seen in eval_sets.seen(config):
        with eval_sets.named(option, seen.eval.sets[0].name):
            if not seen.data.prompts:  # the evaluation makes batches of prompts itself
                config_reads.check(seen.model, seen.objective, seen.data)
                config_metrics.check_further(seen)
                _check_batch(seen, num_devices)


def _check_local(config: Config) -> None:
    folder, every = config.checkpoint.local_dir, config.checkpoint.local_every
    if every and not folder:
        raise ValueError(
            f"checkpoint.local_every = {every} needs a folder on each host's own disk, "
            "such as --checkpoint.local_dir /dev/shm/bigmodel"
        )
    if folder and not every:
        raise ValueError(
            f"checkpoint.local_dir = {folder!r} needs the number of steps between local saves, "
            "such as --checkpoint.local_every 20"
        )
