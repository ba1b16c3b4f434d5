"""DistilBERT: published sizes, and where it differs from BERT."""

import dataclasses

import jax
import numpy as np
import pytest

from bigmodel_jax.core import params
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.models import DistilBertConfig
from bigmodel_jax.models.distilbert import PRESETS
from bigmodel_jax.pretrained import FAMILIES

TINY = DistilBertConfig.tiny()
MASKED_LM = FAMILIES["DistilBertForMaskedLM"]
PUBLISHED = {"activation": "gelu", "tie_weights_": True, "qa_dropout": 0.1, "seq_classif_dropout": 0.2}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_the_way_out_and_in(name):
    assert MASKED_LM.from_hf(MASKED_LM.to_hf(PRESETS[name]) | PUBLISHED) == PRESETS[name]


def test_it_has_no_token_types_and_does_not_read_them():
    model = TINY.make()
    assert "token_types" not in model.spec
    tree = params.init(model.spec, jax.random.key(0))
    batch = {"tokens": jax.random.randint(jax.random.key(1), (2, 12), 2, 64)}
    types = np.ones((2, 12), np.int32)
    np.testing.assert_array_equal(
        model.apply(tree, batch).value, model.apply(tree, batch | {"token_types": types}).value
    )


def test_the_encoder_alone_has_no_pooler():
    model = dataclasses.replace(TINY, head="none").make()
    tree = params.init(model.spec, jax.random.key(0))
    assert set(model.apply(tree, {"tokens": np.ones((1, 4), np.int32)}).value) == {"hidden"}


def test_it_has_no_next_sentence():
    with pytest.raises(ValueError, match=r"model\.head = 'pretraining'"):
        dataclasses.replace(TINY, head="pretraining").validate(ParallelConfig())


@pytest.mark.parametrize("changes", [{"norm_eps": 1e-5}, {"num_token_types": 2}])
def test_fields_without_a_published_form_are_refused(changes):
    with pytest.raises(ValueError, match="a distilbert has num_token_types = 0 and norm_eps = 1e-12"):
        MASKED_LM.to_hf(dataclasses.replace(TINY, **changes))


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"activation": "relu"}, "activation = 'relu' is not supported"),
        ({"tie_weights_": False}, "tie_weights_ = False is not supported"),
    ],
)
def test_files_of_other_mathematics_are_refused(keys, said):
    with pytest.raises(ValueError, match=said):
        MASKED_LM.from_hf(MASKED_LM.to_hf(TINY) | keys)
