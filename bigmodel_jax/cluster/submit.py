"""Writes jobs for existing schedulers: a job file made from a readable template, and its submit
command.

Every job restarts a run that lost a process (exit code 75) or was told to stop, but not a run with
a user's mistake or a bug.
"""

import dataclasses
import json
import math
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bigmodel_jax.core.ranges import Count, CountOrZero
from bigmodel_jax.core.spelling import nearest

TEMPLATES = Path(__file__).parent / "templates"


class Tpu(NamedTuple):
    """The clouds' names for one kind of TPU.

    cores: cores per chip. The accelerator type, such as v5p-16, counts cores and not chips.
    """

    gke: str
    gcloud: str
    cores: int
    runtime: str


# Sources: cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus and
# cloud.google.com/tpu/docs/runtimes, November 2026.
TPUS = {
    "v4": Tpu("tpu-v4-podslice", "v4", 2, "tpu-ubuntu2204-base"),
    "v5e": Tpu("tpu-v5-lite-podslice", "v5litepod", 1, "v2-alpha-tpuv5-lite"),
    "v5p": Tpu("tpu-v5p-slice", "v5p", 2, "v2-alpha-tpuv5"),
    "v6e": Tpu("tpu-v6e-slice", "v6e", 1, "v2-alpha-tpuv6e"),
}
CHIPS_PER_HOST = 4


class Job(NamedTuple):
    """A job to submit.

    - file: name of the file to write; text: its content
    - command: the submit command, with FILE for the file's path
    - notes: hints on options that a user may have forgotten
    """

    file: str
    text: str
    command: Sequence[str]
    notes: Sequence[str] = ()


class Run(NamedTuple):
    """The run that a job starts: its name, config, options and folder."""

    name: str
    target: str
    options: Sequence[str]
    run_dir: Path

    def command(self, python: str, launcher: str, run_dir: Path | None = None) -> str:
        """The training command, quoted for a shell; run_dir: another folder for the run."""
        folder = str(run_dir or self.run_dir)
        return shlex.join([python, launcher, "train", self.target, "--run_dir", folder, *self.options])


NO_GPU = "the job asks for no GPU and computes on its nodes' CPUs; --gpus_per_node N asks for N on each"
LOST = "the run's folder lies inside the {place} and is lost with it, so that a restart begins anew; {way_out}"


# -------------------------------------------------------------------------------------------- SLURM


@dataclasses.dataclass(frozen=True)
class Slurm:
    """A job for sbatch."""

    nodes: Count = 1  # nodes of the job
    tasks_per_node: Count = 1  # processes per node; a single process gets all devices, several get one each
    gpus_per_node: CountOrZero = 0  # GPUs that the job asks for on each node
    time: str = ""  # limit as SLURM writes it, e.g. 24:00:00; empty: the partition's limit
    partition: str = ""  # empty: the default partition
    account: str = ""  # empty: the default account
    sbatch: str = ""  # further options of sbatch, e.g. --sbatch="--qos=high --constraint=h100"
    grace: CountOrZero = 120  # seconds before the time limit at which the run saves and is queued again
    restarts: CountOrZero = 100  # the most restarts

    def job(self, run: Run) -> Job:
        """The sbatch script that runs `run`."""
        # The formats of `man sbatch`: minutes, minutes:seconds, hours:minutes:seconds, days-hours
        # and longer.
        if self.time and not re.fullmatch(r"(\d+-)?\d+(:\d{1,2}){0,2}|UNLIMITED|INFINITE", self.time):
            raise ValueError(
                f"submit: --time {self.time!r} is not a time limit that SLURM accepts; for instance 90, 24:00:00 or 2-12:00:00"
            )
        options = [f"--{name}={value}" for name in ("time", "partition", "account") if (value := getattr(self, name))]
        options += [f"--gpus-per-node={self.gpus_per_node}"] if self.gpus_per_node else []
        lines = [f"#SBATCH {option}" for option in [*options, *shlex.split(self.sbatch)]]
        run = run._replace(target=str(Path(run.target).absolute()), run_dir=run.run_dir.absolute())
        text = fill(
            "slurm.sbatch",
            **dataclasses.asdict(self) | {"options": "\n".join(lines)},
            name=run.name,
            run_dir=run.run_dir,
            folder=shlex.quote(str(Path.cwd())),
            command=run.command(sys.executable, str(Path(sys.argv[0]).absolute())),
        )
        asked = self.gpus_per_node or re.search(r"--(gpus|gres|tres)|-G\b", self.sbatch)
        return Job("job.sbatch", text, ("sbatch", "FILE"), () if asked else (NO_GPU,))


