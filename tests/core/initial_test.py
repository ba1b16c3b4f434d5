"""Initial distributions by name: moments, bounds and orthogonality of what is really drawn, cut up
and stacked as well."""

import dataclasses
import functools
import math
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from bigmodel_jax.core import initial, params, ranges, sharding
from bigmodel_jax.core.initial import Initial
from bigmodel_jax.core.params import Param, normal
from bigmodel_jax.core.sharding import ParallelConfig, Rules
from bigmodel_jax.models import (
    BagOfEmbeddingsConfig,
    CNNConfig,
    LinearConfig,
    MLPConfig,
    RNNClassifierConfig,
    RNNConfig,
)
from bigmodel_jax.nn import linear
from bigmodel_jax.nn.attention import attention

NAMES = [name for name in get_args(Initial) if name != "default"]
STD = 0.05
IN, OUT = 160, 240
SOME = ["normal", "xavier_uniform", "he_normal", "orthogonal"]  # one of each way to be drawn
VARIANCES = {
    **dict.fromkeys(("normal", "truncated_normal", "uniform"), STD**2),
    **dict.fromkeys(("xavier_normal", "xavier_uniform", "glorot_normal", "glorot_uniform"), 2 / (IN + OUT)),
    **dict.fromkeys(("he_normal", "he_uniform"), 2 / IN),
    **dict.fromkeys(("lecun_normal", "lecun_uniform"), 1 / IN),
    "orthogonal": 1 / OUT,  # rows of length 1
}
# Kurtosis and largest value, in standard deviations, of each shape; the normal distribution has no
# bound.
UNIFORM, CUT, NORMAL = (1.8, 3**0.5), (2.366, 2 / initial.CUT), (3.0, math.inf)


def shape_of(name: str) -> tuple[float, float]:
    if name in ("normal", "orthogonal"):
        return NORMAL
    return UNIFORM if name.endswith("uniform") else CUT


def drawn(name: str, axes=("embed", "mlp"), shape=(IN, OUT), seed: int = 0) -> np.ndarray:
    return np.asarray(initial.initializer(name, STD, axes)(jax.random.key(seed), shape, jnp.float32))


def check(name: str, values: np.ndarray, variance: float) -> None:
    """Compares moments within five standard errors of that many draws."""
    num, std = values.size, variance**0.5
    kurtosis, bound = shape_of(name)
    scaled = values.astype(np.float64) / std
    assert abs(scaled.mean()) < 5 / num**0.5
    assert abs((scaled**2).mean() - 1) < 5 * ((kurtosis - 1) / num) ** 0.5
    if name != "orthogonal":
        assert abs((scaled**4).mean() / (scaled**2).mean() ** 2 - kurtosis) < 50 / num**0.5
    assert np.abs(scaled).max() <= bound * (1 + 1e-5)
    if bound < math.inf:
        assert np.abs(scaled).max() > 0.98 * bound


def test_the_table_and_the_choices_are_the_same():
    assert {*initial.BY_STD, *initial.BY_FANS, "orthogonal"} == set(NAMES) == set(VARIANCES)


@pytest.mark.parametrize("name", NAMES)
def test_mean_variance_shape_and_bounds(name):
    check(name, drawn(name), VARIANCES[name])


@pytest.mark.parametrize("name", SOME)
def test_a_stacked_layer_is_no_fan_and_every_layer_is_a_draw_of_its_own(name):
    """Both ways to a stack hold this: a layer's spec that is stacked, and a distribution given to a
    stacked spec."""
    layer = {"dense": linear.linear_spec(IN, OUT, bias=True)}
    stacked = initial.weights(params.stack(layer, 3), name, STD)
    inner = params.stack(initial.weights(layer, name, STD), 3)
    values = np.asarray(params.init(stacked, jax.random.key(0))["dense"]["kernel"])
    np.testing.assert_array_equal(values, params.init(inner, jax.random.key(0))["dense"]["kernel"])
    for one in values:
        check(name, one, VARIANCES[name])
    assert abs(np.corrcoef(values[0].ravel(), values[1].ravel())[0, 1]) < 0.03


