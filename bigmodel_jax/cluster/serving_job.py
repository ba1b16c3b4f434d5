"""A served run on Kubernetes: a Deployment of equal servers, and a Service in front of them."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from bigmodel_jax.cluster.submit import CHIPS_PER_HOST, Job, fill, slice_of
from bigmodel_jax.core.ranges import Count, CountOrZero

LAST = 10  # seconds of the grace that are left to a server that has drained
PORT = 8000  # as the templates and the Dockerfile have it
MEMORY = {"cpu": "8Gi", "gpu": "32Gi", "tpu": "32Gi"}  # of the host, where --memory says nothing
NO_GPU = "the servers ask for no GPU and compute on their nodes' CPUs; --gpus N asks for N for each"
KEY = "env:\n- name: BIGMODEL_SERVE_KEY\n  valueFrom: {{secretKeyRef: {{name: {secret}, key: key}}}}"
IN_IMAGE = "no --claim: the run's folder must lie in the image, at {place}; --claim NAME mounts a PersistentVolumeClaim"


@dataclasses.dataclass(frozen=True)
class Deployment:
    """What the servers are; each is one process with the devices of one host."""

    image: str = ""  # a container image of the Dockerfile
    replicas: Count = 1
    slots: Count = 16  # texts at a time of one server
    length: CountOrZero = 0  # tokens of prompt and answer together; 0: as `serve` chooses
    gpus: CountOrZero = 0  # of each server
    topology: str = ""  # TPU chips of each server, of one host, e.g. v5e:2x2
    cpus: Count = 4
    memory: str = ""  # of the host, as Kubernetes writes it, e.g. 32Gi; empty: 8Gi, with an accelerator 32Gi
    claim: str = ""  # a PersistentVolumeClaim that holds the runs
    mount: str = "/app/runs"  # where it is mounted
    workdir: str = "/app"
    namespace: str = "default"
    key_secret: str = (
        ""  # a Secret whose entry `key` is what clients must send; empty: whoever reaches a server may ask
    )
    grace: Count = 120  # seconds in which a server that is told to go answers what it has begun

    def job(self, name: str, folder: str) -> Job:
        """The manifest of servers of the run in `folder`, called `name`; ValueError, one line, for what no host has."""
        if not self.image:
            raise ValueError("submit: --image is missing: the container image of the servers")
        if self.topology and self.gpus:
            raise ValueError(f"submit: --topology {self.topology} is of TPUs: --gpus does not go with it")
        if self.memory and not re.fullmatch(r"\d+(\.\d+)?([KMGT]i?)?", self.memory):
            raise ValueError(f"submit: --memory {self.memory!r} is no amount of Kubernetes'; for instance 32Gi")
        app = "serve-" + (re.sub(r"[^a-z0-9-]+", "-", name.lower()).strip("-")[:40] or "run")
        place = f"{self.mount.rstrip('/')}/{name}" if self.claim else folder
        values = {
            **dataclasses.asdict(self),
            **self._machine(),
            "name": app,
            "command": json.dumps(self.command(place)),
            "env": KEY.format(secret=self.key_secret) if self.key_secret else "",
            "mounts": f"- {{name: runs, mountPath: {self.mount}, readOnly: true}}" if self.claim else "",
            "volumes": f"- name: runs\n  persistentVolumeClaim: {{claimName: {self.claim}, readOnly: true}}"
            if self.claim
            else "",
        }
        notes = () if self.topology or self.gpus else (NO_GPU,)
        notes += () if self.claim else (IN_IMAGE.format(place=place),)
        return Job("deployment.yaml", fill("deployment.yaml", **values), ("kubectl", "apply", "-f", "FILE"), notes)

    def command(self, folder: str) -> list[str]:
        length = ["--length", str(self.length)] if self.length else []
        host = ["--host", "0.0.0.0", "--port", str(PORT)]
        drain = ["--drain_seconds", str(max(1, self.grace - LAST))]
        return ["python", "launch.py", "serve", folder, *host, "--slots", str(self.slots), *length, *drain]

    def _machine(self) -> dict[str, Any]:
        """What a pod asks of its node."""
        kind = "tpu" if self.topology else "gpu" if self.gpus else "cpu"
        limits: dict[str, Any] = {"memory": self.memory or MEMORY[kind]}
        selector: dict[str, str] = {}
        if self.topology:
            tpu = slice_of(self.topology, 0)
            if tpu["hosts"] > 1:
                raise ValueError(
                    f"submit: --topology {self.topology} has {tpu['hosts']} hosts; a server is one process with the "
                    f"{CHIPS_PER_HOST} chips of one at most, and --replicas N are N servers"
                )
            limits["google.com/tpu"] = tpu["chips_per_host"]
            selector = {
                "cloud.google.com/gke-tpu-accelerator": tpu["gke"],
                "cloud.google.com/gke-tpu-topology": tpu["topology"],
            }
        if self.gpus:
            limits["nvidia.com/gpu"] = self.gpus
        requests = {"cpu": str(self.cpus), "memory": limits["memory"]}
        return {"selector": json.dumps(selector), "resources": json.dumps({"requests": requests, "limits": limits})}


def of_run(run_dir: Path, options: Deployment) -> Job:
    """Servers of the run in a folder that this machine has, or that the servers alone have."""
    return options.job(run_dir.resolve().name, str(Path("runs") / run_dir.resolve().name))
