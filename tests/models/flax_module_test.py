"""Any Flax module through both doors: values, names and statistics as Flax gives them, under every
transformation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx, traverse_util
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from bigmodel_jax.core import params, sharding
from bigmodel_jax.core.sharding import ParallelConfig, Rules
from bigmodel_jax.models.flax_module import BATCH_AXIS, from_linen, from_nnx

INIT = jax.nn.initializers.lecun_normal()


class NnxNet(nnx.Module):
    def __init__(self, rate: float, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(6, 8, kernel_init=nnx.with_partitioning(INIT, ("embed", "mlp")), rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(rate, rngs=rngs)
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(self.dropout(nnx.relu(self.norm(self.hidden(x)))))


class LinenNet(nn.Module):
    rate: float

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Dense(8, kernel_init=nn.with_logical_partitioning(INIT, ("embed", "mlp")), name="hidden")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, name="norm")(x))
        return nn.Dense(3, name="head")(nn.Dropout(self.rate, deterministic=not train)(x))


def nnx_model(rate=0.0):
    return from_nnx(functools.partial(NnxNet, rate))


def linen_model(rate=0.0):
    return from_linen(LinenNet(rate), {"image": np.zeros((1, 6), np.float32)})


both_doors = pytest.mark.parametrize("make", [nnx_model, linen_model])


def batch_of(n=16, seed=0):
    return {"image": jax.random.normal(jax.random.key(seed), (n, 6))}


def nnx_net(seed):
    with nnx.use_eager_sharding(False):  # without it an annotated module asks for a mesh
        return NnxNet(0.0, nnx.Rngs(seed))


def close(a, b, tolerance=1e-5):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance), a, b)


# ---- what the spec says ----
@both_doors
def test_spec_names_axes_and_kinds(make):
    flat = params.paths(make(0.1).spec)
    assert set(flat) == {
        *(
            "hidden/kernel",
            "hidden/bias",
            "norm/scale",
            "norm/bias",
            "norm/mean",
            "norm/var",
            "head/kernel",
            "head/bias",
        )
    }
    assert flat["hidden/kernel"].axes == ("embed", "mlp")
    assert flat["head/kernel"].axes == ("embed", None), "without metadata: stored over fsdp along the longest dimension"
    assert flat["head/bias"].axes == (None,)
    assert {path for path, p in flat.items() if not p.trainable} == {"norm/mean", "norm/var"}
    assert {path for path, p in flat.items() if p.decay} == {"hidden/kernel", "head/kernel"}


@both_doors
def test_spec_is_the_shape_of_init(make):
    model = make()
    assert jax.eval_shape(model.init, jax.random.key(0)) == params.abstract(model.spec)


def test_init_is_the_nnx_modules_own():
    got = params.paths(nnx_model().init(jax.random.key(3)))
    module = nnx_net(3)
    for path, own in {"hidden/kernel": module.hidden.kernel, "head/kernel": module.head.kernel}.items():
        np.testing.assert_array_equal(got[path], own[...])


def test_init_is_the_linen_modules_own():
    got = linen_model().init(jax.random.key(3))
    own = nn.unbox(LinenNet(0.0).init(jax.random.key(3), jnp.zeros((1, 6)), train=False))
    for path, value in params.paths({**own["params"]}).items():
        np.testing.assert_array_equal(params.paths(got)[path], value)


@pytest.mark.slow
def test_annotated_module_inside_a_mesh():
    """Flax would place annotated parameters by their logical names, which are no mesh axes."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    with jax.set_mesh(mesh), nn.logical_axis_rules((("mlp", "data"),)):
        for make in (nnx_model, linen_model):
            model = make()
            jax.jit(model.apply)(jax.jit(model.init)(jax.random.key(0)), batch_of())


