"""One `Config` describes one run; everything else is a pure function of it.

A config file is plain Python whose `get_config()` returns a complete `Config`. Any field is overridden on the command
line by its dotted name. In JSON each dataclass is an object whose "type" names its class.
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
    """What is done about a step whose loss or gradient norm is far above those of the steps before it."""

    action: Literal["off", "skip", "rollback"] = "off"
    "skip: its update is left out; rollback: the run goes back to its last save, and on with the batches after the spike"
    deviations: Positive = 8.0  # so many standard deviations above the median of the window is far
    window: Window = 128  # the last so many steps; none is judged before there are as many
    max_rollbacks: Count = 3  # to one save; what comes after them is skipped


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How long a run trains, on batches of what size, and from which weights it starts."""

    steps: Count | None = None  # optimizer steps; None = as many as `epochs` are, or 1000 where that is None, too
    epochs: Positive | None = None  # passes over the training rows, in place of `steps`
    batch_size: Count = 32  # examples (rows) of one optimizer step, over all devices
    stochastic_depth: ShareBelowOne = 0.0  # in how many steps the last layer is left out; the n-th of L: this * n / L
    microbatches: Count = 1  # the batch is computed in this many pieces, one after the other
    seed: Seed = 0
    log_every: Count = 10
    max_skipped: Count = 10  # after so many steps in a row that are not finite the run ends
    max_step_seconds: NonNegative | None = None
    "a step that takes longer ends the run with exit code 75; 0 = no limit, None = 10 times the median step, 300 at least"
    profile: str = ""  # the steps whose time is traced: "100:110", from when 100 are done to when 110 are; "" = none
    spikes: SpikeConfig = SpikeConfig()
    init_from: str = ""  # a run, imported or trained, to start from: its folder, FOLDER@STEP or FOLDER@best
    init_state: Literal["weights", "all"] = "weights"  # what of it; all: the optimizer's state and the step, too

    def __post_init__(self):
        if self.steps is None and self.epochs is None:
            object.__setattr__(self, "steps", 1000)


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """Text generated at the end of a training run, and the defaults of `generate`."""

    prompt: str = ""
    max_tokens: Count = 128
    temperature: NonNegative = 0.8  # 0 = always the likeliest token
    top_k: CountOrZero = 0  # 0 = all
    top_p: ShareAboveZero = 1.0
    cache: Literal["compute", "int8"] = "compute"  # of keys and values; int8: each head and place has a scale
    widen: Literal["auto", "never"] = "auto"  # whether a CPU with room for them makes stored weights dense, once


@dataclasses.dataclass(frozen=True)
class ImageSampleConfig:
    """Images generated at the end of a run whose objective is Diffusion or FlowMatching, with classifier-free guidance."""

    num: CountOrZero = 0  # 0 = none
    steps: Count = 50  # denoising steps, at most objective.num_steps
    guidance: NonNegative = 3.0  # 1 = what the model says given the label or text; above: further away from without it


@dataclasses.dataclass(frozen=True)
class EvalSet:
    """A named evaluation beside the run's validation split: the validation split of its own data, its own metrics, its own
    period. Its figures are recorded as "eval/NAME/METRIC"."""

    name: str = ""  # up to 40 letters, digits, _, . or -
    data: DataConfig = DataConfig()
    "of which the validation split is read; prompts (PromptData) are answered by the engine, and `metrics` score the answers"
    every: CountOrZero = 0  # steps between its evaluations; 0 = those of eval.every; always after the last step, too
    batch_size: CountOrZero = 0  # 0 = eval.batch_size
    objective: Objective | None = None  # whose metrics are computed; None = the run's
    metrics: tuple[KnownOrFunction, ...] = ()
    """as eval.metrics; of answers: names of TEXT_METRICS in metrics/texts.py, or functions (answers, references) of one's
    own, whose references are a list for each answer"""
    answer_field: str = "answer"  # the record's right answer, a text or a list of them; "" = the whole record

    def __post_init__(self):
        object.__setattr__(self, "metrics", _names("eval.sets.metrics", self.metrics))


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """When a run is evaluated on its validation split and its further sets, and what it generates at its end."""

    every: CountOrZero = 0  # steps between evaluations; 0 = only after the last step
    batch_size: CountOrZero = 0  # 0 = the training batch size
    patience: CountOrZero = 0  # evaluations in a row without a better checkpoint.best_metric end the run; 0 = none do
    sets: tuple[EvalSet, ...] = ()  # evaluated beside the validation split
    baselines: bool = True
    "beside the metrics, what simple methods reach (xz on text), once they are computed; nothing waits for them"
    metrics: tuple[KnownOrFunction, ...] = ()
    "further metrics: names of METRICS in metrics/further.py, or functions (out, batch) of one's own"
    sample: SampleConfig = SampleConfig()
    images: ImageSampleConfig = ImageSampleConfig()

    def __post_init__(self):
        object.__setattr__(self, "metrics", _names("eval.metrics", self.metrics))


