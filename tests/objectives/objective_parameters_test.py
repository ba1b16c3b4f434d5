"""What an objective keeps beside the model: a head that trains, and constants that stay."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import pytest

from bigmodel_jax.config import Config, TrainConfig
from bigmodel_jax.core import metrics, params, sharding
from bigmodel_jax.core.params import Param, normal
from bigmodel_jax.data import DataConfig
from bigmodel_jax.models import CNNConfig, LlamaConfig
from bigmodel_jax.nn import linear
from bigmodel_jax.objectives import Loss, Objective
from bigmodel_jax.training.state import init_constants, init_state
from bigmodel_jax.training.step import make_train_step


@dataclasses.dataclass(frozen=True)
class Scored(Objective):
    """The last token's score against that of a constant direction."""

    name: str = "score"
    reads: ClassVar = ("weights",)

    def parameters(self, model):
        direction = Param((model.embed_dim,), ("embed",), normal(1.0), kind="constant")
        return {self.name: linear.linear_spec(model.embed_dim, 1, axes=("embed", None)) | {"direction": direction}}

    def score(self, out, batch, *, params, train) -> Loss:
        own = params[self.name]
        last = out.head.x[:, -1]
        wrong = jnp.square(linear.linear(own, last)[:, 0] - last @ own["direction"])
        mean = metrics.weighted(wrong, batch["weights"])
        return Loss(mean, {"loss": mean}, {})


@pytest.mark.slow
def test_a_head_of_the_objective_trains_and_its_constants_stay():
    config = Config(LlamaConfig.tiny(), Scored(), DataConfig(), train=TrainConfig(steps=5, batch_size=2))
    mesh = sharding.make_mesh(config.parallel, jax.devices()[:1])
    state, fixed = init_state(config, mesh), init_constants(config, mesh)
    assert params.paths(fixed).keys() == {"score/direction"}
    before = jnp.copy(state.params["score"]["kernel"])
    batch = {"tokens": jnp.ones((2, 8), jnp.int32), "weights": jnp.ones(2)}
    after, sums = make_train_step(config, mesh)(state, batch, fixed)
    assert float(sums["loss"].compute()) > 0
    assert not jnp.array_equal(before, after.params["score"]["kernel"])


def test_a_name_that_the_model_has_is_refused():
    config = Config(LlamaConfig.tiny(), Scored("layers"), DataConfig())
    with pytest.raises(ValueError, match="parameters\\(\\) declares 'layers', which the model has itself"):
        config.make_model()


def test_a_flax_module_begins_with_what_the_objective_adds():
    @dataclasses.dataclass(frozen=True)
    class Beside(Objective):
        def parameters(self, model):
            return {"beside": {"scale": Param((), (), normal(1.0))}}

    model = Config(CNNConfig.tiny(), Beside(), DataConfig()).make_model()
    found = jax.eval_shape(model.init, jax.random.key(0))
    assert params.paths(found).keys() == params.paths(model.spec).keys()
