"""Metrics that compare predicted texts with references: the table TEXT_METRICS and user functions.

A text metric is a function (predictions, references) -> {name: number} over a whole evaluation set.
`predictions` has one text per row. `references` has one or more correct texts per row. The
third-party libraries come with the extra `metrics`.
"""

import collections
import dataclasses
import importlib
import importlib.util
import re
import string
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from bigmodel_jax.core import user_code
from bigmodel_jax.core.metrics import Metric
from bigmodel_jax.core.spelling import nearest
from bigmodel_jax.metrics.captions import cider

Texts = Sequence[str]
References = Sequence[Sequence[str]]
Compute = Callable[[Texts, References], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class TextMetric:
    """A text metric.

    metrics: the `Metric` declarations of the numbers that `compute` returns.
    compute: the function (predictions, references) -> {name: number}.
    package: (module that `compute` imports, distribution that provides it). Both are empty where no
    package is needed.
    """

    metrics: tuple[Metric, ...]
    compute: Compute
    package: tuple[str, str] = ("", "")

    def __call__(self, predictions: Texts, references: References) -> dict[str, float]:
        """Computes the metric. Raises ValueError where lengths differ or a row has no reference."""
        if not predictions or len(predictions) != len(references) or not all(references):
            raise ValueError(
                f"a text metric needs one prediction and at least one reference a row; it got {len(predictions)} predictions "
                f"and {len(references)} rows of references, of which {sum(not r for r in references)} are empty"
            )
        return self.compute(predictions, references)


# ---------------------------------------------------------------- translation, summaries, speech


def bleu(predictions: Texts, references: References) -> dict[str, float]:
    """Corpus BLEU from 0 to 100, with the "13a" tokenizer (Papineni et al. 2002;
    arXiv:1804.08771).
    """
    sacrebleu = importlib.import_module("sacrebleu")
    return {"bleu": sacrebleu.corpus_bleu(list(predictions), _streams(references)).score}


def chrf(predictions: Texts, references: References) -> dict[str, float]:
    """Corpus chrF2 from 0 to 100 (Popović 2015)."""
    sacrebleu = importlib.import_module("sacrebleu")
    return {"chrf": sacrebleu.corpus_chrf(list(predictions), _streams(references)).score}


def _streams(references: References) -> list[list[str | None]]:
    """Transposes references into sacrebleu's form: one list per reference number, None where
    missing.
    """
    most = max(map(len, references))
    return [[row[n] if n < len(row) else None for row in references] for n in range(most)]


ROUGES = ("rouge1", "rouge2", "rougeL")


def rouge(predictions: Texts, references: References) -> dict[str, float]:
    """F-measures of ROUGE-1, -2 and -L with Porter's stemmer (Lin 2004).

    Each row scores its best reference. The result is the mean over rows.
    """
    scorer = importlib.import_module("rouge_score.rouge_scorer").RougeScorer(list(ROUGES), use_stemmer=True)
    rows = [scorer.score_multi(list(right), text) for text, right in zip(predictions, references, strict=True)]
    return {name: float(np.mean([row[name].fmeasure for row in rows])) for name in ROUGES}


def word_error_rate(predictions: Texts, references: References) -> dict[str, float]:
    """Word error rate: inserted, deleted and replaced words, divided by the words of the
    references.

    Each row is compared with its nearest reference.
    """
    jiwer = importlib.import_module("jiwer")
    return {"wer": float(jiwer.process_words(_nearest(jiwer.wer, predictions, references), list(predictions)).wer)}


def character_error_rate(predictions: Texts, references: References) -> dict[str, float]:
    """Character error rate: `word_error_rate` with characters in place of words."""
    jiwer = importlib.import_module("jiwer")
    return {"cer": float(jiwer.process_characters(_nearest(jiwer.cer, predictions, references), list(predictions)).cer)}


def _nearest(rate: Callable, predictions: Texts, references: References) -> list[str]:
    return [
        min(right, key=lambda one: rate(one, text)) if len(right) > 1 else right[0]
        for text, right in zip(predictions, references, strict=True)
    ]


# ---------------------------------------------------------------- answers


def exact_match(predictions: Texts, references: References) -> dict[str, float]:
    """Share of answers that equal a reference, as in SQuAD (Rajpurkar et al., arXiv:1606.05250).

    Both texts are compared in their `normal` form.
    """
    rows = zip(predictions, references, strict=True)
    return {"exact_match": float(np.mean([normal(text) in map(normal, right) for text, right in rows]))}


def answer_f1(predictions: Texts, references: References) -> dict[str, float]:
    """Mean F1 of an answer's words against its best reference, as in SQuAD's evaluate-v1.1.py."""
    rows = zip(predictions, references, strict=True)
    return {"f1": float(np.mean([max(_shared_words(text, one) for one in right) for text, right in rows]))}


def normal(text: str) -> str:
    """The text in lower case, without punctuation, articles and repeated spaces."""
    plain = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", plain).split())


def _shared_words(text: str, reference: str) -> float:
    given, right = normal(text).split(), normal(reference).split()
    if not given or not right:
        return float(given == right)  # as evaluate-v2.0.py does; version 1.1 has no empty answers
    shared = sum((collections.Counter(given) & collections.Counter(right)).values())
    return 2 * shared / (len(given) + len(right))


# ---------------------------------------------------------------- the table

SACREBLEU, ROUGE, JIWER = ("sacrebleu", "sacrebleu"), ("rouge_score", "rouge-score"), ("jiwer", "jiwer")
TEXT_METRICS = {
    "bleu": TextMetric((Metric("bleu", "BLEU", "more", "{:.1f}", "sacrebleu, 13a"),), bleu, SACREBLEU),
    "chrf": TextMetric((Metric("chrf", "chrF", "more", "{:.1f}", "sacrebleu, chrF2"),), chrf, SACREBLEU),
    "rouge": TextMetric(
        (
            Metric("rouge1", "ROUGE-1", "more", "{:.3f}", "F, stemmed", label="1"),
            Metric("rouge2", "ROUGE-2", "more", "{:.3f}", "F, stemmed", beside="rouge1", label="2"),
            Metric("rougeL", "ROUGE-L", "more", "{:.3f}", "F, stemmed", beside="rouge1", label="L"),
        ),
        rouge,
        ROUGE,
    ),
    "wer": TextMetric((Metric("wer", "Word error rate", "less", "{:.2%}"),), word_error_rate, JIWER),
    "cer": TextMetric((Metric("cer", "Character error rate", "less", "{:.2%}"),), character_error_rate, JIWER),
    "cider": TextMetric((Metric("cider", "CIDEr-D", "more", "{:.2f}", "0 to 10, of this set's references"),), cider),
    "exact_match": TextMetric((Metric("exact_match", "Exact match", "more", "{:.2%}", "of the answers"),), exact_match),
    "answer_f1": TextMetric((Metric("f1", "F1 of answers", "more", "{:.2%}", "shared words"),), answer_f1),
}


def find_text(option: str, name: str) -> TextMetric:
    """Returns the text metric called `name`.

    A name is a key of TEXT_METRICS, "module:function" or "path/of/file.py:function". A user's
    function returns a number or {name: number}. Raises a one-line ValueError for an unknown name,
    and where the metric's package is not installed.
    """
    if ":" in name:
        return _own(option, name)
    if name not in TEXT_METRICS:
        raise ValueError(
            f"{option} = {name!r} is no text metric{nearest(name, TEXT_METRICS)}; known: {', '.join(TEXT_METRICS)}, or a "
            "function of your own"
        )
    check_package(f"{option} = {name!r}", *TEXT_METRICS[name].package)
    return TEXT_METRICS[name]


def check_package(what: str, module: str, package: str) -> None:
    """Raises ValueError with the install command where `what` needs a package that is missing."""
    if module and importlib.util.find_spec(module) is None:
        raise ValueError(f"{what}: the package {package} is not installed: uv sync --extra metrics")


def declared(option: str, names: Iterable[str]) -> tuple[Metric, ...]:
    """The `Metric` declarations of the named text metrics."""
    return tuple(metric for name in names for metric in find_text(option, name).metrics)


def _own(option: str, name: str) -> TextMetric:
    function, key = user_code.find(option, name), name.rpartition(":")[2]

    def compute(predictions: Texts, references: References) -> dict[str, float]:
        found = user_code.call(option, name, predictions, references)
        return {k: _number(option, name, v) for k, v in (found if isinstance(found, dict) else {key: found}).items()}

    return TextMetric(own_metrics(function, key), compute)


def _number(option: str, name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{option}: {name} gave {value!r}; it must give a number, or numbers by name") from None


def own_metrics(function: Callable, key: str) -> tuple[Metric, ...]:
    """The metrics that a user's function declares: its attribute `metrics`, or one named
    after it.
    """
    title = key.replace("_", " ")
    return getattr(function, "metrics", None) or (Metric(key, title[:1].upper() + title[1:]),)
