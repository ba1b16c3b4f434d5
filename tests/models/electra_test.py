"""ELECTRA: published sizes, the narrow table, and the head of replaced tokens."""

import dataclasses

import jax
import numpy as np
import pytest

from bigmodel_jax.core import params
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.models import ElectraConfig
from bigmodel_jax.models.electra import PRESETS
from bigmodel_jax.objectives import MaskedLanguageModel
from bigmodel_jax.pretrained import FAMILIES

TINY = ElectraConfig.tiny()
MASKED_LM, DISCRIMINATOR = FAMILIES["ElectraForMaskedLM"], FAMILIES["ElectraForPreTraining"]


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_the_way_out_and_in(name):
    family = DISCRIMINATOR if name.endswith("discriminator") else MASKED_LM
    assert family.from_hf(family.to_hf(PRESETS[name])) == PRESETS[name]


def test_a_table_as_wide_as_the_layers_has_no_projection():
    assert TINY.make().spec["embed_project"]["kernel"].shape == (16, 32)
    assert "embed_project" not in dataclasses.replace(TINY, table_dim=32).make().spec


def test_the_loss_of_replaced_tokens_is_the_binary_one():
    """A softmax over (0, x) equals the logistic loss of x, averaged over the weighted tokens."""
    model = dataclasses.replace(TINY, head="replaced_token", init_std=0.3).make()
    tree = params.init(model.spec, jax.random.key(0))
    replaced = np.arange(24).reshape(2, 12) % 3 == 0
    batch = {"tokens": np.arange(24).reshape(2, 12), "targets": replaced.astype(np.int32)}
    batch["weights"] = (np.arange(24).reshape(2, 12) < 20).astype(np.float32)
    loss = MaskedLanguageModel().loss(model, tree, batch, rng=None, train=True).mean
    zero, x = np.moveaxis(np.asarray(model.apply(tree, batch).value), -1, 0)
    assert not zero.any()
    nats = np.logaddexp(0.0, np.where(replaced, -x, x))
    assert float(loss.total / loss.count) == pytest.approx(float(nats[batch["weights"] > 0].mean()), rel=1e-5)


def test_a_head_of_another_model_is_refused():
    with pytest.raises(ValueError, match=r"model\.head = 'pretraining'"):
        dataclasses.replace(TINY, head="pretraining").validate(ParallelConfig())


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"hidden_act": "relu"}, "hidden_act = 'relu' is not supported"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type = 'relative_key' is not supported"),
    ],
)
def test_files_of_other_mathematics_are_refused(keys, said):
    with pytest.raises(ValueError, match=said):
        MASKED_LM.from_hf(MASKED_LM.to_hf(TINY) | keys)
