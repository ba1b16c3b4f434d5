"""A run that learns from another run: the teacher's values come from its folder, and stay there."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import runs
from bigmodel_jax import config_file
from bigmodel_jax.core import params, sharding
from bigmodel_jax.core.storage import Blocks
from bigmodel_jax.data import save_tokenizer
from bigmodel_jax.data.sources.table_files import TableFiles
from bigmodel_jax.data.text.prompt_data import PromptData
from bigmodel_jax.inference.recorded import Recorded
from bigmodel_jax.inference.rollout import Ask, Rollout
from bigmodel_jax.models import GPT2Config
from bigmodel_jax.models.bases import BaseConfig
from bigmodel_jax.objectives import Distillation
from bigmodel_jax.training.evaluate_saved import evaluate_run
from bigmodel_jax.training.saved import load_weights
from loop_test import records, run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """(config, folder) of a GPT-2 of four steps."""
    folder = tmp_path_factory.mktemp("taught")
    config = teacher_of(folder)
    run(config, folder / "teacher")
    return config, folder / "teacher"


def teacher_of(folder):
    config = config_file.load(runs.write(folder))
    model = GPT2Config(vocab_size=264, num_layers=2, embed_dim=48, num_heads=4, max_seq_len=48)
    return dataclasses.replace(config, model=model, train=dataclasses.replace(config.train, steps=4))


def student_of(teacher, steps, **fields):
    folder = teacher[1]
    base = config_file.load(folder.parent / "tiny.py")
    objective = Distillation(teacher=str(folder), student_layers=(1,), teacher_layers=(1,), **fields)
    train = dataclasses.replace(base.train, steps=steps)
    return dataclasses.replace(base, objective=objective, train=train)


def values(config, folder):
    return jax.device_get(load_weights(config, folder, sharding.make_mesh(config.parallel))[0])


@pytest.mark.exhaustive
def test_a_student_learns_resumes_and_is_evaluated_beside_its_teacher(teacher, tmp_path):
    run(student_of(teacher, 4, kind="jsd"), tmp_path / "student")
    config = student_of(teacher, 8, kind="jsd")
    said, _ = run(config, tmp_path / "student")
    assert "Resuming at step 4." in said
    assert not (tmp_path / "student" / "constants").exists(), "the teacher stays in its own folder"
    logged = records(tmp_path / "student")
    assert logged[8]["divergence"] < logged[1]["divergence"]
    assert logged[8]["eval/teacher_loss"] > 0
    read, theirs = values(config, tmp_path / "student")["teacher"], values(*teacher)
    for path, x in params.paths(read).items():
        assert x.dtype.name == "bfloat16"
        np.testing.assert_array_equal(x, params.paths(theirs)[path].astype(x.dtype), err_msg=path)
    assert evaluate_run(config, tmp_path / "student")[1]["eval/teacher_loss"] == pytest.approx(
        logged[8]["eval/teacher_loss"], rel=1e-5
    )


# ---------------------------------------------------------------------------------------- on-policy


def prompts_of(tokenizer, folder, recorded):
    lines = [json.dumps({"prompt": f"the {n}", "completion": " fox"}) for n in range(24)]
    (folder / "prompts.jsonl").write_text("\n".join(lines))
    source = TableFiles(train=str(folder / "prompts.jsonl"), validation=str(folder / "prompts.jsonl"))
    sizes = {"max_prompt": 8, "max_tokens": 6, "group": 1, "recorded": recorded}
    return PromptData(source=source, tokenizer_path=str(tokenizer), **sizes)


class Echo:
    """A generator whose answers tell which asks it got."""

    def generate(self, weights, asks):
        yield from ((n, Rollout([ask.key[1]], [-1.0], False)) for n, ask in enumerate(asks))


def test_a_share_of_the_answers_is_the_records_own(tmp_path):
    config = teacher_of(tmp_path)
    save_tokenizer(config.data, tmp_path / "tokenizer.json")
    config = dataclasses.replace(config, data=prompts_of(tmp_path / "tokenizer.json", tmp_path, 0.4))
    tokenizer = config.data.open_tokenizer()
    own = [*tokenizer.encode(" fox"), tokenizer.stops[0]]
    asks = [Ask([1], {"completion": " fox"}, (0, n)) for n in range(400)]
    found = dict(Recorded(config, Echo()).generate(None, asks))
    assert found == dict(Recorded(config, Echo()).generate(None, asks))
    assert sorted(found) == list(range(400))
    recorded = [n for n, rollout in found.items() if rollout == Rollout(own, [0.0] * len(own), True)]
    assert 0.3 < len(recorded) / 400 < 0.5
    assert all(found[n].tokens == [n] for n in found if n not in recorded)


@pytest.mark.exhaustive
def test_a_student_learns_from_its_own_answers(teacher, tmp_path):
    base = student_of(teacher, 4, kind="reverse_kl", alpha=1.0)
    config = dataclasses.replace(base, data=prompts_of(teacher[1] / "tokenizer.json", tmp_path, 0.5))
    run(config, tmp_path / "student")
    logged = records(tmp_path / "student")
    assert logged[4]["divergence"] > 0
    assert 1 <= logged[4]["response_length"] <= 6
    assert logged[4]["eval/divergence"] > 0


@pytest.mark.exhaustive
def test_a_teacher_in_four_bits_is_read_from_its_folder_packed_and_read_again(teacher, tmp_path):
    storage = BaseConfig("nf4", 16, double=True)
    run(student_of(teacher, 2, teacher_storage=storage), tmp_path / "student")
    config = student_of(teacher, 4, teacher_storage=storage)
    assert "Resuming at step 2." in run(config, tmp_path / "student")[0]
    assert not (tmp_path / "student" / "constants").exists(), "the teacher stays in its own folder"
    read, theirs = (params.paths(values(*one)) for one in ((config, tmp_path / "student"), teacher))
    kept = read["teacher/layers/mlp/up/kernel"]
    wanted = jax.device_get(Blocks("nf4", 16, double=True).pack(theirs["layers/mlp/up/kernel"]))
    assert kept.kind == "nf4"
    jax.tree.map(np.testing.assert_array_equal, kept, wanted)
    logged = records(tmp_path / "student")
    assert evaluate_run(config, tmp_path / "student")[1]["eval/teacher_loss"] == pytest.approx(
        logged[4]["eval/teacher_loss"], rel=1e-5
    )
