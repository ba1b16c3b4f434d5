"""Mixture of experts: a router sends each token to k of E feed-forward networks (arXiv:1701.06538).

`experts` chooses among three forms of the same sum. `dense` computes every expert for every token.
`grouped` computes the chosen experts alone, whatever the balance. `capacity` gives each expert C
places per row of the batch, and drops further tokens.

Shapes: B batch, T tokens, D embed, E experts, k choices per token, F mlp, C places per expert, N
rows, one per token and choice, sorted by expert.
"""

import functools
import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from bigmodel_jax.core import sharding
from bigmodel_jax.core.metrics import divisor
from bigmodel_jax.core.params import Init, Param, zeros
from bigmodel_jax.core.sharding import axis_names, constrain
from bigmodel_jax.nn import linear, recompute, shards, stored
from bigmodel_jax.nn.experts import expert_exchange, hopper

Implementation = Literal["auto", "dense", "grouped"]
Activation = Callable[[jax.Array, jax.Array], jax.Array]


class Routing(NamedTuple):
    """The experts of every token. Floats are float32, as near ties decide where a token goes.

    logits, probs: (B, T, E). experts: (B, T, k) int32, all different. weights: (B, T, k), the
    weights of these experts."""

    logits: jax.Array
    probs: jax.Array
    experts: jax.Array
    weights: jax.Array


class Load(NamedTuple):
    """Sums over the tokens of one layer, or stacked over layers.

    assigned: (E,), tokens sent to each expert. probs: (E,), router probability. log_z_squared: ().
    tokens: (), the number of tokens."""

    assigned: jax.Array
    probs: jax.Array
    log_z_squared: jax.Array
    tokens: jax.Array


def router_spec(dim: int, num_experts: int, *, init: Init, bias_init: Init | None = None) -> dict[str, Param]:
    """kernel (D, E) and, with `bias_init`, bias (E,)."""
    # The router is small and every token needs all of it, so it is not sharded along the experts.
    tree = linear.linear_spec(dim, num_experts, axes=("embed", None), init=init)
    return tree | {"bias": Param((num_experts,), (None,), bias_init)} if bias_init else tree


def spec(num_experts: int, dim: int, mlp_dim: int, *, init: Init, out_init: Init, bias: bool = False) -> dict:
    """gate and up (E, D, F), down (E, F, D); with `bias` also their biases, (E, F) and (E, D)."""
    inner, outer = ("experts", "embed", "mlp"), ("experts", "mlp", "embed")
    tree = {
        "gate": Param((num_experts, dim, mlp_dim), inner, init),
        "up": Param((num_experts, dim, mlp_dim), inner, init),
        "down": Param((num_experts, mlp_dim, dim), outer, out_init),
    }
    if bias:
        # A bias (E, F) is one vector per expert: it has no weight decay.
        tree["gate_bias"] = Param((num_experts, mlp_dim), ("experts", "mlp"), zeros(), decay=False)
        tree["up_bias"] = Param((num_experts, mlp_dim), ("experts", "mlp"), zeros(), decay=False)
        tree["down_bias"] = Param((num_experts, dim), ("experts", "embed"), zeros(), decay=False)
    return tree


def route(p: dict, x_BTD: jax.Array, num_chosen: int, *, normalize: bool = True) -> Routing:
    """Softmax over all experts, then the `num_chosen` likeliest. normalize: their weights sum to 1,
    as the softmax over their logits alone (Mixtral, arXiv:2401.04088)."""
    logits = linear.linear(jax.tree.map(lambda w: w.astype(jnp.float32), p), x_BTD.astype(jnp.float32))
    probs = jax.nn.softmax(constrain(logits, "batch", "seq", None), axis=-1)
    weights, experts_ = top_k(probs, num_chosen)
    if normalize:
        weights = weights / weights.sum(-1, keepdims=True)
    return Routing(logits, probs, experts_, weights)


