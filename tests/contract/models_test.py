"""What every model owes every objective that fits it. A model listed in `MODELS` is tested by being
listed."""

import dataclasses
import functools
import math
import typing
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from text_axes import axes

from bigmodel_jax.core import params, sharding
from bigmodel_jax.core.precision import cast
from bigmodel_jax.core.sharding import ParallelConfig, Rules
from bigmodel_jax.models import MODELS, ModelConfig, bert
from bigmodel_jax.models.base import Model
from bigmodel_jax.objectives import OBJECTIVES, Objective

ROWS, LENGTH = 8, 16
FRAMES, LABELS = 40, 4  # of speech

# An objective fits the configs that have these fields.
FITS = {
    "next_token": {"vocab_size", "max_seq_len"},
    "classification": {"num_classes", "image_shape"},
    "segmentation": {"num_classes", "image_shape"},
    "detection": {"num_queries", "image_shape"},
    "regression": {"feature_shape", "num_outputs"},
    "masked_language_model": {"head"},
    "bert_pretraining": {"head"},
    "question_answering": {"head"},
    "contrastive": {"vision", "text"},
    "diffusion": {"image_shape", "learn_sigma"},
    "ctc": {"num_mels", "subsampling"},
    "flow_matching": {"image_shape", "pooled_dim"},
    "self_play": {"board_shape"},
    "autoencoding": {"latent_channels"},
    "discrete_autoencoding": {"levels"},
}
# Objectives that need a trained model beside their own or before it, and the one of a game's
# network, which is in no table of families: tests/objectives/pairs_test.py,
# tests/data/games/self_play_test.py and others see them.
AFTERWARDS = {"dpo", "orpo", "simpo", "kto", "reward", "distillation", "self_play", "latent_flow", "text_then_image"}
# Models of a class for each pixel, which have the fields of classifiers.
OF_PIXELS = {"segformer", "unet"}
# Objectives of any decoder, which are seen on the first alone.
OF_DECODERS = {"policy_gradient"}
# What an encoder with such a head is trained for.
HEADS = {
    "masked_lm": "masked_language_model",
    "pretraining": "bert_pretraining",
    "classification": "classification",
    "token_classification": "masked_language_model",
    "replaced_token": "masked_language_model",
    "question_answering": "question_answering",
    "permuted_lm": "masked_language_model",
    "class": "classification",
    "class_and_mean": "classification",
    "pixels": "segmentation",
}


def configs() -> dict[str, ModelConfig]:
    """The smallest config of every model, and of every second way in which one is written."""
    tiny = {name: cls.tiny() for name, cls in MODELS.items()}
    doors = {f"{n}-linen": dataclasses.replace(c, door="linen") for n, c in tiny.items() if hasattr(c, "door")}
    of_bert = [head for head in typing.get_args(bert.Head) if head in HEADS and not head.endswith("_lm")]
    heads = {f"bert-{head}": dataclasses.replace(tiny["bert"], head=head) for head in of_bert}
    classifiers = {n: dataclasses.replace(c, num_classes=6) for n, c in heads.items() if n.endswith("classification")}
    dino = {"head": "class_and_mean", "layer_scale": 0.5, "num_registers": 2, "gated_mlp": True}
    vits = {"dinov2": dataclasses.replace(tiny["vit"], **dino)}
    vits["vit-pixels"] = dataclasses.replace(tiny["vit"], head="pixels")
    return tiny | doors | heads | classifiers | vits


def fits(cfg: ModelConfig, objective: str) -> bool:
    if objective in OF_DECODERS:
        return type(cfg) is MODELS["llama"]
    names = {f.name for f in dataclasses.fields(cfg)}
    if "connector" in names:  # has two towers, but writes
        return objective == "next_token"
    if hasattr(cfg, "head") or objective in AFTERWARDS:
        return HEADS.get(getattr(cfg, "head", "")) == objective
    if "num_queries" in names:
        return objective == "detection"
    if type(cfg) in {MODELS[name] for name in OF_PIXELS} or objective == "segmentation":
        return type(cfg) in {MODELS[name] for name in OF_PIXELS} and objective == "segmentation"
    if "latent_channels" in names:
        return objective == ("discrete_autoencoding" if "levels" in names else "autoencoding")
    if "pooled_dim" in names:
        return objective == "flow_matching"
    if "learn_sigma" in names:  # has classes or texts, but to be told, not to find
        return objective == "diffusion"
    if objective == "classification" and names >= {"num_classes", "vocab_size"}:  # of texts
        return True
    return names >= FITS[objective]


