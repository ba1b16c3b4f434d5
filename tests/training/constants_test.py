"""Constant parameters: every step reads them, and none changes, carries, returns or saves them."""

import dataclasses
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import text_axes

import runs
from bigmodel_jax.checkpoint import store
from bigmodel_jax.config import CheckpointConfig, Config, EvalConfig, ReportConfig, SampleConfig, TrainConfig
from bigmodel_jax.core import params, sharding, storage
from bigmodel_jax.core.params import Init, Param
from bigmodel_jax.core.precision import Policy, cast
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.core.storage import Blocks, Dense, Half
from bigmodel_jax.data import DataConfig, ImageData, TextData
from bigmodel_jax.data.sources.sources import Arrays
from bigmodel_jax.inference.generate import generate
from bigmodel_jax.models import LlamaConfig, Model, ModelConfig, Out
from bigmodel_jax.nn import linear
from bigmodel_jax.objectives import Classification, NextToken
from bigmodel_jax.optim import OptimConfig
from bigmodel_jax.plan import sums, worker
from bigmodel_jax.pretrained import folder
from bigmodel_jax.pretrained.transfer import export_weights
from bigmodel_jax.report.throughput import step_flops
from bigmodel_jax.training import constants
from bigmodel_jax.training.evaluate_saved import evaluate_run
from bigmodel_jax.training.fresh import fresh_state
from bigmodel_jax.training.saved import load_weights
from bigmodel_jax.training.state import abstract_constants, abstract_state, init_constants, init_state
from bigmodel_jax.training.step import check_updates, make_train_step
from loop_test import run
from statistics_test import PIECES, SGD, batch

LAYOUTS = PIECES | {
    "fsdp": ({"parallel": ParallelConfig(data=2, fsdp=2)}, 4),
    "tensor": ({"parallel": ParallelConfig(data=1, tensor=2)}, 2),
    "gpipe": ({"parallel": ParallelConfig(stage=2)}, 2),
    "deterministic fsdp": ({"parallel": ParallelConfig(fsdp=2, deterministic=True, deterministic_groups=8)}, 2),
}


def with_kinds(model: Model, changes: dict[str, dict]) -> Model:
    """`model` with other facts of the parameters whose whole path matches a pattern."""
    flat = params.paths(model.spec)
    for path, p in flat.items():
        for pattern, change in changes.items():
            if re.fullmatch(pattern, path):
                flat[path] = dataclasses.replace(p, **change)
    return model._replace(spec=params.from_paths(flat))


@dataclasses.dataclass(frozen=True)
class Frozen(LlamaConfig):
    """A decoder whose layers are constant but for the norms; `norm/scale` is frozen as an old file
    says it."""

    packed: bool = False  # in int8, int4, doubled nf4 and bfloat16

    def make(self):
        kinds = {"layers/(attn|mlp)/.*": {"kind": "constant"}, "norm/scale": {"trainable": False}}
        if self.packed:
            kinds["layers/attn/.*"] = {"kind": "constant", "storage": Blocks("int8", 8)}
            kinds["layers/attn/o"] = {"kind": "constant", "storage": Half()}
            kinds["layers/mlp/gate"] = {"kind": "constant", "storage": Blocks("int4", 8)}
            kinds["layers/mlp/down"] = {"kind": "constant", "storage": Blocks("nf4", 8, double=True)}
            kinds["layers/mlp/up"] = {"kind": "constant", "dtype": "bfloat16"}
        return with_kinds(super().make(), kinds)


DENSE = Frozen(**vars(dataclasses.replace(LlamaConfig.tiny(), embed_dim=16, mlp_dim=24, num_heads=2, num_kv_heads=1)))
FIELDS = dataclasses.fields(LlamaConfig)
PACKED = dataclasses.replace(DENSE, packed=True)


def config_of(model=PACKED, change=None) -> Config:
    train = TrainConfig(steps=4, batch_size=8)
    config = Config(model, NextToken(), None, optim=SGD, parallel=ParallelConfig(data=1), train=train)
    return dataclasses.replace(config, **(change or {}))


def place(config: Config, mesh) -> dict:
    rules = config.parallel.rules
    return {k: jax.device_put(v, sharding.batch_sharding(mesh, rules, text_axes.axes(v))) for k, v in batch().items()}


