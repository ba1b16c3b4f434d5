"""One `Config` describes one run; everything else is a pure function of it.

A config file is plain Python whose `get_config()` returns a complete `Config`. Any field is overridden on the command
line by its dotted name. In JSON each dataclass is an object whose "type" names its class.
"""

import contextlib
import dataclasses
import difflib
import importlib.util
import io
import math
import re
import typing
from collections.abc import Sequence
from typing import Any, Literal

import tyro

from bigmodel_jax.core import params
from bigmodel_jax.core.precision import Policy
from bigmodel_jax.core.sharding import AXES, ParallelConfig, Rules, axis_names, factor
from bigmodel_jax.data.base import DataConfig
from bigmodel_jax.models import MODELS, ModelConfig
from bigmodel_jax.objectives import OBJECTIVES, Objective
from bigmodel_jax.optim import OptimConfig


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    steps: int = 1000
    batch_size: int = 32  # examples (rows) of one optimizer step, over all devices
    microbatches: int = 1  # the batch is computed in this many pieces, one after the other
    seed: int = 0
    log_every: int = 10
    init_from: str = ""  # a run's folder, imported or trained, whose weights this run starts from


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """Text generated at the end of a training run, and the defaults of `generate`."""

    prompt: str = ""
    max_tokens: int = 128
    temperature: float = 0.8  # 0 = always the likeliest token
    top_k: int = 0  # 0 = all
    top_p: float = 1.0


@dataclasses.dataclass(frozen=True)
class ImageSampleConfig:
    """Images generated at the end of a run whose objective is Diffusion (DDIM with classifier-free guidance)."""

    num: int = 0  # 0 = none
    steps: int = 50  # denoising steps, spread over objective.num_steps
    guidance: float = 3.0  # 1 = what the model says given the label or text; above: further away from without it


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    every: int = 0  # steps between evaluations; 0 = only after the last step
    batch_size: int = 0  # 0 = the training batch size
    sample: SampleConfig = SampleConfig()
    images: ImageSampleConfig = ImageSampleConfig()


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    every: int = 0  # steps between saves; 0 = only after the last step
    keep: int = 2  # the newest so many
    best_metric: str = ""  # also keep the save that is best by this metric of the evaluation, e.g. "eval/loss"
    best_mode: Literal["min", "max"] = "min"


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    tensorboard: bool = True
    trackers: tuple[Literal["wandb", "mlflow"], ...] = ()


@dataclasses.dataclass(frozen=True)
class Config:
    model: ModelConfig
    objective: Objective
    data: DataConfig
    optim: OptimConfig = OptimConfig()
    parallel: ParallelConfig = ParallelConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    precision: Policy = Policy()
    report: ReportConfig = ReportConfig()


# ------------------------------------------------------------------------------------------------ command line


def override(config: Config, args: Sequence[str], prog: str = "launch.py train CONFIG") -> Config:
    """`config` with the fields named in `args` ("--optim.lr", "3e-4") replaced.

    Raises ValueError, one line with the option, its value, what is allowed and the nearest spelling.
    """
    message = io.StringIO()
    options = (tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff)
    try:
        with contextlib.nullcontext() if {"-h", "--help"} & set(args) else contextlib.redirect_stderr(message):
            return tyro.cli(
                type(config), default=config, args=list(args), prog=prog, config=options, use_underscores=True
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ValueError(one_line(message.getvalue())) from None


def one_line(box: str) -> str:
    """A tyro error box as one line, with the nearest of the allowed choices where it names them."""
    lines = [re.sub(r"[╭╮╰╯│─]", "", line).strip() for line in box.splitlines()]
    kept = [line for line in lines if line and not set(line) <= {"-"} and "full helptext" not in line][1:]
    text = " ".join(kept)
    # A check of a config's own class, a value of the wrong type, an option that does not exist.
    text = re.sub(r"^Error parsing config[\w.]*: ", "", text)
    text = re.sub(r"^Error parsing (--\S+): .*('.*?') Argument helptext: --\S+ (.*)", r"\1 = \2; expected \3", text)
    text = text.replace("Argument helptext:", "Expected")
    if text.startswith("Unrecognized options: "):
        text = text.replace(", ", " ", 1) + ("" if "Perhaps" in text else "; --help lists every option")
    choice = re.search(r"invalid choice '(.*?)'.*Expected one of \((.*?)\)", text)
    if choice:
        near = difflib.get_close_matches(choice[1], re.findall(r"'(.*?)'", choice[2]), n=1, cutoff=0.5)
        text += f" Perhaps you meant: {near[0]!r}" if near else ""
    return text


# ------------------------------------------------------------------------------------------------ checks


def check_parts(config: Config) -> None:
    """Raises ValueError where model, objective or data is not what its name says."""
    for name, base, table in (("model", ModelConfig, MODELS), ("objective", Objective, OBJECTIVES)):
        value = getattr(config, name)
        if not isinstance(value, base):
            raise ValueError(
                f"config.{name} = {value!r} is not a {base.__name__}{nearest(str(value), table)}; "
                f"known: {', '.join(c.__name__ for c in table.values())}, or your own subclass"
            )
    if not isinstance(config.data, DataConfig):
        raise ValueError(f"config.data = {config.data!r} is not a DataConfig")


def validate(config: Config, num_devices: int | None = None) -> None:
    """Raises ValueError for whatever can be known to be wrong before data is opened or anything is compiled."""
    check_parts(config)
    check_types(config)
    positive = {
        "train.steps": config.train.steps,
        "train.batch_size": config.train.batch_size,
        "train.microbatches": config.train.microbatches,
        "train.log_every": config.train.log_every,
        "checkpoint.keep": config.checkpoint.keep,
    }
    zero_or_more = {
        "train.seed": config.train.seed,
        "data.max_bad_records": config.data.max_bad_records,
        "eval.every": config.eval.every,
        "eval.batch_size": config.eval.batch_size,
        "checkpoint.every": config.checkpoint.every,
    }
    for name, value in (positive | zero_or_more).items():
        least = 1 if name in positive else 0
        if value < least:
            raise ValueError(f"{name} = {value}; it must be {least} or more")
    config.optim.validate(config.train.steps)
    _check_rules(config.parallel.rules)
    config.model.validate(config.parallel)
    for path, param in params.paths(config.model.make().spec).items():
        if not all(size > 0 for size in param.shape):
            raise ValueError(f"model: parameter {path} would have shape {param.shape}; every size must be 1 or more")
    _check_batch(config, num_devices)
    _check_metric(config)
    for name in config.report.trackers:
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"report.trackers = {name!r}: the package is not installed; uv pip install {name}")


