"""Sections of explain.html for texts."""

import itertools
from collections.abc import Sequence

import numpy as np

from bigmodel_jax.explain.explained import Explained
from bigmodel_jax.explain.integrated_gradients import WITHIN, Attributions
from bigmodel_jax.explain.subject import Answer
from bigmodel_jax.explain.texts import Lens, Patch, TextExplanation
from bigmodel_jax.report import elements, heat

HEADS = 4  # heads drawn large, with their tokens
KEY = "Orange tokens raise the answer, blue ones lower it. Point at a token to see its number."
MOST_RUNS = 5  # the sentence names at most this many runs of layers
LABELLED = 24  # a map of more tokens has no token labels


def sections(found: Explained) -> str:
    """The HTML sections of one explained text."""
    result = found.result
    patch = _patch(found, result) if result.patch else ""
    return _matter(result) + _lens(result) + patch + _attention(result)


def hero(answer: Answer, asks: str, note: str) -> str:
    """The card of the answer, above bars of the likeliest answers."""
    bars = sorted(answer.top, key=lambda one: one[0] != answer.name)
    rows = [(name or "∅", share, f"{share:.0%}" if share >= 0.005 else "<1%") for name, share in bars]
    return elements.hero(asks, answer.name or "∅", note, rows)


def completeness(found: Attributions, baseline: str, unit: float = 1.0) -> str:
    """Cards that compare the attributions' sum with the answer's difference.

    By the completeness axiom the two are equal. unit: factor from the model's output to the
    answer's unit.
    """
    away = f"of the answer from {baseline}"
    apart = f"{100 * found.error:.2g} %" if found.error >= 1e-4 else "< 0.01 %"
    verdict = "difference between the two" if found.error <= WITHIN else "apart, more than 1 %: not complete"
    return (
        elements.card(
            "Attributions add up to", f"{found.total * unit:+.4g}", f"integrated gradients, {found.steps} steps"
        )
        + elements.card("The answer's difference", f"{found.difference * unit:+.4g}", away)
        + elements.card("Completeness", apart, verdict)
    )


def _matter(found: TextExplanation) -> str:
    numbers = [f"{value:+.3f}" for value in found.by_token]
    signed = heat.tokens(found.pieces, heat.scaled(found.by_token, 100), numbers)
    sizes = [f"{value:.3f}" for value in found.gradient]
    plain = heat.tokens(found.pieces, heat.scaled(found.gradient, 100), sizes, signed=False)
    exact = elements.panel(f"<h3>Integrated gradients</h3>{signed}")
    what = '<span class="note">norm of the gradient at each token, without a sign</span>'
    return elements.section(
        "Which tokens matter", f"{exact}<br>{elements.panel(f'<h3>Saliency {what}</h3>{plain}')}", KEY
    )


def _lens(found: TextExplanation) -> str:
    lens: Lens = found.lens
    rows = _layers(len(lens.shares) - 1)
    columns = found.pieces if lens.columns is None else lens.columns
    if lens.columns is None:
        cells = [[name or "∅" for name in row] for row in lens.names]
        note = "The likeliest next token if the model ended at that layer. Stronger colours mean higher probability."
    else:
        cells = [[f"{share:.0%}" for share in row] for row in lens.shares]
        note = "The probability of each class if the model ended at that layer."
    numbers = [
        [f"{name!r}: {share:.1%}" for name, share in zip(*row, strict=True)]
        for row in zip(lens.names, lens.shares, strict=True)
    ]
    order = slice(None, None, -1)  # the last layer stands on top
    body = heat.grid(columns, rows[order], cells[order], lens.shares[order], numbers=numbers[order])
    sure = next((row for row, share in zip(rows, lens.target, strict=True) if share >= 0.5), None)
    if sure is not None:
        note += f" {found.answer.name.strip()!r} has more than half of the probability from layer {sure} on."
    return elements.section("Logit lens", body, note)