CONFIGS = configs()
PAIRS = [(name, objective) for name, cfg in CONFIGS.items() for objective in OBJECTIVES if fits(cfg, objective)]
# One decoder, and one classifier by hand and of Flax, in every run of the suite; the other families
# in the slow one.
FAST = {"llama", "mlp", "cnn"}
# One model of each kind of layer learns and is evaluated in the slow suite.
# `rnn_classifier` of ALONE has the recurrent layers.
OF_EACH_KIND = {"bert", "clip", "conformer", "deepseek", "dit", "resnet", "t5", "unet"}
# These have no reference in tests/parity, or an objective that no other model fits. The gradients
# of all others are compared with their reference there, so that their pairs are exhaustive.
ALONE = {"linear", "bag_of_embeddings", "rnn_classifier", "cnn-linen", "discrete_autoencoder", "autoencoder", "mmdit"}
ALONE |= {"bert-pretraining"}
# The last text stream gives keys and values alone; its files hold queries all the same.
UNREAD = ("last/text/attn/q",)


def pairs(slow: set[str], left_out: set[str] = frozenset()) -> pytest.MarkDecorator:
    """Marks every pair: pairs of the models in FAST are quick, those of the models in `slow` and of
    an objective in OF_DECODERS are slow, and all others are exhaustive.

    A pair with an objective of `left_out` is exhaustive whatever its model."""

    def marks(name: str, objective: str) -> list:
        if name in FAST and objective not in left_out | OF_DECODERS:
            return []
        return [pytest.mark.slow if name in slow | FAST and objective not in left_out else pytest.mark.exhaustive]

    return pytest.mark.parametrize("pair", [pytest.param(p, marks=marks(*p), id="-".join(p)) for p in PAIRS])


every_pair, of_each_kind = pairs(OF_EACH_KIND | ALONE), pairs(OF_EACH_KIND)
# These also compute in bfloat16, and two of them without jit and on eight devices. Others are laid
# out as one of them; tests/multidevice has layouts of bert, vit, t5, dit and the decoders.
of_few = pairs({"deepseek", "resnet"}, left_out={"policy_gradient"})
of_two = pairs({"resnet"}, left_out={"policy_gradient"})


