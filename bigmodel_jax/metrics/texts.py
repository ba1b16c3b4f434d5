"""Metrics of predicted texts against references, by their libraries: the table TEXT_METRICS, and functions of the user's own.

A text metric is a function (predictions, references) -> {name: number} over a whole evaluation set. predictions: a text a
row; references: one or several right texts a row. The libraries are the extra `metrics`.
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
    """metrics: what `compute` gives, by name, as a page needs it; package: what it imports, and of which distribution."""

    metrics: tuple[Metric, ...]
    compute: Compute
    package: tuple[str, str] = ("", "")

    def __call__(self, predictions: Texts, references: References) -> dict[str, float]:
        """ValueError where the two differ in length, or a row has no reference."""
        if not predictions or len(predictions) != len(references) or not all(references):
            raise ValueError(
                f"a text metric needs one prediction and at least one reference a row; it got {len(predictions)} predictions "
                f"and {len(references)} rows of references, of which {sum(not r for r in references)} are empty"
            )
        return self.compute(predictions, references)


# ---------------------------------------------------------------- translation, summaries, speech


def bleu(predictions: Texts, references: References) -> dict[str, float]:
    """BLEU of the corpus, 0 to 100, tokenized as "13a" (Papineni et al. 2002; Post, arXiv:1804.08771)."""
    sacrebleu = importlib.import_module("sacrebleu")
    return {"bleu": sacrebleu.corpus_bleu(list(predictions), _streams(references)).score}


def chrf(predictions: Texts, references: References) -> dict[str, float]:
    """chrF2 of the corpus, 0 to 100 (Popović 2015)."""
    sacrebleu = importlib.import_module("sacrebleu")
    return {"chrf": sacrebleu.corpus_chrf(list(predictions), _streams(references)).score}


def _streams(references: References) -> list[list[str | None]]:
    """sacrebleu's form: the first reference of all rows, then the second; None where a row has fewer."""
    most = max(map(len, references))
    return [[row[n] if n < len(row) else None for row in references] for n in range(most)]


ROUGES = ("rouge1", "rouge2", "rougeL")


def rouge(predictions: Texts, references: References) -> dict[str, float]:
    """F of ROUGE-1, -2 and -L with Porter's stemmer: the best reference of a row, averaged over rows (Lin 2004)."""
    scorer = importlib.import_module("rouge_score.rouge_scorer").RougeScorer(list(ROUGES), use_stemmer=True)
    rows = [scorer.score_multi(list(right), text) for text, right in zip(predictions, references, strict=True)]
    return {name: float(np.mean([row[name].fmeasure for row in rows])) for name in ROUGES}


def word_error_rate(predictions: Texts, references: References) -> dict[str, float]:
    """Words inserted, deleted and replaced, over the words of the references; a row counts its nearest reference."""
    jiwer = importlib.import_module("jiwer")
    return {"wer": float(jiwer.process_words(_nearest(jiwer.wer, predictions, references), list(predictions)).wer)}


def character_error_rate(predictions: Texts, references: References) -> dict[str, float]:
    """As `word_error_rate`, of characters."""
    jiwer = importlib.import_module("jiwer")
    return {"cer": float(jiwer.process_characters(_nearest(jiwer.cer, predictions, references), list(predictions)).cer)}


def _nearest(rate: Callable, predictions: Texts, references: References) -> list[str]:
    return [
        min(right, key=lambda one: rate(one, text)) if len(right) > 1 else right[0]
        for text, right in zip(predictions, references, strict=True)
    ]


# ---------------------------------------------------------------- answers


def exact_match(predictions: Texts, references: References) -> dict[str, float]:
    """Share of answers that are one of their references, as SQuAD counts it (Rajpurkar et al., arXiv:1606.05250)."""
    rows = zip(predictions, references, strict=True)
    return {"exact_match": float(np.mean([normal(text) in map(normal, right) for text, right in rows]))}


def answer_f1(predictions: Texts, references: References) -> dict[str, float]:
    """F1 of an answer's words against its best reference's, averaged over answers, as SQuAD's evaluate-v1.1.py has it."""
    rows = zip(predictions, references, strict=True)
    return {"f1": float(np.mean([max(_shared_words(text, one) for one in right) for text, right in rows]))}


def normal(text: str) -> str:
    """Lower case, without punctuation, articles and repeated blanks."""
    plain = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", plain).split())


def _shared_words(text: str, reference: str) -> float:
    given, right = normal(text).split(), normal(reference).split()
    if not given or not right:
        return float(given == right)  # evaluate-v2.0.py; no question of version 1.1 has an empty answer
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
    """The text metric that `name` names: of the table, or "module:function" and "path/of/file.py:function" of the user's own,
    which gives a number or {name: number}. ValueError, one line, where there is none or its package is not installed."""
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
    """ValueError, with what installs it, where `what` needs a package that is not installed."""
    if module and importlib.util.find_spec(module) is None:
        raise ValueError(f"{what}: the package {package} is not installed; uv pip install {package}")


def declared(option: str, names: Iterable[str]) -> tuple[Metric, ...]:
    """What the named metrics give, as a page needs it."""
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
    """What a function of the user's own gives: its attribute `metrics`, or one metric of its name."""
    title = key.replace("_", " ")
    return getattr(function, "metrics", None) or (Metric(key, title[:1].upper() + title[1:]),)
