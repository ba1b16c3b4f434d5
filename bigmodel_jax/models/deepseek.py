"""DeepSeek-V3: latent attention, routed and shared experts, multi-token training.

Shapes: B batch, T tokens, D embed, R latent, r rotary dimensions, V vocab, M modules ahead.
"""

import dataclasses
import functools
from typing import ClassVar

import jax

from bigmodel_jax.core import params
from bigmodel_jax.core.params import normal
from bigmodel_jax.core.ranges import Count, CountOrZero, Depth, NonNegative, Positive
from bigmodel_jax.core.sharding import constrain
from bigmodel_jax.models import decoder
from bigmodel_jax.models.base import Entry, Model, ModelConfig, Out, Parts, parts_of
from bigmodel_jax.models.compute import Compute
from bigmodel_jax.models.sizes import AtMost, Cut, Multiple
from bigmodel_jax.nn import feedforward, linear, multi_token, norm, position, stack
from bigmodel_jax.nn.attention import latent_attention
from bigmodel_jax.nn.attention.attention import Where
from bigmodel_jax.nn.experts import bias_routing, moe
from bigmodel_jax.nn.experts.bias_routing import CHOICE_BIAS
from bigmodel_jax.nn.head import Head


@dataclasses.dataclass(frozen=True)
class DeepseekConfig(ModelConfig):
    """DeepSeek-V3 (arXiv:2412.19437) as in transformers' DeepseekV3ForCausalLM; V3's defaults."""

    vocab_size: Count = 129_280  # tokens in the vocabulary
    num_layers: Depth = 61  # number of blocks
    num_dense_layers: CountOrZero = 3  # the first layers, which have no experts
    embed_dim: Count = 7168  # width of the residual stream
    num_heads: Count = 128  # attention heads of a layer
    q_lora_rank: CountOrZero = 1536  # dimensions of the queries' latent; 0 = queries without a latent
    kv_lora_rank: Count = 512  # dimensions of the latent of keys and values
    qk_nope_head_dim: Count = 128  # dimensions of a head's queries and keys without rotary positions
    qk_rope_head_dim: Count = 64  # dimensions of a head's queries and keys with rotary positions
    v_head_dim: Count = 128  # dimensions of a head's values
    mlp_dim: Count = 18_432  # hidden width of a dense layer's feed-forward part
    expert_dim: Count = 2048  # hidden width of one expert
    num_experts: Count = 256  # routed experts of a layer
    num_shared_experts: CountOrZero = 1  # experts that process every token
    experts_per_token: Count = 8  # routed experts that process a token
    num_groups: Count = 8  # groups of experts
    groups_per_token: Count = 4  # groups from which a token's experts are chosen
    normalize_weights: bool = True  # whether the weights of a token's experts sum to 1
    routed_scale: Positive = 2.5  # factor of the routed experts' output
    expert_buffer: NonNegative = 0.0
    "in training, rows for a device's experts, relative to an even share; 0 = no token is dropped"
    bias_update_rate: NonNegative = 0.001  # step size of the routing biases
    balance_loss: NonNegative = 1e-4  # weight of the loss that balances experts within a sequence
    num_mtp_layers: CountOrZero = 0  # modules that predict one token further each, in training alone
    mtp_loss: NonNegative = 0.3  # weight of these modules' mean loss
    max_seq_len: Count = 4096  # longest sequence, in tokens
    rope_theta: Positive = 10_000.0  # base of the rotary frequencies
    rope_scaling: position.RopeScaling = position.RopeScaling()
    mscale: NonNegative = 0.0  # cos and sin are multiplied by mscale's scale over mscale_all_dim's scale
    mscale_all_dim: NonNegative = 0.0  # logits are multiplied by (0.1 mscale_all_dim ln(factor) + 1)^2
    norm_eps: NonNegative = 1e-6  # added to the mean square in every RMSNorm
    init_std: NonNegative = 0.006  # standard deviation of the initial weights
    compute: Compute = Compute()
    pad_vocab: Count = 1  # the tables' rows are padded to a multiple of this; padding rows are never tokens

    SIZES: ClassVar[tuple] = (
        *decoder.SIZES,
        Multiple("qk_rope_head_dim", 2, "rotary positions turn pairs of dimensions"),
        AtMost("num_dense_layers", "num_layers"),
        Cut("num_experts", "experts"),
        Cut("expert_dim", "mlp"),
    )

    def inputs(self):
        return {"tokens": None}

    def make(self) -> Model:
        return Model(
            spec=spec(self),
            apply=parts(self),
            make_cache=functools.partial(make_cache, self),
            advance=functools.partial(bias_routing.advance, self.bias_update_rate),
        )

    @property
    def num_kv_heads(self) -> int:
        return self.num_heads

    @property
    def head_dim(self) -> int:
        return self.qk_rope_head_dim

    def validate(self, parallel) -> None:
        super().validate(parallel)
        sizes = (self.num_experts, self.num_groups, self.groups_per_token, self.experts_per_token)
        wrong = bias_routing.wrong_size(*sizes)
        if wrong:
            raise ValueError(f"model.{wrong[0]} = {getattr(self, wrong[0])}; allowed: {wrong[1]}")

    @classmethod
    def tiny(cls) -> "DeepseekConfig":
        sizes = {"vocab_size": 64, "num_layers": 3, "num_dense_layers": 1, "max_seq_len": 32}
        sizes |= {"embed_dim": 32, "mlp_dim": 64}
        ranks = {"num_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16}
        heads = {"qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8}
        experts = {"expert_dim": 16, "num_experts": 8, "experts_per_token": 2, "num_groups": 4, "groups_per_token": 2}
        return cls(**sizes, **ranks, **heads, **experts, init_std=0.02)


def block_spec(cfg: DeepseekConfig, *, dense: bool) -> params.Tree:
    """One layer: latent attention, then a SwiGLU layer or a router with its experts."""
    init = normal(cfg.init_std)
    tree = {
        "attn_norm": norm.rms_spec(cfg.embed_dim),
        "attn": latent_attention.spec(
            cfg.embed_dim,
            cfg.num_heads,
            q_lora_rank=cfg.q_lora_rank,
            kv_lora_rank=cfg.kv_lora_rank,
            nope_dim=cfg.qk_nope_head_dim,
            rope_dim=cfg.qk_rope_head_dim,
            v_dim=cfg.v_head_dim,
            init=init,
            out_init=init,
        ),
        "mlp_norm": norm.rms_spec(cfg.embed_dim),
    }
    if dense:
        return tree | {"mlp": feedforward.swiglu_spec(cfg.embed_dim, cfg.mlp_dim, init=init, out_init=init)}
    shared_dim = cfg.num_shared_experts * cfg.expert_dim
    return tree | {
        "router": bias_routing.spec(cfg.embed_dim, cfg.num_experts, init=init),
        "experts": moe.spec(cfg.num_experts, cfg.embed_dim, cfg.expert_dim, init=init, out_init=init),
        "shared": feedforward.swiglu_spec(cfg.embed_dim, shared_dim, init=init, out_init=init),
    }


def spec(cfg: DeepseekConfig) -> params.Tree:
    """The tables, the dense layers, the layers with experts, and the multi-token modules "mtp"."""
    init = normal(cfg.init_std)
    sparse = cfg.num_layers - cfg.num_dense_layers
    tree = {
        "embed": decoder.table_spec(cfg, init),
        "norm": norm.rms_spec(cfg.embed_dim),
        "head": decoder.table_spec(cfg, init),
    }
    if cfg.num_dense_layers:
        tree["dense_layers"] = params.stack(block_spec(cfg, dense=True), cfg.num_dense_layers, axis=None)
    if sparse:
        tree["layers"] = params.stack(block_spec(cfg, dense=False), sparse)
    if cfg.num_mtp_layers:
        tree["mtp"] = params.stack(
            multi_token.spec(block_spec(cfg, dense=False), cfg.embed_dim, init=init), cfg.num_mtp_layers, axis=None
        )
    return tree


def make_cache(cfg: DeepseekConfig, batch_size: int, length: int, dtype) -> decoder.Cache:
    """The declaration of a cache: a layer keeps a latent (R) and a rotary key (r) per token."""
    stacks = {"dense_layers": cfg.num_dense_layers, "layers": cfg.num_layers - cfg.num_dense_layers}
    shape = (batch_size, length, cfg.kv_lora_rank, cfg.qk_rope_head_dim)
    layers = {name: latent_attention.empty_cache(n, *shape, dtype) for name, n in stacks.items() if n}
    return decoder.ring(layers, batch_size, length)


def rope_angles(cfg: DeepseekConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """cos and sin of the rotary positions, scaled by the ratio of the two mscales."""
    scaling = cfg.rope_scaling
    if cfg.mscale and cfg.mscale_all_dim and not scaling.attention_factor:
        factor = position.mscale(scaling.factor, cfg.mscale) / position.mscale(scaling.factor, cfg.mscale_all_dim)
        scaling = dataclasses.replace(scaling, attention_factor=factor)
    return position.rope_angles(positions, cfg.qk_rope_head_dim, theta=cfg.rope_theta, scaling=scaling)


def attend(cfg: DeepseekConfig, p, x_BTD, cache, q_where, k_where, angles, index):
    """The attention half of a block, with its residual: (x (B, T, D), the layer's cache)."""
    h = norm.rms(p["attn_norm"], x_BTD, eps=cfg.norm_eps)
    q, kv = latent_attention.queries(p["attn"], h, angles), latent_attention.latents(p["attn"], h, angles)
    absorb = False
    if cache is not None:
        cache = latent_attention.update_cache(cache, kv, index)
        kv = (cache["latent"], cache["k_rope"])
        absorb = latent_attention.absorbing_is_cheaper(
            x_BTD.shape[1], cfg.kv_lora_rank, cfg.qk_nope_head_dim, cfg.v_head_dim
        )
    scale = (cfg.qk_nope_head_dim + cfg.qk_rope_head_dim) ** -0.5
    if cfg.rope_scaling.kind != "none" and cfg.mscale_all_dim:
        scale *= position.mscale(cfg.rope_scaling.factor, cfg.mscale_all_dim) ** 2
    y = latent_attention.attend(
        p["attn"], q, kv, q_where, k_where, scale=scale, absorb=absorb, implementation=cfg.compute.attention
    )
    return constrain(x_BTD + y, "batch", "seq", "embed"), cache


def mixture(cfg: DeepseekConfig, p, h_BTD, mask_BT, *, train: bool):
    """Returns (shared plus routed experts (B, T, D), the routing's token counts and balance)."""
    routing = bias_routing.route(
        p["router"],
        h_BTD,
        cfg.experts_per_token,
        num_groups=cfg.num_groups,
        num_chosen_groups=cfg.groups_per_token,
        normalize=cfg.normalize_weights,
        scale=cfg.routed_scale,
    )
    # Only training drops tokens: elsewhere the output must not depend on other rows.
    y = moe.experts(p["experts"], h_BTD, routing, mask_BT, buffer=cfg.expert_buffer if train else 0.0)
    y += feedforward.swiglu(p["shared"], h_BTD)
    balance = bias_routing.sequence_balance(routing, mask_BT)
    return y, {"num_tokens": bias_routing.num_tokens(routing, mask_BT), "balance": balance}


def block(cfg: DeepseekConfig, p, x_BTD, cache, q_where, *where, train: bool):
    """One layer of either kind: (x (B, T, D), (the layer's cache, what its routing found))."""
    x_BTD, cache = attend(cfg, p, x_BTD, cache, q_where, *where)
    h, mask_BT = norm.rms(p["mlp_norm"], x_BTD, eps=cfg.norm_eps), q_where.segments > 0
    y, routed = (feedforward.swiglu(p["mlp"], h), {}) if "mlp" in p else mixture(cfg, p, h, mask_BT, train=train)
    return constrain(x_BTD + y, "batch", "seq", "embed"), (cache, routed)


def parts(cfg: DeepseekConfig) -> Parts:
    """The layers with experts form the stack. If there are none, the dense layers do."""
    return parts_of(cfg, enter, block, leave, "dense_layers" if cfg.num_dense_layers == cfg.num_layers else "layers")


def enter(cfg: DeepseekConfig, p, batch, *, rng, train: bool, cache) -> Entry:
    """Embeds a batch: tokens, positions and segment_ids (B, T), which follow the cache's tokens."""
    q_where, k_where, cache = decoder.where(batch, cache)
    shared, whole = (q_where, k_where, rope_angles(cfg, q_where.positions)), (cache and cache.index,)
    x_BTD = constrain(linear.embed(p["embed"], batch["tokens"]), "batch", "seq", "embed")
    caches = dict(cache.layers) if cache else {}
    if "dense_layers" in p:
        run = parts(cfg).layers(stack.sequential, whole, train)
        x_BTD, (caches["dense_layers"], _) = run(p["dense_layers"], x_BTD, caches.get("dense_layers"), shared=shared)
    return Entry(x_BTD, caches.get(parts(cfg).stack), shared, whole, (cache, caches))


def leave(cfg: DeepseekConfig, p, entry: Entry, x_BTD, ys, batch, *, train: bool) -> Out:
    """Logits (B, T, V) float32; in training also losses and the routing biases' token counts.
    With num_mtp_layers, the batch must hold targets and weights (B, T)."""
    (new, found), (cache, caches) = ys, entry.kept
    x_BTD = norm.rms(p["norm"], x_BTD, eps=cfg.norm_eps)
    head = Head(x_BTD, p["head"]["table"], vocab=cfg.vocab_size)
    if not train:
        caches = caches | {parts(cfg).stack: new}
        return Out(head.logits(), cache=cache and cache.advance(caches, batch["tokens"].shape[1]), head=head)
    losses, routed = {}, {"layers": found}
    if cfg.num_mtp_layers:
        q_where, _, angles = entry.shared
        further, routed["mtp"] = further_head(cfg, p, batch["tokens"], x_BTD, q_where, angles)
        loss = multi_token.loss(further, batch["targets"], batch["weights"], q_where.segments)
        losses["mtp_loss"] = cfg.mtp_loss * loss
    routed = {name: of_layers for name, of_layers in routed.items() if of_layers}
    loads = {f"{name}/{CHOICE_BIAS}": of_layers["num_tokens"] for name, of_layers in routed.items()}
    if cfg.balance_loss and routed:
        balances = [of_layers["balance"] for of_layers in routed.values()]
        losses["balance_loss"] = cfg.balance_loss * bias_routing.balance_loss(balances, moe.token_share(batch))
    return Out(head.logits(), updates=loads, losses=losses, head=head)


def further_head(cfg: DeepseekConfig, p, tokens, hidden_BTD, at: Where, angles):
    """Returns (the modules' head with x (M, B, T, D), what their routing found); hidden is normed.
    The modules share the decoder's positions: rotary positions depend only on differences."""

    def run(layer, x, segments):
        at_tokens = Where(at.positions, segments)
        x, (_, routed) = block(cfg, layer, x, None, at_tokens, at_tokens, angles, None, train=True)
        return x, routed

    embed = functools.partial(linear.embed, p["embed"])
    options = {"eps": cfg.norm_eps, "remat": cfg.compute.remat, "unroll": cfg.compute.unroll}
    further, routed = multi_token.hidden(p["mtp"], embed, run, tokens, hidden_BTD, at.segments, **options)
    return Head(further, p["head"]["table"], vocab=cfg.vocab_size), routed


PRESETS = {
    "deepseek-v3": DeepseekConfig(
        max_seq_len=163_840,
        rope_scaling=position.RopeScaling(kind="yarn", factor=40.0, original_max_seq_len=4096),
        mscale=1.0,
        mscale_all_dim=1.0,
    ),
    "moonlight-16b-a3b": DeepseekConfig(
        vocab_size=163_840,
        num_layers=27,
        num_dense_layers=1,
        embed_dim=2048,
        num_heads=16,
        q_lora_rank=0,
        mlp_dim=11_264,
        expert_dim=1408,
        num_experts=64,
        num_shared_experts=2,
        experts_per_token=6,
        num_groups=1,
        groups_per_token=1,
        routed_scale=2.446,
        max_seq_len=8192,
        rope_theta=50_000.0,
        norm_eps=1e-5,
        init_std=0.02,
    ),
}
