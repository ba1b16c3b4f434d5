"""Answers to prompts from the current weights: an interface, and its implementation by the engine.

For another engine, or an environment of several turns, write a `Generator` and name it in
`data.rollouts`.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from jax.sharding import Mesh

from bigmodel_jax.config import Config, SampleConfig
from bigmodel_jax.core import user_code
from bigmodel_jax.inference.engine import Engine, Layout
from bigmodel_jax.inference.prompts import PROMPT_MULTIPLE
from bigmodel_jax.inference.request import Request
from bigmodel_jax.models import Model

OPTION = "data.rollouts"


class Ask(NamedTuple):
    """A prompt to answer.

    - prompt: its tokens; record: the record that it comes from
    - key: (seed, number), on which alone random draws may depend
    - inputs: arrays of one row that the model reads beside tokens
    """

    prompt: Sequence[int]
    record: dict[str, Any]
    key: tuple[int, int]
    inputs: Mapping[str, Any] | None = None


class Rollout(NamedTuple):
    """The answer to a prompt: up to `max_tokens` tokens, including the stop token.

    - log_probs: the log-probability of each token under the weights that sampled it, at temperature
      1
    - finished: whether it ended with a stop token
    - own: 1 for tokens that the policy sampled, 0 for tokens of an environment; None = the policy
      sampled all
    """

    tokens: list[int]
    log_probs: list[float]
    finished: bool
    own: list[int] | None = None


class Generator(Protocol):
    """Answers prompts; depends only on weights and asks, so that a resumed run gets the same
    answers."""

    def generate(self, weights: Any, asks: Sequence[Ask]) -> Iterator[tuple[int, Rollout]]:
        """Yields (number of the ask, answer) as answers end, and uses `weights` until the last."""
        ...


class EngineRollouts:
    """Answers by the engine on the mesh of the weights. Every process gets every answer."""

    def __init__(self, model: Model, sample: SampleConfig, *, slots: int, length: int, stop: Sequence[int], mesh: Mesh):
        layout = Layout(mesh) if mesh.size > 1 else None
        # A step has as many turns as an answer has tokens, so that it returns whole answers.
        options = {"stop": stop, "turns": max(sample.max_tokens - 1, 1), "log_probs": True, "layout": layout}
        self._engine = Engine(model, sample, slots=slots, length=length + -length % PROMPT_MULTIPLE, **options)
        self._most, self._stop = sample.max_tokens, stop

    def generate(self, weights: Any, asks: Sequence[Ask]) -> Iterator[tuple[int, Rollout]]:
        # With a fresh cache the answers do not depend on earlier rollouts, so a resumed run repeats
        # them.
        self._engine.load(weights, fresh=True)
        numbers = {
            self._engine.submit(Request(a.prompt, self._most, *a.key, inputs=a.inputs)): n for n, a in enumerate(asks)
        }
        found: dict[int, tuple[list, list]] = {number: ([], []) for number in numbers}
        while self._engine.num_unfinished:
            for number, token, log_prob, last, _ in self._engine.step():
                tokens, log_probs = found[number]
                tokens.append(token)
                log_probs.append(log_prob)
                if last:
                    yield numbers[number], Rollout(tokens, log_probs, token in self._stop)


def open_generator(config: Config, mesh: Mesh, num: int, *, greedy: bool = False) -> Generator:
    """The generator for up to `num` prompts at a time. greedy: it answers once, at the temperature
    of evaluations.
    """
    data = config.data
    if data.rollouts and not greedy:
        return user_code.call(OPTION, data.rollouts, config, mesh)
    return engine_rollouts(config, mesh, num, data.eval_temperature if greedy else data.temperature)


def engine_rollouts(config: Config, mesh: Mesh, num: int, temperature: float) -> EngineRollouts:
    """The engine with the settings of `config.data`."""
    data = config.data
    drawn = {"temperature": temperature, "top_k": data.top_k, "top_p": data.top_p}
    sample = SampleConfig(max_tokens=data.max_tokens, widen="never", **drawn)  # weights change too often for widening
    sizes = {"slots": min(data.slots, num), "length": data.seq_len, "stop": data.open_tokenizer().stops, "mesh": mesh}
    return EngineRollouts(config.make_model(), sample, **sizes)
