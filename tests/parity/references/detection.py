"""DETR of transformers: tiny, random, and everything that a parity test asks of it."""

import functools
from pathlib import Path

import numpy as np
import torch
from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig
from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss

from references.vision import channels_last, images
from references.weights import randomize, save_gradients, save_weights

CLASSES, OBJECTS = 5, (3, 1, 0)  # objects of each picture
MOST, LAYERS = 4, 3


def targets() -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    found = []
    for n in OBJECTS:
        centre, size = torch.rand((n, 2), generator=generator), torch.rand((n, 2), generator=generator)
        boxes = torch.cat([0.3 + 0.4 * centre, 0.1 + 0.4 * size], dim=1)
        found.append({"class_labels": torch.randint(0, CLASSES, (n,), generator=generator), "boxes": boxes})
    return found


def padded(objects: list[dict[str, torch.Tensor]]) -> dict[str, np.ndarray]:
    boxes, classes = np.zeros((len(objects), MOST, 4), np.float32), np.full((len(objects), MOST), -1, np.int32)
    for n, one in enumerate(objects):
        boxes[n, : len(one["boxes"])], classes[n, : len(one["boxes"])] = one["boxes"], one["class_labels"]
    return {"boxes": boxes, "classes": classes}


def loss_of_layers(config: DetrConfig) -> dict[str, np.ndarray]:
    """The loss of outputs of several layers, and its gradient with respect to each."""
    generator = torch.Generator().manual_seed(4)
    shape = (LAYERS, len(OBJECTS), config.num_queries)
    logits = torch.randn((*shape, CLASSES + 1), generator=generator).requires_grad_()
    raw = torch.rand((*shape, 4), generator=generator)
    boxes = torch.cat([0.2 + 0.6 * raw[..., :2], 0.05 + 0.5 * raw[..., 2:]], dim=-1).requires_grad_()
    loss, parts, _ = ForObjectDetectionLoss(logits[-1], targets(), "cpu", boxes[-1], config, logits, boxes)
    loss.backward()
    arrays = {"logits": logits.detach(), "boxes": boxes.detach(), "logits_grad": logits.grad, "boxes_grad": boxes.grad}
    arrays |= {"loss": loss.detach(), **{name: parts[name].detach() for name in ("loss_ce", "loss_bbox", "loss_giou")}}
    return {f"layers/{name}": x.numpy() for name, x in arrays.items()}


def write(config: DetrConfig, folder: Path, *, shape: tuple[int, ...]) -> None:
    model = DetrForObjectDetection._from_config(config, attn_implementation="eager").float().eval()
    randomize(model, std=0.35)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 4:  # convolutions keep the scale of what they read
                p.mul_((2 / p[0].numel()) ** 0.5 / 0.35)
            if "query_position" in name:  # queries begin as zeros: their positions alone tell them apart
                p.mul_(4)
    generator = torch.Generator().manual_seed(5)
    for name, buffer in model.named_buffers():
        noise = torch.rand(buffer.shape, generator=generator)
        buffer.copy_(0.5 + noise if name.endswith(("running_var", "weight")) else 0.4 * (noise - 0.5))
    save_weights(model, folder)
    for parameter in model.parameters():  # transformers holds the ResNet's fixed
        parameter.requires_grad_(True)
    pixels = images(1, len(OBJECTS), *shape)
    out = model(pixel_values=pixels, labels=targets())
    out.loss.backward()
    save_gradients(model, folder)
    arrays = {"image": channels_last(pixels), **padded(targets()), "loss": out.loss.detach().numpy()}
    arrays |= {"logits": out.logits.detach().numpy(), "pred_boxes": out.pred_boxes.detach().numpy()}
    arrays["memory"] = out.encoder_last_hidden_state.detach().numpy()
    config.auxiliary_loss, config.decoder_layers = True, LAYERS
    np.savez_compressed(folder / "reference.npz", **arrays | loss_of_layers(config))


def config(block: str, sizes: list[int], depths: list[int]) -> DetrConfig:
    backbone = ResNetConfig(
        embedding_size=8, hidden_sizes=sizes, depths=depths, layer_type=block, out_features=[f"stage{len(depths)}"]
    )
    return DetrConfig(
        backbone_config=backbone,
        use_timm_backbone=False,
        num_queries=7,
        encoder_layers=1,
        decoder_layers=2,
        d_model=16,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        num_labels=CLASSES,
        dropout=0.0,
    )


# Neither square, nor a multiple of what the stages divide by.
DETECTION = {"detr": functools.partial(write, config("bottleneck", [16, 32, 64], [1, 2, 1]), shape=(3, 45, 61))}
