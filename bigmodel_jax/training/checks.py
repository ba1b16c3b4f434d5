"""Checks of a run that need its open data, made before anything is compiled or written."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from bigmodel_jax import config_reads
from bigmodel_jax.config import Config, ImageSampleConfig, SampleConfig
from bigmodel_jax.core import ranges
from bigmodel_jax.data.base import DataConfig, Rows
from bigmodel_jax.data.mixture_order import exhausted
from bigmodel_jax.data.tokenizers.tokenizers import Tokenizer
from bigmodel_jax.objectives import Objective


def check_processes(config: Config) -> None:
    """Raises ValueError where several processes cannot share the run."""
    if config.parallel.strategy == "pmap" and jax.process_count() > 1:
        raise ValueError(
            f"parallel.strategy = 'pmap' is for one process; this job has {jax.process_count()}: use 'jit'"
        )


def check_trains(config: Config) -> None:
    """Raises ValueError where all weights are quantized constants, so that nothing trains."""
    if config.quantize.kind != "none" and not config.quantize.aware:
        raise ValueError(
            f"quantize.kind = {config.quantize.kind!r}: a quantized run has no weights to train; train the run that "
            "it was made from, or adapters on a quantized base (adapters.base)"
        )


def check_spikes(config: Config) -> None:
    """Raises ValueError where a rollback is impossible: no saves, or batches that cannot be
    skipped.
    """
    if config.train.spikes.action != "rollback":
        return
    option, data = "train.spikes.action = 'rollback'", type(config.data)
    if not (config.checkpoint.every or config.checkpoint.local_every):
        raise ValueError(f"{option} needs saves to go back to, such as --checkpoint.every 100")
    if data.experience is not DataConfig.experience or config.data.prompts:
        raise ValueError(f"{option}: the weights generate the batches of {data.__name__}; give 'skip'")


def check_rows(config: Config, rows: Rows) -> None:
    """Raises ValueError where the rows do not suffice for the run.

    They may be too few, or may lack arrays that the model or the objective reads. The arrays are
    looked at only if the data class declares none.
    """
    size, steps = config.train.batch_size, config.train.steps
    most = rows.num_examples(size) if hasattr(rows, "num_examples") else None
    if most is not None and steps * size > most:
        raise ValueError(f"train.steps = {steps}: {steps * size:,} examples are asked for, and {exhausted(most)}")
    if most is not None and config.train.spikes.action == "rollback":
        raise ValueError(
            f"train.spikes.action = 'rollback' needs further batches after a spike; {exhausted(most)}; or give 'skip'"
        )
    made = type(config.data).experience is not DataConfig.experience  # its batches come from elsewhere, not from `rows`
    if not made and not config.data.row():
        held = rows.batch(np.zeros(1, np.int64), np.zeros(1, np.uint64))
        config_reads.check(config.model, config.objective, config.data, held)


def check_data(config: Config) -> None:
    """Raises ValueError where the model's sizes do not fit the data's."""
    for name, needed in (config.data.requirements() | config.objective.requirements(config.data)).items():
        if name.removesuffix("_shape") in config.objective.makes:
            continue  # the model reads what the objective makes of the data's array
        has = _field(config.model, name, needed)
        least = isinstance(needed, int) and name not in config.data.exact
        # Integer sizes are minima. Other requirements must match exactly.
        if has < needed if least else _plain(has) != _plain(needed):
            source = f" (data.{config.data.required_by[name]})" if name in config.data.required_by else ""
            raise ValueError(f"model.{name} = {has}, but the data needs {'at least ' if least else ''}{needed}{source}")


def _field(model: Any, name: str, default: Any) -> Any:
    """A field by its dotted name; `default` if the model has no such field."""
    return functools.reduce(lambda part, field: getattr(part, field, default), name.split("."), model)


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def check_ids(model: Any, num_ids: int, prefix: str) -> None:
    """Raises ValueError where the tokenizer has more ids than the embedding table has rows.

    `prefix` stands before the message.
    """
    text = getattr(model, "text", model)
    rows = getattr(text, "vocab_size", num_ids)
    if num_ids > rows:
        raise ValueError(
            f"{prefix}the tokenizer's ids go up to {num_ids - 1}, but the model has {rows} rows (vocab_size); take the "
            "tokenizer that belongs to the weights, or add rows to them: model.resize_token_embeddings in transformers"
        )


def check_images(config: Config, sample: ImageSampleConfig, prefix: str = "") -> None:
    """Raises ValueError for images that cannot be generated or shown.

    `prefix` stands before the names of options.
    """
    ranges.check(sample, prefix)
    most = config.objective.num_steps
    if sample.steps > most:
        raise ValueError(f"{prefix}steps = {sample.steps}; it must be at most objective.num_steps = {most}")
    shape = config.objective.picture_shape(config.model)
    if len(shape) != 3 or shape[2] not in (1, 3):
        raise ValueError(f"{prefix}num = {sample.num}: images of shape {tuple(shape)} cannot be shown; give 0")


def check_continues(objective: Objective, asked: str) -> None:
    """Raises ValueError where a run of `objective` writes no texts. `asked` begins the message."""
    if instead := objective.instead_of_texts:
        raise ValueError(f"{asked}: a run of {type(objective).__name__} continues no texts; {instead}")


def check_reads_texts(config: Config, asked: str) -> None:
    """Raises ValueError where the model reads nothing without a recording or a picture."""
    reads = config.model.inputs()
    if "log_mel" in reads:
        raise ValueError(f"{asked}: this model reads recordings; `launch.py transcribe` writes what they say")
    if "prefix" in reads:
        raise ValueError(f"{asked}: this model reads prompts about a picture; `launch.py generate` takes an --image")


def check_sample(
    config: Config,
    sample: SampleConfig,
    tokenizer: Tokenizer | None,
    *,
    chat: Sequence[int] = (),
    prefix: str = "",
    pictured: bool = False,
) -> list[int]:
    """The token ids of the prompt.

    They are the start token and the prompt's text. If `chat` is given, its tokens replace both: a
    chat template has made them. With `pictured` the model also reads a picture, and the prompt may
    be empty. Raises ValueError for what cannot be generated. `prefix` stands before the names of
    options.
    """
    if not sample.prompt and not pictured:
        raise ValueError(f"{prefix}prompt = '': it is empty; give at least one character to continue from")
    if any("\ud800" <= character <= "\udfff" for character in sample.prompt):
        raise ValueError(f"{prefix}prompt = {sample.prompt[:40]!r} is not UTF-8 text")
    ranges.check(sample, prefix)
    check_continues(config.objective, f"{prefix}prompt = {sample.prompt!r}")
    model = config.make_model()
    if tokenizer is None or model.make_cache is None:
        raise ValueError(
            f"{prefix}prompt = {sample.prompt!r}: a {type(config.model).__name__} on {type(config.data).__name__} "
            "cannot generate; it takes a model with a decode cache, and a tokenizer"
        )
    if not pictured:
        check_reads_texts(config, f"{prefix}prompt = {sample.prompt[:40]!r}")
    check_ids(config.model, tokenizer.vocab_size, f"{prefix}prompt = {sample.prompt[:40]!r}: ")
    ids = tokenizer.encode(sample.prompt)
    # An encoder gets the text and an end token. A decoder gets a start token and the text.
    whole = model.encoded(ids, tokenizer.separator) if model.decoder_starts else [tokenizer.start, *ids]
    prompt = list(chat) if chat else whole
    limit = config.model.max_seq_len
    if len(prompt) + sample.max_tokens > limit:
        raise ValueError(
            f"{prefix}max_tokens = {sample.max_tokens}: with the prompt's {len(prompt)} tokens it is more than "
            f"model.max_seq_len = {limit}"
        )
    return prompt
