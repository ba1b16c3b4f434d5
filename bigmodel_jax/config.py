"""One `Config` describes one run. Everything else is a pure function of it.

A config file is plain Python whose `get_config()` returns a complete `Config`. The command line
overrides fields by dotted name. In JSON each dataclass is an object whose "type" names its class.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

from bigmodel_jax.core import options
from bigmodel_jax.core.precision import Policy
from bigmodel_jax.core.ranges import (
    Count,
    CountOrZero,
    NonNegative,
    Positive,
    Seed,
    ShareAboveZero,
    ShareBelowOne,
    Window,
)
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.core.spelling import nearest
from bigmodel_jax.core.user_code import KnownOrFunction, name_of
from bigmodel_jax.data.base import DataConfig
from bigmodel_jax.models import MODELS, Model, ModelConfig
from bigmodel_jax.models.adapters import AdapterConfig
from bigmodel_jax.models.base import with_parameters
from bigmodel_jax.models.mup import MupConfig, scaled
from bigmodel_jax.models.quantize import QuantizeConfig
from bigmodel_jax.models.stochastic_depth import with_stochastic_depth
from bigmodel_jax.objectives import OBJECTIVES, Objective
from bigmodel_jax.optim import OptimConfig


@dataclasses.dataclass(frozen=True)
class SpikeConfig:
    """How a run treats a step whose loss or gradient norm is far above those of recent steps."""

    action: Literal["off", "skip", "rollback"] = "off"
    "skip: drop the step's update; rollback: return to the last save, train on after the spike"
    deviations: Positive = 8.0  # a spike lies this many standard deviations above the median of the window
    window: Window = 128  # number of recent steps compared with; no step is judged before there are as many
    max_rollbacks: Count = 3  # the most rollbacks to one save; later spikes are skipped


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How long a run trains, the size of its batches, and the weights that it starts from."""

    steps: Count | None = None  # optimizer steps; None = take them from `epochs`, or 1000 if that is None, too
    epochs: Positive | None = None  # passes over the training rows, instead of `steps`
    batch_size: Count = 32  # examples (rows) of one optimizer step, over all devices
    stochastic_depth: ShareBelowOne = 0.0  # share of steps without the last layer; layer n of L: this * n / L
    microbatches: Count = 1  # pieces of a batch, computed one after the other to save memory
    seed: Seed = 0  # seed of all random numbers of the run
    log_every: Count = 10  # steps between records of metrics
    max_skipped: Count = 10  # after this many steps in a row whose loss or gradient is not finite, the run ends
    max_step_seconds: NonNegative | None = None
    "seconds of a step before exit code 75; 0 = no limit, None = 10 median steps, at least 300"
    profile: str = ""  # steps to trace: "100:110" = from after step 100 to after step 110; "" = none
    spikes: SpikeConfig = SpikeConfig()
    init_from: str = ""  # a trained or imported run to start from: its folder, FOLDER@STEP or FOLDER@best
    init_state: Literal["weights", "all"] = "weights"  # what to take from it; all: also optimizer state and step

    def __post_init__(self):
        if self.steps is None and self.epochs is None:
            object.__setattr__(self, "steps", 1000)


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """Text generated at the end of a training run. `generate` uses the same fields as defaults."""

    prompt: str = ""  # text that the model continues
    max_tokens: Count = 128  # tokens generated after the prompt
    temperature: NonNegative = 0.8  # logits are divided by it; 0 = always the likeliest token
    top_k: CountOrZero = 0  # sample from the k likeliest tokens; 0 = from all
    top_p: ShareAboveZero = 1.0  # sample from the likeliest tokens whose probabilities sum to this; 1 = from all
    cache: Literal["compute", "int8"] = "compute"  # cached keys and values; int8: one scale per head and position
    widen: Literal["auto", "never"] = "auto"  # auto: a CPU with enough memory makes quantized weights dense once


@dataclasses.dataclass(frozen=True)
class ImageSampleConfig:
    """Images generated, with classifier-free guidance, after a run of Diffusion or FlowMatching."""

    num: CountOrZero = 0  # number of images; 0 = none
    steps: Count = 50  # denoising steps, at most objective.num_steps
    guidance: NonNegative = 3.0  # 1 = the conditional prediction; above 1 = pushed further from the unconditional one


