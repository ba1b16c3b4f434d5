"""Whisper of transformers: tiny, random, and everything that a parity test asks of it."""

import functools
from pathlib import Path

import numpy as np
import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration

from references.decoders import VOCAB, tokens
from references.weights import randomize, save_gradients, save_weights

MELS, FRAMES = 8, 32
STEPS = 20


def audio(seed: int, rows: int) -> torch.Tensor:
    """(rows, bins, frames), as their feature extractor gives it."""
    return torch.randn((rows, MELS, FRAMES), generator=torch.Generator().manual_seed(seed))


def loss(model, frames: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The decoder reads all tokens of `target` but the last, and is asked for the next ones."""
    logits = model(input_features=frames, decoder_input_ids=target[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]).float(), target[:, 1:].reshape(-1))


def greedy(model) -> dict[str, np.ndarray]:
    """Twelve tokens after a start of three, whatever they are, by their cache of keys and
    values."""
    frames, start = audio(7, 2), tokens(7, 2, 3)
    with torch.no_grad():
        encoded, made, past = model.model.encoder(frames), start, None
        for _ in range(12):
            given = made if past is None else made[:, -1:]
            out = model(encoder_outputs=encoded, decoder_input_ids=given, past_key_values=past, use_cache=True)
            past, made = out.past_key_values, torch.cat([made, out.logits[:, -1:].argmax(-1)], dim=1)
    return {"greedy/log_mel": ours(frames), "greedy/start": start.numpy(), "greedy/tokens": made[:, 3:].numpy()}


def ours(frames: torch.Tensor) -> np.ndarray:
    return frames.transpose(1, 2).numpy().copy()


def train(model) -> dict[str, np.ndarray]:
    """Takes 20 AdamW steps, clipped. Only matrices decay, and the sinusoids stay."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for _, p in named if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for _, p in named if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer, losses = torch.optim.AdamW(groups, lr=3e-3, betas=(0.9, 0.95)), []
    frames, target = audio(11, 4), tokens(12, 4, 8)
    for _ in range(STEPS):
        optimizer.zero_grad()
        value = loss(model, frames, target)
        value.backward()
        torch.nn.utils.clip_grad_norm_([p for _, p in named], 1.0)
        optimizer.step()
        losses.append(value.item())
    return {"train/log_mel": ours(frames), "train/tokens": target.numpy(), "train/losses": np.array(losses)}


def write(folder: Path, **fields) -> None:
    sizes = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
    sizes |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "vocab_size": VOCAB, "num_mel_bins": MELS}
    sizes |= {"max_source_positions": FRAMES // 2, "max_target_positions": 24}
    ids = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0, "decoder_start_token_id": 1}
    config = WhisperConfig(**sizes | ids | {"suppress_tokens": None, "begin_suppress_tokens": None} | fields)
    model = WhisperForConditionalGeneration._from_config(config, attn_implementation="eager").float().eval()
    positions = model.model.encoder.embed_positions.weight
    kept = positions.detach().clone()
    randomize(model, std=0.2)
    with torch.no_grad():
        positions.copy_(kept)
    run = functools.partial(model, use_cache=False, output_hidden_states=True)
    frames, target = audio(1, 2), tokens(2, 2, 7)
    with torch.no_grad():
        out = run(input_features=frames, decoder_input_ids=target)
    arrays = {"log_mel": ours(frames), "tokens": target.numpy(), "logits": out.logits.numpy()}
    for side in ("encoder", "decoder"):
        arrays[f"{side}_hidden_states"] = np.stack([h.numpy() for h in getattr(out, f"{side}_hidden_states")])
    arrays |= greedy(model)
    value = loss(model, frames, target)
    value.backward()
    arrays["loss"] = value.detach().numpy()
    save_weights(model, folder)
    save_gradients(model, folder)
    arrays |= train(model)
    np.savez_compressed(folder / "reference.npz", **arrays)


def features(folder: Path) -> None:
    """What WhisperFeatureExtractor makes of noise, of a tone, and of silence, cut to one second of
    its window."""
    from transformers import WhisperFeatureExtractor

    generator = torch.Generator().manual_seed(2)
    tone = torch.sin(torch.arange(9_000) * 0.2) * 0.3
    samples = [0.1 * torch.randn(8_123, generator=generator), tone, torch.zeros(3_200)]
    found = {}
    for n, one in enumerate(samples):
        for bins in (80, 128):
            extractor = WhisperFeatureExtractor(feature_size=bins)
            out = extractor(one.numpy(), sampling_rate=16_000, return_tensors="np").input_features[0]
            found[f"log_mel/{n}/{bins}"] = out.T[:100]
        found[f"samples/{n}"] = one.numpy()
    np.savez_compressed(folder / "reference.npz", **found)


WHISPERS = {"whisper": write, "whisper_features": features}
