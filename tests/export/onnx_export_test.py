"""ONNX: what ONNX Runtime computes from an exported folder is what the model computes.

The converter's environment is made once in the cache, by uv and from the package index.
"""

import re

import pytest
from grids import few

import converted
from bigmodel_jax.core import params

pytestmark = pytest.mark.slow


MODELS = ["mlp", "cnn", "resnet", "vit", "bert_classifier", "rnn", "llama"]
MORE = ["rnn_classifier", "gpt2", "mixtral", "deepseek"]


def check(name, tmp_path, capsys):
    signature = converted.check(name, "onnx", tmp_path)
    said, out = capsys.readouterr().out, tmp_path / f"{name}_onnx"
    assert signature["opset"] == 23
    inputs = signature["programs"]["forward"]["inputs"]
    assert set(re.findall(r"[bt](?=[,\]])", " ".join(inputs.values()))) == ({"b"} if "image" in inputs else {"b", "t"})
    assert re.search(r"forward.*, opset 23, within \d\.\de[-+]\d\d of JAX on two sizes, by jax2onnx 0\.17\.1 in ", said)
    assert "jax2onnx 0.17.1" in (out / "README.md").read_text()
    return signature, out


# The slow suite converts models whose layers include those of the exhaustive ones.
@pytest.mark.few("vit", "llama")
@pytest.mark.parametrize("name", few(MODELS, "vit", "rnn", "llama"))
def test_use_py_gives_what_the_model_gives(name, tmp_path, capsys):
    signature, out = check(name, tmp_path, capsys)
    if name == "llama":  # the programs share their weights
        assert set(signature["programs"]) == {"forward", "prefill", "decode"}
        weights = 4 * params.count(converted.model_of(name).make().spec)
        assert weights <= (out / "weights.data").stat().st_size + (1 << 14) < 2 * weights


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", MORE)
def test_so_it_does_for_more_models(name, tmp_path, capsys):
    check(name, tmp_path, capsys)


def test_what_cannot_be_converted_is_one_line_that_names_operation_and_model(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        converted.export("t5", "onnx", tmp_path)
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert ended.value.code == 2
    line = r"export: --format onnx: the program forward of T5Config uses `distance = .*` \(t5\.py:\d+\), which jax2onnx"
    assert re.search(line, said)
    assert said.endswith("; --batch N --length N give it fixed sizes")
    assert not (tmp_path / "t5_onnx").exists()


def test_an_option_that_onnx_does_not_take_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit):
        converted.export("mlp", "onnx", tmp_path, "--dtype", "bfloat16")
    assert "--format onnx takes no such option" in capsys.readouterr().err
