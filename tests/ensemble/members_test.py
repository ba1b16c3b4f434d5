"""What members must have in common; each way in which they do not fit is one line with the first
difference."""

import dataclasses

import jax
import pytest

from bigmodel_jax import cli, config_file
from bigmodel_jax.config import Config
from bigmodel_jax.core import params, sharding
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.data.images.image import ImageData
from bigmodel_jax.ensemble.members import open_members
from bigmodel_jax.models import MODELS
from bigmodel_jax.models.adapters import Lora
from bigmodel_jax.objectives import Classification
from bigmodel_jax.optim import OptimConfig
from bigmodel_jax.optim.groups import Group
from bigmodel_jax.training import new_run
from bigmodel_jax.training.saved import load_weights

MLP = MODELS["mlp"].tiny()
ONE = Config(MLP, Classification(), ImageData(), parallel=ParallelConfig(data=1))


def write(folder, name, config=ONE, seed=0):
    spec = config.make_model().spec
    new_run.write(config, folder, folder / name, params.init(spec, jax.random.key(seed)))
    return str(folder / name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("members")
    write(folder, "a")
    write(folder, "b", seed=1)
    write(folder, "wider", dataclasses.replace(ONE, model=dataclasses.replace(MLP, hidden_dims=(16, 32))))
    write(folder, "shifted", dataclasses.replace(ONE, data=ImageData(max_shift=1)))
    frozen = dataclasses.replace(ONE, optim=OptimConfig(groups=(Group("hidden0/.*", freeze=True),)))
    write(folder, "frozen", frozen)
    write(folder, "frozen_otherwise", frozen, seed=1)
    (folder / "empty").mkdir()
    return folder


def refused(folder, *names, last=0, how="weights"):
    with pytest.raises(ValueError) as error:
        open_members([str(folder / name) for name in names], last, how)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("names", "options", "says"),
    [
        (("a",), {}, "is a single member; give two runs or more"),
        (("a", "a"), {}, "is named twice"),
        (("a", "empty"), {}, "is not a run's folder"),
        (("a", "b@3"), {}, "that step is not kept"),
        (("a",), {"last": 3}, "holds 1 saves (0); it must be 2 or more and at most as many"),
        (("a", "b"), {"last": 2}, "--last 2 needs one run without a step"),
        (("a", "wider"), {}, "model.hidden_dims is (16, 16)"),
        (("a", "wider"), {"how": "soup"}, "model.hidden_dims is (16, 16)"),
        (("a", "shifted"), {"how": "soup"}, "data.max_shift is 0"),
        (("a", "shifted"), {"how": "predictions"}, "data.max_shift is 0"),
        (("a", "frozen"), {}, "parameter hidden0/bias"),
        (("frozen", "frozen_otherwise"), {}, "the constant hidden0/kernel has other values"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_one_line(folder, names, options, says):
    assert says in refused(folder, *names, **options)


def test_predictions_may_come_of_different_models_and_weights_of_different_data(folder):
    open_members([str(folder / "a"), str(folder / "wider")], 0, "predictions")
    open_members([str(folder / "a"), str(folder / "shifted")], 0, "weights")


def test_a_tokenizer_must_be_shared(folder, tmp_path):
    runs = [write(tmp_path, name) for name in "ab"]
    for name in "ab":
        (tmp_path / name / "tokenizer.json").write_text(name)
    with pytest.raises(ValueError, match=r"hold different tokenizer\.json"):
        open_members(runs, 0, "weights")


def test_a_new_run_is_read_as_any_other_with_an_average_of_its_parameters_too(tmp_path):
    config = dataclasses.replace(ONE, optim=OptimConfig(ema_decay=0.5))
    (tmp_path / "vocabulary.json").write_text("{}")
    path = tmp_path / "run"
    write(tmp_path, "run", config)
    mesh = sharding.make_mesh(config.parallel, jax.devices()[:1])
    opened = config_file.load(path)
    assert opened == config
    found, step = load_weights(opened, path, mesh)
    wanted = params.init(config.make_model().spec, jax.random.key(0))
    assert step == 0
    assert all((params.paths(found)[name] == x).all() for name, x in params.paths(wanted).items())
    assert (path / "vocabulary.json").is_file()
    with pytest.raises(ValueError, match="exists and is not empty"):
        write(tmp_path, "run", config)


@pytest.mark.slow
def test_adapters_on_one_base_are_compared_by_its_digests(tmp_path):
    config = dataclasses.replace(ONE, model=MODELS["llama"].tiny(), adapters=Lora(rank=2))
    one, same = write(tmp_path, "one", config), write(tmp_path, "same", config)
    assert len(open_members([one, same], 0, "weights")) == 2
    other = write(tmp_path, "other", config, seed=1)
    with pytest.raises(ValueError, match="adapters and weights beside frozen ones have a mean only on the same base"):
        open_members([one, other], 0, "weights")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--how", "soup"], "--run_dir = '': --how soup makes a run: name its folder"),
        (["--run_dir", "x"], "--run_dir = 'x': --how predictions makes no run; leave it out"),
        (["--batches", "3"], "--batches 3 is for --how weights and soup"),
        (["--output", "a.json"], "--output = 'a.json': the page's numbers go to that file"),
        (["--how", "wights"], "(perhaps you meant 'weights')"),
        (["--how", "soup", "--run_dir", "gs://b/c"], "run_dir"),
    ],
    ids=str,
)
def test_options_that_do_not_fit_are_one_line_and_exit_code_2(folder, args, says, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["ensemble", str(folder / "a"), str(folder / "b"), *args])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1
