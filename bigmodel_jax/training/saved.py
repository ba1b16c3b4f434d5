"""Using a run's checkpoint, the newest or a chosen one: evaluation, generation, and the start of another run."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bigmodel_jax.checkpoint import kept, store
from bigmodel_jax.config import Config, SampleConfig
from bigmodel_jax.config_checks import validate
from bigmodel_jax.core import params, sharding
from bigmodel_jax.core.precision import cast
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.core.storage import Blocked, dense
from bigmodel_jax.data.loader import eval_batches
from bigmodel_jax.data.text import chat as chat_format
from bigmodel_jax.data.tokenizers.tokenizers import Tokenizer, load_tokenizer
from bigmodel_jax.inference.generate import generate
from bigmodel_jax.inference.sample_images import sample_images
from bigmodel_jax.models.base import unpadded
from bigmodel_jax.training import constants, fits, run_folder
from bigmodel_jax.training.checks import check_data, check_sample
from bigmodel_jax.training.evaluate import evaluate
from bigmodel_jax.training.state import (
    TrainState,
    abstract_constants,
    abstract_state,
    init_constants,
    init_state,
    with_weights,
)
from bigmodel_jax.training.step import make_eval_step

CHAT_TEMPLATE = "chat_template.jinja"  # in a run's folder, and in Hugging Face's


def load_weights(config: Config, run_dir: Path, mesh, which: str = "", said: str = "") -> tuple[params.Tree, int]:
    """(parameters that an evaluation uses, step) of one checkpoint; the optimizer state is not read.

    which: "" for the newest good one, a step, or "best" (checkpoint/kept.py); said: what the user wrote.
    """
    if not (run_dir / "checkpoints").is_dir():
        raise ValueError(f"run_dir = {str(run_dir)!r} holds no checkpoints; train it first")
    step = kept.find(run_dir, config.checkpoint, which, said)
    fits.check_weights(config, mesh, fits.WEIGHTS, copies=False)
    abstract, fixed = abstract_state(config, mesh), constants.load(config, run_dir, mesh)
    weights = "params" if abstract.ema is None else "ema"
    fields = {weights: getattr(abstract, weights), "frozen": abstract.frozen, "step": abstract.step}
    with store.open_store(run_dir / "checkpoints", config.checkpoint) as saves:
        found = store.restore_params(saves, fields, step)
    return params.merge(found[weights], found.get("frozen", {}), fixed), int(found["step"])


def fresh_state(config: Config, mesh) -> tuple[TrainState, params.Tree, list[str]]:
    """(state, constants) with which a run starts, and the paths of parameters that `train.init_from` does not have.

    Those, a new head say, keep their initial values. With `train.init_state` "all" the state is the other run's, its
    step included. ValueError where shapes differ or nothing fits.
    """
    if not config.train.init_from:
        return init_state(config, mesh), init_constants(config, mesh), []
    other, which = kept.split(config.train.init_from)
    if not (other / "config.json").is_file():
        raise ValueError(
            f"train.init_from = {str(other)!r} is not a run's folder; `import` makes one of published weights"
        )
    source = run_folder.load(other, runs_code=False)
    if config.train.init_state == "all":
        return _forked(source, config, other, which, mesh), constants.load(config, other, mesh), []
    state, spec = init_state(config, mesh), config.make_model().spec
    own = params.paths(params.merge(state.params, state.frozen, abstract_constants(config, mesh)))
    found = _published_rows(source, config, other, which, mesh)
    found = {path: _fill_up(x, own[path], config, path) if path in own else x for path, x in found.items()}
    wrong = [
        f"{p} {found[p].shape}, here {x.shape}" for p, x in own.items() if p in found and found[p].shape != x.shape
    ]
    if wrong or not own.keys() & found.keys():
        why = f"other shapes: {', '.join(wrong[:3])}" if wrong else "no parameter of this model"
        raise ValueError(f"train.init_from = {str(other)!r} holds {why}")
    missing = [path for path in own if path not in found]
    if set(missing) & params.paths(params.of_kind(spec, spec, "constant")).keys():
        own |= params.paths(init_constants(config, mesh))
    specs = params.paths(spec)
    stored = {path: _stored(specs[path], found[path], x) if path in found else x for path, x in own.items()}
    merged = params.from_paths(stored)
    trainable, frozen, fixed = (params.of_kind(merged, spec, k) for k in ("trained", "statistic", "constant"))
    return with_weights(config, state, trainable, frozen), fixed, missing


def _forked(source: Config, config: Config, run_dir: Path, which: str, mesh) -> TrainState:
    """The whole state of one checkpoint; an average that only this run keeps begins at the weights.

    ValueError where the optimizer's state does not fit, or where `train.steps` leaves nothing to train.
    """
    abstract = abstract_state(config, mesh)
    names = ["step", "params", "frozen", "opt_state", *(["ema"] if source.optim.ema_decay else [])]
    fields = {name: getattr(abstract, name) for name in names}
    step = kept.find(run_dir, source.checkpoint, which, f"train.init_from = {config.train.init_from!r}")
    try:
        with store.open_store(run_dir / "checkpoints", source.checkpoint) as saves:
            found = store.restore_params(saves, fields, step)
    except ValueError as error:
        raise ValueError(f"train.init_state = 'all': {error}; 'weights' takes the weights alone") from error
    if int(found["step"]) >= config.train.steps:
        raise ValueError(
            f"train.steps = {config.train.steps} is not above step {int(found['step'])}, where {config.train.init_from} "
            "stands; train.init_state = 'all' goes on counting from there"
        )
    ema = found.get("ema")
    if config.optim.ema_decay and ema is None:
        ema = jax.tree.map(jnp.copy, cast(found["params"], "float32"))
    return TrainState(**(found | {"ema": ema if config.optim.ema_decay else None}))


def _published_rows(source: Config, config: Config, run_dir: Path, which: str, mesh) -> dict[str, jax.Array]:
    """The weights of `source` by path, its tables without padding, which another `model.pad_vocab` may cut elsewhere."""
    parallel = config.parallel
    if getattr(source.model, "pad_vocab", 1) != getattr(config.model, "pad_vocab", 1):
        parallel = dataclasses.replace(parallel, rules=dataclasses.replace(parallel.rules, vocab=None))
    source = dataclasses.replace(source, parallel=parallel)
    found = params.paths(load_weights(source, run_dir, mesh, which, f"train.init_from = {config.train.init_from!r}")[0])
    spec = params.paths(unpadded(source.model).make().spec)
    cut = {path: tuple(map(slice, p.shape)) for path, p in spec.items()}
    return {path: x if isinstance(x, Blocked) else x[cut[path]] for path, x in found.items()}


def _stored(p: params.Param, x: Any, own: Any) -> Any:
    """The value `x` of another run as this one stores its parameter: `own`, or the shapes of it, says how."""
    if not isinstance(own, Blocked):
        x = jax.device_put(dense(x, own.dtype), own.sharding) if isinstance(x, Blocked) else x
        return x.astype(own.dtype)
    where = jax.tree.map(lambda leaf: leaf.sharding, own)
    if isinstance(x, Blocked) and jax.tree.map(jnp.shape, x) == jax.tree.map(jnp.shape, own):
        return jax.device_put(x, where)
    return jax.jit(p.storage.pack, out_shardings=where)(dense(x, p.dtype))


def _fill_up(x: Any, own: Any, config: Config, path: str) -> Any:
    """A table with the zeros behind its vocabulary that this model has, and laid out as this mesh has it."""
    if isinstance(x, Blocked) or isinstance(own, Blocked):
        return x
    if x.shape == params.paths(unpadded(config.model).make().spec)[path].shape:
        x = jnp.pad(x, [(0, n - have) for n, have in zip(own.shape, x.shape, strict=True)])
    return jax.device_put(x, own.sharding) if x.shape == own.shape else x


def evaluate_run(config: Config, run_dir: Path, which: str = "") -> tuple[int, dict[str, float]]:
    """(step, scalars) of one checkpoint on the validation split; which: as `load_weights` has it."""
    validate(config, jax.device_count())
    mesh = sharding.make_mesh(config.parallel)
    check_data(config)  # before the weights are read: another tokenizer or longer rows than the model takes
    weights, step = load_weights(config, run_dir, mesh, which)
    size = config.eval.batch_size or config.train.batch_size
    batches = eval_batches(config.data, batch_size=size, mesh=mesh, rules=config.parallel.rules)
    return step, evaluate(config, make_eval_step(config, mesh), weights, batches)


def generate_from_run(
    config: Config,
    run_dir: Path,
    sample: SampleConfig,
    seed: int,
    num_samples: int,
    chat: bool = False,
    which: str = "",
) -> list[str]:
    """Texts that continue `sample.prompt`, each with the prompt in front; on one device, whatever the run's mesh was.

    chat: answers to the prompt as a user's message, in the run's chat template. which: as `load_weights` has it.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples = {num_samples}; it must be 1 or more")
    own = run_dir / "tokenizer.json"  # its data need not be there any more
    tokenizer = load_tokenizer(own) if own.is_file() else config.data.open_tokenizer()
    prompt = check_sample(
        config, sample, tokenizer, chat=_chat_prompt(run_dir, sample.prompt, tokenizer) if chat else ()
    )
    config = dataclasses.replace(config, parallel=ParallelConfig(data=1))
    mesh = sharding.make_mesh(config.parallel, jax.devices()[:1])
    weights, _ = load_weights(config, run_dir, mesh, which)
    rows = continue_prompt(config, weights, prompt, sample, tokenizer, seed, num_samples)
    return rows if chat else [sample.prompt + row for row in rows]