def two_steps(config: Config, devices: int = 1):
    """(trained, statistics, constants before, constants after, losses) on the host, by path."""
    mesh = sharding.make_mesh(config.parallel, jax.devices()[:devices])
    state, fixed, losses = init_state(config, mesh), init_constants(config, mesh), []
    before = sharding.to_host(fixed)
    step = make_train_step(config, mesh)
    for _ in range(2):
        state, found = step(state, place(config, mesh), fixed)
        losses.append(float(found["loss"].compute()))
    trees = sharding.to_host((state.params, state.frozen, before, fixed))
    return (*map(params.paths, trees), losses)


@pytest.fixture(scope="module")
def whole():
    return two_steps(config_of())


# optim/groups_test.py has steps beside frozen parameters under 1F1B, and
# multidevice/adapters_layouts_test.py beside a frozen base on a mesh.
@pytest.mark.exhaustive
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_step_beside_constants_is_that_of_one_device_in_every_layout(whole, layout):
    trained, statistics, before, after, losses = two_steps(config_of(change=LAYOUTS[layout][0]), LAYOUTS[layout][1])
    assert set(after) == {p for p in params.paths(PACKED.make().spec) if re.fullmatch("layers/(attn|mlp)/.*", p)}
    for found in (before, whole[2]):
        jax.tree.map(np.testing.assert_array_equal, after, found)
    assert set(statistics) == {"norm/scale"}
    np.testing.assert_array_equal(statistics["norm/scale"], 1.0)
    np.testing.assert_allclose(losses, whole[4], rtol=1e-5)
    for path, x in whole[0].items():
        np.testing.assert_allclose(trained[path], x, atol=1e-3 if layout == "slices" else 3e-6, err_msg=path)


@pytest.mark.slow
def test_what_is_trained_beside_constants_moves_as_in_a_model_without():
    """The gradient is that of the same function. A constant changes only which leaves have one."""
    config, frozen = config_of(LlamaConfig(**{f.name: getattr(DENSE, f.name) for f in FIELDS})), config_of(DENSE)
    mesh = sharding.make_mesh(config.parallel, jax.devices()[:1])
    state, _ = make_train_step(config, mesh)(init_state(config, mesh), place(config, mesh))
    one, _ = make_train_step(frozen, mesh)(init_state(frozen, mesh), place(config, mesh), init_constants(frozen, mesh))
    theirs = params.paths(state.params)
    for path, x in params.paths(one.params).items():
        np.testing.assert_allclose(x, theirs[path], atol=1e-6, err_msg=path)


# -------------------------------------------------------------------------------------- the program


@dataclasses.dataclass(frozen=True)
class Features(ModelConfig):
    """Logits of images through a constant matrix: 64 pixels -> 37 features, of one dtype -> 10
    classes."""

    dtype: str = "float32"
    kind: str = "constant"
    blocks: str = ""

    def make(self) -> Model:
        whole = Init("whole", lambda key, shape, dtype: jax.random.randint(key, shape, -3, 4).astype(dtype))
        how = Blocks(self.blocks, 37) if self.blocks else Dense()
        fixed = Param((64, 37), ("embed", "mlp"), whole, self.dtype, kind=self.kind, storage=how)
        spec = {"features": fixed, "out": linear.linear_spec(37, 10, axes=(None, None), bias=True)}
        return Model(spec, lambda p, batch, **_: Out(forward(p, batch)))


def forward(p, batch):
    x = batch["image"].reshape(-1, 64).astype(p["out"]["kernel"].dtype)
    h = jax.nn.relu(x @ storage.dense(p["features"], x.dtype).astype(x.dtype))
    return linear.linear(p["out"], h).astype(jnp.float32)


