"""The run that is served: its weights, its tokenizer, its chat template, and an engine for each of its names."""

import dataclasses
import functools
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from bigmodel_jax.config import Config, SampleConfig
from bigmodel_jax.core import sharding
from bigmodel_jax.core.precision import cast
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.core.spelling import nearest
from bigmodel_jax.data.tokenizers.tokenizers import Tokenizer
from bigmodel_jax.inference.engine import Engine, Request
from bigmodel_jax.inference.prompts import PROMPT_MULTIPLE
from bigmodel_jax.inference.sampling import Settings
from bigmodel_jax.models import Model
from bigmodel_jax.serve.config import USUAL_LENGTH, ServeConfig
from bigmodel_jax.serve.constrain import Grammars, Masks
from bigmodel_jax.serve.refused import Refused
from bigmodel_jax.serve.requests import TOPS, Sampled
from bigmodel_jax.training.checks import check_ids
from bigmodel_jax.training.saved import CHAT_TEMPLATE, load_weights, open_tokenizer


@dataclasses.dataclass(frozen=True)
class Served:
    """names: what clients may call as `model`. template: "" where the run has none. length: tokens of a slot."""

    config: Config
    model: Model
    weights: Any
    tokenizer: Tokenizer
    template: str
    names: tuple[str, ...]
    length: int
    step: int
    created: int

    def known(self, name: str) -> str:
        """The name, where it is one that is served; Refused otherwise. Names are compared and never opened as paths."""
        if name not in self.names:
            raise Refused(
                f"model {name[:60]!r} is not served{nearest(name[:60], self.names)}; there is: {', '.join(self.names)}",
                "model",
                status=404,
                code="model_not_found",
            )
        return name

    def prompt(self, text: str) -> list[int]:
        """The tokens that a text is continued from, as `generate` has them; names of special tokens in it are text."""
        ids = self.tokenizer.encode(text)
        return (
            [*ids, self.tokenizer.separator] if self.model.decoder_start is not None else [self.tokenizer.start, *ids]
        )

    def room(self, prompt: Sequence[int], param: str) -> int:
        """How many tokens can follow a prompt; Refused where none can."""
        num, vocab = len(prompt), self.config.model.vocab_size
        wrong = next((i for i in prompt if not 0 <= i < vocab), None)
        if wrong is not None:
            raise Refused(f"{param} holds the token {wrong}; the vocabulary has {vocab}", param)
        used = 1 if self.model.decoder_start is not None else num
        if not num or num > self.length or used >= self.length:
            raise Refused(
                f"{param} has {num} tokens; it must have 1 to {self.length - 1} (--length)",
                param,
                code="context_length_exceeded",
            )
        return self.length - used

    @functools.cached_property
    def grammars(self) -> Grammars:
        return Grammars(self.tokenizer, self.config.model.vocab_size)

    def held_to(self, asked: Sampled, grammar: str = "") -> Masks | None:
        """What the answers are held to: a grammar, or what the request says; this may take tenths of a second."""
        if grammar:
            return self.grammars.lark(grammar, "tools")
        if asked.regex:
            return self.grammars.regex(asked.regex, "regex")
        schema = asked.schema()
        return None if schema is None else self.grammars.schema(schema, "response_format")

    def requests(self, asked: Sampled, prompt: Sequence[int], most: int, masks: Masks | None = None) -> list[Request]:
        """The engine's requests for the `n` texts of one prompt."""
        sample = SampleConfig(temperature=asked.temperature, top_k=asked.top_k, top_p=asked.top_p)
        settings = Settings.of(sample, ends=not asked.ignore_eos, tops=asked.tops is not None)
        seed = secrets.randbits(32) if asked.seed is None else asked.seed % 2**32
        return [Request(prompt, most, seed, nth, settings, masks and masks.copy()) for nth in range(asked.n)]


def open_served(config: Config, run_dir: Path, options: ServeConfig, which: str = "", name: str = "") -> Served:
    """Reads the weights of one checkpoint; ValueError, one line, for a run that cannot be served."""
    tokenizer, model = open_tokenizer(config, run_dir), config.make_model()
    if tokenizer is None or model.make_cache is None:
        raise ValueError(
            f"serve: a {type(config.model).__name__} on {type(config.data).__name__} writes no text; it takes a model with "
            "a decode cache, and a tokenizer"
        )
    check_ids(config.model, tokenizer.vocab_size, "serve: ")
    most = config.model.max_seq_len
    if options.length > most:
        raise ValueError(f"--length = {options.length}; it must be at most model.max_seq_len = {most}")
    config = dataclasses.replace(config, parallel=ParallelConfig(data=1))
    mesh = sharding.make_mesh(config.parallel, jax.devices()[:1])
    weights, step = load_weights(config, run_dir, mesh, which)
    template = run_dir / CHAT_TEMPLATE
    return Served(
        config,
        model,
        cast(weights, config.precision.compute),
        tokenizer,
        template.read_text() if template.is_file() else "",
        (name or run_dir.resolve().name,),
        options.length or min(most, USUAL_LENGTH),
        step,
        int(time.time()),
    )


def open_engines(served: Served, options: ServeConfig) -> dict[str, Engine]:
    length = served.length + -served.length % PROMPT_MULTIPLE
    make = functools.partial(Engine, served.model, None, slots=options.slots, length=length, tops=TOPS)
    make = functools.partial(make, piece=options.piece, prefixes=options.prefixes)
    return {name: make(stop=served.tokenizer.stops) for name in served.names}