@dataclasses.dataclass(frozen=True)
class EvalSet:
    """A named evaluation with its own data, metrics and period, recorded as "eval/NAME/METRIC"."""

    name: str = ""  # the evaluation's name: up to 40 letters, digits, _, . or -
    data: DataConfig = DataConfig()
    "its validation split is evaluated; the engine answers prompts (PromptData) for `metrics`"
    every: CountOrZero = 0  # steps between its evaluations; 0 = eval.every; the last step is always evaluated
    batch_size: CountOrZero = 0  # examples per batch; 0 = eval.batch_size
    objective: Objective | None = None  # the objective whose metrics are computed; None = the run's
    metrics: tuple[KnownOrFunction, ...] = ()
    """as eval.metrics; for answers to prompts: names of TEXT_METRICS in metrics/texts.py, or your
    own functions (answers, references), where references holds a list for each answer"""
    answer_field: str = "answer"  # field of the reference answer, a text or a list; "" = the whole record

    def __post_init__(self):
        object.__setattr__(self, "metrics", _names("eval.sets.metrics", self.metrics))


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """When and by which metrics to evaluate a run, and what to generate at its end."""

    every: CountOrZero = 0  # steps between evaluations; 0 = only after the last step
    batch_size: CountOrZero = 0  # examples per batch; 0 = train.batch_size
    patience: CountOrZero = 0  # stop after as many evaluations without a better checkpoint.best_metric; 0 = never
    sets: tuple[EvalSet, ...] = ()  # further sets, evaluated beside the validation split
    baselines: bool = True
    "also report what simple methods reach (xz on text); a run does not wait for their figures"
    metrics: tuple[KnownOrFunction, ...] = ()
    "further metrics: names of METRICS in metrics/further.py, or your own functions (out, batch)"
    sample: SampleConfig = SampleConfig()
    images: ImageSampleConfig = ImageSampleConfig()

    def __post_init__(self):
        object.__setattr__(self, "metrics", _names("eval.metrics", self.metrics))