def _names(option: str, metrics: Any) -> tuple[str, ...]:
    """Of one metric or several, each a name or a function."""
    return tuple(name_of(option, one) for one in (metrics if isinstance(metrics, tuple | list) else (metrics,)))


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When a run is saved, and which saves are kept."""

    every: CountOrZero = 0  # steps between saves; 0 = only after the last step
    keep: Count = 2  # the newest so many
    best_metric: str = ""  # also keep the save that is best by this metric of the evaluation, e.g. "eval/loss"
    best_mode: Literal["min", "max"] = "min"
    local_dir: str = ""  # a folder on a disk, or in the memory, of each host, for local saves; "" = none are made
    local_every: CountOrZero = 0  # steps between local saves


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    """Where metrics go beside metrics.jsonl."""

    tensorboard: bool = True
    watch: CountOrZero = 0  # steps between looks inside: norms by layer, attention entropy, dead units; 0 = none
    trackers: tuple[Literal["wandb", "mlflow"], ...] = ()


@dataclasses.dataclass(frozen=True)
class Config:
    """One run, described whole: what `get_config()` returns and config.json holds.

    Only `model`, `objective` and `data` have no default; `launch.py train CONFIG --help` lists the fields of all parts.
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
        """The run's model: with its adapters, what the objective keeps beside it, by μP, what is frozen, as it is stored."""
        model = self._made(self.model)
        if self.mup.base:
            model = scaled(model, self._made(self.mup.base_of(self.model)))
        model = with_stochastic_depth(model, self.train.stochastic_depth)
        return self.quantize.stored(model._replace(spec=self.optim.freeze(model.spec)), self.precision.compute)

    def _made(self, model: ModelConfig) -> Model:
        return with_parameters(self.adapters.adapt(model.make()), self.objective.parameters(model))


# ------------------------------------------------------------------------------------------------ command line


@dataclasses.dataclass(frozen=True)
class _Fields:
    """A config alone, whose fields are options without a prefix."""

    config: options.Unnamed


def override(config: Config, args: Sequence[str], prog: str = "launch.py train CONFIG") -> Config:
    """`config` with the fields named in `args` ("--optim.lr", "3e-4") replaced.

    Raises ValueError, one line with the option, its value, what is allowed and the nearest spelling.
    """
    return parse(_Fields(config), args, prog).config


def parse(default: Any, args: Sequence[str], prog: str) -> Any:
    """As `override`, of a dataclass with options of its own beside the fields of its `config`."""
    names = [arg.split("=")[0].removeprefix("--").replace("-", "_") for arg in args if arg.startswith("--data.")]
    data = default.config.data.with_places(names) if names else default.config.data
    default = dataclasses.replace(default, config=dataclasses.replace(default.config, data=data))
    found = options.parse(default, args, prog)
    return dataclasses.replace(found, config=_last_duration(found.config, args))


def _last_duration(config: Config, args: Sequence[str]) -> Config:
    """With `train.steps` alone where `args` name it alone, and so with `train.epochs`: the config's other one gives way."""
    typed = {arg.split("=")[0].replace("-", "_") for arg in args}
    given = [name for name in ("steps", "epochs") if f"__train.{name}" in typed]
    if len(given) != 1 or getattr(config.train, given[0]) is None:
        return config
    other = "epochs" if given == ["steps"] else "steps"
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **{other: None}))


# ------------------------------------------------------------------------------------------------ fields by name


def field_of(config: Any, name: str) -> Any:
    """The value of a field by its dotted name; of a tuple of parts, "optim.groups.0" is the first. ValueError, with the
    nearest name, where there is no such field."""
    value = config
    for key in name.split("."):
        value = _parts(value).get(key, _MISSING)
        if value is _MISSING:
            raise ValueError(f"{name!r} is no field of the config{_nearest_field(config, name)}")
    return value


def replaced(config: Any, name: str, value: Any) -> Any:
    """`config` with another value in the field of that dotted name; nothing checks the value."""
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


# ------------------------------------------------------------------------------------------------ checks


OPEN = ("model", "objective", "data", "optim", "adapters")  # the parts whose subclasses are used


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
    for field in dataclasses.fields(Config):
        value, cls = getattr(config, field.name), field.type
        if field.name not in OPEN and isinstance(value, cls) and type(value) is not cls:
            raise ValueError(
                f"config.{field.name} is a {type(value).__name__}; it must be {cls.__name__} itself, since what a subclass "
                f"adds would not be used; {', '.join(OPEN[:-1])} and {OPEN[-1]} may be of your own classes"
            )


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """{"optim.lr": 0.0003, ...}: every field by its dotted name; the form of golden files and diffs."""
    out: dict[str, Any] = {prefix or "config": type(config).__name__}
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), f"{prefix}.{field.name}".lstrip(".")
        if isinstance(value, tuple) and any(map(dataclasses.is_dataclass, value)):
            parts = {f"{name}.{i}": part for i, part in enumerate(value)}  # as the options are called
        else:
            parts = {name: value}
        for name, part in parts.items():
            out |= flat(part, name) if dataclasses.is_dataclass(part) else {name: part}
    return out