def check_types(config: Any, prefix: str = "") -> None:
    """Raises ValueError for a field whose value is not of its declared scalar type, or not one of its choices.

    The command line cannot produce such a value; a Python file can.
    """
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value, hint, name = getattr(config, field.name), hints[field.name], f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            check_types(value, f"{name}.")
        elif typing.get_origin(hint) is tuple:
            inner = typing.get_args(hint)[0]
            for item in value:
                _check_scalar(name, item, inner)
        else:
            _check_scalar(name, value, hint)


def _check_scalar(name: str, value: Any, hint: Any) -> None:
    if typing.get_origin(hint) is Literal:
        allowed = typing.get_args(hint)
        if value not in allowed:
            listed = ", ".join(map(repr, allowed))
            raise ValueError(f"{name} = {value!r}; allowed: {listed}{nearest(str(value), map(str, allowed))}")
    elif hint in (int, float, str, bool):
        accepted = (int, float) if hint is float else hint
        if not isinstance(value, accepted) or (isinstance(value, bool) and hint is not bool):
            raise ValueError(f"{name} = {value!r} is of type {type(value).__name__}; it must be {hint.__name__}")


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
    # A pipeline cuts the batch of all its stages into microbatches, and each of these over the other axes.
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
    """Raises ValueError where layers or microbatches do not make up the pipeline."""
    parallel, rounds = config.parallel, config.parallel.pipeline_rounds
    if parallel.pipeline_microbatches < 0 or rounds < 1:
        wrong, least = ("rounds", 1) if rounds < 1 else ("microbatches", 0)
        value = getattr(parallel, f"pipeline_{wrong}")
        raise ValueError(f"parallel.pipeline_{wrong} = {value}; it must be {least} or more")
    if stages == 1:
        if rounds > 1 or parallel.pipeline_microbatches > 1:
            raise ValueError(
                "parallel.pipeline_microbatches and parallel.pipeline_rounds need parallel.stage of 2 or more"
            )
        return
    if parallel.pipeline_microbatches % stages:
        raise ValueError(
            f"parallel.pipeline_microbatches = {parallel.pipeline_microbatches} is not a multiple of "
            f"parallel.stage = {stages}"
        )
    if "stage" not in axis_names(parallel.rules.batch):
        raise ValueError(
            f"parallel.rules.batch = {parallel.rules.batch}: with parallel.stage = {stages} the batch lies on 'stage', too"
        )
    spec = params.paths(config.model.make().spec)
    layers = {path: p.shape[p.axes.index("layers")] for path, p in spec.items() if "layers" in p.axes}
    if not layers:
        raise ValueError(
            f"parallel.stage = {stages}: {type(config.model).__name__} has no stack of equal layers to cut"
        )
    for path, num in layers.items():
        if num % (stages * rounds):
            product = f"parallel.stage = {stages}" + (f" x parallel.pipeline_rounds = {rounds}" if rounds > 1 else "")
            stack = path.split("/")[0] if path.split("/")[0] != "layers" else "the model"
            raise ValueError(f"the {num} layers of {stack} are not divisible by {product}")


def _check_metric(config: Config) -> None:
    metric = config.checkpoint.best_metric
    known = [f"eval/{name}" for name in config.objective.metric_names()]
    if metric and metric not in known:
        near = difflib.get_close_matches(metric, known, n=1, cutoff=0)
        raise ValueError(
            f"checkpoint.best_metric = {metric!r} is not a metric of {type(config.objective).__name__}; "
            f"allowed: {', '.join(known)}. Perhaps you meant: {near[0]!r}"
        )


def nearest(word: str, known: typing.Iterable[str]) -> str:
    """ " (perhaps you meant ...)" with the closest of `known`, or nothing."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (perhaps you meant {near[0]!r})" if near else ""


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """{"optim.lr": 0.0003, ...}: every field by its dotted name; the form of golden files and diffs."""
    out: dict[str, Any] = {prefix or "config": type(config).__name__}
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), f"{prefix}.{field.name}".lstrip(".")
        out |= flat(value, name) if dataclasses.is_dataclass(value) else {name: value}
    return out
