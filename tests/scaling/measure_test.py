import json
import types

import pytest
from rich.console import Console

from bigmodel_jax.config import Config, TrainConfig
from bigmodel_jax.data import DataConfig
from bigmodel_jax.models import LlamaConfig
from bigmodel_jax.objectives import NextToken
from bigmodel_jax.scaling import benchmark, measure
from bigmodel_jax.scaling.points import make_points

CONFIG = Config(LlamaConfig.tiny(), NextToken(), DataConfig(), train=TrainConfig(batch_size=8))
PEAK = {"flops": 5e11, "source": "measured matmul peak", "shared": True}


def test_the_peak_is_measured_once_and_every_point_has_it(tmp_path, monkeypatch):
    """If each point measured it again, the peak of a CPU would fall as the points' devices load it,
    and MFU would rise while throughput falls."""
    jobs = []

    def run(job, devices, processes):
        jobs.append(job)
        if "config" not in job:
            return PEAK
        return {
            "device_kind": "cpu",
            "batch_size": 8,
            "unit": "tokens",
            "step_seconds": 0.5,
            "tokens_per_second": 100.0,
            "mfu": 0.5,
            "bytes_by_axis": {},
            "environment": {"cpu_cores": 2},
        }

    monkeypatch.setattr(measure, "_run", run)
    points = make_points(CONFIG, (1, 2, 4), ("data", "fsdp"), "weak")
    benchmark.scale(points, tmp_path, topologies=(), windows=1, steps=1, console=Console(quiet=True))
    assert [job["peak"] for job in jobs] == ["float32", *[PEAK] * 6]
    assert len((tmp_path / "scale.jsonl").read_text().splitlines()) == 6


@pytest.mark.parametrize(("shared", "total"), [(True, 5e11), (False, 4 * 5e11)])
def test_mfu_is_of_the_peak_of_all_devices_which_virtual_ones_share(shared, total):
    assert measure.peak_of_all(PEAK | {"shared": shared}, 4) == total


def test_the_peak_of_a_known_device_is_its_data_sheets(monkeypatch):
    import jax

    device = types.SimpleNamespace(device_kind="TPU7x", platform="tpu")
    monkeypatch.setattr(jax, "devices", lambda: [device, device])
    found = measure.peak_of("bfloat16")
    assert json.loads(json.dumps(found)) == {"flops": 1153.5e12, "source": "TPU7x data sheet", "shared": False}
