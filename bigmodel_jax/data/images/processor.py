"""What transformers' image processors are told, so that a model gets the images it was trained on."""

from typing import Any

from bigmodel_jax.data.images.channels import Channels

BILINEAR = 2  # Pillow's number


def processor(size: int, crop: float, channels: Channels) -> dict[str, Any]:
    """The content of preprocessor_config.json for pictures cut to (size, size) at this share of their shorter side.

    transformers rounds the scaled sides and the margins to whole pixels, which evaluation here does not.
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
