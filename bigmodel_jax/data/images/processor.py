"""The settings of transformers' image processors that prepare images as in training here."""

from typing import Any

from bigmodel_jax.data.images.channels import Channels

BILINEAR = 2  # the number by which Pillow names bilinear interpolation


def processor(size: int, crop: float, channels: Channels) -> dict[str, Any]:
    """Return preprocessor_config.json for images that are cut to (size, size).

    `crop` is the side of the cut square as a share of the shorter side. transformers rounds the
    scaled sides and the margins to whole pixels. The evaluation here does not.
    """
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": round(size / crop)},
        "resample": BILINEAR,
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": bool(channels.mean),
        "image_mean": _three(channels.mean or (0.0,)),
        "image_std": _three(channels.spread or (1.0,)),
    }


def _three(numbers: tuple[float, ...]) -> list[float]:
    return list(numbers if len(numbers) == 3 else numbers * 3)
