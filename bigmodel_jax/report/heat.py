"""Draw numbers as colours: heat maps over a picture, coloured tokens, and tables.

The number sets a colour's opacity, so one map serves light and dark pages. Shares are blue. What
raises an answer is orange, and what lowers it is a lighter blue.
"""

import io
from collections.abc import Sequence
from html import escape

import numpy as np

from bigmodel_jax.report import elements

SHARE, FOR, AGAINST = (62, 105, 232), (245, 112, 22), (64, 132, 255)
LEAST = 0.02  # cells of lower opacity stay uncoloured


def scaled(values: np.ndarray, percentile: float = 99.5) -> np.ndarray:
    """Values divided by a high percentile of their magnitudes, clipped to -1 .. 1.

    Dividing by the maximum instead would leave almost all values pale.
    """
    most = np.percentile(np.abs(values), percentile) if values.size else 0
    return np.clip(values / most, -1, 1) if most > 0 else np.zeros_like(values)


def png(values: np.ndarray, color: tuple[int, int, int] | None = None) -> bytes:
    """A PNG of values (H, W) in -1 .. 1, one pixel per value.

    color: the colour of all values; None: orange above zero, blue below.
    """
    from matplotlib.image import imsave

    rgba = np.zeros((*values.shape, 4), np.uint8)
    rgba[..., :3] = color or np.where(values[..., None] < 0, AGAINST, FOR)
    # The strength is opacity, so one PNG suits the light and the dark page.
    rgba[..., 3] = np.round(255 * np.clip(np.abs(values), 0, 1))
    file = io.BytesIO()
    imsave(file, rgba, format="png")
    return file.getvalue()


def over(picture: bytes, heat: bytes | None, title: str, note: str, smooth: bool = False) -> str:
    """A figure with a caption: a picture under a stretched heat map of any size.

    heat: a PNG; None shows the picture alone, in its own colours.
    """
    layers = laid_over(picture, heat, title, " smooth" if smooth else "")
    return f"<figure>{layers}<figcaption><b>{escape(title)}</b>{escape(note)}</figcaption></figure>"


def laid_over(picture: bytes | None, heat: bytes | None, title: str, kind: str = "") -> str:
    """A heat map over a picture. Either may be missing."""
    below = elements.png(picture, "" if heat else title) if picture else ""
    above = elements.png(heat, title).replace("<img", f'<img class="heat{kind}"', 1) if heat else ""
    return f'<div class="over{"" if heat else " plain"}" title="{escape(title)}">{below}{above}</div>'


def tokens(pieces: Sequence[str], values: np.ndarray, numbers: Sequence[str], signed: bool = True) -> str:
    """A text whose tokens are coloured by values in -1 .. 1.

    numbers: the tooltip of each token. signed: whether the colour shows the sign.
    """
    spans = ""
    for piece, value, number in zip(pieces, values, numbers, strict=True):
        color = _background(value, None if signed else SHARE)
        spans += f'<span style="background:{color}" title="{escape(number)}">{visible(piece)}</span>'
    return f'<p class="tokens">{spans}</p>'


def visible(piece: str) -> str:
    """A token's text with visible blanks."""
    shown = escape(piece).replace("\n", "↵").replace("\t", "⇥")
    return f"<i>·</i>{shown[1:]}" if shown.startswith(" ") else shown or "<i>∅</i>"


def grid(
    columns: Sequence[str],
    rows: Sequence[str],
    cells: Sequence[Sequence[str]],
    values: np.ndarray,
    *,
    numbers: Sequence[Sequence[str]] | None = None,
    signed: bool = False,
) -> str:
    """A table whose cells are coloured by values in -1 .. 1.

    values: (rows, columns). numbers: the tooltip of each cell. signed: whether the colour shows the
    sign.
    """
    head = "".join(f"<th>{visible(column)}</th>" for column in columns)
    body = ""
    for n, (row, texts) in enumerate(zip(rows, cells, strict=True)):
        body += f"<tr><th>{escape(row)}</th>"
        for m, text in enumerate(texts):
            title = f' title="{escape(numbers[n][m])}"' if numbers else ""
            color = _background(values[n][m], None if signed else SHARE)
            body += f'<td style="background:{color}"{title}>{text and visible(text)}</td>'
        body += "</tr>"
    return elements.panel(f'<table class="grid"><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table>')


def sheet(maps: np.ndarray, rows: Sequence[str], picture: bytes | None = None) -> str:
    """Small maps of shares (rows, columns, H, W): a row for each layer, a map for each head.

    picture: a PNG that lies below each map.
    """
    found, color = "", SHARE if picture is None else FOR
    for name, row in zip(rows, maps, strict=True):
        found += f"<span>{escape(name)}</span>"
        for n, one in enumerate(row, 1):
            found += laid_over(picture, png(np.clip(one, 0, 1), color), f"layer {name}, head {n}")
    return elements.panel(f'<div class="maps" style="--columns:{maps.shape[1]}">{found}</div>')


def bars(names: Sequence[str], notes: Sequence[str], values: np.ndarray, numbers: Sequence[str]) -> str:
    """One row per name, with a bar.

    The bar of a positive value runs to the right of the centre, and any other bar to the left.
    """
    # The bound avoids 0 / 0 where all values are 0.
    most = max(float(np.abs(values).max(initial=0)), 1e-12)
    rows = ""
    for name, note, value, number in zip(names, notes, values, numbers, strict=True):
        side = "for" if value >= 0 else "against"
        rows += (
            f'<tr><th>{escape(name)}</th><td>{escape(note)}</td><td><span class="signed">'
            f'<b class="{side}" style="width:{50 * abs(value) / most:.2f}%"></b></span></td><td>{escape(number)}</td></tr>'
        )
    return elements.panel(f'<table class="columns"><tbody>{rows}</tbody></table>')


def _background(value: float, color: tuple[int, int, int] | None) -> str:
    strength = min(abs(float(value)), 1.0)
    if strength < LEAST:
        return "none"
    r, g, b = color or (FOR if value > 0 else AGAINST)
    return f"rgba({r},{g},{b},{0.78 * strength:.3f})"
