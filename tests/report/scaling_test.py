import json

import pytest

from bigmodel_jax.report.page import build_report
from bigmodel_jax.report.scaling import RECORDS_FILE, efficiency, read_records, series_of, verdict


def record(devices, rate, **more):
    return {
        "layout": "fsdp",
        "mode": "weak",
        "source": "measured",
        "device_kind": "TPU v5e",
        "devices": devices,
        "processes": 1,
        "batch_size": 8 * devices,
        "unit": "tokens",
        "step_seconds": 0.5,
        "step_seconds_p95": 0.6,
        "tokens_per_second": rate,
        "mfu": 0.4,
        "bytes_by_axis": {"fsdp": devices * 2.0**20},
        "environment": {"cpu_cores": 64, "packages": {"jax": "0.12"}},
    } | more


def test_efficiency_is_throughput_a_device_over_that_of_the_fewest():
    (series,) = series_of([record(4, 300.0), record(1, 100.0), record(2, 190.0)])
    assert [r["devices"] for r in series.records] == [1, 2, 4]
    assert efficiency(series) == pytest.approx([1.0, 0.95, 0.75])


def test_it_stops_where_more_devices_bring_less_than_half_and_the_reason_is_read_from_the_record():
    rates = {1: 100.0, 2: 195.0, 4: 250.0}
    good = [record(n, rate) for n, rate in rates.items()]
    assert verdict(series_of(good[:2])[0]) == "fsdp: scales to 2 devices, with 98% of the efficiency on 1"
    assert "stops at 2; 4 devices bring +28% (4.0 MiB a device and step cross fsdp)" in verdict(series_of(good)[0])
    shared = [record(n, rate, device_kind="cpu", environment={"cpu_cores": 2}) for n, rate in rates.items()]
    assert "4 virtual devices share 2 cores" in verdict(series_of(shared)[0])
    planned = [record(n, rate, source="planned", bound="ICI") for n, rate in rates.items()]
    assert "bound by ICI" in verdict(series_of(planned)[0])


def test_what_differs_names_a_series():
    records = [record(1, 1.0), record(1, 1.0, source="planned"), record(2, 2.0, layout="data")]
    assert [s.name for s in series_of(records)] == ["fsdp, measured", "fsdp, planned", "data, measured"]


@pytest.mark.slow
def test_pages_of_one_benchmark_and_of_two(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        lines = [json.dumps(record(n, 100.0 * n)) for n in (1, 2)]
        (tmp_path / name / RECORDS_FILE).write_text("\n".join(lines) + "\n")
    one = build_report([tmp_path / "a"], tmp_path / "a" / "report.html").read_text()
    assert "scales to 2 devices" in one
    assert "data:image/png" in one
    assert (tmp_path / "a" / "plots" / "throughput.png").stat().st_size > 1000
    two = build_report([tmp_path / "a", tmp_path / "b"], tmp_path / "two.html").read_text()
    assert "a: fsdp" in two
    assert "b: fsdp" in two


def test_a_broken_record_is_named(tmp_path):
    (tmp_path / RECORDS_FILE).write_text('{"layout": ')
    with pytest.raises(ValueError, match="scale.jsonl"):
        read_records(tmp_path)