# --------------------------------------------------------------------------------------- Kubernetes


@dataclasses.dataclass(frozen=True)
class Kubernetes:
    """A JobSet of pods."""

    image: str = ""  # a container image with this project in `workdir` and Python on the path
    nodes: CountOrZero = 0  # number of pods; 0: one pod, or all pods of one TPU slice
    gpus_per_node: CountOrZero = 0  # GPUs of each pod
    topology: str = ""  # a TPU slice, e.g. v5e:4x4
    claim: str = ""  # a PersistentVolumeClaim that holds the runs, and that all pods can mount
    mount: str = "/runs"  # where the claim is mounted
    workdir: str = "/app"  # the folder of this project in the image
    namespace: str = "default"  # Kubernetes namespace
    grace: CountOrZero = 120  # seconds that a pod gets to save when its node is reclaimed
    restarts: CountOrZero = 100  # the most restarts

    def job(self, run: Run) -> Job:
        """The JobSet manifest that runs `run`."""
        if not self.image:
            raise ValueError("submit: --image is missing: the container image that the pods run")
        if self.topology and self.gpus_per_node:
            raise ValueError(f"submit: --topology {self.topology} names TPUs; leave --gpus_per_node out")
        name = re.sub(r"[^a-z0-9-]+", "-", run.name.lower()).strip("-")[:40]
        claimed = bool(self.claim)
        values = dataclasses.asdict(self) | {
            "name": name,
            "script": run.command("python", "launch.py", None if not claimed else Path(self.mount) / name),
            "mounts": f"- {{name: runs, mountPath: {self.mount}}}" if claimed else "",
            "volumes": f"- name: runs\n  persistentVolumeClaim: {{claimName: {self.claim}}}" if claimed else "",
        }
        values["script"] = fill("pod.sh", command=values["script"])
        if self.topology:
            tpu = slice_of(self.topology, self.nodes)
            text = fill("jobset_tpu.yaml", **values | tpu | {"accelerator": tpu["gke"]})
        else:
            limits = json.dumps({"nvidia.com/gpu": self.gpus_per_node} if self.gpus_per_node else {})
            text = fill("jobset_gpu.yaml", **values | {"nodes": self.nodes or 1, "limits": limits})
        notes = () if self.topology or self.gpus_per_node else (NO_GPU,)
        if not claimed:
            way_out = "--claim NAME mounts a PersistentVolumeClaim that all pods reach"
            notes += (LOST.format(place="pod", way_out=way_out),)
        return Job("jobset.yaml", text, ("kubectl", "apply", "-f", "FILE"), notes)


