"""The tensor names of torchvision's VGG and AlexNet: `features.N` and `classifier.N`.

transformers has no such architectures, so config.json holds the fields of our config under the
architecture names "VGG" and "AlexNet". Our parameters have the number N in their names. The same N
is a convolution in some networks and a batch norm in others, so the table has rows for both.
"""

import functools

from bigmodel_jax.models.alexnet import AlexNetConfig
from bigmodel_jax.models.vgg import VGGConfig
from bigmodel_jax.pretrained.efficientnet import fields_from_hf, fields_to_hf
from bigmodel_jax.pretrained.family import Family
from bigmodel_jax.pretrained.names import CONV, Row, batch_norm, dense

MAX_FEATURES, MAX_CLASSIFIER = 1000, 7  # VGG-19 with batch norm has 53 and 7 steps


def feature(n: int) -> tuple[Row, ...]:
    """The name-table rows of step `n` of the features: a convolution, or a batch norm."""
    theirs = f"features.{n}"
    return *dense(f"conv{n}", theirs, CONV), *batch_norm(f"norm{n}", theirs)


ROWS = (
    *(row for n in range(MAX_FEATURES) for row in feature(n)),
    *(row for n in range(MAX_CLASSIFIER) for row in dense(f"dense{n}", f"classifier.{n}")),
)
# A counter that batch norm with a fixed momentum ignores.
IGNORED = (r".*\.num_batches_tracked",)


def _family(architecture: str, model_type: str, config: type) -> Family:
    read, write = functools.partial(fields_from_hf, config), functools.partial(fields_to_hf, model_type)
    return Family(architecture, config, read, write, ROWS, IGNORED)


ALEXNET, VGG = _family("AlexNet", "alexnet", AlexNetConfig), _family("VGG", "vgg", VGGConfig)
