"""A tensor that the reference reads as a second copy of another must be one: a different head or
bias is never dropped."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bigmodel_jax.pretrained import folder
from bigmodel_jax.pretrained.family import spec_by_path

PARITY = Path(__file__).parents[1] / "parity" / "fixtures"
# Fixture, the copy, what it is a copy of; as transformers' _tied_weights_keys say.
LM_HEAD = ("lm_head.weight", "model.embed_tokens.weight")
BERT_HEAD = ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight")
BERT_BIAS = ("cls.predictions.decoder.bias", "cls.predictions.bias")
SHARED = "model.shared.weight"
COPIES = [
    ("llama31", *LM_HEAD),
    ("qwen3", *LM_HEAD),
    ("gemma", *LM_HEAD),
    ("gemma3", *LM_HEAD),
    ("gpt2", "lm_head.weight", "transformer.wte.weight"),
    ("bert", *BERT_HEAD),
    ("bert", *BERT_BIAS),
    ("bert-pretraining", *BERT_BIAS),
    ("roberta", "lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight"),
    ("roberta", "lm_head.decoder.bias", "lm_head.bias"),
    ("deberta", BERT_HEAD[0], "deberta.embeddings.word_embeddings.weight"),
    ("deberta", *BERT_BIAS),
    ("xlnet", "lm_loss.weight", "transformer.word_embedding.weight"),
    ("t5", "lm_head.weight", "shared.weight"),
    ("t5_v11", "encoder.embed_tokens.weight", "shared.weight"),
    ("t5", "decoder.embed_tokens.weight", "shared.weight"),
    ("opus_mt", "lm_head.weight", SHARED),
    ("opus_mt", "model.decoder.embed_tokens.weight", SHARED),
    ("bart", "model.encoder.embed_tokens.weight", SHARED),
]


def load(path: Path):
    family, cfg = folder.read_config(path)
    where = dict.fromkeys(spec_by_path(cfg), jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    return folder.load_params(family, cfg, folder.open_weights(path), where, "float32")


def with_tensor(name: str, tmp_path: Path, tensor: str, make) -> Path:
    path = tmp_path / name
    shutil.copytree(PARITY / name, path)
    tensors = load_file(path / "model.safetensors")
    save_file(tensors | {tensor: make(tensors)}, path / "model.safetensors")
    return path


@pytest.mark.parametrize(("name", "copy", "origin"), COPIES)
def test_a_copy_that_differs_is_refused_and_an_equal_one_passed_over(name, copy, origin, tmp_path):
    load(with_tensor(name, tmp_path / "equal", copy, lambda tensors: tensors[origin]))
    with pytest.raises(
        ValueError, match=f"weights: {copy} differs from {origin}, and the model has one parameter for both"
    ):
        load(with_tensor(name, tmp_path / "other", copy, lambda tensors: tensors[origin] + 0.01))


def test_the_way_out_is_named_where_there_is_one(tmp_path):
    path = with_tensor("llama31", tmp_path, LM_HEAD[0], lambda tensors: 2 * tensors[LM_HEAD[1]])
    with pytest.raises(ValueError, match='with "tie_word_embeddings": false in config.json both are read'):
        load(path)
    config = (path / "config.json").read_text()
    (path / "config.json").write_text(config.replace('"tie_word_embeddings": true', '"tie_word_embeddings": false'))
    flat = load(path)
    np.testing.assert_array_equal(flat["head/table"], 2 * np.asarray(flat["embed/table"]))


def test_no_way_out_is_named_where_there_is_none(tmp_path):
    path = with_tensor("gemma", tmp_path, LM_HEAD[0], lambda tensors: 2 * tensors[LM_HEAD[1]])
    with pytest.raises(ValueError, match="the model has one parameter for both$"):
        load(path)


def test_another_head_that_the_architecture_does_not_have_is_passed_over(tmp_path):
    """transformers passes over a classifier's unexpected tensors in the same way."""
    make = lambda tensors: tensors[BERT_HEAD[1]] + 1  # noqa: E731
    load(with_tensor("bert-classification", tmp_path, BERT_HEAD[0], make))


@pytest.mark.parametrize(
    ("name", "tensor", "made"),
    [
        ("dit", "pos_embed", lambda cfg: np.zeros((1, 16, 32))),
        ("opus_mt", "model.encoder.embed_positions.weight", None),
    ],
)
def test_positions_that_are_not_the_computed_ones_are_refused(name, tensor, made, tmp_path):
    cfg = folder.read_config(PARITY / name)[1]
    other = (made or (lambda cfg: np.zeros((cfg.max_seq_len, cfg.embed_dim))))(cfg)
    with pytest.raises(ValueError, match=f"weights: {tensor} differs from the positions that the model computes"):
        load(with_tensor(name, tmp_path, tensor, lambda _: other.astype(np.float32)))
