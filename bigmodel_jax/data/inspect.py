"""The `data` verb: shows counts, statistics and sample records of a data config."""

import itertools

import numpy as np
from rich.console import Console, Group
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from bigmodel_jax.core.terminal import make_console
from bigmodel_jax.data import shuffle
from bigmodel_jax.data.base import DataConfig, Rows
from bigmodel_jax.data.fields import Row
from bigmodel_jax.data.tokenizers.tokenizers import Tokenizer

SPLITS = ("train", "validation")
SHADES = " .:-=+*#%@"  # characters of an image's grey levels, from dark to light
COLORS = ("cyan", "yellow", "magenta", "green")
WIDTH = 100  # columns of the page


def describe(cfg: DataConfig) -> dict[str, dict]:
    """Return the counts of each split by name, as plain numbers or texts."""
    return {split: _counts(cfg.open(split)) for split in SPLITS}


def _counts(rows: Rows) -> dict:
    return rows.counts() if hasattr(rows, "counts") else {"rows": len(rows)}


def show(cfg: DataConfig, console: Console | None = None) -> None:
    """Print a page about the data, 100 columns wide."""
    console = console or make_console(width=WIDTH, highlight=False)
    origin = f" from {cfg.source.short_name()}" if hasattr(cfg, "source") else ""
    console.print(Rule(f"[bold]{type(cfg).__name__}[/]{origin}", align="left"))
    splits = {split: cfg.open(split) for split in SPLITS}
    console.print(_counts_table({split: _counts(rows) for split, rows in splits.items()}))
    console.print(PAGES[getattr(splits["train"], "shown_as", "arrays")](cfg, splits))
    for split, rows in splits.items():
        for where, reason in getattr(rows, "meta", {}).get("bad_records", ()):
            console.print(Text.assemble(("skipped ", "yellow"), f"({split}) {where}: {reason}"))


def _counts_table(splits: dict[str, dict]) -> Table:
    table = Table("", *splits, box=None, header_style="bold", pad_edge=False, padding=(0, 3, 0, 0))
    for column in table.columns[1:]:
        column.justify = "right"
    for name in splits["train"]:
        table.add_row(name, *(_number(counts[name]) for counts in splits.values()))
    return table


def _show_arrays(cfg: DataConfig, splits: dict[str, Rows]) -> Panel:
    rows = splits["train"]
    batch = rows.batch(np.arange(min(2, len(rows))), None)
    return Panel(_arrays_table(batch, cfg.row()), title="a training batch of two rows", title_align="left")


