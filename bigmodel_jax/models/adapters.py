"""Adapters: a model whose weights stay constant while small matrices beside them train.

The base's trained parameters become constants at their own paths. The trained parameters lie at
adapters/<name>/<path>/<part>; nn/lora.py `Low` names the parts. The model's functions get a node
`Adapted` in place of each adapted parameter.
"""

import dataclasses
import math
import re
from typing import Any

import jax

from bigmodel_jax.core import params
from bigmodel_jax.core.params import Init, Param, Tree, normal, zeros
from bigmodel_jax.core.ranges import Count, CountOrZero, Positive, ShareBelowOne
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.core.spelling import closest
from bigmodel_jax.models.adapted import Place, adapted, is_table, matrix
from bigmodel_jax.models.base import Model, ModelConfig
from bigmodel_jax.models.bases import BaseConfig
from bigmodel_jax.nn.lora import BRANCH

NAME = re.compile(r"\w[\w.-]*")


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
    """The config of a run without adapters. It is the base class of all other adapter configs."""

    def validate(self, config: ModelConfig, model: Model, parallel: ParallelConfig) -> None:
        """Raises ValueError if `model`, made by `config`, cannot have these adapters."""

    def adapt(self, model: Model) -> Model:
        """The model with a constant base and trained adapters."""
        return model

    def named(self) -> dict[str, "AdapterConfig"]:
        """The adapters by name. `generate`, `eval` and `export` may select some of them."""
        return {}


@dataclasses.dataclass(frozen=True)
class Ranked:
    """Rank and alpha for the weights whose whole path matches `pattern`.

    rank, alpha: replace those of `Lora` for these weights. If alpha is None, `Lora.alpha` holds.
    """

    pattern: str
    rank: Count
    alpha: Positive | None = None


@dataclasses.dataclass(frozen=True)
class Lora(AdapterConfig):
    """LoRA (arXiv:2106.09685) on every matrix whose whole path matches `targets`.

    The reference implementation is PEFT's `LoraConfig`. The fields differ in their names alone.

    name: the adapter's name in paths. targets: a regular expression; "" = no low-rank adapters.
    rank: columns of the low-rank matrices. alpha: the adapter's product is scaled by alpha / rank.
    rank_stabilised: the scale is alpha / sqrt(rank) instead (rsLoRA, arXiv:2312.03732).
    dora: DoRA (arXiv:2402.09353); dropout acts on its low-rank part alone.
    dropout: rate at which a product's input is dropped. Embeddings have none, as in PEFT.
    trained: regular expression of weights of any kind that are trained in full (PEFT's
    `modules_to_save`) and stored as their difference from the base.
    new_tokens_from: first of the tokens whose rows of the tables are trained in full; 0 = none.
    ranks: other ranks for some weights; the first entry that matches a path applies.
    base: how the frozen weights are stored; QLoRA (arXiv:2305.14314) is matrices='nf4'.

    An adapter on a table that serves as embedding and head changes both.
    """

    name: str = "default"
    targets: str = r"layers/.*"
    rank: Count = 16
    alpha: Positive = 32.0
    rank_stabilised: bool = False
    dora: bool = False
    dropout: ShareBelowOne = 0.0  # dropout rate in training
    trained: str = ""
    new_tokens_from: CountOrZero = 0
    ranks: tuple[Ranked, ...] = ()
    base: BaseConfig = BaseConfig()

    def validate(self, config, model, parallel):
        if not NAME.fullmatch(self.name):
            raise ValueError(f"adapters.name = {self.name!r}; it must be letters, digits, '_', '-' and '.'")
        if self.dropout and parallel.stage > 1:
            raise ValueError(
                f"adapters.dropout = {self.dropout} with parallel.stage = {parallel.stage}; adapters in a pipeline have no "
                "dropout: it must be 0"
            )
        if self.new_tokens_from and (rows := getattr(config, "vocab_size", 0)) <= self.new_tokens_from:
            raise ValueError(
                f"adapters.new_tokens_from = {self.new_tokens_from}; it must be below model.vocab_size = {rows}"
            )
        self.adapt(model)

    def adapt(self, model: Model) -> Model:
        if BRANCH in model.spec:
            raise ValueError(f"adapters: the model has parameters of its own called {BRANCH!r}")
        places = self.places(model.spec)
        spec = self.base.freeze(model.spec) | {BRANCH: {self.name: _declared(places)}}
        return adapted(model, spec, {self.name: places})

    def named(self):
        return {self.name: self}

    def places(self, spec: Tree) -> dict[str, Place]:
        """Returns {path: what the weight gets} for each weight that gets something.

        Raises ValueError, one line, for a pattern that is invalid or matches no weight.
        """
        flat = {path: p for path, p in params.paths(spec).items() if p.kind == "trained"}
        low = _matching(
            "targets", self.targets, flat, {path: p for path, p in flat.items() if matrix(path, p)}, "matrix"
        )
        whole = _matching("trained", self.trained, flat, flat, "parameter") if self.trained else []
        if both := sorted({*low} & {*whole}):
            raise ValueError(
                f"adapters.trained = {self.trained!r} and adapters.targets both match {both[0]}; one must not"
            )
        ranks = self._ranks(low)
        found = {path: self._low(path, flat[path], *ranks[path]) for path in low}
        found |= {path: _whole(flat[path]) for path in whole}
        if self.new_tokens_from:
            found |= {path: self._rows(p, found.get(path)) for path, p in flat.items() if is_table(p)}
        if not found:
            raise ValueError("adapters: targets, trained and new_tokens_from are all empty; nothing would be trained")
        return found

    def _ranks(self, low: list[str]) -> dict[str, tuple[int, float]]:
        found = dict.fromkeys(low, (self.rank, self.alpha))
        for n, one in reversed(list(enumerate(self.ranks))):
            every = dict.fromkeys(low)
            for path in _matching(f"ranks[{n}].pattern", one.pattern, every, every, "target"):
                found[path] = one.rank, self.alpha if one.alpha is None else one.alpha
        return found

    def _low(self, path: str, p: Param, rank: int, alpha: float) -> Place:
        m = matrix(path, p)
        sizes = {"inputs": math.prod(m.inner.shape), "outputs": math.prod(m.outer.shape)}
        if rank > (least := min(sizes.values())):
            raise ValueError(
                f"adapters.rank = {rank} is larger than {path}, of {sizes['inputs']} inputs and {sizes['outputs']} outputs; "
                f"it must be at most {least}"
            )
        a, b = (zeros(), normal(1.0)) if m.table else (_uniform(sizes["inputs"]), zeros())
        inner, outer = _spread(m.inner.axes, m.outer.axes), _spread(m.outer.axes, m.inner.axes)
        spec = {
            "a": m.param((*m.inner.shape, rank), (*inner, None), a),
            "b": m.param((rank, *m.outer.shape), (None, *outer), b),
        }
        if self.dora:
            spec["magnitude"] = m.param(m.outer.shape, m.outer.axes, zeros(), decay=False)
        scale = alpha / (math.sqrt(rank) if self.rank_stabilised else rank)
        rate = 0.0 if m.table or m.lead.shape[1:] else self.dropout
        layers = m.lead.shape[0] if m.lead.shape else 0
        return Place(spec, len(m.inner.shape), m.turned, scale, rate, layers)

    def _rows(self, p: Param, place: Place | None) -> Place:
        if place and "whole" in place.spec:
            return place
        place = place or Place({})
        rows = Param((p.shape[0] - self.new_tokens_from, p.shape[1]), (None, p.axes[1]), zeros())
        return dataclasses.replace(place, spec=place.spec | {"rows": rows}, start=self.new_tokens_from)