def top_k(x_BT: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """`jax.lax.top_k` over the last dimension of (B, T, ...), on each device for its own
    tokens: XLA's partitioner would gather the tokens of all devices first."""
    tokens = P()
    if sharding.current_mesh() is not None:
        tokens = sharding.fitting_spec(x_BT.shape[:2], "batch", "seq")
    return shards.run(lambda x: tuple(jax.lax.top_k(x, k)), (tokens,), (tokens, tokens), x_BT)


def swiglu(gate: jax.Array, up: jax.Array) -> jax.Array:
    """silu(gate) * up."""
    return jax.nn.silu(gate) * up


@stored.takes_stored
def experts(
    p: dict,
    x_BTD: jax.Array,
    routing: Routing,
    mask_BT: jax.Array,
    *,
    capacity_factor: float = 0.0,
    buffer: float = 0.0,
    activation: Activation = swiglu,
    implementation: Implementation = "auto",
) -> jax.Array:
    """Returns (B, T, D): the weighted sum of the chosen experts' outputs, without the residual.

    mask_BT: False for padding, which takes no place. capacity_factor: 0 drops no token. Otherwise
    an expert has `capacity_factor` times its even share of places in a row, and tokens beyond get
    0. buffer: the rows that a device has room for, relative to an even share; 0 = all. It applies
    to the form without dropping, where tokens travel to the experts. implementation: the
    implementation of the form without dropping; "auto" is "dense" on CPUs, which have no grouped
    product.
    """
    activation = recompute.from_arguments(activation)
    if capacity_factor:
        return capacity(p, x_BTD, routing, mask_BT, capacity_factor, activation)
    if implementation == "auto":
        mesh = sharding.current_mesh()
        platform = mesh.devices.flat[0].platform if mesh else jax.default_backend()
        # If tokens travel to the experts, a device does not hold all experts, as "dense" needs.
        travelling = expert_exchange.axes(routing.logits.shape[-1], x_BTD.shape[0])
        implementation = "dense" if platform == "cpu" and not travelling else "grouped"
    if implementation == "dense":
        return dense(p, x_BTD, routing, activation)
    return grouped(p, x_BTD, routing, activation, buffer)


def _combine(routing: Routing) -> jax.Array:
    """Returns (B, T, E): each expert's weight, 0 if it was not chosen."""
    one_hot = jax.nn.one_hot(routing.experts, routing.logits.shape[-1], dtype=jnp.float32)
    return jnp.sum(one_hot * routing.weights[..., None], axis=-2)


def dense(p: dict, x_BTD: jax.Array, routing: Routing, activation: Activation = swiglu) -> jax.Array:
    """Every expert for every token: the definition, at E / k times the products of `grouped`."""
    combine = _combine(routing)

    def project_in(name):
        y = linear.project(x_BTD, p[name].swapaxes(0, 1))
        return y + p[f"{name}_bias"] if f"{name}_bias" in p else y

    hidden = activation(project_in("gate"), project_in("up"))
    # A token's weights are applied before the last product, so that this product also sums over
    # experts.
    hidden = (hidden * combine[..., None]).astype(x_BTD.dtype)
    y = linear.project(constrain(hidden, "batch", "seq", "experts", "mlp"), p["down"], num_dims=2)
    return y + (combine.astype(y.dtype) @ p["down_bias"] if "down_bias" in p else 0.0)


def grouped(
    p: dict, x_BTD: jax.Array, routing: Routing, activation: Activation = swiglu, buffer: float = 0.0
) -> jax.Array:
    """Tokens sorted by expert, then one product per group of rows (`ragged_dot`).

    MegaBlocks, arXiv:2211.15841. Each device computes the experts, and the experts' columns, that
    it holds. If the batch is sharded over the experts' axis, it does so for the tokens that others
    sent it; otherwise for its own tokens, and the results are summed.
    """
    weights = {name: w for name, w in p.items() if name != "down_bias"}
    if (mesh := sharding.current_mesh()) is None or mesh.size == 1:
        y = _sorted_by_expert(weights, x_BTD, routing.experts, routing.weights, activation=activation)
    else:
        y = _grouped_by_shard(mesh, weights, x_BTD, routing, activation, buffer)
    return y + (_combine(routing).astype(y.dtype) @ p["down_bias"] if "down_bias" in p else 0.0)


def _grouped_by_shard(mesh, weights, x_BTD, routing, activation, buffer):
    E, _, F = weights["gate"].shape
    travelling = expert_exchange.axes(E, len(x_BTD))
    e, f, b, t = sharding.fitting_spec((E, F, *x_BTD.shape[:2]), "experts", "mlp", "batch", "seq")
    if travelling:
        b = sharding.fitting_spec(x_BTD.shape[:1], "batch")[0]
    summed = (*(() if travelling else axis_names(e)), *axis_names(f))

    def one(weights, x, chosen, chosen_weights):
        if travelling:
            products = functools.partial(_products, weights, activation=activation)
            y = expert_exchange.apply(products, x, chosen, len(weights["gate"]), travelling, buffer)
            y = jnp.einsum("btkd,btk->btd", y, chosen_weights.astype(y.dtype))
        else:
            first = jax.lax.axis_index(e) * weights["gate"].shape[0] if e else 0
            y = _sorted_by_expert(weights, x, chosen, chosen_weights, first=first, activation=activation)
        return jax.lax.psum(y, summed) if summed else y

    by_name = {"gate": P(e, None, f), "up": P(e, None, f), "down": P(e, f), "gate_bias": P(e, f), "up_bias": P(e, f)}
    tokens = P(b, t)
    specs = ({name: by_name[name] for name in weights}, tokens, tokens, tokens)
    run = jax.shard_map(one, mesh=mesh, in_specs=specs, out_specs=tokens, check_vma=False)
    return run(weights, x_BTD, routing.experts, routing.weights)


def _sorted_by_expert(p, x_BTD, chosen, weights, *, first=0, activation):
    """The part of the sum that len(p["gate"]) experts, those from `first` on, contribute, without
    the last bias."""
    (B, T, D), k, E = x_BTD.shape, chosen.shape[-1], p["gate"].shape[0]
    ours = chosen.reshape(-1) - first
    present = (ours >= 0) & (ours < E)
    ours = jnp.where(present, ours, E)  # other devices' experts come last, in no group
    order = jnp.argsort(ours)
    sizes = jnp.bincount(ours, length=E + 1)[:E].astype(jnp.int32)
    out = _products(p, x_BTD.reshape(B * T, D)[order // k], ours[order], sizes, activation)
    # A gather restores the tokens' order. A scatter would sum in no fixed order, with varying bits.
    out = out[jnp.argsort(order)].reshape(B, T, k, D)
    weights = jnp.where(present.reshape(B, T, k), weights, 0.0)
    return jnp.einsum("btkd,btk->btd", out, weights.astype(out.dtype))


def _products(p, rows_ND, expert_N, sizes_E, activation):
    """Each row through its expert. Rows are sorted by expert, and those without one come last."""

    def product(rows, w):
        if hopper.usable(rows, w):
            return hopper.grouped_product(rows, w, sizes_E)
        return jax.lax.ragged_dot(rows, w, group_sizes=sizes_E)

    def project_in(name):
        y = product(rows_ND, p[name])
        return y + p[f"{name}_bias"][jnp.minimum(expert_N, len(sizes_E) - 1)] if f"{name}_bias" in p else y

    return product(activation(project_in("gate"), project_in("up")), p["down"])


def places(num_tokens: int, num_chosen: int, num_experts: int, factor: float) -> int:
    """C: `factor` times an expert's even share of a row's choices, 1 to `num_tokens`."""
    return min(max(1, math.ceil(factor * num_tokens * num_chosen / num_experts)), num_tokens)


def capacity(
    p: dict, x_BTD: jax.Array, routing: Routing, mask_BT: jax.Array, factor: float, activation: Activation = swiglu
) -> jax.Array:
    """Gives each expert C places per row, filled by one-hot products (GShard, arXiv:2006.16668).

    As in Switch (arXiv:2101.03961), tokens take places in their order, so that no token is dropped
    for a later one. GShard fills all first choices before second ones.
    """
    combine = _combine(routing)
    chosen = jax.nn.one_hot(routing.experts, combine.shape[-1], dtype=jnp.int32).sum(-2) * mask_BT[..., None]
    # A token's place is the number of earlier tokens that chose the same expert.
    place = jnp.where(chosen > 0, jnp.cumsum(chosen, axis=1) - 1, -1)
    C = places(x_BTD.shape[1], *routing.experts.shape[-1:], combine.shape[-1], factor)
    dispatch = jax.nn.one_hot(place, C, dtype=x_BTD.dtype)  # (B, T, E, C), 0 for a token without a place
    inputs = jnp.einsum("btec,btd->ebcd", dispatch, x_BTD)
    inputs = expert_exchange.to_experts(inputs)

    def project_in(name):
        y = jnp.einsum("ebcd,edf->ebcf", inputs, p[name])
        return y + p[f"{name}_bias"][:, None, None] if f"{name}_bias" in p else y

    hidden = constrain(activation(project_in("gate"), project_in("up")), "experts", "batch", None, "mlp")
    out = jnp.einsum("ebcf,efd->ebcd", hidden, p["down"])
    out = expert_exchange.to_rows(out + p["down_bias"][:, None, None] if "down_bias" in p else out)
    return jnp.einsum("btec,ebcd->btd", (dispatch * combine[..., None]).astype(out.dtype), out)


def load(routing: Routing, mask_BT: jax.Array) -> Load:
    """One layer's sums for the auxiliary losses; padding (mask False) does not count."""
    mask = mask_BT.astype(jnp.float32)
    chosen = jax.nn.one_hot(routing.experts, routing.logits.shape[-1], dtype=jnp.float32).sum(-2)
    log_z = jax.nn.logsumexp(routing.logits, axis=-1)
    return Load(
        assigned=jnp.einsum("bt,bte->e", mask, chosen),
        probs=jnp.einsum("bt,bte->e", mask, routing.probs),
        log_z_squared=jnp.sum(mask * jnp.square(log_z)),
        tokens=mask.sum(),
    )


def token_share(batch: dict) -> jax.Array | float:
    """The factor that makes the token means of a batch's pieces add up to the batch's mean.

    Pieces count by the weight of their targets. It is 1 for a batch without "token_share" (B,),
    which training/step.py adds.
    """
    if "token_share" not in batch:
        return 1.0
    return batch["token_share"].sum() / divisor(batch["weights"].astype(jnp.float32).sum())


def losses(layers: Load, *, balance: float, z: float, share: jax.Array | float = 1.0) -> dict[str, jax.Array]:
    """Auxiliary losses of all layers' stacked loads, times coefficient and `share`.

    load_balancing_loss: E sum_e assigned_e probs_e, which is k if the load is even (Switch,
    arXiv:2101.03961, eq. 4-6). Means over all layers are taken before the product, as in
    transformers' load_balancing_loss_func. router_z_loss: mean of log(Z)^2 over tokens and layers
    (ST-MoE, arXiv:2202.08906, eq. 5). Over the pieces of a batch, the z-loss adds up to the
    batch's. The balancing loss, a product of means, does not. A loss with coefficient 0 is left
    out.
    """
    found, tokens = {}, jnp.maximum(layers.tokens.sum(), 1.0)
    if balance:
        assigned, probs = layers.assigned.sum(0) / tokens, layers.probs.sum(0) / tokens
        found["load_balancing_loss"] = share * balance * assigned.shape[0] * jnp.sum(assigned * probs)
    if z:
        found["router_z_loss"] = share * z * layers.log_z_squared.sum() / tokens
    return found
