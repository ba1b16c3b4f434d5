"""AlexNet on one device, as torchvision has it (Krizhevsky, arXiv:1404.5997), in Linen.

Its five convolutions have the widths of that paper and no local response normalisation. The network
that runs the steps is that of vgg.py, with torchvision's numbers in the parameters' names.
"""

import dataclasses
from typing import Any, ClassVar

from bigmodel_jax.core.ranges import Count
from bigmodel_jax.models.resnet import torch_uniform
from bigmodel_jax.models.sizes import Cut
from bigmodel_jax.models.vgg import DROPOUT, RELU, Step, StepsConfig

# Width, stride and padding of the convolutions, and whether pooling follows.
CONVOLUTIONS = ((11, 4, 2, True), (5, 1, 2, True), (3, 1, 1, False), (3, 1, 1, False), (3, 1, 1, True))


@dataclasses.dataclass(frozen=True)
class AlexNetConfig(StepsConfig):
    """Five convolutions and three dense layers (Krizhevsky, arXiv:1404.5997).

    The reference implementation is torchvision's `alexnet`.
    """

    channels: tuple[Count, Count, Count, Count, Count] = (64, 192, 384, 256, 256)  # outputs of each convolution
    pooled_side: Count = 6  # height and width to which the last feature map is averaged

    SIZES: ClassVar[tuple] = (Cut("channels", "mlp"), Cut("hidden_dim", "mlp"))

    def features(self) -> list[Step]:
        """The steps before the averaging."""
        steps = []
        for channels, (width, stride, padding, pooled) in zip(self.channels, CONVOLUTIONS, strict=True):
            conv = Step("conv", channels, width, stride, padding)
            steps += [conv, RELU, Step("pool", 0, 3, 2)] if pooled else [conv, RELU]
        return steps

    def classifier(self) -> list[Step]:
        """The steps after the averaging."""
        hidden = Step("dense", self.hidden_dim)
        return [DROPOUT, hidden, RELU, DROPOUT, hidden, RELU, Step("dense", self.num_classes)]

    def initial(self, kind: str, fan_in: int) -> tuple[Any, Any]:
        """The initial distributions of kernel and bias: those of torch, for every kind of step."""
        return torch_uniform(fan_in), torch_uniform(fan_in)

    @classmethod
    def tiny(cls) -> "AlexNetConfig":
        sizes = {"image_shape": (64, 64, 1), "num_classes": 10, "channels": (8, 16, 16, 16, 16)}
        return cls(**sizes, pooled_side=2, hidden_dim=32, dropout=0.0)


PRESETS = {"alexnet": AlexNetConfig()}
