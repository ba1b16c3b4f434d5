"""Evaluation sets whose prompts the engine answers, and metrics that score the answers."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from bigmodel_jax.config import CheckpointConfig, Config, EvalConfig, EvalSet, ReportConfig, TrainConfig
from bigmodel_jax.core import sharding
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.data import PromptData, TextData, TextFiles, TokenizerConfig, save_tokenizer
from bigmodel_jax.data.sources.sources import Arrays
from bigmodel_jax.inference.generate import generate
from bigmodel_jax.models import LlamaConfig, T5Config
from bigmodel_jax.objectives import NextToken
from bigmodel_jax.report.answers import read_answers, tables
from bigmodel_jax.training.evaluate_saved import evaluate_run
from bigmodel_jax.training.scored_answers import ScoredAnswers
from bigmodel_jax.training.set_evaluations import open_sets
from bigmodel_jax.training.state import init_state, weights
from loop_test import records, run

NAMES = ("characters", "agreement")


def questions():
    texts = [f"{'ab' * (n % 3 + 1)}{n}" for n in range(5)]
    return {"validation": {"prompt": texts, "answer": [f"a{n}" for n in range(5)], "number": list(range(5))}}


def characters(answers, references):
    return sum(map(len, answers)) / len(answers)


def agreement(answers, references):
    assert references == [[f"a{n}"] for n in range(5)]
    return {"agreement": float(np.mean([answer in right for answer, right in zip(answers, references, strict=True)]))}


def whole_record(answers, references):
    return sum(record["number"] for [record] in references)


def nothing(answers, references):
    return None


def endless(answers, references):
    return float("inf")


def broken(answers, references):
    raise RuntimeError("no idea")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("answers")
    for name in ("train", "validation"):
        (folder / f"{name}.txt").write_text(f"the {name} text goes on and on\n" * 20)
    files = TextFiles(str(folder / "train.txt"), str(folder / "validation.txt"))
    data = TextData(source=files, tokenizer=TokenizerConfig(kind="bytes"), seq_len=16, cache_dir=str(folder / "cache"))
    save_tokenizer(data, folder / "tokenizer.json")
    prompts = PromptData(
        source=Arrays(f"{__name__}:questions"), tokenizer_path=str(folder / "tokenizer.json"),
        max_prompt=10, max_tokens=6, slots=3,
    )  # fmt: skip
    one = EvalSet("qa", prompts, metrics=("exact_match", *(f"{__name__}:{name}" for name in NAMES)))
    return Config(
        dataclasses.replace(LlamaConfig.tiny(), vocab_size=257, pad_vocab=2, init_std=0.3),
        NextToken(),
        data,
        train=TrainConfig(steps=2, batch_size=8),
        eval=EvalConfig(sets=(one,), baselines=False),
        report=ReportConfig(tensorboard=False),
    )


def with_functions(config, *functions, **changes):
    names = tuple(f"{__name__}:{f.__name__}" for f in functions)
    one = dataclasses.replace(config.eval.sets[0], metrics=names, **changes)
    one_device = ParallelConfig(data=1)
    return dataclasses.replace(config, eval=dataclasses.replace(config.eval, sets=(one,)), parallel=one_device)


def evaluated(config, tmp_path):
    mesh = sharding.make_mesh(config.parallel, jax.devices()[:1])
    (one,) = open_sets(config, mesh, tmp_path, resumes=False)
    tree = weights(init_state(config, mesh))
    return one.evaluate(None, tree, tmp_path / "samples" / "00000002.qa.jsonl"), tree


@pytest.mark.slow
def test_the_engine_answers_each_prompt_and_functions_score_all_answers(config, tmp_path):
    found, tree = evaluated(with_functions(config, characters, agreement), tmp_path)
    tokenizer = config.data.open_tokenizer()
    prompts = [[tokenizer.start, *tokenizer.encode(text)] for text in questions()["validation"]["prompt"]]
    sample = dataclasses.replace(config.eval.sample, max_tokens=6, temperature=0)
    texts = [
        tokenizer.decode(row) for row in generate(config.model.make(), tree, prompts, sample, stop=tokenizer.stops)
    ]
    expected = {"eval/qa/characters": np.mean([len(text) for text in texts]), "eval/qa/agreement": 0.0}
    assert found == pytest.approx(expected)
    written = [json.loads(line) for line in (tmp_path / "samples" / "00000002.qa.jsonl").read_text().splitlines()]
    assert [line["response"] for line in written] == texts
    page = tables(read_answers(tmp_path))
    assert "Answers of qa after step 2" in page


def scores(config, texts):
    own = dataclasses.replace(config, data=config.eval.sets[0].data)
    return ScoredAnswers(own, sharding.make_mesh(config.parallel, jax.devices()[:1]))._scores(texts)


def test_a_function_gets_whole_records_where_no_field_is_named(config):
    assert scores(with_functions(config, whole_record, answer_field=""), [""] * 5) == {"whole_record": 10.0}


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (nothing, "nothing gave None; it must give a number"),
        (broken, "broken raised RuntimeError: no idea"),
        (endless, "endless is inf; it must be a finite number"),
    ],
)
def test_a_function_that_gives_no_number_is_one_line(config, function, message):
    (error,) = scores(with_functions(config, characters, function), [""] * 5).values()
    assert error.startswith("metrics: ")
    assert message in error
    assert "\n" not in error


def test_a_record_without_a_reference_is_found_before_anything_is_computed(config, tmp_path):
    wrong = with_functions(config, agreement, answer_field="answr")
    with pytest.raises(ValueError, match=r"answer_field: prompt 0 has no field 'answr' \(perhaps you meant 'answer'\)"):
        open_sets(wrong, sharding.make_mesh(wrong.parallel, jax.devices()[:1]), tmp_path, resumes=False)


def test_an_encoder_reads_a_prompt_and_its_end(config):
    model = dataclasses.replace(T5Config.tiny(), vocab_size=257)
    config = dataclasses.replace(with_functions(config, characters), model=model)
    own = dataclasses.replace(config, data=config.eval.sets[0].data)
    answers = ScoredAnswers(own, sharding.make_mesh(config.parallel, jax.devices()[:1]))
    tokenizer = config.data.open_tokenizer()
    ids = tokenizer.encode("ab")
    assert answers._prompt([tokenizer.start, *ids]) == [*ids, tokenizer.separator]


@pytest.mark.slow
def test_a_run_records_the_scores_goes_on_with_the_same_and_the_verb_gives_them(config, tmp_path, monkeypatch):
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: devices)
    monkeypatch.setattr(jax, "device_count", lambda *_: 1)
    train, own = dataclasses.replace(config.train, steps=4), dataclasses.replace(config.eval, every=2)
    config = dataclasses.replace(config, train=train, eval=own, checkpoint=CheckpointConfig(every=2, keep=5))
    run(config, tmp_path / "run")

    def scores_of(step):
        return {k: v for k, v in records(tmp_path / "run")[step].items() if k.startswith("eval/qa/")}

    found = scores_of(4)
    assert found.keys() == {f"eval/qa/{name}" for name in ("exact_match", *NAMES)} == scores_of(2).keys()
    answers = tmp_path / "run" / "samples" / "00000004.qa.jsonl"
    said = answers.read_bytes()
    answers.unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")
    run(config, tmp_path / "run")
    assert scores_of(4) == found
    assert answers.read_bytes() == said
    _, scalars = evaluate_run(config, tmp_path / "run")
    assert {k: v for k, v in scalars.items() if k.startswith("eval/qa/")} == found
