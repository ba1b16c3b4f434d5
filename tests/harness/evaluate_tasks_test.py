"""`eval --harness`: mistakes are one line, before weights are read; what is found is kept beside
the run."""

import dataclasses
import importlib.util
import json

import pytest

from bigmodel_jax import cli, config_file
from bigmodel_jax.config import Config
from bigmodel_jax.data import ImageData, TextData, TokenizerConfig
from bigmodel_jax.harness import evaluate_tasks
from bigmodel_jax.harness.evaluate_tasks import Asked
from bigmodel_jax.models import BertConfig, LlamaConfig, MLPConfig, T5Config
from bigmodel_jax.objectives import Classification, MaskedLanguageModel, NextToken

BYTES = TextData(tokenizer=TokenizerConfig(kind="bytes"), seq_len=16)
LLAMA = Config(dataclasses.replace(LlamaConfig.tiny(), vocab_size=257), NextToken(), BYTES)


def refused(config, folder, asked=Asked(("own",))):
    with pytest.raises(ValueError) as error:
        evaluate_tasks._check(config, folder, asked)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_without_lm_eval_it_says_how_to_install_it(tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "lm_eval" else found(name))
    assert refused(LLAMA, tmp_path) == ("--harness own: the package lm-eval is not installed: uv sync --extra harness")


@pytest.mark.parametrize(
    "config",
    [
        Config(MLPConfig.tiny(), Classification(), ImageData()),
        Config(BertConfig.tiny(), MaskedLanguageModel(), BYTES),
        Config(T5Config.tiny(), NextToken(), BYTES),
    ],
    ids=lambda config: type(config.model).__name__,
)
def test_a_model_that_is_no_decoder_is_refused(config, tmp_path):
    said = refused(config, tmp_path)
    assert f"a {type(config.model).__name__} on {type(config.data).__name__} is no decoder of text" in said


def test_small_vocabularies_and_missing_templates_are_refused(tmp_path):
    small = dataclasses.replace(LLAMA, model=LlamaConfig.tiny())
    assert "the tokenizer's ids go up to 256, but the model has 64 rows" in refused(small, tmp_path)
    assert "holds no chat_template.jinja" in refused(LLAMA, tmp_path, Asked(("own",), chat=True))


def test_options_of_the_harness_alone_are_refused(tmp_path, capsys):
    config_file.save(LLAMA, tmp_path / "config.json")
    with pytest.raises(SystemExit) as ended:
        cli.main(["eval", str(tmp_path), "--fewshot", "2"])
    assert ended.value.code == 2
    assert "--fewshot = 2 is for tasks of lm-eval; name them by --harness TASK ..." in capsys.readouterr().err


@pytest.mark.slow
def test_tasks_that_are_not_there_are_named(tmp_path):
    from bigmodel_jax.harness import tasks

    def said(*asked):
        with pytest.raises(ValueError) as error:
            tasks.load(asked)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "the folder holds no task of lm-eval" in said(str(tmp_path))
    assert said(f"{tmp_path}/own.yaml") == f"--harness {tmp_path}/own.yaml: no such file"
    (tmp_path / "own.yaml").write_text(
        "task: own\noutput_type: loglikelihood\ndataset_path: json\ntest_split: test\n"
        "dataset_kwargs: {data_files: {test: /nowhere/rows.jsonl}}\ndoc_to_text: a\ndoc_to_target: b\n"
    )
    assert "own.yaml: the task cannot be loaded (FileNotFoundError: " in said(f"{tmp_path}/own.yaml")


@pytest.mark.exhaustive
def test_a_misspelt_name_of_a_task_is_answered_by_the_nearest():
    """The test is exhaustive, because lm-eval's own index of 14,683 tasks takes half a minute to
    read."""
    from bigmodel_jax.harness import tasks

    with pytest.raises(
        ValueError, match=r"--harness helaswag: lm-eval has no such task \(perhaps you meant 'hellaswag'\)"
    ):
        tasks.load(["helaswag"])


def test_results_and_every_answer_are_kept_by_step_and_tasks(tmp_path):
    found = {"step": 40, "results": {"own": {"acc,none": 0.5}}, "samples": {"own": [{"doc_id": 0, "resps": [["a"]]}]}}
    evaluate_tasks._write(tmp_path, 40, Asked(("tasks/own.yaml", "hellaswag")), found)
    folder = tmp_path / "harness"
    assert json.loads((folder / "00000040.own+hellaswag.json").read_text()) == {"step": 40, "results": found["results"]}
    lines = (folder / "00000040.own+hellaswag.samples.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"task": "own", "doc_id": 0, "resps": [["a"]]}]
