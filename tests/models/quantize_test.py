"""A model whose weights are stored in 8 or 4 bits: what it computes, and which parameters are stored how."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from models.adapters_test import batch_of

from bigmodel_jax.core import params
from bigmodel_jax.core.storage import Blocks, Dense
from bigmodel_jax.models import MODELS, LlamaConfig
from bigmodel_jax.models.base import Model
from bigmodel_jax.models.quantize import QuantizeConfig

FAST = {"llama", "cnn"}
MARKED = [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in MODELS]
