"""The entry point of a Ray job: starts one process per node, and restarts all if one is lost.

python -m bigmodel_jax.cluster.ray_driver NODES GPUS_PER_NODE RESTARTS COMMAND ...
"""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence

from bigmodel_jax.cluster.peers import LOST

SECONDS_TO_PLACE = 600


def main(args: Sequence[str]) -> int:
    """Runs the job with restarts, and returns its exit code."""
    import ray
    from ray.util.placement_group import placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    nodes, gpus, restarts, command = int(args[0]), int(args[1]), int(args[2]), list(args[3:])
    ray.init(address="auto")
    # SPREAD puts each bundle on another node if there are enough.
    group = placement_group([{"CPU": 1, "GPU": gpus} if gpus else {"CPU": 1}] * nodes, strategy="SPREAD")
    ray.get(group.ready(), timeout=SECONDS_TO_PLACE)

    def on(bundle: int, function):
        place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle)
        return ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0, scheduling_strategy=place)(function)

    for _ in range(restarts + 1):
        coordinator = ray.get(on(0, free_address).remote())
        tasks = [on(i, run).remote(command, os.getcwd(), coordinator, nodes, i) for i in range(nodes)]
        try:
            codes = ray.get(tasks)
        except ray.exceptions.RayError as error:  # a node is gone; the other processes end by themselves
            print(f"ray: {str(error).splitlines()[0]}", file=sys.stderr)
            codes = [LOST]
        # A bug or a user's mistake takes precedence over a lost process. Neither is restarted.
        code = next((c for c in codes if c in (1, 2)), max(codes, key=abs))
        if code in (0, 1, 2):
            return code
    return code


def free_address() -> str:
    """This node's address with a free port, as host:port."""
    import ray

    with socket.create_server(("", 0)) as server:
        return f"{ray.util.get_node_ip_address()}:{server.getsockname()[1]}"


def run(command: Sequence[str], folder: str, coordinator: str, count: int, process_id: int) -> int:
    """Runs one process of the job on this node, and returns its exit code."""
    place = ["--cluster.coordinator", coordinator, "--cluster.num_processes", str(count)]
    return subprocess.run(
        [*command, *place, "--cluster.process_id", str(process_id)], cwd=folder, check=False
    ).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
