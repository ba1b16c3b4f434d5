"""What only says how to train or compute never decides whether weights have a published form; names
of classes are kept."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from bigmodel_jax import config_file
from bigmodel_jax.models import compute
from bigmodel_jax.pretrained import folder
from bigmodel_jax.pretrained.transfer import (
    COMPUTING,
    NOT_IN_FILES,
    TRAINING,
    export_weights,
    family_of,
    import_weights,
)

PARITY = Path(__file__).parents[1] / "parity" / "fixtures"
SOURCES = sorted(path.parent.name for path in PARITY.glob("*/config.json"))
OTHER = {"image_shape": (64, 48, 3)}


def changed(value, default, name: str):
    """Another value than the field has."""
    if isinstance(value, compute.StackCompute):
        return dataclasses.replace(value, remat="full", unroll=True)
    if name in OTHER:
        return OTHER[name]
    return not value if isinstance(default, bool) else value + 1 if isinstance(default, int) else value + 0.125


def variants(config):
    """(field, the config with another value of it) for all that says how to train or compute, in
    towers as well."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in TRAINING | COMPUTING or field.name in NOT_IN_FILES.get(type(config), ()):
            yield field.name, dataclasses.replace(config, **{field.name: changed(value, field.default, field.name)})
        elif dataclasses.is_dataclass(value):
            for name, inside in variants(value):
                yield f"{field.name}.{name}", dataclasses.replace(config, **{field.name: inside})


@pytest.mark.parametrize("name", SOURCES)
def test_how_it_is_trained_and_computed_does_not_decide(name):
    family, config = folder.read_config(PARITY / name)
    for field, other in variants(config):
        assert other != config, field
        assert family_of(other).architecture == family.architecture, field


@pytest.mark.parametrize("name", ["gemma2", "gemma3"])
@pytest.mark.parametrize("changes", [{"window": 0}, {"global_every": 1}, {"window": 0, "global_every": 1}])
def test_a_gemma_of_global_layers_alone_is_exported(name, changes):
    family, config = folder.read_config(PARITY / name)
    other = dataclasses.replace(config, **changes)
    assert family_of(other).architecture == family.architecture
    written = family.to_hf(other)
    assert set(written["layer_types"]) == {"full_attention"}
    assert written["sliding_window"] == (other.window or 4096)


def test_what_a_model_is_does_decide():
    config = folder.read_config(PARITY / "llama")[1]
    with pytest.raises(ValueError, match="no Hugging Face form|a Llama has no window"):
        family_of(dataclasses.replace(config, qk_norm=True))


@pytest.mark.parametrize("name", ["vit", "opus_mt"])
@pytest.mark.parametrize("activation", ["mish", "elu"])
def test_an_activation_that_the_published_form_does_not_know_is_refused(name, activation):
    config = folder.read_config(PARITY / name)[1]
    with pytest.raises(ValueError, match=rf"(hidden_act|activation_function) = '{activation}' is not supported; supp"):
        family_of(dataclasses.replace(config, activation=activation))


@pytest.fixture
def classifier(tmp_path):
    """A BERT of five classes as transformers writes it with its own default dropout."""
    path = tmp_path / "source"
    shutil.copytree(PARITY / "bert-classification", path)
    hf = json.loads((path / "config.json").read_text()) | {"hidden_dropout_prob": 0.1, "problem_type": "regression"}
    hf |= {"id2label": {str(n): f"grade {n}" for n in range(5)}, "label2id": {f"grade {n}": n for n in range(5)}}
    (path / "config.json").write_text(json.dumps(hf))
    return path, hf


@pytest.mark.slow
def test_a_classifier_with_dropout_goes_out_again_with_its_names(classifier, tmp_path):
    source, hf = classifier
    import_weights(source, tmp_path / "run")
    export_weights(config_file.load(tmp_path / "run"), tmp_path / "run", tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    for key in ("id2label", "label2id", "problem_type", "hidden_dropout_prob"):
        assert written[key] == hf[key], key
    assert folder.read_config(tmp_path / "out") == folder.read_config(source)


def test_a_source_without_names_leaves_none_behind(tmp_path):
    import_weights(PARITY / "llama", tmp_path / "run")
    assert not (tmp_path / "run" / "labels.json").exists()
    export_weights(config_file.load(tmp_path / "run"), tmp_path / "run", tmp_path / "out")
    assert "id2label" not in json.loads((tmp_path / "out" / "config.json").read_text())
