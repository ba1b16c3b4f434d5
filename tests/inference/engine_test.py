"""The engine: a text is a function of its request, whatever else is generated beside it, and on any
mesh."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from grids import few

from bigmodel_jax.config import SampleConfig
from bigmodel_jax.core import params, sharding
from bigmodel_jax.core.sharding import ParallelConfig, Rules
from bigmodel_jax.inference import compiled
from bigmodel_jax.inference.engine import Engine, Layout
from bigmodel_jax.inference.request import Request
from bigmodel_jax.inference.sampling import Settings
from bigmodel_jax.models import Gemma3Config, LlamaConfig, MLPConfig, RNNConfig, T5Config
from bigmodel_jax.models.quantize import QuantizeConfig
from bigmodel_jax.nn.decode_forms import Transposed

LENGTH = 32
GREEDY, SAMPLED = SampleConfig(temperature=0), SampleConfig(temperature=1.5, top_p=0.95)
# Lengths on both sides of a bucket, more texts than slots, ends at different times.
PROMPTS = [[5, 9, 2], [7], list(range(3, 22)), [3, 1, 4, 1, 5], [11] * 16, [40, 2]]
REQUESTS = [Request(p, 4 + 2 * i, seed=3, nth=i) for i, p in enumerate(PROMPTS)]


def fresh(cfg):
    """Large values, so that the likeliest token differs from place to place."""
    wide = {"init_std": 0.5} if cfg in (LlamaConfig, Gemma3Config) else {}
    model = dataclasses.replace(cfg.tiny(), **wide).make()
    weights = params.init(model.spec, jax.random.key(0))
    return model, weights if wide else jax.tree.map(lambda x: 3 * x, weights)


def engine(model, weights, sample, **options) -> Engine:
    made = Engine(model, sample, length=LENGTH, **options)
    made.load(weights)
    return made


def texts(made: Engine, requests=REQUESTS) -> list[list[int]]:
    numbers = [made.submit(request) for request in requests]
    out = {number: [] for number in numbers}
    finished = []
    while made.num_unfinished:
        for number, token, _, last, _ in made.step():
            assert number not in finished
            out[number].append(token)
            finished += [number] * last
    assert sorted(finished) == numbers
    return [out[number] for number in numbers]


@pytest.fixture(scope="module")
def llama():
    return fresh(LlamaConfig)


@pytest.mark.slow
@pytest.mark.few("LlamaConfig")
@pytest.mark.parametrize(
    "cfg", [LlamaConfig, Gemma3Config, RNNConfig, pytest.param(T5Config, marks=pytest.mark.exhaustive)]
)
def test_a_text_depends_neither_on_its_neighbours_nor_on_the_slots(cfg):
    model, weights = fresh(cfg)
    for sample, slots in ((GREEDY, (16,)), (SAMPLED, (4, 16))):
        alone = texts(engine(model, weights, sample, slots=1, turns=16))
        assert [len(text) for text in alone] == [request.max_tokens for request in REQUESTS]
        assert len({token for text in alone for token in text}) > 3, "the model says one thing only"
        for num in slots:
            made = engine(model, weights, sample, slots=num, turns=3)
            assert texts(made, REQUESTS[::-1])[::-1] == alone
            assert texts(made) == alone, "the ring goes on where it stands"


@pytest.mark.slow
def test_log_probabilities_are_those_of_the_whole_text_and_a_stop_token_is_given_out(llama):
    model, weights = llama
    stop = texts(engine(model, weights, GREEDY, slots=1, turns=16), REQUESTS[:1])[0][2]
    made = engine(model, weights, SAMPLED, slots=4, turns=2, log_probs=True, stop=(stop,))
    numbers = [made.submit(request) for request in REQUESTS]
    out = {number: [] for number in numbers}
    while made.num_unfinished:
        for token in made.step():
            out[token.id].append(token)
    for request, tokens in zip(REQUESTS, out.values(), strict=True):
        said = [token.token for token in tokens]
        assert stop not in said[:-1]
        assert len(said) == request.max_tokens or said[-1] == stop
        whole = [*request.prompt, *said]
        tokens_of_all = jnp.array([whole + [0] * (LENGTH - len(whole))])  # one length, so one program
        logits = jax.jit(model.apply)(weights, {"tokens": tokens_of_all}).value[0]
        expected = jax.nn.log_softmax(logits)[np.arange(len(request.prompt) - 1, len(whole) - 1), said]
        np.testing.assert_allclose([token.log_prob for token in tokens], expected, atol=1e-4)


WHOLE, CUT = ParallelConfig(data=4, stage=2), ParallelConfig(data=2, fsdp=2, tensor=2)


@pytest.mark.slow
@pytest.mark.parametrize(("slots", "parallel"), few([(8, CUT), (8, WHOLE), (1, CUT), (1, WHOLE)], (8, CUT)))
def test_the_mesh_changes_no_text(llama, slots, parallel):
    cfg = dataclasses.replace(LlamaConfig.tiny(), init_std=0.5, num_heads=8, head_dim=4)
    model = cfg.make()
    weights = params.init(model.spec, jax.random.key(0))
    here = texts(engine(model, weights, SAMPLED, slots=2, turns=16))
    mesh = sharding.make_mesh(parallel)
    there = jax.device_put(weights, sharding.shardings(model.spec, mesh, Rules()))
    made = engine(model, there, SAMPLED, slots=slots, turns=16, layout=Layout(mesh))
    assert texts(made) == here
    keys = made._slots.cache.layers["k"].sharding.spec
    assert slots == 1 or "data" in jax.tree.leaves(tuple(keys))
    assert texts(engine(model, there, SAMPLED, slots=2, turns=16)) == here, "as the compiler lays it out"


def test_what_is_cancelled_says_no_more_and_its_slot_goes_on_with_the_next(llama):
    made = engine(*llama, GREEDY, slots=1)
    expected = texts(made)
    first, second, third = (made.submit(request) for request in REQUESTS[:3])
    made.cancel(second)
    made.step()
    said = [token.token for token in made.step()]
    assert said == expected[0][: len(said)] != []
    made.cancel(first)
    out = []
    while made.num_unfinished:
        out += made.step()
    assert {token.id for token in out} == {third}
    assert [token.token for token in out] == expected[2]
    assert not made.step()


@pytest.mark.slow
def test_the_step_after_is_on_its_way_before_the_host_reads_the_last(llama):
    made = engine(*llama, GREEDY, slots=2)
    for request in REQUESTS[2:4]:
        made.submit(request)
    assert made.step() == []
    while made.num_unfinished:
        before = len(made._flying)
        made.step()
        assert before == 1
        assert len(made._flying) <= 1


def test_other_weights_say_other_things_and_nothing_is_compiled_again(llama):
    model, weights = llama
    made = engine(model, weights, GREEDY, slots=2, turns=4)
    here = texts(made)
    made.load(params.init(model.spec, jax.random.key(1)))
    compiled = made._compiled.decode._cache_size()
    assert texts(made) != here
    made.load(weights)
    assert texts(made) == here
    assert made._compiled.decode._cache_size() == compiled == 1
    assert made._compiled.prefill._cache_size() == 2, "one for each bucket of the prompts"


def test_an_engine_that_cannot_be_is_refused(llama):
    with pytest.raises(ValueError, match="slots = 0; it must be 1 or more"):
        Engine(llama[0], slots=0, length=8)
    with pytest.raises(ValueError, match="no decode cache"):
        Engine(MLPConfig.tiny().make(), slots=1, length=8)


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (Request([], 1), "prompt = ''"),
        (Request([1], 0), "max_tokens = 0; it must be 1 or more"),
        (Request([1] * 30, 3), "max_tokens = 3: with the prompt's 30 tokens it exceeds a slot's 32"),
    ],
    ids=str,
)
def test_a_request_that_no_slot_has_room_for_is_refused(llama, request_, says):
    made = engine(*llama, GREEDY, slots=1)
    with pytest.raises(ValueError, match=says):
        made.submit(request_)
    made.submit(Request([1] * 30, 2))


def test_a_cache_that_is_not_declared_is_one_line(llama):
    model, weights = llama
    arrays = model._replace(make_cache=lambda rows, length, dtype: {"k": jnp.zeros((rows, length))})
    with pytest.raises(ValueError, match=r"model: make_cache returns ArrayImpl; it must declare each array as a Param"):
        engine(arrays, weights, GREEDY, slots=1)


@pytest.mark.slow
@pytest.mark.parametrize("on_mesh", [pytest.param(False, marks=pytest.mark.exhaustive), True])
def test_layers_that_lie_apart_say_what_a_stack_says(llama, on_mesh, monkeypatch):
    """The caches of separate layers are separate as well, and have the heads first. On the mesh,
    prefill takes separate layers too, and int8 weights have the form for a TPU."""
    model, weights = llama
    if on_mesh:
        model = QuantizeConfig("int8").stored(model, "float32")
        weights = params.map_spec(lambda p, x: p.storage.pack(x), model.spec, weights)
    stacked = texts(engine(model, weights, SAMPLED, slots=4, turns=3))
    name, value = ("APART_ON", {"cpu": compiled.APART_ON["tpu"]}) if on_mesh else ("APART_FROM", 0)
    monkeypatch.setattr(compiled, name, value)
    mesh = sharding.make_mesh(ParallelConfig(data=2, fsdp=2, tensor=2)) if on_mesh else None
    there = jax.device_put(weights, sharding.shardings(model.spec, mesh, Rules())) if on_mesh else weights
    made = engine(model, there, SAMPLED, slots=4, turns=3, layout=mesh and Layout(mesh))
    assert texts(made) == stacked
    assert made._slots.cache.layers.layers[0].k.shape == (4, 2, LENGTH, 8)
    assert isinstance(made._weights["layers"], tuple) == on_mesh
    if on_mesh:
        attention = made._weights["layers"][1]["attn"]
        assert [type(attention[name]) for name in "qk"] == [Transposed] * 2


@pytest.mark.slow
@pytest.mark.parametrize("cfg", [LlamaConfig, pytest.param(Gemma3Config, marks=pytest.mark.exhaustive)])
def test_prompts_in_pieces_and_prompts_that_begin_alike_say_the_same(cfg):
    """Some prompts are longer than a piece and run beside other texts. The second time, prompts
    begin as the first ones did."""
    model, weights = fresh(cfg)
    begin = [(7 * i) % 50 + 3 for i in range(40)]
    prompts = [begin, [5, 9], [*begin[:36], 11, 12, 13], [*begin, 21, 22], begin, begin[:33]]
    requests = [Request(p, 6, seed=3, nth=i) for i, p in enumerate(prompts)]

    def made(**options) -> Engine:
        one = Engine(model, SAMPLED, slots=3, length=64, turns=2, **options)
        one.load(weights)
        return one

    plain = made()
    expected = texts(plain, requests)
    for piece, prefixes in ((16, 0), (0, 2), (16, 3)):
        other = made(piece=piece, prefixes=prefixes)
        assert texts(other, requests) == expected, (piece, prefixes)
        assert texts(other, requests[::-1])[::-1] == expected
        assert (other.num_shared > 100) == bool(prefixes)
    numbers = [other.submit(request) for request in requests[:2]]
    other.step()
    other.cancel(numbers[0])
    assert {token.id for _ in range(20) for token in other.step()} == {numbers[1]}
    assert not other.num_unfinished
    other.load(jax.tree.map(lambda x: 2 * x, weights))
    before = other.num_shared
    texts(other, requests[:1])
    assert other.num_shared == before, "keys and values of other weights are forgotten"


@pytest.mark.slow
def test_settings_of_each_request_draw_as_an_engine_of_their_own(llama):
    model, weights = llama
    kinds = [GREEDY, SAMPLED, SampleConfig(temperature=0.7, top_k=3), SampleConfig(temperature=2.0), SAMPLED, GREEDY]
    expected = [
        texts(engine(model, weights, sample, slots=1, turns=16), [request])[0]
        for sample, request in zip(kinds, REQUESTS, strict=True)
    ]
    mixed = [r._replace(settings=Settings.of(sample)) for sample, r in zip(kinds, REQUESTS, strict=True)]
    assert texts(engine(model, weights, None, slots=4, turns=3, tops=2), mixed) == expected
