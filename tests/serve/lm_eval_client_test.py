"""lm-eval's own client of OpenAI's API, whole: its tasks over HTTP, and what transformers answers
to the same ones."""

import itertools
import json
from pathlib import Path

import pytest

from bigmodel_jax import config_file
from bigmodel_jax.pretrained.transfer import import_weights
from bigmodel_jax.serve.config import ServeConfig
from bigmodel_jax.serve.served import open_served
from harness_reference import answers
from harness_tasks import write_tasks
from servers import running

# The client keeps one position for a token that it does not read, so that longer texts lose their
# beginning.
NAMES, LONGEST = ("own_choice", "own_answer"), 95
FOLDER = Path(__file__).parents[1] / "parity" / "fixtures" / "harness"


@pytest.fixture(scope="module")
def tiny_server(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("run") / "run"
    import_weights(FOLDER, run_dir)
    options = ServeConfig(port=0, slots=4)
    with running(open_served(config_file.load(run_dir), run_dir, options, name="tiny"), options) as server:
        yield server


@pytest.mark.slow
def test_tasks_by_its_client_are_answered_as_transformers_answers_them(tiny_server, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(write_tasks(tmp_path)), include_defaults=False)
    how = {"base_url": f"{tiny_server.url}/v1/completions", "model": "tiny", "tokenizer_backend": "remote"}
    found = lm_eval.simple_evaluate(
        model="local-completions",
        model_args=how | {"max_length": 96, "num_concurrent": 1, "batch_size": 2},
        tasks=list(NAMES),
        task_manager=manager,
        log_samples=True,
    )
    theirs = json.loads((FOLDER / "reference.json").read_text())["plain"]["answers"]
    for name in NAMES:
        asked = [pair for one in by_document(found["samples"][name]) for pair in one["arguments"]]
        said = answers(found["samples"][name])
        fits = [not isinstance(text, str) or len(context + text) < LONGEST for context, text in asked]
        assert sum(fits) > 0.8 * len(fits)
        for here, there in itertools.compress(zip(said, theirs[name], strict=True), fits):
            if isinstance(there, str):
                assert here == there
            else:
                assert here[0] == pytest.approx(there[0], abs=1e-3)
                assert here[1] == there[1]


def by_document(samples: list[dict]) -> list[dict]:
    return sorted(samples, key=lambda sample: sample["doc_id"])


@pytest.mark.slow
def test_tokens_over_http_are_the_tokenizers(tiny_server):
    ids = tiny_server.post("/tokenize", prompt="a cat", add_special_tokens=False).json()["tokens"]
    assert ids == tiny_server.served.tokenizer.encode("a cat")
    assert tiny_server.post("/detokenize", tokens=ids).json() == {"prompt": "a cat"}
    whole = tiny_server.post("/tokenize", prompt="a cat").json()
    assert whole["tokens"] == tiny_server.served.prompt("a cat")
    assert whole["count"] == len(ids) + 1
    wrong = tiny_server.post("/detokenize", tokens=[10**6])
    assert wrong.status_code == 400
    assert wrong.json()["error"]["message"].startswith("tokens holds 1000000; the vocabulary has")
