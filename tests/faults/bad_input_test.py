"""A user's mistake is one clear line and exit code 2; nothing is written, and no earlier run is
touched."""

import hashlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import runs
from bigmodel_jax import cli

DATA_CONFIG = """
import dataclasses, importlib.util
from bigmodel_jax.data import CsvFiles, ImageData, JsonlFiles
from bigmodel_jax.models import MLPConfig
from bigmodel_jax.objectives import Classification

spec = importlib.util.spec_from_file_location("tiny", {tiny!r})
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)

def get_config():
    config = tiny.get_config()
"""
JSONL = """    data = dataclasses.replace(config.data, source=JsonlFiles(train={path!r}, validation={path!r}))
    return dataclasses.replace(config, data=data)
"""
CSV = """    return dataclasses.replace(
        config, model=MLPConfig((2,), 3, (4,)), objective=Classification(),
        data=ImageData(source=CsvFiles(train={path!r}, validation={path!r}), num_classes=3, cache_dir={cache!r}),
    )
"""


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return make_template(tmp_path_factory.mktemp("bad") / "here")


def make_template(folder: Path) -> Path:
    """A config file, bad variants of it, bad data, and a trained run of 4 steps, in a new
    folder."""
    folder.mkdir()
    tiny = runs.write(folder)
    cli.main(["train", str(tiny), "--run_dir", str(folder / "run"), "--train.steps", "4", *runs.BARE])
    text = tiny.read_text()
    head = DATA_CONFIG.format(tiny=str(tiny))
    csv, jsonl, cache = folder / "rows.csv", folder / "cut.jsonl", str(folder / "cache")
    csv.write_text("a,b,label\n1,2,0\n3,4,3\n")
    jsonl.write_text('{"text": "whole"}\n{"text": "cut sho\n')
    (folder / "empty.txt").write_text("")
    (folder / "latin.txt").write_bytes(b"caf\xe9")
    (folder / "no_get_config.py").write_text("config = 3\n")
    (folder / "raises.py").write_text("def get_config():\n    return 1 / 0\n")
    (folder / "syntax.py").write_text("def get_config(:\n")
    (folder / "returns_dict.py").write_text("def get_config():\n    return {}\n")
    (folder / "unknown_model.py").write_text(
        re.sub(r"model=LlamaConfig\(.*?\n        \),", 'model="lama",', text, flags=re.S)
    )
    (folder / "typo.py").write_text(text.replace("warmup_steps", "warmup_step"))
    (folder / "jsonl.py").write_text(head + JSONL.format(path=str(jsonl)))
    (folder / "csv.py").write_text(head + CSV.format(path=str(csv), cache=cache))
    saved = json.loads((folder / "run" / "config.json").read_text())
    for name, change in {
        "unknown_type": lambda c: c["model"].update(type="bigmodel_jax.models.llama:LamaConfig"),
        "unknown_field": lambda c: c["optim"].update(learning_rate=1),
        "missing_field": lambda c: c.pop("data"),
    }.items():
        config = json.loads(json.dumps(saved))
        change(config)
        (folder / f"{name}.json").write_text(json.dumps(config))
    (folder / "cut.json").write_text(json.dumps(saved)[:100])
    shutil.copytree(folder / "run", folder / "unsaved")
    shutil.rmtree(folder / "unsaved" / "checkpoints")
    (folder / "unsaved" / "checkpoints" / "4.orbax-checkpoint-tmp").mkdir(parents=True)
    return folder


class Case(NamedTuple):
    """args: of the command line, with {here} for the folder; says: what the line must contain."""

    args: str
    says: tuple[str, ...]