@dataclasses.dataclass(frozen=True)
class Several(AdapterConfig):
    """Several adapters on one base, whose changes add up in this order; `lora.only` selects some.

    adapters: the adapters, which must have equal `base`. trained: name of the adapter that trains,
    "" = all. The other adapters are constants and start from the values in `train.init_from`.
    """

    adapters: tuple[Lora, ...] = ()
    trained: str = ""

    def validate(self, config, model, parallel):
        names = [one.name for one in self.adapters]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"adapters.adapters have the names {names}; there must be one or more, and no name twice")
        if self.trained not in ("", *names):
            raise ValueError(f"adapters.trained = {self.trained!r}; it must be one of {names}, or ''")
        if len({one.base for one in self.adapters}) > 1:
            raise ValueError("adapters.adapters have different `base`; all must have the same")
        for one in self.adapters:
            one.validate(config, model, parallel)

    def adapt(self, model: Model) -> Model:
        places = {one.name: one.places(model.spec) for one in self.adapters}
        own = {name: _declared(found) for name, found in places.items()}
        fixed = BaseConfig()
        own = {name: part if self.trained in ("", name) else fixed.freeze(part) for name, part in own.items()}
        return adapted(model, self.adapters[0].base.freeze(model.spec) | {BRANCH: own}, places)

    def named(self):
        return {one.name: one for one in self.adapters}


def _spread(axes: tuple[str | None, ...], others: tuple[str | None, ...]) -> tuple[str | None, ...]:
    """The axes of the adapter matrix that has one side of a weight, its inputs or its outputs.

    The weight is sharded along "embed", which may lie on its other side. The matrix is then sharded
    as finely along its own side: along the heads, or along head_dim where kv heads come first,
    since there are few kv heads. A table's rows keep the table's axes.
    """
    if "embed" not in others or "embed" in axes or "vocab" in axes:
        return axes
    at = 1 if axes[0] == "kv_heads" and len(axes) > 1 else 0
    return (*axes[:at], f"{axes[at]}+embed" if axes[at] else "embed", *axes[at + 1 :])


def _declared(places: dict[str, Place]) -> Tree:
    return params.from_paths({f"{path}/{part}": p for path, place in places.items() for part, p in place.spec.items()})


def _whole(p: Param) -> Place:
    return Place({"whole": Param(p.shape, p.axes, zeros(), decay=p.decay)})


def _uniform(inputs: int) -> Init:
    """U(-1/sqrt(inputs), 1/sqrt(inputs)), from which torch's linear layer and PEFT's `a` start."""
    bound = inputs**-0.5
    return Init(f"uniform({bound:.4g})", lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound))


def _matching(field: str, pattern: str, every: dict[str, Any], wanted: dict[str, Any], what: str) -> list[str]:
    """The paths of `wanted` that the pattern matches as a whole; ValueError if there is none."""
    if field == "targets" and not pattern:
        return []
    text = f"adapters.{field} = {pattern!r}"
    try:
        found = [path for path in wanted if re.fullmatch(pattern, path)]
    except re.error as error:
        raise ValueError(f"{text} is not a regular expression: {error}") from None
    if found:
        return found
    if vectors := [path for path in every if re.fullmatch(pattern, path)]:
        raise ValueError(f"{text} matches only vectors, such as {vectors[0]}; a {what} has two dimensions or more")
    near = ", ".join(closest(pattern, [*wanted], 3))
    raise ValueError(f"{text} matches the whole path of no {what}; the nearest: {near}")
