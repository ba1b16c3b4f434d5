"""ONNX: what ONNX Runtime computes from an exported folder is what the model computes.

The converter's environment is made once in the cache, by uv and from the package index.
"""

import json
import re

import pytest

import converted

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet", "vit", "bert_classifier", "rnn_classifier", "rnn", "llama"])
def test_use_py_gives_what_the_model_gives(name, tmp_path):
    signature = converted.check(name, "onnx", tmp_path)
    assert signature["opset"] == 23
    sizes = set(re.findall(r"[bt](?=[,\]])", " ".join(signature["programs"]["forward"]["inputs"].values())))
    assert sizes == ({"b"} if "image" in signature["programs"]["forward"]["inputs"] else {"b", "t"})


def test_the_line_and_the_card_say_by_what_and_where(tmp_path, capsys):
    _, out = converted.export("mixtral", "onnx", tmp_path)
    said = capsys.readouterr().out
    assert re.search(
        r"forward, prefill, decode, opset 23, within \d\.\de-\d\d of JAX .* by jax2onnx 0\.17\.1 in ", said
    )
    assert "jax2onnx 0.17.1" in (out / "README.md").read_text()
    # The programs share their weights: beside them a file is small.
    weights = (out / "weights.data").stat().st_size
    assert all(path.stat().st_size < weights for path in out.glob("*.onnx"))
    assert set(json.loads((out / "signature.json").read_text())["programs"]) == {"forward", "prefill", "decode"}


def test_what_cannot_be_converted_is_one_line_that_names_operation_and_model(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        converted.export("deepseek", "onnx", tmp_path, "--batch", "2", "--length", "8")
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert ended.value.code == 2
    assert re.search(r"export: --format onnx: the program forward of DeepseekConfig uses OneHot, which jax2onnx", said)
    assert not (tmp_path / "deepseek_onnx").exists()


def test_an_option_that_onnx_does_not_take_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit):
        converted.export("mlp", "onnx", tmp_path, "--dtype", "bfloat16")
    assert "--format onnx takes no such option" in capsys.readouterr().err