TRAIN = "train {here}/tiny.py --run_dir {here}/new "
CASES = {
    # --- the command line
    "unknown verb": Case("trian {here}/tiny.py", ("'trian'", "'train'", "generate")),
    "no config": Case("train --train.steps 3", ("train", "CONFIG")),
    "misspelt option": Case(TRAIN + "--optim.lrr 1", ("--optim.lrr 1", "'--optim.lr'")),
    "misspelt option of generate": Case("generate {here}/run --promt a", ("--promt", "'--prompt'")),
    "wrong type": Case(TRAIN + "--train.steps many", ("--train.steps", "'many'", "INT")),
    "fraction for a whole number": Case(TRAIN + "--train.steps 1.5", ("--train.steps", "'1.5'", "INT")),
    "one value for a pair": Case(TRAIN + "--optim.betas 0.9", ("--optim.betas", "2 values")),
    "unknown optimizer": Case(TRAIN + "--optim.name adamww", ("--optim.name", "'adamww'", "'sgd'", "meant 'adamw'")),
    "unknown precision": Case(TRAIN + "--precision.compute float23", ("--precision.compute", "meant 'float32'")),
    "unknown packing": Case(TRAIN + "--data.packing conc", ("--data.packing", "'conc'", "meant 'concat'")),
    # --- config files
    "config missing": Case("train {here}/tinny.py", ("tinny.py", "no such file", "{here}/tiny.py")),
    "no get_config": Case("train {here}/no_get_config.py", ("no_get_config.py", "get_config()")),
    "config raises": Case("train {here}/raises.py", ("raises.py", "ZeroDivisionError", "line 2")),
    "config with a syntax error": Case("train {here}/syntax.py", ("syntax.py", "SyntaxError", "line 1")),
    "config with a misspelt field": Case("train {here}/typo.py", ("typo.py", "'warmup_step'", "'warmup_steps'")),
    "get_config returns a dict": Case("train {here}/returns_dict.py", ("returns_dict.py", "dict", "Config")),
    "unknown model": Case("train {here}/unknown_model.py", ("model", "'lama'", "LlamaConfig", "'llama'")),
    "unknown type in json": Case(
        "train {here}/unknown_type.json", ("unknown_type.json", "LamaConfig", "'LlamaConfig'")
    ),
    "unknown field in json": Case(
        "train {here}/unknown_field.json", ("unknown_field.json", "'learning_rate'", "OptimConfig")
    ),
    "missing field in json": Case("train {here}/missing_field.json", ("missing_field.json", "Config lacks data")),
    "json cut short": Case("train {here}/cut.json", ("cut.json", "not JSON")),
    # --- values and combinations
    "negative learning rate": Case(TRAIN + "--optim.lr -1", ("optim.lr = -1.0", "0 or more")),
    "no steps": Case(TRAIN + "--train.steps 0", ("train.steps = 0", "1 or more")),
    "warm-up longer than the run": Case(
        TRAIN + "--optim.warmup_steps 99", ("optim.warmup_steps = 99", "train.steps = 12")
    ),
    "negative seed": Case(TRAIN + "--train.seed -1", ("train.seed = -1", "0 or more")),
    "no kv heads": Case(TRAIN + "--model.num_kv_heads 0", ("model.num_kv_heads = 0", "1 or more")),
    "heads not divisible": Case(TRAIN + "--model.num_heads 3", ("model.num_heads = 3", "model.num_kv_heads = 2")),
    "heads not divisible by tensor": Case(
        TRAIN + "--parallel.tensor 8", ("model.num_heads = 4", "parallel.tensor = 8")
    ),
    "batch not divisible by data": Case(TRAIN + "--train.batch_size 9", ("train.batch_size = 9", "8 data shards")),
    "batch not divisible by microbatches": Case(
        TRAIN + "--train.microbatches 3", ("train.batch_size = 8", "train.microbatches = 3")
    ),
    "evaluation batch not divisible": Case(TRAIN + "--eval.batch_size 9", ("eval.batch_size = 9", "8 data shards")),
    "mesh larger than the devices": Case(TRAIN + "--parallel.data 16", ("parallel", "data=16", "16 devices", "only 8")),
    "mesh smaller than the devices": Case(TRAIN + "--parallel.data 3", ("parallel", "data=3", "8 devices")),
    "pmap beyond data": Case(
        TRAIN + "--parallel.strategy pmap --parallel.tensor 2", ("parallel.strategy = 'pmap'", "parallel.data")
    ),
    "rule for no mesh axis": Case(
        TRAIN + "--parallel.rules.embed fsd", ("parallel.rules.embed = 'fsd'", "tensor", "'fsdp'")
    ),
    "unknown metric": Case(
        TRAIN + "--checkpoint.best_metric eval/los",
        ("checkpoint.best_metric = 'eval/los'", "accuracy", "meant 'eval/loss'"),
    ),
    "tracker not installed": Case(
        TRAIN + "--report.trackers wandb", ("report.trackers = 'wandb'", "uv sync --extra wandb")
    ),
    "sample longer than the model": Case(
        TRAIN + "--eval.sample.max_tokens 99", ("eval.sample.max_tokens = 99", "model.max_seq_len = 48")
    ),
    "sample from no token": Case(TRAIN + "--eval.sample.top_p 0", ("eval.sample.top_p = 0", "above 0")),
    # --- data
    "sequence longer than the positions": Case(
        TRAIN + "--data.seq_len 64", ("model.max_seq_len = 48", "at least 64", "data.seq_len")
    ),
    "tokenizer larger than the vocabulary": Case(
        TRAIN + "--model.vocab_size 100", ("model.vocab_size = 100", "at least 257", "data.tokenizer")
    ),
    "tokenizer missing": Case(TRAIN + "--data.tokenizer.path /no/tok.json", ("data.tokenizer.path", "/no/tok.json")),
    "no data": Case(TRAIN + "--data.source.train /no/text.txt", ("data.source.train", "'/no/text.txt'", "no file")),
    "empty data": Case(TRAIN + "--data.source.train {here}/empty.txt", ("empty.txt: empty", "data.max_bad_records")),
    "empty validation": Case(TRAIN + "--data.source.validation {here}/empty.txt", ("empty.txt", "empty")),
    # Its first page is not mapped, so that reading it fails, also for root.
    "unreadable file": Case(
        TRAIN + "--data.source.train /proc/self/mem", ("data.source.train", "/proc/self/mem", "Input/output error")
    ),
    "not UTF-8": Case(TRAIN + "--data.source.train {here}/latin.txt", ("latin.txt", "not UTF-8", "byte 3")),
    "JSONL line cut short": Case("train {here}/jsonl.py --run_dir {here}/new", ("cut.jsonl line 2", "not JSON")),
    "label out of range": Case(
        "train {here}/csv.py --run_dir {here}/new", ("rows.csv line 3", "label 3", "0 .. 2", "data.num_classes")
    ),
    "data of no config": Case("data {here}/tinny.py", ("tinny.py", "no such file", "tiny.py")),
    # --- run folders
    "another run's folder": Case(
        "train {here}/tiny.py --run_dir {here}/run --optim.lr 1",
        ("{here}/run", "optim.lr was 0.003, now 1.0", "--run_dir"),
    ),
    "below the resume point": Case(
        "train {here}/tiny.py --run_dir {here}/run --train.steps 2", ("train.steps = 2", "step 4")
    ),
    "resumed with bad data": Case(
        "train {here}/tiny.py --run_dir {here}/run --eval.sample.top_k -1", ("eval.sample.top_k = -1", "0 or more")
    ),
    "folder below a file": Case(
        "train {here}/tiny.py --run_dir {here}/train.txt/new", ("run_dir", "{here}/train.txt/new", "not a folder")
    ),
    "empty folder": Case("train {here}/tiny.py --run_dir ''", ("run_dir = ''", "without --run_dir it is runs/tiny")),
    "unwritable folder": Case("train {here}/tiny.py --run_dir /proc/new", ("run_dir", "'/proc/new'", "--run_dir")),
    "eval without a finished checkpoint": Case("eval {here}/unsaved", ("no finished checkpoint", "{here}/unsaved")),
    "eval without checkpoints": Case("eval {here}/tiny.py --run_dir {here}/new", ("{here}/new", "no checkpoints")),
    "generate without a finished checkpoint": Case(
        "generate {here}/unsaved --prompt a", ("no finished checkpoint", "{here}/unsaved")
    ),
    "generate from an empty prompt": Case("generate {here}/run --prompt ''", ("prompt = ''", "empty")),
    "generate more than the positions": Case(
        "generate {here}/run --prompt a --max_tokens 99", ("max_tokens = 99", "model.max_seq_len = 48")
    ),
    "generate at no temperature": Case(
        "generate {here}/run --prompt a --temperature -1", ("temperature = -1", "0 or more")
    ),
    "report of no run": Case("report {here}/nothing", ("{here}/nothing", "run's folder")),
}


