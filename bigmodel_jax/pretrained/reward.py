"""A decoder with a reward head, written as a transformers ...ForSequenceClassification with one
label.
"""

import dataclasses

from bigmodel_jax.objectives.reward import HEAD
from bigmodel_jax.pretrained.family import Family
from bigmodel_jax.pretrained.labels import labels_to_hf
from bigmodel_jax.pretrained.names import Row, linear

CAUSAL, CLASSIFIES = "ForCausalLM", "ForSequenceClassification"


def with_head(family: Family) -> Family:
    """The family whose single output is a text's reward, read at its last token.

    Raises ValueError where transformers has no such class for the family.
    """
    if not family.architecture.endswith(CAUSAL):
        raise ValueError(
            f"export: {family.architecture} has no class with one score; decoders called ...{CAUSAL} have one"
        )
    rows = (
        *(row for row in family.rows if row.paths != ("head/table",)),
        Row(f"{HEAD}/kernel", "score.weight", linear()),
    )

    def to_hf(cfg) -> dict:
        return family.to_hf(cfg) | labels_to_hf(1)

    architecture = family.architecture.removesuffix(CAUSAL) + CLASSIFIES
    return dataclasses.replace(family, architecture=architecture, rows=rows, to_hf=to_hf)
