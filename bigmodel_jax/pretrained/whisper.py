"""Whisper's tensor names and config.json (transformers' WhisperForConditionalGeneration)."""

from bigmodel_jax.models.whisper import WhisperConfig, sinusoids
from bigmodel_jax.pretrained.family import Family, check_fixed
from bigmodel_jax.pretrained.marian import block, sides_from_hf, sides_to_hf
from bigmodel_jax.pretrained.names import Layout, Row, layer_norm

# torch.nn.Conv1d: theirs (out, in, width), ours (width, in, out).
CONV = Layout(ours=lambda x, _: x.transpose(2, 1, 0), theirs=lambda x: x.transpose(2, 1, 0))


def conv(name: str) -> tuple[Row, ...]:
    """The two name-table rows of one of the encoder's convolutions: "conv1" or "conv2"."""
    theirs = f"model.encoder.{name}"
    return Row(f"{name}/kernel", f"{theirs}.weight", CONV), Row(f"{name}/bias", f"{theirs}.bias")


ROWS = (
    *conv("conv1"),
    *conv("conv2"),
    *block("encoder"),
    *layer_norm("encoder_norm", "model.encoder.layer_norm"),
    Row("embed/table", "model.decoder.embed_tokens.weight"),
    Row("positions", "model.decoder.embed_positions.weight"),
    *block("decoder"),
    *layer_norm("decoder_norm", "model.decoder.layer_norm"),
)
# Sinusoids, which our model computes, and a tied copy of the embedding.
IGNORED = (r"model\.encoder\.embed_positions\.weight", r"proj_out\.weight")
COPIES = (
    ("proj_out.weight", "model.decoder.embed_tokens.weight"),
    ("model.encoder.embed_positions.weight", sinusoids),
)
ACTIVATIONS = ("gelu", "relu", "silu")


def from_hf(hf: dict) -> WhisperConfig:
    """The WhisperConfig that a config.json of transformers' WhisperForConditionalGeneration
    describes.

    Raises ValueError where encoder and decoder differ in width or heads, which no published model
    does.
    """
    check_fixed(hf, scale_embedding=False, activation_function=ACTIVATIONS)
    return WhisperConfig(
        num_mels=hf["num_mel_bins"],
        **sides_from_hf(hf),
        max_audio_len=hf["max_source_positions"],
        max_seq_len=hf["max_target_positions"],
        activation=hf["activation_function"],
        eos_token_id=hf["eos_token_id"],
    )


def to_hf(cfg: WhisperConfig) -> dict:
    """The config.json of transformers' WhisperForConditionalGeneration for this config.

    Raises ValueError for an activation or a norm's epsilon that transformers' Whisper does not
    have.
    """
    if cfg.activation not in ACTIVATIONS:
        raise ValueError(f"model.activation = {cfg.activation!r}: a published Whisper has {', '.join(ACTIVATIONS)}")
    if cfg.norm_eps != 1e-5:
        raise ValueError(f"model.norm_eps = {cfg.norm_eps:g}: a published Whisper has 1e-05")
    return {
        "model_type": "whisper",
        **sides_to_hf(cfg),
        "num_mel_bins": cfg.num_mels,
        "num_hidden_layers": cfg.num_layers,
        "max_source_positions": cfg.max_audio_len,
        "max_target_positions": cfg.max_seq_len,
        "scale_embedding": False,
        # Whisper's beginning, end and padding tokens are all <|endoftext|>.
        "bos_token_id": cfg.eos_token_id,
        "pad_token_id": cfg.eos_token_id,
    }


WHISPER = Family("WhisperForConditionalGeneration", WhisperConfig, from_hf, to_hf, ROWS, IGNORED, copies=COPIES)
