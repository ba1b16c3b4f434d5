"""Tasks of lm-eval, answered by a run and by transformers from the run's export: the same answers.

fixtures/harness holds a tiny random Llama over bytes as it was exported, and what lm-eval 0.4.13
found of it with transformers; --reference-python runs that live, with a Python that has torch,
transformers and lm-eval.
"""

import dataclasses
import json
import os
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest
from grids import few

from bigmodel_jax import config_file
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.pretrained.transfer import import_weights
from harness_reference import answers
from harness_tasks import TASKS, write_tasks

FOLDER = Path(__file__).parent / "fixtures" / "harness"
REFERENCE = Path(__file__).with_name("harness_reference.py")
CASES = {
    "plain": {},
    "shots": {"num_fewshot": 2},
    "chat": {"apply_chat_template": True, "num_fewshot": 1, "fewshot_as_multiturn": True},
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def theirs(request, tasks, tmp_path_factory):
    python = request.config.getoption("--reference-python")
    path = FOLDER / "reference.json"
    if python:
        path = tmp_path_factory.mktemp("reference") / "reference.json"
        command = [python, str(REFERENCE), str(FOLDER), str(tasks), str(path)]
        home = {"HF_HOME": str(path.parent)}
        subprocess.run(command, input=json.dumps(CASES), text=True, check=True, env=os.environ | home)
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    import_weights(FOLDER, folder)
    return folder


def ours(run_dir, tasks, settings, parallel, monkeypatch):
    from bigmodel_jax.harness.evaluate_tasks import Asked, evaluate_tasks

    num = int(np.prod(parallel.sizes()))
    devices = jax.devices()[:num]
    monkeypatch.setattr(jax, "devices", lambda *_: devices)
    monkeypatch.setattr(jax, "device_count", lambda *_: num)
    monkeypatch.setenv("HF_HOME", str(run_dir.parent))
    config = config_file.load(run_dir, ["--eval.batch_size", "8"])
    asked = Asked((str(tasks),), settings.get("num_fewshot"), chat=bool(settings.get("apply_chat_template")))
    return evaluate_tasks(dataclasses.replace(config, parallel=parallel), run_dir, asked)


MESHES = {"one": ParallelConfig(data=1), "many": ParallelConfig(data=2, stage=2, seq=2)}
PAIRS = [("plain", "one"), ("shots", "one"), ("chat", "one"), ("shots", "many")]


@pytest.mark.slow
@pytest.mark.parametrize(("case", "mesh"), few(PAIRS, ("shots", "many")))
def test_answers_are_those_of_the_export_in_transformers(theirs, run_dir, tasks, case, mesh, monkeypatch):
    found = ours(run_dir, tasks, CASES[case], MESHES[mesh], monkeypatch)
    assert found["results"].keys() == theirs[case]["results"].keys() == TASKS.keys()
    for task, expected in theirs[case]["answers"].items():
        given = answers(found["samples"][task])
        assert len(given) == len(expected)
        for here, there in zip(given, expected, strict=True):
            if isinstance(there, str):
                assert here == there, task
            else:
                one, other = np.atleast_1d(np.array(here, float)), np.atleast_1d(np.array(there, float))
                assert abs(one[0] - other[0]) <= 1e-4, task
                np.testing.assert_array_equal(one[1:], other[1:])
        for metric, value in theirs[case]["results"][task].items():
            assert found["results"][task][metric] == (pytest.approx(value, rel=1e-6) if "per" in metric else value)
    assert len({text for text in theirs[case]["answers"]["own_answer"]}) > 2, "the model says one thing only"
