"""Finds this process's place in a job of several from the environment.

JAX's own detection covers the schedulers that JAX knows. A Kubernetes JobSet is read from variables
that the manifest sets, because JAX would need the cluster's API and permission to read it.
"""

import dataclasses
import os

from bigmodel_jax.core.ranges import Count, CountOrZero

# The first four are set by the manifest of `submit --engine kubernetes`, from the pod's
# annotations; Kubernetes sets the last.
JOBSET = ("JOBSET_COORDINATOR", "JOBSET_JOBS", "JOBSET_JOB_INDEX", "JOBSET_PODS_PER_JOB", "JOB_COMPLETION_INDEX")
JOBSET_PORT = 8476


@dataclasses.dataclass(frozen=True)
class ClusterConfig:
    """Which process of which job this is.

    By default the environment says this, or the process is alone.
    """

    coordinator: str = ""
    "host:port at which process 0 listens, the same in every process"
    num_processes: CountOrZero = 0  # processes of the job; 0 = as the environment says
    process_id: int = -1  # this process's number, from 0; -1 = as the environment says
    timeout: Count = 300
    "seconds to wait for the other processes at the start"


@dataclasses.dataclass(frozen=True)
class Place:
    """One process's place in a job; local_devices: the indices of its devices on the host, None =
    all."""

    coordinator: str
    num_processes: int
    process_id: int
    local_devices: tuple[int, ...] | None = None
    source: str = "--cluster"


def find(options: ClusterConfig) -> Place | None:
    """The place that `options` and the environment give; None for a process that is alone."""
    place = _from_engine(options)
    if options.coordinator or options.num_processes or options.process_id >= 0:
        given = {
            "coordinator": options.coordinator or (place.coordinator if place else ""),
            "num_processes": options.num_processes or (place.num_processes if place else 0),
            "process_id": options.process_id if options.process_id >= 0 else (place.process_id if place else -1),
        }
        for name, value in given.items():
            if value in ("", 0, -1) and not (name == "process_id" and value == 0):
                raise ValueError(f"cluster.{name} is missing: the environment names no job, so give all three")
        place = dataclasses.replace(place, **given) if place else Place(**given)
    if place is not None:
        _check(place)
    return place if place is not None and place.num_processes > 1 else None


def _check(place: Place) -> None:
    host, _, port = place.coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"cluster.coordinator = {place.coordinator!r} is not host:port")
    if not 0 <= place.process_id < place.num_processes:
        raise ValueError(
            f"cluster.process_id = {place.process_id}; with cluster.num_processes = {place.num_processes} it is 0 to "
            f"{place.num_processes - 1}"
        )


def _from_engine(options: ClusterConfig) -> Place | None:
    """The place that the environment of a scheduler gives; None if there is none."""
    # A JobSet is read from its own variables, without the API of the cluster.
    if all(name in os.environ for name in JOBSET):
        return _from_jobset()
    from jax._src import clusters

    for env in clusters.ClusterEnv._cluster_types:
        if env.opt_in_only_method or env is clusters.K8sCluster or not env.is_env_present():
            continue
        try:
            port = os.environ.get("JAX_COORDINATOR_PORT")
            address = options.coordinator or env.get_coordinator_address(options.timeout, port)
            # Several tasks on one node share its devices, one each.
            local = None if _alone_on_host() else env.get_local_process_id()
            return Place(
                address,
                options.num_processes or env.get_process_count(),
                options.process_id if options.process_id >= 0 else env.get_process_id(),
                None if local is None else (local,),
                env.__name__.removesuffix("Cluster"),
            )
        except (RuntimeError, KeyError, ImportError) as error:
            name = env.__name__.removesuffix("Cluster")
            raise ValueError(
                f"cluster: {name} started this process, but does not give all values: {str(error) or error!r}; give "
                "--cluster.coordinator, --cluster.num_processes and --cluster.process_id"
            ) from error
    return None


def _from_jobset() -> Place:
    host, jobs, job, pods, pod = (os.environ[name] for name in JOBSET)
    try:
        jobs, job, pods, pod = int(jobs), int(job), int(pods), int(pod)
    except ValueError as error:
        shown = ", ".join(f"{name}={os.environ[name]!r}" for name in JOBSET)
        raise ValueError(f"cluster: {shown}: not whole numbers") from error
    port = os.environ.get("JAX_COORDINATOR_PORT", JOBSET_PORT)
    return Place(f"{host}:{port}", jobs * pods, job * pods + pod, source="JobSet")


def _alone_on_host() -> bool:
    """Whether SLURM runs one task per node, which then has all devices of the node."""
    tasks = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "")
    return bool(tasks) and all(part.split("(")[0] == "1" for part in tasks.split(","))