def lowered(config: Config):
    mesh = sharding.make_mesh(config.parallel, jax.devices()[:1])
    rows = {
        "image": np.zeros((8, 8, 8, 1), np.float32),
        "label": np.zeros(8, np.int32),
        "weights": np.ones(8, np.float32),
    }
    return make_train_step(config, mesh).trace(abstract_state(config, mesh), rows, abstract_constants(config, mesh))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_the_compiled_step_has_no_gradient_copy_or_result_of_a_constant(dtype):
    train = TrainConfig(steps=4, batch_size=8, microbatches=2)
    config = dataclasses.replace(config_of(Features(dtype)), objective=Classification(), train=train)
    traced = lowered(config)
    assert not any(aval.shape == (64, 37) for aval in traced.jaxpr.out_avals)
    (scan,) = (e for e in flat_equations(traced.jaxpr.jaxpr) if e.primitive.name == "scan")
    assert (64, 37) in [v.aval.shape for v in scan.invars], "read"
    assert (64, 37) not in [v.aval.shape for v in scan.outvars], "not carried"
    text = traced.lower().compile().as_text()
    made = re.findall(r"= (\w+)\[64,37\]\S* (\S+?)\(", text)
    assert {opcode for _, opcode in made} <= {"parameter", "get-tuple-element", "convert", "fusion"}, made
    # A product made of it again would be its gradient: the contraction over the 4 rows of a
    # microbatch.
    assert not re.search(r"\[64,37\]\S* dot\(", text)
    if dtype == "float32":
        assert {opcode for _, opcode in made} <= {"parameter", "get-tuple-element"}, "as it is stored"


def flat_equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in equation.params.values():
            inner = getattr(inner, "jaxpr", inner)
            yield from flat_equations(inner) if hasattr(inner, "eqns") else ()


def test_a_new_value_of_what_is_no_statistic_is_one_line():
    model = DENSE.make()
    with pytest.raises(ValueError, match=r"Out\.updates has a new value of norm/scal, which is not in its spec; only"):
        check_updates(model.spec, {"norm/scale": 0, "norm/scal": 0})


@pytest.mark.slow
@pytest.mark.parametrize("rounds", [1, 2])
def test_1f1b_adds_up_no_gradient_of_what_is_constant(rounds):
    """No array in the loops has the shape of a constant's gradient, neither for one stage nor as a
    sum over stages."""
    parallel = ParallelConfig(stage=2, pipeline_microbatches=4, pipeline_schedule="1f1b", pipeline_rounds=rounds)
    model = dataclasses.replace(PACKED, num_layers=4)
    config = config_of(model, {"parallel": parallel})
    mesh = sharding.make_mesh(parallel, jax.devices()[:2])
    args = abstract_state(config, mesh), place(config, mesh), abstract_constants(config, mesh)
    traced = make_train_step(config, mesh).trace(*args)
    loops = [e for e in flat_equations(traced.jaxpr.jaxpr) if e.primitive.name == "scan"]
    carried = {v.aval.shape for e in loops for v in e.outvars if jnp.issubdtype(v.aval.dtype, jnp.floating)}
    layers = 4 // rounds // 2
    assert (2, rounds, layers, 16) in carried, "the norms' gradients"
    assert not {(2, rounds, layers, *x.shape[1:]) for x in jax.tree.leaves(args[2])} & carried


def test_a_plan_counts_a_constant_once_and_without_gradient_moments_or_checkpoint():
    plain = dataclasses.replace(config_of(LlamaConfig.tiny()), data=TextData(seq_len=16), optim=OptimConfig())
    frozen = dataclasses.replace(plain, model=Frozen(**vars(plain.model)))
    packed = dataclasses.replace(plain, model=dataclasses.replace(frozen.model, packed=True))
    mesh = sharding.make_mesh(plain.parallel, jax.devices()[:1])
    all_, some, few = (
        worker.sizes(abstract_state(c, mesh), {}, abstract_constants(c, mesh)) for c in (plain, frozen, packed)
    )
    spec = frozen.model.make().spec
    fixed = 4 * params.count(params.of_kind(spec, spec, "constant"))
    assert some["parameters"] == all_["parameters"]
    assert all_["gradients"] - some["gradients"] == fixed + 4 * 32, "norm/scale has none either"
    assert all_["optimizer"] - some["optimizer"] == 2 * (fixed + 4 * 32)
    assert all_["checkpoint"] - some["checkpoint"] == 3 * fixed + 2 * 4 * 32
    assert few["parameters"] < all_["parameters"] - fixed / 2
    assert few["checkpoint"] == some["checkpoint"]
    assert sums.memory(packed) < sums.memory(frozen) < sums.memory(plain)


def test_useful_flops_leave_out_gradients_of_constants():
    """A constant matrix lies before a trained one. The constant costs one product and the trained
    one two, because nothing before it needs a gradient."""
    rows = {
        "image": np.zeros((8, 8, 8, 1), np.float32),
        "label": np.zeros(8, np.int32),
        "weights": np.ones(8, np.float32),
    }
    flops = []
    for kind in ("trained", "constant"):
        config = dataclasses.replace(config_of(Features(kind=kind)), objective=Classification())
        flops.append(step_flops(config, params.abstract(config.model.make().spec), rows))
    assert flops[0] == 3 * 2 * 8 * (64 * 37 + 37 * 10)
    assert flops[1] == 2 * 8 * (64 * 37 + 2 * 37 * 10)


