"""lm-eval's model interface: the engine generates, and batched forward passes compute
log-likelihoods.

Contexts, truncation and prefix tokens follow lm-eval's own model for transformers
(lm_eval/models/huggingface.py of 0.4.13), so that a run scores as its exported weights do there.
"""

import collections
import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import Any

from jax.sharding import Mesh
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from bigmodel_jax.config import Config, SampleConfig
from bigmodel_jax.core import params
from bigmodel_jax.core.precision import cast
from bigmodel_jax.data.text import chat
from bigmodel_jax.data.tokenizers.tokenizers import Tokenizer
from bigmodel_jax.harness.scoring import Scorer, say_truncated
from bigmodel_jax.inference.engine import Engine, Layout
from bigmodel_jax.inference.prompts import bucket
from bigmodel_jax.inference.request import Request

TURNS = 16  # tokens generated between two searches for stop strings
MAX_NEW = 256  # new tokens, if a task does not give a number
# Sampling settings that the engine has, and the values of other settings that have no effect.
DRAWN = {"do_sample", "temperature", "top_k", "top_p"}
NEUTRAL = {"num_beams": 1, "repetition_penalty": 1.0, "min_p": 0.0, "num_return_sequences": 1}


class EngineLM(TemplateLM):
    """An lm-eval model. Every process of a job gets all requests and returns the same answers."""

    def __init__(self, config: Config, mesh: Mesh, weights: params.Tree, tokenizer: Tokenizer, template: str = ""):
        super().__init__()
        self._config, self._mesh, self._own, self._template = config, mesh, tokenizer, template
        self._weights = cast(weights, config.precision.compute)
        self._scorer = Scorer(config, mesh, self._weights)
        self.max_length = config.model.max_seq_len

    # ---- tokens

    @property
    def eot_token_id(self) -> int:
        """The id of the token that ends a text."""
        return self._named("eos_token", self._own.separator)

    @property
    def prefix_token_id(self) -> int:
        """The token that stands for an empty context: the start token or, without one, the end
        token."""
        return self._named("bos_token", self._own.start if not self._own.special else self.eot_token_id)

    def _named(self, name: str, default: int) -> int:
        found = self._own.model.token_to_id(self._own.special.token(name) or "")
        return default if found is None else found

    @property
    def stops(self) -> tuple[int, ...]:
        """The ids of all tokens that end an answer."""
        return tuple(self._own.special.ids("eos_token_id")) or (self.eot_token_id,)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids as transformers makes them.

        Names of special tokens in the text become those tokens, and the start token is put in
        front.
        """
        ids = self._own.encode_rendered(string)[0] if string else []
        if add_special_tokens is False or ids[:1] == [self.prefix_token_id]:
            return ids
        return [self._own.start, *ids] if self._own.start != self._own.separator else ids

    @property
    def tokenizer_name(self) -> str:
        return type(self._config.data).__name__

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return self._template if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation in the run's chat template.

        Without a generation prompt the text ends with the last message.
        """
        names = self._own.names()
        try:
            text = chat.render(
                self._template, chat_history, add_generation_prompt=add_generation_prompt, special_tokens=names
            )
        except ValueError:  # the template accepts no system message
            chat_history = [message for message in chat_history if message["role"] != "system"]
            text = chat.render(
                self._template, chat_history, add_generation_prompt=add_generation_prompt, special_tokens=names
            )
        if add_generation_prompt:
            return text
        last = chat_history[-1]["content"].strip()
        return text[: text.rindex(last) + len(last)]

    # ---- log-likelihoods

    def _loglikelihood_tokens(self, requests: list, **_: Any) -> list[tuple[float, bool]]:
        return [tuple(one) for one in self._scorer([(context, answer) for _, context, answer in requests])]

    def loglikelihood_rolling(self, requests: list, disable_tqdm: bool = False) -> list[float]:
        windows = [list(map(make_disjoint_window, self._windows(request.args[0]))) for request in requests]
        scored = iter(self._scorer([window for one in windows for window in one]))
        return [sum(next(scored).log_prob for _ in one) for one in windows]

    def _windows(self, text: str) -> Iterator[tuple[list[int], list[int]]]:
        tokens = self.tok_encode(text)
        return get_rolling_token_windows(tokens, self.prefix_token_id, max_seq_len=self.max_length, context_len=1)

    # ---- generation

    def generate_until(self, requests: list, disable_tqdm: bool = False) -> list[str]:
        groups = collections.defaultdict(list)
        for number, request in enumerate(requests):
            # An engine has one set of sampling settings, so requests are grouped by their settings.
            groups[json.dumps(request.args[1], sort_keys=True)].append(number)
        found = [""] * len(requests)
        for settings, numbers in groups.items():
            contexts = [requests[n].args[0] for n in numbers]
            for n, text in zip(numbers, self._answers(contexts, json.loads(settings), numbers), strict=True):
                found[n] = text
        return found

    def _answers(self, contexts: Sequence[str], settings: dict[str, Any], numbers: Sequence[int]) -> list[str]:
        sample, until = self._settings(settings)
        room = self.max_length - sample.max_tokens
        # A prompt that is too long keeps its end, as in lm-eval.
        prompts = [self.tok_encode(text) or [self.prefix_token_id] for text in contexts]
        say_truncated([*map(len, prompts)], room)
        prompts = [prompt[-room:] for prompt in prompts]
        engine = self._engine(sample, min(len(prompts), self._scorer.batch_size), max(map(len, prompts)))
        seed = self._config.train.seed
        asked = {
            engine.submit(Request(prompt, sample.max_tokens, seed, n)): i
            for i, (prompt, n) in enumerate(zip(prompts, numbers, strict=True))
        }
        said: list[list[int]] = [[] for _ in prompts]
        while engine.num_unfinished:
            ended = set()
            changed = collections.defaultdict(list)
            for token in engine.step():
                changed[token.id].append(token.token)
                ended |= {token.id} if token.finished else set()
            for number, tokens in changed.items():
                said[asked[number]] += tokens
                if number not in ended and any(stop in self._text(said[asked[number]]) for stop in until):
                    # A stop string may span several tokens, so the text is searched after each
                    # step.
                    engine.cancel(number)
        return [postprocess_generated_text(self._text(tokens), until, None) for tokens in said]

    def _text(self, tokens: list[int]) -> str:
        return self._own.decode(tokens)

    def _settings(self, settings: dict[str, Any]) -> tuple[SampleConfig, list[str]]:
        """(sampling settings, stop strings).

        Raises ValueError for settings that the engine does not have.
        """
        given = normalize_gen_kwargs(settings, MAX_NEW)
        eos = self._own.model.id_to_token(self.eot_token_id)
        until = [text for text in handle_stop_sequences(given.pop("until", None), eos=eos) if text]
        most = given.pop("max_gen_toks")
        if most >= self.max_length:
            raise ValueError(
                f"--harness: the task asks for {most} new tokens, which leaves no room for a prompt in "
                f"model.max_seq_len = {self.max_length}"
            )
        odd = {k: v for k, v in given.items() if k not in DRAWN and NEUTRAL.get(k, self) != v}
        if odd:
            name, value = next(iter(odd.items()))
            raise ValueError(
                f"--harness: the task's generation_kwargs hold {name} = {value!r}, which the engine does not support; allowed: "
                f"until, max_gen_toks, {', '.join(sorted(DRAWN))}"
            )
        drawn = {"top_k": int(given.get("top_k") or 0), "top_p": float(given.get("top_p") or 1.0)}
        temperature = float(given.get("temperature") or 0.0) if given.get("do_sample") else 0.0
        return SampleConfig(max_tokens=most, temperature=temperature, **drawn), until

    def _engine(self, sample: SampleConfig, slots: int, longest: int) -> Engine:
        length = bucket(longest) + sample.max_tokens
        layout = Layout(self._mesh, self._config.parallel.rules) if self._mesh.size > 1 else None
        engine = Engine(
            self._config.make_model(),
            dataclasses.replace(sample, prompt=""),
            slots=slots,
            length=length + -length % 16,
            stop=self.stops,
            turns=min(TURNS, sample.max_tokens),
            layout=layout,
        )
        engine.load(self._weights)
        return engine
