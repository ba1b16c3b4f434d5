"""The PyTorch side of `lora_speed.py`: transformers' Llama with PEFT's LoRA.

    python torch_lora.py SHAPE_JSON eager|compile lora|full

It runs in a Python with torch, transformers and peft, with SDPA attention, clip_grad_norm_ and
fused AdamW. For each line of stdin, a number of steps, it runs the steps and answers with their
seconds, the processor seconds of all cores, and the last loss.
"""

import json
import sys
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM


def make_model(c: dict, kind: str) -> torch.nn.Module:
    sizes = {
        "vocab_size": c["vocab_size"],
        "hidden_size": c["embed_dim"],
        "intermediate_size": c["mlp_dim"],
        "num_hidden_layers": c["num_layers"],
        "num_attention_heads": c["num_heads"],
        "num_key_value_heads": c["num_kv_heads"],
        "head_dim": c["head_dim"],
    }
    config = LlamaConfig(**sizes, tie_word_embeddings=c["tied_embeddings"], attn_implementation="sdpa", use_cache=False)
    model = LlamaForCausalLM(config).float()
    if kind == "full":
        return model
    return get_peft_model(model, LoraConfig(r=c["rank"], lora_alpha=2 * c["rank"], target_modules="all-linear"))


def main() -> None:
    c, mode, kind = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3]
    torch.manual_seed(0)
    model = make_model(c, kind).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, betas=(0.9, 0.999), weight_decay=0.0, fused=True)
    forward = torch.compile(model) if mode == "compile" else model
    data = torch.randint(0, c["vocab_size"], (8, c["batch_size"], c["seq_len"] + 1))

    def step(i: int) -> torch.Tensor:
        # transformers shifts the labels itself, so both get the same tokens; our batches hold
        # shifted targets.
        loss = forward(input_ids=data[i % 8][:, :-1], labels=data[i % 8][:, :-1]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    for i in range(3):
        step(i).item()
    print("ready", sum(p.numel() for p in trained), flush=True)
    for line in sys.stdin:
        start, computing = time.perf_counter(), time.process_time()
        for i in range(int(line)):
            loss = step(i)
        print(time.perf_counter() - start, time.process_time() - computing, loss.item(), flush=True)


if __name__ == "__main__":
    main()