def _chat_prompt(run_dir: Path, text: str, tokenizer: Tokenizer) -> list[int]:
    """The tokens that ask for an answer to `text`, a user's message."""
    template = run_dir / CHAT_TEMPLATE
    if not template.is_file():
        raise ValueError(f"chat = True: {run_dir} holds no {CHAT_TEMPLATE}; it comes with an imported chat model")
    return chat_format.prompt(template.read_text(), [{"role": "user", "content": text}], tokenizer)


def generate_text(config: Config, weights: params.Tree, sample: SampleConfig, seed: int = 0) -> str:
    """The text that continues `sample.prompt`, with the prompt in front, from parameters in memory."""
    tokenizer = config.data.open_tokenizer()
    prompt = check_sample(config, sample, tokenizer)
    return sample.prompt + continue_prompt(config, weights, prompt, sample, tokenizer, seed)[0]


def generate_images(config: Config, weights: params.Tree, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    """(`eval.images.num` images (N, H, W, C) float32 in 0 .. 1, their titles), of what the data asks for."""
    conditions, titles = config.data.conditions(config.eval.images.num)
    shape = (len(titles), *config.model.image_shape)
    noise = np.random.default_rng(seed).standard_normal(shape, np.float32)
    compute = cast(weights, config.precision.compute)
    return sample_images(config.make_model(), compute, config.objective, conditions, noise, config.eval.images), titles


def continue_prompt(
    config: Config,
    weights: params.Tree,
    prompt: list[int],
    sample: SampleConfig,
    tokenizer: Tokenizer,
    seed: int = 0,
    num_samples: int = 1,
) -> list[str]:
    """`num_samples` texts that follow the prompt's tokens."""
    compute = cast(weights, config.precision.compute)
    rows = generate(config.make_model(), compute, [prompt] * num_samples, sample, stop=tokenizer.stops, seed=seed)
    return [tokenizer.decode(row) for row in rows]
