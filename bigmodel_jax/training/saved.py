"""Uses a run's checkpoint: loads weights, generates texts and images, finds masks and boxes."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from bigmodel_jax.checkpoint import kept, store
from bigmodel_jax.config import Config, SampleConfig
from bigmodel_jax.core import mirror, params, sharding
from bigmodel_jax.core.precision import cast
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.core.spelling import nearest
from bigmodel_jax.core.storage import dense
from bigmodel_jax.data.text import chat as chat_format
from bigmodel_jax.data.tokenizers.tokenizers import Tokenizer, load_tokenizer
from bigmodel_jax.inference.generate import generate
from bigmodel_jax.inference.sample_images import sample_images
from bigmodel_jax.metrics.boxes import Boxes
from bigmodel_jax.models import adapted
from bigmodel_jax.models.adapters import AdapterConfig
from bigmodel_jax.nn import lora
from bigmodel_jax.objectives.detection import corners, found_of
from bigmodel_jax.objectives.segmentation import at_size_of
from bigmodel_jax.training import constants, fits
from bigmodel_jax.training.checks import check_sample
from bigmodel_jax.training.state import (
    abstract_state,
)

SURE = 0.5  # boxes with a lower probability are not shown
CHAT_TEMPLATE = "chat_template.jinja"  # the file name in a run's folder, and in Hugging Face's


def load_weights(
    config: Config, run_dir: Path, mesh, which: str = "", said: str = "", *, fixed: bool = True, adapter: str = ""
) -> tuple[params.Tree, int]:
    """Loads a checkpoint's weights for evaluation, and its step. The optimizer state is not read.

    which: "" for the newest intact checkpoint, a step, or "best" (checkpoint/kept.py).
    said: the option as the user wrote it, for messages.
    fixed: whether to load the constants too.
    adapter: as in `chosen`.
    """
    names = chosen(config, adapter)
    if not mirror.origin(run_dir / "checkpoints").is_dir():
        raise ValueError(f"run_dir = {str(run_dir)!r} holds no checkpoints; train it first")
    step = kept.find(run_dir, config.checkpoint, which, said)
    fits.check_weights(config, mesh, fits.WEIGHTS, copies=False)
    abstract, kept_apart = abstract_state(config, mesh), constants.load(config, run_dir, mesh) if fixed else {}
    # An average of the weights generalises better, so every use of a run but training takes it.
    weights = "params" if abstract.ema is None else "ema"
    fields = {weights: getattr(abstract, weights), "frozen": abstract.frozen, "step": abstract.step}
    with store.open_store(run_dir / "checkpoints", config.checkpoint) as saves:
        found = store.restore_params(saves, fields, step, constants.repeated(config))
    tree = params.merge(found[weights], found.get("frozen", {}), kept_apart)
    return lora.only(tree, *names) if adapter else tree, int(found["step"])


def chosen(config: Config, adapter: str) -> tuple[str, ...]:
    """The adapters that `adapter` names, separated by commas, in the run's order; "" for all.

    Raises a one-line ValueError for a name that the run does not have.
    """
    known = tuple(config.adapters.named())
    wanted = [name.strip() for name in adapter.split(",")] if adapter else known
    if wrong := [name for name in wanted if name not in known]:
        has = f"the run's adapters are {', '.join(known)}" if known else "the run has no adapters; leave it out"
        raise ValueError(f"--adapter = {adapter!r}: {has}{nearest(wrong[0], known)}")
    return tuple(name for name in known if name in wanted)


def merged(config: Config, weights: params.Tree, mesh) -> params.Tree:
    """Merges the adapters into the weights: parameters of the model without adapters."""
    if type(config.adapters) is AdapterConfig:
        return weights
    spec = dataclasses.replace(config, adapters=AdapterConfig()).make_model().spec
    model, where = config.make_model(), sharding.placed(spec, mesh, config.parallel)

    def plain(tree: params.Tree) -> params.Tree:
        flat, specs = params.paths(adapted.merge(model, tree)), params.paths(spec)
        return params.from_paths({path: dense(flat[path], p.dtype).astype(p.dtype) for path, p in specs.items()})

    # One compiled program makes all merged weights, so each is written directly in its sharding.
    return jax.jit(plain, out_shardings=where)(weights)


def open_tokenizer(config: Config, run_dir: Path) -> Tokenizer | None:
    """The tokenizer in the run's folder; without one, the data's. The data may be gone by now."""
    own = run_dir / "tokenizer.json"
    return load_tokenizer(own) if own.is_file() else config.data.open_tokenizer()


def generate_from_run(
    config: Config,
    run_dir: Path,
    sample: SampleConfig,
    seed: int,
    num_samples: int,
    chat: bool = False,
    which: str = "",
    adapter: str = "",
    image: str = "",
) -> list[str]:
    """Texts that continue `sample.prompt`, with the prompt in front, generated on one device.

    chat: whether to answer the prompt as a user's message, in the run's chat template.
    which, adapter: as in `load_weights`.
    image: a picture file; the texts then answer the prompt about it.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples = {num_samples}; it must be 1 or more")
    tokenizer = open_tokenizer(config, run_dir)
    if chat and image:
        raise ValueError(
            f"chat = True with image = {image!r}: the run's data formats questions about a picture; leave --chat out"
        )
    asked, beside = _chat_prompt(run_dir, sample.prompt, tokenizer) if chat else (), None
    if image:
        asked, beside = config.data.asked(Path(image), sample.prompt, tokenizer, _template(run_dir))
    prompt = check_sample(config, sample, tokenizer, chat=asked, pictured=bool(image))
    # Any mesh's checkpoint can be restored on one device.
    config = dataclasses.replace(config, parallel=ParallelConfig(data=1))
    mesh = sharding.make_mesh(config.parallel, jax.devices()[:1])
    weights, _ = load_weights(config, run_dir, mesh, which, adapter=adapter)
    rows = continue_prompt(config, weights, prompt, sample, tokenizer, seed, num_samples, beside)
    return rows if chat or image else [sample.prompt + row for row in rows]


