"""What a data config feeds: counts, records before and after each transform, statistics. The `data` verb."""

import numpy as np
from rich.console import Console, Group
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from bigmodel_jax.data import shuffle
from bigmodel_jax.data.base import DataConfig, Rows
from bigmodel_jax.data.images.image import ImageRows
from bigmodel_jax.data.images.image_text import ImageTextRows
from bigmodel_jax.data.text.chat_data import ChatRows
from bigmodel_jax.data.text.text import TextRows, tokenizer
from bigmodel_jax.data.tokenizers.tokenizers import Tokenizer

SPLITS = ("train", "validation")
SHADES = " .:-=+*#%@"
COLORS = ("cyan", "yellow", "magenta", "green")
WIDTH = 100


def describe(cfg: DataConfig) -> dict[str, dict]:
    """Counts of each split by name, as plain numbers."""
    return {split: _counts(cfg.open(split)) for split in SPLITS}


def _counts(rows: Rows) -> dict:
    if isinstance(rows, TextRows):
        return _text_counts(rows)
    if isinstance(rows, ImageTextRows):
        return _pair_counts(rows)
    if isinstance(rows, ChatRows):
        return _chat_counts(rows)
    return _image_counts(rows) if isinstance(rows, ImageRows) else {"rows": len(rows)}


def show(cfg: DataConfig, console: Console | None = None) -> None:
    """Prints a page about the data, 100 columns wide."""
    console = console or Console(width=WIDTH, highlight=False)
    origin = f" from {cfg.source.short_name()}" if hasattr(cfg, "source") else ""
    console.print(Rule(f"[bold]{type(cfg).__name__}[/]{origin}", align="left"))
    splits = {split: cfg.open(split) for split in SPLITS}
    console.print(_counts_table({split: _counts(rows) for split, rows in splits.items()}))
    train = splits["train"]
    if isinstance(train, TextRows):
        console.print(_show_text(train, tokenizer(cfg)))
    elif isinstance(train, ImageRows):
        console.print(_show_images(splits, cfg.num_classes))
    elif isinstance(train, ImageTextRows):
        console.print(_show_pairs(train, tokenizer(cfg)))
    else:
        console.print(Panel(_arrays_table(train), title="a training batch of two rows", title_align="left"))
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


