"""Texts of one batch that use different adapters over one base.

A product adds the low-rank part of every adapter in the rows that use it (nn/lora.py `Low.on`). So
one program serves all choices, and a row costs the ranks of all adapters together.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from bigmodel_jax.config import SampleConfig
from bigmodel_jax.core.spelling import nearest
from bigmodel_jax.inference.prompts import PROMPT_MULTIPLE
from bigmodel_jax.inference.slots import Programs, cache_dtype
from bigmodel_jax.models import Model
from bigmodel_jax.nn import lora

Names = tuple[str, ...] | None  # the adapters of one text; None: all


def check_names(known: Sequence[str], names: Names) -> None:
    """Raise ValueError where a request names an adapter that the engine does not choose among."""
    for name in names or ():
        if name not in known:
            said = ", ".join(known) or "none, so leave it out"
            raise ValueError(f"adapters = {names}: {name!r} is unknown{nearest(name, known)}; known: {said}")


def using(weights: Any, adapters: Sequence[str], rows: Sequence[Names]) -> Any:
    """Return the weights for a batch of one text a row. Without `adapters` they are unchanged."""
    if not adapters:
        return weights
    on = {name: np.array([names is None or name in names for names in rows]) for name in adapters}
    return weights | {lora.ROWS: on}


def why_apart(model: Model, weights: Any, adapters: Sequence[str]) -> str:
    """Return why the texts of one batch must use the same adapters; "" where they may differ.

    The programs are traced for two slots, and nothing is computed.
    """
    programs = Programs.of(model, SampleConfig(), (), 2, 2 * PROMPT_MULTIPLE, 1, False)
    # Two slots are the fewest whose texts can differ.
    slots = jax.eval_shape(functools.partial(programs.empty, cache_dtype(weights)))
    row, one = np.ones((1, PROMPT_MULTIPLE), np.int32), np.int32(1)
    try:
        jax.eval_shape(
            programs.prefill, using(weights, adapters, [()]), slots, one, row, row, np.zeros(2, np.uint32), one
        )
        # The two rows have different adapters, so a product that cannot tell rows apart raises
        # Unmixed.
        jax.eval_shape(programs.decode, using(weights, adapters, [(), ()]), slots, np.ones(2, bool), np.bool_(False))
    except lora.Unmixed as error:
        return str(error)
    return ""
