"""`launch.py plan` as it is typed: mistakes, the screen, the page, and one real compile."""

import copy
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from bigmodel_jax import cli
from bigmodel_jax.plan import screen
from bigmodel_jax.plan.topology import parse
from bigmodel_jax.report.plan_page import build_plan_page

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "llama3_8b.py"
GIB = 2.0**30

TINY = """
from bigmodel_jax.config import Config, TrainConfig
from bigmodel_jax.core.precision import Policy
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.data import TextData, TextFiles
from bigmodel_jax.models import Compute, LlamaConfig
from bigmodel_jax.objectives import NextToken


def get_config():
    return Config(
        model=LlamaConfig(vocab_size=512, num_layers=2, embed_dim=128, num_heads=2, num_kv_heads=2, head_dim=64,
                          mlp_dim=256, max_seq_len=256, compute=Compute(remat="full")),
        objective=NextToken(),
        data=TextData(source=TextFiles("none.txt", "none.txt"), seq_len=256),
        parallel=ParallelConfig(data=1, fsdp=4),
        precision=Policy(compute="bfloat16"),
        train=TrainConfig(batch_size=4),
    )
"""

PLAN = {
    "name": "llama3_8b",
    "date": "2026-01-01",
    "topology": "v5e:16x16",
    "slices": 1,
    "chip": vars(parse("v5e:16x16").chip),
    "chips": 256,
    "devices": 256,
    "mesh": {"fsdp": 256},
    "model": "Llama",
    "parameters": 8_030_261_248,
    "batch_size": 256,
    "tokens_per_step": 1_048_576,
    "precision": {"param": "float32", "compute": "bfloat16"},
    "fits": True,
    "refused": "",
    "memory": {
        "limit": 15.75 * GIB,
        "used": 5.0 * GIB,
        "headroom": 10.75 * GIB,
        "host": 0,
        "parts": {
            "parameters": 0.12 * GIB,
            "optimizer": 0.24 * GIB,
            "temporaries": 4.5 * GIB,
            "activations": 0.14 * GIB,
        },
        "compiler": {},
        "largest": [
            {
                "bytes": GIB,
                "shape": "bf16[1,4096,4096]",
                "operation": "dot",
                "source": "models/llama.py:109",
                "kind": "temporaries",
            }
        ],
    },
    "flops": {
        "model": 5e16,
        "attention": 5e15,
        "counted_per_device": 2.6e14,
        "by_type": {"bf16": 2.6e14},
        "kernels_per_device": 1e13,
    },
    "hbm_bytes": 2e11,
    "collectives": [
        {
            "axes": ["fsdp"],
            "kind": kind,
            "network": "ici",
            "asynchronous": i % 2 == 0,
            "runs": 64,
            "bytes": 1e9,
            "sent": 1e9,
            "seconds": 0.1 / (i + 1),
        }
        for i, kind in enumerate(["all-gather", "reduce-scatter", "all-reduce"] * 3)
    ],
    "slowest": [["mlp/dot_general", 0.5, 1e14, 1e9]],
    "roofline": {
        "compute": 1.3,
        "hbm": 0.3,
        "ici": 0.6,
        "dcn": 0.0,
        "busy": 1.4,
        "expected": 1.5,
        "hidden": 1.4,
        "step": 1.6,
        "exposed": 2.0,
        "bound": "compute",
    },
    "step_seconds": 1.6,
    "mfu": 0.5,
    "mfu_bound": 0.6,
    "tokens_per_second": 655_360.0,
    "run": {
        "tokens": 1.5e13,
        "steps": 1.4e7,
        "seconds": 2e7,
        "chip_hours": 1.6e6,
        "dollars_per_chip_hour": 1.2,
        "dollars": 1.9e6,
        "prices_of": "2025-11",
    },
    "compile": {"seconds": 170.0, "cpu_seconds": 200.0, "peak_rss": 2e9, "lower_seconds": 5.0, "cached": False},
    "config": {"type": "x:Config", "train": {"type": "x:TrainConfig", "steps": 10}},
}