def _arrays_table(rows: Rows) -> Table:
    """Every array of a batch: shape, type and first values."""
    table = Table("array", "shape", "type", "first values", box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for name, x in rows.batch(np.arange(min(2, len(rows))), None).items():
        values = " ".join(f"{v:.4g}" for v in x.reshape(-1)[:12])
        table.add_row(name, "x".join(map(str, x.shape)), x.dtype.name, values)
    return table


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"


def _bars(counts: dict[str, int], width: int = 36) -> Table:
    """Names with counts and horizontal bars."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(justify="right", style="bold")
    table.add_column(justify="right")
    top = max(counts.values(), default=1)
    for name, count in counts.items():
        table.add_row(name, f"{count:,}", Text("█" * max(1, round(width * count / max(top, 1))), style="cyan"))
    return table


# ---------------------------------------------------------------- text


def _text_counts(rows: TextRows) -> dict:
    meta, cells = rows.meta, len(rows) * rows.seq_len
    return {
        "documents": meta["documents"],
        "characters": meta["characters"],
        "UTF-8 bytes": meta["bytes"],
        "tokens": meta["tokens"],
        "bytes per token": meta["bytes"] / meta["tokens"],
        f"rows of {rows.seq_len} tokens": len(rows),
        "padding, % of row cells": 100 * (1 - (len(rows.stream) - 1) / cells),
        "skipped records": len(meta["bad_records"]),
    }


def _show_text(rows: TextRows, tok: Tokenizer) -> Group:
    ids = rows.document(0)[:60]
    count = np.bincount(rows.stream, minlength=tok.vocab_size)
    panels = [
        Panel(Text(tok.decode(ids)), title="a document, as text", title_align="left"),
        Panel(_pieces(tok, ids), title="the same, as tokens with their ids", title_align="left"),
        Panel(_row_table(rows, tok), title=_row_title(rows), title_align="left"),
        Panel(_token_table(tok, count, rows.token_bytes), title="tokens of the training split", title_align="left"),
    ]
    return Group(*panels)


def _readable(piece: str) -> str:
    """A piece whose blanks and control characters can be seen."""
    shown = piece.replace(" ", "·").replace("\n", "↵").replace("\t", "→")
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in shown)


def _pieces(tok: Tokenizer, ids: np.ndarray) -> Text:
    out = Text()
    for i, token in enumerate(ids.tolist()):
        out.append(_readable(tok.piece(token)), style=f"bold {COLORS[i % len(COLORS)]}")
        out.append(f" {token}  ", style="dim")
    return out


def _row_with_border(rows: TextRows) -> tuple[int, int]:
    """(row, column) of the first place where a second segment begins, or else the front of row 0."""
    for first in range(0, min(len(rows), 4096), 64):
        numbers = np.arange(first, min(first + 64, len(rows)))
        hits = np.argwhere(np.diff(rows.batch(numbers, None)["segment_ids"], axis=1) > 0)
        if len(hits):
            return first + int(hits[0, 0]), int(hits[0, 1]) + 1
    return 0, 0


def _row_title(rows: TextRows) -> str:
    row, column = _row_with_border(rows)
    return f"row {row:,} of training, around column {column}, as the model gets it"


def _row_table(rows: TextRows, tok: Tokenizer) -> Table:
    """Tokens, targets, segments, positions and weights of a stretch of one row."""
    row, column = _row_with_border(rows)
    batch = rows.batch(np.array([row]), None)
    if "places" in batch:  # permuted rows: an order for each token, targets only of those that are predicted
        asked = (batch["order"] > 0).astype(np.int32)
        tokens = batch["tokens"]
        batch |= {"targets": tokens, "weights": asked, "target_bytes": rows.token_bytes[tokens], "places": asked}
    first = max(0, min(column - 4, rows.seq_len - 8))
    table = Table(
        "column", "token", "target", "segment", "position", "weight", "target bytes", box=None, pad_edge=False
    )
    for i in range(first, min(first + 8, rows.seq_len)):
        cells = {k: v[0, i] for k, v in batch.items() if v.ndim > 1}
        real = cells["segment_ids"] > 0
        style = COLORS[int(cells["segment_ids"]) % len(COLORS)] if real else "dim"
        pieces = [_readable(_piece(tok, int(cells[k]))) if real else "padding" for k in ("tokens", "targets")]
        names = ("segment_ids", "positions", "weights", "target_bytes")
        numbers = [f"{cells[k]:g}" if k in cells else "-" for k in names]
        table.add_row(str(i), *(Text(p, style=style) for p in pieces), *numbers)
    return table


def _piece(tok: Tokenizer, token: int) -> str:
    """A token as text; marks that the tokenizer lacks lie beyond its last (see masking and sentence_pairs)."""
    return tok.piece(token) if token < tok.vocab_size else ("[MASK]", "[CLS]")[token - tok.vocab_size]


def _token_table(tok: Tokenizer, count: np.ndarray, token_bytes: np.ndarray) -> Group:
    """Use of the vocabulary: how much of it, the commonest and the longest tokens."""
    unused, common = int((count == 0).sum()), np.argsort(-count, kind="stable")[:12]
    longest = np.argsort(-token_bytes, kind="stable")[:8]
    p = count[count > 0] / count.sum()
    head = Text.assemble(
        ("vocabulary ", "bold"), f"{tok.vocab_size:,}   ",
        ("never used ", "bold"), f"{unused:,} ({100 * unused / tok.vocab_size:.1f} %)   ",
        ("entropy ", "bold"), f"{-(p * np.log2(p)).sum():.2f} bits/token   ",
        ("bytes per token ", "bold"), f"{token_bytes @ count / max(count.sum() - count[tok.separator], 1):.2f}",
    )  # fmt: skip
    long = Text("longest: ", style="bold")
    for i in longest.tolist():
        long.append(f"{_readable(tok.piece(i))}  ", style="yellow")
    named = {_readable(tok.piece(int(i))): int(count[i]) for i in common}
    return Group(head, long, Text("most frequent:", style="bold"), _bars(named))


def _chat_counts(rows: ChatRows) -> dict:
    fed = int(rows.plan.lengths.sum())
    return {
        "conversations": rows.meta["conversations"],
        "samples": len(rows.stream.offsets) - 1,
        "too long, dropped": rows.meta["dropped"],
        "too long, cut at the front": rows.meta["cut"],
        "tokens": fed,
        f"rows of {rows.seq_len} tokens": len(rows),
        "padding, % of row cells": 100 * (1 - fed / (len(rows) * rows.seq_len)),
        "skipped records": len(rows.meta["bad_records"]),
    }


# ---------------------------------------------------------------- images


def _image_counts(rows: ImageRows) -> dict:
    return {
        "examples": len(rows),
        "classes present": len(np.unique(rows.labels)),
        "values, smallest": float(rows.images.min()),
        "values, mean": float(rows.images.mean()),
        "values, largest": float(rows.images.max()),
        "skipped records": len(rows.meta["bad_records"]),
    }


def _show_images(splits: dict[str, ImageRows], num_classes: int) -> Group:
    shape = splits["train"].images.shape[1:]
    panels = [Panel(_samples(splits["train"]), title=f"training examples, shape {shape}", title_align="left")]
    for split, rows in splits.items():
        counts = np.bincount(rows.labels, minlength=num_classes)
        bars = _bars({str(label): int(n) for label, n in enumerate(counts)})
        panels.append(Panel(bars, title=f"labels, {split}", title_align="left"))
    return Group(*panels)


def _samples(rows: ImageRows) -> Table:
    """Three examples: as stored (first line), and as two epochs of training see them."""
    chosen = np.linspace(0, len(rows) - 1, 3).astype(int)
    seen = [rows.batch(chosen, None)]
    if rows.max_shift:
        seen += [rows.batch(chosen, shuffle.noise(shuffle.start(0), chosen + e * len(rows))) for e in range(2)]
    table = Table(box=None, show_header=False, padding=(0, 1))
    table.add_column()
    for _ in chosen:
        table.add_column(no_wrap=True, overflow="crop")
    table.add_row("", *(f"label {label}" for label in rows.labels[chosen]))
    for name, batch in zip(("as stored", "epoch 1", "epoch 2"), seen, strict=False):
        table.add_row(name, *(_picture(image) for image in batch["image"]))
    return table


def _picture(image: np.ndarray) -> Text:
    """An image in characters, two pixel rows to a line; rows of numbers as numbers."""
    if image.ndim != 3:
        return Text(" ".join(f"{x:.3g}" for x in image[:8]) + (" …" if len(image) > 8 else ""))
    gray = image.mean(axis=2)
    gray = gray[: len(gray) // 2 * 2].reshape(-1, 2, gray.shape[1]).mean(axis=1)[:, :28]
    levels = np.clip(gray / max(float(gray.max()), 1e-9) * (len(SHADES) - 1), 0, len(SHADES) - 1).round().astype(int)
    return Text("\n".join("".join(SHADES[v] for v in line) for line in levels), no_wrap=True)


def _pair_counts(rows: ImageTextRows) -> dict:
    lengths = (rows.tokens >= 0).sum(axis=1)
    return {
        "pairs": len(rows),
        "distinct texts": len(set(rows.texts)),
        "pixels a side": rows.images.shape[1],
        "tokens a text, mean": float(lengths.mean()),
        f"texts of all {rows.tokens.shape[1]} tokens": int((lengths == rows.tokens.shape[1]).sum()),
        "skipped records": len(rows.meta["bad_records"]),
    }


def _show_pairs(rows: ImageTextRows, tok: Tokenizer) -> Panel:
    """Three pairs: the picture in characters, the text, and its tokens."""
    chosen = np.linspace(0, len(rows) - 1, 3).astype(int)
    table = Table(box=None, show_header=False, padding=(0, 1))
    for _ in chosen:
        table.add_column(no_wrap=False, width=30)
    table.add_row(*(_picture(image) for image in rows.batch(chosen, None)["image"]))
    table.add_row(*(Text(rows.texts[i], style="bold") for i in chosen))
    table.add_row(*(_pieces(tok, rows.tokens[i][rows.tokens[i] >= 0]) for i in chosen))
    return Panel(table, title="training pairs", title_align="left")
