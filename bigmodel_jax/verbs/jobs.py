"""The verb `submit`, which writes a job for a cluster."""

import dataclasses
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bigmodel_jax.core import files
from bigmodel_jax.core.options import Unnamed, asks_for_help, parse, parse_known
from bigmodel_jax.core.paths import check_local
from bigmodel_jax.core.spelling import nearest
from bigmodel_jax.verbs.base import CONFIG, OfConfig, Verb, local, parse_config, run_dir_of, split


@dataclasses.dataclass(frozen=True)
class Submit:
    """Options of `submit`. The config's own fields are options too. Their names have a dot."""

    engine: str = ""  # slurm, kubernetes, ray or gcloud
    options: Unnamed = None  # the engine's own options
    run: bool = False  # submit the job as well
    output: str = ""  # the file to write; empty: in the run's folder
    run_dir: str | None = None  # the run's folder, as in `train`
    accept: str = ""  # data, code or data,code: what may have changed, as in `train`


def submit(args: Sequence[str]) -> None:
    """Runs the verb `submit`: writes the job's file and, with --run, submits it."""
    from bigmodel_jax.cluster import submit as jobs

    if "--serve" in args:
        return _serve([one for one in args if one != "--serve"])
    engine = parse_known(Submit(), args, prog="launch.py submit CONFIG")[0].engine
    if engine not in jobs.ENGINES:
        near = nearest(engine, jobs.ENGINES)
        raise ValueError(f"submit: --engine {engine or 'is missing'}; known: {', '.join(jobs.ENGINES)}{near}")
    own, prog = Submit(options=jobs.ENGINES[engine]()), f"launch.py submit --engine {engine} CONFIG"
    if asks_for_help(args):
        parse(own, ["--help"], prog)
    given, rest = parse_known(own, args, prog)
    targets, fields = split(rest)
    if undotted := [option for option in fields if option.startswith("--") and "." not in option.split("=")[0]]:
        parse(own, fields[fields.index(undotted[0]) :], prog)  # raises the error for an unknown option
    if len(targets) != 1:
        raise ValueError(f"submit: expected one CONFIG, got {targets}; launch.py submit --help shows how")
    _write(given, targets[0], fields)


@dataclasses.dataclass(frozen=True)
class Serve:
    """Options of `submit --serve`, beside those of a Deployment."""

    engine: str = ""  # kubernetes
    options: Unnamed = None  # those of the Deployment
    run: bool = False  # submit it as well
    output: str = ""  # the file to write; empty: in the run's folder


def _serve(args: Sequence[str]) -> None:
    """Writes the job that serves a run."""
    from bigmodel_jax.cluster import serving_job

    prog = "launch.py submit RUN --engine kubernetes --serve"
    engine = parse_known(Serve(), args, prog)[0].engine
    if engine != "kubernetes":
        raise ValueError(
            f"submit: --serve --engine {engine or 'is missing'}; --serve needs --engine kubernetes, as servers are a Deployment"
        )
    targets, options = split(args)
    given = parse(Serve(options=serving_job.Deployment()), options, prog)
    if len(targets) != 1:
        raise ValueError(f"submit: --serve: expected one RUN, got {targets}; launch.py submit --help shows how")
    run_dir = _run_dir(targets[0])
    job = serving_job.of_run(run_dir, given.options)
    _finish(given, job, local("submit: --output", given.output) if given.output else run_dir / job.file)


def _run_dir(target: str) -> Path:
    """The run's folder.

    Raises ValueError where the folder holds no config, because servers cannot start without one.
    """
    from bigmodel_jax import config_file

    path = run_dir_of(local("submit", target))
    config_file.load(path)
    return path


def _write(given: Submit, target: str, fields: list[str]) -> None:
    from bigmodel_jax.cluster import submit as jobs
    from bigmodel_jax.config_checks import validate
    from bigmodel_jax.training import provenance

    # Checks the whole config now, because the cluster may start the job only hours later.
    provenance.kinds(given.accept)
    check_local("submit: --run_dir", given.run_dir or "")
    of_config, run_dir = parse_config(OfConfig(run_dir=given.run_dir), local("submit", target), fields, "submit")
    validate(of_config.config)
    of_train = [*fields, "--accept", given.accept] if given.accept else fields
    job = given.options.job(jobs.Run(run_dir.name, target, of_train, run_dir))
    _finish(given, job, local("submit: --output", given.output) if given.output else run_dir / job.file)


def _finish(given: Any, job: Any, file: Path) -> None:
    """Writes the job's file, and submits the job with --run."""
    file.parent.mkdir(parents=True, exist_ok=True)
    files.replace(file, job.text)
    command = [str(file) if part == "FILE" else part for part in job.command]
    print(file)
    if given.run:
        _send(given.engine, command, file)
    for note in job.notes:
        print(f"note: {note}", file=sys.stderr)


def _send(engine: str, command: Sequence[str], file: Path) -> None:
    """Submits the job. Raises ValueError where the engine's command is missing or fails."""
    if engine == "ray":
        from bigmodel_jax.cluster.submit import send_to_ray

        print(send_to_ray(*command[1:]))
        return
    try:
        done = subprocess.run(command, check=False)
    except FileNotFoundError as error:
        raise ValueError(f"submit: --run needs {command[0]!r} on this machine; {file} is written") from error
    if done.returncode:
        raise ValueError(f"submit: {' '.join(command)} failed with exit code {done.returncode}")


VERBS = {
    "submit": Verb(
        submit,
        "submit CONFIG --engine ENGINE --nodes N [--run] [...]",
        "write a job for a cluster's engine",
        f"CONFIG        {CONFIG}\n"
        "--engine      slurm: an sbatch file; kubernetes: a JobSet; ray: a Ray job;\n"
        "              gcloud: the commands for TPU hosts, or for xpk\n"
        "--nodes       the number of hosts; each runs one process\n"
        "--run         submits the job as well\n"
        "--output      the file to write; without it: in the run's folder\n"
        "--FIELD       any field of the config by its dotted name, after CONFIG; --run_dir\n"
        "              and --accept, as for train\n"
        "--serve       serves a RUN instead of training, with --engine kubernetes: a\n"
        "              Deployment with probes, and a Service. Takes --replicas, --slots,\n"
        "              --length, --gpus or --topology of each, --claim, --image\n\n"
        "Each engine's own options: launch.py submit --engine ENGINE CONFIG --help\n"
        "When the cluster ends a job, it saves, returns to the queue, and later resumes.",
        (
            "submit configs/lm_tiny.py --engine slurm --nodes 2 --run",
            "submit configs/lm_tiny.py --engine kubernetes --topology v5e:4x4 --image IMAGE",
            "submit runs/lm_tiny --engine kubernetes --serve --replicas 3 --image IMAGE",
        ),
    ),
}
