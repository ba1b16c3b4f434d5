"""Knowledge distillation: a student learns a teacher's next-token distribution, and the text
itself.
"""

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from bigmodel_jax.core import metrics, params
from bigmodel_jax.core.metrics import Mean, Metric
from bigmodel_jax.core.params import Param, Tree, normal
from bigmodel_jax.core.ranges import CountOrZero, NonNegative, Positive, ProperShare, Share
from bigmodel_jax.core.storage import Dense
from bigmodel_jax.models import ModelConfig
from bigmodel_jax.models.base import Model, Out
from bigmodel_jax.models.bases import BaseConfig
from bigmodel_jax.nn import head_losses, linear, taps
from bigmodel_jax.nn.head_losses import Kind, Rest
from bigmodel_jax.objectives.base import Loss
from bigmodel_jax.objectives.cross_entropy import of_tokens
from bigmodel_jax.objectives.language_model import NextToken
from bigmodel_jax.objectives.other_run import model_of

TEACHER, HIDDEN_MAP = "teacher", "hidden_map"  # names of branches beside the student's parameters


@dataclasses.dataclass(frozen=True)
class Distillation(NextToken):
    """(1 - alpha) times next-token cross-entropy plus alpha times the divergence from the teacher.

    The unit is nats per target. Batch: as for `NextToken`. Targets of weight 0 do not count.
    The teacher is constant and reads the same tokens. It may have another architecture and width,
    but needs the same vocabulary. The metric "loss" is the cross-entropy alone.

    kind, beta and temperature are those of nn/head_losses.py `divergence` (GKD, arXiv:2306.13649).
    The divergence is not multiplied by the squared temperature. top_k keeps only the teacher's
    likeliest tokens (0 = all), and rest says what happens with the others.

    student_layers and teacher_layers are layers, counted from 0, whose outputs are compared in
    pairs. Where the widths differ, one trained linear map takes the student's outputs to the
    teacher's width. The error is the mean squared difference of the two outputs after each is
    divided by its root mean square, which equals 2 (1 - cosine) (DistilBERT, arXiv:1910.01108,
    section 3). Without the division (TinyBERT, arXiv:1909.10351) a decoder's first token would
    outweigh all others: its outputs are 10,000 times larger in SmolLM2.
    """

    teacher: str = ""  # a run's folder, as train.init_from writes it
    teacher_model: ModelConfig | None = None  # the teacher's model; None = read from the folder's config.json
    teacher_storage: BaseConfig = BaseConfig()  # how the teacher's weights are stored, as in `adapters.base`
    teacher_dtype: Literal["bfloat16", "float32"] = "bfloat16"  # of weights that `teacher_storage` leaves in float32
    kind: Kind = "forward_kl"  # the divergence
    beta: ProperShare = 0.5  # the teacher's share of the mixture, for kind "jsd"
    temperature: Positive = 1.0  # both models' logits are divided by it
    alpha: Share = 0.5  # weight of the divergence; the cross-entropy has 1 - alpha
    top_k: CountOrZero = 0  # how many of the teacher's likeliest tokens count; 0 = all
    rest: Rest = "bucket"  # how the other tokens count if top_k is above 0
    student_layers: tuple[CountOrZero, ...] = ()  # layers whose outputs are compared, from 0
    teacher_layers: tuple[CountOrZero, ...] = ()  # the teacher's layers that they are compared with
    hidden_weight: NonNegative = 1.0  # weight of the error of hidden states

    metrics: ClassVar[tuple[Metric, ...]] = (
        *NextToken.metrics,
        Metric("divergence", "Divergence from the teacher", "less", "{:.3f}", "nats per token"),
        Metric("hidden", "Error of hidden states", "less", "{:.3f}", "2 (1 - cosine)"),
        Metric("agreement", "Likeliest token is the teacher's", "more", "{:.2%}"),
        Metric("teacher_loss", "Teacher's loss", "less", "{:.3f}", "nats per token", beside="loss", label="teacher"),
    )

    # ---------------------------------------------------------------- the teacher

    def sources(self) -> dict[str, str]:
        return {TEACHER: self.teacher} if self.teacher else {}

    def parameters(self, model: ModelConfig) -> Tree:
        teacher = self.teacher_config()
        self._check(model, teacher)
        stored = self.teacher_storage.of_another(teacher.make().spec, "objective.teacher_storage")
        spec = {TEACHER: params.map_spec(self._as_kept, stored)}
        if self.student_layers and model.embed_dim != teacher.embed_dim:
            init = normal(model.embed_dim**-0.5)
            spec[HIDDEN_MAP] = linear.linear_spec(model.embed_dim, teacher.embed_dim, axes=("embed", None), init=init)
        return spec

    def _as_kept(self, p: Param) -> Param:
        is_plain = p.storage == Dense() and p.dtype == "float32"
        return dataclasses.replace(p, dtype=self.teacher_dtype) if is_plain else p

    def teacher_config(self) -> ModelConfig:
        """The teacher's model config. Raises a one-line ValueError where it cannot be found."""
        return model_of(self.teacher, "objective.teacher", self.teacher_model)

    def _check(self, model: ModelConfig, teacher: ModelConfig) -> None:
        sizes = [getattr(config, "vocab_size", None) for config in (model, teacher)]
        if None in sizes or sizes[0] != sizes[1]:
            raise ValueError(
                f"objective.teacher = {self.teacher!r}: the teacher has another vocabulary, of {sizes[1]} tokens, and "
                f"model.vocab_size = {sizes[0]}"
            )
        if len(self.student_layers) != len(self.teacher_layers):
            raise ValueError(
                f"objective.student_layers = {self.student_layers} and objective.teacher_layers = {self.teacher_layers} "
                "differ in length; the layers are compared in pairs"
            )
        for name, layers, config in (
            ("student", self.student_layers, model),
            ("teacher", self.teacher_layers, teacher),
        ):
            num = config.num_layers // config.BLOCK_LAYERS  # the states after each block
            if wrong := [n for n in layers if not 0 <= n < num]:
                raise ValueError(f"objective.{name}_layers = {layers}: {wrong[0]} is not from 0 to {num - 1}")
        if self.top_k and self.top_k >= sizes[0]:
            raise ValueError(f"objective.top_k = {self.top_k}: it must be below the vocabulary, {sizes[0]}; 0 = all")

    # ---------------------------------------------------------------- the loss

    def loss(self, model: Model, params: Tree, batch: dict, *, rng: jax.Array | None, train: bool) -> Loss:
        batch, rng = self.inputs(batch, rng)
        out, states = self._run(model, params, batch, rng=rng, train=train)
        teacher, config = jax.lax.stop_gradient(params[TEACHER]), self.teacher_config()
        if batch["tokens"].shape[1] > getattr(config, "max_seq_len", batch["tokens"].shape[1]):
            raise ValueError(
                f"objective.teacher = {self.teacher!r} takes {config.max_seq_len} tokens, and a row has "
                f"{batch['tokens'].shape[1]}; lower data.seq_len"
            )
        # Without a random key and with train=False, the teacher runs without dropout.
        theirs = self._run(config.make(), teacher, batch, rng=None, train=False)
        theirs, teacher_states = jax.lax.stop_gradient(theirs)
        base, weights = self.of_text(out, batch, train, 1.0 - self.alpha), batch["weights"].astype(jnp.float32)
        found = {"divergence": metrics.weighted(self._divergence(out, theirs), weights)}
        if self.student_layers:
            found["hidden"] = metrics.weighted(self.hidden_error(params, states, teacher_states), weights)
        total = base.mean.total + self.alpha * found["divergence"].total
        if self.student_layers:
            total = total + self.hidden_weight * found["hidden"].total
        found["distillation_loss"] = mean = Mean(total, base.mean.count)
        if not train:
            found |= self._beside(out, theirs, batch, weights)
        return Loss(mean, base.metrics | found, base.updates)

    def _run(self, model: Model, params: Tree, batch: dict, **how) -> tuple[Out, jax.Array | None]:
        """The model's output, and the outputs of its layers (L, B, T, D) if the loss needs them."""
        if not self.student_layers:
            return model.apply(params, batch, **how), None
        out, found = taps.tapped(model.apply, "residual")(params, batch, **how)
        return out, found["residual"]

    def _divergence(self, out: Out, theirs: Out) -> jax.Array:
        for whose, head in (("model", out.head), ("teacher", theirs.head)):
            if head is None:
                raise ValueError(
                    f"objective: Distillation needs models that compute logits from a table of tokens; the {whose} does not"
                )
        how = {"beta": self.beta, "temperature": self.temperature, "top_k": self.top_k, "rest": self.rest}
        return head_losses.divergence(out.head, theirs.head, self.kind, form=self.logits, **how)

    def hidden_error(self, params: Tree, states: jax.Array, teacher_states: jax.Array) -> jax.Array:
        """(B, T) float32: the error of hidden states, averaged over pairs of layers and over the
        width.
        """
        mine, theirs = states[jnp.array(self.student_layers)], teacher_states[jnp.array(self.teacher_layers)]
        mine = linear.linear(params[HIDDEN_MAP], mine) if HIDDEN_MAP in params else mine
        return jnp.mean(jnp.square(_of_length_one(mine) - _of_length_one(theirs)), axis=(0, -1))

    def _beside(self, out: Out, theirs: Out, batch: dict, weights: jax.Array) -> dict[str, Mean]:
        """The metrics about the teacher that only an evaluation reports."""
        likeliest = of_tokens(out, out.value, batch["targets"], self.logits)[2]
        nats, _, best = of_tokens(theirs, theirs.value, batch["targets"], self.logits)
        return {
            "teacher_loss": metrics.weighted(nats, weights),
            "agreement": metrics.weighted(likeliest == best, weights),
        }


def _of_length_one(x: jax.Array) -> jax.Array:
    """x (..., D) in float32, divided by its root mean square."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6)
