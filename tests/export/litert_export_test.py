"""LiteRT: what its interpreter computes from an exported folder is what the model computes, without
TensorFlow.

The converter's environment is made once in the cache, by uv and from the package index.
"""

import re

import pytest

import converted
from bigmodel_jax.export import converter_env, litert
from bigmodel_jax.export.subject import Subject

MODELS = ["mlp", "cnn", "resnet", "vit", "bert_classifier", "llama"]
# What stands in the way of the others: a loop over time, a sort of tokens by experts.
REFUSED = {"rnn_classifier": ("RNNClassifierConfig", "tfl.while"), "mixtral": ("MixtralConfig", "STABLEHLO_SORT")}


@pytest.mark.few("resnet", "llama")
@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_use_py_gives_what_the_model_gives(name, tmp_path):
    converted.check(name, "litert", tmp_path)


@pytest.mark.few("rnn_classifier")
@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_converted_is_one_line_that_names_operation_and_model(name, tmp_path, capsys):
    kind, operation = REFUSED[name]
    with pytest.raises(SystemExit) as ended:
        converted.export(name, "litert", tmp_path)
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert ended.value.code == 2
    line = rf"export: --format litert: the program forward of {kind} uses [^;]*{operation}, which litert-converter"
    assert re.search(line, said)
    assert not (tmp_path / f"{name}_litert").exists()


@pytest.mark.slow
def test_the_environment_has_neither_tensorflow_nor_torch_nor_jax():
    site = next((converter_env.ensure("litert") / "lib").glob("python3*/site-packages"))
    assert not [path.name for path in site.iterdir() if path.name in ("tensorflow", "torch", "jax")]


def test_weights_that_no_file_holds_are_refused_before_anything_is_converted():
    class Wide:
        nbytes = 3 * 10**9

    subject = Subject(converted.model_of("llama"), None, {"table": Wide()}, 0)
    with pytest.raises(ValueError, match=r"^export: --format litert: the weights of LlamaConfig are 3\.0 GB.*$"):
        litert.check_size(subject)


def test_layers_lie_one_after_another_in_towers_as_well():
    config = litert.unrolled_config(converted.model_of("clip"))
    assert config.vision.compute.unroll
    assert config.text.compute.unroll
