"""Tables of answers to held-out prompts after several steps, from samples/<step>.jsonl.

Each line is {"prompt", "response"} with optional "reward", "rewards" ({name: number}) and
"finished". Other keys are ignored.
"""

import json
import string
from html import escape
from pathlib import Path
from typing import Any

from bigmodel_jax.report import elements

MOST_ROWS = 32
CHARACTERS = 600  # longest prompt or response that is shown
PNG, BASE64 = "data:image/png;base64,", frozenset(string.ascii_letters + string.digits + "+/=")
SHOWN = 1  # how many tables are open; older ones are folded

Answers = list[tuple[str, list[dict]]]


def read_answers(path: Path) -> Answers:
    """(file name, rows) of a run's samples, ordered by step.

    Lines that are not JSON objects are skipped.
    """
    files = sorted(path.glob("samples/*.jsonl"), key=lambda f: (len(f.stem), f.stem))
    return [(f.name, _lines(f.read_text(encoding="utf-8", errors="replace"))) for f in files]


def _lines(text: str) -> list[dict]:
    found = []
    for line in text.splitlines()[:MOST_ROWS]:
        try:
            value = json.loads(line)
        # One damaged line must not cost the page. Deeply nested JSON overflows the parser's stack,
        # so RecursionError is caught as well.
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def tables(answers: Answers) -> str:
    """HTML tables, the newest first. Older tables are folded."""
    blocks = [(name, _table(rows)) for name, rows in reversed(answers) if rows]
    shown = "".join(_figure(*block) for block in blocks[:SHOWN])
    older = [elements.folded(_title(name), "", body) for name, body in blocks[SHOWN:]]
    return shown + (elements.panel("".join(older)) if older else "")


def _title(name: str) -> str:
    step, _, evaluation_set = name.removesuffix(".jsonl").partition(".")
    named = f" of {evaluation_set}" if evaluation_set else ""
    return f"Answers{named} after step {int(step):,}" if step.isdecimal() else name


def _figure(name: str, body: str) -> str:
    return f'<figure class="sample"><figcaption>{escape(_title(name))}</figcaption>{body}</figure>'


def _table(rows: list[dict]) -> str:
    scored = any("reward" in row for row in rows)
    parts = dict.fromkeys(str(name) for row in rows for name in _parts(row))
    heads = [
        *(["Picture", "Right"] if any("picture" in row for row in rows) else []),
        "Prompt",
        "Response",
        *(["Reward"] if scored else []),
        *parts,
    ]
    body = "".join(f"<tr>{''.join(_cells(row, scored, list(parts)))}</tr>" for row in rows)
    names = "".join(f"<th>{escape(name)}</th>" for name in heads)
    return f'<div class="answers"><table><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table></div>'


def _parts(row: dict) -> dict:
    parts = row.get("rewards")
    return parts if isinstance(parts, dict) else {}


def _cells(row: dict, scored: bool, parts: list[str]) -> list[str]:
    cut = "" if row.get("finished", True) else ' <span class="note">cut off</span>'
    cells = _picture(row) if "picture" in row else []
    cells += [f"<td>{_text(row.get('prompt', ''))}</td>", f"<td>{_text(row.get('response', ''))}{cut}</td>"]
    numbers = [row.get("reward")] if scored else []
    numbers += [_parts(row).get(name) for name in parts]
    return cells + [f'<td class="number">{_number(value)}</td>' for value in numbers]


def _picture(row: dict) -> list[str]:
    """Two table cells: the picture that a prompt is about, and the right answer.

    Only a PNG data URI is shown, so that the page loads nothing from elsewhere.
    """
    address = str(row["picture"])
    # The text lands in an attribute without escaping, so only characters of base64 pass.
    known = address.startswith(PNG) and not set(address.removeprefix(PNG)) - BASE64
    image = f'<img src="{address}" width="64" alt="">' if known else ""
    return [f"<td>{image}</td>", f"<td>{_text(row.get('answer', ''))}</td>"]


def _text(value: Any) -> str:
    """Escaped text.

    Messages become lines of role and content.
    """
    if isinstance(value, list):
        value = "\n".join(f"{m.get('role', '')}: {m.get('content', '')}" for m in value if isinstance(m, dict))
    text = str(value)
    return escape(text if len(text) <= CHARACTERS else f"{text[:CHARACTERS]} ...")


def _number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, int | float) else ""
