"""The served run: weights, tokenizer, chat template, and one engine for each model name."""

import contextlib
import copy
import dataclasses
import functools
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from bigmodel_jax.config import Config, SampleConfig
from bigmodel_jax.core import params, sharding
from bigmodel_jax.core.precision import cast
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.core.spelling import nearest
from bigmodel_jax.data.tokenizers.tokenizers import Tokenizer
from bigmodel_jax.inference.compiled import for_decoding, platform_of
from bigmodel_jax.inference.engine import Engine
from bigmodel_jax.inference.mixed import why_apart
from bigmodel_jax.inference.prompts import PROMPT_MULTIPLE
from bigmodel_jax.inference.request import Request
from bigmodel_jax.inference.sampling import Settings
from bigmodel_jax.models import Model
from bigmodel_jax.nn import lora
from bigmodel_jax.serve import passes
from bigmodel_jax.serve.config import USUAL_LENGTH, ServeConfig
from bigmodel_jax.serve.constrain import Grammars, Masks
from bigmodel_jax.serve.refused import Refused
from bigmodel_jax.serve.requests import TOPS, Sampled
from bigmodel_jax.training.checks import check_continues, check_ids, check_reads_texts
from bigmodel_jax.training.saved import CHAT_TEMPLATE, load_weights, open_tokenizer

BASE = "base"  # the model name that clients use for the weights without adapters


@dataclasses.dataclass(frozen=True)
class Served:
    """The run whose model answers the requests.

    - weights: by the names that clients may give as `model`. The first is the run itself. Arrays
      that several names share are in memory once.
    - tokenizer: None for a model that reads no text; template: the chat template, or "".
    - length: tokens of a slot; step: the checkpoint's step; created: when the server started, in
      seconds.
    - lock: held while `encoder` encodes.
    """

    config: Config
    run_dir: Path
    model: Model
    weights: dict[str, Any]
    tokenizer: Tokenizer | None
    template: str
    length: int
    step: int
    created: int
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock, repr=False, compare=False)

    @property
    def names(self) -> tuple[str, ...]:
        """The names that clients may give as `model`."""
        return tuple(self.weights)

    @property
    def writes(self) -> bool:
        """Whether the model continues texts."""
        return self.tokenizer is not None and self.model.make_cache is not None

    def known_writer(self, name: str) -> str:
        """Returns the name if it is served and the model continues texts. Raises Refused
        otherwise.
        """
        if not self.writes:
            raise Refused(
                f"{self.known(name)} writes no text; /v1/embeddings, /classify or /images may suit it", "model"
            )
        return self.known(name)

    def known(self, name: str) -> str:
        """The name, if it is served. Raises Refused otherwise. A name is never opened as a path."""
        if name not in self.names:
            raise Refused(
                f"model {name[:60]!r} is not served{nearest(name[:60], self.names)}; known: {', '.join(self.names)}",
                "model",
                status=404,
                code="model_not_found",
            )
        return name

    def prompt(self, text: str) -> list[int]:
        """The tokens of a text that is to be continued, as `generate` makes them.

        Names of special tokens in the text stay plain text.
        """
        with self.encoder() as tokenizer:
            ids = tokenizer.encode(text)
        if self.model.decoder_starts:
            return self.model.encoded(ids, self.tokenizer.separator)
        return [self.tokenizer.start, *ids]

    @contextlib.contextmanager
    def encoder(self) -> Iterator[Tokenizer]:
        """The tokenizer for encoding, for one thread at a time.

        Encoding changes settings of a tokenizer for a moment, such as whether names of special
        tokens are text. Another thread must not encode or decode with it meanwhile.
        """
        with self.lock:
            yield self._copy

    @functools.cached_property
    def _copy(self) -> Tokenizer:
        # A new Tokenizer, since a copied model forgets that names of special tokens are text.
        return Tokenizer(copy.deepcopy(self.tokenizer.model), self.tokenizer.special)

    def room(self, prompt: Sequence[int], param: str) -> int:
        """How many tokens can follow a prompt. Raises Refused where none can.

        param: the field, for errors.
        """
        num, vocab = len(prompt), self.config.model.vocab_size
        wrong = next((i for i in prompt if not 0 <= i < vocab), None)
        if wrong is not None:
            raise Refused(f"{param} holds the token {wrong}; the vocabulary has {vocab}", param)
        used = len(self.model.decoder_starts) or num
        if not num or num > self.length or used >= self.length:
            raise Refused(
                f"{param} has {num} tokens; it must have 1 to {self.length - 1} (--length)",
                param,
                code="context_length_exceeded",
            )
        return self.length - used

    @functools.cached_property
    def grammars(self) -> Grammars:
        """The compiler of constraints on answers, for this run's tokenizer."""
        return Grammars(self.tokenizer, self.config.model.vocab_size)

    @functools.cached_property
    def embeds(self) -> bool:
        """Whether the model has hidden states of a text. Tracing the model once shows this."""
        if self.tokenizer is None:
            return False

        def states(tree: Any, batch: dict) -> Any:
            return passes.states_of(self.model.apply(tree, batch))

        try:
            return jax.eval_shape(states, params.abstract(self.model.spec), passes.rows_of([[0]], 1)) is not None
        except (KeyError, ValueError):  # it reads more than one text, such as an image
            return False

    @functools.cached_property
    def adapters(self) -> tuple[str, ...]:
        """The adapters among which each slot chooses; () where each name has an engine of its own.

        Tracing the model once shows whether each row of its products can use its own adapters.
        """
        of_run = tuple(self.config.adapters.named())
        whole = self.weights[self.names[0]]
        return () if not of_run or why_apart(self.model, whole, of_run) else of_run

    def uses(self, name: str) -> tuple[str, ...]:
        """The adapters that answer under a name."""
        return tuple(self.weights[name].get(lora.BRANCH, {}))

    def held_to(self, asked: Sampled, grammar: str = "") -> Masks | None:
        """The constraint on the answers: `grammar` if given, else what the request asks for, else
        None.

        Compiling it may take tenths of a second.
        """
        if grammar:
            return self.grammars.lark(grammar, "tools")
        if asked.regex:
            return self.grammars.regex(asked.regex, "regex")
        schema = asked.schema()
        return None if schema is None else self.grammars.schema(schema, "response_format")

    def requests(self, asked: Sampled, prompt: Sequence[int], most: int, masks: Masks | None = None) -> list[Request]:
        """The engine's requests for the `n` texts of one prompt.

        most: the largest number of new tokens.
        """
        top_k = min(asked.top_k, self.config.model.vocab_size)  # as many are all; a larger number may be no int32
        sample = SampleConfig(temperature=asked.temperature, top_k=top_k, top_p=asked.top_p)
        settings = Settings.of(sample, ends=not asked.ignore_eos, tops=asked.tops is not None)
        # JAX keys take 32 bits. OpenAI's seed may have 64.
        seed = secrets.randbits(32) if asked.seed is None else asked.seed % 2**32
        adapters = self.uses(asked.model) if self.adapters else None
        one = Request(prompt, most, seed, settings=settings, adapters=adapters)
        # Each text gets its own copy of the constraint, whose state follows the text.
        return [one._replace(nth=nth, constraint=masks and masks.copy()) for nth in range(asked.n)]


