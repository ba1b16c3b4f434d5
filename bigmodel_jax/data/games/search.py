"""Monte Carlo tree search with a network's priors and values, batched and compiled.

Moves are selected by PUCT in AlphaZero's form (Silver et al. 2017, arXiv:1712.01815): the move with
the greatest Q + c P sqrt(N) / (1 + n). G games are searched at once, each in its own tree.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bigmodel_jax.data.games import connect_four
from bigmodel_jax.data.games.connect_four import COLUMNS, Board

EXPLORATION = 1.5  # c in the formula of PUCT
Network = Callable[[Board], tuple[jax.Array, jax.Array]]  # boards (G, ...) -> logits (G, 7), values (G,) in -1 .. 1


class Tree(NamedTuple):
    """The search tree of one game, with room for N = simulations + 1 nodes.

    - boards: the position of each node, two arrays (N, 6, 7).
    - priors (N, 7): the network's policy.
    - children (N, 7) int32: the node after each move, -1 where there is none yet.
    - parents (N,) int32: -1 at the root.
    - visits, values (N,): counts and sums over the simulations that passed the node. Values are
      from the view of the player to move there.
    - over (N,) bool: whether the game has ended.
    """

    boards: Board
    priors: jax.Array
    children: jax.Array
    parents: jax.Array
    visits: jax.Array
    values: jax.Array
    over: jax.Array


class Found(NamedTuple):
    """The result of a search.

    - visits (G, 7) int32: how often each move of the root was tried.
    - value (G,): the mean value of the simulations for the player to move.
    """

    visits: jax.Array
    value: jax.Array


def search(network: Network, boards: Board, simulations: int, noise: jax.Array | None = None) -> Found:
    """Search G boards with this many simulations each.

    `noise` (G, 7) holds probability distributions over moves. The roots' priors become 3/4 of the
    network's priors and 1/4 noise, as in AlphaZero's self-play. If `noise` is None, there is no
    noise.
    """
    priors, values = evaluated(network, boards)
    if noise is not None:
        mixed = jnp.where(connect_four.legal(boards), 0.75 * priors + 0.25 * noise, 0.0)
        # Noise on illegal moves was dropped, so the priors are normalised again. 1e-9 avoids 0 / 0
        # for boards without a legal move.
        priors = mixed / jnp.maximum(mixed.sum(-1, keepdims=True), 1e-9)
    trees = jax.vmap(lambda board, prior, value: planted(board, prior, value, simulations))(boards, priors, values)

    def simulate(number, trees: Tree) -> Tree:
        parents, moves = jax.vmap(select)(trees)
        leaves = jax.vmap(lambda tree, at, move: connect_four.play(_board(tree, at), move))(trees, parents, moves)
        priors, values = evaluated(network, leaves)
        grow = jax.vmap(grown, in_axes=(0, None, 0, 0, 0, 0, 0))
        return grow(trees, number + 1, parents, moves, leaves, priors, values)

    # Each simulation adds one node to every tree and calls the network once for all G leaves.
    trees = jax.lax.fori_loop(0, simulations, simulate, trees)
    root = trees.children[:, 0]
    visits = jnp.where(root >= 0, jnp.take_along_axis(trees.visits, jnp.maximum(root, 0), 1), 0)
    return Found(visits.astype(jnp.int32), trees.values[:, 0] / trees.visits[:, 0])


def evaluated(network: Network, boards: Board) -> tuple[jax.Array, jax.Array]:
    """Return (priors (G, 7) over legal moves, values (G,)).

    The value of a finished game comes from the rules, and that of any other from the network.
    """
    logits, values = network(boards)
    legal = connect_four.legal(boards)
    priors = jnp.where(legal, jax.nn.softmax(jnp.where(legal, logits.astype(jnp.float32), -1e9)), 0.0)
    ended = jnp.where(connect_four.lost(boards), -1.0, 0.0)
    return priors, jnp.where(connect_four.over(boards), ended, values.astype(jnp.float32))


def planted(board: Board, prior: jax.Array, value: jax.Array, simulations: int) -> Tree:
    """Return a tree that holds only the root, which counts as visited once."""
    num = simulations + 1
    boards = jax.tree.map(lambda x: jnp.zeros((num, *x.shape), x.dtype).at[0].set(x), board)
    priors = jnp.zeros((num, COLUMNS)).at[0].set(prior)
    children, parents = jnp.full((num, COLUMNS), -1, jnp.int32), jnp.full(num, -1, jnp.int32)
    visits, values = jnp.zeros(num).at[0].set(1.0), jnp.zeros(num).at[0].set(value)
    return Tree(
        boards, priors, children, parents, visits, values, jnp.zeros(num, bool).at[0].set(connect_four.over(board))
    )


def _board(tree: Tree, node: jax.Array) -> Board:
    return Board(tree.boards.own[node], tree.boards.other[node])


def best(tree: Tree, node: jax.Array) -> jax.Array:
    """Return the move with the greatest Q + U at a node.

    The Q of an untried move is the mean value of the node itself.
    """
    children, prior = tree.children[node], tree.priors[node]
    visits = jnp.where(children >= 0, tree.visits[children], 0.0)
    own = tree.values[node] / tree.visits[node]
    # A child's values are the opponent's, so their sign is turned.
    q = jnp.where(children >= 0, -tree.values[children] / jnp.maximum(tree.visits[children], 1.0), own)
    # This is the U of PUCT. Untried moves have n = 0.
    u = EXPLORATION * prior * jnp.sqrt(tree.visits[node]) / (1.0 + visits)
    return jnp.argmax(jnp.where(connect_four.legal(_board(tree, node)), q + u, -jnp.inf)).astype(jnp.int32)


def select(tree: Tree) -> tuple[jax.Array, jax.Array]:
    """Descend from the root, and return (node, move) without a child, or a node that is over."""

    def inside(place):
        node, move = place
        return ~tree.over[node] & (tree.children[node, move] >= 0)

    def down(place):
        node = tree.children[place]
        return node, best(tree, node)

    return jax.lax.while_loop(inside, down, (jnp.int32(0), best(tree, jnp.int32(0))))


def grown(tree: Tree, new, parent, move, board: Board, prior, value) -> Tree:
    """Return the tree with the node `new` after `move`, and its value added along the path.

    Where the game is over at `parent`, no node is linked. The value of `parent` is added once more.
    """
    ended = tree.over[parent]
    leaf = jnp.where(ended, parent, new)
    value = jnp.where(ended, jnp.where(connect_four.lost(_board(tree, parent)), -1.0, 0.0), value)
    # A finished game gets no child, so its entry is written back unchanged.
    linked = jnp.where(ended, tree.children[parent, move], new)
    tree = tree._replace(
        boards=jax.tree.map(lambda all_, one: all_.at[new].set(one), tree.boards, board),
        priors=tree.priors.at[new].set(prior),
        children=tree.children.at[parent, move].set(linked),
        parents=tree.parents.at[new].set(parent),
        over=tree.over.at[new].set(connect_four.over(board)),
    )

    def up(carry):
        # Players alternate, so the value changes its sign at every step towards the root.
        node, value, visits, values = carry
        return tree.parents[node], -value, visits.at[node].add(1.0), values.at[node].add(value)

    _, _, visits, values = jax.lax.while_loop(lambda c: c[0] >= 0, up, (leaf, value, tree.visits, tree.values))
    return tree._replace(visits=visits, values=values)