# --------------------------------------------------------------------------------------- whole runs


def run_config(folder, model, **train) -> Config:
    return Config(
        model,
        Classification(),
        ImageData(cache_dir=str(folder / "cache"), source=Arrays("loop_test:make_arrays")),
        optim=OptimConfig(lr=1e-2, schedule="constant", ema_decay=0.5),
        parallel=ParallelConfig(data=8),
        train=TrainConfig(**({"steps": 4, "batch_size": 8, "log_every": 2} | train)),
        eval=EvalConfig(every=4),
        checkpoint=CheckpointConfig(every=2, keep=10),
        report=ReportConfig(tensorboard=False),
    )


def leaves(run_dir, step: int) -> set[str]:
    return set(json.loads((run_dir / f"checkpoints/{step}/meta/data.json").read_text())["leaves"])


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """(config, folder) of a whole run of 4 steps with a constant in int8."""
    folder = tmp_path_factory.mktemp("kept")
    config = run_config(folder, Features("int8"))
    run(config, folder / "run")
    return config, folder / "run"


@pytest.mark.slow
def test_checkpoints_do_not_repeat_constants_and_a_resumed_run_has_them(kept, tmp_path):
    config, straight = kept
    assert not any("features" in path for path in leaves(straight, 2))
    said, _ = run(config, runs.killed(straight, 4, tmp_path / "run"))
    assert "Resuming at step 2." in said
    mesh = sharding.make_mesh(config.parallel)
    (one, _), (other, _) = (load_weights(config, folder, mesh) for folder in (straight, tmp_path / "run"))
    assert one["features"].dtype == jnp.int8
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(one), jax.device_get(other))


@pytest.mark.slow
def test_a_run_with_constants_is_evaluated_on_another_mesh(kept):
    config, folder = kept
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    other = dataclasses.replace(config, parallel=ParallelConfig(data=2, fsdp=2, tensor=1, seq=2))
    for which in ("", "4"):
        step, scalars = evaluate_run(other, folder, which)
        assert (step, scalars["eval/loss"]) == (4, pytest.approx(last["eval/loss"], rel=1e-5))


@pytest.mark.slow
@pytest.mark.parametrize("state", ["weights", "all"])
def test_another_run_starts_with_the_constants_of_the_first(kept, tmp_path, state):
    config, folder = kept
    init = {"init_from": f"{folder}@2", "init_state": state, "seed": 0 if state == "all" else 5}
    run(run_config(folder.parent, Features("int8"), **init), tmp_path / "fork")
    mesh = sharding.make_mesh(config.parallel)
    ours, theirs = (load_weights(config, f, mesh)[0]["features"] for f in (tmp_path / "fork", folder))
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_constants_that_are_gone_or_damaged_are_one_line(kept, tmp_path):
    config, folder = kept
    shutil.copytree(folder, tmp_path / "run")
    more = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=6))
    big = max((tmp_path / "run/constants/0").rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0)
    content = bytearray(big.read_bytes())
    content[len(content) // 2] ^= 1
    big.write_bytes(bytes(content))
    with pytest.raises(ValueError, match=r"no undamaged checkpoint in \S+/constants: step 0 \(.*"):
        run(more, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/constants")
    with pytest.raises(
        ValueError, match=r"^run_dir = '.*': \S+/constants, .*, is gone; copy it back, or start another"
    ):
        run(more, tmp_path / "run")


def test_4_bit_constants_that_an_older_version_packed_otherwise_are_refused(tmp_path, monkeypatch):
    config = config_of(change={"data": DataConfig()})
    mesh = sharding.make_mesh(config.parallel, jax.devices()[:1])
    made = init_constants(config, mesh)
    constants.keep(tmp_path, config, made, {})
    jax.tree.map(np.testing.assert_array_equal, constants.load(config, tmp_path, mesh), made)
    with monkeypatch.context() as patch:
        patch.setattr(constants, "ORDER", {})
        constants.keep(tmp_path, config, made, {})
    with pytest.raises(
        ValueError, match="constants: an older version packed its 4-bit constants in another order; start"
    ):
        constants.load(config, tmp_path, mesh)


@pytest.mark.slow
def test_a_parameter_that_a_users_model_freezes_trains_resumes_and_evaluates(tmp_path):
    """The parameter has `trainable=False`, and the model does not mention it in Out.updates: it
    keeps its value, and the state saves it."""
    config = run_config(tmp_path, dataclasses.replace(Features("int8"), kind="statistic"), steps=2)
    run(config, tmp_path / "run")
    more = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=4))
    said, _ = run(more, tmp_path / "run")
    assert "Resuming at step 2." in said
    assert "frozen/features" in leaves(tmp_path / "run", 4)
    assert not (tmp_path / "run/constants").exists()
    mesh = sharding.make_mesh(config.parallel)
    fresh = init_state(config, mesh).frozen["features"]
    np.testing.assert_array_equal(load_weights(config, tmp_path / "run", mesh)[0]["features"], fresh)
    assert np.isfinite(evaluate_run(more, tmp_path / "run")[1]["eval/loss"])


