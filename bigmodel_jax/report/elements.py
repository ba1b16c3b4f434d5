"""HTML pieces of the report pages. All text that comes from a run is escaped here."""

import base64
import json
import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from bigmodel_jax.report.plot_style import DARK, LIGHT

LONG = 10  # characters of a card's value that fit on one line at its large size


def plain(value: Any) -> str:
    """A config value as text: strings without quotes, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def breakable(name: str) -> str:
    """A name that may wrap only after its separators."""
    # The name is escaped before the tags are added, so that the tags stay unescaped.
    return re.sub(r"([._/-])", r"\1<wbr>", escape(name))


def card(name: str, value: str, note: str) -> str:
    """A card with a name, a large value and a note."""
    long = " long" if len(value) > LONG else ""
    value = f'<div class="value{long}">{escape(value)}</div>'
    return f'<div class="card"><div class="name">{breakable(name)}</div>{value}<div class="note">{escape(note)}</div></div>'


def hero(name: str, value: str, note: str, bars: list[tuple[str, float, str]]) -> str:
    """A large card with bars of (name, length 0 to 1, text). The first bar is the run's own."""
    rows = "".join(
        f'<div class="bar{"" if i else " own"}"><span>{escape(text)}</span>'
        f'<i><b style="width:{100 * length:.1f}%"></b></i><span>{escape(figure)}</span></div>'
        for i, (text, length, figure) in enumerate(bars)
    )
    return (
        f'<div class="card hero"><div class="name">{escape(name)}</div><div class="value">{escape(value)}</div>'
        f'<div class="note">{escape(note)}</div><div class="bars">{rows}</div></div>'
    )


def stacked(parts: list[tuple[str, float, str]]) -> str:
    """One bar of full width, split into (name, share 0 to 1, text), above a legend.

    The position of a piece decides its colour. Pieces beyond the number of colours are grey. Pieces
    of share 0 are left out.
    """
    colors = [f"light-dark({light},{dark})" for light, dark in zip(LIGHT.series, DARK.series, strict=True)]
    colors += ["var(--rest)"] * max(0, len(parts) - len(colors))
    shown = [(*part, color) for part, color in zip(parts, colors, strict=False) if part[1]]
    pieces = "".join(f'<i style="flex-grow:{share:.6f};background:{color}"></i>' for _, share, _, color in shown)
    rows = "".join(
        f'<li><i style="background:{color}"></i>{escape(name)}<b>{100 * share:.1f} %</b><span>{escape(text)}</span></li>'
        for name, share, text, color in shown
    )
    return panel(f'<div class="stacked"><div aria-hidden="true">{pieces}</div><ul>{rows}</ul></div>')


def picture(light: bytes, dark: bytes, alt: str) -> str:
    """Two inlined PNGs of one figure: one for light and one for dark colour schemes."""
    return (
        f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{_data(dark)}">'
        f'<img src="{_data(light)}" alt="{escape(alt)}"></picture></figure>'
    )


def png(data: bytes, alt: str) -> str:
    """An inlined PNG."""
    return f'<img src="{_data(data)}" alt="{escape(alt)}">'


def pictures(light: dict[str, bytes], dark: dict[str, bytes]) -> str:
    """Inlined figures by name, each with a light and a dark version."""
    return "".join(picture(light[name], dark[name], f"Plot: {name.replace('_', ' ')}") for name in light)


def definitions(rows: dict[str, Any]) -> str:
    """A definition list of config values."""
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(plain(v))}</dd>" for k, v in rows.items()) + "</dl>"


def folded(title: str, note: str, body: str) -> str:
    """A block that is folded under its title."""
    note = f'<span class="note">{escape(note)}</span>'
    return f"<details><summary>{escape(title)} {note}</summary>{body}</details>"


def section(title: str, body: str, note: str = "") -> str:
    """A titled section. It is empty if `body` is empty."""
    note = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{note}{body}</section>" if body else ""


def panel(body: str) -> str:
    """A framed block. It is empty if `body` is empty."""
    return f'<div class="panel">{body}</div>' if body else ""


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """A framed table of texts. The first cell of each row is its header.

    kind: the table's class in page.css.
    """
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    body = "".join(
        f"<tr><th>{escape(first)}</th>{''.join(f'<td>{escape(text)}</td>' for text in rest)}</tr>"
        for first, *rest in rows
    )
    named = f' class="{kind}"' if kind else ""
    return panel(f"<table{named}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")


def _data(png: bytes) -> str:
    # A page loads nothing from elsewhere, so each picture is a part of it.
    return "data:image/png;base64," + base64.b64encode(png).decode()
