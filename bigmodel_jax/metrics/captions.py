"""CIDEr-D, a metric that compares a caption with its reference captions.

Words that are rare in the other pictures' references weigh more. Source: Vedantam et al.,
arXiv:1411.5726, section 6, with the constants of the coco-caption implementation: n-grams of 1 to 4
words, sigma = 6, scores from 0 to 10.

Words are lower-cased and stripped of punctuation. They are not stemmed, and the tokenizer is not
that of the Penn Treebank. The document frequencies come from the references given, so scores on
different sets cannot be compared. A caption of fewer than four words has no n-grams of some
lengths, and these lengths add 0 to its score.
"""

import collections
import math
import string
from collections.abc import Sequence

import numpy as np

MOST, SIGMA = 4, 6.0
Counts = collections.Counter
PLAIN = str.maketrans(string.punctuation, " " * len(string.punctuation))


def cider(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """CIDEr-D from 0 to 10, averaged over the predictions. Each has one or more references."""
    told = [[grams(text) for text in row] for row in references]
    found: Counts = Counts(gram for row in told for gram in set().union(*row))
    rows = zip(predictions, told, strict=True)
    return {"cider": float(np.mean([_score(grams(text), row, found, len(told)) for text, row in rows]))}


def grams(text: str) -> Counts:
    """Counts every sequence of 1 to 4 words in a text."""
    words = text.lower().translate(PLAIN).split()
    return Counts(tuple(words[i : i + n]) for n in range(1, MOST + 1) for i in range(len(words) - n + 1))


def _score(given: Counts, right: Sequence[Counts], found: Counts, rows: int) -> float:
    return float(np.mean([_similar(given, one, found, rows) for one in right]))


def _similar(given: Counts, right: Counts, found: Counts, rows: int) -> float:
    """10 times the mean over n of the clipped cosine between the weighted n-gram counts.

    A Gaussian factor lowers the score where the two lengths differ.
    """
    apart = _length(given) - _length(right)
    one, other = (_weighted(counts, found, rows) for counts in (given, right))
    cosines = []
    for n in range(1, MOST + 1):
        a, b = ({g: x for g, x in side.items() if len(g) == n} for side in (one, other))
        size = math.sqrt(sum(x * x for x in a.values())) * math.sqrt(sum(x * x for x in b.values()))
        # The minimum stops a caption from gaining by repeated words.
        cosines.append(sum(min(x, b[g]) * b[g] for g, x in a.items() if g in b) / size if size else 0.0)
    return 10 * float(np.mean(cosines)) * math.exp(-(apart**2) / (2 * SIGMA**2))


def _weighted(counts: Counts, found: Counts, rows: int) -> dict[tuple[str, ...], float]:
    """Multiplies each count by the log of the n-gram's inverse document frequency.

    The references of one picture are one document.
    """
    # An n-gram that no reference has counts as if one picture had it, so the logarithm is finite.
    return {gram: x * math.log(rows / max(found[gram], 1)) for gram, x in counts.items()}


def _length(counts: Counts) -> int:
    return sum(x for gram, x in counts.items() if len(gram) == 1)