@pytest.mark.parametrize("name", SOME)
def test_what_is_drawn_in_pieces_is_what_is_drawn_whole(name):
    """Each of 8 devices makes its own part of a stacked leaf."""
    spec = initial.weights(params.stack({"dense": linear.linear_spec(64, 96)}, 2), name, STD)
    mesh = sharding.make_mesh(ParallelConfig(fsdp=4, tensor=2))
    where = sharding.shardings(spec, mesh, Rules())
    draw = functools.partial(params.init, spec)
    cut = jax.jit(draw, out_shardings=where)(jax.random.key(3))["dense"]["kernel"]
    assert cut.addressable_shards[0].data.shape == (2, 16, 48)
    whole = np.asarray(jax.jit(draw)(jax.random.key(3))["dense"]["kernel"])
    np.testing.assert_allclose(cut, whole, rtol=0, atol=1e-5 if name == "orthogonal" else 0)


@pytest.mark.parametrize(("rows", "columns"), [(24, 40), (40, 24), (32, 32)])
def test_orthogonal_rows_or_columns_in_every_layer_and_piece(rows, columns):
    spec = initial.weights(params.stack({"dense": linear.linear_spec(rows, columns)}, 3), "orthogonal", STD)
    mesh = jax.make_mesh((8,), ("x",), devices=jax.devices())
    where = {"dense": {"kernel": NamedSharding(mesh, P(None, "x"))}}
    draw = jax.jit(functools.partial(params.init, spec), out_shardings=where)
    values = np.asarray(draw(jax.random.key(0))["dense"]["kernel"])
    for w in values:
        product = w @ w.T if rows < columns else w.T @ w
        np.testing.assert_allclose(product, np.eye(min(rows, columns)), atol=1e-5)


# ----------------------------------------------------------------------------------- fans from axes

D, H, h, V = 192, 6, 32, 400
SHAPES = {
    "kernel": (("embed", "mlp"), (D, 300), D, 300),
    "kernel without names": ((None, None), (D, 300), D, 300),
    "convolution": ((None, None, "embed", "mlp"), (3, 3, 64, 96), 9 * 64, 9 * 96),
    "patches": ((None, None, None, "embed"), (4, 4, 3, D), 48, 16 * D),
    "queries": (("embed", "heads", "head_dim"), (D, H, h), D, H * h),
    "keys of a latent": ((None, "heads", "head_dim"), (64, H, 48), 64, H * 48),
    "out of attention": (("heads", "head_dim", "embed"), (H, h, D), H * h, D),
    "chunks": (("embed", None, "mlp"), (D, 6, D), D, 6 * D),
    "table of a head": (("vocab", "embed"), (V, D), D, V),
    "experts of layers": (("layers", "experts", "embed", "mlp"), (2, 3, 96, 144), 96, 144),
}


# One of each way from axes to fans.
@pytest.mark.few(
    "kernel", "convolution", "queries", "keys of a latent", "out of attention", "table of a head", "experts of layers"
)
@pytest.mark.parametrize("case", SHAPES)
def test_fans_are_those_of_the_axes(case):
    axes, shape, fan_in, fan_out = SHAPES[case]
    for name, variance in (("he_uniform", 2 / fan_in), ("xavier_uniform", 2 / (fan_in + fan_out))):
        check(name, drawn(name, axes, shape), variance)


