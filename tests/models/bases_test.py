"""Which parameters of a model a constant base stores how."""

import jax
import pytest

from bigmodel_jax.core import params, storage
from bigmodel_jax.core.storage import Blocks, Dense, Half
from bigmodel_jax.models import LlamaConfig
from bigmodel_jax.models.bases import BaseConfig
from bigmodel_jax.models.llama import PRESETS
from bigmodel_jax.models.mixtral import MixtralConfig


def frozen(base: BaseConfig, config=LlamaConfig.tiny()) -> dict[str, params.Param]:
    return params.paths(base.freeze(config.make().spec))


def test_matrices_of_the_stack_tables_and_the_rest_are_stored_apart():
    found = frozen(BaseConfig("nf4", 32, double=True, tables="bfloat16"))
    assert {p.kind for p in found.values()} == {"constant"}
    assert {path for path, p in found.items() if p.storage == Blocks("nf4", 32, True)} == {
        *(f"layers/attn/{name}" for name in "qkvo"),
        *(f"layers/mlp/{name}" for name in ("gate", "up", "down")),
    }
    assert {path for path, p in found.items() if p.dtype == "bfloat16"} == {"embed/table", "head/table"}
    assert {p.storage for path, p in frozen(BaseConfig("bfloat16")).items() if "attn/" in path} == {Half()}
    assert all(p.storage == Dense() and p.dtype == "float32" for p in frozen(BaseConfig()).values())


def test_routers_stay_as_they_are():
    found = frozen(BaseConfig("int8", 8), MixtralConfig.tiny())
    assert found["layers/router/kernel"].storage == Dense()
    assert found["layers/experts/down"].storage == Blocks("int8", 8)


def test_a_matrix_that_cannot_be_stored_so_is_named():
    odd = LlamaConfig(vocab_size=8, num_layers=1, embed_dim=7, num_heads=1, num_kv_heads=1, head_dim=4, mlp_dim=8)
    with pytest.raises(ValueError, match=r"adapters: layers/attn/o: storage: nf4x64 of shape \(1, 1, 4, 7\); its last"):
        frozen(BaseConfig("nf4"), odd)


def bytes_of(spec: params.Tree) -> dict[str, int]:
    return {
        path: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(node))
        for path, node in params.paths(params.abstract(spec)).items()
    }


def test_smollm2_in_doubled_normal_floats_is_a_fifth_of_float32():
    """The quantised matrices take at most 0.131 of their float32 bytes. The whole model, with its
    table in bfloat16, takes at most 0.21."""
    spec = PRESETS["smollm2-135m"].make().spec
    full, small = bytes_of(spec), bytes_of(BaseConfig("nf4", double=True, tables="bfloat16").freeze(spec))
    nodes = params.paths(params.abstract(BaseConfig("nf4", double=True).freeze(spec)))
    packed = [path for path, node in nodes.items() if storage.stored(node)]
    assert sum(small[path] for path in packed) <= 0.131 * sum(full[path] for path in packed)
    assert sum(small.values()) <= 0.21 * sum(full.values())
