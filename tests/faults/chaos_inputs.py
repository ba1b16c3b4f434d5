"""Inputs that no run may take: command lines, files that are no config, values out of range, files
that are no data."""

import contextlib
import io
import itertools
from collections.abc import Iterator
from pathlib import Path

import bad_input_test
import config_mutations_test
from chaos_result import Result
from chaos_runs import Commands

# option -> values of which none may be accepted
VALUES = {
    "--optim.lr": "nan inf -inf -1 fast '' 1,5 0x10",
    "--optim.eps": "nan inf -1e-9 small",
    "--optim.betas": "0.9 0.9,1.0 0.9,0.95,0.9 nan",
    "--optim.weight_decay": "nan inf -0.1",
    "--optim.clip": "nan -1 -inf",
    "--optim.warmup_steps": "-1 1.5 many",
    "--optim.final_lr_ratio": "2 -1 nan",
    "--optim.schedule": "cosin '' COSINE",
    "--optim.ema_decay": "1 -0.1 nan",
    "--train.steps": "0 -5 1e3 '' nan",
    "--train.batch_size": "0 -8 1.0 eight",
    "--train.seed": "-1 99999999999999999999 1.5 0x1",
    "--train.microbatches": "0 -1 99",
    "--train.log_every": "-1 x",
    "--train.max_skipped": "-1 0 x",
    "--train.init_from": "/no/where ~nouser",
    "--model.norm_eps": "-1e-6 nan inf",
    "--model.init_std": "-1 nan inf",
    "--model.rope_theta": "0 -1 nan inf",
    "--model.window": "-3 1.5 x",
    "--model.num_layers": "0 -1 2.5",
    "--model.embed_dim": "0 -32 x",
    "--model.compute.attention": "cudnn splash plane",
    "--model.compute.remat": "all ''",
    "--objective.z_loss": "nan -1 inf",
    "--data.seq_len": "0 -1 x",
    "--data.max_bad_records": "-1 x",
    "--eval.every": "-1 x",
    "--eval.batch_size": "-1 x",
    "--eval.sample.temperature": "-1 nan inf",
    "--eval.sample.top_p": "1.5 -1 nan",
    "--eval.sample.max_tokens": "-1 x",
    "--checkpoint.every": "-1 x",
    "--checkpoint.keep": "0 -1 x",
    "--checkpoint.best_mode": "most",
    "--parallel.data": "0 -2 x",
    "--parallel.strategy": "pjit",
    "--precision.matmul": "int4",
}
TEXTS = {
    "a byte that is no UTF-8": b"good\n\xff\xfe bad\n",
    "UTF-16": "some text".encode("utf-16"),
    "zero bytes alone": b"",
    "a tail cut inside a character": "é".encode()[:1],
}
JSON_LINES = {
    "no JSON": b"{text}\n",
    "cut": b'{"text": "a"}\n{"text": "b\n',
    "a list": b'["a"]\n',
    "a number": b"5\n",
    "null": b"null\n",
    "text of numbers": b'{"text": 5}\n',
    "text null": b'{"text": null}\n',
    "text a list": b'{"text": ["a"]}\n',
    "another key": b'{"texts": "a"}\n',
    "deep": b"[" * 100_000 + b"\n",
    "deep objects": b'{"text":' * 50_000 + b"\n",
    "a long integer": b'{"text": ' + b"9" * 6_000 + b"}\n",
    "no UTF-8": b'{"text": "\xff"}\n',
    "a control character": b'{"text": "a\x01b"}\n',
    "a lone surrogate": b'{"text": "\\ud800"}\n',
    "two objects on a line": b'{"text": "a"} {"text": "b"}\n',
    "empty": b"",
    "blank lines alone": b"\n\n  \n",
    "gzip": b"\x1f\x8b\x08\x00junk",
}
TABLES = {
    "a header alone": b"label,a,b\n",
    "no header": b"0,1,2\n1,2,3\n",
    "a cell that is no number": b"label,a,b\n0,x,1\n",
    "a cell too few": b"label,a,b\n0,1\n",
    "a cell too many": b"label,a,b\n0,1,2,3\n",
    "a label out of range": b"label,a,b\n7,1,2\n",
    "a negative label": b"label,a,b\n-1,1,2\n",
    "a label that is no number": b"label,a,b\ncat,1,2\n",
    "no label": b"a,b,c\n0,1,2\n",
    "a cell that is nan": b"label,a,b\n0,nan,1\n",
    "a cell that is inf": b"label,a,b\n0,inf,1\n",
    "a long cell": b"label,a,b\n0," + b"9" * 140_000 + b",1\n",
    "no UTF-8": b"label,a,b\n0,\xff,1\n",
    "a zero byte": b"label,a,b\n0,\x00,1\n",
    "empty": b"",
}
LINES = (
    *("train", "train --help=x {here}/tiny.py", "eval {here}", "eval /dev/null", "report /dev/null", "report"),
    *("generate {here}/run --prompt a --top_k -1", "generate {here}/run --prompt a --top_p 2"),
    *("generate {here}/run --prompt a --temperature nan", "generate {here}/run --prompt a --num_samples 0"),
    *(
        "import /no/where",
        "import {here}",
        "export {here}/run",
        "export {here}/nothing {here}/out",
        "data",
        "data /dev/null",
    ),
    *("submit {here}/tiny.py --engine slurmm", "submit {here}/tiny.py --engine slurm --nodes 0"),
    *("submit {here}/tiny.py --engine slurm --nodes -2", "submit {here}/tiny.py --engine slurm --time soon"),
    *(
        "plan {here}/tiny.py --topology v99:2x2",
        "scale {here}/tiny.py --devices 0",
    ),
    *("train gs://bucket/config.py", "train {here}/tiny.py --run_dir gs://bucket/run", "train ~nouser/tiny.py"),
    *("data {here}/tiny.py --train-tokenizer {here}/no/t.json", "eval {here}/run --eval.batch_size -1"),
)


