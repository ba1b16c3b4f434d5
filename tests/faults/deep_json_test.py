"""Small files of JSON that hold 100,000 brackets, or no table: one line that names the file, or
they are left out."""

import pytest

from bigmodel_jax.checkpoint import manifest
from bigmodel_jax.data import cache
from bigmodel_jax.data.images import image_text
from bigmodel_jax.data.tokenizers import special_tokens
from bigmodel_jax.pretrained import transfer
from bigmodel_jax.report import writers
from bigmodel_jax.training import holder

DEEP = "[" * 100_000


def test_ids_of_special_tokens(tmp_path):
    (tmp_path / "config.json").write_text(DEEP)
    with pytest.raises(ValueError, match=r"config\.json: not JSON"):
        special_tokens.read(tmp_path)


@pytest.mark.parametrize("text", [DEEP, "5", "{", "[]"])
def test_a_tokenizer_config_with_a_chat_template(tmp_path, text):
    (tmp_path / "tokenizer_config.json").write_text(text)
    with pytest.raises(ValueError, match=r"tokenizer_config\.json: "):
        transfer._chat_template(tmp_path)


def test_templates_by_name_that_are_none(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": [5, null, {"name": "default"}]}')
    assert transfer._chat_template(tmp_path) == ""


def test_a_caption_a_seal_a_holder_and_the_description_of_a_save(tmp_path):
    assert image_text._json_row(DEEP.encode(), ("image", "text")) == (None, "JSON nested too deeply")
    (tmp_path / cache.SEAL).write_text(DEEP)
    assert cache._damage(tmp_path) == f"{cache.SEAL} is not JSON"
    assert holder._read(tmp_path / cache.SEAL) == {}
    with pytest.raises(manifest.Damaged, match="is not JSON"):
        manifest._read_json(tmp_path, cache.SEAL)


@pytest.mark.parametrize("step", [10**30, -5, 0.5, '"x"', "null"])
def test_a_record_of_no_step(tmp_path, step):
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": {step}, "loss": 1}}\n{{"step": 1, "loss": 1}}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl:1: not a record"):
        writers.read_metrics(tmp_path)
