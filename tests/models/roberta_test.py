"""RoBERTa: published sizes, and where it differs from BERT."""

import dataclasses

import jax
import numpy as np
import pytest

from bigmodel_jax.core import params
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.models import RobertaConfig
from bigmodel_jax.models.roberta import PRESETS

# With the masked-LM head, as transformers counts RobertaForMaskedLM; the paper says 125M and 355M.
PUBLISHED = {"roberta-base": 124_697_433, "roberta-large": 355_412_057}
TINY = RobertaConfig.tiny()


@pytest.mark.parametrize("name", PRESETS)
def test_published_counts(name):
    assert params.count(PRESETS[name].make().spec) == PUBLISHED[name]


def test_initial_distributions():
    """The distributions are BERT's: every matrix is drawn from normal(0.02), biases start at zero
    and norms at one."""
    cfg = RobertaConfig(vocab_size=1000, num_layers=2, embed_dim=128, num_heads=4, mlp_dim=256)
    for path, x in params.paths(params.init(cfg.make().spec, jax.random.key(0))).items():
        if path.endswith(("scale", "bias")):
            assert (x == path.endswith("scale")).all(), path
        else:
            assert float(x.std()) == pytest.approx(0.02, rel=5 / (2 * x.size) ** 0.5), path


def test_the_first_two_positions_are_the_paddings():
    model = TINY.make()
    tree = params.init(model.spec, jax.random.key(0))
    batch = {"tokens": jax.random.randint(jax.random.key(1), (2, 12), 2, 64)}
    assert tree["positions"]["table"].shape[0] == TINY.max_seq_len + 2
    other = tree | {"positions": {"table": tree["positions"]["table"].at[:2].add(1.0)}}
    np.testing.assert_array_equal(model.apply(tree, batch).value, model.apply(other, batch).value)


def test_it_has_no_next_sentence():
    with pytest.raises(ValueError, match=r"model\.head = 'pretraining'"):
        dataclasses.replace(TINY, head="pretraining").validate(ParallelConfig())
