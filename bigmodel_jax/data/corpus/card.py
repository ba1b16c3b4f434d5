"""The data card: what each step received, returned and dropped, and what remains."""

from collections import Counter
from typing import Any

from bigmodel_jax.data.cleaning.step import Shared, Step
from bigmodel_jax.data.corpus.outcome import Kept

EXAMPLES = 3  # dropped texts that the card shows per rule


class Tally:
    """Counts that grow record by record. A tally can be rebuilt from its JSON `state`."""

    def __init__(self, num_steps: int, state: dict | None = None):
        state = state or {}
        self.steps = state.get("steps") or [
            {"in": 0, "out": 0, "dropped": {}, "examples": {}} for _ in range(num_steps)
        ]
        counters = ("lengths", "languages", "labels")
        self.splits = {
            split: {name: Counter(value) if name in counters else value for name, value in counts.items()}
            for split, counts in state.get("splits", {}).items()
        }

    def step(self, i: int, gave: int, why: str, shown: str) -> None:
        """Count one record of step i: it gave `gave` records.

        Where it gave none, `why` is the reason and `shown` the beginning of the record's text.
        """
        counts = self.steps[i]
        counts["in"] += 1
        counts["out"] += gave
        if not gave:
            rule = why.partition(":")[0]
            counts["dropped"][rule] = counts["dropped"].get(rule, 0) + 1
            examples = counts["examples"].setdefault(rule, [])
            if len(examples) < EXAMPLES:
                examples.append({"why": why, "text": shown})

    def kept(self, record: Kept) -> None:
        """Count a record that passed all steps."""
        if record.split not in self.splits:
            self.splits[record.split] = _nothing()
        counts = self.splits[record.split]
        counts["records"] += 1
        counts["characters"] += record.characters
        # The key is a text, because JSON would turn a number into one when the tally is stored.
        counts["lengths"][str(record.characters.bit_length())] += 1
        counts["languages"][record.language] += 1
        counts["labels"][record.label] += 1

    def add(self, state: dict[str, Any]) -> None:
        """Add the counts of another tally, whose records come after this one's."""
        for counts, more in zip(self.steps, state["steps"], strict=True):
            counts["in"] += more["in"]
            counts["out"] += more["out"]
            for rule, number in more["dropped"].items():
                counts["dropped"][rule] = counts["dropped"].get(rule, 0) + number
                examples = counts["examples"].setdefault(rule, [])
                examples += more["examples"][rule][: EXAMPLES - len(examples)]
        for split, more in state["splits"].items():
            counts = self.splits.setdefault(split, _nothing())
            for name, value in more.items():
                counts[name] += value

    def state(self) -> dict[str, Any]:
        """Return the counts as JSON-serializable values."""
        return {"steps": self.steps, "splits": self.splits}


def _nothing() -> dict[str, Any]:
    return {"records": 0, "characters": 0, "lengths": Counter(), "languages": Counter(), "labels": Counter()}


def card(tally: Tally, steps: tuple[Step, ...], facts: dict[str, Any]) -> dict[str, Any]:
    """Return the whole card as JSON-serializable values, beginning with `facts`."""
    described = [
        {"step": type(step).__name__, "fields": step.facts(), "compares records": isinstance(step, Shared), **counts}
        for step, counts in zip(steps, tally.steps, strict=True)
    ]
    return facts | {
        "splits": {split: _split(counts) for split, counts in sorted(tally.splits.items())},
        "steps": described,
    }


def _split(counts: dict[str, Any]) -> dict[str, Any]:
    """Return a split's counts under readable names. Fields that no record has are left out."""
    found = {name: counts[name] for name in ("records", "characters")}
    found["characters of a record"] = by_range({int(bits): n for bits, n in counts["lengths"].items()})
    for name in ("languages", "labels"):
        # The empty key counts the records that have no such field.
        named = {key: n for key, n in counts[name].most_common() if key}
        if named:
            found[name] = named
            found[f"without {name[:-1]}"] = counts[name][""]
    if labels := found.get("labels"):
        found["imbalance"] = round(max(labels.values()) / min(labels.values()), 3)
    return found


def by_range(counts: dict[int, int]) -> dict[str, int]:
    """Return a histogram by ranges of numbers, {"4 to 7": 12}, from counts by number of bits."""
    names = {bits: f"{1 << (bits - 1)} to {(1 << bits) - 1}" if bits else "0" for bits in counts}
    return {names[bits]: counts[bits] for bits in sorted(counts)}