def _template(run_dir: Path) -> str:
    """The run's chat template; "" if it has none."""
    return (run_dir / CHAT_TEMPLATE).read_text() if (run_dir / CHAT_TEMPLATE).is_file() else ""


def _chat_prompt(run_dir: Path, text: str, tokenizer: Tokenizer) -> list[int]:
    """The tokens of a chat in which the user says `text` and the model answers next."""
    template = run_dir / CHAT_TEMPLATE
    if not template.is_file():
        raise ValueError(f"chat = True: {run_dir} holds no {CHAT_TEMPLATE}; it comes with an imported chat model")
    return chat_format.prompt(template.read_text(), [{"role": "user", "content": text}], tokenizer)


def generate_text(config: Config, weights: params.Tree, sample: SampleConfig, seed: int = 0) -> str:
    """The prompt `sample.prompt` and its continuation, from weights in memory."""
    tokenizer = config.data.open_tokenizer()
    prompt = check_sample(config, sample, tokenizer)
    return sample.prompt + continue_prompt(config, weights, prompt, sample, tokenizer, seed)[0]


def generate_images(config: Config, weights: params.Tree, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    """`eval.images.num` images (N, H, W, C) float32 in 0 .. 1, and their titles.

    The data gives the conditions: classes or texts.
    """
    conditions, titles = config.data.conditions(config.eval.images.num)
    shape = (len(titles), *config.model.image_shape)
    # NumPy draws the noise, so it does not depend on the mesh.
    noise = np.random.default_rng(seed).standard_normal(shape, np.float32)
    compute = cast(weights, config.precision.compute)
    return sample_images(config.make_model(), compute, config.objective, conditions, noise, config.eval.images), titles


def batch_to_show(config: Config) -> dict[str, np.ndarray]:
    """`objective.pictures` rows, evenly spaced over the validation split."""
    rows = config.data.open("validation")
    num = min(config.objective.pictures, len(rows))
    return rows.batch(np.linspace(0, len(rows) - 1, num).astype(int), None)


def predict_masks(config: Config, weights: params.Tree) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predicted masks for `objective.pictures` rows, evenly spaced over the validation split.

    Returns pictures (N, H, W, C) float32 in 0 .. 1, true masks (N, H, W) with -1 for unknown
    classes, and the likeliest class of each pixel (N, H, W).
    """
    model, batch = config.make_model(), batch_to_show(config)

    def predict(weights, batch):
        out = model.apply(cast(weights, config.precision.compute), batch, rng=None, train=False)
        logits = at_size_of(out.value, batch["mask"])
        known = config.objective.labelled(batch["mask"], logits.shape[-1]) > 0
        return jnp.where(known, batch["mask"], -1), jnp.argmax(logits, axis=-1)

    masks, predicted = sharding.to_host(jax.jit(predict)(weights, batch))
    return config.data.shown(batch["image"]), masks, predicted


def find_boxes(config: Config, weights: params.Tree) -> tuple[np.ndarray, list[Boxes], list[Boxes]]:
    """Found boxes in `objective.pictures` rows, evenly spaced over the validation split.

    Returns pictures (N, H, W, C) float32 in 0 .. 1, true boxes, and found boxes with a probability
    of at least `SURE`. Boxes are in pixels.
    """
    model, batch = config.make_model(), batch_to_show(config)

    def find(weights, batch):
        value = model.apply(cast(weights, config.precision.compute), batch, rng=None, train=False).value
        return corners(batch["boxes"]), found_of(value["logits"], value["boxes"])

    true, (found, labels, scores) = sharding.to_host(jax.jit(find)(weights, batch))
    sides = np.array(batch["image"].shape[2:0:-1] * 2)  # (width, height, width, height)
    kept, here = scores >= SURE, batch["classes"] >= 0
    true = [Boxes(true[n][here[n]] * sides, batch["classes"][n][here[n]]) for n in range(len(true))]
    found = [Boxes(found[n][kept[n]] * sides, labels[n][kept[n]], scores[n][kept[n]]) for n in range(len(found))]
    return config.data.shown(batch["image"]), true, found


def continue_prompt(
    config: Config,
    weights: params.Tree,
    prompt: list[int],
    sample: SampleConfig,
    tokenizer: Tokenizer,
    seed: int = 0,
    num_samples: int = 1,
    beside: dict[str, np.ndarray] | None = None,
) -> list[str]:
    """`num_samples` continuations of the prompt's tokens.

    `beside` has the model's other inputs, as arrays of one row.
    """
    compute, prompts = cast(weights, config.precision.compute), [prompt] * num_samples
    inputs = [beside] * num_samples if beside else ()
    rows = generate(config.make_model(), compute, prompts, sample, stop=tokenizer.stops, seed=seed, inputs=inputs)
    return [tokenizer.decode(row) for row in rows]
