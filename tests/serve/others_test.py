"""What is no continued text: embeddings, classes, pictures, and the log probabilities of a prompt, as lm-eval asks for."""

import base64
import dataclasses
import io
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from bigmodel_jax.config import Config
from bigmodel_jax.core import params
from bigmodel_jax.data import ImageData, TextData, TokenizerConfig
from bigmodel_jax.models import BertConfig, DiTConfig, MLPConfig
from bigmodel_jax.objectives import Classification, Diffusion
from bigmodel_jax.serve.served import Served
from servers import OPTIONS, running, tiny_served


def served_of(config: Config, tmp_path: Path, tokenizer=None) -> Served:
    model = config.make_model()
    weights = {"tiny": params.init(model.spec, jax.random.key(0))}
    return Served(config, tmp_path, model, weights, tokenizer, "", 64, 0, 0)


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


def test_the_log_probabilities_of_a_prompt(server):
    served, ids = server.served, server.served.prompt("prompt")
    asked = {"model": "tiny", "prompt": [ids], "max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": True}
    said = server.client().completions.create(**asked).choices[0]
    logits = served.model.apply(served.weights["tiny"], {"tokens": jnp.asarray([ids])}).value[0]
    expected = np.asarray(jax.nn.log_softmax(logits))[np.arange(len(ids) - 1), ids[1:]]
    np.testing.assert_allclose(said.logprobs.token_logprobs[1 : len(ids)], expected, atol=1e-3)
    assert len(said.logprobs.tokens) == len(ids) + 1
    assert said.text.startswith("prompt")


@pytest.mark.slow
def test_what_lm_evals_model_of_apis_sends_is_answered_as_it_reads_it(server):
    """Its requests and its reading of answers; what lies between them, its retries, needs packages beside lm-eval."""
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    model = LocalCompletionsAPI.__new__(LocalCompletionsAPI)
    model.model, model._max_gen_toks = "tiny", 8
    asked = model._create_payload(["Hello", "Bye"], generate=True, gen_kwargs={"until": ["\n\n"], "temperature": 0})
    expected = server.client().completions.create(model="tiny", prompt=["Hello", "Bye"], max_tokens=8, temperature=0)
    said = server.post("/v1/completions", **asked).json()
    assert model.parse_generations(said) == [choice.text for choice in expected.choices]
    rows = [server.served.prompt(text) for text in ("prompt", "another one")]
    said = server.post("/v1/completions", **model._create_payload(rows)).json()
    found = model.parse_logprobs(said, tokens=rows, ctxlens=[3, 4])
    for ids, length, (log_prob, greedy) in zip(rows, (3, 4), found, strict=True):
        logits = server.served.model.apply(server.served.weights["tiny"], {"tokens": jnp.asarray([ids])}).value[0]
        log_probs = np.asarray(jax.nn.log_softmax(logits))
        places = np.arange(length - 1, len(ids) - 1)
        assert log_prob == pytest.approx(log_probs[places, ids[length:]].sum(), abs=1e-2)
        assert greedy == (log_probs[places].argmax(-1).tolist() == ids[length:])


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
    ((reads, shape),) = served.config.model.inputs().items()
    with running(served, OPTIONS) as server:
        if reads == "image":
            found = server.post("/classify", model="tiny", image=f"data:image/png;base64,{picture(shape[0])}")
            assert found.json()["data"][0]["class"] in range(10)
        for wrong in ("%%%", base64.b64encode(b"no picture").decode()):
            said = server.post("/classify", model="tiny", image=wrong)
            assert said.status_code == 400
            assert "\n" not in said.json()["error"]["message"]


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
def test_two_names_over_one_base():
    with running(tiny_served(names=("tiny", "other"))) as server:
        texts = [
            server.client().completions.create(model=name, prompt="a", temperature=0, max_tokens=8).choices[0].text
            for name in ("tiny", "other")
        ]
        assert texts[0] == texts[1]
