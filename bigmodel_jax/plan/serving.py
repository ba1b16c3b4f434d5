"""What `launch.py plan --serve` is told of a server, and the weights and slots that it makes of a config."""

import dataclasses
import math
from typing import Any, Literal

import jax

from bigmodel_jax.config import Config, SampleConfig
from bigmodel_jax.core import params, sharding
from bigmodel_jax.core.precision import cast
from bigmodel_jax.core.ranges import Count, CountOrZero
from bigmodel_jax.inference.compiled import Layout, uncut
from bigmodel_jax.inference.prompts import bucket
from bigmodel_jax.inference.slots import Programs
from bigmodel_jax.models.bases import BaseConfig

Weights = Literal["", "float32", "bfloat16", "int8", "int4", "nf4"]
DENSE = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Serving:
    """slots: texts at a time. length: tokens of prompt and text together that a slot has room for. prompt: tokens of a
    prompt, for which prefill is compiled; 0: half of `length`. weights: how they are stored; "": in precision.compute,
    as a run's are read. block: values of a weight that share one scale."""

    slots: Count = 16
    length: Count = 2048
    prompt: CountOrZero = 0
    weights: Weights = ""
    block: Count = 128

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the padded prompt that prefill reads."""
        return min(bucket(self.prompt or max(self.length // 2, 1)), self.length)


def for_options(config: Config) -> Config:
    """The config whose options a server's plan reads: the mesh of training says nothing of a server's, which by default
    cuts the weights over all devices."""
    parallel = sharding.ParallelConfig(data=1, tensor=-1, rules=config.parallel.rules)
    return dataclasses.replace(config, parallel=parallel)


def stored_spec(config: Config, serving: Serving) -> params.Tree:
    """The model's parameters, the matrices of its stacks stored in blocks where `weights` says so."""
    spec = config.make_model().spec
    if serving.weights in ("", *DENSE):
        return spec
    return BaseConfig(serving.weights, serving.block).freeze(spec, f"--weights = {serving.weights!r}")


def abstract_weights(config: Config, serving: Serving, layout: Layout) -> Any:
    """Shapes and shardings of the weights as the programs are given them: floats in the dtype of products."""
    spec = stored_spec(config, serving)
    dtype = serving.weights if serving.weights in DENSE else config.precision.compute
    shapes = jax.eval_shape(lambda tree: cast(tree, dtype), params.abstract(spec))
    places = sharding.shardings(spec, layout.mesh, layout.rules)
    return jax.tree.map(_placed, shapes, places)


def abstract_slots(programs: Programs, dtype: Any, places: Any) -> Any:
    return jax.tree.map(_placed, jax.eval_shape(lambda: programs.empty(dtype)), places)


def _placed(x: jax.ShapeDtypeStruct, place: jax.sharding.NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)


def programs_of(config: Config, serving: Serving) -> Programs:
    """The engine's programs for one token of every slot in a call, drawn as `eval.sample` draws by default."""
    return Programs.of(config.make_model(), SampleConfig(), (), serving.slots, serving.length, 1, False)


def layout_of(config: Config, devices: list) -> Layout:
    return uncut(Layout(sharding.make_mesh(config.parallel, devices), config.parallel.rules))


def local_bytes(tree: Any) -> float:
    """Bytes of the arrays on one device."""
    return float(sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)))
