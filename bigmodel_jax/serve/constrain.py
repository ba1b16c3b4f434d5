"""Holds answers to a JSON schema, a regular expression or a grammar with llguidance.

llguidance says which tokens may come next. Schemas and expressions come from clients and could ask
for any amount of work. llguidance's limits bound their size, the work to read them, the work for
each token, and the memory of their automata. A request beyond a limit is refused.
"""

import functools
import importlib.util
import json
import threading
from typing import Any

import numpy as np

from bigmodel_jax.data.tokenizers.sentencepiece_model import SentencePieceModel
from bigmodel_jax.data.tokenizers.tokenizers import Tokenizer
from bigmodel_jax.serve.refused import Refused

# The longest schema, expression and grammar of tools, in characters.
MOST_SCHEMA, MOST_REGEX, MOST_GRAMMAR = 32 << 10, 2 << 10, 128 << 10
LIMITS = {
    "max_items_in_row": 1000,
    "initial_lexer_fuel": 500_000,  # about 10 ms
    "step_lexer_fuel": 100_000,  # about 7 ms
    "step_max_items": 20_000,
    "max_lexer_states": 20_000,  # about 40 MB
    "max_grammar_size": 50_000,
    "verbose_errors": False,
}
# White space between two values is bounded, because a model might otherwise write nothing else.
JSON_OPTIONS = {"whitespace_pattern": r"[\x20\x0A\x0D\x09]{0,16}"}


class Masks:
    """The tokens that may continue one text (an engine's `Constraint`).

    stops: the mask of the stop tokens; error: why no further mask can be made, or "".
    """

    def __init__(self, matcher: Any, stops: np.ndarray):
        self._matcher, self._stops, self.error = matcher, stops, ""

    def allowed(self) -> np.ndarray:
        """The mask of allowed tokens, one bit per token in uint32 words.

        If the text is complete or a limit was met, it allows only the stop tokens.
        """
        if not self._matcher.is_stopped() and not self._matcher.is_error():
            mask = np.frombuffer(self._matcher.compute_bitmask(), np.uint32)
            if not self._matcher.is_error():
                return mask if mask.any() else self._stops
        if self._matcher.is_error():
            self.error = _first_line(self._matcher.get_error())
        return self._stops

    def take(self, token: int) -> None:
        """Advances by the token that was drawn."""
        if not self._matcher.is_stopped() and not self._matcher.is_error():
            self._matcher.consume_token(token)

    def copy(self) -> "Masks":
        """An independent copy in the same state, for another text with the same constraint."""
        return Masks(self._matcher.deep_copy(), self._stops)


class Grammars:
    """Compiles schemas, expressions and grammars to masks, for one tokenizer.

    vocab_size: the number of the model's logits.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int):
        self._own, self._vocab_size, self._lock = tokenizer, vocab_size, threading.Lock()
        self._stops = np.zeros(-(-vocab_size // 32), np.uint32)
        for token in tokenizer.stops:
            self._stops[token // 32] |= np.uint32(1) << np.uint32(token % 32)

    def schema(self, schema: Any, param: str) -> Masks:
        """Masks for JSON of a schema; {"type": "object"} allows any object.

        param: the field, for errors.
        """
        text = json.dumps(schema)
        if len(text) > MOST_SCHEMA:
            raise Refused(f"{param} has {len(text)} characters; at most {MOST_SCHEMA} are allowed", param)
        return self.grammar(lambda kinds: kinds.grammar_from_json_schema(text, overrides=JSON_OPTIONS), param)

    def regex(self, expression: str, param: str) -> Masks:
        """Masks for texts that match a regular expression."""
        if len(expression) > MOST_REGEX:
            raise Refused(f"{param} has {len(expression)} characters; at most {MOST_REGEX} are allowed", param)
        return self.grammar(lambda kinds: kinds.grammar_from_regex(expression), param)

    def lark(self, grammar: str, param: str) -> Masks:
        """Masks for texts of a grammar in Lark's notation."""
        if len(grammar) > MOST_GRAMMAR:
            raise Refused(f"{param} has {len(grammar)} characters; at most {MOST_GRAMMAR} are allowed", param)
        return self.grammar(lambda kinds: kinds.grammar_from_lark(grammar), param)

    def grammar(self, make: Any, param: str) -> Masks:
        """Masks for the grammar that `make` builds from llguidance's LLMatcher.

        Raises Refused where the grammar is invalid or goes over a limit.
        """
        import llguidance

        try:
            grammar = make(llguidance.LLMatcher)
        except ValueError as error:
            raise Refused(f"{param}: {_first_line(str(error))}", param) from None
        limits = llguidance.LLParserLimits(**LIMITS)
        matcher = llguidance.LLMatcher(self._tokenizer, grammar, log_level=0, limits=limits)
        if matcher.is_error():
            raise Refused(f"{param}: {_first_line(matcher.get_error())}", param)
        masks = Masks(matcher, self._stops)
        masks.allowed()  # the first mask builds most of the automaton, so limits are met here
        if masks.error:
            raise Refused(f"{param}: {masks.error}", param)
        return masks

    @property
    def _tokenizer(self) -> Any:
        with self._lock:  # building takes a second, and several requests may need it at once
            return self._made

    @functools.cached_property
    def _made(self) -> Any:
        if importlib.util.find_spec("llguidance") is None:
            raise Refused("constrained answers need llguidance: uv sync --extra serve", status=501)
        if isinstance(self._own.model, SentencePieceModel):
            raise Refused("constrained answers need a tokenizer.json, which this run's tokenizer is not", status=501)
        import llguidance

        stops = list(self._own.stops)
        return llguidance.LLTokenizer(self._own.model.to_str(), n_vocab=self._vocab_size, eos_token=stops)


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "it cannot be used")