def open_served(config: Config, run_dir: Path, options: ServeConfig, which: str = "", name: str = "") -> Served:
    """Reads the weights of one checkpoint.

    Raises a ValueError of one line for a run that cannot be served. which: the checkpoint; name:
    what clients call the run, else its folder's name.
    """
    check_continues(config.objective, f"serve: {run_dir}")
    check_reads_texts(config, f"serve: {run_dir}")
    tokenizer, model = open_tokenizer(config, run_dir), config.make_model()
    if tokenizer is not None:
        check_ids(config.model, tokenizer.vocab_size, "serve: ")
    elif "label" not in config.objective.reads and "images" not in config.objective.endings:
        raise ValueError(
            f"serve: a {type(config.model).__name__} on {type(config.data).__name__} has nothing to answer; it takes a model "
            "of texts, a classifier, or one that draws pictures"
        )
    most = getattr(config.model, "max_seq_len", 1)
    if options.length > most:
        raise ValueError(f"--length = {options.length}; it must be at most model.max_seq_len = {most}")
    # A server uses one device, whatever mesh the run was trained on.
    config = dataclasses.replace(config, parallel=ParallelConfig(data=1))
    mesh = sharding.make_mesh(config.parallel, jax.devices()[:1])
    weights, step = load_weights(config, run_dir, mesh, which)
    weights = cast(weights, config.precision.compute)
    weights = for_decoding(model.spec, weights, platform_of(weights)) if model.make_cache else weights
    template = run_dir / CHAT_TEMPLATE
    return Served(
        config,
        run_dir,
        model,
        by_name(config, weights, name or run_dir.resolve().name),
        tokenizer,
        template.read_text() if template.is_file() else "",
        options.length or min(most, USUAL_LENGTH),
        step,
        int(time.time()),
    )


def by_name(config: Config, weights: Any, name: str) -> dict[str, Any]:
    """The weights by model name: the run with all its adapters, the base alone, and each adapter
    alone.
    """
    adapters = tuple(config.adapters.named())
    if not adapters:
        return {name: weights}
    if taken := {name, BASE} & set(adapters):
        raise ValueError(f"--name = {name!r}: an adapter of the run is called {taken.pop()!r}; give another")
    return {name: weights, BASE: lora.only(weights)} | {one: lora.only(weights, one) for one in adapters}


def open_engines(served: Served, options: ServeConfig) -> dict[str, Engine]:
    """The engine of each name.

    Names whose adapters can share a batch have the same engine. Otherwise each name has an engine
    with slots of its own, and they share the base's weights.
    """
    if not served.writes:
        return {}
    # A prompt is padded to a multiple, which must fit into its slot.
    length = served.length + -served.length % PROMPT_MULTIPLE
    make = functools.partial(Engine, served.model, None, slots=options.slots, length=length, tops=TOPS)
    make = functools.partial(make, piece=options.piece, prefixes=options.prefixes, cache=options.cache)
    make = functools.partial(make, stop=served.tokenizer.stops)
    if served.adapters:
        return dict.fromkeys(served.names, make(adapters=served.adapters))
    return {name: make() for name in served.names}
