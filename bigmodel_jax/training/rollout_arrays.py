"""The arrays of a batch of answers that are computed once, before the steps that train on it."""

from bigmodel_jax.config import Config
from bigmodel_jax.data.fields import Field


def compares_answers(config: Config) -> bool:
    return "advantages" in config.objective.reads


def wanted(config: Config) -> list[str]:
    """Which log-probabilities of a batch are computed once, before the steps that train on it."""
    old = ["old_log_probs"] if config.data.updates_per_rollout > 1 and compares_answers(config) else []
    return old + (["reference_log_probs"] if config.objective.judging().reference else [])


def log_prob_fields(config: Config) -> dict[str, Field]:
    """`wanted` as what a row of the batch declares."""
    return {name: Field((config.data.seq_len,), "float32", ("seq",)) for name in wanted(config)}