def slice_of(topology: str, nodes: int) -> dict[str, Any]:
    """Names and sizes of a TPU topology such as "v5e:4x4"; nodes: hosts in all, 0 = those of one
    slice.

    Raises ValueError for an unknown topology, or for hosts that do not make up whole slices.
    """
    kind, _, shape = topology.partition(":")
    if kind not in TPUS:
        raise ValueError(
            f"submit: --topology {topology!r}: known: {', '.join(TPUS)}{nearest(kind, TPUS)}; for instance v5e:4x4"
        )
    if not re.fullmatch(r"\d+x\d+(x\d+)?", shape):
        raise ValueError(f"submit: --topology {topology!r}: the shape is not like 4x4 or 4x4x8")
    chips = math.prod(map(int, shape.split("x")))
    hosts = max(1, chips // CHIPS_PER_HOST)
    if nodes % hosts:
        raise ValueError(f"submit: --nodes {nodes} is not a multiple of the {hosts} hosts of a {topology} slice")
    tpu = TPUS[kind]
    return {
        "topology": shape,
        "hosts": hosts,
        "chips_per_host": min(CHIPS_PER_HOST, chips),
        "slices": max(1, nodes // hosts),
        "gke": tpu.gke,
        "runtime": tpu.runtime,
        "accelerator": f"{tpu.gcloud}-{chips * tpu.cores}",
    }


# ------------------------------------------------------------------------------------- Google Cloud


@dataclasses.dataclass(frozen=True)
class Gcloud:
    """A script for gcloud or, with `gke_cluster`, for xpk."""

    topology: str = ""  # a TPU slice, e.g. v5e:4x4
    nodes: CountOrZero = 0  # hosts; 0: the hosts of one slice
    project: str = ""  # Google Cloud project
    zone: str = ""  # Google Cloud zone
    folder: str = "bigmodel_jax"  # where this project is on the hosts
    runs: str = "runs"  # a folder that all hosts share (Filestore, Cloud Storage FUSE)
    spot: bool = False  # ask for preemptible capacity
    gke_cluster: str = ""  # a GKE cluster to which xpk submits the job; empty: TPU VMs
    image: str = ""  # a container image, with gke_cluster
    restarts: CountOrZero = 100  # the most restarts

    def job(self, run: Run) -> Job:
        """The script that creates the TPU and starts `run` on it."""
        for name in ("topology", "project", "zone", *(("image",) if self.gke_cluster else ())):
            if not getattr(self, name):
                raise ValueError(f"submit: --{name} is missing")
        name = re.sub(r"[^a-z0-9-]+", "-", run.name.lower()).strip("-")[:40]
        values = dataclasses.asdict(self) | slice_of(self.topology, self.nodes) | {"name": name}
        train = run.command("python", "launch.py", Path(self.runs) / run.name)
        notes = ()
        if not Path(self.runs).is_absolute():
            place = "container" if self.gke_cluster else "TPU host"
            notes = (LOST.format(place=place, way_out="--runs /PATH names a folder that all hosts share"),)
        if self.gke_cluster:
            text = fill("xpk.sh", **values | {"command": shlex.quote(train)})
            return Job("xpk.sh", text, ("bash", "FILE"), notes)
        slices = values["slices"]
        values |= {
            "nodes": f"--node-id {name}" if slices == 1 else f"--node-count {slices} --node-prefix {name}",
            "options": " --spot" if self.spot else "",
            "command": fill("host.sh", folder=shlex.quote(self.folder), restarts=self.restarts, command=train),
        }
        return Job("gcloud.sh", fill("gcloud.sh", **values), ("bash", "FILE"), notes)


# ---------------------------------------------------------------------------------------------- Ray


@dataclasses.dataclass(frozen=True)
class Ray:
    """A job of a Ray cluster."""

    nodes: Count = 1  # nodes, with one process each
    gpus_per_node: CountOrZero = 0  # GPUs that each process asks for
    address: str = "http://127.0.0.1:8265"  # address of the cluster's dashboard
    folder: str = ""  # where this project is on every node; empty: this folder, which all nodes share
    restarts: CountOrZero = 100  # the most restarts

    def job(self, run: Run) -> Job:
        """The arguments of ray.job_submission.JobSubmissionClient.submit_job, as JSON."""
        driver = ["python", "-m", "bigmodel_jax.cluster.ray_driver", str(self.nodes), str(self.gpus_per_node)]
        run = run._replace(run_dir=run.run_dir.absolute())
        command = f"{shlex.join([*driver, str(self.restarts)])} {run.command('python', 'launch.py')}"
        request = {
            "entrypoint": f"cd {shlex.quote(self.folder or str(Path.cwd()))} && exec {command}",
            "entrypoint_num_cpus": 0,
            "metadata": {"run": run.name},
        }
        text = json.dumps(request, indent=2) + "\n"
        return Job("ray_job.json", text, ("ray", self.address, "FILE"), () if self.gpus_per_node else (NO_GPU,))


def send_to_ray(address: str, file: str) -> str:
    """Submits a job through Ray's client and returns its id.

    Raises ValueError if Ray is not installed.
    """
    try:
        from ray.job_submission import JobSubmissionClient
    except ImportError as error:
        raise ValueError("submit: --run needs Ray here: uv pip install 'ray[default]'") from error
    return JobSubmissionClient(address).submit_job(**json.loads(Path(file).read_text()))


ENGINES: dict[str, Callable[[], Any]] = {"slurm": Slurm, "kubernetes": Kubernetes, "ray": Ray, "gcloud": Gcloud}


def fill(template: str, **values: Any) -> str:
    """The template with each {{name}} replaced by its value.

    A value of several lines keeps the indentation of its place. A line that becomes empty is
    removed.
    """
    lines = []
    for line in (TEMPLATES / template).read_text().splitlines():
        indent = line[: len(line) - len(line.lstrip())]
        filled = re.sub(r"\{\{(\w+)\}\}", lambda m: str(values[m[1]]).rstrip("\n"), line)
        if filled.strip() or not line.strip():
            lines.append(filled.replace("\n", f"\n{indent}"))
    return "\n".join(lines) + "\n"
