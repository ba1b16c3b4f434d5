"""Answers to prompts from the weights of now: one small interface, and the engine behind it.

Another engine, or an environment of several turns, is a `Generator` of one's own, named by `data.rollouts`.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from jax.sharding import Mesh

from bigmodel_jax.config import Config, SampleConfig
from bigmodel_jax.core import user_code
from bigmodel_jax.inference.engine import Engine, Layout, Request
from bigmodel_jax.inference.prompts import PROMPT_MULTIPLE
from bigmodel_jax.models import Model

OPTION = "data.rollouts"


class Ask(NamedTuple):
    """A prompt's tokens, its record, and (seed, number): all that the answer's draws may be made of. inputs: what the model
    reads beside the tokens, arrays of one row."""

    prompt: Sequence[int]
    record: dict[str, Any]
    key: tuple[int, int]
    inputs: Mapping[str, Any] | None = None


class Rollout(NamedTuple):
    """What follows a prompt: tokens, up to `max_tokens`, the stop token included.

    log_probs: of each token by the weights that sampled it, at temperature 1. finished: whether it ended by itself.
    own: 1 for the policy's own tokens, 0 for those that an environment put between; None: all are its own.
    """

    tokens: list[int]
    log_probs: list[float]
    finished: bool
    own: list[int] | None = None


class Generator(Protocol):
    """Answers as a function of weights and questions alone: a run that is resumed asks again and must get the same."""

    def generate(self, weights: Any, asks: Sequence[Ask]) -> Iterator[tuple[int, Rollout]]:
        """(number of the ask, its answer), in the order in which answers end. weights: valid until the last is given."""
        ...


class EngineRollouts:
    """Answers by the engine, on the mesh of the weights. Every process gets every answer."""

    def __init__(self, model: Model, sample: SampleConfig, *, slots: int, length: int, stop: Sequence[int], mesh: Mesh):
        layout = Layout(mesh) if mesh.size > 1 else None
        options = {"stop": stop, "turns": max(sample.max_tokens - 1, 1), "log_probs": True, "layout": layout}
        self._engine = Engine(model, sample, slots=slots, length=length + -length % PROMPT_MULTIPLE, **options)
        self._most, self._stop = sample.max_tokens, stop

    def generate(self, weights: Any, asks: Sequence[Ask]) -> Iterator[tuple[int, Rollout]]:
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
    """What answers up to `num` prompts of a run at a time; greedy: at the temperature of its evaluations, one turn each."""
    data = config.data
    if data.rollouts and not greedy:
        return user_code.call(OPTION, data.rollouts, config, mesh)
    return engine_rollouts(config, mesh, num, data.eval_temperature if greedy else data.temperature)


def engine_rollouts(config: Config, mesh: Mesh, num: int, temperature: float) -> EngineRollouts:
    """The engine as `config.data` asks for it."""
    data = config.data
    drawn = {"temperature": temperature, "top_k": data.top_k, "top_p": data.top_p}
    sample = SampleConfig(max_tokens=data.max_tokens, widen="never", **drawn)  # weights are new for each few answers
    sizes = {"slots": min(data.slots, num), "length": data.seq_len, "stop": data.open_tokenizer().stops, "mesh": mesh}
    return EngineRollouts(config.make_model(), sample, **sizes)
