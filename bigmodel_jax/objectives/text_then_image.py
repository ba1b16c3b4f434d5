"""Next-token prediction on a text and the codes of its image, one after the other in one sequence
(Ramesh et al., arXiv:2102.12092).
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from bigmodel_jax.core import params as parameters_of
from bigmodel_jax.core.metrics import Mean, Metric, divisor, weighted
from bigmodel_jax.core.params import Tree
from bigmodel_jax.core.ranges import Count, CountOrZero, Positive, Share
from bigmodel_jax.data.fields import Field
from bigmodel_jax.models.base import ModelConfig
from bigmodel_jax.nn.head import Form
from bigmodel_jax.objectives.base import Loss, held_out_loss
from bigmodel_jax.objectives.cross_entropy import of_tokens
from bigmodel_jax.objectives.of_pictures import OfPictures
from bigmodel_jax.objectives.other_run import model_of

AUTOENCODER = "autoencoder"  # the branch of the parameters
CODES = "codes"  # the name of the array in a batch


@dataclasses.dataclass(frozen=True)
class TextThenImage(OfPictures):
    """Cross-entropy in nats: w times the mean over a row's codes, plus (1 - w) times the mean over
    its text tokens, with w = image_weight.

    Batch: tokens (B, T) int32, segment_ids (B, T), 0 for padding, weights (B,), and codes (B, N)
    int32, which a discrete autoencoder made of the images before the first step. The autoencoder is
    a constant of the run.

    A sequence has T text tokens and then N codes. Padding is the token 0 of the text, which is no
    target. T is the same in all rows, so a code's position tells its place in the image. Code n is
    token n of the model, and text token m is token num_codes + m.
    """

    reads = ("image", "tokens", "segment_ids", "weights")
    texts = 1
    causal = True
    metrics = (
        held_out_loss("nats, weighted"),
        Metric("image_loss", "Loss of the codes", "less", "{:.3f}", "nats per code", headline=True),
        Metric("image_perplexity", "Perplexity of the codes", "less", "{:.1f}", "per code", beside="image_loss"),
        Metric("text_loss", "Loss of the text", "less", "{:.3f}", "nats per token"),
        Metric("accuracy", "Accuracy of the codes", "more", "{:.2%}"),
    )
    endings = ("drawings",)
    computed_from = ("image",)
    computed_with = AUTOENCODER
    instead_of_texts = "`train` draws its images at the end (objective.pictures)"

    autoencoder: str = ""
    "the folder of a run of a discrete autoencoder, as train.init_from writes it"
    autoencoder_model: ModelConfig | None = None  # the autoencoder's model; None = read from the folder's config.json
    offset: float = 0.5  # the autoencoder sees (image - offset) * scale, as in its own run
    scale: Positive = 2.0
    image_weight: Share = 0.875
    "share of the codes in the loss, 7/8 as in the paper; 1: the text is not trained on"
    pictures: CountOrZero = 10
    "names of the training split, and as many held-out ones, that the run draws at its end; 0: none"
    candidates: Count = 1
    "images drawn for a name; the one that `judge` finds nearest to the name is shown"
    judge: str = ""
    "the folder of a run of CLIP that ranks the candidates; empty: one candidate is drawn and shown"
    logits: Form = "auto"
    '"whole" logits in memory, or "blocks" of the vocabulary; auto: blocks if large'

    def sources(self) -> dict[str, str]:
        return {AUTOENCODER: self.autoencoder} if self.autoencoder else {}

    def vocabularies(self) -> dict[str, str]:
        return {"judge": self.judge} if self.judge else {}

    def parameters(self, model: ModelConfig) -> Tree:
        return {AUTOENCODER: parameters_of.constants(self.autoencoder_config().make().spec)}

    def autoencoder_config(self) -> ModelConfig:
        """The autoencoder's model config.

        Raises a one-line ValueError if it is unknown or has no codes.
        """
        found = model_of(self.autoencoder, "objective.autoencoder", self.autoencoder_model)
        if not hasattr(found, "num_codes"):
            raise ValueError(
                f"objective.autoencoder = {self.autoencoder!r} is a run of {type(found).__name__}, which has no codes; give "
                "a run of configs/dvae_emoji.py, or of another DiscreteAutoencoderConfig"
            )
        return found

    def validate(self, config: Any) -> None:
        super().validate(config)
        self.check_model(config.model)
        self.check_data(config.data)
        sample = config.eval.sample
        for name in ("prompt", "max_tokens", "widen"):
            if (value := getattr(sample, name)) != (plain := getattr(type(sample)(), name)):
                raise ValueError(
                    f"eval.sample.{name} = {value!r}: a run of TextThenImage draws the codes of images for names of its "
                    f"data (objective.pictures); it must be {plain!r}"
                )
        if not self.judge and self.candidates != 1:
            raise ValueError(
                f"objective.candidates = {self.candidates} with objective.judge = '': nothing ranks them; give a run of "
                "configs/clip_emoji.py as objective.judge, or 1"
            )

    def check_model(self, model: ModelConfig) -> None:
        """Raises a one-line ValueError for a model that is not a decoder of tokens alone."""
        if tuple(model.inputs()) != ("tokens",) or model.make().make_cache is None:
            raise ValueError(
                f"model: TextThenImage trains a decoder that reads tokens alone, such as GPT2Config; {type(model).__name__} "
                "is none"
            )

    def check_data(self, data: Any) -> None:
        """Raises a one-line ValueError for images or weights that do not fit the autoencoder's
        codes.
        """
        own, row = self.autoencoder_config(), data.row()
        given = row.get("image")
        if "weights" in row and row["weights"].shape:
            raise ValueError(
                f"data: {type(data).__name__} weights each token; TextThenImage needs one weight a row, as ImageTextData has"
            )
        if given is not None and tuple(given.shape) != tuple(own.image_shape):
            raise ValueError(
                f"objective.autoencoder = {self.autoencoder!r} reads images of shape {tuple(own.image_shape)}, and the "
                f"data's have {tuple(given.shape)}"
            )
        if getattr(data, "max_shift", 0):
            raise ValueError(
                f"data.max_shift = {data.max_shift}: TextThenImage makes the codes of each image once, so an image cannot "
                "change from step to step; it must be 0"
            )

    def requirements(self, data: Any) -> dict[str, int]:
        own = self.autoencoder_config()
        length = data.row()["tokens"].shape[0] + own.num_tokens
        return {"vocab_size": own.num_codes + data.open_tokenizer().vocab_size, "max_seq_len": length}

    # ---- the codes

    def computed(self) -> dict[str, Field]:
        return {CODES: Field((self.autoencoder_config().num_tokens,), "int32")}

    def computed_by(self, model: ModelConfig) -> Any:
        return self.autoencoder_config(), self.offset, self.scale

    def compute(self, model, params, batch) -> jax.Array:
        constants = params[AUTOENCODER]
        image = self.moved(batch["image"]).astype(jax.tree.leaves(constants)[0].dtype)
        ids = self.autoencoder_config().encode(constants, image)
        return ids.reshape(len(ids), -1)

    def images(self, params: Tree, codes: jax.Array) -> jax.Array:
        """Decodes codes (B, N) to images (B, H, W, C) float32 in 0 .. 1."""
        own, constants = self.autoencoder_config(), params[AUTOENCODER]
        return self.shown(own.decode(constants, codes.reshape(-1, *own.latent_shape[:2])))

    # ---- the loss

    def prompt(self, tokens: Any) -> Any:
        """Renumbers text tokens (..., T): the model's first num_codes tokens are codes."""
        return tokens + self.autoencoder_config().num_codes

    def inputs(self, batch, rng):
        if CODES not in batch:
            raise ValueError("the batch has no 'codes'; a run of TextThenImage computes them before its first step")
        codes, weights = batch[CODES], batch["weights"].astype(jnp.float32)[:, None]
        tokens = jnp.concatenate([self.prompt(batch["tokens"]), codes], axis=1)
        # Each place has the token after it as its target. The last one has none.
        spoken = weights * (batch["segment_ids"][:, 1:] > 0)
        drawn, before = jnp.broadcast_to(weights, codes.shape), batch["tokens"].shape[1] - 1
        return {
            "tokens": tokens,
            "targets": jnp.pad(tokens[:, 1:], ((0, 0), (0, 1))),
            "of_text": jnp.pad(spoken, ((0, 0), (0, codes.shape[1] + 1))),
            "of_image": jnp.pad(drawn, ((0, 0), (before, 1))),
            "weights": batch["weights"],
        }, rng

    def score(self, out, batch, *, params, train) -> Loss:
        nats, _, likeliest = of_tokens(out, out.value, batch["targets"], self.logits)
        weights = batch["weights"].astype(jnp.float32)
        text, image = (mean_of(nats, batch[name]) for name in ("of_text", "of_image"))
        mean = weighted(self.image_weight * image + (1 - self.image_weight) * text, weights)
        found = {"loss": mean, "image_loss": weighted(image, weights), "text_loss": weighted(text, weights)}
        for name, value in out.losses.items():
            found[name] = Mean(value * mean.count, mean.count)
            mean = Mean(mean.total + value * mean.count, mean.count)
        if not train:
            found["accuracy"] = weighted(likeliest == batch["targets"], batch["of_image"])
        return Loss(mean, found, out.updates)

    def summarize(self, metrics):
        found = super().summarize(metrics)
        return found | {"image_perplexity": math.exp(min(found["image_loss"], 700.0))}


def mean_of(nats: jax.Array, weights: jax.Array) -> jax.Array:
    """(B,): each row's mean of values (B, T) under weights (B, T); 0 without any weight."""
    return jnp.sum(nats * weights, axis=1) / divisor(jnp.sum(weights, axis=1))
