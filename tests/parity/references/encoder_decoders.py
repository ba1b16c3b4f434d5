"""Encoder-decoders of transformers: tiny, random, and everything that a parity test asks of
them."""

import functools
import json
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForSeq2SeqLM, BartConfig, MarianConfig, T5Config

from references.decoders import STEPS, VOCAB, tokens
from references.weights import randomize, save_gradients, save_weights

DOCUMENTS = ((5, 4), (8, 3))  # (encoder tokens, decoder tokens) of each


def loss(model, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The decoder reads all tokens of `target` but the last, and is asked for the next ones."""
    logits = model(input_ids=source, decoder_input_ids=target[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]).float(), target[:, 1:].reshape(-1))


def forward(model) -> dict[str, np.ndarray]:
    """Runs rows of odd lengths and keeps every hidden state of both stacks. It also runs padding,
    and documents one by one as if packed."""
    source, target = tokens(1, 2, 13), tokens(2, 2, 7)
    out = {"encoder_tokens": source.numpy(), "tokens": target.numpy()}
    run = functools.partial(model, use_cache=False)
    with torch.no_grad():
        result = run(input_ids=source, decoder_input_ids=target, output_hidden_states=True)
        out["logits"] = result.logits.numpy()
        out["encoder_hidden_states"] = np.stack([h.numpy() for h in result.encoder_hidden_states])
        out["decoder_hidden_states"] = np.stack([h.numpy() for h in result.decoder_hidden_states])
        for side in ("left", "right"):
            mask = torch.ones(2, 13, dtype=torch.long)
            mask[1, slice(0, 4) if side == "left" else slice(9, 13)] = 0
            logits = run(input_ids=source, attention_mask=mask, decoder_input_ids=target).logits
            out |= {f"padded_{side}/mask": mask.numpy(), f"padded_{side}/logits": logits.numpy()}
        for n, (length, decoder_length) in enumerate(DOCUMENTS):
            pair = {"input_ids": tokens(3 + n, 1, length), "decoder_input_ids": tokens(5 + n, 1, decoder_length)}
            out[f"packed/encoder_tokens_{n}"] = pair["input_ids"].numpy()
            out[f"packed/tokens_{n}"] = pair["decoder_input_ids"].numpy()
            out[f"packed/logits_{n}"] = run(**pair).logits.numpy()
    return out


def greedy(model) -> dict[str, np.ndarray]:
    """Prompts of 9 and 5 tokens; 16 tokens, whatever they are."""
    prompt, mask = tokens(7, 2, 9), torch.ones(2, 9, dtype=torch.long)
    mask[1, 5:] = 0
    for name in ("eos_token_id", "forced_eos_token_id", "bad_words_ids"):
        setattr(model.generation_config, name, None)
    ids = model.generate(prompt, attention_mask=mask, do_sample=False, num_beams=1, max_new_tokens=16)
    return {"greedy/prompt": prompt.numpy(), "greedy/mask": mask.numpy(), "greedy/tokens": ids[:, 1:].numpy()}


def train(model) -> dict[str, np.ndarray]:
    """Takes 20 AdamW steps, clipped. Only matrices decay."""
    decay = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}], lr=3e-3, betas=(0.9, 0.95)
    )
    sources, targets = tokens(11, 4, 4, 12).repeat(STEPS // 4, 1, 1), tokens(12, 4, 4, 8).repeat(STEPS // 4, 1, 1)
    losses = []
    for source, target in zip(sources, targets, strict=True):
        optimizer.zero_grad()
        value = loss(model, source, target)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(value.item())
    return {"train/encoder_tokens": sources.numpy(), "train/tokens": targets.numpy(), "train/losses": np.array(losses)}


def write(
    config, folder: Path, *, training: bool = False, prepare=lambda model: None, scale=lambda model: None
) -> None:
    model = AutoModelForSeq2SeqLM.from_config(config, attn_implementation="eager").float().eval()
    prepare(model)
    randomize(model)
    scale(model)
    save_weights(model, folder)
    arrays = forward(model) | greedy(model)
    value = loss(model, tokens(1, 2, 13), tokens(2, 2, 7))
    value.backward()
    arrays["loss"] = value.detach().numpy()
    save_gradients(model, folder)
    if training:
        arrays |= train(model)
    np.savez_compressed(folder / "reference.npz", **arrays)


def wide_embedding(model) -> None:
    """T5 embeds with a standard deviation of 1, and v1.0 divides the logits by sqrt(d_model)."""
    with torch.no_grad():
        model.shared.weight.mul_(6.0)


def t5_config(num_layers: int = 2, **fields) -> T5Config:
    sizes = {"vocab_size": VOCAB, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": num_layers, "num_heads": 4}
    distances = {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 12}
    ids = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    return T5Config(**sizes, **distances, **ids, dropout_rate=0.0, **fields)


def write_t5_v11(folder: Path) -> None:
    config = t5_config(num_layers=3, num_decoder_layers=2, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    config.tie_word_embeddings = False  # T5Config ties whatever it is told, but for the scale of the logits
    write(config, folder, training=True, prepare=lambda model: model.set_input_embeddings(model.shared))


SIDES = {"vocab_size": VOCAB, "d_model": 32, "decoder_layers": 2, "max_position_embeddings": 64}
SIDES |= {
    f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in (("attention_heads", 4), ("ffn_dim", 48))
}


def write_marian(folder: Path, **fields) -> None:
    config = MarianConfig(
        encoder_layers=2,
        **SIDES,
        scale_embedding=True,
        dropout=0.0,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
        **fields,
    )
    write(config, folder, prepare=open_logits_bias, scale=restore_positions)


def write_bart(folder: Path) -> None:
    config = BartConfig(
        encoder_layers=3,
        **SIDES,
        dropout=0.0,
        pad_token_id=0,
        bos_token_id=3,
        forced_bos_token_id=3,
        eos_token_id=1,
        decoder_start_token_id=2,
    )
    write(config, folder, training=True, prepare=fill_logits_bias)
    # transformers 5 writes this key to generation_config.json alone; published files have it in
    # config.json as well.
    about = json.loads((folder / "config.json").read_text()) | {"forced_bos_token_id": config.bos_token_id}
    (folder / "config.json").write_text(json.dumps(about, indent=2, sort_keys=True) + "\n")


def fill_logits_bias(model) -> None:
    """A buffer, which no step changes; published files hold zeros, which would hide where it is
    added."""
    model.final_logits_bias.normal_(std=0.3, generator=torch.Generator().manual_seed(5))
    model.generation_config.forced_bos_token_id = model.config.bos_token_id


def open_logits_bias(model) -> None:
    """transformers holds it as a buffer; as a parameter it gets random values, and a gradient."""
    bias = model.final_logits_bias
    del model.final_logits_bias
    model.final_logits_bias = torch.nn.Parameter(bias)


def restore_positions(model) -> None:
    """The sinusoids are parameters that are not trained; random values are not for them."""
    with torch.no_grad():
        for side in (model.model.encoder, model.model.decoder):
            side.embed_positions.weight.copy_(side.embed_positions.create_weight())


ENCODER_DECODERS = {
    "t5": functools.partial(write, t5_config(), training=True, scale=wide_embedding),
    "t5_v11": write_t5_v11,
    "transformer": functools.partial(write_marian, activation_function="relu"),
    "bart": write_bart,
    "opus_mt": functools.partial(write_marian, activation_function="swish"),
}
