"""Activations on a mesh: sizes that an axis divides in part, and the sequence beside a whole
embedding."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from bigmodel_jax.core import params, precision, sharding
from bigmodel_jax.core.sharding import ParallelConfig, Rules, fitting_spec, make_mesh
from bigmodel_jax.models import LlamaConfig
from bigmodel_jax.nn import linear
from bigmodel_jax.nn.attention import context

MESH = {"data": 2, "fsdp": 2, "tensor": 2}


def spec_of(shape, *logical, rules=Rules(), **axes):
    with sharding.use(make_mesh(ParallelConfig(**(axes or MESH))), rules):
        return fitting_spec(shape, *logical)


@pytest.mark.parametrize(
    ("rows", "axes"),
    [
        (8, ("stage", "data", "fsdp", "expert")),
        (4, ("stage", "data", "fsdp", "expert")),
        (6, ("stage", "data")),
        (2, ("stage", "data")),
        (3, "stage"),
        (1, "stage"),
    ],
)
def test_a_size_keeps_the_first_axes_that_divide_it(rows, axes):
    """With data 2 and fsdp 2, six rows lie on data alone, and three on neither axis (stage and
    expert have size 1)."""
    assert spec_of((rows, 4), "batch", None) == P(axes, None)


def test_what_no_axis_divides_stays_whole():
    assert spec_of((4, 7), None, "mlp") == P(None, None)
    assert spec_of((4, 6), None, "mlp") == P(None, "tensor")


def test_a_sequence_beside_a_whole_embedding_has_a_rule_of_its_own():
    rules = Rules(residual_seq=("seq", "tensor"))
    assert spec_of((4, 8, 16), "batch", "seq", "embed", rules=rules)[1] == ("seq", "tensor")
    assert spec_of((4, 8, 16), "batch", "seq", "mlp", rules=rules)[1:] == ("seq", "tensor")
    assert spec_of((4, 8), "batch", "seq", rules=rules)[1] == "seq"
    assert spec_of((4, 6, 16), "batch", "seq", "embed", rules=rules, data=2, tensor=4)[1] == "seq", (
        "6 = 1 x 6, not 4 x n"
    )


def test_a_blocks_outputs_lie_by_that_rule():
    """A step of a Llama pins each layer's addition to the residual: the sequence is cut over
    `tensor`, and the embedding is whole."""
    cfg = LlamaConfig.tiny()
    tree = params.abstract(cfg.make().spec)
    batch = {"tokens": jax.ShapeDtypeStruct((8, 16), jnp.int32)}
    for rules, pinned in ((Rules(), False), (Rules(residual_seq=("seq", "tensor")), True)):
        with sharding.use(make_mesh(ParallelConfig(**MESH)), rules):
            program = str(jax.make_jaxpr(lambda p, b: cfg.make().apply(p, b).value)(tree, batch))
        found = "P(('stage', 'data', 'fsdp', 'expert'), ('seq', 'tensor'), None)" in program
        assert found == pinned


def test_looked_up_rows_lie_as_their_tokens_do():
    """The tokens are (batch, seq). A list of rows, such as positions, has no such layout."""
    table = {"table": jnp.ones((16, 4))}

    def program(ids):
        with sharding.use(make_mesh(ParallelConfig(data=4, seq=2)), Rules()):
            return str(jax.make_jaxpr(lambda ids: linear.embed(table, ids))(ids))

    pinned = "P(('stage', 'data', 'fsdp', 'expert'), 'seq', None)"
    assert pinned in program(jnp.zeros((8, 6), jnp.int32))
    assert pinned not in program(jnp.zeros(6, jnp.int32))


def test_attention_knows_where_its_arrays_lie():
    """Sequence and heads are cut; where one of them cannot be cut, it is whole."""

    def place(q, k, **axes):
        with sharding.use(make_mesh(ParallelConfig(**axes)), Rules()):
            return context.place(jnp.zeros(q), jnp.zeros(k))

    batch = ("stage", "data", "fsdp", "expert")
    both = {"data": 2, "seq": 2, "tensor": 2}
    assert place((4, 8, 4, 2), (4, 8, 2, 2), **both) == (batch, "seq", "tensor", "tensor")
    assert place((4, 8, 4, 2), (4, 8, 1, 2), **both) == (batch, "seq", "tensor", None), "one kv head serves all"
    assert place((4, 8, 4, 2), (4, 8, 3, 2), **both) == (batch, "seq", None, None), "three do not divide"
    assert place((4, 8, 4, 2), (4, 7, 2, 2), **both)[1] is None, "keys that are not cut alike"
    assert place((4, 8, 4, 2), (4, 8, 2, 2), data=4, tensor=2)[1] is None, "one device along seq"
    assert context.place(jnp.zeros((4, 8, 4, 2)), jnp.zeros((4, 8, 2, 2))) == (None, None, None, None)


def test_a_row_is_cut_where_its_axes_say_and_nowhere_else():
    """The number of dimensions does not decide: features (8, 6) are no sequence, and the texts of a
    pair are one."""
    mesh = make_mesh(ParallelConfig(data=4, seq=2))
    text, none, pair = ("seq",), (), (None, "seq")
    cases = [
        ((8, 6), text, (2, 3)),
        ((8, 6), none, (2, 6)),
        ((8, 2, 6), pair, (2, 2, 3)),
        ((8, 6, 4, 3), none, (2, 6, 4, 3)),
    ]
    for shape, axes, shard in cases:
        assert sharding.batch_sharding(mesh, Rules(), axes).shard_shape(shape) == shard
    with pytest.raises(ValueError, match="logical axis 'time' has no rule; known: batch, seq"):
        sharding.batch_sharding(mesh, Rules(), ("time",))


def test_a_format_of_products_ends_with_its_step():
    assert precision.matmul() == "compute"
    with precision.use(precision.Policy(matmul="int8")):
        with precision.use(precision.Policy()):
            assert precision.matmul() == "compute"
        assert precision.matmul() == "int8"
    assert precision.matmul() == "compute"


def test_slices_lie_on_the_first_axis_that_they_divide():
    """If devices do not name their slices, blocks of neighbouring devices are slices."""
    for axes, name in (({"data": 4, "fsdp": 2}, "data"), ({"data": 1, "stage": 2, "fsdp": 4}, "stage")):
        mesh = make_mesh(ParallelConfig(**axes, slices=2))
        at = sharding.AXES.index(name)
        first = mesh.devices.take(range(mesh.devices.shape[at] // 2), axis=at)
        assert sorted(d.id for d in first.flat) == [0, 1, 2, 3]


def test_a_double_claim_goes_to_the_first_dimension():
    rules = Rules(batch=("data", "fsdp"), embed=("fsdp", "tensor"))
    assert sharding.partition_spec(("batch", "embed"), rules, strict=False) == P(("data", "fsdp"), "tensor")
    with pytest.raises(ValueError, match="both lie on mesh axis 'fsdp'"):
        sharding.partition_spec(("batch", "embed"), rules)
