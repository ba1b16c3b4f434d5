"""Verbs for clusters: submit."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bigmodel_jax.verbs.base import CONFIG, Verb, local, parse_config, take


def submit(args: Sequence[str]) -> None:
    from bigmodel_jax.cluster import submit as jobs
    from bigmodel_jax.config import override
    from bigmodel_jax.config_checks import validate
    from bigmodel_jax.core.spelling import nearest
    from bigmodel_jax.training import provenance

    targets, own, options, run_now = sort(args)
    engine, own = take(own, "--engine")
    if engine not in jobs.ENGINES:
        near = nearest(engine, jobs.ENGINES)
        raise ValueError(f"submit: --engine {engine or 'is missing'}; there is: {', '.join(jobs.ENGINES)}{near}")
    if len(targets) != 1:
        raise ValueError(f"submit: expected one CONFIG, got {targets}; launch.py submit --help shows how")

    output, own = take(own, "--output")
    chosen = override(jobs.ENGINES[engine](), own, prog=f"launch.py submit --engine {engine} CONFIG")
    # Whatever can be wrong with the config is said here and not by the cluster, hours later.
    accept, checked = take(options, "--accept")
    provenance.kinds(accept)
    config, run_dir = parse_config(local("submit", targets[0]), checked, "submit")
    validate(config)
    _, train_options = take(options, "--run_dir", "--run-dir")
    job = chosen.job(jobs.Run(run_dir.name, targets[0], train_options, run_dir))
    file = local("--output", output) if output else run_dir / job.file
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(job.text)
    command = [str(file) if part == "FILE" else part for part in job.command]
    print(file)
    if run_now:
        _send(engine, command, file)
    for note in job.notes:
        print(f"note: {note}", file=sys.stderr)


def _send(engine: str, command: Sequence[str], file: Path) -> None:
    """Submits the job; ValueError where the engine's command is missing or fails."""
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


def sort(args: Sequence[str]) -> tuple[list[str], list[str], list[str], bool]:
    """(targets, the engine's options, the config's options, whether to run): the config's have a dot in their names."""
    targets, own, options, run_now, i = [], [], [], False, 0
    while i < len(args):
        name = args[i].split("=")[0]
        if args[i] == "--run":
            run_now, i = True, i + 1
        elif not name.startswith("--"):
            targets, i = [*targets, args[i]], i + 1
        elif "." in name or name in ("--run_dir", "--run-dir", "--accept"):
            end = i + 1
            while "=" not in args[i] and end < len(args) and not args[end].startswith("--"):
                end += 1
            if end - i > 2 and Path(args[end - 1]).exists():  # CONFIG after the option's own values
                targets, end = [*targets, args[end - 1]], end - 1
                options, i = options + list(args[i:end]), end + 1
            else:
                options, i = options + list(args[i:end]), end
        else:
            end = i + (1 if "=" in args[i] else 2)
            own, i = own + list(args[i:end]), end
    return targets, own, options, run_now


VERBS = {
    "submit": Verb(
        submit,
        "submit CONFIG --engine ENGINE --nodes N [--run] [...]",
        "write a job for a cluster's engine",
        f"CONFIG        {CONFIG}\n"
        "--engine      slurm: an sbatch file; kubernetes: a JobSet; ray: a Ray job;\n"
        "              gcloud: the commands for TPU hosts, or for xpk\n"
        "--nodes       hosts, one process on each\n"
        "--run         submit it, too\n"
        "--output      the file to write; without it: in the run's folder\n"
        "--FIELD       any field of the config by its dotted name; --run_dir and --accept,\n"
        "              as for train\n\n"
        "Each engine's own options: launch.py submit --engine ENGINE CONFIG --help\n"
        "A job saves when it is told to go, goes back into the queue, and resumes.",
        (
            "submit configs/lm_tiny.py --engine slurm --nodes 2 --run",
            "submit configs/lm_tiny.py --engine kubernetes --topology v5e:4x4 --image IMAGE",
        ),
    ),
}
