"""Qwen3-Next's published size, where a fresh one starts, what it refuses, and its states in the
engine."""

import dataclasses

import jax
import numpy as np
import pytest

from bigmodel_jax.compress.prune_structured import check_layers
from bigmodel_jax.config import SampleConfig
from bigmodel_jax.core import params
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.inference.engine import Engine
from bigmodel_jax.inference.request import Request
from bigmodel_jax.models.qwen_next import PRESETS, Qwen3NextConfig
from bigmodel_jax.pretrained.qwen_next import QWEN3_NEXT

TINY = Qwen3NextConfig.tiny()
HF = QWEN3_NEXT.to_hf(TINY)


def test_the_preset_has_the_published_number_of_parameters_and_survives_the_way_out_and_in():
    preset = PRESETS["qwen3-next-80b-a3b"]
    # The total of the published safetensors files, without the module for multi-token prediction.
    assert params.count(preset.make().spec) == 79_674_391_296
    assert QWEN3_NEXT.from_hf(QWEN3_NEXT.to_hf(preset)) == preset


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"layer_types": ["full_attention"] * 4}, "layer_types = .* is not supported"),
        ({"full_attention_interval": 2}, "full_attention_interval = 2 is not supported"),
        ({"decoder_sparse_step": 2}, "decoder_sparse_step = 2 is not supported"),
        ({"mlp_only_layers": [1]}, r"mlp_only_layers = \[1\] is not supported"),
        ({"attention_bias": True}, "attention_bias = True is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu' is not supported"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_other_layers_are_refused(keys, said):
    with pytest.raises(ValueError, match=said):
        QWEN3_NEXT.from_hf(HF | keys)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_layers": 6}, "model.num_layers = 6; it must be a multiple of 4: three layers of Gated DeltaNet"),
        ({"num_value_heads": 3}, "model.num_key_heads = 2 does not divide model.num_value_heads = 3"),
        ({"rotary_dim": 10}, "model.rotary_dim = 10; it must be at most model.head_dim = 8"),
        ({"conv_width": 0}, "model.conv_width = 0; it must be 1 or more"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **fields).validate(ParallelConfig())


def test_layers_that_differ_are_neither_scaled_nor_removed():
    assert "Gated DeltaNet" in TINY.no_mup(depth=False)
    with pytest.raises(ValueError, match="layers of Qwen3NextConfig are of several kinds"):
        check_layers(TINY)


@pytest.mark.exhaustive
def test_initial_values():
    """transformers' _init_weights draws matrices and convolutions from normal(0.02), and decays
    from log(uniform(0.01, 16)). Steps' biases and the norm of states' outputs start at 1, and other
    norms at 0."""
    cfg = dataclasses.replace(TINY, embed_dim=128, num_key_heads=16, num_value_heads=64, num_experts=64, vocab_size=256)
    for path, x in params.paths(params.init(cfg.make().spec, jax.random.key(0))).items():
        last = path.rpartition("/")[2]
        if last == "log_decay":
            assert np.log(0.01) < x.min() < x.max() < np.log(16)
            assert abs(np.exp(x).mean() - 8) < 1.5
        elif last in ("scale", "step_bias"):
            np.testing.assert_array_equal(x, 1.0 if "mixer/norm" in path or last == "step_bias" else 0.0, path)
        else:
            assert abs(x.mean()) < 4 * 0.02 / x.size**0.5, path
            assert abs(x.std() / 0.02 - 1) < 4 / (2 * x.size) ** 0.5, path


def texts(model, weights, requests, **options) -> tuple[list[list[int]], int]:
    """(the tokens of each text, how many tokens of prompts were not read again)."""
    made = Engine(model, SampleConfig(temperature=0), length=64, turns=4, **options)
    made.load(weights)
    out = {made.submit(request): [] for request in requests}
    while made.num_unfinished:
        for token in made.step():
            out[token.id].append(token.token)
    return list(out.values()), made.num_shared


def test_texts_in_slots_and_prompts_in_pieces_have_states_of_their_own():
    """Prompts of several lengths are padded on the left, in every piece. A kept prompt serves those
    that begin with all of it, and no others, because a state cannot be cut back."""
    model = dataclasses.replace(TINY, init_std=0.3, max_seq_len=64).make()
    weights = params.init(model.spec, jax.random.key(0))
    begin = [(7 * i) % 50 + 3 for i in range(40)]
    requests = [Request(p, 6) for p in (begin, [5, 9], [*begin[:36], 11, 12], [*begin, 21, 22, 23])]
    alone = [texts(model, weights, [request], slots=3)[0][0] for request in requests]
    assert len({token for text in alone for token in text}) > 3, "the model says one thing only"
    assert texts(model, weights, requests, slots=3) == (alone, 0)
    assert texts(model, weights, requests, slots=3, piece=16, prefixes=3) == (alone, len(begin))
