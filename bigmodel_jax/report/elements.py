"""Pieces of the report's HTML: every text that comes from a run is escaped here."""

import base64
import json
import re
from html import escape
from typing import Any

from bigmodel_jax.report.progress import clock, short

# How a figure is called, how it is written, and whether less or more of it is better (None: neither). A metric that is
# not here, such as one that an objective of the user's own adds, is shown all the same, under its own name.
FIGURE_NAMES = {
    "eval/bits_per_byte": ("Bits per byte", "{:.3f}", "less"),
    "eval/accuracy": ("Accuracy", "{:.2%}", "more"),
    "eval/macro_f1": ("Macro F1", "{:.2%}", "more"),
    "eval/image_to_text_top1": ("Text found for an image", "{:.2%}", "more"),
    "eval/image_to_text_top5": ("Text among the first 5", "{:.2%}", "more"),
    "eval/text_to_image_top1": ("Image found for a text", "{:.2%}", "more"),
    "eval/text_to_image_top5": ("Image among the first 5", "{:.2%}", "more"),
    "eval/unconditional_loss": ("Held-out loss, told nothing", "{:.3f}", "less"),
    "eval/loss": ("Held-out loss", "{:.3f}", "less"),
    "eval/perplexity": ("Perplexity", "{:.4g}", "less"),
    "eval/xz_bits_per_byte": ("xz -9, bits per byte", "{:.3f}", None),
    "eval/xz_primed_bits_per_byte": ("xz -9 primed, bits per byte", "{:.3f}", None),
    "eval/chance_top1": ("Found by chance", "{:.2%}", None),
    "eval/majority_accuracy": ("Commonest label's share", "{:.2%}", None),
    "train_loss": ("Training loss", "{:.3f}", "less"),
    "tokens_per_second": ("Throughput", short, "more"),
    "mfu": ("MFU", "{:.1%}", "more"),
    "step_seconds": ("Step time", lambda seconds: f"{1000 * seconds:.3g} ms", "less"),
    "data_wait_share": ("Waiting for data", "{:.2%}", "less"),
    "wall_seconds": ("Training time", clock, None),
    "step": ("Steps", "{:,.0f}", None),
}


def figure_name(key: str) -> str:
    return _figure(key)[0]


def _figure(key: str) -> tuple:
    name = key.removeprefix("eval/").replace("_", " ")
    return FIGURE_NAMES.get(key) or (name[:1].upper() + name[1:], "{:.4g}", None)


def figure_text(key: str, value: float) -> str:
    """A figure as a reader wants it: 0.3012 of MFU is 30.1 %."""
    form = _figure(key)[1]
    return (form(value) if callable(form) else form.format(value)).replace("%", " %")


def is_share(key: str) -> bool:
    """Whether a figure is written in percent."""
    return isinstance(form := _figure(key)[1], str) and form.endswith("%}")


def best(key: str, values: list[float | None]) -> str | None:
    """The best of several runs' figures, as written; None where all that can be read are the same."""
    known = [v for v in values if v is not None]
    direction = _figure(key)[2]
    if direction is None or len({figure_text(key, v) for v in known}) < 2:
        return None
    return figure_text(key, min(known) if direction == "less" else max(known))


def plain(value: Any) -> str:
    """A config value as text: strings bare, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def breakable(name: str) -> str:
    """A name that may wrap after its separators and nowhere else."""
    return re.sub(r"([._/-])", r"\1<wbr>", escape(name))


def card(name: str, value: str, note: str) -> str:
    value = f'<div class="value">{escape(value)}</div>'
    return (
        f'<div class="card"><div class="name">{escape(name)}</div>{value}<div class="note">{escape(note)}</div></div>'
    )


def hero(name: str, value: str, note: str, bars: list[tuple[str, float, str]]) -> str:
    """The run's one figure, large, over bars (name, length 0 to 1, text) of which the first is the run's own."""
    rows = "".join(
        f'<div class="bar{"" if i else " own"}"><span>{escape(text)}</span>'
        f'<i><b style="width:{100 * length:.1f}%"></b></i><span>{escape(figure)}</span></div>'
        for i, (text, length, figure) in enumerate(bars)
    )
    return (
        f'<div class="card hero"><div class="name">{escape(name)}</div><div class="value">{escape(value)}</div>'
        f'<div class="note">{escape(note)}</div><div class="bars">{rows}</div></div>'
    )


def picture(light: bytes, dark: bytes, alt: str) -> str:
    """A PNG inlined twice; the reader's colour scheme chooses."""
    return (
        f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{_data(dark)}">'
        f'<img src="{_data(light)}" alt="{escape(alt)}"></picture></figure>'
    )


def png(data: bytes, alt: str) -> str:
    return f'<img src="{_data(data)}" alt="{escape(alt)}">'


def pictures(light: dict[str, bytes], dark: dict[str, bytes]) -> str:
    return "".join(picture(light[name], dark[name], f"Plot: {name.replace('_', ' ')}") for name in light)


def definitions(rows: dict[str, Any]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(plain(v))}</dd>" for k, v in rows.items()) + "</dl>"


def folded(title: str, note: str, body: str) -> str:
    note = f'<span class="note">{escape(note)}</span>'
    return f"<details><summary>{escape(title)} {note}</summary>{body}</details>"


def section(title: str, body: str, note: str = "") -> str:
    """A titled section; nothing at all where there is nothing to show."""
    note = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{note}{body}</section>" if body else ""


def panel(body: str) -> str:
    return f'<div class="panel">{body}</div>' if body else ""


def _data(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
