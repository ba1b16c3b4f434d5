"""Options of `launch.py plan --serve`, and the weights and slots of such a server."""

import dataclasses
import math
from typing import Any, Literal

import jax

from bigmodel_jax.config import Config, SampleConfig
from bigmodel_jax.core import params, sharding
from bigmodel_jax.core.precision import cast
from bigmodel_jax.core.ranges import Count, CountOrZero
from bigmodel_jax.inference.compiled import Layout, for_decoding, is_apart, uncut
from bigmodel_jax.inference.prompts import bucket
from bigmodel_jax.inference.slots import Programs
from bigmodel_jax.models.quantize import QuantizeConfig

Weights = Literal["", "float32", "bfloat16", "int8", "int8_dynamic", "int4", "nf4"]
DENSE = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Serving:
    """Options of `launch.py plan --serve`.

    slots: sequences that are decoded at once.
    length: tokens of prompt and answer together for which a slot has room.
    prompt: tokens of a prompt; 0: half of `length`. Prefill is compiled for its padded length.
    weights: storage format; "": precision.compute, as for a run's own weights.
    block: how many values of a weight share one scale; 0: 256 for int8, 32 for int4, otherwise
    64.
    """

    slots: Count = 16
    length: Count = 2048
    prompt: CountOrZero = 0
    weights: Weights = ""
    block: CountOrZero = 0

    @property
    def unpadded(self) -> int:
        """Tokens of a prompt without padding. The slot's other tokens are the answer's."""
        return self.prompt or max(self.length // 2, 1)

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the padded prompt that prefill reads."""
        return min(bucket(self.unpadded), self.length)


def for_options(config: Config) -> Config:
    """The config to which a server's command-line options apply.

    It drops the mesh of training, since serving needs another one. By default the weights are
    sharded over all devices (`tensor`).
    """
    parallel = sharding.ParallelConfig(data=1, tensor=-1, rules=config.parallel.rules)
    return dataclasses.replace(config, parallel=parallel)


def stored_config(config: Config, serving: Serving) -> Config:
    """The config whose weights are stored as `serving.weights` says: as `quantize` stores them."""
    if not serving.weights:
        return config
    kind = "none" if serving.weights in DENSE else serving.weights
    return dataclasses.replace(config, quantize=QuantizeConfig(kind, serving.block))


def abstract_weights(config: Config, serving: Serving, layout: Layout) -> Any:
    """Shapes and shardings of the weights as the programs receive them.

    Floats have the dtype in which products are computed.
    """
    spec = stored_config(config, serving).make_model().spec
    # `cast` leaves quantized values alone, so this dtype reaches only the dense weights.
    dtype = serving.weights if serving.weights in DENSE else config.precision.compute
    shapes = jax.eval_shape(lambda tree: cast(tree, dtype), params.abstract(spec))
    places = sharding.shardings(spec, layout.mesh, layout.rules)
    weights = jax.tree.map(_placed, shapes, places)
    return for_decoding(spec, weights, platform_of(layout), _layers_of)


def platform_of(layout: Layout) -> str:
    """The platform of the server's devices."""
    return layout.mesh.devices.flat[0].platform


def _layers_of(stacked: jax.ShapeDtypeStruct) -> list[jax.ShapeDtypeStruct]:
    place = jax.sharding.NamedSharding(stacked.sharding.mesh, jax.sharding.PartitionSpec(*stacked.sharding.spec[1:]))
    return [_placed(jax.ShapeDtypeStruct(stacked.shape[1:], stacked.dtype), place)] * stacked.shape[0]


def abstract_slots(programs: Programs, dtype: Any, places: Any) -> Any:
    """Shapes and shardings of the slots, including the decode cache."""
    return jax.tree.map(_placed, jax.eval_shape(lambda: programs.empty(dtype)), places)


def _placed(x: jax.ShapeDtypeStruct, place: jax.sharding.NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)


def programs_of(config: Config, serving: Serving, layout: Layout) -> Programs:
    """The engine's programs. Each decode call makes one token per slot.

    Tokens are drawn as `eval.sample` draws them by default.
    """
    model = stored_config(config, serving).make_model()
    programs = Programs.of(model, SampleConfig(), (), serving.slots, serving.length, 1, False)
    return programs._replace(apart=is_apart(platform_of(layout)))


def layout_of(config: Config, devices: list) -> Layout:
    """The mesh and sharding rules of a server."""
    return uncut(Layout(sharding.make_mesh(config.parallel, devices), config.parallel.rules))


def local_bytes(tree: Any) -> float:
    """Bytes of the arrays on one device."""
    return float(sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)))