@pytest.mark.slow
def test_blocks_are_generated_from_and_exported_as_arrays(tmp_path, monkeypatch):
    plain = LlamaConfig.tiny()
    make = LlamaConfig.make
    blocks = {"layers/(attn|mlp)/.*": {"kind": "constant", "storage": Blocks("nf4", 8, double=True)}}
    monkeypatch.setattr(LlamaConfig, "make", lambda self: with_kinds(make(self), blocks))
    config = dataclasses.replace(config_of(plain), data=DataConfig(), parallel=ParallelConfig(data=2, fsdp=2, tensor=2))
    mesh = sharding.make_mesh(config.parallel)
    state, fixed = init_state(config, mesh), init_constants(config, mesh)
    constants.keep(tmp_path / "run", config, fixed, {})
    with store.open_store(tmp_path / "run/checkpoints", config.checkpoint) as saves:
        store.save(saves, 1, state, {}, {})
    weights, _ = load_weights(config, tmp_path / "run", mesh)
    sample = SampleConfig(max_tokens=4, temperature=0.0)
    found = generate(config.model.make(), cast(weights, "float32"), [[1, 2]], sample, stop=())
    export_weights(config, tmp_path / "run", tmp_path / "out")
    exported = {k: v.read() for k, v in folder.open_weights(tmp_path / "out").items()}
    q = params.paths(fixed)["layers/attn/q"].dense("float32")
    np.testing.assert_array_equal(exported["model.layers.0.self_attn.q_proj.weight"], q[0].reshape(32, -1).T)
    dense = params.from_paths({path: storage.dense(x, "float32") for path, x in params.paths(weights).items()})
    assert found == generate(make(plain), dense, [[1, 2]], sample, stop=())


@pytest.mark.slow
def test_a_run_in_blocks_starts_from_one_without(tmp_path):
    """The other run's trained matrix becomes a constant that is rounded to blocks."""
    first = run_config(tmp_path, Features(kind="trained"), steps=2)
    run(first, tmp_path / "first")
    second = run_config(tmp_path, Features(blocks="int8"), steps=2, init_from=str(tmp_path / "first"))
    run(second, tmp_path / "second")
    mesh = sharding.make_mesh(first.parallel)
    before, after = (load_weights(c, tmp_path / n, mesh)[0] for c, n in ((first, "first"), (second, "second")))
    assert after["features"].values.dtype == jnp.int8
    scale = np.abs(before["features"]).max() / 127
    np.testing.assert_allclose(after["features"].dense("float32"), before["features"], atol=scale)
    third = run_config(tmp_path, Features(blocks="int8"), steps=2, init_from=str(tmp_path / "second"), seed=3)
    _, fixed, missing, *_ = fresh_state(third, mesh)
    assert not missing
    jax.tree.map(np.testing.assert_array_equal, fixed["features"], after["features"])


@pytest.mark.slow
def test_bfloat16_computes_with_constants_in_bfloat16_and_keeps_them_as_they_are():
    config = config_of(change={"precision": Policy(compute="bfloat16", param="bfloat16")})
    *_, after, losses = two_steps(config)
    assert {path.rsplit("/")[-1]: str(x.dtype) for path, x in after.items() if not hasattr(x, "scales")} == {
        "up": "bfloat16"
    }
    assert np.isfinite(losses).all()
