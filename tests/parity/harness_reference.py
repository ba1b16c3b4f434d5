"""lm-eval's own model for transformers, on a folder of tasks: FOLDER TASKS OUTPUT, with settings as
JSON on stdin.

Run by a Python of its own with torch, transformers and lm-eval. OUTPUT: {case: {"results": ...,
"answers": {task: [...]}}}.
"""

import json
import os
import sys


def answers(samples: list[dict]) -> list:
    """What the model said to each request, in the order of the documents."""
    return [said for one in sorted(samples, key=lambda s: s["doc_id"]) for said in flat(one["resps"])]


def flat(said: list) -> list:
    """One entry a request: [log-likelihood, whether greedy], a log-likelihood, or a text."""
    return [list(one[0]) if isinstance(one[0], (list, tuple)) else one[0] for one in said]


def main() -> None:
    os.environ.update({"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "DISABLE_MULTIPROC": "1"})
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    folder, tasks, output = sys.argv[1:]
    found = {}
    for case, settings in json.load(sys.stdin).items():
        manager = TaskManager(include_path=tasks, include_defaults=False)
        model = HFLM(pretrained=folder, dtype="float32", device="cpu", batch_size=4)
        got = lm_eval.simple_evaluate(
            model=model, tasks=manager.all_subtasks, task_manager=manager, log_samples=True, **settings
        )
        results = {
            task: {k: v for k, v in own.items() if "," in k and "stderr" not in k}
            for task, own in got["results"].items()
        }
        found[case] = {"results": results, "answers": {task: answers(many) for task, many in got["samples"].items()}}
    with open(output, "w") as file:
        json.dump(found, file, default=float)


if __name__ == "__main__":
    main()
