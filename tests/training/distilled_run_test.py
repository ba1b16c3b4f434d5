"""A run that learns from another run: the teacher's values come from its folder, and stay there."""

import dataclasses

import jax
import numpy as np
import pytest

import runs
from bigmodel_jax import config_file
from bigmodel_jax.core import params, sharding
from bigmodel_jax.models import GPT2Config
from bigmodel_jax.objectives import Distillation
from bigmodel_jax.training.evaluate_saved import evaluate_run
from bigmodel_jax.training.saved import load_weights
from loop_test import records, run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """(config, folder) of a GPT-2 of four steps."""
    folder = tmp_path_factory.mktemp("taught")
    config = config_file.load(runs.write(folder))
    model = GPT2Config(vocab_size=264, num_layers=2, embed_dim=48, num_heads=4, max_seq_len=48)
    config = dataclasses.replace(config, model=model, train=dataclasses.replace(config.train, steps=4))
    run(config, folder / "teacher")
    return config, folder / "teacher"


def student_of(teacher, steps, **fields):
    folder = teacher[1]
    base = config_file.load(folder.parent / "tiny.py")
    objective = Distillation(teacher=str(folder), student_layers=(1,), teacher_layers=(1,), **fields)
    train = dataclasses.replace(base.train, steps=steps)
    return dataclasses.replace(base, objective=objective, train=train)


def values(config, folder):
    return jax.device_get(load_weights(config, folder, sharding.make_mesh(config.parallel))[0])


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
