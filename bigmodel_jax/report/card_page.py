"""Write data_card.html, an offline page about a prepared corpus.

The page of a run that trains on the corpus embeds the same content.
"""

import json
import re
from html import escape
from pathlib import Path

from bigmodel_jax.core import files
from bigmodel_jax.data.corpus.prepare import CARD
from bigmodel_jax.data.inspect import readable
from bigmodel_jax.report import elements
from bigmodel_jax.report.progress import short
from bigmodel_jax.report.shell import shell

PAGE = "data_card.html"
COUNTED = ("languages", "labels")  # counts of a split that are shown beside its lengths
FILES = 50  # most input files that are shown


def build_card_page(folder: Path) -> Path:
    """Write data_card.html beside the corpus's data_card.json, and return its path."""
    card = json.loads((folder / CARD).read_text("utf-8"))
    page = folder / PAGE
    files.replace(page, shell(f"{_title(card)}: data card", _header(card) + _body(card)))
    return page


def folded_card(card: dict) -> str:
    """A corpus's card as a folded part of another page. It is empty if `card` is not a card."""
    if not {"source", "splits", "steps"} <= card.keys():
        return ""
    body = f'<div class="embedded">{_facts(card)}{_body(card)}</div>'
    return elements.panel(elements.folded(_title(card), f"{_kept(card):,} records", body))


def _title(card: dict) -> str:
    """The source, or the first of its input files."""
    names = [file["name"] for listed in card.get("inputs", {}).values() for file in listed]
    return f"{names[0]} and {len(names) - 1} more" if names[1:] else "".join(names) or str(card["source"])


def _header(card: dict) -> str:
    return f'<header><p class="kicker">Data card</p><h1>{escape(_title(card))}</h1>{_facts(card)}</header>'


def _facts(card: dict) -> str:
    read = sum(card.get("read", {}).values())
    items = [f"<b>{read:,}</b> records read", f"<b>{_kept(card):,}</b> kept"]
    items += [f"licence: {escape(card['licence'])}"] if card.get("licence") else ["no licence given"]
    return f'<p class="facts">{"".join(f"<span>{item}</span>" for item in items)}</p>'


def _body(card: dict) -> str:
    return "".join(
        (
            f'<div class="cards">{"".join(_cards(card))}</div>',
            elements.section(
                "Steps", _steps(card), "The steps in order, with the records that each one read, kept and dropped."
            ),
            elements.section("What was dropped", _dropped(card, False), "The first records that each rule dropped."),
            elements.section(
                "Duplicates", _dropped(card, True), "Each dropped record, and the earlier record that it resembles."
            ),
            elements.section("Lengths", _lengths(card)),
            elements.section("Languages and labels", _counted(card)),
            elements.section("Tokens", _tokens(card), "Counted with the config's tokenizer."),
            elements.section("Skipped as bad", _skipped(card)),
            elements.section("Settings of the steps", elements.panel(_settings(card))),
            elements.section("Digests", _digests(card)),
        )
    )


def _cards(card: dict) -> list[str]:
    read, kept = sum(card.get("read", {}).values()), _kept(card)
    splits, tokens = card["splits"], card.get("tokens", {})
    bars = [("all", 1.0, short(kept))]
    # A filter can drop every record. The page must still be written.
    bars += [(name, split["records"] / max(kept, 1), short(split["records"])) for name, split in splits.items()]
    share = f"{100 * kept / read:.1f} % of the records read" if read else ""
    found = [elements.hero("Records kept", f"{kept:,}", share, bars)]
    found += [elements.card("Characters", short(sum(s["characters"] for s in splits.values())), "in all splits")]
    if duplicates := sum(sum(s["dropped"].values()) for s in card["steps"] if s.get("compares records")):
        found += [
            elements.card("Duplicates", f"{duplicates:,}", "dropped, including records with contradicting labels")
        ]
    if tokens:
        found += [elements.card("Tokens", short(sum(t["tokens"] for t in tokens.values())), "in all splits")]
    if train := tokens.get("train"):
        used = 100 * train["used"] / train["vocabulary"]
        found += [elements.card("Tokens per byte", f"{train['tokens per byte']:.3f}", "of the training split")]
        found += [elements.card("Vocabulary used", f"{used:.1f} %", f"of {train['vocabulary']:,} tokens")]
    skipped = sum(map(len, card.get("skipped", {}).values()))
    return [*found, elements.card("Skipped as bad", f"{skipped:,}", "records")]


def _kept(card: dict) -> int:
    return sum(split["records"] for split in card["splits"].values())