def failed(*args: str) -> str:
    with pytest.raises(SystemExit) as stop:
        cli.main(["plan", *args])
    assert stop.value.code == 2


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ((), "--topology is missing"),
        (("--topology", "v5f:16x16"), "perhaps you meant 'v5"),
        (("--topology", "v5e:16x16", "--parallel.fsdp", "100"), "these fit: --parallel.data"),
        (("--topology", "v5e:16x16", "--topologi", "x"), "--topology"),
        (("--topology", "v5e:32x32"), "--slices N"),
        (("--topology", "v5e:16x16", "--parallel.fsdp", "4", "--parallel.tensor", "64"), "model.num_heads = 32"),
        (("--topology", "v5e:16x16", "--prices", "none.toml"), "--prices 'none.toml': no such file"),
        (("--topology", "v5e:16x16", "--mtbf", "0"), "mtbf = 0.0; it must be above 0"),
        (("--topology", "v5e:16x16", "--mtbf", "-5"), "mtbf = -5.0; it must be above 0"),
        (("--topology", "v5e:16x16", "--mtbf", "nan"), "mtbf = nan; it must be a finite number"),
        (("--topology", "v5e:16x16", "--mtbf", "inf"), "mtbf = inf; it must be a finite number"),
        (("--topology", "v5e:16x16", "--mtbf", "often"), "--mtbf = 'often'"),
        (("--topology", "v5e:16x16", "--mtbf", "9", "--storage", "0"), "storage = 0.0; it must be above 0"),
        (("--topology", "v5e:16x16", "--mtbf", "9", "--save_seconds", "-1"), "save_seconds = -1.0; it must be above 0"),
        (("--topology", "v5e:16x16", "--mtbf", "9", "--restart_minutes", "-1"), "restart_minutes = -1.0; it must be 0"),
        (("--topology", "v5e:16x16", "--restart_minutes", "5"), "need --mtbf HOURS, which is missing"),
    ],
)
def test_a_mistake_is_one_line_with_what_is_meant(args, says, capsys, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    failed(str(CONFIG), *args)
    err = capsys.readouterr().err
    assert says in err
    assert len(err.strip().splitlines()) == 1


def test_the_screen_fits_eighty_columns_and_says_all_that_is_asked(capsys):
    screen.show(PLAN, Console(width=80))
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 45, "one screen"
    for text in ("FITS", "10.75 GiB left", "MFU", "tokens/s", "optimizer state", "all-gather", "chip-hours", "2025-11"):
        assert text in out


def test_what_does_not_fit_is_shown_with_its_lines_and_the_change_that_helps(capsys):
    plan = copy.deepcopy(PLAN) | {
        "fits": False,
        "changes": [
            {"options": "--train.microbatches 2", "fits": False, "used": 0.0},
            {"options": "--train.microbatches 4", "fits": True, "used": 9 * GIB},
        ],
    }
    plan["memory"] |= {"used": 20 * GIB, "headroom": -4.25 * GIB}
    screen.show(plan, Console(width=80))
    out = capsys.readouterr().out
    for text in (
        "DOES NOT FIT",
        "4.25 GiB too much",
        "models/llama.py:109",
        "This makes it fit (compiled): --train.microbatches 4",
    ):
        assert text in out


def test_the_page_opens_offline_and_holds_the_pictures(tmp_path):
    page = build_plan_page(PLAN, tmp_path).read_text()
    assert "http://" not in page.replace("http-equiv", "")
    assert "https://" not in page
    for name in ("memory", "time", "collectives"):
        assert (tmp_path / f"{name}.png").stat().st_size > 5000
    assert page.count("data:image/png;base64") == 2 * 3
    assert "models/llama.py:109" in page


NEEDS_LIBTPU = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: uv sync --extra plan"
)

NEEDS_CUDA = pytest.mark.skipif(
    importlib.util.find_spec("jax_plugins") is None or importlib.util.find_spec("jax_plugins.xla_cuda13") is None,
    reason="the CUDA compiler is not installed: uv sync --extra plan-gpu",
)


