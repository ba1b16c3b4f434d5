"""Log-probabilities of a batch of answers that are computed once, before the steps that use it."""

from bigmodel_jax.config import Config
from bigmodel_jax.data.fields import Field


def compares_answers(config: Config) -> bool:
    """Whether the objective compares answers by advantages."""
    return "advantages" in config.objective.reads


def wanted(config: Config) -> list[str]:
    """The names of the log-probabilities that are computed before the steps on a batch."""
    old = ["old_log_probs"] if config.data.updates_per_rollout > 1 and compares_answers(config) else []
    return old + (["reference_log_probs"] if config.objective.judging().reference else [])


def log_prob_fields(config: Config) -> dict[str, Field]:
    """The arrays of `wanted` as declared fields of a row."""
    return {name: Field((config.data.seq_len,), "float32", ("seq",)) for name in wanted(config)}