def test_modules_in_a_list_are_numbered():
    class Stack(nnx.Module):
        def __init__(self, rngs):
            self.blocks = nnx.List([nnx.Linear(6, 6, rngs=rngs) for _ in range(11)])

        def __call__(self, x):
            return functools.reduce(lambda x, block: block(x), self.blocks, x)

    model = from_nnx(Stack)
    assert "blocks/10/kernel" in params.paths(model.spec)
    p = model.init(jax.random.key(0))
    close(model.apply(p, batch_of()).value, Stack(nnx.Rngs(0))(batch_of()["image"]))


def test_tied_weights_are_one_parameter():
    class Tied(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(6, 6, use_bias=False, rngs=rngs)
            self.second = self.first

        def __call__(self, x):
            return self.second(self.first(x))

    model = from_nnx(Tied)
    assert list(params.paths(model.spec)) == ["first/kernel"]
    p, x = model.init(jax.random.key(0)), batch_of()
    close(model.apply(p, x).value, x["image"] @ p["first"]["kernel"] @ p["first"]["kernel"])


def test_collections_that_collide_are_refused():
    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x):
            self.variable("other", "kernel", jnp.zeros, (2,))
            return x * self.param("kernel", jax.nn.initializers.ones, (6,))

    with pytest.raises(ValueError, match="Twice: two collections"):
        from_linen(Twice(), {"image": np.zeros((1, 6), np.float32)})


