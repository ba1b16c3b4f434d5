"""Every model can be watched: what its layers compute comes out beside its loss, a number a
layer."""

import jax
import pytest

from bigmodel_jax.core.metrics import Mean
from bigmodel_jax.training import watch
from models_test import FAST, PAIRS, case

# A trace of each; those without a stack of layers that taps see have norms alone.
EACH = [pytest.param(p, marks=[] if p[0] in FAST else pytest.mark.exhaustive, id="-".join(p)) for p in PAIRS]
WITHOUT = {
    "mlp",
    "cnn",
    "cnn-linen",
    "linear",
    "resnet",
    "efficientnet",
    "alexnet",
    "vgg",
    "unet",
    "autoencoder",
    "discrete_autoencoder",
    "rnn",
    "rnn_classifier",
    "bag_of_embeddings",
}


@pytest.mark.parametrize("pair", EACH)
def test_what_layers_compute_comes_out_beside_the_loss(pair):
    c = case(pair)
    loss = watch.tapped(c.objective.loss)

    def fn(tree, batch):
        out = loss(c.model, tree, batch, rng=jax.random.key(0), train=True)
        return out.mean.total, out.metrics

    _, found = jax.eval_shape(jax.grad(fn, has_aux=True, allow_int=True), c.params, c.batch)
    seen = {name.removeprefix(watch.PREFIX): mean for name, mean in found.items() if name.startswith(watch.PREFIX)}
    assert all(isinstance(mean, Mean) and mean.total.ndim == 1 for mean in seen.values())
    assert bool(seen) == (pair[0] not in WITHOUT)
    assert not seen or "residual" in seen
