"""What is no continued text: embeddings, classes, pictures, and the log probabilities of a prompt,
as lm-eval asks for."""

import base64
import dataclasses
import io
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from bigmodel_jax.config import Config, SampleConfig
from bigmodel_jax.core import params
from bigmodel_jax.data import ImageData, ImageTextData, TextData, TokenizerConfig
from bigmodel_jax.data.tabular import TabularData
from bigmodel_jax.inference.generate import generate
from bigmodel_jax.models import MODELS, BertConfig, DiTConfig, LinearConfig, MLPConfig, TextToImageConfig
from bigmodel_jax.objectives import Classification, Diffusion, NextToken, Objective
from bigmodel_jax.serve import others, pictures
from bigmodel_jax.serve.refused import Refused
from bigmodel_jax.serve.served import Served, open_served
from servers import OPTIONS, running, tiny_served


def served_of(config: Config, tmp_path: Path, tokenizer=None) -> Served:
    model = config.make_model()
    weights = {"tiny": params.init(model.spec, jax.random.key(0))}
    return Served(config, tmp_path, model, weights, tokenizer, "", 64, 0, 0)


@pytest.mark.slow
def test_embeddings_are_the_mean_of_the_last_states(server):
    client, served = server.client(), server.served
    found = client.embeddings.create(model="tiny", input=["one", "another text"])
    vectors = np.array([row.embedding for row in found.data])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    for text, vector in zip(("one", "another text"), vectors, strict=True):
        ids = jnp.asarray([served.prompt(text)])
        states = served.model.apply(served.weights["tiny"], {"tokens": ids}).head.x[0]
        mean = np.asarray(states, np.float32).mean(0)
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-4)
    plain = client.embeddings.create(model="tiny", input="one", encoding_format="float")
    np.testing.assert_allclose(plain.data[0].embedding, vectors[0], atol=1e-6)
    wrong = server.post("/v1/embeddings", model="tiny", input="")
    assert wrong.status_code == 400
    wrong = server.post("/classify", model="tiny", input="a")
    assert "no classifier" in wrong.json()["error"]["message"]


@pytest.mark.slow
def test_the_log_probabilities_of_a_prompt(server):
    served, ids = server.served, server.served.prompt("prompt")
    asked = {"model": "tiny", "prompt": [ids], "max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": True}
    said = server.client().completions.create(**asked).choices[0]
    logits = served.model.apply(served.weights["tiny"], {"tokens": jnp.asarray([ids])}).value[0]
    expected = np.asarray(jax.nn.log_softmax(logits))[np.arange(len(ids) - 1), ids[1:]]
    np.testing.assert_allclose(said.logprobs.token_logprobs[1 : len(ids)], expected, atol=1e-3)
    assert len(said.logprobs.tokens) == len(ids) + 1
    assert said.text.startswith("prompt")


@pytest.mark.parametrize(("name", "embeds"), [("bert", True), ("t5", False), ("clip", False), ("llama", True)])
def test_a_model_of_texts_alone_has_embeddings(name, embeds, tmp_path):
    data = TextData(tokenizer=TokenizerConfig(kind="bytes"), seq_len=16)
    config = Config(MODELS[name].tiny(), Objective(), data)
    served = Served(config, tmp_path, config.make_model(), {"tiny": {}}, data.open_tokenizer(), "", 64, 0, 0)
    assert served.embeds == embeds


@pytest.mark.parametrize(("name", "said"), [("whisper", "`launch.py transcribe`"), ("paligemma", "--image")])
def test_a_model_that_reads_no_text_alone_is_not_served(name, said, tmp_path):
    config = Config(MODELS[name].tiny(), NextToken(), TextData())
    with pytest.raises(ValueError, match=f"^serve: [^\n]*{said}[^\n]*$"):
        open_served(config, tmp_path, OPTIONS)


@pytest.mark.slow
def test_texts_are_classified(tmp_path):
    cfg = dataclasses.replace(BertConfig.tiny(), head="classification", num_classes=3, vocab_size=257)
    data = TextData(tokenizer=TokenizerConfig(kind="bytes"), seq_len=16)
    served = served_of(Config(cfg, Classification(), data), tmp_path, data.open_tokenizer())
    (tmp_path / "vocabulary.json").write_text('{"labels": ["bad", "so", "good"]}')
    with running(served, OPTIONS) as server:
        found = server.post("/classify", model="tiny", input=["a", "b b b"]).json()
        assert found["labels"] == ["bad", "so", "good"]
        for row in found["data"]:
            assert sum(row["probs"]) == pytest.approx(1, abs=1e-5)
            assert row["label"] == found["labels"][int(np.argmax(row["probs"]))]
        wrong = server.post("/v1/completions", model="tiny", prompt="a")
        assert "tiny writes no text" in wrong.json()["error"]["message"]