class NnxLayer(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.LayerNorm(6, rngs=rngs)
        self.linear = nnx.Linear(6, 6, rngs=rngs)
        self.gain = nnx.Param(jnp.ones(6))

    def __call__(self, x):
        return x + self.linear(self.norm(x)) * self.gain


class NnxStack(nnx.Module):
    def __init__(self, axis, annotated, rngs):
        metadata = {"transform_metadata": {nnx.PARTITION_NAME: "layers"}} if annotated else {}
        make = nnx.vmap(NnxLayer, in_axes=0, out_axes=axis, **metadata)
        self.blocks = nnx.split_rngs(splits=3)(make)(rngs)
        self.last = nnx.LayerNorm(6, rngs=rngs)

    def __call__(self, x):
        return self.last(x)


@pytest.mark.parametrize(("axis", "annotated"), [(0, False), (1, False), (0, True)])
def test_layers_stacked_by_nnx_decay_as_one_of_them(axis, annotated):
    one = {f"blocks/{path}": p for path, p in params.paths(from_nnx(NnxLayer).spec).items()}
    stacked = params.paths(from_nnx(functools.partial(NnxStack, axis, annotated)).spec)
    assert {path for path, p in one.items() if p.decay} == {"blocks/linear/kernel"}
    assert {path for path, p in stacked.items() if p.decay} == {"blocks/linear/kernel"}
    assert all(
        stacked[path].shape[axis] == 3 and len(stacked[path].shape) == len(p.shape) + 1 for path, p in one.items()
    )
    assert nnx.Variable.__init__.__qualname__ == "Variable.__init__"


@pytest.mark.parametrize("lift", [nn.vmap, nn.scan])
def test_layers_stacked_by_linen_without_names_decay_as_one_of_them(lift):
    class Inner(nn.Module):
        @nn.compact
        def __call__(self, x, *_):
            gain = self.param("gain", jax.nn.initializers.ones, (6,))
            x = x + nn.Dense(6, name="linear")(nn.LayerNorm(name="norm")(x)) * gain
            return (x, None) if lift is nn.scan else x

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            options = dict(variable_axes={"params": 0}, split_rngs={"params": True})
            if lift is nn.vmap:
                layers = nn.vmap(Inner, in_axes=None, axis_size=3, **options)
                return layers(name="blocks")(x).sum(0)
            return nn.scan(Inner, length=3, **options)(name="blocks")(x, None)[0]

    spec = params.paths(from_linen(Net(), {"image": np.zeros((1, 6), np.float32)}).spec)
    assert spec["blocks/norm/scale"].shape == (3, 6)
    assert {path for path, p in spec.items() if p.decay} == {"blocks/linear/kernel"}


def test_stacked_layers_decide_decay_before_stacking():
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            bias = nn.with_logical_partitioning(jax.nn.initializers.zeros, (None,))
            return nn.Dense(6, kernel_init=nn.with_logical_partitioning(INIT, ("embed", "mlp")), bias_init=bias)(
                x
            ), None

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            options = dict(variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
            return nn.scan(Layer, metadata_params={nn.PARTITION_NAME: "layers"}, **options)()(x, None)[0]

    spec = params.paths(from_linen(Net(), {"image": np.zeros((1, 6), np.float32)}).spec)
    kernel, bias = (next(p for path, p in spec.items() if path.endswith(name)) for name in ("kernel", "bias"))
    assert kernel.axes == ("layers", "embed", "mlp")
    assert kernel.decay
    assert bias.shape == (3, 6)
    assert not bias.decay


# ---- what apply does ----
def test_apply_is_the_nnx_module():
    model, module, batch = nnx_model(), nnx_net(0), batch_of()
    p = model.init(jax.random.key(0))
    out = model.apply(p, batch, rng=jax.random.key(1), train=True)
    module.train()
    close(out.value, module(batch["image"]))
    close(out.updates, {"norm/mean": module.norm.mean[...], "norm/var": module.norm.var[...]})
    module.eval()
    close(model.apply(params.from_paths(params.paths(p) | out.updates), batch).value, module(batch["image"]))


def test_apply_is_the_linen_module():
    model, module, batch = linen_model(), LinenNet(0.0), batch_of()
    out = model.apply(model.init(jax.random.key(0)), batch, rng=jax.random.key(1), train=True)
    variables = nn.unbox(module.init(jax.random.key(0), batch["image"], train=False))
    value, new = module.apply(variables, batch["image"], train=True, mutable=["batch_stats"])
    close(out.value, value)
    close(out.updates, traverse_util.flatten_dict(new["batch_stats"], sep="/"))


@both_doors
def test_evaluation_changes_nothing_and_needs_no_rng(make):
    model = make(0.5)
    p = model.init(jax.random.key(0))
    first, second = model.apply(p, batch_of()), model.apply(p, batch_of(), rng=jax.random.key(7))
    np.testing.assert_array_equal(first.value, second.value)
    assert first.updates == {}


@both_doors
def test_dropout_follows_rng(make):
    model = make(0.5)
    p, batch = model.init(jax.random.key(0)), batch_of()
    one, same, other = (model.apply(p, batch, rng=jax.random.key(k), train=True).value for k in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert not np.allclose(one, other)


@both_doors
def test_dropout_without_rng_is_an_error(make):
    model = make(0.5)
    with pytest.raises(Exception, match=r"needs rng|needs PRNG"):
        model.apply(model.init(jax.random.key(0)), batch_of(), train=True)


def test_two_dropouts_draw_differently():
    class Two(nnx.Module):
        def __init__(self, rngs):
            self.first, self.second = nnx.Dropout(0.5, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            return self.first(x), self.second(x)

    first, second = from_nnx(Two).apply({}, {"image": jnp.ones((64,))}, rng=jax.random.key(0), train=True).value
    assert not np.array_equal(first, second)


@both_doors
def test_bfloat16_parameters_mean_bfloat16_products(make):
    model = make()
    trainable, frozen = params.partition(model.init(jax.random.key(0)), model.spec)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), trainable)
    merged, rng = params.merge(half, frozen), jax.random.key(0)
    program = str(jax.make_jaxpr(lambda p: model.apply(p, batch_of(), rng=rng, train=True).value)(merged))
    first_product = next(line for line in program.splitlines() if "dot_general" in line)
    assert first_product.split(":")[1].startswith("bf16")


@pytest.mark.parametrize(("keyword", "in_training"), [("train", True), ("training", True), ("deterministic", False)])
def test_the_modules_own_keyword_for_training(keyword, in_training):
    namespace: dict = {}
    exec(f"def call(self, x, {keyword}): return x + {keyword}", namespace)
    module = type("Net", (nn.Module,), {"__call__": namespace["call"]})()
    model, batch = from_linen(module, {"image": np.zeros((1, 6), np.float32)}), {"image": jnp.zeros(())}
    assert model.apply({}, batch, train=True).value == float(in_training)
    assert model.apply({}, batch, train=False).value == float(not in_training)


def test_inputs_choose_what_the_module_reads():
    model = from_nnx(lambda rngs: NnxNet(0.0, rngs), inputs=lambda batch: (batch["left"] + batch["right"],))
    p, x = model.init(jax.random.key(0)), batch_of()["image"]
    close(model.apply(p, {"left": x, "right": x}).value, nnx_model().apply(p, {"image": 2 * x}).value)


# ---- under JAX's transformations ----
@pytest.mark.slow
@both_doors
def test_grad_and_jit(make):
    model = make(0.5)
    p, batch = model.init(jax.random.key(0)), batch_of()

    def loss(p):
        return jnp.sum(model.apply(p, batch, rng=jax.random.key(1), train=True).value ** 2)

    grads = jax.jit(jax.grad(loss))(p)
    close(grads, jax.grad(loss)(p), 1e-4)
    trainable, _ = params.partition(grads, model.spec)
    # Batch norm takes the mean away again: the bias before it has none. Every other parameter
    # counts.
    assert [k for k, g in params.paths(trainable).items() if np.abs(g).max() < 1e-3] == ["hidden/bias"]


@pytest.mark.slow
@both_doors
def test_vmap_over_parameters_is_an_ensemble(make):
    model = make()
    members = jax.vmap(model.init)(jax.random.split(jax.random.key(0), 3))
    out = jax.vmap(functools.partial(model.apply, train=True, rng=jax.random.key(0)), (0, None))(members, batch_of())
    for i in range(3):
        one = model.apply(jax.tree.map(lambda x, i=i: x[i], members), batch_of(), rng=jax.random.key(0), train=True)
        close((out.value[i], {k: v[i] for k, v in out.updates.items()}), (one.value, one.updates))


@pytest.mark.slow
@both_doors
def test_per_device_step_has_the_whole_batchs_statistics(make):
    """Inside a shard_map or pmap over BATCH_AXIS, batch norm averages over the devices."""
    model = make()
    p, batch = model.init(jax.random.key(0)), batch_of()
    apply = functools.partial(model.apply, rng=jax.random.key(0), train=True)
    whole = jax.jit(apply)(p, batch)
    mesh = jax.make_mesh((8,), (BATCH_AXIS,), axis_types=(AxisType.Auto,))
    specs = dict(in_specs=(P(), P(BATCH_AXIS)), out_specs=(P(BATCH_AXIS), P()))
    sharded = jax.shard_map(lambda p, b: apply(p, b)[:2], mesh=mesh, **specs)(p, batch)
    close(sharded, whole[:2])
    split = jax.tree.map(lambda x: x.reshape(8, -1, *x.shape[1:]), batch)
    mapped = jax.pmap(lambda b: apply(p, b)[:2], axis_name=BATCH_AXIS)(split)
    close(mapped[0].reshape(whole.value.shape), whole.value)
    close(jax.tree.map(lambda x: x[5], mapped[1]), whole.updates)


@pytest.mark.slow
@both_doors
def test_fsdp_stores_the_unannotated_in_shards_and_equals_one_device(make):
    model, rules = make(), Rules()
    mesh = sharding.make_mesh(ParallelConfig(data=1, fsdp=8))
    layout = sharding.shardings(model.spec, mesh, rules)
    assert layout["head"]["kernel"].spec == P("fsdp", None)
    p = jax.jit(model.init, out_shardings=layout)(jax.random.key(0))
    batch = jax.device_put(batch_of(64), sharding.batch_sharding(mesh, rules, ("seq",)))

    def loss(p, batch):
        return jnp.mean(model.apply(p, batch, rng=jax.random.key(0), train=True).value ** 2)

    with sharding.use(mesh, rules):
        got = jax.jit(jax.value_and_grad(loss), out_shardings=(None, layout))(p, batch)
    close(sharding.to_host(got), jax.jit(jax.value_and_grad(loss))(sharding.to_host(p), sharding.to_host(batch)))
