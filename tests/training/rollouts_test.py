"""Batches that the policy makes itself: exact, resumed bit for bit, and lost to no reward that
fails."""

import dataclasses
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest

import runs
from bigmodel_jax.checkpoint import store
from bigmodel_jax.config import Config, EvalConfig, ReportConfig, TrainConfig
from bigmodel_jax.config_checks import validate
from bigmodel_jax.core import params, sharding
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.data import PromptData, TokenizerConfig, load_tokenizer
from bigmodel_jax.data.sources.sources import Arrays
from bigmodel_jax.data.text.prompt_data import collate
from bigmodel_jax.inference.rollout import Rollout, engine_rollouts
from bigmodel_jax.models import LlamaConfig
from bigmodel_jax.models.adapters import Lora
from bigmodel_jax.objectives import PolicyGradient
from bigmodel_jax.optim import OptimConfig
from bigmodel_jax.report import goodput
from bigmodel_jax.training.rollouts import Rollouts
from bigmodel_jax.training.run import train
from bigmodel_jax.training.state import abstract_state, init_constants, init_state, weights

HERE = str(Path(__file__))
REWARDS = str(Path(__file__).with_name("toy_rewards.py"))


def prompts():
    texts = [f"{'ab' * (n % 3 + 1)}{n}" for n in range(12)]
    return {"train": {"prompt": texts, "wanted": list(range(12))}, "validation": {"prompt": texts[:5]}}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from bigmodel_jax.data import TextData, save_tokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(TextData(tokenizer=TokenizerConfig(kind="bytes")), folder / "tokenizer.json")
    return str(folder / "tokenizer.json")


@pytest.fixture
def config(tokenizer):
    model = dataclasses.replace(LlamaConfig.tiny(), vocab_size=257, pad_vocab=2, init_std=0.3, num_heads=8, head_dim=4)
    return Config(
        model=model,
        objective=PolicyGradient(reward=(f"{REWARDS}:letters",), reward_seconds=30.0),
        data=PromptData(
            source=Arrays(f"{HERE}:prompts"), tokenizer_path=tokenizer, max_prompt=10, max_tokens=6, group=4, slots=8
        ),
        optim=OptimConfig(lr=1e-2, warmup_steps=0, final_lr_ratio=1.0),
        train=TrainConfig(steps=4, batch_size=16, log_every=1),
        eval=EvalConfig(batch_size=8, baselines=False),
        report=ReportConfig(tensorboard=False),
    )


@pytest.fixture
def alone(monkeypatch):
    """One device, as most runs on a laptop have it: eight that share two cores take minutes."""
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: devices)
    monkeypatch.setattr(jax, "device_count", lambda *_: 1)


def changed(config, **parts):
    return dataclasses.replace(config, **{k: dataclasses.replace(getattr(config, k), **v) for k, v in parts.items()})


def records(folder) -> dict[int, dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line for line in lines if "loss" in line}


def final(config, folder):
    mesh = sharding.make_mesh(config.parallel)
    with store.open_store(folder / "checkpoints", config.checkpoint) as saves:
        return store.restore(saves, abstract_state(config, mesh))


def one_device(config):
    return dataclasses.replace(config, parallel=ParallelConfig(data=1))


# --------------------------------------------------------------------------------------------- rows


def test_rows_hold_the_prompt_and_ask_for_the_answer_alone():
    rows = collate([[5, 6, 7], [8]], [[1, 2], [3, 4, 9]], [[1, 1], [1, 0, 1]], [[-0.5, -1], [-2, -3, -4]], 6)
    np.testing.assert_array_equal(rows["tokens"], [[5, 6, 7, 1, 0, 0], [8, 3, 4, 0, 0, 0]])
    np.testing.assert_array_equal(rows["targets"], [[0, 0, 1, 2, 0, 0], [3, 0, 9, 0, 0, 0]])
    np.testing.assert_array_equal(rows["weights"], [[0, 0, 1, 1, 0, 0], [1, 0, 1, 0, 0, 0]])
    np.testing.assert_array_equal(rows["segment_ids"], [[1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0]])
    np.testing.assert_array_equal(rows["positions"], [[0, 1, 2, 3, 0, 0], [0, 1, 2, 0, 0, 0]])
    np.testing.assert_array_equal(rows["rollout_log_probs"], [[0, 0, -0.5, -1, 0, 0], [-2, -3, -4, 0, 0, 0]])


