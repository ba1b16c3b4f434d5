"""Serves a run on Kubernetes: a Deployment of identical servers, and a Service in front of them."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from bigmodel_jax.cluster.submit import CHIPS_PER_HOST, Job, fill, slice_of
from bigmodel_jax.core.ranges import Count, CountOrZero

LAST = 10  # seconds between the end of draining and the end of the grace period
PORT = 8000  # the port in the templates and the Dockerfile
MEMORY = {"cpu": "8Gi", "gpu": "32Gi", "tpu": "32Gi"}  # host memory, if --memory is not given
NO_GPU = "the servers ask for no GPU and compute on their nodes' CPUs; --gpus N asks for N for each"
KEY = "env:\n- name: BIGMODEL_SERVE_KEY\n  valueFrom: {{secretKeyRef: {{name: {secret}, key: key}}}}"
IN_IMAGE = "no --claim: the run's folder must lie in the image, at {place}; --claim NAME mounts a PersistentVolumeClaim"


@dataclasses.dataclass(frozen=True)
class Deployment:
    """The servers of one run. Each is one process with the devices of one host."""

    image: str = ""  # a container image built from the Dockerfile
    replicas: Count = 1  # number of servers
    slots: Count = 16  # requests that one server answers at a time
    length: CountOrZero = 0  # tokens of prompt and answer together; 0: the default of `serve`
    gpus: CountOrZero = 0  # GPUs of each server
    topology: str = ""  # TPU chips of each server, on one host, e.g. v5e:2x2
    cpus: Count = 4  # CPUs of each server
    memory: str = ""  # host memory as Kubernetes writes it, e.g. 32Gi; empty: 8Gi, or 32Gi with an accelerator
    claim: str = ""  # a PersistentVolumeClaim that holds the runs
    mount: str = "/app/runs"  # where the claim is mounted
    workdir: str = "/app"  # the folder of this project in the image
    namespace: str = "default"  # Kubernetes namespace
    key_secret: str = ""  # a Secret whose entry `key` clients must send; empty: no key is needed
    grace: Count = 120  # seconds that a server gets to finish its requests when it is stopped

    def job(self, name: str, folder: str) -> Job:
        """The manifest for servers, called `name`, of the run in `folder`.

        Raises ValueError, one line, for missing or conflicting options.
        """
        if not self.image:
            raise ValueError("submit: --image is missing: the container image of the servers")
        if self.topology and self.gpus:
            raise ValueError(f"submit: --topology {self.topology} names TPUs; leave --gpus out")
        if self.memory and not re.fullmatch(r"\d+(\.\d+)?([KMGT]i?)?", self.memory):
            raise ValueError(
                f"submit: --memory {self.memory!r} is not an amount that Kubernetes accepts; for instance 32Gi"
            )
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
        """The command of one server, as a list of arguments."""
        length = ["--length", str(self.length)] if self.length else []
        host = ["--host", "0.0.0.0", "--port", str(PORT)]
        drain = ["--drain_seconds", str(max(1, self.grace - LAST))]
        return ["python", "launch.py", "serve", folder, *host, "--slots", str(self.slots), *length, *drain]

    def _machine(self) -> dict[str, Any]:
        """The node selector and resources of a pod, as JSON for the template."""
        kind = "tpu" if self.topology else "gpu" if self.gpus else "cpu"
        limits: dict[str, Any] = {"memory": self.memory or MEMORY[kind]}
        selector: dict[str, str] = {}
        if self.topology:
            tpu = slice_of(self.topology, 0)
            # A server is a single process, which sees only the chips of its host.
            if tpu["hosts"] > 1:
                raise ValueError(
                    f"submit: --topology {self.topology} has {tpu['hosts']} hosts; a server is one process on one "
                    f"host, with {CHIPS_PER_HOST} chips at most; --replicas N starts N servers"
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
    """The manifest for servers of a run whose folder is on this machine, or only on the servers."""
    return options.job(run_dir.resolve().name, str(Path("runs") / run_dir.resolve().name))
