"""The verb `transcribe`, which writes what is said in audio files."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from bigmodel_jax import runtime
from bigmodel_jax.core.options import parse
from bigmodel_jax.core.terminal import make_console
from bigmodel_jax.verbs.base import RUN, STEP, Verb, place, run_dir_of, split


@dataclasses.dataclass(frozen=True)
class Transcribe:
    """Options of `transcribe`."""

    language: str = ""  # the spoken language, such as de; empty for a model of English alone
    task: Literal["transcribe", "translate"] = "transcribe"  # translate: into English
    times: bool = True  # write segments with their times; False: each window of 30 seconds is one segment
    format: Literal["text", "srt", "json"] = "text"  # the format of the output
    step: str = ""  # the checkpoint: a step, or best; empty: the newest


def transcribe(args: Sequence[str]) -> None:
    """Runs the verb `transcribe`: prints the transcript of each file, and the word error rate if
    known.
    """
    targets, options = split(args)
    if len(targets) < 2:
        raise ValueError(f"transcribe: expected a run and files, got {targets}; launch.py transcribe --help shows how")
    target = place("transcribe", targets[0])
    given = parse(Transcribe(), options, prog=f"launch.py transcribe {target}")
    from bigmodel_jax.training import run_folder

    config, run_dir = run_folder.load(target), run_dir_of(target)
    runtime.keep_programs()
    from bigmodel_jax.inference import transcripts
    from bigmodel_jax.training.saved import open_tokenizer

    recordings = transcripts.recordings([Path(name) for name in targets[1:]])
    transcripts.check_metric(recordings)
    weights = _weights(config, run_dir, given.step)
    asked = transcripts.Asked(given.language, given.task, given.times)
    listen = transcripts.listener(config, weights, open_tokenizer(config, run_dir), asked)
    found = []
    for recording in recordings:
        segments = _with_bar(listen(recording.samples), recording)
        found.append((recording, segments))
        print(WRITERS[given.format](recording, segments, len(recordings) > 1), end="")
    if said := transcripts.word_error(found):
        make_console(stderr=True, highlight=False, soft_wrap=True).print(said)


def _weights(config, run_dir: Path, which: str):
    import jax

    from bigmodel_jax.core import sharding
    from bigmodel_jax.core.precision import cast
    from bigmodel_jax.training.saved import load_weights

    mesh = sharding.make_mesh(sharding.ParallelConfig(data=1), jax.devices()[:1])
    return cast(load_weights(config, run_dir, mesh, which)[0], config.precision.compute)


def _with_bar(heard, recording) -> list:
    """All segments of a recording, with a progress bar of the seconds that have been read."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.0f} of {task.total:.0f} s"))
    segments = []
    with Progress(*columns, TimeRemainingColumn(), console=make_console(stderr=True), transient=True) as bar:
        task = bar.add_task(recording.path.name, total=recording.seconds)
        for seconds, new in heard:
            segments += new
            bar.update(task, completed=seconds)
    return segments


def _text(recording, segments, several: bool) -> str:
    name = f"{recording.path.name}: " if several else ""
    return f"{name}{' '.join(segment.text for segment in segments)}\n"


def _srt(recording, segments, several: bool) -> str:
    lines = [f"{n}\n{_clock(s.start)} --> {_clock(s.end)}\n{s.text}\n" for n, s in enumerate(segments, 1)]
    return "\n".join(lines)


def _clock(seconds: float) -> str:
    whole = round(1000 * seconds)
    return f"{whole // 3_600_000:02}:{whole // 60_000 % 60:02}:{whole // 1000 % 60:02},{whole % 1000:03}"


def _json(recording, segments, several: bool) -> str:
    found = [{"start": round(s.start, 2), "end": round(s.end, 2), "text": s.text} for s in segments]
    return json.dumps({"file": str(recording.path), "segments": found}, ensure_ascii=False) + "\n"


WRITERS = {"text": _text, "srt": _srt, "json": _json}
VERBS = {
    "transcribe": Verb(
        transcribe,
        "transcribe RUN FILE... [--format text|srt|json]",
        "write what is said in recordings",
        f"RUN           {RUN}\n"
        "FILE          a WAV file of any rate, or a manifest: .jsonl, .csv or .tsv with the\n"
        "              fields audio and text, whose word error rate is printed at the end\n"
        "--language    the spoken language, such as de; not for a model of English alone\n"
        "--task        translate: writes English, with a model of many languages\n"
        "--times False makes each window of 30 seconds one segment, without times\n"
        "--format      text; srt: subtitles; json: a line for each file, with its segments\n"
        f"{STEP}",
        (
            "transcribe runs/whisper-tiny-en talk.wav",
            "transcribe runs/whisper-tiny-en talk.wav --format srt",
        ),
    ),
}