def test_a_prompt_is_a_text_or_messages_and_one_that_is_too_long_cannot_be_used(tokenizer, tmp_path):
    data = PromptData(source=Arrays(f"{HERE}:prompts"), tokenizer_path=tokenizer, max_prompt=5, max_bad_records=99)
    own = load_tokenizer(tokenizer)
    assert data.open("train").prompts[0] == [own.start, *own.encode("ab0")]
    assert data.open("train").skipped == 8
    with pytest.raises(ValueError, match=r"its prompt has 6 tokens, more than data\.max_prompt = 5"):
        dataclasses.replace(data, max_bad_records=0).open("train")
    with pytest.raises(ValueError, match=r"need data\.template_path"):
        data.tokens(own, "", [{"role": "user", "content": "a"}])
    template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
    )
    said = data.tokens(own, template, [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}])
    assert own.decode(said) == "<system>s<user>u<a>"
    assert own.decode(data.tokens(own, template, "u")) == "<user>u<a>"
    with pytest.raises(ValueError, match="its prompt is empty"):
        data.tokens(own, "", "")
    called = "{{ tools[0].name if tools }}" + template
    assert own.decode(data.tokens(own, called, "u", [{"name": "add"}])) == "add<user>u<a>"
    with pytest.raises(ValueError, match="it has tools, which this template does not write"):
        data.tokens(own, template, "u", [{"name": "add"}])


# -------------------------------------------------------------------------------------- one rollout


ONE = ParallelConfig(data=1)
MESHES = [
    (ONE, ParallelConfig(data=2, stage=2, tensor=2)),
    pytest.param((ONE, ParallelConfig(data=8), ParallelConfig(data=1, fsdp=8)), marks=pytest.mark.exhaustive),
]


@pytest.mark.slow
@pytest.mark.parametrize("meshes", MESHES, ids=["many", "all"])
def test_a_rollout_is_a_function_of_seed_step_and_weights_on_any_mesh(config, meshes):
    found = []
    for parallel in meshes:
        here = dataclasses.replace(config, parallel=parallel)
        mesh = sharding.make_mesh(parallel, jax.devices()[: int(np.prod(parallel.sizes()))])
        state, rollouts = init_state(here, mesh), Rollouts(here, mesh)
        assert not rollouts.wait(0.0), "a rollout comes next"
        first = sharding.to_host(rollouts.next(state))
        second = sharding.to_host(rollouts.next(state))
        assert (first["tokens"] != second["tokens"]).any()
        rollouts.seek(1)
        assert rollouts.position() == {"rollout_step": 1}
        again = sharding.to_host(rollouts.next(state))
        np.testing.assert_array_equal(again["rollout_log_probs"], second["rollout_log_probs"])
        found.append(first)
    one = found[0]
    for many in found:
        np.testing.assert_array_equal(one["tokens"], many["tokens"])
        np.testing.assert_allclose(one["rollout_log_probs"], many["rollout_log_probs"], atol=1e-4)
    # Four answers to a prompt, one behind the other, and the advantages of each group are centred.
    groups = one["advantages"].reshape(4, 4)
    np.testing.assert_allclose(groups.mean(1), 0, atol=1e-6)
    assert (np.abs(groups).max(1) > 0.1).any()
    assert len(np.unique(one["tokens"] * (np.cumsum(one["weights"], 1) <= 1), axis=0)) >= 4
    assert len(np.unique(one["targets"], axis=0)) > 4


@pytest.mark.slow
def test_log_probabilities_of_sampling_are_those_of_training(config):
    config = one_device(config)
    mesh = sharding.make_mesh(config.parallel, jax.devices()[:1])
    state = init_state(config, mesh)
    batch = Rollouts(config, mesh).next(state)
    model = config.make_model()
    own = jax.jit(lambda tree: config.objective.log_probs(model.apply(tree, batch), batch))(weights(state))
    asked = np.asarray(batch["weights"]) > 0
    assert asked.sum() > 40
    np.testing.assert_allclose(np.asarray(own)[asked], np.asarray(batch["rollout_log_probs"])[asked], atol=1e-4)


@pytest.mark.exhaustive
def test_a_run_in_bfloat16_shows_how_far_sampling_is_from_training(config, alone, tmp_path):
    """In bfloat16, rounding separates the two log-probabilities, which agree to 1e-4 in float32."""
    config = changed(one_device(config), precision={"compute": "bfloat16"}, train={"steps": 2})
    train(config, tmp_path / "run")
    gaps = [record["log_prob_gap"] for record in records(tmp_path / "run").values()]
    assert len(gaps) == 2
    assert all(1e-4 < gap < 0.1 for gap in gaps)