def make_batch(cfg: ModelConfig, objective: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    if objective == "classification" and hasattr(cfg, "image_shape"):
        image = rng.random((ROWS, *cfg.image_shape), np.float32)
        label = rng.integers(0, cfg.num_classes, ROWS).astype(np.int32)
        return {"image": image, "label": label, "weights": np.ones(ROWS, np.float32)}
    if objective == "ctc":
        labels = np.stack([rng.permutation(np.arange(2, cfg.vocab_size))[:LABELS] for _ in range(ROWS)])
        batch = {"log_mel": rng.standard_normal((ROWS, FRAMES, cfg.num_mels), np.float32)}
        batch |= {"num_frames": np.full(ROWS, FRAMES, np.int32), "num_labels": np.full(ROWS, LABELS, np.int32)}
        return batch | {"labels": labels.astype(np.int32), "weights": np.ones(ROWS, np.float32)}
    if objective == "segmentation":
        image = rng.random((ROWS, *cfg.image_shape), np.float32)
        halves = rng.integers(0, cfg.num_classes, (ROWS, 2, 1)).astype(np.int32)  # of an image, the upper and the lower
        mask = halves.repeat(cfg.image_shape[0] // 2, 1).repeat(cfg.image_shape[1], 2)
        return {"image": image, "mask": mask, "weights": np.ones(ROWS, np.float32)}
    if objective == "detection":
        image, side = rng.random((ROWS, *cfg.image_shape), np.float32), rng.uniform(0.2, 0.5, (ROWS, 2, 4))
        classes = np.tile(np.array([3, -1], np.int32), (ROWS, 1))
        return {
            "image": image,
            "boxes": side.astype(np.float32),
            "classes": classes,
            "weights": np.ones(ROWS, np.float32),
        }
    if objective in ("autoencoding", "discrete_autoencoding"):
        return {"image": rng.random((ROWS, *cfg.image_shape), np.float32), "weights": np.ones(ROWS, np.float32)}
    if objective == "contrastive":
        image = rng.random((ROWS, *cfg.vision.image_shape), np.float32)
        tokens = rng.integers(0, cfg.text.vocab_size, (ROWS, LENGTH)).astype(np.int32)
        return {"image": image, "tokens": tokens, "weights": np.ones(ROWS, np.float32)}
    if objective in ("diffusion", "flow_matching"):
        timestep = rng.integers(0, 1000, ROWS).astype(np.int32)  # for calls of the model alone
        image = rng.random((ROWS, *cfg.image_shape), np.float32)
        batch = {"image": image, "timestep": timestep, "weights": np.ones(ROWS, np.float32)}
        return batch | condition_batch(cfg, rng)
    if objective == "regression":
        features = rng.standard_normal((ROWS, *cfg.feature_shape), np.float32)
        target = rng.standard_normal((ROWS, cfg.num_outputs), np.float32)
        return {"features": features, "target": target, "weights": np.ones(ROWS, np.float32)}
    tokens = rng.integers(0, cfg.vocab_size, (ROWS, LENGTH + 1)).astype(np.int32)
    # Two documents a row, the last two places padding.
    segments = np.tile(np.array([1] * 6 + [2] * (LENGTH - 8) + [0] * 2, np.int32), (ROWS, 1))
    positions = np.tile(np.array([*range(6), *range(LENGTH - 6)], np.int32), (ROWS, 1))
    batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "segment_ids": segments, "positions": positions}
    batch |= {"weights": (segments > 0).astype(np.float32), "target_bytes": np.ones_like(segments)}
    if hasattr(cfg, "connector"):
        batch |= image_batch(cfg, rng, batch["tokens"])
    if hasattr(cfg, "max_audio_len"):  # a row is one recording
        frames = rng.standard_normal((ROWS, 2 * cfg.max_audio_len, cfg.num_mels), np.float32)
        batch |= {"log_mel": frames, "segment_ids": np.minimum(segments, 1)}
        batch["positions"] = np.tile(np.arange(LENGTH, dtype=np.int32), (ROWS, 1))
    elif hasattr(cfg, "decoder_start_token_id"):
        batch |= {"encoder_tokens": tokens[:, :0:-1], "encoder_segment_ids": segments}
    if objective == "classification":
        batch |= {
            "label": rng.integers(0, cfg.num_classes, ROWS).astype(np.int32),
            "weights": np.ones(ROWS, np.float32),
        }
    if objective == "policy_gradient":
        sampled = rng.normal(-4, 0.1, segments.shape).astype(np.float32)  # near those of a fresh model
        advantages = np.tile(np.array([1, -1], np.float32), ROWS // 2)
        batch |= {"old_log_probs": sampled, "rollout_log_probs": sampled, "advantages": advantages}
        batch |= dict.fromkeys(("reward", "stopped"), np.ones(ROWS, np.float32))
    return batch | head_batch(cfg, rng) if hasattr(cfg, "head") else batch


def image_batch(cfg: ModelConfig, rng: np.random.Generator, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """Tokens whose first places but one stand for an image, the image, and what the prompt is."""
    tokens = np.minimum(tokens, cfg.image_token_id - 1)
    tokens[:, 1 : 1 + cfg.image_tokens] = cfg.image_token_id
    prefix = np.zeros_like(tokens)
    prefix[:, :6] = 1
    return {"tokens": tokens, "prefix": prefix, "image": rng.random((ROWS, *cfg.vision.image_shape), np.float32)}


def condition_batch(cfg: ModelConfig, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """What a denoiser is told: a label, a text's tokens, or their states; the last two places of a
    text are padding."""
    if not hasattr(cfg, "text_dim"):
        return {"label": rng.integers(0, cfg.num_classes, ROWS).astype(np.int32)}
    segments = np.tile(np.array([1] * (LENGTH - 2) + [0] * 2, np.int32), (ROWS, 1))
    if hasattr(cfg, "text"):
        tokens = rng.integers(0, cfg.text.vocab_size, (ROWS, LENGTH)).astype(np.int32)
        return {"tokens": tokens, "segment_ids": segments}
    states = {"text_states": rng.standard_normal((ROWS, LENGTH, cfg.text_dim), np.float32), "segment_ids": segments}
    if hasattr(cfg, "pooled_dim"):
        states["text_pooled"] = rng.standard_normal((ROWS, cfg.pooled_dim), np.float32)
    return states


def head_batch(cfg: ModelConfig, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """A batch with the targets of an encoder's head: classes, labels of tokens, or spans."""

    def draw(high: int, *shape: int) -> np.ndarray:
        return rng.integers(0, high, (ROWS, *shape)).astype(np.int32)

    rows = {"weights": np.ones(ROWS, np.float32)}
    return {
        "masked_lm": dict,
        "pretraining": lambda: {"next_sentence": draw(2)},
        "classification": lambda: rows | {"label": draw(cfg.num_classes)},
        "token_classification": lambda: {"targets": draw(cfg.num_classes, LENGTH)},
        "permuted_lm": lambda: {
            "token_types": draw(2, LENGTH),
            "order": np.tile(np.arange(LENGTH, dtype=np.int32)[::-1] % 5, (ROWS, 1)),
            "places": np.tile(np.array([1, 4, 8, 12], np.int32), (ROWS, 1)),
            "targets": draw(cfg.vocab_size, 4),
            "weights": np.ones((ROWS, 4), np.float32),
        },
        "replaced_token": lambda: {"targets": draw(2, LENGTH)},
        "question_answering": lambda: rows | {"start": draw(LENGTH), "end": draw(LENGTH)},
    }[cfg.head]()


class Case(NamedTuple):
    cfg: ModelConfig
    objective: Objective
    model: Model
    params: Any
    batch: dict[str, np.ndarray]

    def loss(self, tree, batch):
        """(mean loss, (metrics, updates)) of one training call."""
        out = self.objective.loss(self.model, tree, batch, rng=jax.random.key(1), train=True)
        return out.mean.total / out.mean.count, (out.metrics, out.updates)

    def step(self, tree, batch):
        """((loss, (metrics, updates)), gradients of the trainable parameters)."""
        trainable, frozen = params.partition(tree, self.model.spec)
        return jax.value_and_grad(lambda t: self.loss(params.merge(t, frozen), batch), has_aux=True)(trainable)


@functools.cache
def case(pair: tuple[str, str]) -> Case:
    name, objective = pair
    cfg = CONFIGS[name]
    model = cfg.make()
    init = model.init or functools.partial(params.init, model.spec)
    kind = {"kind": "sigmoid"} if hasattr(cfg, "logit_bias_init") else {}
    return Case(cfg, OBJECTIVES[objective](**kind), model, jax.jit(init)(jax.random.key(0)), make_batch(cfg, objective))


@functools.cache
def descent(pair):
    """What Case.step gives at each of eight steps down the gradient on one batch, in one compiled
    program."""
    c = case(pair)

    def descend(tree, _):
        step = (_, (_, updates)), grads = c.step(tree, c.batch)
        norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(grads)))
        trainable, frozen = params.partition(tree, c.model.spec)
        trainable = jax.tree.map(lambda p, g: p - 0.1 * g / norm, trainable, grads)
        return params.merge(trainable, moved(c.model, frozen, updates)), step

    _, steps = jax.jit(lambda tree: jax.lax.scan(descend, tree, length=8))(c.params)
    return jax.tree.map(np.asarray, steps)


def one_device(pair):
    """What Case.step gives at the first values of the parameters."""
    return jax.tree.map(lambda x: x[0], descent(pair))


def close(a, b, tolerance):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance), a, b)


def test_every_model_and_every_objective_is_in_a_pair():
    assert {name for name, _ in PAIRS} == set(CONFIGS)
    assert {objective for _, objective in PAIRS} == set(OBJECTIVES) - AFTERWARDS


@every_pair
def test_spec_is_the_shape_of_the_initial_values(pair):
    c = case(pair)
    shapes = jax.eval_shape(c.model.init or functools.partial(params.init, c.model.spec), jax.random.key(0))
    assert shapes == params.abstract(c.model.spec)
    assert set(params.paths(c.params)) == set(params.paths(c.model.spec))


@every_pair
def test_loss_and_gradients_are_finite_and_reach_every_parameter(pair):
    (loss, (metrics, _)), grads = one_device(pair)
    trainable, _ = params.partition(case(pair).model.spec, case(pair).model.spec)
    assert jax.tree.all(jax.tree.map(lambda x: np.isfinite(x).all(), (loss, metrics, grads)))
    assert set(params.paths(grads)) == set(params.paths(trainable))
    without = [path for path, g in params.paths(grads).items() if not g.any()]
    assert not [path for path in without if not path.startswith(UNREAD)], "parameters without a gradient"


@of_each_kind
def test_fresh_loss_is_that_of_knowing_nothing(pair):
    c = case(pair)
    (loss, (metrics, _)), _ = one_device(pair)
    loss = metrics["class_loss"].compute() if "boxes" in c.batch else loss  # boxes begin anywhere
    if "advantages" in c.batch:
        return  # an advantage is above or below a group's mean, whatever is known
    if "target" in c.batch:
        chance = np.mean(c.batch["target"] ** 2)
    elif hasattr(c.cfg, "learn_sigma"):
        chance = 1.0  # the variance of the noise
    elif hasattr(c.cfg, "subsampling"):  # all alignments of distinct labels are equally likely
        frames = FRAMES // c.cfg.subsampling
        chance = (frames * np.log(c.cfg.vocab_size) - np.log(math.comb(frames + LABELS, 2 * LABELS))) / LABELS
    elif hasattr(c.cfg, "latent_channels"):
        chance = 0.5  # the mean absolute value of images alike in -1 .. 1
    elif hasattr(c.cfg, "pooled_dim"):
        chance = 4 / 3  # and that of images alike in -1 .. 1
    elif hasattr(c.cfg, "vision") and not hasattr(c.cfg, "connector"):
        chance = -getattr(c.cfg, "logit_bias_init", -np.log(ROWS))
    else:
        chance = np.log(getattr(c.cfg, "num_classes", None) or c.cfg.vocab_size)
    assert 0.5 * chance < loss < 2 * chance


def moved(model, frozen, updates):
    """The statistics after a step whose forward pass gave `updates`."""
    return model.advance(frozen, updates) if model.advance else params.from_paths(params.paths(frozen) | updates)


@of_each_kind
def test_loss_falls_on_one_batch(pair):
    (losses, _), _ = descent(pair)
    assert losses[-1] < losses[0] - 0.05


@pytest.mark.slow
@of_two
def test_jit_equals_eager(pair):
    c = case(pair)
    jitted = jax.jit(lambda tree: c.model.apply(tree, c.batch).value)(c.params)
    close(jitted, c.model.apply(c.params, c.batch).value, 1e-5)


@of_each_kind
def test_apply_is_pure(pair):
    c = case(pair)
    before = jax.tree.map(np.array, (c.params, c.batch))
    apply = jax.jit(lambda tree, batch: c.model.apply(tree, batch, rng=jax.random.key(1), train=True)[:2])
    first, second = apply(c.params, c.batch), apply(c.params, c.batch)
    chex.assert_trees_all_equal(first, second)
    keys = set(c.batch)
    jax.eval_shape(lambda: c.model.apply(c.params, c.batch)[:2])  # its Python, with no operation compiled
    assert set(c.batch) == keys
    chex.assert_trees_all_equal((c.params, c.batch), before)


@of_each_kind
def test_evaluation_needs_no_rng_and_reports_what_it_names(pair):
    c = case(pair)
    out = jax.jit(lambda tree: c.objective.loss(c.model, tree, c.batch, rng=None, train=False))(c.params)
    scalars = c.objective.summarize(jax.tree.map(np.asarray, out.metrics))
    named = {m.name for m in c.objective.metrics}
    if "top5" in named:  # of five classes or fewer each label is among the five likeliest
        logits = jax.eval_shape(lambda tree: c.model.apply(tree, c.batch, rng=None, train=False).value, c.params)
        named -= {"top5"} if logits.shape[-1] <= 5 else set()
    assert named <= set(scalars)
    assert all(np.isfinite(v) for v in scalars.values())
    assert out.updates == {}


@of_each_kind
def test_rows_of_an_evaluation_do_not_see_each_other(pair):
    c = case(pair)
    apply = jax.jit(lambda batch: c.model.apply(c.params, batch).value)
    backwards = apply({k: v[::-1] for k, v in c.batch.items()})
    close(jax.tree.map(lambda x: x[::-1], backwards), apply(c.batch), 1e-5)
    other = {k: np.concatenate([v[:1], v[-1:].repeat(ROWS - 1, 0)]) for k, v in c.batch.items()}
    close(*(jax.tree.map(lambda x: x[0], apply(batch)) for batch in (other, c.batch)), 1e-5)


@of_each_kind
def test_updates_are_the_frozen_parameters(pair):
    c = case(pair)
    (_, (_, updates)), _ = one_device(pair)
    frozen = {path: p for path, p in params.paths(c.model.spec).items() if p.kind == "statistic"}
    assert {k: (v.shape, str(v.dtype)) for k, v in updates.items()} == {
        k: (p.shape, p.dtype) for k, p in frozen.items()
    }
    after = params.paths(moved(c.model, params.partition(c.params, c.model.spec)[1], updates))
    assert all((after[k] != params.paths(c.params)[k]).any() for k in frozen), "a statistic that never moves"


@pytest.mark.slow
@of_few
def test_bfloat16_is_finite_and_near(pair):
    c = case(pair)
    trainable, frozen = params.partition(c.params, c.model.spec)
    (loss, (_, updates)), grads = jax.jit(c.step)(params.merge(cast(trainable, "bfloat16"), frozen), c.batch)
    assert {g.dtype for g in jax.tree.leaves(grads)} == {jnp.dtype("bfloat16")}
    assert jax.tree.all(jax.tree.map(lambda x: bool(jnp.isfinite(x).all()), (loss, grads, updates)))
    assert abs(loss - one_device(pair)[0][0]) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout",
    [pytest.param({"data": 2, "fsdp": 4}, marks=pytest.mark.exhaustive), {"data": 2, "fsdp": 2, "tensor": 2}],
    ids=str,
)
@of_two
def test_eight_devices_equal_one(pair, layout):
    c, rules = case(pair), Rules()
    mesh = sharding.make_mesh(ParallelConfig(**layout))
    placed = sharding.shardings(c.model.spec, mesh, rules)
    assert any(not s.is_fully_replicated for s in jax.tree.leaves(placed))
    batch = {k: jax.device_put(v, sharding.batch_sharding(mesh, rules, axes(v))) for k, v in c.batch.items()}
    out_shardings = (None, params.partition(placed, c.model.spec)[0])
    with sharding.use(mesh, rules):
        got = jax.jit(c.step, out_shardings=out_shardings)(jax.device_put(c.params, placed), batch)
    close(jax.tree.map(np.asarray, got), one_device(pair), 1e-4)
