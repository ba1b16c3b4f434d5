"""OpenAI's own client against the server: what it sends is understood, and what it reads is what
`generate` writes."""

import dataclasses

import numpy as np
import pytest

from bigmodel_jax.config import SampleConfig
from bigmodel_jax.inference.engine import Engine
from bigmodel_jax.inference.generate import generate
from bigmodel_jax.inference.request import Request
from bigmodel_jax.inference.sampling import Settings
from bigmodel_jax.serve.served import Served, open_engines
from servers import OPTIONS, tiny_served

GREEDY = {"model": "tiny", "temperature": 0, "max_tokens": 24}


def written(server, prompt: list[int], *, max_tokens: int = 24, temperature: float = 0, seed: int = 0, **how) -> str:
    served = server.served
    sample = SampleConfig(max_tokens=max_tokens, temperature=temperature, **how)
    (ids,) = generate(served.model, served.weights["tiny"], [prompt], sample, stop=served.tokenizer.stops, seed=seed)
    return served.tokenizer.decode(ids)


def test_models_are_listed_and_found_by_name(server):
    import openai

    client = server.client()
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "bigmodel_jax"
    with pytest.raises(openai.NotFoundError) as error:
        client.models.retrieve("../../etc/passwd")
    assert error.value.body["code"] == "model_not_found"


def test_a_completion_at_temperature_0_is_what_generate_writes(server):
    said = server.client().completions.create(prompt="Hello", **GREEDY)
    assert said.choices[0].text == written(server, server.served.prompt("Hello"))
    assert said.usage.prompt_tokens == 6
    assert said.usage.total_tokens == 6 + said.usage.completion_tokens


def test_a_stream_is_the_same_text_in_pieces(server):
    client = server.client()
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(client.completions.create(prompt="Hello", **GREEDY, **options))
    whole = client.completions.create(prompt="Hello", **GREEDY)
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == whole.choices[0].text
    assert [c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason] == [
        whole.choices[0].finish_reason
    ]
    assert chunks[-1].usage == whole.usage
    assert len(chunks) > 3


@pytest.mark.slow
def test_a_seed_draws_what_generate_draws_and_n_texts_differ(server):
    drawn = {"model": "tiny", "temperature": 0.9, "top_p": 0.9, "max_tokens": 16, "seed": 7}
    said = server.client().completions.create(prompt="abc", n=3, **drawn)
    texts = [choice.text for choice in said.choices]
    assert len(set(texts)) == 3
    assert texts[0] == written(server, server.served.prompt("abc"), max_tokens=16, temperature=0.9, seed=7, top_p=0.9)
    again = server.client().completions.create(prompt="abc", n=3, **drawn)
    assert [choice.text for choice in again.choices] == texts


def test_several_prompts_and_prompts_of_ids(server):
    client, ids = server.client(), server.served.prompt("two")
    said = client.completions.create(prompt=["one", "two"], **GREEDY)
    assert [choice.index for choice in said.choices] == [0, 1]
    assert said.choices[1].text == client.completions.create(prompt=ids, **GREEDY).choices[0].text
    both = client.completions.create(prompt=[ids, ids], **GREEDY)
    assert both.choices[0].text == both.choices[1].text == said.choices[1].text


def test_a_stop_string_ends_the_text_and_is_left_out(server):
    client = server.client()
    whole = client.completions.create(prompt="stop", **GREEDY).choices[0].text
    stop = whole[5:8]
    said = client.completions.create(prompt="stop", stop=["never written", stop], **GREEDY).choices[0]
    assert (said.text, said.finish_reason) == (whole[: whole.index(stop)], "stop")
    chunks = client.completions.create(prompt="stop", stop=stop, stream=True, **GREEDY)
    assert "".join(chunk.choices[0].text for chunk in chunks) == said.text
    assert server.idle(), "the slot of a text that a stop string ended is free"


def test_log_probabilities_of_completions_and_of_chats(server):
    client = server.client()
    found = client.completions.create(prompt="p", logprobs=3, **GREEDY | {"max_tokens": 5}).choices[0].logprobs
    assert len(found.tokens) == len(found.token_logprobs) == len(found.top_logprobs) == 5
    for log_prob, tops in zip(found.token_logprobs, found.top_logprobs, strict=True):
        assert log_prob == max(tops.values()) < 0, "at temperature 0 the token is the likeliest"
    messages = [{"role": "user", "content": "Hi"}]
    chat = client.chat.completions.create(
        model="tiny", messages=messages, logprobs=True, top_logprobs=2, temperature=1.5, seed=1, max_tokens=8
    )
    rows = chat.choices[0].logprobs.content
    assert all(len(row.top_logprobs) == 2 and row.logprob <= row.top_logprobs[0].logprob for row in rows)
    assert all(len(row.bytes) <= 1 for row in rows), "a token of this tokenizer is a byte"


@pytest.mark.slow
def test_a_chat_is_the_template_continued(server):
    client, served = server.client(), server.served
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    prompt = served.tokenizer.encode("<system>Be brief.\n<user>Hi\n<assistant>")
    asked = {"model": "tiny", "messages": messages, "temperature": 0, "max_completion_tokens": 24}
    said = client.chat.completions.create(**asked)
    assert said.choices[0].message.content == written(server, prompt)
    chunks = list(client.chat.completions.create(stream=True, **asked))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == said.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == said.choices[0].finish_reason


def test_a_client_that_hangs_up_frees_its_slot(server):
    import openai

    long = {"model": "tiny", "prompt": "x", "max_tokens": 100, "extra_body": {"ignore_eos": True}}
    stream = server.client().completions.create(stream=True, n=4, **long)
    next(iter(stream))
    assert server.app.worker.open
    stream.close()
    assert server.idle()
    with pytest.raises(openai.APITimeoutError):
        server.client(timeout=0.05).completions.create(n=4, **long)
    assert server.idle()
    assert server.client().completions.create(prompt="x", **GREEDY).choices


def test_health_ready_and_metrics(server):
    import httpx

    assert httpx.get(f"{server.url}/health").json() == {"status": "alive"}
    assert httpx.get(f"{server.url}/ready").json() == {"status": "ready"}
    page = httpx.get(f"{server.url}/metrics").text
    assert "bigmodel_slots 4.0" in page
    assert 'bigmodel_requests_total{route="/v1/completions",status="200"}' in page
    assert "bigmodel_ready 1.0" in page


def log_probs(served: Served, engine: Engine, request: Request) -> list[tuple[float, ...]]:
    """The numbers that an engine gives out beside each token of a text."""
    engine.load(served.weights["tiny"])
    engine.submit(request)
    found = []
    while engine.num_unfinished:
        found += [(token.token, token.tops[0][1] if token.tops else token.log_prob) for token in engine.step()]
    return found


@pytest.mark.slow
def test_a_cache_in_int8_is_the_one_that_generate_has():
    served, sample = tiny_served(), SampleConfig(temperature=0, cache="int8")
    prompt, settings = served.prompt("Hello"), Settings.of(sample, ends=False, tops=True)
    engines = {
        how: open_engines(served, dataclasses.replace(OPTIONS, cache=how))["tiny"] for how in ("compute", "int8")
    }
    engines["generate"] = Engine(served.model, sample, slots=4, length=128, log_probs=True)
    asked = {name: None if name == "generate" else settings for name in engines}
    found = {
        name: np.array(log_probs(served, engines[name], Request(prompt, 24, settings=asked[name]))) for name in engines
    }
    np.testing.assert_allclose(found["int8"], found["generate"], atol=1e-4)
    assert np.abs(found["int8"] - found["compute"]).max() > 1e-3
