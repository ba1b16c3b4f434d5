"""Decoding and alignment with a CTC model: which labels were heard, and at which frames.

Shapes: B batch, T frames, V classes, U labels, S = 2U + 1 states: the labels, with a blank before,
between and after them.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

NONE = -1  # no label
IMPOSSIBLE = -1e30  # finite, so that the difference of two such values is not NaN


def greedy(logits_BTV: jax.Array, num_frames_B: jax.Array, blank: int) -> jax.Array:
    """(B, T) int32: the labels of the likeliest path without repetitions and blanks, padded with
    NONE.
    """
    best = jnp.argmax(logits_BTV, axis=-1).astype(jnp.int32)
    before = jnp.pad(best, ((0, 0), (1, 0)), constant_values=blank)[:, :-1]
    T = best.shape[1]
    kept = (best != blank) & (best != before) & (jnp.arange(T) < num_frames_B[:, None])
    place = jnp.where(kept, jnp.cumsum(kept, axis=1) - 1, T)  # T lies outside the array, so that the scatter drops it
    rows = jnp.arange(len(best))[:, None]
    return jnp.full_like(best, NONE).at[rows, place].set(best, mode="drop")


class Aligned(NamedTuple):
    """An alignment of frames and labels.

    label (B, T) int32: the position in the row's labels that each frame says; NONE for a blank.
    log_prob (B,): the log-probability of the path.
    """

    label: jax.Array
    log_prob: jax.Array


@functools.partial(jax.jit, static_argnames="blank")
def align(logits_BTV, num_frames_B, labels_BU, num_labels_B, *, blank: int) -> Aligned:
    """The likeliest alignment of the given labels, by the Viterbi algorithm.

    `log_prob` is at most about IMPOSSIBLE where no path fits the labels.
    """
    log_probs = jax.nn.log_softmax(logits_BTV.astype(jnp.float32), axis=-1)
    B, U = labels_BU.shape
    T, S = log_probs.shape[1], 2 * U + 1
    states = jnp.full((B, S), blank, jnp.int32).at[:, 1::2].set(labels_BU)
    emitted = jnp.take_along_axis(log_probs, jnp.broadcast_to(states[:, None], (B, T, S)), axis=2)
    # A path may skip the blank between two labels only if the labels differ.
    skips = (jnp.arange(S) % 2 == 1) & (states != jnp.roll(states, 2, axis=1)) & (jnp.arange(S) > 1)
    # A path begins in the first blank or in the first label.
    start = jnp.where(jnp.arange(S) < 2, emitted[:, 0], IMPOSSIBLE)
    start = jnp.where((jnp.arange(S) == 1) & (num_labels_B[:, None] == 0), IMPOSSIBLE, start)

    def forward(score, at):
        emitted_BS, t = at
        # From one frame to the next a path stays, moves one state on, or skips a blank.
        one = jnp.pad(score, ((0, 0), (1, 0)), constant_values=IMPOSSIBLE)[:, :-1]
        two = jnp.where(skips, jnp.pad(score, ((0, 0), (2, 0)), constant_values=IMPOSSIBLE)[:, :-2], IMPOSSIBLE)
        ways = jnp.stack([score, one, two])
        # Padding frames keep the score and the state.
        inside = (t < num_frames_B)[:, None]
        new = jnp.where(inside, jnp.max(ways, axis=0) + emitted_BS, score)
        return new, jnp.where(inside, jnp.argmax(ways, axis=0), 0)

    score, steps = jax.lax.scan(forward, start, (emitted.swapaxes(0, 1)[1:], jnp.arange(1, T)))
    # A path ends in the last blank or in the last label.
    ends = jnp.stack([2 * num_labels_B, jnp.maximum(2 * num_labels_B - 1, 0)], axis=1)
    reached = jnp.take_along_axis(score, ends, axis=1)
    last = jnp.take_along_axis(ends, jnp.argmax(reached, axis=1)[:, None], axis=1)[:, 0]

    # Walks back from the last frame: `step` says by how many states the path moved.
    def backward(state, step):
        before = state - jnp.take_along_axis(step, state[:, None], axis=1)[:, 0]
        return before, before

    _, earlier = jax.lax.scan(backward, last, steps, reverse=True)
    path = jnp.concatenate([earlier, last[None]]).T
    says = (path % 2 == 1) & (jnp.arange(T) < num_frames_B[:, None])
    return Aligned(jnp.where(says, path // 2, NONE).astype(jnp.int32), reached.max(axis=1))


def stretches(label_T: np.ndarray) -> list[tuple[int, int, int]]:
    """(label's position, first frame, frame after the last) for each label of one row's
    alignment.
    """
    found = []
    for label in range(label_T.max(initial=NONE) + 1):
        frames = np.flatnonzero(label_T == label)
        found.append((label, int(frames[0]), int(frames[-1]) + 1))
    return found


def best_prefix(log_probs_TV: np.ndarray, blank: int, beams: int) -> tuple[list[int], float]:
    """The likeliest labels and their log-probability, summed over alignments, by beam search.

    `log_probs_TV` holds the frames of one row. Source: Hannun et al., arXiv:1408.2873, without a
    language model.
    """
    kept = {(): (0.0, -np.inf)}  # prefix -> log-probabilities of its paths that end in a blank, and in its last label
    for frame in np.asarray(log_probs_TV, np.float64):
        found: dict[tuple, list[float]] = {}

        def add(prefix: tuple, end: int, value: float, found=found) -> None:
            ends = found.setdefault(prefix, [-np.inf, -np.inf])
            ends[end] = np.logaddexp(ends[end], value)

        for prefix, (in_blank, in_label) in kept.items():
            both = np.logaddexp(in_blank, in_label)
            add(prefix, 0, both + frame[blank])
            for label in range(len(frame)):
                if label == blank:
                    continue
                # A label after itself continues the same label, unless a blank stands in between.
                same = bool(prefix) and prefix[-1] == label
                if same:
                    add(prefix, 1, in_label + frame[label])
                add((*prefix, label), 1, (in_blank if same else both) + frame[label])
        best = sorted(found.items(), key=lambda item: -np.logaddexp(*item[1]))[:beams]
        kept = {prefix: tuple(ends) for prefix, ends in best}
    prefix, ends = max(kept.items(), key=lambda item: np.logaddexp(*item[1]))
    return list(prefix), float(np.logaddexp(*ends))
