"""The cost of a watched step beside an ordinary one, in processor time.

    uv run benchmarks/watch_cost.py [CONFIG] [--FIELD VALUE ...]

Both kinds take turns, step by step, so that other programs on the machine affect both alike. The
last line is the added share of a run's step time if every tenth step is watched.
"""

import statistics
import sys
import time
from pathlib import Path

import jax

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bigmodel_jax import config_file  # noqa: E402
from bigmodel_jax.core import sharding  # noqa: E402
from bigmodel_jax.training.beginning import open_data  # noqa: E402
from bigmodel_jax.training.state import init_state  # noqa: E402
from bigmodel_jax.training.step import make_train_step  # noqa: E402

TURNS, EVERY = 24, 10


def main() -> None:
    target, *options = sys.argv[1:] or [str(ROOT / "configs/lm_tiny.py")]
    config = config_file.load(target, options)
    mesh = sharding.make_mesh(config.parallel)
    state, (batches, _) = init_state(config, mesh), open_data(config, mesh)
    batch = batches.next(state)
    steps = [make_train_step(config, mesh, watched=watched).lower(state, batch).compile() for watched in (False, True)]
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(TURNS + 2):
        for step, spent in zip(steps, seconds, strict=True):
            began = time.process_time()
            state, sums = step(state, batch)
            jax.block_until_ready((state, sums))
            if turn >= 2:
                spent.append(time.process_time() - began)
    ordinary, watched = map(statistics.median, seconds)
    extra = watched / ordinary - 1
    print(f"ordinary {1000 * ordinary:.1f} ms   watched {1000 * watched:.1f} ms   {100 * extra:+.1f} % of a step")
    print(f"every {EVERY}th step watched: {100 * extra / EVERY:+.2f} % of the time in steps")


if __name__ == "__main__":
    main()
