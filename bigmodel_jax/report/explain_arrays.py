"""Sections of explain.html for pictures and for rows of numbers."""

from collections.abc import Iterator

import numpy as np

from bigmodel_jax.data.images import pictures
from bigmodel_jax.explain import saliency
from bigmodel_jax.explain.arrays import ArrayExplanation
from bigmodel_jax.explain.explained import Explained
from bigmodel_jax.report import elements, heat

LOOKS = "Each map lies over the dimmed input. Its colours are scaled to its own largest value."
COLUMNS = "Integrated gradients from the mean of every column. Orange raises the answer, blue lowers it."
MOST_PIXELS = 448  # longest side; larger pictures keep every second or third pixel


def sections(found: Explained) -> str:
    """The HTML sections of one explained picture or row."""
    result = found.result
    return (_picture(found, result) if found.shown.ndim == 3 else _columns(found, result)) + _layers(found, result)


def _png(found: Explained) -> bytes:
    step = -(-max(found.shown.shape[:2]) // MOST_PIXELS)
    shown = found.shown[::step, ::step]
    # A PNG holds 1 channel (grey) or 3 (RGB). Of any other number, the picture shows the mean.
    shown = shown if shown.shape[-1] in (1, 3) else shown.mean(axis=-1, keepdims=True)
    return pictures.encode(np.round(255 * shown).astype(np.uint8))


def _picture(found: Explained, result: ArrayExplanation) -> str:
    base, height, width = _png(found), *found.shown.shape[:2]
    looks = [(None, "Input", f"As the model receives it, {width} × {height} pixels", False)]
    for name, values, color, note, smooth in _maps(result):
        looks.append((heat.png(values, color), name, note, smooth))
    figures = "".join(heat.over(base, *look) for look in looks)
    return elements.section("Where it looks", f'<div class="looks">{figures}</div>', LOOKS)


def _maps(result: ArrayExplanation) -> Iterator[tuple[str, np.ndarray, tuple[int, int, int] | None, str, bool]]:
    """Yield (name, values in -1 .. 1, colour of unsigned maps, note, whether the map is
    blurred).
    """
    # A pixel's attribution is the sum over its channels.
    by_pixel = np.asarray(result.integrated.values[0]).sum(axis=-1)
    yield "Integrated gradients", heat.scaled(by_pixel), None, "Orange raises the answer, blue lowers it", False
    if result.cam is not None:
        note = f"Where the last maps ({result.cam.shape[1]} × {result.cam.shape[0]}) raise the answer"
        yield "Grad-CAM", heat.scaled(result.cam, 100), heat.FOR, note, True
    if result.rollout is not None:
        note = "Attention of the class token to each patch, through all layers"
        yield "Attention rollout", heat.scaled(result.rollout, 100), heat.FOR, note, False
    gradient, smooth = (heat.scaled(np.asarray(saliency.by_place(x))) for x in (result.gradient, result.smooth))
    yield "Saliency", gradient, heat.FOR, "How strongly the answer changes with each pixel", False
    yield "SmoothGrad", smooth, heat.FOR, "The mean gradient over 50 noisy copies", False


def _columns(found: Explained, result: ArrayExplanation) -> str:
    values = np.asarray(result.integrated.values[0]).ravel() * found.unit
    own = np.asarray(found.shown).ravel()
    names = found.names or tuple(f"column {n}" for n in range(len(own)))
    order = np.argsort(-np.abs(values), kind="stable")
    body = heat.bars(
        [names[n] for n in order],
        [f"{own[n]:,.4g}" for n in order],
        values[order],
        [f"{values[n]:+.4g}" for n in order],
    )
    return elements.section("Which columns matter", body, COLUMNS)


def _layers(found: Explained, result: ArrayExplanation) -> str:
    """Sections on layers and attention heads, for models with one stack of layers."""
    parts = []
    if result.lens is not None:
        rows = ["in", *(str(n) for n in range(1, len(result.lens.shares)))][::-1]
        shares = result.lens.shares[::-1]
        cells = [[f"{share:.0%}" for share in row] for row in shares]
        grid = heat.grid(result.lens.columns, rows, cells, shares)
        note = "The probability of the likeliest classes if the model ended at each layer."
        parts.append(elements.section("Logit lens", grid, note))
    if result.rollout is not None:
        rows, columns = result.rollout.shape
        # Query 0 is the class token. Keys before `first` are not patches.
        maps = result.maps[:, :, 0, result.first :].reshape(*result.maps.shape[:2], rows, columns)
        # The bound avoids 0 / 0 in a map of zeros.
        maps = maps / np.maximum(maps.max(axis=(-1, -2), keepdims=True), 1e-9)
        sheet = heat.sheet(maps, [str(n) for n in range(1, len(maps) + 1)], _png(found))
        parts.append(
            elements.section(
                "Heads", sheet, "Attention of the class token to each patch. Rows are layers, and each map is one head."
            )
        )
    return "".join(parts)
