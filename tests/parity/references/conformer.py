"""Parakeet of transformers, a conformer for CTC: tiny, random, and everything that a parity test
asks of it."""

from pathlib import Path

import numpy as np
import torch
from transformers import ParakeetCTCConfig, ParakeetEncoderConfig, ParakeetForCTC

from references.vision import statistics
from references.weights import randomize, save_gradients, save_weights

MELS, CLASSES, STEPS = 16, 11, 20
LENGTHS, LABELS = (43, 30, 17), (5, 3, 0)  # of the rows
ENCODER = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "conv_kernel_size": 5,
    "num_mel_bins": MELS,
    "subsampling_conv_channels": 6,
}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(seed: int, lengths: tuple[int, ...], labels: tuple[int, ...], most: int) -> dict[str, torch.Tensor]:
    """Padded frames are zeros, as the feature extractor leaves them: their first convolution sees
    one of them. The blank is the last class, which pads labels as well; neighbours among the labels
    are sometimes the same."""
    frames = torch.randn((len(lengths), most, MELS), generator=generator(seed))
    drawn = torch.randint(0, CLASSES - 1, (len(labels), max(labels)), generator=generator(seed + 1))
    drawn[:, 1] = drawn[:, 0]
    places = torch.arange(max(labels))
    mask = torch.arange(most) < torch.tensor(lengths)[:, None]
    return {
        "input_features": frames * mask[..., None],
        "attention_mask": mask,
        "labels": torch.where(places < torch.tensor(labels)[:, None], drawn, CLASSES - 1),
    }


def nats(model, inputs: dict) -> torch.Tensor:
    """The loss per label over the whole batch."""
    return model(**inputs).loss / (inputs["labels"] != CLASSES - 1).sum()


def arrays_of(inputs: dict, prefix: str = "") -> dict[str, np.ndarray]:
    labels = inputs["labels"]
    found = {
        "log_mel": inputs["input_features"],
        "num_frames": inputs["attention_mask"].sum(-1).int(),
        "labels": labels.int(),
        "num_labels": (labels != CLASSES - 1).sum(-1).int(),
    }
    return {prefix + name: x.numpy() for name, x in found.items()}


def train(model, inputs: dict) -> np.ndarray:
    """Takes 20 AdamW steps on one batch of whole rows, clipped. Only matrices and kernels decay."""
    named = list(model.named_parameters())
    decays = {n: p.ndim >= 2 and not n.endswith(("bias_u", "bias_v")) for n, p in named}
    groups = [
        {"params": [p for n, p in named if decays[n]], "weight_decay": 0.1},
        {"params": [p for n, p in named if not decays[n]], "weight_decay": 0.0},
    ]
    optimizer, losses = torch.optim.AdamW(groups, lr=3e-3, betas=(0.9, 0.95)), []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = nats(model, inputs)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return np.array(losses)


def write(folder: Path, **encoder) -> None:
    """Writes logits and gradients of rows with padding, as in evaluation, and statistics, gradients
    and steps of whole rows."""
    dropped = dict.fromkeys(("dropout", "layerdrop", "activation_dropout", "attention_dropout"), 0.0)
    config = ParakeetCTCConfig(
        vocab_size=CLASSES,
        pad_token_id=CLASSES - 1,
        ctc_loss_reduction="sum",
        encoder_config=ParakeetEncoderConfig(**ENCODER | dropped | encoder),
    )
    model = ParakeetForCTC._from_config(config, attn_implementation="eager").float().eval()
    randomize(model, std=0.2)
    statistics(model)
    save_weights(model, folder)
    inputs = batch(1, LENGTHS, LABELS, max(LENGTHS))
    with torch.no_grad():
        out = model(**{n: inputs[n] for n in ("input_features", "attention_mask")}, output_hidden_states=True)
    arrays = arrays_of(inputs) | {"logits": out.logits.numpy()}
    arrays |= {f"hidden_states/{n}": h.numpy() for n, h in enumerate(out.hidden_states)}
    loss = nats(model, inputs)
    loss.backward()
    save_gradients(model, folder)
    arrays["loss"] = loss.detach().numpy()
    whole = batch(5, (40, 40, 40, 40), (4, 3, 3, 2), 40)
    model.train()
    arrays |= arrays_of(whole, "train/")
    loss = nats(model, whole)  # moves the running statistics
    arrays["train/loss"] = loss.detach().numpy()
    arrays |= {f"running/{n}": b.numpy().copy() for n, b in model.named_buffers() if "running" in n}
    arrays["train/losses"] = train(model, whole)
    np.savez_compressed(folder / "reference.npz", **arrays)


def losses(folder: Path) -> None:
    """Computes torch's own CTC loss and its gradient: repeated labels, no labels, rows without a
    frame to spare."""
    logits = (2 * torch.randn((5, 12, 7), generator=generator(0))).requires_grad_()
    labels = torch.tensor([[2, 3, 3, 4], [5, 6, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0], [6, 5, 4, 3]])
    num_labels, num_frames = torch.tensor([4, 2, 3, 0, 4]), torch.tensor([12, 5, 5, 3, 4])
    log_probs = logits.log_softmax(-1).transpose(0, 1)
    nats = torch.nn.CTCLoss(reduction="none")(log_probs, labels, num_frames, num_labels)
    nats.sum().backward()
    arrays = {"logits": logits, "labels": labels, "num_labels": num_labels, "num_frames": num_frames, "nats": nats}
    arrays |= {"gradient": logits.grad}
    np.savez_compressed(folder / "reference.npz", **{n: x.detach().numpy() for n, x in arrays.items()})


def features(folder: Path) -> None:
    """What ParakeetFeatureExtractor makes of noise, of a tone, and of silence."""
    from transformers import ParakeetFeatureExtractor

    tone = torch.sin(torch.arange(9_000) * 0.2) * 0.3
    samples = [0.1 * torch.randn(8_123, generator=generator(2)), tone, torch.zeros(3_200)]
    extractor, found = ParakeetFeatureExtractor(feature_size=40), {}
    for n, one in enumerate(samples):
        out = extractor(one.numpy(), sampling_rate=16_000, return_tensors="pt")
        found |= {f"samples/{n}": one.numpy(), f"log_mel/{n}": out.input_features[0][out.attention_mask[0]].numpy()}
    np.savez_compressed(folder / "reference.npz", **found)


CONFORMERS = {
    "conformer": lambda folder: write(folder, subsampling_factor=4),
    "conformer_bare": lambda folder: write(
        folder, subsampling_factor=8, attention_bias=False, convolution_bias=False, scale_input=False
    ),
    "ctc": losses,
    "speech_features": features,
}