def digest(folder: Path) -> dict[str, str]:
    """A digest of every file but prepared data and compiled Python, and of every folder's name."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
        if not {"cache", "__pycache__"} & set(path.relative_to(folder).parts)
    }


def check_line(code: int, err: str, says: tuple[str, ...]) -> None:
    """Asserts exit code 2 and one line that says the reason."""
    assert code == 2, err
    assert "Traceback" not in err
    lines = err.splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    assert [part for part in says if part not in lines[0]] == [], lines[0]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_one_line_and_nothing_is_written(name, template, capsys, monkeypatch):
    monkeypatch.chdir(template)
    monkeypatch.setitem(sys.modules, "wandb", None)  # not there, whether it is installed or not
    args, says = CASES[name]
    before = digest(template)
    with pytest.raises(SystemExit) as stop:
        cli.main([a.format(here=template).replace("''", "") for a in args.split()])
    check_line(stop.value.code, capsys.readouterr().err, tuple(s.format(here=template) for s in says))
    assert digest(template) == before


SMALL_DISK = 96 << 10  # bytes: room for a run's metrics and config, not for a checkpoint's arrays


@pytest.mark.slow
def test_a_full_disk_at_a_save_is_one_line_and_the_save_before_stays(template, tmp_path, capsys):
    """No file can grow beyond a limit, so the write fails as on a full disk. The run and its first
    save stay usable."""
    run_dir = tmp_path / "run"
    shutil.copytree(template / "run", run_dir)
    before = digest(run_dir / "checkpoints")
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({SMALL_DISK}, {resource.RLIM_INFINITY}))"
    args = ["train", str(template / "tiny.py"), "--run_dir", str(run_dir)]
    # JAX's cache of compiled programs is read and not written, because writing it would fail too.
    env = dict(os.environ, JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="1000", PYTHONPATH=str(runs.ROOT))
    code = f"{limit}\nfrom bigmodel_jax.cli import main\nmain({args})"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    check_line(done.returncode, done.stderr, ("checkpoint: step 8", str(run_dir / "checkpoints")))
    assert digest(run_dir / "checkpoints") == before
    cli.main(args)
    assert "Resuming at step 4" in capsys.readouterr().out


def test_a_finished_run_stays_as_it_is(template, capsys):
    before = digest(template)
    cli.main(["train", str(template / "tiny.py"), "--run_dir", str(template / "run"), "--train.steps", "4"])
    assert "is complete" in capsys.readouterr().out
    assert digest(template) == before
