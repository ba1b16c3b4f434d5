"""The counterpart of `gpu_speed.py` in PyTorch: transformers' Llama on the same GPU.

    python benchmarks/gpu_torch.py SETTING_JSON compile|eager [full] [residual]

It runs in a Python with torch and transformers, with bfloat16 autocast over float32 weights, SDPA
attention, clip_grad_norm_ and fused AdamW. `full` recomputes every layer. `residual` keeps the
residual stream in bfloat16, as this project does; autocast alone leaves it in the embedding's
float32. SETTING_JSON is the config.json of `gpu_settings.py`, with transformers.json beside it. The
last line printed is a JSON object.
"""

import json
import statistics
import sys
import time
from pathlib import Path

import torch
import transformers
from torch_decoder import make_optimizer

WINDOWS, STEPS = 6, 4


def make_model(path: Path, device: str) -> torch.nn.Module:
    config = transformers.LlamaConfig(**json.loads(path.read_text()), use_cache=False)
    config._attn_implementation = "sdpa"
    with torch.device(device):
        return transformers.LlamaForCausalLM(config)


def make_step(model, rows: int, seq_len: int, vocab: int, mode: str, device: str):
    optimizer = make_optimizer(model, lr=1e-4)
    forward = torch.compile(model) if mode == "compile" else model
    tokens = torch.randint(0, vocab, (rows, seq_len), device=device)

    def step():
        with torch.autocast(device, torch.bfloat16):
            loss = forward(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    return step


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def time_windows(step, device: str) -> tuple[list[float], float, float]:
    """(seconds per step of each window, seconds of the first step, the last loss)."""
    begun = time.perf_counter()
    step().item()
    first = time.perf_counter() - begun
    seconds = []
    for _ in range(WINDOWS + 1):
        synchronize(device)
        start = time.perf_counter()
        for _ in range(STEPS):
            loss = step()
        synchronize(device)
        seconds.append((time.perf_counter() - start) / STEPS)
    return seconds[1:], first, loss.item()


def main(path: str, mode: str, *options: str) -> None:
    setting = json.loads(Path(path).read_text())
    rows, seq_len = setting["train"]["batch_size"], setting["data"]["seq_len"]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    model = make_model(Path(path).with_name("transformers.json"), device).train()
    if "residual" in options:
        model.model.embed_tokens.register_forward_hook(lambda module, inputs, output: output.to(torch.bfloat16))
    if "full" in options:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    step = make_step(model, rows, seq_len, setting["model"]["vocab_size"], mode, device)
    seconds, first, loss = time_windows(step, device)
    median = statistics.median(seconds)
    record = {
        "name": f"torch {mode} {' '.join(options)}".strip(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "first_step_seconds": first,
        "step_ms": 1e3 * median,
        "windows_ms": [1e3 * s for s in seconds],
        "tokens_per_second": rows * seq_len / median,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else 0.0,
        "loss": loss,
    }
    print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
