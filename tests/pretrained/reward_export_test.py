"""A reward model's run as transformers' class of one score."""

import dataclasses
import json
import subprocess

import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax import config_file
from bigmodel_jax.checkpoint import store
from bigmodel_jax.config import TrainConfig
from bigmodel_jax.core import sharding
from bigmodel_jax.objectives.reward import RewardModel, rewards_of
from bigmodel_jax.pretrained import folder
from bigmodel_jax.pretrained.transfer import export_weights, import_weights
from bigmodel_jax.training.fresh import fresh_state
from bigmodel_jax.training.state import weights
from peft_test import BASE, TOKENS

LIVE = """
import sys, numpy as np, torch, transformers
model, info = transformers.LlamaForSequenceClassification.from_pretrained(
    sys.argv[1], dtype=torch.float32, output_loading_info=True)
assert not any(info.values()), info
with torch.no_grad():
    logits = model.eval()(input_ids=torch.tensor(np.load(sys.argv[1] + "/tokens.npy"))).logits
np.save(sys.argv[1] + "/logits.npy", logits.numpy())
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(folder, the rewards of two texts) of an export."""
    tmp = tmp_path_factory.mktemp("reward")
    import_weights(BASE, tmp / "base")
    config = config_file.load(tmp / "base")
    train = TrainConfig(init_from=str(tmp / "base"))
    config = dataclasses.replace(config, objective=RewardModel(), train=train)
    state = fresh_state(config, sharding.make_mesh(config.parallel)).state
    (tmp / "run").mkdir()
    with store.open_store(tmp / "run/checkpoints", config.checkpoint) as saves:
        store.save(saves, 1, state, {}, {})
    export_weights(config, tmp / "run", tmp / "out")
    tree, tokens = weights(state), jnp.asarray(TOKENS)
    out = config.make_model().apply(tree, {"tokens": tokens})
    return tmp / "out", np.asarray(rewards_of(out, jnp.ones_like(tokens), tree["reward"]["kernel"]))


@pytest.mark.slow
def test_the_head_is_one_score_and_no_token_has_logits(exported):
    found = folder.open_weights(exported[0])
    assert found["score.weight"].shape == (1, 32)
    assert "lm_head.weight" not in found
    hf = json.loads((exported[0] / "config.json").read_text())
    assert (hf["architectures"], hf["id2label"]) == (["LlamaForSequenceClassification"], {"0": "LABEL_0"})


def test_transformers_gives_our_rewards(request):
    python = request.config.getoption("--reference-python")
    if not python:
        pytest.skip("live: --reference-python PATH")
    exported = request.getfixturevalue("exported")  # not before it is known that the test runs
    np.save(exported[0] / "tokens.npy", np.asarray(TOKENS))
    path = exported[0] / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token_id": 0}))
    subprocess.run([python, "-c", LIVE, str(exported[0])], check=True, capture_output=True)
    theirs = np.load(exported[0] / "logits.npy")[:, 0]
    assert np.abs(theirs - exported[1]).max() <= 1e-5 * np.abs(exported[1]).max()
