"""transformers' side of `serve_load.py`: generates in static batches.

    python torch_generate.py FOLDER eager|compile

It runs in a Python that has transformers. It reads {"prompts", "lengths", "batch", "rounds"} from
stdin, and prints the number of requested tokens per second. A batch runs until its longest text is
complete.
"""

import json
import statistics
import sys
import time

import torch
from transformers import AutoModelForCausalLM


def main() -> None:
    folder, how = sys.argv[1:]
    asked = json.load(sys.stdin)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    options = {}
    if how == "compile":
        model.forward = torch.compile(model.forward)
        options = {"cache_implementation": "static"}

    @torch.inference_mode()
    def generate(prompts: list, num: int) -> None:
        ids = torch.tensor(prompts)
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=num,
            min_new_tokens=num,
            do_sample=False,
            pad_token_id=0,
            **options,
        )
        assert out.shape[1] == ids.shape[1] + num

    batches = [slice(i, i + asked["batch"]) for i in range(0, len(asked["prompts"]), asked["batch"])]
    # The first call makes the longest static cache. Later calls use it again, so that prefill and
    # decode compile once.
    generate(asked["prompts"][batches[0]], max(asked["lengths"]))
    speeds = []
    for _ in range(asked["rounds"]):
        began = time.perf_counter()
        for batch in batches:
            generate(asked["prompts"][batch], max(asked["lengths"][batch]))
        speeds.append(sum(asked["lengths"]) / (time.perf_counter() - began))
    print(statistics.median(speeds))


if __name__ == "__main__":
    main()
