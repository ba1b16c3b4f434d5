"""Gradients of models with convolutions on meshes whose tensor axis cuts channels: they equal those
of one device.

Image sides are odd and even, so that a stride of 2 meets both; the channels are divisible by every
tensor axis.
"""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from text_axes import axes

from bigmodel_jax.core import params, sharding
from bigmodel_jax.core.sharding import ParallelConfig, Rules
from bigmodel_jax.models import MODELS, ModelConfig
from bigmodel_jax.objectives import OBJECTIVES
from models_test import Case, make_batch

LAYOUTS = {
    "data": {"data": 8},
    "fsdp": {"data": 1, "fsdp": 8},
    "data-fsdp-tensor": {"data": 2, "fsdp": 2, "tensor": 2},
    "data-tensor": {"data": 4, "tensor": 2},
    "fsdp-tensor": {"data": 1, "fsdp": 2, "tensor": 4},
    "tensor": {"data": 1, "tensor": 8},
}
SMALL, MIDDLE, LARGE = [(16, 16), (15, 17), (13, 14)], [(8, 8), (16, 8), (12, 20)], [(32, 32), (33, 30), (37, 41)]
BASIC = {"channels": (16, 32), "block": "basic", "stem": "cifar"}
HEADS = {"num_heads": (8, 8), "depths": (1, 1)}
# Family, objective, fields beside the image's sides, and the sides.
IMAGES = {
    "resnet": ("resnet", "classification", {"depths": (1, 1), "channels": (32, 64)}, SMALL),
    "resnet-basic": ("resnet", "classification", {"depths": (1, 1)} | BASIC, SMALL),
    "efficientnet": ("efficientnet", "classification", {}, SMALL),
    "vgg": ("vgg", "classification", {}, SMALL),
    "alexnet": ("alexnet", "classification", {}, [(64, 64), (79, 63)]),
    "cnn": ("cnn", "classification", {}, SMALL),
    "cnn-linen": ("cnn", "classification", {"door": "linen"}, SMALL),
    "unet": ("unet", "segmentation", {}, SMALL),
    "segformer": ("segformer", "segmentation", HEADS, LARGE),
    "autoencoder": ("autoencoder", "autoencoding", {"norm_groups": 4}, MIDDLE),
}
SOUNDS = {
    "conformer": ("conformer", "ctc", {"num_layers": 1, "subsampling_dim": 16, "num_heads": 8}),
    "whisper": ("whisper", "next_token", {"num_layers": 1, "num_decoder_layers": 1, "num_heads": 8}),
}
# Odd sides by the largest axis. models_test.py sees every family at one size; the whole grid takes
# half an hour.
SLOW = {("resnet", (15, 17), "tensor"), ("unet", (13, 14), "fsdp-tensor")}


def grid() -> list:
    names = [(name, sides) for name, (*_, all_sides) in IMAGES.items() for sides in all_sides]
    cases = [(*name, layout) for name in (*names, *((name, ()) for name in SOUNDS)) for layout in LAYOUTS]
    marked = [(c, pytest.mark.slow if c in SLOW else pytest.mark.exhaustive) for c in cases]
    return [pytest.param(*c, marks=mark, id="-".join((c[0], *map(str, c[1]), c[2]))) for c, mark in marked]


def config(name: str, sides: tuple[int, ...]) -> tuple[ModelConfig, str]:
    family, objective, fields, *_ = IMAGES[name] if sides else SOUNDS[name]
    tiny = MODELS[family].tiny()
    shape = {"image_shape": (*sides, tiny.image_shape[2])} if sides else {}
    return dataclasses.replace(tiny, **fields, **shape), objective


@functools.cache
def on_one_device(name: str, sides: tuple[int, ...]) -> tuple[Case, dict[str, np.ndarray]]:
    cfg, objective = config(name, sides)
    model = cfg.make()
    init = model.init or functools.partial(params.init, model.spec)
    case = Case(cfg, OBJECTIVES[objective](), model, jax.jit(init)(jax.random.key(0)), make_batch(cfg, objective))
    return case, params.paths(jax.jit(case.step)(case.params, case.batch)[1])


@pytest.mark.few("unet-13-14-fsdp-tensor")
@pytest.mark.parametrize(("name", "sides", "layout"), grid())
def test_gradients_of_convolutions_equal_those_of_one_device(name, sides, layout):
    case, want = on_one_device(name, sides)
    rules, parallel = Rules(), ParallelConfig(**LAYOUTS[layout])
    mesh = sharding.make_mesh(parallel)
    placed = sharding.shardings(case.model.spec, mesh, rules)
    batch = {k: jax.device_put(v, sharding.batch_sharding(mesh, rules, axes(v))) for k, v in case.batch.items()}
    trained = params.partition(placed, case.model.spec)[0]
    with sharding.use(mesh, rules, parallel):
        step = jax.jit(lambda tree, rows: case.step(tree, rows)[1], out_shardings=trained)
        got = params.paths(step(jax.device_put(case.params, placed), batch))
    largest = max(np.abs(x).max() for x in want.values())
    for path, x in want.items():
        # The gradient of a key's bias is zero but for rounding: differences count beside the
        # largest one.
        np.testing.assert_allclose(got[path], x, rtol=0, atol=1e-3 * (np.abs(x).max() + 1e-3 * largest), err_msg=path)
