"""A run with adapters answers under several names, whose texts share one batch of slots."""

import concurrent.futures
import dataclasses
import time

import pytest

from bigmodel_jax.models.adapters import Lora, Several
from servers import OPTIONS, adapted_served, running

ONE, TWO = Lora("one", targets="layers/attn/.*", rank=2), Lora("two", targets="layers/mlp/.*", rank=3)
NAMES = ("tiny", "base", "one", "two")
PATIENT = dataclasses.replace(OPTIONS, body_seconds=60.0)  # four engines compile beside the event loop


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
    assert len(set(together.values())) == 4
    vars(served)["adapters"] = ()  # each name gets an engine of its own
    with running(served, PATIENT) as server:
        assert len(set(server.app.worker._engines.values())) == 4
        assert answers(server, NAMES) == together


@pytest.mark.slow
def test_adapters_that_cannot_share_a_batch_have_engines_of_their_own():
    served = adapted_served(Several((ONE, Lora("two", targets="", trained="norm/scale"))))
    assert served.adapters == ()
    with running(served, PATIENT) as server:
        assert len(set(server.app.worker._engines.values())) == 4
        assert len(set(answers(server, NAMES).values())) == 4
