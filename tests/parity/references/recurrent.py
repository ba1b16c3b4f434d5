"""torch.nn.RNN, LSTM and GRU: two layers under an embedding and a head, tiny and random."""

import functools
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from references.weights import randomize

VOCAB, EMBED, HIDDEN = 96, 12, 20


def tokens(seed: int, *shape: int) -> torch.Tensor:
    return torch.randint(1, VOCAB, shape, generator=torch.Generator().manual_seed(seed))


class LanguageModel(torch.nn.Module):
    def __init__(self, cell: str):
        super().__init__()
        self.embed = torch.nn.Embedding(VOCAB, EMBED)
        self.cells = getattr(torch.nn, cell)(EMBED, HIDDEN, num_layers=2, batch_first=True)
        self.head = torch.nn.Linear(HIDDEN, VOCAB)

    def forward(self, ids):
        return self.head(self.cells(self.embed(ids))[0])


def write(cell: str, folder: Path) -> None:
    model = LanguageModel(cell)
    randomize(model, std=0.5)
    ids = tokens(1, 2, 13)
    arrays = {"tokens": ids.numpy(), "greedy/prompt": tokens(7, 2, 5).numpy()}
    with torch.no_grad():
        arrays["logits"] = model(ids).numpy()
        arrays["outputs"] = model.cells(model.embed(ids))[0].numpy()
        for n, length in enumerate((5, 8)):
            document = tokens(3 + n, 1, length)
            arrays |= {f"packed/tokens_{n}": document.numpy(), f"packed/logits_{n}": model(document).numpy()}
        chain = tokens(7, 2, 5)
        for _ in range(16):
            chain = torch.cat([chain, model(chain)[:, -1:].argmax(-1)], dim=1)
        arrays["greedy/tokens"] = chain[:, 5:].numpy()
    loss = torch.nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
    loss.backward()
    arrays["loss"] = loss.detach().numpy()
    save_file(model.state_dict(), folder / "model.safetensors")
    save_file({name: p.grad for name, p in model.named_parameters()}, folder / "gradients.safetensors")
    np.savez_compressed(folder / "reference.npz", **arrays)


RECURRENT = {name: functools.partial(write, name.upper()) for name in ("rnn", "lstm", "gru")}