# One of each way to the number of outputs.
@pytest.mark.few("kernel", "convolution", "queries", "out of attention", "table of a head")
@pytest.mark.parametrize("case", SHAPES)
def test_orthogonal_by_the_axes(case):
    """The receptive field of a convolution belongs to its inputs."""
    axes, shape, _, _ = SHAPES[case]
    copies = sum(axis in initial.COPIES for axis in axes)
    outs = initial.fans(axes[copies:])[1]
    num_out = math.prod(shape[copies:][i] for i in outs)
    values = drawn("orthogonal", axes, shape).reshape(-1, *shape[copies:])
    for w in values:
        matrix = w.reshape(num_out, -1) if outs[0] == 0 else w.reshape(-1, num_out)
        product = matrix @ matrix.T if matrix.shape[0] < matrix.shape[1] else matrix.T @ matrix
        np.testing.assert_allclose(product, np.eye(min(matrix.shape)), atol=1e-5)


def test_a_vector_has_no_fans():
    with pytest.raises(ValueError, match="is not a matrix"):
        initial.initializer("he_normal", STD, ("embed",))
    spec = attention.spec(D, H, H, h, init=normal(1.0), out_init=normal(1.0), bias=True)
    assert initial.weights(spec, "he_normal", STD) == spec, "only kernels, and tables of heads"


# ------------------------------------------------------------------------------------- the classics

CLASSICS = {
    "linear": LinearConfig.tiny(),
    "mlp": MLPConfig.tiny(),
    "bag": BagOfEmbeddingsConfig(vocab_size=64, embed_dim=16, hidden_dim=24, bigram_buckets=32),
    "rnn": dataclasses.replace(RNNConfig.tiny(), cell="rnn"),
    "lstm": RNNConfig.tiny(),
    "gru": RNNClassifierConfig.tiny(),
    "cnn": CNNConfig.tiny(),
    "cnn in linen": dataclasses.replace(CNNConfig.tiny(), door="linen"),
}


def values_of(config) -> dict[str, np.ndarray]:
    model = config.make()
    draw = model.init or functools.partial(params.init, model.spec)
    return {path: np.asarray(x) for path, x in params.paths(draw(jax.random.key(1))).items()}


def is_weight(path: str) -> bool:
    return path.endswith("kernel") or path == "head/table"


@pytest.mark.few("mlp", "cnn in linen")
@pytest.mark.slow
@pytest.mark.parametrize("kind", CLASSICS)
def test_the_field_changes_every_kernel_of_a_classic_and_nothing_else(kind):
    default = values_of(CLASSICS[kind])
    for name in ("uniform", "xavier_uniform", "orthogonal"):
        found = values_of(dataclasses.replace(CLASSICS[kind], init=name, init_std=STD))
        changed = {path for path in default if not np.array_equal(default[path], found[path])}
        same = {p for p in default if "/h" in p} if name == "orthogonal" and kind in ("rnn", "lstm", "gru") else set()
        assert changed == {path for path in default if is_weight(path)} - same
        assert changed
        for path in changed:
            w = found[path]
            if name == "uniform":
                assert 0.5 < np.abs(w).max() / (3**0.5 * STD) <= 1 + 1e-6
            if name == "xavier_uniform":
                field = math.prod(w.shape[:-2])
                bound = (6 / (field * (w.shape[-2] + w.shape[-1]))) ** 0.5
                assert 0.5 < np.abs(w).max() / bound <= 1 + 1e-6


def test_an_unknown_name_is_one_line_with_the_nearest():
    for field, wrong, near in (("init", "he_norml", "he_normal"), ("activation", "gelu_tan", "gelu_tanh")):
        with pytest.raises(ValueError) as error:
            ranges.check(dataclasses.replace(MLPConfig.tiny(), **{field: wrong}))
        assert str(error.value).startswith(f"{field} = {wrong!r}; allowed: ")
        assert str(error.value).endswith(f"(perhaps you meant {near!r})")


def test_a_parameter_of_ones_own_takes_a_name():
    """A model in one file declares a parameter in this way."""
    axes = ("embed", "mlp")
    p = Param((IN, OUT), axes, params.Init("he_uniform", initial.initializer("he_uniform", STD, axes)))
    check("he_uniform", np.asarray(params.init({"w": p}, jax.random.key(0))["w"]), 2 / IN)