def bad_inputs(here: Path) -> Iterator[tuple[str, list[str]]]:
    """(name, command line) of all; the files they name are written into `here`."""
    for name, case in bad_input_test.CASES.items():
        if name != "tracker not installed":  # the tests alone can take a package away
            yield name, _words(case.args, here)
    for line in LINES:
        yield line, _words(line, here)
    for number, text in enumerate(config_mutations_test.NO_CONFIG):
        path = here / f"no_config_{number}.json"
        path.write_text(text)
        yield f"a config that is {text[:20]!r}", ["train", str(path)]
    # A refused command may already have made its run's folder, so each command has its own.
    run_dirs = (["--run_dir", str(here / f"new_{n}")] for n in itertools.count())
    for option, values in VALUES.items():
        for value in values.split():
            words = value.replace("''", "").split(",") if option == "--optim.betas" else [value.replace("''", "")]
            yield f"{option} {value}", ["train", str(here / "tiny.py"), *next(run_dirs), option, *words]
    for config, contents in (("tiny", TEXTS), ("jsonl", JSON_LINES), ("csv", TABLES)):
        for number, (name, content) in enumerate(contents.items()):
            path = here / f"{config}_{number}.data"
            path.write_bytes(content)
            files = ["--data.source.train", str(path), "--data.source.validation", str(path)]
            yield f"{config} data: {name}", ["train", str(here / f"{config}.py"), *next(run_dirs), *files]


def _words(line: str, here: Path) -> list[str]:
    return [word.format(here=here).replace("''", "") for word in line.split()]


def make(folder: Path) -> list[tuple[str, list[str]]]:
    """Makes all of them, with the files they need in a new folder."""
    with contextlib.redirect_stdout(io.StringIO()):
        return list(bad_inputs(bad_input_test.make_template(folder)))


def refuse(commands: Commands, inputs: list[tuple[str, list[str]]], index: int) -> Result:
    """Tries one bad input. It must end with exit code 2 and one line."""
    name, args = inputs[index % len(inputs)]
    result, done = Result(count=1), commands.run(*args)
    if done.code == 0:
        result.fault("silent", f"{name}: accepted: {done.out[-300:]}")
    elif result.ended(done, (2,), name):
        result.refused.append(name)
    return result
