"""Writes small files to try fine-tuning with: conversations about sums, and pairs of answers.

    uv run benchmarks/finetune_data.py FOLDER

FOLDER gets train.jsonl and validation.jsonl with a {"messages": [...]} per line, of one to three
questions. It also gets pairs_train.jsonl and pairs_validation.jsonl with a {"prompt", "chosen",
"rejected"} per line, whose rejected answer is a wrong sum. No question of a validation file is in a
training file.
"""

import json
import random
import sys
from pathlib import Path

SIZES = {"train": 400, "validation": 40}
MOST = 50  # the largest summand


def question(a: int, b: int) -> dict:
    return {"role": "user", "content": f"What is {a} plus {b}?"}


def answer(a: int, b: int, total: int) -> dict:
    return {"role": "assistant", "content": f"{a} + {b} = {total}"}


def conversation(sums: list[tuple[int, int]]) -> dict:
    return {"messages": [message for a, b in sums for message in (question(a, b), answer(a, b, a + b))]}


def pair(a: int, b: int, wrong: int) -> dict:
    return {"prompt": [question(a, b)], "chosen": [answer(a, b, a + b)], "rejected": [answer(a, b, wrong)]}


def write(path: Path, records: list[dict]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    print(path, f"{len(records)} records")


def main() -> None:
    folder, draw = Path(sys.argv[1]), random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    sums = [(a, b) for a in range(MOST + 1) for b in range(MOST + 1)]
    draw.shuffle(sums)
    for split, size in SIZES.items():
        own = [[sums.pop() for _ in range(draw.randint(1, 3))] for _ in range(size)]
        write(folder / f"{split}.jsonl", [conversation(talk) for talk in own])
        firsts = [(*talk[0], sum(talk[0]) + draw.choice((-10, -2, -1, 1, 2, 10))) for talk in own]
        write(folder / f"pairs_{split}.jsonl", [pair(*one) for one in firsts])


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main()