def picture(size: int) -> str:
    file = io.BytesIO()
    Image.fromarray(np.arange(size * size, dtype=np.uint8).reshape(size, size)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


@pytest.mark.slow
def test_pictures_are_classified(tmp_path):
    cfg = dataclasses.replace(MLPConfig.tiny(), num_classes=10)
    config = Config(cfg, Classification(), ImageData())
    served = served_of(config, tmp_path)
    with running(served, OPTIONS) as server:
        said = server.post("/classify", model="tiny", image=f"data:image/png;base64,{picture(8)}").json()["data"][0]
        pixels = np.arange(64, dtype=np.float32).reshape(1, 8, 8, 1) / 255
        logits = served.model.apply(served.weights["tiny"], {"image": pixels}).value[0]
        np.testing.assert_allclose(said["probs"], jax.nn.softmax(logits), atol=1e-5)
        for wrong in ("%%%", base64.b64encode(b"no picture").decode()):
            said = server.post("/classify", model="tiny", image=wrong)
            assert said.status_code == 400
            assert "\n" not in said.json()["error"]["message"]


def test_small_files_of_large_pictures_are_refused_before_any_is_decoded():
    file = io.BytesIO()
    Image.new("1", (7000, 7000)).save(file, "PNG")
    bomb = base64.b64encode(file.getvalue()).decode()
    assert len(bomb) < 20_000
    with pytest.raises(Refused, match=r"98,000,000 pixels; all images may have 89,478,485 together"):
        pictures.read(None, [bomb, bomb], (8, 8, 1))


@pytest.mark.slow
def test_rows_of_numbers_are_classified_as_they_were_scaled_in_training(tmp_path):
    (tmp_path / "scaling.json").write_text('{"features": {"mean": [1, 2, 3], "scale": [1, 2, 4]}}')
    cfg = LinearConfig(feature_shape=(3,), num_outputs=2, init="normal", init_std=1.0)
    served = served_of(Config(cfg, Classification(), TabularData()), tmp_path)
    rows = [[1.0, 4.0, 7.0], [0.0, 0.0, 0.0]]
    with running(served, OPTIONS) as server:
        found = server.post("/classify", model="tiny", input=rows).json()["data"]
        scaled = (np.float32(rows) - [1, 2, 3]) / [1, 2, 4]
        logits = served.model.apply(served.weights["tiny"], {"features": jnp.asarray(scaled, jnp.float32)}).value
        np.testing.assert_allclose([row["probs"] for row in found], jax.nn.softmax(logits), atol=1e-5)
        wrong = server.post("/classify", model="tiny", input=[[1.0, 2.0]]).json()["error"]["message"]
        assert wrong == "input has rows of [2] numbers; the model reads 3"
        for fields, said in (
            ({"input": [[1e39, 0, 0]]}, "input has a number that float32 does not hold"),
            ({"input": rows, "image": "x"}, "image is given, which tiny does not read; it reads features"),
        ):
            wrong = server.post("/classify", model="tiny", **fields)
            assert (wrong.status_code, wrong.json()["error"]["message"]) == (400, said)


def test_an_output_that_is_not_finite_is_refused(tmp_path):
    config = Config(LinearConfig(feature_shape=(3,), num_outputs=2), Classification(), TabularData())
    served = served_of(config, tmp_path)
    served.weights["tiny"] = jax.tree.map(lambda x: x + np.nan, served.weights["tiny"])
    with pytest.raises(Refused, match="the model's output for it is not finite"):
        list(others.classes(served, others.Class(model="tiny", input=((1.0, 2.0, 3.0),))))


@pytest.mark.slow
def test_pictures_are_drawn(tmp_path):
    config = Config(DiTConfig.tiny(), Diffusion(), ImageData())
    with running(served_of(config, tmp_path), OPTIONS) as server:
        asked = {"model": "tiny", "prompt": "1", "n": 2, "steps": 4, "seed": 3}
        first, again = (server.post("/images", **asked).json()["data"] for _ in range(2))
        assert first == again
        image = Image.open(io.BytesIO(base64.b64decode(first[0]["b64_json"])))
        assert image.size == config.model.image_shape[:2]
        wrong = server.post("/images", **asked | {"prompt": "a cat"})
        assert "prompt is no class; allowed: 0 .. " in wrong.json()["error"]["message"]


@pytest.mark.slow
def test_a_text_is_drawn(tmp_path):
    tiny = TextToImageConfig.tiny()
    cfg = dataclasses.replace(tiny, text=dataclasses.replace(tiny.text, vocab_size=257))
    config = Config(cfg, Diffusion(), ImageTextData(tokenizer=TokenizerConfig(kind="bytes")))
    served = served_of(config, tmp_path, config.data.open_tokenizer())
    with running(served, OPTIONS) as server:
        asked = {"model": "tiny", "n": 1, "steps": 2, "seed": 3}
        cat, again, dog = (
            server.post("/images", prompt=text, **asked).json()["data"][0]["b64_json"] for text in ("cat", "cat", "dog")
        )
        assert cat == again != dog
        assert "prompt is empty" in server.post("/images", prompt="", **asked).json()["error"]["message"]


def test_a_prompt_of_a_picture_is_not_truncated(tmp_path):
    data = ImageTextData(tokenizer=TokenizerConfig(kind="bytes"), seq_len=8)
    config = Config(TextToImageConfig.tiny(), Diffusion(), data)
    served = Served(config, tmp_path, None, {"tiny": {}}, data.open_tokenizer(), "", 64, 0, 0)
    others.images(served, others.Picture("a" * 7, "tiny"))
    with pytest.raises(Refused, match="^prompt has 8 tokens; it must have at most 7$"):
        others.images(served, others.Picture("a" * 8, "tiny"))


@pytest.mark.slow
def test_each_name_has_weights_of_its_own():
    served = tiny_served(names=("tiny", "other"))
    other = params.init(served.model.spec, jax.random.key(1))
    served = dataclasses.replace(served, weights={**served.weights, "other": other})
    with running(served) as server:
        asked = {"prompt": "a", "temperature": 0, "max_tokens": 8}
        for name, weights in served.weights.items():
            said = server.client().completions.create(model=name, **asked).choices[0].text
            sample = SampleConfig(max_tokens=8, temperature=0)
            (ids,) = generate(served.model, weights, [served.prompt("a")], sample, stop=served.tokenizer.stops)
            assert said == served.tokenizer.decode(ids)