def planned(folder: Path, topology: str, *options: str) -> tuple[int, dict]:
    """(exit code, plan.json) of `launch.py plan` on the tiny model; nothing may come on stderr."""
    (folder / "tiny.py").write_text(TINY)
    env = {k: v for k, v in os.environ.items() if not k.startswith(("TPU_", "JAX_", "XLA_"))}
    command = [sys.executable, str(ROOT / "launch.py"), "plan", "tiny.py", "--topology", topology, "--output", "out"]
    env |= {"BIGMODEL_CACHE": str(folder / "cache")}
    done = subprocess.run([*command, *options], cwd=folder, env=env, capture_output=True, text=True)
    assert done.stderr == ""
    return done.returncode, json.loads((folder / "out" / "plan.json").read_text())


@pytest.mark.slow
@NEEDS_LIBTPU
def test_a_tiny_model_is_planned_on_four_chips_of_v5e(tmp_path):
    """The real compiler runs. The model fits, only the plan is printed, and the second plan comes
    from the cache."""
    (code, first), (_, second) = (planned(tmp_path, "v5e:2x2", *more) for more in ((), ("--mtbf", "5000")))
    assert code == 0
    assert first["fits"]
    assert (first["compile"]["cached"], second["compile"]["cached"]) == (False, True)
    assert "goodput" not in first
    assert second["goodput"]["checkpoint_bytes"] == pytest.approx(3 * 4 * second["parameters"], abs=64)  # and counts
    assert second["goodput"]["hosts"] == 1
    # Weights' products 8 times forward (remat), the last one of each layer not recomputed; the
    # head's 6 times.
    tokens, width, mlp = 256, 128, 256
    layer = 2 * tokens * (4 * width * width + 3 * width * mlp)
    attention = 2 * 2 * tokens * tokens * width
    head = 2 * tokens * 512 * width
    forward = 2 * (layer + attention) + head
    assert first["flops"]["model"] == pytest.approx(4 * 3 * forward, rel=0.01)
    assert first["flops"]["counted_per_device"] == pytest.approx(3 * forward + 2 * (layer + attention), rel=0.1)
    assert {tuple(row["axes"]) for row in first["collectives"]} == {("fsdp",)}
    state = 3 * 4 * first["parameters"] / 4
    assert first["memory"]["parts"]["parameters"] + first["memory"]["parts"]["optimizer"] == pytest.approx(
        state, rel=0.01
    )


@pytest.mark.exhaustive
@NEEDS_LIBTPU
def test_what_does_not_fit_ends_with_a_change_that_was_compiled_and_fits(tmp_path):
    """One chip has 12,288 rows: the attention logits alone, 12,288 x 2 x 256 x 256 in float32, take
    6 GiB."""
    code, plan = planned(tmp_path, "v5e:1x1", "--parallel.fsdp", "1", "--train.batch_size", "12288")
    assert code == 3
    assert not plan["fits"]
    assert "RESOURCE_EXHAUSTED" in plan["refused"]
    assert plan["memory"]["used"] > plan["memory"]["limit"]
    assert plan["memory"]["largest"][0]["bytes"] > 4 * GIB
    assert any("models/llama.py:" in row["source"] for row in plan["memory"]["largest"][:3])
    *failed, helped = plan["changes"]
    assert helped["fits"]
    assert helped["used"] <= plan["memory"]["limit"]
    assert not any(change["fits"] for change in failed)


@pytest.mark.slow
@NEEDS_CUDA
def test_hosts_of_gpus_are_planned_by_their_own_compiler(tmp_path):
    """Two hosts have four H100s each. Attention is cuDNN's, and the plan tells traffic between
    hosts from traffic inside one."""
    sizes = ("--data.seq_len", "1024", "--model.max_seq_len", "1024", "--train.batch_size", "8")
    code, plan = planned(tmp_path, "h100:1x2x4", *sizes, "--parallel.fsdp", "4", "--parallel.data", "2")
    assert code == 0
    assert plan["flops"]["kernels_per_device"] > 0
    networks = {(row["network"], *row["axes"]) for row in plan["collectives"] if row["sent"]}
    assert ("ici", "fsdp") in networks
    assert ("dcn", "data") in networks
    assert ("dcn", "fsdp") not in networks
