"""Routing to experts by sigmoid affinities, balanced by a bias per expert that has no gradient.

The bias replaces a large auxiliary loss (DeepSeek-V3, arXiv:2412.19437, section 2.1.2;
arXiv:2408.15664).

Shapes: B batch, T tokens, D embed, E experts, k choices per token.
"""

import jax
import jax.numpy as jnp

from bigmodel_jax.core import params
from bigmodel_jax.core.metrics import Mean
from bigmodel_jax.core.params import Init, Param, Tree, zeros
from bigmodel_jax.core.sharding import constrain
from bigmodel_jax.nn import linear
from bigmodel_jax.nn.experts import moe
from bigmodel_jax.nn.experts.moe import Routing

CHOICE_BIAS = "router/choice_bias"  # the bias's path below a stack of layers


def spec(dim: int, num_experts: int, *, init: Init) -> dict[str, Param]:
    """kernel (D, E), and choice_bias (E,), a statistic that only `updated_bias` changes."""
    bias = Param((num_experts,), (None,), zeros(), kind="statistic")
    return {**moe.router_spec(dim, num_experts, init=init), "choice_bias": bias}


def wrong_size(
    num_experts: int, num_groups: int, groups_per_token: int, experts_per_token: int
) -> tuple[str, str] | None:
    """The name of the first number that does not fit the others, and the values it may have."""
    if num_groups < 1 or num_experts % num_groups:
        return "num_groups", f"divisors of num_experts = {num_experts}"
    size = num_experts // num_groups
    if num_groups > 1 and size < 2:
        return "num_groups", "two or more experts in a group: its two best stand for it"
    if not 1 <= groups_per_token <= num_groups:
        return "groups_per_token", f"1 to num_groups = {num_groups}"
    if not 1 <= experts_per_token <= groups_per_token * size:
        return "experts_per_token", f"1 to {groups_per_token * size}, the experts of a token's groups"
    return None


def route(
    p: dict,
    x_BTD: jax.Array,
    num_chosen: int,
    *,
    num_groups: int = 1,
    num_chosen_groups: int = 1,
    normalize: bool = True,
    scale: float = 1.0,
) -> Routing:
    """The `num_chosen` experts of highest affinity + bias. Weights come from the affinities alone.

    num_groups: neighbouring experts form groups (on one node, say), and a token goes only to its
    `num_chosen_groups` best groups, ranked by the sum of a group's two best experts. normalize:
    weights sum to 1 before they are multiplied by `scale`.
    """
    # The router computes in float32, because near ties decide which expert gets a token.
    logits = linear.project(x_BTD.astype(jnp.float32), p["kernel"].astype(jnp.float32))
    scores = jax.nn.sigmoid(constrain(logits, "batch", "seq", None))
    # The choice has no gradient. The weights of the experts are made of `scores` below, and have a
    # gradient.
    choice = jax.lax.stop_gradient(scores) + p["choice_bias"].astype(jnp.float32)
    if num_groups > num_chosen_groups:
        choice = _within_best_groups(choice, num_groups, num_chosen_groups)
    experts = moe.top_k(choice, num_chosen)[1]
    weights = jnp.take_along_axis(scores, experts, axis=-1)
    if normalize:
        # The sum of affinities may underflow to 0, so 1e-20 is added, as in DeepSeek-V3's code.
        weights = weights / (weights.sum(-1, keepdims=True) + 1e-20)
    return Routing(logits, scores, experts, weights * scale)


def _within_best_groups(choice, num_groups, num_chosen_groups):
    """`choice`, with -inf for the experts outside the best groups."""
    groups = choice.reshape(*choice.shape[:-1], num_groups, -1)
    strength = moe.top_k(groups, 2)[0].sum(-1)
    best = moe.top_k(strength, num_chosen_groups)[1]
    kept = jax.nn.one_hot(best, num_groups).sum(-2) > 0
    return jnp.where(kept[..., None], groups, -jnp.inf).reshape(choice.shape)


def num_tokens(routing: Routing, mask_BT: jax.Array) -> jax.Array:
    """The number of tokens sent to each expert, (E,) float32, without padding (mask False)."""
    chosen = jax.nn.one_hot(routing.experts, routing.logits.shape[-1], dtype=jnp.float32).sum(-2)
    return jnp.einsum("bt,bte->e", mask_BT.astype(jnp.float32), chosen)


def updated_bias(bias: jax.Array, num_tokens: jax.Array, rate: float) -> jax.Array:
    """The bias plus rate for experts with fewer tokens than the mean, minus rate for the others.

    Both arrays are (..., E). An expert with exactly the mean keeps its bias.
    """
    return bias + rate * jnp.sign(num_tokens.mean(-1, keepdims=True) - num_tokens)


def advance(rate: float, biases: Tree, loads: dict[str, jax.Array]) -> Tree:
    """The biases after a step; loads: the tokens sent to each expert, by the path of its bias."""
    flat = params.paths(biases)
    return params.from_paths(flat | {path: updated_bias(flat[path], n, rate) for path, n in loads.items()})


def balance_loss(layers: list[Mean], share: jax.Array | float) -> jax.Array:
    """The sum of all layers' `sequence_balance`, each stacked; share: `moe.token_share`."""
    return share * sum(jnp.sum(mean.total / jnp.maximum(mean.count, 1.0)) for mean in layers)


def sequence_balance(routing: Routing, mask_BT: jax.Array) -> Mean:
    """sum_e f_e P_e of each row, averaged over rows by their length; 1 if a row is spread evenly.

    arXiv:2412.19437, eq. 17-20. f_e is E / k times the share of tokens for which e is among the k
    experts of highest affinity, without the bias. P_e is e's mean share of a token's affinities.
    Padding does not count.
    """
    E, k = routing.probs.shape[-1], routing.experts.shape[-1]
    mask = mask_BT.astype(jnp.float32)
    length = mask.sum(-1)
    share = mask / jnp.maximum(length, 1.0)[:, None]
    likeliest = routing.probs >= moe.top_k(routing.probs, k)[0][..., -1:]
    affinity = routing.probs / (routing.probs.sum(-1, keepdims=True) + 1e-20)
    f = jnp.einsum("bt,bte->be", share, likeliest.astype(jnp.float32)) * E / k
    rows = jnp.sum(f * jnp.einsum("bt,bte->be", share, affinity), axis=-1)
    return Mean(jnp.sum(rows * length), length.sum())