def _layers(num: int) -> list[str]:
    return ["in", *(str(n) for n in range(1, num + 1))]


def _patch(explained: Explained, found: TextExplanation) -> str:
    patch: Patch = found.patch
    rows = [str(n) for n in range(patch.offset + 1, patch.offset + 1 + len(patch.restored))]
    columns = [a if a == b else f"{b}→{a}" for a, b in zip(found.pieces, patch.pieces, strict=True)]
    cells = [[f"{value:.2f}" if abs(value) >= 0.005 else "" for value in row] for row in patch.restored]
    body = heat.grid(columns, rows[::-1], cells[::-1], np.clip(patch.restored[::-1], -1, 1), signed=True)
    note = (
        f"The model reads {explained.against!r}, with the residual of {explained.title!r} at one layer and token. 0: it "
        f"answers as before; 1: as for the other text. Measured: {patch.metric}, {patch.without:+.2f} without and "
        f"{patch.with_text:+.2f} with all of it. {_held(columns, patch)}"
    )
    return elements.section("Activation patching", body, note)


def _held(columns: Sequence[str], patch: Patch) -> str:
    """A sentence on the token whose residual restores most, by runs of layers."""
    most = patch.restored.argmax(axis=1)
    parts = []
    for token, run in itertools.groupby(range(len(most)), key=lambda n: most[n]):
        layers = [n + patch.offset + 1 for n in run]
        where = f"layers {layers[0]} to {layers[-1]}" if len(layers) > 1 else f"layer {layers[0]}"
        parts.append(f"{columns[token].strip()!r} in {where}")
    return f"Most is restored at {', then '.join(parts)}." if len(parts) <= MOST_RUNS else ""


def _attention(found: TextExplanation) -> str:
    if found.maps is None:
        return ""
    L, H, T, _ = found.maps.shape
    rows = [str(n) for n in range(1, L + 1)]
    # The answer is read at the last token, or by a classifier at the first one.
    reader = -1 if found.next_token else 0
    looks = found.maps[:, :, reader].mean(axis=1)
    cells = [[f"{100 * share:.0f}" for share in row] for row in looks]
    who = "last" if found.next_token else "first"
    first = heat.grid(found.pieces, rows[::-1], cells[::-1], looks[::-1])
    parts = [
        elements.section(
            "Attention",
            first,
            f"Attention of the {who} token, from which the answer is read, in percent: the mean of {H} heads.",
        ),
        elements.section(
            "Heads that look furthest",
            _large(found.pieces, found.maps) if T <= LABELLED else "",
            "The heads with most attention to tokens other than the first and the token itself. Rows attend to columns.",
        ),
        elements.section(
            "All heads",
            heat.sheet(found.maps, rows),
            f"One row per layer, with {H} heads each. In a map, rows attend to columns.",
        ),
    ]
    return "".join(parts)


def _large(pieces: Sequence[str], maps: np.ndarray) -> str:
    """The few heads that attend most to other tokens: neither to the first one nor to the token
    itself.
    """
    T = maps.shape[-1]
    # The first token often takes the attention that no other token needs, so attention to it does
    # not count.
    others = 1 - np.eye(T)
    others[:, 0] = 0
    taken = (maps * others).sum(axis=(-1, -2)) / max(T - 1, 1)
    best = np.argsort(-taken.ravel(), kind="stable")[:HEADS]
    blocks = ""
    for layer, head in (np.unravel_index(n, taken.shape) for n in best):
        one = maps[layer, head]
        cells = [[f"{100 * share:.0f}" if share >= 0.005 else "" for share in row] for row in one]
        table = heat.grid(pieces, [piece.strip() or "␣" for piece in pieces], cells, one)
        blocks += f'<div><p class="note">Layer {layer + 1}, head {head + 1}</p>{table}</div>'
    return f'<div class="figures">{blocks}</div>'