def _steps(card: dict) -> str:
    rows = []
    for step in card["steps"]:
        reasons = sorted(step["dropped"].items(), key=lambda item: -item[1])
        said = ", ".join(f"{rule} {count:,}" for rule, count in reasons)
        rows.append((step["step"], f"{step['in']:,}", f"{step['out']:,}", said))
    return _table(("Step", "In", "Out", "Dropped"), rows, "steps")


def _dropped(card: dict, compares: bool) -> str:
    """Examples of dropped records by rule.

    compares: True selects the cleaning steps that compare records with one another, and False the
    other cleaning steps.
    """
    found = ""
    for step in card["steps"]:
        if step.get("compares records", False) == compares:
            for rule, examples in step["examples"].items():
                rows = [(example["text"], _why(rule, example["why"])) for example in examples]
                note = f"{step['step']} dropped {step['dropped'][rule]:,}"
                found += elements.folded(rule, note, _table(("Record", "Why"), rows, "texts"))
    return elements.panel(found)


def _why(rule: str, why: str) -> str:
    # Each reason begins with its rule, which is the table's title already.
    return "an earlier record has the same text" if why == "exact duplicate" else why.removeprefix(f"{rule}: ")


def _lengths(card: dict) -> str:
    found = "".join(
        _histogram(f"{split}: characters of a record", counts["characters of a record"])
        + _histogram(
            f"{split}: tokens of a record", card.get("tokens", {}).get(split, {}).get("tokens of a record", {})
        )
        for split, counts in card["splits"].items()
    )
    return f'<div class="figures">{found}</div>'


def _counted(card: dict) -> str:
    found = "".join(
        _histogram(f"{split}: {name}", counts[name])
        for split, counts in card["splits"].items()
        for name in COUNTED
        if counts.get(name)
    )
    return f'<div class="figures">{found}</div>' if found else ""


def _histogram(title: str, counts: dict[str, int]) -> str:
    """A table of counts with a bar for each, in the order given."""
    if not counts:
        return ""
    most = max(counts.values())
    rows = "".join(
        f"<tr><th>{escape(name)}</th><td>{count:,}</td>"
        f'<td><span class="meter wide"><b style="width:{100 * count / most:.1f}%"></b></span></td></tr>'
        for name, count in counts.items()
    )
    head = f"<thead><tr><th>{escape(title)}</th><th>Records</th><th></th></tr></thead>"
    return elements.panel(f'<table class="dense">{head}<tbody>{rows}</tbody></table>')


def _tokens(card: dict) -> str:
    splits = card.get("tokens", {})
    # Histograms and lists among the values have tables of their own.
    figures = dict.fromkeys(
        name for found in splits.values() for name, n in found.items() if isinstance(n, int | float)
    )
    rows = [(name, *(f"{found[name]:,}" for found in splits.values())) for name in figures]
    named = ""
    for split, found in splits.items():
        for name in ("commonest", "rarest"):
            pieces = [(readable(piece), f"{count:,}") for piece, count in found[name]]
            named += elements.folded(
                f"{split}: the {name}", f"{len(pieces)} tokens", _table(("Token", "Times"), pieces)
            )
    return _table(("Figure", *splits), rows) + elements.panel(named)


def _skipped(card: dict) -> str:
    rows = [entry for entries in card.get("skipped", {}).values() for entry in entries]
    # Only the file's name is shown: the folders above it may be private.
    return _table(("Where", "Why"), [(Path(where).name, why) for where, why in rows], "texts")


def _settings(card: dict) -> str:
    return "".join(
        elements.folded(step["step"], f"{len(step['fields'])} fields", elements.definitions(step["fields"]))
        for step in card["steps"]
        if step.get("fields")
    )


def _digests(card: dict) -> str:
    read = {
        f"{split}: {file['name']}, {file['bytes']:,} bytes": file["sha256"]
        for split, listed in card.get("inputs", {}).items()
        for file in listed
    }
    more = f"; the first {FILES} of {len(read)} are shown, all are in {CARD}" if len(read) > FILES else ""
    prints = {f"{split}, fingerprint": digest for split, digest in card.get("fingerprints", {}).items()}
    shown = elements.panel(elements.definitions(dict(list(read.items())[:FILES]) | prints))
    written = elements.panel(elements.definitions({**card.get("shards", {}), "key": card.get("key", "")}))
    return f'<p class="note">Input files{more}.</p>{shown}<p class="note">Written files.</p>{written}'


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]], kind: str = "") -> str:
    """An HTML table. kind: the table's class in page.css, beside `dense`."""
    if not rows:
        return ""
    names = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return elements.panel(f'<table class="dense {kind}"><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table>')


def _cell(text: str) -> str:
    """A table cell. Numbers get a class that keeps them on one line."""
    number = ' class="number"' if re.fullmatch(r"[\d.,]+", text) else ""
    return f"<td{number}>{escape(text)}</td>"