def _names(option: str, metrics: Any) -> tuple[str, ...]:
    """The names of one metric or of several, each given as a name or as a function."""
    return tuple(name_of(option, one) for one in (metrics if isinstance(metrics, tuple | list) else (metrics,)))


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When a run is saved, and which saves are kept."""

    every: CountOrZero = 0  # steps between saves; 0 = only after the last step
    keep: Count = 2  # number of newest saves that are kept
    best_metric: str = ""  # also keep the save that is best by this evaluation metric, e.g. "eval/loss"
    best_mode: Literal["min", "max"] = "min"  # whether less or more of best_metric is better
    local_dir: str = ""  # folder for local saves on each host's disk or in its memory; "" = none are made
    local_every: CountOrZero = 0  # steps between local saves


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    """Where a run writes metrics, beside metrics.jsonl."""

    tensorboard: bool = True  # also write TensorBoard event files
    watch: CountOrZero = 0  # steps between records of norms by layer, attention entropy, dead units; 0 = none
    trackers: tuple[Literal["wandb", "mlflow"], ...] = ()  # also send metrics to these services


@dataclasses.dataclass(frozen=True)
class Config:
    """The complete description of one run: what `get_config()` returns and config.json holds.

    Only `model`, `objective` and `data` have no default. `launch.py train CONFIG --help` lists all.
    """

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
    adapters: AdapterConfig = AdapterConfig()
    mup: MupConfig = MupConfig()
    quantize: QuantizeConfig = QuantizeConfig()

    def make_model(self) -> Model:
        """The model with adapters, objective parameters, muP, freezing and quantization applied."""
        model = self._made(self.model)
        if self.mup.base:
            model = scaled(model, self._made(self.mup.base_of(self.model)))
        model = with_stochastic_depth(model, self.train.stochastic_depth)
        return self.quantize.stored(model._replace(spec=self.optim.freeze(model.spec)), self.precision.compute)

    def _made(self, model: ModelConfig) -> Model:
        return with_parameters(self.adapters.adapt(model.make()), self.objective.parameters(model))


# ------------------------------------------------------------------------------------- command line


@dataclasses.dataclass(frozen=True)
class _Fields:
    """A holder that gives the fields of a config as options without a prefix."""

    config: options.Unnamed


def override(config: Config, args: Sequence[str], prog: str = "launch.py train CONFIG") -> Config:
    """A copy of `config` with the fields that `args` name ("--optim.lr", "3e-4") replaced.

    Raises ValueError: a line with the option, its value, what is allowed and the nearest spelling.
    """
    return parse(_Fields(config), args, prog).config


def parse(default: Any, args: Sequence[str], prog: str) -> Any:
    """Like `override`, for a dataclass that has options of its own beside its field `config`."""
    names = [arg.split("=")[0].removeprefix("--").replace("-", "_") for arg in args if arg.startswith("--data.")]
    data = default.config.data.with_places(names) if names else default.config.data
    default = dataclasses.replace(default, config=dataclasses.replace(default.config, data=data))
    found = options.parse(default, args, prog)
    return dataclasses.replace(found, config=_last_duration(found.config, args))


def _last_duration(config: Config, args: Sequence[str]) -> Config:
    """`config` without `train.epochs` if `args` give only `train.steps`, or the other way round."""
    typed = {arg.split("=")[0].replace("-", "_") for arg in args}
    given = [name for name in ("steps", "epochs") if f"__train.{name}" in typed]
    if len(given) != 1 or getattr(config.train, given[0]) is None:
        return config
    other = "epochs" if given == ["steps"] else "steps"
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **{other: None}))


# ----------------------------------------------------------------------------------- fields by name


def field_of(config: Any, name: str) -> Any:
    """The value of a field by dotted name; "optim.groups.0" is the first item of a tuple.

    Raises ValueError, with the nearest name, for a field that does not exist."""
    value = config
    for key in name.split("."):
        value = _parts(value).get(key, _MISSING)
        if value is _MISSING:
            raise ValueError(f"{name!r} is no field of the config{_nearest_field(config, name)}")
    return value


def replaced(config: Any, name: str, value: Any) -> Any:
    """A copy of `config` with another value in the field of that dotted name, without any check."""
    field_of(config, name)
    first, _, rest = name.partition(".")
    new = replaced(_parts(config)[first], rest, value) if rest else value
    if isinstance(config, tuple):
        return (*config[: int(first)], new, *config[int(first) + 1 :])
    return dataclasses.replace(config, **{first: new})


_MISSING = object()


def _parts(value: Any) -> dict[str, Any]:
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return {str(i): item for i, item in enumerate(value)} if isinstance(value, tuple) else {}


def _nearest_field(config: Any, name: str) -> str:
    known = list(flat(config))
    same = [one for one in known if one.rpartition(".")[2] == name.rpartition(".")[2]]  # `lr`, or in another part
    return f" (perhaps you meant {same[0]!r})" if len(same) == 1 else nearest(name, known)


# ------------------------------------------------------------------------------------------- checks


OPEN = ("model", "objective", "data", "optim", "adapters")  # parts that may be a user's subclass


def check_parts(config: Config) -> None:
    """Raises ValueError if a part is of another class, or of a subclass that would be ignored."""
    for name, base, table in (("model", ModelConfig, MODELS), ("objective", Objective, OBJECTIVES)):
        value = getattr(config, name)
        if not isinstance(value, base):
            raise ValueError(
                f"config.{name} = {value!r} is not a {base.__name__}{nearest(str(value), table)}; "
                f"known: {', '.join(c.__name__ for c in table.values())}, or your own subclass"
            )
    if not isinstance(config.data, DataConfig):
        raise ValueError(f"config.data = {config.data!r} is not a DataConfig")
    for field in dataclasses.fields(Config):
        value, cls = getattr(config, field.name), field.type
        if field.name not in OPEN and isinstance(value, cls) and type(value) is not cls:
            raise ValueError(
                f"config.{field.name} is a {type(value).__name__}; it must be {cls.__name__} itself, since what a subclass "
                f"adds would not be used; {', '.join(OPEN[:-1])} and {OPEN[-1]} may be of your own classes"
            )


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """All fields by dotted name, as golden files and diffs show them: {"optim.lr": 0.0003, ...}."""
    out: dict[str, Any] = {prefix or "config": type(config).__name__}
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), f"{prefix}.{field.name}".lstrip(".")
        if isinstance(value, tuple) and any(map(dataclasses.is_dataclass, value)):
            parts = {f"{name}.{i}": part for i, part in enumerate(value)}  # the names that the options have
        else:
            parts = {name: value}
        for name, part in parts.items():
            out |= flat(part, name) if dataclasses.is_dataclass(part) else {name: part}
    return out
