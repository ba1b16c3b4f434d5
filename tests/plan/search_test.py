"""The search for a layout, before anything is compiled: what is considered, rejected, and
written."""

import dataclasses
import math
import typing
from pathlib import Path

import pytest

from bigmodel_jax import config_file
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.models import LlamaConfig, compute
from bigmodel_jax.nn.stack import Remat
from bigmodel_jax.plan import changes, search
from bigmodel_jax.plan.sums import memory, saved, seconds
from bigmodel_jax.plan.topology import parse

CONFIG = Path(__file__).parents[2] / "configs" / "llama3_8b.py"


def test_a_search_rejects_with_reasons_and_writes_a_config_that_loads(tmp_path):
    config, topology = config_file.load(CONFIG), parse("v5e:16x16")
    found, rejected = search.candidates(config, topology)
    assert found
    assert all(c.memory <= topology.chip.hbm for c in found)
    assert [c.seconds for c in found] == sorted(c.seconds for c in found)
    # Whole replicas of 8 B parameters with Adam are 96 GB and more.
    assert any("data=256" in title and "GiB" in reason for title, reason in rejected)
    cut = next(c for c in found if "sequence cut over tensor" in c.title)
    for name, best in (("best", found[0]), ("cut", cut)):
        path = tmp_path / f"{name}.py"
        search.write_config(path, CONFIG, {"config": config_file.to_json(best.config)}, "The best.")
        loaded = config_file.load(path)
        assert loaded.parallel == best.config.parallel
        assert (loaded.model, loaded.train) == (best.config.model, best.config.train)


def test_slices_lie_along_data_or_fsdp():
    topology = parse("v5e:4x4", 4)
    config = config_file.load(CONFIG)
    config = dataclasses.replace(
        config,
        parallel=dataclasses.replace(config.parallel, slices=4),
        data=dataclasses.replace(config.data, seq_len=512),
        train=dataclasses.replace(config.train, batch_size=64),
    )
    meshes = {layout.parallel for layout in search.layouts(config, topology)}
    assert all(mesh.data % 4 == 0 or mesh.fsdp % 4 == 0 for mesh in meshes)
    across = [m for m in meshes if m.data == 1 and m.fsdp == 64 and not m.offload_optimizer]
    within = [m for m in meshes if m.data == 4 and m.fsdp == 16 and not m.offload_optimizer]
    assert across
    assert within
    # A gather between slices waits for their network: three parts of 8 B / 64 numbers, three times
    # over and once back.
    step = {name: dataclasses.replace(config, parallel=m[0]) for name, m in (("across", across), ("within", within))}
    assert seconds(step["across"], topology) > 2.0 * 4 * 8.03e9 / 64 * 3 / topology.chip.dcn
    # A gradient's all-reduce in float32, of a sixteenth.
    assert seconds(step["within"], topology) > 8.0 * 8.03e9 / 16 / topology.chip.dcn


@pytest.mark.parametrize("own", [{"seq": 8}, {"stage": 2, "pipeline_microbatches": 8}])
def test_a_search_keeps_the_stages_and_the_cut_sequence_of_the_config(own):
    topology, config = parse("v5e:16x16"), config_file.load(CONFIG)
    parallel = dataclasses.replace(config.parallel, **own)
    train = dataclasses.replace(config.train, batch_size=2048)
    config = dataclasses.replace(config, parallel=parallel, train=train)
    found, _ = search.candidates(config, topology)
    assert found
    for candidate in found:
        assert math.prod(candidate.config.parallel.sizes()) == topology.devices
        assert own.items() <= dataclasses.asdict(candidate.config.parallel).items()
    assert any(search.invalid(candidate.config, topology) is None for candidate in found)


def test_sums_of_a_pipeline():
    topology, config = parse("v5e:16x16"), config_file.load(CONFIG)
    train = dataclasses.replace(config.train, batch_size=2048)
    plain, few, many, early = (
        dataclasses.replace(config, train=train, parallel=dataclasses.replace(config.parallel, data=1, **changes))
        for changes in (
            {"fsdp": 256},
            {"stage": 4, "fsdp": 64, "pipeline_microbatches": 4},
            {"stage": 4, "fsdp": 64, "pipeline_microbatches": 32},
            {"stage": 4, "fsdp": 64, "pipeline_microbatches": 32, "pipeline_schedule": "1f1b"},
        )
    )
    # 3 of 7 ticks are idle, or 3 of 35.
    assert seconds(few, topology) / seconds(plain, topology) == pytest.approx(7 / 4, rel=0.01)
    assert seconds(many, topology) / seconds(plain, topology) == pytest.approx(35 / 32, rel=0.01)
    state = 16.0 * 8.03e9 / 256
    assert memory(many) == pytest.approx(memory(plain))
    assert memory(early) - state == pytest.approx((memory(many) - state) * 11 / 32, rel=0.01)


def test_cutting_the_sequence_over_tensor_is_tried_and_saves_what_layers_keep():
    topology = parse("v5e:16x16")
    config = config_file.load(CONFIG)
    tensor = dataclasses.replace(config, parallel=dataclasses.replace(config.parallel, fsdp=32, tensor=8))
    tried = {change.options: change.config for change in changes.candidates(tensor, topology)}
    cut = tried["--parallel.rules.residual_seq seq tensor"]
    assert cut.parallel.rules.residual_seq == ("seq", "tensor")
    assert not any("residual_seq" in change.options for change in changes.candidates(config, topology))
    whole, eighth = (saved(c.model, c.parallel)[0] for c in (tensor, cut))
    assert whole == 8 * eighth


# Numbers a token that a layer of LlamaConfig.tiny() keeps: 32 of its input, 64 of q, k, v, 32 of
# attention, 128 of the MLP.
KEPT = {
    "none": (4 * 32 + 64 + 32 + 2 * 128, 0, 6.0),
    "dots": (2 * 32 + 64 + 32 + 128, 0, 6.2),
    "full": (32, 0, 8.0),
    "save_attn": (64, 0, 8.0),
    "save_qkv_attn": (128, 0, 7.6),
    "save_qkv_attn_mlp": (256, 0, 6.4),
    "offload_input": (0, 32, 8.0),
    "offload_attn": (0, 64, 8.0),
    "offload_qkv_attn": (0, 128, 7.6),
}


def test_every_choice_of_what_layers_keep_is_summed():
    assert set(KEPT) == set(typing.get_args(Remat)) > set(search.REMATS)
    for remat, (device, host, passes) in KEPT.items():
        found = saved(compute.changed(LlamaConfig.tiny(), remat=remat), ParallelConfig())
        assert found == (2 * device, 2 * host, pytest.approx(passes)), remat


def test_a_pipeline_that_keeps_all_microbatches_is_tried_with_few_waiting():
    topology = parse("v5e:16x16")
    config = config_file.load(CONFIG)
    stages = dataclasses.replace(config.parallel, stage=4, fsdp=64, pipeline_microbatches=4)
    train = dataclasses.replace(config.train, batch_size=256)
    staged = dataclasses.replace(config, parallel=stages, train=train)
    options = [change.options for change in changes.candidates(staged, topology)]
    assert options[0] == "--parallel.pipeline_schedule 1f1b"
    assert not any("pipeline" in change.options for change in changes.candidates(config, topology))
