"""EfficientNet-lite's tensor names, as in the PyTorch weights of lukemelas/EfficientNet-PyTorch.

transformers has no such architecture, so config.json holds the fields of our config under the
architecture name "EfficientNetLite".
"""

import dataclasses
import functools

from bigmodel_jax.models import ModelConfig
from bigmodel_jax.models.efficientnet import EfficientNetConfig
from bigmodel_jax.pretrained.family import Family
from bigmodel_jax.pretrained.names import CONV, Row, batch_norm, linear

# More than any published network has. Rows of other blocks are skipped.
MAX_BLOCKS = 64


def conv_norm(ours: str, conv: str, norm: str) -> tuple[Row, ...]:
    """The name-table rows of a convolution and its batch norm, with running statistics.

    conv, norm: their module names.
    """
    return Row(f"{ours}/conv/kernel", f"{conv}.weight", CONV), *batch_norm(f"{ours}/norm", norm)


def block(number: int) -> tuple[Row, ...]:
    """The name-table rows of the inverted-residual block with this number."""
    ours, theirs = f"block{number}", f"_blocks.{number}."
    return (
        *conv_norm(f"{ours}/expand", theirs + "_expand_conv", theirs + "_bn0"),
        *conv_norm(f"{ours}/depthwise", theirs + "_depthwise_conv", theirs + "_bn1"),
        *conv_norm(f"{ours}/project", theirs + "_project_conv", theirs + "_bn2"),
    )


ROWS = (
    *conv_norm("stem", "_conv_stem", "_bn0"),
    *(row for number in range(MAX_BLOCKS) for row in block(number)),
    *conv_norm("features", "_conv_head", "_bn1"),
    Row("head/kernel", "_fc.weight", linear()),
    Row("head/bias", "_fc.bias"),
)
# A counter that batch norm with a fixed momentum ignores.
IGNORED = (r".*\.num_batches_tracked",)


def fields_from_hf(config: type[ModelConfig], hf: dict) -> ModelConfig:
    """The config whose fields stand in a config.json under our names. Missing fields keep our
    defaults.
    """
    fields = {f.name: hf[f.name] for f in dataclasses.fields(config) if f.name in hf}
    # JSON knows lists alone, and a config's fields hold tuples.
    return config(**{name: tuple(x) if isinstance(x, list) else x for name, x in fields.items()})


def fields_to_hf(model_type: str, cfg: ModelConfig) -> dict:
    """The config.json: every field of the config by our names, with tuples as lists."""
    fields = dataclasses.asdict(cfg)
    return {"model_type": model_type, **{n: list(x) if isinstance(x, tuple) else x for n, x in fields.items()}}


from_hf = functools.partial(fields_from_hf, EfficientNetConfig)
to_hf = functools.partial(fields_to_hf, "efficientnet_lite")
EFFICIENTNET = Family("EfficientNetLite", EfficientNetConfig, from_hf, to_hf, ROWS, IGNORED)
