"""Named evaluation sets: what is refused of them, what they are called and measured by."""

import dataclasses

import pytest

from bigmodel_jax import config_file
from bigmodel_jax.config import CheckpointConfig, Config, EvalConfig, EvalSet, override
from bigmodel_jax.config_checks import validate
from bigmodel_jax.core.dataclass_json import from_json, to_json
from bigmodel_jax.data import ImageData, PromptData, TextData, TokenizerConfig
from bigmodel_jax.eval_sets import declared, every, seen
from bigmodel_jax.models import LlamaConfig, MLPConfig
from bigmodel_jax.objectives import Classification, NextToken, Regression

BYTES = TextData(tokenizer=TokenizerConfig(kind="bytes"), seq_len=8, cache_dir="/cache")
SCORE = "math:fsum"


def config(*sets, model=None, objective=None, data=BYTES, **changes) -> Config:
    model = model or dataclasses.replace(LlamaConfig.tiny(), vocab_size=257)
    return Config(model, objective or NextToken(), data, eval=EvalConfig(sets=sets, **changes))


def of_images(*sets) -> Config:
    return config(*sets, model=MLPConfig.tiny(), objective=Classification(), data=ImageData())


WEB, BOOKS = EvalSet("web", BYTES), EvalSet("books", BYTES, every=5)
ANSWERS = EvalSet("qa", PromptData(tokenizer_path="tokenizer.json"), metrics=(SCORE,))
REFUSED = {
    "no name": (config(EvalSet("", BYTES)), "eval.sets.0.name = ''; each name must differ, and have up to 40 letters"),
    "twice": (config(WEB, BOOKS, WEB), "eval.sets.0.name = 'web'; each name must differ"),
    "a path": (config(EvalSet("a/b", BYTES)), "eval.sets.0.name = 'a/b'; each name must differ"),
    "a metric": (config(EvalSet("loss", BYTES)), "eval.sets.0.name = 'loss' is the name of a metric of the run"),
    "no data": (config(EvalSet("web")), r"eval.sets.0 (web): it has no data; give data = TextData(...)"),
    "no such metric of rows": (
        config(EvalSet("web", BYTES, metrics=("bleu",))),
        "eval.sets.0 (web): eval.metrics = 'bleu'",
    ),
    "no such metric of texts": (
        config(dataclasses.replace(ANSWERS, metrics=("blue",))),
        "eval.sets.0 (qa): metrics = 'blue' is no text metric (perhaps you meant 'bleu')",
    ),
    "no function": (
        config(dataclasses.replace(ANSWERS, metrics=("math:fsun",))),
        "eval.sets.0 (qa): metrics: 'math:fsun' is not module:function: it has no function 'fsun' (perhaps you meant 'fsum')",
    ),
    "no metrics": (
        config(dataclasses.replace(ANSWERS, metrics=())),
        "eval.sets.0 (qa): its data are prompts; give metrics of their answers: bleu, chrf",
    ),
    "no decoder": (of_images(ANSWERS), "eval.sets.0 (qa): its data are prompts, and a MLPConfig generates no text"),
    "other data": (config(EvalSet("web", ImageData())), "eval.sets.0 (web): NextToken reads 'targets' and LlamaConfig"),
    "another task": (
        of_images(EvalSet("web", ImageData(), objective=NextToken())),
        "eval.sets.0 (web): NextToken reads 'targets'",
    ),
    "batch size": (
        config(EvalSet("web", BYTES, batch_size=3)),
        "eval.sets.0 (web): eval.batch_size = 3 is not divisible by 2",
    ),
    "best": (
        dataclasses.replace(config(WEB, BOOKS), checkpoint=CheckpointConfig(best_metric="eval/wed/loss")),
        "checkpoint.best_metric = 'eval/wed/loss' is not a metric of NextToken",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_set_that_cannot_be_evaluated_is_refused_in_one_line(name):
    refused, message = REFUSED[name]
    with pytest.raises(ValueError) as error:
        validate(refused, 2)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_right_is_taken_and_a_metric_of_a_set_may_choose_the_best_save():
    best = CheckpointConfig(best_metric="eval/books/loss")
    validate(dataclasses.replace(config(WEB, BOOKS, ANSWERS), checkpoint=best), 2)
    stopping = dataclasses.replace(config(WEB, BOOKS, patience=3), checkpoint=best)
    validate(stopping, 2)  # the set has a period of its own
    assert every(stopping) == 5
    with pytest.raises(ValueError, match=r"eval\.patience = 3 needs eval\.every, such as 100"):
        validate(dataclasses.replace(stopping, checkpoint=CheckpointConfig(best_metric="eval/web/loss")), 2)


def test_metrics_are_declared_under_the_sets_names_and_drawn_with_their_likes():
    found = {m.name: m for m in declared(of_images(EvalSet("a", ImageData()), EvalSet("b", ImageData())))}
    assert {name for name in found if name.startswith("a/")} == {f"a/{m.name}" for m in Classification().metrics}
    assert (found["a/loss"].title, found["a/loss"].label, found["a/loss"].beside) == ("Held-out loss by set", "a", "")
    assert (found["b/loss"].title, found["b/loss"].label, found["b/loss"].beside) == ("", "b", "a/loss")
    assert (found["b/accuracy"].title, found["b/accuracy"].beside) == ("", "accuracy")
    assert found["a/accuracy"].better == "more"
    assert not any(m.headline for m in found.values()), "a run is judged by its validation split"
    alone = {m.name: m for m in declared(config(EvalSet("web", BYTES)))}
    assert alone["web/loss"].title == "Held-out loss, web"
    texts = dataclasses.replace(ANSWERS, metrics=("exact_match", "rouge", SCORE))
    names = ["qa/exact_match", "qa/rouge1", "qa/rouge2", "qa/rougeL", "qa/fsum"]
    assert [m.name for m in declared(config(texts))] == names


def test_a_set_of_another_objective_is_measured_by_that():
    names = {m.name for m in declared(of_images(EvalSet("x", ImageData(), objective=Regression())))}
    assert names == {f"x/{m.name}" for m in Regression().metrics}


def test_an_evaluation_sees_the_sets_data_and_the_runs_cache():
    (option, own), _ = seen(config(EvalSet("web", dataclasses.replace(BYTES, cache_dir="")), BOOKS, batch_size=6))
    assert option == "eval.sets.0"
    assert (own.data.cache_dir, own.eval.batch_size, own.objective) == ("/cache", 6, NextToken())


def test_a_config_file_gives_functions_by_name_and_json_and_options_keep_them(tmp_path):
    path = tmp_path / "run.py"
    path.write_text(
        "import dataclasses\n"
        "from bigmodel_jax.config import Config, EvalConfig, EvalSet\n"
        "from bigmodel_jax.data import PromptData, TextData\n"
        "from bigmodel_jax.models import LlamaConfig\n"
        "from bigmodel_jax.objectives import NextToken\n"
        "def short(answers, references):\n"
        "    return sum(map(len, answers))\n"
        "def get_config():\n"
        "    sets = (EvalSet('qa', PromptData(), metrics=('f1', short)), EvalSet('web', TextData(), objective=NextToken()))\n"
        "    return Config(LlamaConfig.tiny(), NextToken(), TextData(), eval=EvalConfig(sets=sets))\n"
    )
    found = config_file.load(path)
    assert found.eval.sets[0].metrics == ("f1", f"{path}:short")
    assert from_json(to_json(found)) == found
    changed = override(found, ["--eval.sets.0.every", "7", "--eval.sets.1.data.seq_len", "32"])
    assert (changed.eval.sets[0].every, changed.eval.sets[1].data.seq_len) == (7, 32)
    with pytest.raises(ValueError, match=r"eval\.sets\.0\.every = '-1'|eval\.sets\.0\.every = -1"):
        override(found, ["--eval.sets.0.every", "-1"])