@pytest.mark.slow
def test_groups_of_equal_rewards_are_replaced(config):
    """DAPO's dynamic sampling puts other prompts in their places, with a bounded number of
    tries."""
    config = changed(one_device(config), objective={"reward": (f"{REWARDS}:few",)}, data={"group": 2})
    mesh = sharding.make_mesh(config.parallel, jax.devices()[:1])
    state = init_state(config, mesh)
    share, kept = {}, None
    for resamples in (0, 3):
        rollouts = Rollouts(changed(config, objective={"resamples": resamples}), mesh)
        batch = sharding.to_host(rollouts.next(state))
        share[resamples] = float(rollouts.measured()["zero_spread_groups"].compute())
        alike = (np.abs(batch["advantages"].reshape(-1, 2)).max(1) == 0).mean()
        assert alike == pytest.approx(share[resamples])
        kept = batch if not resamples else kept
        if resamples:
            stay = np.abs(kept["advantages"].reshape(-1, 2)).max(1) > 0
            np.testing.assert_array_equal(
                batch["tokens"].reshape(8, 2, -1)[stay], kept["tokens"].reshape(8, 2, -1)[stay]
            )
    assert share[3] < share[0]
    bounded = Rollouts(changed(config, objective={"reward": (f"{REWARDS}:same",), "resamples": 2}), mesh)
    assert not sharding.to_host(bounded.next(state))["advantages"].any()


@pytest.mark.slow
def test_the_reference_is_the_base_of_the_adapters(config):
    """The base with its adapters answers. Old log-probabilities belong to both together, and the
    reference's to the base alone."""
    kl = {"kl": 0.1, "reference": "adapters_off"}
    config = changed(one_device(config), objective=kl, data={"updates_per_rollout": 2})
    config = dataclasses.replace(config, adapters=Lora(rank=2, targets="layers/attn/q"))
    mesh = sharding.make_mesh(config.parallel, jax.devices()[:1])
    state, fixed = init_state(config, mesh), init_constants(config, mesh)
    state = state.replace(params=jax.tree.map(lambda x: x + 0.3, state.params))  # a fresh adapter changes nothing
    rollouts = Rollouts(config, mesh)
    rollouts.enter(Path("nowhere"), fixed)
    batch = rollouts.next(state)
    asked = np.asarray(batch["weights"]) > 0
    model = config.model.make()
    base = params.from_paths({path: params.paths(fixed)[path] for path in params.paths(model.spec)})
    own = config.objective.log_probs(model.apply(base, batch), batch)
    np.testing.assert_allclose(np.asarray(batch["reference_log_probs"])[asked], np.asarray(own)[asked], atol=1e-4)
    sampled, old = np.asarray(batch["rollout_log_probs"])[asked], np.asarray(batch["old_log_probs"])[asked]
    np.testing.assert_allclose(old, sampled, atol=1e-4)
    assert np.abs(sampled - np.asarray(own)[asked]).max() > 0.1
    saved = json.loads(json.dumps(rollouts.position()))
    again = Rollouts(config, mesh)
    again.seek(1, saved)
    for name, value in sharding.to_host(again.next(state)).items():
        np.testing.assert_array_equal(value, batch[name], err_msg=name)


# --------------------------------------------------------------------------------------------- runs


@pytest.mark.parametrize(
    "updates", [pytest.param(1, marks=pytest.mark.exhaustive), pytest.param(2, marks=pytest.mark.slow)]
)
def test_a_run_that_is_stopped_goes_on_bit_for_bit(config, alone, tmp_path, capsys, updates):
    """This holds also for a save between two steps on the same answers."""
    config = changed(one_device(config), data={"updates_per_rollout": updates}, checkpoint={"every": 3})
    train(config, tmp_path / "at_once")
    train(config, runs.killed(tmp_path / "at_once", 4, tmp_path / "in_two"))
    whole, parts = (final(config, tmp_path / name) for name in ("at_once", "in_two"))
    for path, value in params.paths(whole.state.params).items():
        np.testing.assert_array_equal(value, params.paths(parts.state.params)[path], err_msg=path)
    one, other = records(tmp_path / "at_once")[4], records(tmp_path / "in_two")[4]
    for name in ("loss", "reward", "entropy", "clip_share", "response_length"):
        assert one[name] == other[name], name
    assert one["log_prob_gap"] < 1e-4
    if updates > 1:
        assert records(tmp_path / "at_once")[1]["reward"] == records(tmp_path / "at_once")[2]["reward"]
        assert records(tmp_path / "at_once")[2]["loss"] != records(tmp_path / "at_once")[1]["loss"]
    shown = [json.loads(line) for line in (tmp_path / "at_once/samples/00000004.jsonl").read_text().splitlines()]
    assert len(shown) == 5
    assert shown[0].keys() == {"prompt", "response", "reward", "finished"}
    assert "eval/reward" in (tmp_path / "at_once" / "metrics.jsonl").read_text()
    wall = goodput.read(tmp_path / "at_once").parts
    assert wall["rollout"] > 0 == wall["data"]
    assert one["rollout_seconds"] > 0 == one["data_wait_seconds"]
    page = (tmp_path / "at_once" / "report.html").read_text().replace("<wbr>", "")  # where a title may break
    assert "rollouts<b>" in page
    assert "Gap of log-probabilities" in page
    assert re.search(r"^step 4/4  loss \S+  .*  reward ", capsys.readouterr().out, re.M)


