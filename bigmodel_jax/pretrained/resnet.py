"""ResNet's tensor names and config.json.

Each block has rows of its own, because blocks differ in shape.
"""

from bigmodel_jax.models.resnet import ResNetConfig
from bigmodel_jax.pretrained.family import Family, check_fixed
from bigmodel_jax.pretrained.labels import labels_to_hf, num_classes_from_hf
from bigmodel_jax.pretrained.names import CONV, Row, batch_norm, linear

MAX_STAGES, MAX_BLOCKS = 8, 50  # the deepest published ResNet has 4 stages of at most 36 blocks


def conv_norm(ours: str, theirs: str) -> tuple[Row, ...]:
    """The name-table rows of a convolution and its batch norm, with running statistics."""
    return (
        Row(f"{ours}/conv/kernel", f"{theirs}.convolution.weight", CONV),
        *batch_norm(f"{ours}/norm", f"{theirs}.normalization"),
    )


def block(ours: str, theirs: str) -> tuple[Row, ...]:
    """The name-table rows of one residual block.

    ours: its parameter path; theirs: its module name.
    """
    convs = [row for n in range(3) for row in conv_norm(f"{ours}/conv{n}", f"{theirs}.layer.{n}")]
    return (*convs, *conv_norm(f"{ours}/shortcut", f"{theirs}.shortcut"))


def trunk(ours: str, theirs: str) -> tuple[Row, ...]:
    """The name-table rows of a network without its head.

    ours, theirs: what the names begin with.
    """
    places = [(stage, number) for stage in range(MAX_STAGES) for number in range(MAX_BLOCKS)]
    blocks = [block(f"{ours}stage{n}/block{m}", f"{theirs}encoder.stages.{n}.layers.{m}") for n, m in places]
    return (*conv_norm(f"{ours}stem/conv0", f"{theirs}embedder.embedder"), *(row for rows in blocks for row in rows))


ROWS = (
    *trunk("", "resnet."),
    Row("head/kernel", "classifier.1.weight", linear()),
    Row("head/bias", "classifier.1.bias"),
)
IGNORED = (r".*\.num_batches_tracked",)  # a counter that batch norm with a fixed momentum ignores


def from_hf(hf: dict) -> ResNetConfig:
    """The ResNetConfig that a config.json of transformers' ResNetForImageClassification describes.

    The image size is ImageNet's 224 x 224: no config.json states it, and the weights do not depend
    on it.
    """
    check_fixed(hf, hidden_act="relu", downsample_in_first_stage=False, downsample_in_bottleneck=False)
    check_fixed(hf, layer_type=("bottleneck", "basic"))
    return ResNetConfig(
        image_shape=(224, 224, hf.get("num_channels", 3)),
        num_classes=num_classes_from_hf(hf),
        depths=tuple(hf["depths"]),
        channels=tuple(hf["hidden_sizes"]),
        stem_channels=hf["embedding_size"],
        block=hf["layer_type"],
    )


def trunk_to_hf(cfg: ResNetConfig) -> dict:
    """The part of the config.json that describes the network without its head.

    Raises ValueError for a stem other than ImageNet's.
    """
    if cfg.stem != "imagenet":
        raise ValueError(f"model.stem = {cfg.stem!r}: the published architecture has the stem 'imagenet'")
    return {
        "model_type": "resnet",
        "num_channels": cfg.image_shape[2],
        "embedding_size": cfg.stem_channels,
        "hidden_sizes": list(cfg.channels),
        "depths": list(cfg.depths),
        "layer_type": cfg.block,
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": False,
    }


def to_hf(cfg: ResNetConfig) -> dict:
    """The config.json of transformers' ResNetForImageClassification for this config."""
    return trunk_to_hf(cfg) | labels_to_hf(cfg.num_classes)


RESNET = Family("ResNetForImageClassification", ResNetConfig, from_hf, to_hf, ROWS, IGNORED)
