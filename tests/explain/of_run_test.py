"""An input of a user through a run's own tokenizer and data; what cannot be explained is one line,
before weights are read."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import processors

from bigmodel_jax.config import Config
from bigmodel_jax.core import params
from bigmodel_jax.data import TextData, TokenizerConfig
from bigmodel_jax.data.images import pictures
from bigmodel_jax.data.images.image import ImageData
from bigmodel_jax.data.tabular import TabularData
from bigmodel_jax.data.tokenizers.tokenizers import train_wordpiece
from bigmodel_jax.explain.of_run import Asked, explain_run
from bigmodel_jax.explain.subject import Subject
from bigmodel_jax.models import MODELS, LinearConfig
from bigmodel_jax.objectives import Classification, NextToken, Regression
from bigmodel_jax.training import saved

LM = Config(
    model=dataclasses.replace(MODELS["llama"].tiny(), vocab_size=257),
    objective=NextToken(),
    data=TextData(tokenizer=TokenizerConfig(kind="bytes")),
)
PICTURES = Config(
    model=MODELS["mlp"].tiny(),
    objective=Classification(),
    data=ImageData(normalise="given", mean=(0.5,), spread=(0.25,)),
)
TABLE = Config(model=LinearConfig(), objective=Regression(), data=TabularData())
BLACK = np.full((8, 8, 1), -2, np.float32)  # of these mean and spread


@pytest.fixture
def initial(monkeypatch):
    """A run at step 7 whose weights are initial."""

    def load(config, run_dir, mesh, which, *, adapter):
        model = config.make_model()
        return params.init(model.spec, jax.random.key(0)), 7

    monkeypatch.setattr(saved, "load_weights", load)


@pytest.mark.slow
def test_a_text_gets_attributions_that_add_up_a_lens_maps_and_a_trace(initial, tmp_path, monkeypatch):
    compiled = []
    with monkeypatch.context() as patch:
        patch.setattr(Subject, "computed", lambda *args, own=Subject.computed: compiled.append(1) or own(*args))
        found = explain_run(LM, tmp_path, Asked(text="cat", against="dog"))
    assert len(compiled) == 1, "one program answers both texts"
    text, model = found.result, LM.make_model()
    assert (found.step, found.kind, text.pieces[1:]) == (7, "Llama", ("c", "a", "t"))
    assert text.integrated.error <= 0.01
    assert text.by_token.sum() == pytest.approx(text.integrated.difference, rel=0.01)
    assert text.by_token[0] == 0, "what begins every text is part of the baseline"
    tree = params.init(model.spec, jax.random.key(0))
    tokens = jnp.asarray([[LM.data.open_tokenizer().start, *(1 + ord(c) for c in "cat")]])
    logits = model.apply(tree, {"tokens": tokens}).value[0, -1]
    assert text.answer.target == int(logits.argmax())
    np.testing.assert_allclose(text.lens.target[-1], jax.nn.softmax(logits).max(), rtol=1e-5)
    assert text.maps.shape == (2, 4, 4, 4)
    assert text.patch.restored.shape == (2, 4)
    assert text.patch.restored[-1, -1] == pytest.approx(1, abs=1e-4), "the last token's last residual is the answer"
    np.testing.assert_allclose(text.patch.restored[-1, :-1], 0, atol=1e-4)


@pytest.mark.few("bert")
@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_text_classifier_is_explained_by_its_class(initial, tmp_path, family):
    tokenizer = train_wordpiece(["a good film and a bad film"] * 3, 60)
    cls, sep, mask = (tokenizer.control[name] for name in ("[CLS]", "[SEP]", "[MASK]"))
    tokenizer.model.post_processor = processors.BertProcessing(("[SEP]", sep), ("[CLS]", cls))
    tokenizer.save(tmp_path / "tokenizer.json")
    (tmp_path / "vocabulary.json").write_text(json.dumps({"labels": ["bad", "good"]}))
    model = dataclasses.replace(MODELS[family].tiny(), head="classification", num_classes=2, vocab_size=64)
    config = dataclasses.replace(LM, model=model, objective=Classification())
    found = explain_run(config, tmp_path, Asked(text="good film", target="good", against="bad film")).result
    assert found.pieces == ("[CLS]", "good", "film", "[SEP]")
    assert (found.answer.target, found.answer.name, found.baseline) == (1, "good", "[MASK]")
    np.testing.assert_array_equal(
        found.by_token[[0, -1]], 0, err_msg="what stands around every text is in the baseline"
    )
    model, tree = config.make_model(), params.init(config.make_model().spec, jax.random.key(0))
    rows = ([cls, *tokenizer.encode("good film"), sep], [cls, mask, mask, sep])
    values = [float(model.apply(tree, {"tokens": jnp.asarray([row])}).value[0, 1]) for row in rows]
    assert found.integrated.difference == pytest.approx(values[0] - values[1], rel=1e-3, abs=1e-6)
    assert found.integrated.error <= 0.01
    assert found.lens.columns is not None
    assert set(found.lens.columns) == {"bad", "good"}
    np.testing.assert_allclose(found.lens.shares.sum(-1), 1, atol=1e-6)
    assert found.maps.shape[-2:] == (4, 4)


@pytest.mark.slow
def test_a_picture_is_read_as_evaluation_reads_it(initial, tmp_path):
    octets = np.random.default_rng(0).integers(0, 256, (8, 8, 1), np.uint8)
    (tmp_path / "seven.png").write_bytes(pictures.encode(octets))
    found = explain_run(PICTURES, tmp_path, Asked(image=str(tmp_path / "seven.png"), target="3"))
    np.testing.assert_allclose(found.result.values, (octets / 255 - 0.5) / 0.25, atol=1e-6)
    np.testing.assert_allclose(found.shown, octets / 255, atol=1e-6)
    assert (found.result.answer.target, found.result.integrated.error <= 0.01) == (3, True)
    model = PICTURES.make_model()
    tree = params.init(model.spec, jax.random.key(0))
    values = [float(model.apply(tree, {"image": x[None]}).value[0, 3]) for x in (found.result.values, BLACK)]
    assert found.result.integrated.difference == pytest.approx(values[0] - values[1], rel=1e-3), "black is the baseline"


def test_a_row_of_a_table_has_an_attribution_for_each_column(initial, tmp_path, monkeypatch):
    TABLE.data.save_artifacts(tmp_path)
    weights = {"kernel": jnp.arange(10.0)[:, None], "bias": jnp.ones(1)}
    monkeypatch.setattr(saved, "load_weights", lambda *_, **__: (weights, 7))
    found = explain_run(TABLE, tmp_path, Asked(row=5))
    np.testing.assert_allclose(found.result.integrated.values[0], np.arange(10.0) * found.result.values, rtol=1e-4)
    scaling = json.loads((tmp_path / "scaling.json").read_text())
    assert found.names == tuple(scaling["features"]["names"])
    assert found.unit == scaling["target"]["scale"][0]
    age = scaling["features"]["mean"][0] + found.result.values[0] * scaling["features"]["scale"][0]
    assert found.shown[0] == pytest.approx(age, rel=1e-5)


def of(name: str) -> Config:
    return dataclasses.replace(LM, model=MODELS[name].tiny())


@pytest.mark.parametrize(
    ("config", "asked", "message"),
    [
        (LM, Asked(), "nothing is given; give one of --text, --image, --row"),
        (LM, Asked(text="a", row=1), "--text and --row is given; give one of"),
        (LM, Asked(text=" "), "--text = ' ': it is empty; give at least one word"),
        (LM, Asked(text="a", against=""), "--against = '': it is empty"),
        (LM, Asked(text="\ud800"), "is not UTF-8 text"),
        (LM, Asked(text="a" * 40), "--text has more than 32 tokens; give a shorter text"),
        (LM, Asked(text="cat", against="bird"), r"--text has 4 tokens \(.*c\|a\|t\) and --against 5 .*the same number"),
        (LM, Asked(text="cat", target="at"), r"--target = 'at' is 2 tokens \(a\|t\); give one"),
        (LM, Asked(image="x.png"), "--image is given, but LlamaConfig reads tokens; give --text"),
        (of("rnn"), Asked(text="a"), "RNNConfig has no taps: it is not given as one stack of layers"),
        (of("bert"), Asked(text="a"), "BertConfig answers --text with neither a next token nor a class"),
        (of("dit"), Asked(text="a"), "DiTConfig reads .*; give a model of one text, one picture or one row"),
        (PICTURES, Asked(text="a"), "--text is given, but MLPConfig reads image; give --image or --row"),
        (PICTURES, Asked(image="none.png"), "--image = 'none.png': no such file"),
        (PICTURES, Asked(image="notes.txt"), "--image = '.*notes.txt': .* is not a readable picture"),
        (PICTURES, Asked(image="x.png", against="b"), "--against needs --text"),
        (TABLE, Asked(row=88), "--row = 88; the validation split has the rows 0 .. 87"),
        (TABLE, Asked(row=-1), "--row = -1; the validation split has the rows 0 .. 87"),
    ],
)
def test_what_cannot_be_explained_is_one_line(config, asked, message, tmp_path):
    (tmp_path / "notes.txt").write_text("no picture")
    if asked.image == "notes.txt":
        asked = dataclasses.replace(asked, image=str(tmp_path / "notes.txt"))
    if config.model == MODELS["bert"].tiny():
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=257))
    with pytest.raises(ValueError, match=message) as error:
        explain_run(config, tmp_path, asked)
    assert "\n" not in str(error.value)


def test_a_class_that_is_not_there_says_which_are(tmp_path):
    (tmp_path / "vocabulary.json").write_text(json.dumps({"labels": ["cat", "dog"]}))
    (tmp_path / "x.png").write_bytes(pictures.encode(np.zeros((8, 8, 1), np.uint8)))
    with pytest.raises(ValueError, match=r"--target = 'cut' is no class; allowed: cat, dog.*'cat'"):
        explain_run(PICTURES, tmp_path, Asked(image=str(tmp_path / "x.png"), target="cut"))
