"""A run with adapters answers under several names, whose texts share one batch of slots."""

import concurrent.futures
import dataclasses
import time

import numpy as np
import pytest

from bigmodel_jax.config import SampleConfig
from bigmodel_jax.inference.generate import generate
from bigmodel_jax.models.adapters import AdapterConfig, Lora, Several
from servers import OPTIONS, adapted_served, running

ONE, TWO = Lora("one", targets="layers/attn/.*", rank=2), Lora("two", targets="layers/(attn|mlp)/.*", rank=3)
NAMES = ("tiny", "base", "one", "two")
PATIENT = dataclasses.replace(OPTIONS, body_seconds=60.0)  # four engines compile beside the event loop


UNKNOWN = {
    "/v1/completions": {"model": "three", "prompt": "a"},
    "/v1/embeddings": {"model": "three", "input": "a"},
}


def embedding(server, name: str) -> list[float]:
    return server.post("/v1/embeddings", model=name, input="Hello").json()["data"][0]["embedding"]


def answers(server, names) -> dict[str, str]:
    """{name: its greedy text}, all asked at the same time."""

    def ask(name: str) -> str:
        said = server.post("/v1/completions", model=name, prompt="Hello", max_tokens=24, temperature=0, ignore_eos=True)
        return said.json()["choices"][0]["text"]

    with concurrent.futures.ThreadPoolExecutor(len(names)) as pool:
        return dict(zip(names, pool.map(ask, names), strict=True))


@pytest.mark.slow
def test_names_of_one_run_are_decoded_in_one_batch_and_answer_as_each_alone(monkeypatch):
    served = adapted_served(Several((ONE, TWO)))
    assert served.adapters == ("one", "two")
    assert {name: served.uses(name) for name in served.names} == dict(
        zip(NAMES, (("one", "two"), (), ("one",), ("two",)), strict=True)
    )
    with running(served, PATIENT) as server:
        worker, steps = server.app.worker, []
        (engine,) = set(worker._engines.values())
        step = engine.step

        def counted_step():
            while not steps and worker.open < 4:  # the first step waits for all four requests
                time.sleep(0.01)
            steps.append(engine._ids.count(None))
            return step()

        monkeypatch.setattr(engine, "step", counted_step)
        together = answers(server, NAMES)
        assert 0 in steps, "no slot of the four was free"
        vectors = {name: embedding(server, name) for name in NAMES}
        unknown = [server.post(path, **fields) for path, fields in UNKNOWN.items()]
    assert len(set(together.values())) == 4
    for name, adapters in zip(NAMES, ((ONE, TWO), (), (ONE,), (TWO,)), strict=True):
        model = dataclasses.replace(
            served.config, adapters=Several(adapters) if adapters else AdapterConfig()
        ).make_model()
        sample = SampleConfig(max_tokens=24, temperature=0)
        (ids,) = generate(model, served.weights[name], [served.prompt("Hello")], sample, stop=())
        assert served.tokenizer.decode(ids) == together[name]
        batch = {"tokens": np.array([served.prompt("Hello")])}
        mean = np.asarray(model.apply(served.weights[name], batch).head.x[0], np.float32).mean(0)
        np.testing.assert_allclose(vectors[name], mean / np.linalg.norm(mean), atol=1e-4)
    for response in unknown:
        assert response.status_code == 404
        assert response.json()["error"]["message"] == "model 'three' is not served; known: tiny, base, one, two"


@pytest.mark.slow
def test_adapters_that_cannot_share_a_batch_have_engines_of_their_own():
    served = adapted_served(Several((Lora("two", targets="", trained="norm/scale"),)))
    assert served.adapters == ()
    with running(served, PATIENT) as server:
        assert len(set(server.app.worker._engines.values())) == 3
        said = answers(server, ("tiny", "base", "two"))
    assert said["tiny"] == said["two"] != said["base"]
