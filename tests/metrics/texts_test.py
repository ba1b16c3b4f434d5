"""Text metrics against the published examples of their libraries, and a user's own."""

import pytest

from bigmodel_jax.core.metrics import Metric
from bigmodel_jax.metrics import texts
from bigmodel_jax.metrics.texts import TEXT_METRICS, find_text

# The README of sacrebleu, "Using SacreBLEU from Python": BLEU = 48.53, chrF2 = 59.73.
SYSTEM = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
REFERENCES = [
    ("The dog bit the man.", "The dog had bit the man."),
    ("It was not unexpected.", "No one was surprised."),
    ("The man bit him first.", "The man had bitten the dog."),
]
# The README of rouge-score.
FOX = ("The quick brown fox jumps over the lazy dog", "The quick brown dog jumps on the log.")


def test_bleu_and_chrf_are_those_of_sacrebleus_readme():
    assert TEXT_METRICS["bleu"](SYSTEM, REFERENCES)["bleu"] == pytest.approx(48.53, abs=0.005)
    assert TEXT_METRICS["chrf"](SYSTEM, REFERENCES)["chrf"] == pytest.approx(59.73, abs=0.005)


def test_a_row_may_have_fewer_references_than_another():
    few = [REFERENCES[0], REFERENCES[1][:1], REFERENCES[2][:1]]
    assert TEXT_METRICS["bleu"](SYSTEM, few)["bleu"] < TEXT_METRICS["bleu"](SYSTEM, REFERENCES)["bleu"]


@pytest.mark.slow  # it imports nltk
def test_rouge_is_that_of_rouge_scores_readme():
    found = TEXT_METRICS["rouge"]([FOX[1]], [[FOX[0]]])
    assert found["rouge1"] == pytest.approx(0.7058823529411765)
    assert found["rougeL"] == pytest.approx(0.5882352941176471)
    assert set(found) == {m.name for m in TEXT_METRICS["rouge"].metrics}
    assert TEXT_METRICS["rouge"](["c d", "c d"], [["a b", "c d"], ["x y"]])["rouge1"] == 0.5, "best reference, mean"


def test_error_rates_are_those_of_jiwers_documentation():
    assert TEXT_METRICS["wer"](["hello duck"], [["hello world"]])["wer"] == 0.5
    # Over the words of all rows, and no mean of the rows' rates: 1 of 2 and 3 of 3.
    assert TEXT_METRICS["wer"](["hello duck", ""], [["hello world"], ["i like it"]])["wer"] == 0.8
    assert TEXT_METRICS["wer"](["a b"], [["x y", "a c"]])["wer"] == 0.5, "the nearest reference"
    assert TEXT_METRICS["cer"](["hello duck"], [["hello world"]])["cer"] == pytest.approx(5 / 11)


def test_answers_are_compared_as_squad_does():
    predictions = ["The Denver  Broncos!", "gold anniversary", ""]
    references = [["Denver Broncos"], ["the golden anniversary", "gold"], [""]]
    assert TEXT_METRICS["exact_match"](predictions, references)["exact_match"] == pytest.approx(2 / 3)
    assert TEXT_METRICS["answer_f1"](predictions, references)["f1"] == pytest.approx((1 + 2 / 3 + 1) / 3)
    assert texts.normal("An  apple, the pear; a-b") == "apple pear ab"


def test_answers_are_scored_as_in_the_card_of_evaluates_squad():
    predictions = ["1976", "Beyonce", "climate change"]
    references = [["1976"], ["Beyoncé and Bruno Mars"], ["climate change"]]
    assert TEXT_METRICS["exact_match"](predictions, references)["exact_match"] == pytest.approx(0.6666666666666667)
    assert TEXT_METRICS["answer_f1"](predictions, references)["f1"] == pytest.approx(0.6666666666666667)


def test_each_gives_what_it_declares():
    for name, metric in TEXT_METRICS.items():
        if name == "rouge":
            continue  # above
        assert set(metric(["a b"], [["a b"]])) == {m.name for m in metric.metrics}, name


def longest(predictions, references):
    return max(map(len, predictions))


def both(predictions, references):
    return {"first": 1, "second": 2}


both.metrics = (Metric("first"), Metric("second", better="less"))


def nothing(predictions, references):
    return "a word"


def test_a_function_of_ones_own_is_a_metric():
    metric = find_text("eval.metrics", f"{__name__}:longest")
    assert metric(["ab", "abc"], [["x"], ["y"]]) == {"longest": 3.0}
    assert metric.metrics == (Metric("longest", "Longest"),)
    assert find_text("eval.metrics", f"{__name__}:both").metrics == both.metrics


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("blue", r"eval\.metrics = 'blue' is no text metric \(perhaps you meant 'bleu'\); known: bleu, chrf, .*"),
        (f"{__name__}:longst", r"eval\.metrics: .*has no function 'longst' \(perhaps you meant 'longest'\)"),
    ],
)
def test_an_unknown_metric_is_one_line(name, message):
    with pytest.raises(ValueError, match=message) as error:
        find_text("eval.metrics", name)
    assert "\n" not in str(error.value)


def test_a_package_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(texts.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match="eval.metrics = 'wer': the package jiwer is not installed: uv sync --extra metrics"
    ):
        find_text("eval.metrics", "wer")
    assert find_text("eval.metrics", "exact_match").metrics


def test_what_is_no_number_and_rows_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="gave 'a word'; it must give a number"):
        find_text("eval.metrics", f"{__name__}:nothing")(["a"], [["a"]])
    with pytest.raises(ValueError, match="2 predictions and 1 rows of references, of which 1 are empty"):
        TEXT_METRICS["exact_match"](["a", "b"], [[]])
