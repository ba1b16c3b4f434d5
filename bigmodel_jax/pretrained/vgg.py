"""The tensor names of torchvision's VGG and AlexNet: `features.N` and `classifier.N`.

transformers has no such architectures, so config.json holds the fields of our config under the
architecture names "VGG" and "AlexNet". A parameter of ours has the number N in its name, and at one
N stands a convolution in some networks and a batch norm in others.
"""

import functools

from bigmodel_jax.models.alexnet import AlexNetConfig
from bigmodel_jax.models.vgg import VGGConfig
from bigmodel_jax.pretrained.efficientnet import fields_from_hf, fields_to_hf
from bigmodel_jax.pretrained.family import Family
from bigmodel_jax.pretrained.names import CONV, Row, layer_norm, linear

MAX_FEATURES, MAX_CLASSIFIER = 1000, 7  # VGG-19 with batch norm has 53 and 7 steps


def feature(n: int) -> tuple[Row, ...]:
    """The name-table rows of step `n` of the features: a convolution, or a batch norm."""
    ours, theirs = f"norm{n}", f"features.{n}"
    return (
        Row(f"conv{n}/kernel", f"{theirs}.weight", CONV),
        Row(f"conv{n}/bias", f"{theirs}.bias"),
        *layer_norm(ours, theirs),
        Row(f"{ours}/mean", f"{theirs}.running_mean"),
        Row(f"{ours}/var", f"{theirs}.running_var"),
    )


def dense(n: int) -> tuple[Row, Row]:
    """The name-table rows of step `n` of the classifier."""
    theirs = f"classifier.{n}"
    return Row(f"dense{n}/kernel", f"{theirs}.weight", linear()), Row(f"dense{n}/bias", f"{theirs}.bias")


ROWS = (
    *(row for n in range(MAX_FEATURES) for row in feature(n)),
    *(row for n in range(MAX_CLASSIFIER) for row in dense(n)),
)
IGNORED = (r".*\.num_batches_tracked",)


def _family(architecture: str, model_type: str, config: type) -> Family:
    read, write = functools.partial(fields_from_hf, config), functools.partial(fields_to_hf, model_type)
    return Family(architecture, config, read, write, ROWS, IGNORED)


ALEXNET, VGG = _family("AlexNet", "alexnet", AlexNetConfig), _family("VGG", "vgg", VGGConfig)
