"""datatrove's side of near_duplicates.py, in its own environment: four stages with defaults."""

import sys
from pathlib import Path

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter


def main(folder: Path, workers: int) -> None:
    config, own, files = MinhashConfig(), folder / "datatrove", 10
    docs, signatures, buckets, removed = (
        str(path) for path in (folder / "docs", own / "sig", own / "buckets", own / "ids")
    )
    written = JsonlWriter(str(own / "kept"), compression=None, output_filename="${rank}.jsonl")
    stages = [
        ([JsonlReader(docs), MinhashDedupSignature(signatures, config=config)], files),
        ([MinhashDedupBuckets(signatures, buckets, config=config)], config.num_buckets),
        ([MinhashDedupCluster(buckets, removed, config=config)], 1),
        ([JsonlReader(docs), MinhashDedupFilter(removed), written], files),
    ]
    for number, (steps, tasks) in enumerate(stages):
        logs = str(own / "logs" / str(number))
        # "spawn" starts the workers as children of this process, so that their processor time is
        # counted.
        LocalPipelineExecutor(steps, tasks, workers, logging_dir=logs, start_method="spawn").run()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