@pytest.mark.exhaustive
def test_a_reward_that_fails_ends_the_run_with_one_line_and_loses_no_step(config, alone, tmp_path):
    """The steps before the failure are saved, and the run goes on once the reward works again."""
    judge = tmp_path / "judge.py"
    judge.write_text(
        "from pathlib import Path\n\n\ndef judge(prompt, response, record):\n"
        f"    flag = Path({str(tmp_path / 'calls')!r})\n"
        "    with flag.open('a') as file:\n        file.write('x')\n"
        "    if 40 < flag.stat().st_size < 1000:\n        raise RuntimeError('no judge today')\n"
        "    return len(response) % 3\n"
    )
    config = changed(one_device(config), objective={"reward": (f"{judge}:judge",)}, data={"max_tokens": 4})
    with pytest.raises(
        ValueError, match=r"objective\.reward: .*judge raised RuntimeError: no judge today .*; prompt '"
    ):
        train(config, tmp_path / "run")
    assert final(config, tmp_path / "run").step == 2
    (tmp_path / "calls").write_text("x" * 1000)
    train(config, tmp_path / "run")
    assert final(config, tmp_path / "run").step == 4


# --------------------------------------------------------------------------------- other generators


class Guessing:
    """An environment of two turns: the policy guesses, is told something, and guesses again."""

    def __init__(self, turn, told):
        self.turn, self.told = turn, told

    def generate(self, weights, asks):
        first = dict(self.turn.generate(weights, asks))
        again = [a._replace(prompt=[*a.prompt, *first[n].tokens, *self.told]) for n, a in enumerate(asks)]
        for n, second in self.turn.generate(weights, again):
            one = first[n]
            tokens = [*one.tokens, *self.told, *second.tokens]
            own = [1] * len(one.tokens) + [0] * len(self.told) + [1] * len(second.tokens)
            log_probs = [*one.log_probs, *[0.0] * len(self.told), *second.log_probs]
            yield n, Rollout(tokens, log_probs, second.finished, own)


def two_turns(config, mesh):
    data = dataclasses.replace(config.data, max_prompt=config.data.max_prompt + 6, max_tokens=4)
    turn = engine_rollouts(dataclasses.replace(config, data=data), mesh, config.train.batch_size, 1.0)
    return Guessing(turn, [ord("?"), ord("!")])


@pytest.mark.slow
def test_an_environment_of_several_turns_trains_on_the_policys_own_tokens(config):
    config = changed(one_device(config), data={"rollouts": f"{HERE}:two_turns", "max_tokens": 10})
    mesh = sharding.make_mesh(config.parallel, jax.devices()[:1])
    state = init_state(config, mesh)
    batch = Rollouts(config, mesh).next(state)
    own = config.objective.log_probs(config.make_model().apply(weights(state), batch), batch)
    asked = np.asarray(batch["weights"]) > 0
    np.testing.assert_allclose(np.asarray(own)[asked], np.asarray(batch["rollout_log_probs"])[asked], atol=1e-4)
    told = (np.asarray(batch["tokens"]) == ord("?")) & (np.roll(np.asarray(batch["tokens"]), -1, 1) == ord("!"))
    assert told.any(1).all()
    rows, columns = np.nonzero(told)
    assert not asked[rows, columns].any(), "the environment's second token is not asked for"
    assert asked[rows, columns + 1].any(), "and what follows it is"


# ----------------------------------------------------------------------------------------- mistakes


MISTAKES = {
    "data.group = 3: a batch is made of whole groups": {"data": {"group": 3}},
    "data.group = 1: PolicyGradient compares answers": {"data": {"group": 1}},
    "objective.reward is empty": {"objective": {"reward": ()}},
    "objective.reward: 'no_such_file:reward' is not module:function": {
        "objective": {"reward": ("no_such_file:reward",)}
    },
    "objective.kl = 0.1 needs objective.reference": {"objective": {"kl": 0.1}},
    "the run has no adapters": {"objective": {"kl": 0.1, "reference": "adapters_off"}},
    "needs objective.length": {"objective": {"form": "dr_grpo"}},
    "give one weight for each": {"objective": {"reward_weights": (1.0, 2.0)}},
}


@pytest.mark.parametrize("said", MISTAKES)
def test_a_mistake_is_one_line_before_data_is_opened(config, said):
    with pytest.raises(ValueError) as error:
        validate(changed(config, **MISTAKES[said]), 8)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
