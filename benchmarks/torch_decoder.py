"""The PyTorch side of `torch_peer.py`: the same decoder and train step, in a Python that has torch.

    python torch_decoder.py SHAPE_JSON eager|compile

It uses SDPA attention, F.rms_norm, F.cross_entropy, clip_grad_norm_ and fused AdamW. For each line
of stdin, a number of steps, it runs the steps and answers with the seconds that they took and the
last loss.
"""

import json
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c, d, h = c, c["embed_dim"], c["head_dim"]
        self.norm1, self.norm2 = nn.Parameter(torch.ones(d)), nn.Parameter(torch.ones(d))
        self.sizes = [c["num_heads"] * h, c["num_kv_heads"] * h, c["num_kv_heads"] * h]
        self.qkv, self.o = nn.Linear(d, sum(self.sizes), bias=False), nn.Linear(self.sizes[0], d, bias=False)
        self.gate, self.up = nn.Linear(d, c["mlp_dim"], bias=False), nn.Linear(d, c["mlp_dim"], bias=False)
        self.down = nn.Linear(c["mlp_dim"], d, bias=False)

    def forward(self, x, cos, sin):
        B, T, D = x.shape
        y = F.rms_norm(x, (D,), self.norm1, 1e-5)
        q, k, v = (z.view(B, T, -1, self.c["head_dim"]).transpose(1, 2) for z in self.qkv(y).split(self.sizes, dim=-1))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        grouped = self.c["num_heads"] != self.c["num_kv_heads"]
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
        x = x + self.o(y.transpose(1, 2).reshape(B, T, -1))
        y = F.rms_norm(x, (D,), self.norm2, 1e-5)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


def rotate(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class Decoder(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.embed = nn.Embedding(c["vocab_size"], c["embed_dim"])
        self.blocks = nn.ModuleList(Block(c) for _ in range(c["num_layers"]))
        self.norm = nn.Parameter(torch.ones(c["embed_dim"]))
        self.head = nn.Linear(c["embed_dim"], c["vocab_size"], bias=False)
        for p in self.parameters():
            if p.ndim == 2:
                nn.init.normal_(p, std=0.02)
        half = torch.arange(0, c["head_dim"], 2) / c["head_dim"]
        angle = torch.arange(c["seq_len"])[:, None] * 10_000.0 ** -half[None]
        self.register_buffer("cos", angle.cos())
        self.register_buffer("sin", angle.sin())

    def forward(self, tokens, targets):
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        logits = self.head(F.rms_norm(x, (x.shape[-1],), self.norm, 1e-5))
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))


def make_optimizer(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    """Fused AdamW; vectors get no weight decay."""
    decayed, rest = ([p for p in model.parameters() if (p.ndim > 1) == many] for many in (True, False))
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=True)


def main():
    c, mode = json.loads(sys.argv[1]), sys.argv[2]
    torch.manual_seed(0)
    model = Decoder(c)
    optimizer = make_optimizer(model, lr=1e-3)
    forward = torch.compile(model) if mode == "compile" else model
    data = torch.randint(0, c["vocab_size"], (8, c["batch_size"], c["seq_len"] + 1))

    def step(i):
        loss = forward(data[i % 8][:, :-1], data[i % 8][:, 1:].contiguous())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    for i in range(5):
        step(i).item()
    print("ready", sum(p.numel() for p in model.parameters()), flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        for i in range(int(line)):
            loss = step(i)
        print(time.perf_counter() - start, loss.item(), flush=True)


if __name__ == "__main__":
    main()
