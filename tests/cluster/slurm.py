"""A SLURM of one controller and two nodes on this machine: Debian's slurm-wlm and munge, everything
in one folder."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import jobs

BINARIES = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "scontrol", "squeue", "sinfo")
# Node names stand in a job's list of hosts, whose first one is the coordinator's address: it must
# resolve.
HOST = socket.gethostname().split(".")[0]
NODES = (HOST, f"{HOST}-second")
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
ReturnToService=2
MpiDefault=none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=sched_interval=1,sched_min_interval=1,bf_interval=1
NodeName={nodes[0]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2
NodeName={nodes[1]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2
PartitionName=low Nodes={nodes[0]},{nodes[1]} Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=120
PartitionName=high Nodes={nodes[0]},{nodes[1]} MaxTime=INFINITE State=UP PriorityTier=2 PreemptMode=OFF
"""


def why_not() -> str:
    """Why no SLURM can be started here; empty where it can."""
    missing = [name for name in BINARIES if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} not installed: apt-get install slurm-wlm munge"
    if os.geteuid():
        return "the daemons of the test need root"
    try:
        socket.gethostbyname(HOST)
    except OSError:
        return f"this machine's own name, {HOST}, has no address"
    return ""


class Cluster:
    def __init__(self, folder: Path):
        self.folder, self.daemons = folder, []
        self.environment = dict(os.environ, SLURM_CONF=str(folder / "slurm.conf"))

    def start(self) -> None:
        (self.folder / "state").mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        values = {"host": HOST, "folder": self.folder, "nodes": NODES}
        values["ports"] = [jobs.free_port() for _ in range(3)]
        (self.folder / "slurm.conf").write_text(CONFIG.format(**values))
        f = self.folder
        self.daemon(
            *("munged", "--foreground", "--force", f"--key-file={key}", f"--socket={f}/munge.socket"),
            *(f"--pid-file={f}/munged.pid", f"--log-file={f}/munged.log", f"--seed-file={f}/munged.seed"),
        )
        self.daemon("slurmctld", "-D")
        for node in NODES:
            self.daemon("slurmd", "-D", "-N", node)
        # Each node stands there once for each partition.
        idle = ("sinfo", "--Node", "--noheader", "--format=%T")
        self.wait(lambda: self.run(*idle, check=False).split() == ["idle"] * 4, 60)

    def daemon(self, *command: str) -> None:
        with open(self.folder / "daemons.log", "a") as log:
            self.daemons.append(subprocess.Popen(command, env=self.environment, stdout=log, stderr=log))

    def run(self, *command: str, check: bool = True) -> str:
        """What the command prints."""
        done = subprocess.run(list(map(str, command)), env=self.environment, capture_output=True, text=True)
        assert not check or done.returncode == 0, done.stderr
        return done.stdout.strip()

    def state(self, job: str) -> dict[str, str]:
        """What `scontrol show job` says."""
        return dict(item.split("=", 1) for item in self.run("scontrol", "show", "job", job).split() if "=" in item)

    def wait(self, condition, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                logs = "\n".join(f"--- {p.name}\n{p.read_text()[-2000:]}" for p in sorted(self.folder.glob("*.log")))
                raise AssertionError(f"not in {seconds} s\n{self.run('squeue', '--long', check=False)}\n{logs}")
            time.sleep(0.3)

    def stop(self) -> None:
        """Every job, then every daemon, with what they have started."""
        self.run("scancel", "--signal=KILL", "--full", "--user=root", check=False)
        self.run("scancel", "--user=root", check=False)
        with contextlib.suppress(AssertionError):
            self.wait(lambda: not self.run("squeue", "--noheader", "--states=R,CG,CF", check=False), 20)
        for process in reversed(self.daemons):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    started = Cluster(folder)
    try:
        started.start()
        yield started
    finally:
        started.stop()