def _arrays_table(batch: dict[str, np.ndarray], row: Row) -> Table:
    """Return a table of every array: shape, declared axes, dtype and first values."""
    table = Table("array", "shape", "axes", "type", "first values", box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for name, x in batch.items():
        axes = " ".join(axis or "-" for axis in row[name].axes) if name in row else "not declared"
        values = " ".join(f"{v:.4g}" for v in x.reshape(-1)[:12])
        table.add_row(name, "x".join(map(str, x.shape)), axes, x.dtype.name, values)
    return table


def _number(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"


def _bars(counts: dict[str, int], width: int = 36) -> Table:
    """Return a table of names with counts and horizontal bars."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(justify="right", style="bold")
    table.add_column(justify="right")
    top = max(counts.values(), default=1)
    for name, count in counts.items():
        table.add_row(name, f"{count:,}", Text("█" * max(1, round(width * count / max(top, 1))), style="cyan"))
    return table


# ---------------------------------------------------------------- text


def _show_text(cfg: DataConfig, splits: dict[str, Rows]) -> Group:
    rows, tok = splits["train"], cfg.open_tokenizer()
    ids = rows.document(0)[:60]
    count = sum(np.bincount(part, minlength=tok.vocab_size) for part in rows.stream.parts())
    panels = [
        Panel(Text(tok.decode(ids)), title="a document, as text", title_align="left"),
        Panel(_pieces(tok, ids), title="the same, as tokens with their ids", title_align="left"),
        Panel(_row_table(rows, tok, cfg.row()), title=_row_title(rows), title_align="left"),
        Panel(_token_table(tok, count, rows.token_bytes), title="tokens of the training split", title_align="left"),
    ]
    return Group(*panels)


def readable(piece: str) -> str:
    """Make blanks and control characters of a token visible."""
    shown = piece.replace(" ", "·").replace("\n", "↵").replace("\t", "→")
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in shown)


def _pieces(tok: Tokenizer, ids: np.ndarray) -> Text:
    out = Text()
    for i, token in enumerate(ids.tolist()):
        out.append(readable(tok.piece(token)), style=f"bold {COLORS[i % len(COLORS)]}")
        out.append(f" {token}  ", style="dim")
    return out


def _row_with_border(rows: Rows) -> tuple[int, int]:
    """Return (row, column) where a second segment first begins, or else (0, 0)."""
    # The search is bounded, because rows of long documents may hold no border at all.
    for first in range(0, min(len(rows), 4096), 64):
        numbers = np.arange(first, min(first + 64, len(rows)))
        hits = np.argwhere(np.diff(rows.batch(numbers, None)["segment_ids"], axis=1) > 0)
        if len(hits):
            return first + int(hits[0, 0]), int(hits[0, 1]) + 1
    return 0, 0


def _row_title(rows: Rows) -> str:
    row, column = _row_with_border(rows)
    return f"row {row:,} of training, around column {column}, as the model gets it"


def _row_table(rows: Rows, tok: Tokenizer, declared: Row) -> Table:
    """Return a table of tokens, targets, segments, positions and weights of a part of one row."""
    row, column = _row_with_border(rows)
    batch = rows.batch(np.array([row]), None)
    if "places" in batch:  # a permuted row orders its tokens, and has targets only for the predicted ones
        asked = (batch["order"] > 0).astype(np.int32)
        tokens = batch["tokens"]
        batch |= {"targets": tokens, "weights": asked, "target_bytes": rows.token_bytes[tokens], "places": asked}
    along = [name for name, field in declared.items() if "seq" in field.axes and name in batch]
    first = max(0, min(column - 4, rows.seq_len - 8))
    table = Table(
        "column", "token", "target", "segment", "position", "weight", "target bytes", box=None, pad_edge=False
    )
    for i in range(first, min(first + 8, rows.seq_len)):
        cells = {name: batch[name][0, i] for name in along}
        real = cells["segment_ids"] > 0
        style = COLORS[int(cells["segment_ids"]) % len(COLORS)] if real else "dim"
        pieces = [readable(_piece(tok, int(cells[k]))) if real else "padding" for k in ("tokens", "targets")]
        names = ("segment_ids", "positions", "weights", "target_bytes")
        numbers = [f"{cells[k]:g}" if k in cells else "-" for k in names]
        table.add_row(str(i), *(Text(p, style=style) for p in pieces), *numbers)
    return table


def _piece(tok: Tokenizer, token: int) -> str:
    """Return a token as text.

    Ids beyond the tokenizer's last are [MASK] and [CLS] (see masking and sentence_pairs).
    """
    return tok.piece(token) if token < tok.vocab_size else ("[MASK]", "[CLS]")[token - tok.vocab_size]


def _token_table(tok: Tokenizer, count: np.ndarray, token_bytes: np.ndarray) -> Group:
    """Return statistics of the vocabulary: its use, the most frequent and the longest tokens."""
    unused, common = int((count == 0).sum()), np.argsort(-count, kind="stable")[:12]
    longest = np.argsort(-token_bytes, kind="stable")[:8]
    p = count[count > 0] / count.sum()
    head = Text.assemble(
        ("vocabulary ", "bold"), f"{tok.vocab_size:,}   ",
        ("never used ", "bold"), f"{unused:,} ({100 * unused / tok.vocab_size:.1f} %)   ",
        ("entropy ", "bold"), f"{-(p * np.log2(p)).sum():.2f} bits/token   ",
        # Separators stand for no text, so they do not count as tokens here.
        ("bytes per token ", "bold"), f"{token_bytes @ count / max(count.sum() - count[tok.separator], 1):.2f}",
    )  # fmt: skip
    long = Text("longest: ", style="bold")
    for i in longest.tolist():
        long.append(f"{readable(tok.piece(i))}  ", style="yellow")
    named = {readable(tok.piece(int(i))): int(count[i]) for i in common}
    return Group(head, long, Text("most frequent:", style="bold"), _bars(named))


def _show_chat(cfg: DataConfig, splits: dict[str, Rows]) -> Panel:
    """Return the shortest of the first hundred samples, with brackets around the trained text."""
    rows, model, out = splits["train"], cfg.open_tokenizer().model, Text()
    ids, trained = rows.sample(int(np.argmin(np.diff(rows.stream.offsets)[:100])))
    edges = [0, *(np.flatnonzero(np.diff(trained)) + 1).tolist(), len(ids)]
    for begin, end in itertools.pairwise(edges):
        text = model.decode(ids[begin:end].tolist(), skip_special_tokens=False)
        out.append(f"[{text}]" if trained[begin] else text, style="bold green" if trained[begin] else "")
    return Panel(out, title="a sample as the model reads it, in brackets what is trained", title_align="left")


# ---------------------------------------------------------------- images


def _show_images(cfg: DataConfig, splits: dict[str, Rows]) -> Group:
    shape = cfg.requirements()["image_shape"]
    panels = [Panel(_samples(cfg, splits["train"]), title=f"training examples, shape {shape}", title_align="left")]
    for split, rows in splits.items():
        counts = np.bincount(rows.labels, minlength=cfg.num_classes)
        bars = _bars({str(label): int(n) for label, n in enumerate(counts)})
        panels.append(Panel(bars, title=f"labels, {split}", title_align="left"))
    return Group(*panels)


def _samples(cfg: DataConfig, rows: Rows) -> Table:
    """Return three examples as seen by evaluation and, if different, by two training epochs."""
    chosen = np.linspace(0, len(rows) - 1, 4).astype(int)  # where rows are mixed, four rows are two pairs
    seen = [rows.batch(chosen, None)]
    for epoch in range(2 if rows.changes else 0):
        noise = shuffle.noise(shuffle.start(0), chosen + epoch * len(rows))
        batch = rows.batch(chosen, noise)
        seen.append(rows.mix(batch, noise) if rows.mixes else batch)
    table = Table(box=None, show_header=False, padding=(0, 1))
    table.add_column()
    for _ in range(3):
        table.add_column(no_wrap=True, overflow="crop")
    table.add_row("", *(f"label {label}" for label in rows.labels[chosen[:3]]))
    for name, batch in zip(("as stored", "epoch 1", "epoch 2"), seen, strict=False):
        table.add_row(name, *(_picture(image) for image in cfg.shown(batch["image"][:3])))
        if "soft_label" in batch:
            table.add_row("", *(title.replace(" + ", "\n+ ") for title in cfg.titles(batch)[:3]))
    return table


def _picture(image: np.ndarray) -> Text:
    """Draw an image in characters, two pixel rows per line. List the numbers of a feature row."""
    if image.ndim != 3:
        return Text(" ".join(f"{x:.3g}" for x in image[:8]) + (" …" if len(image) > 8 else ""))
    # Three pictures of at most 28 columns fit into the width of the page.
    step = -(-image.shape[1] // 28)
    gray = image[::step, ::step].mean(axis=2)
    # A terminal's character is about twice as high as wide.
    gray = gray[: len(gray) // 2 * 2].reshape(-1, 2, gray.shape[1]).mean(axis=1)[:, :28]
    levels = np.clip(gray / max(float(gray.max()), 1e-9) * (len(SHADES) - 1), 0, len(SHADES) - 1).round().astype(int)
    return Text("\n".join("".join(SHADES[v] for v in line) for line in levels), no_wrap=True)


def _show_pairs(cfg: DataConfig, splits: dict[str, Rows]) -> Panel:
    """Return three pairs: the image in characters, its text, and the text's tokens."""
    rows, tok = splits["train"], cfg.open_tokenizer()
    chosen = np.linspace(0, len(rows) - 1, 3).astype(int)
    table = Table(box=None, show_header=False, padding=(0, 1))
    for _ in chosen:
        table.add_column(no_wrap=False, width=30)
    table.add_row(*(_picture(image) for image in rows.batch(chosen, None)["image"]))
    table.add_row(*(Text(rows.texts[i], style="bold") for i in chosen))
    table.add_row(*(_pieces(tok, rows.tokens[i][rows.tokens[i] >= 0]) for i in chosen))
    return Panel(table, title="training pairs", title_align="left")


# How rows are displayed, by their attribute `shown_as`. Rows without it are shown as arrays.
PAGES = {"text": _show_text, "chat": _show_chat, "images": _show_images, "pairs": _show_pairs, "arrays": _show_arrays}
