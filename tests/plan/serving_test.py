"""`launch.py plan --serve`: mistakes, the screen, the page, and real compiles of a tiny model's
prefill and decode."""

import copy
import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from bigmodel_jax import cli, config_file
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.plan import serving_compile, serving_limits, serving_plan, serving_screen
from bigmodel_jax.plan.serving import Serving, for_options
from bigmodel_jax.plan.topology import parse
from bigmodel_jax.report.serving_page import build_serving_page

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "llama3_8b.py"
GIB = 2.0**30

LINE = {"compute": 1e-3, "hbm": 4e-3, "ici": 1e-4, "dcn": 0.0, "busy": 4e-3, "expected": 5e-3}
LINE |= {"hidden": 4e-3, "step": 5e-3, "exposed": 5.1e-3, "bound": "hbm"}
RATE = {
    "tokens": 16,
    "roofline": LINE,
    "step_seconds": 5e-3,
    "tokens_per_second": 3200.0,
    "tokens_per_second_of_a_chip": 800.0,
    "dollars_per_million": 0.41,
    "flops_per_device": 6e10,
    "hbm_bytes": 2.4e9,
    "collectives": [
        {"axes": ["tensor"], "kind": "all-reduce", "network": "ici", "asynchronous": False, "runs": 65, "bytes": 1e7,
         "sent": 1e7, "seconds": 1e-4}
    ],
    "slowest": [["dot_general, models/llama.py:125", 2e-3, 4e10, 1e9]],
}  # fmt: skip
PLAN = {
    "kind": "serving",
    "name": "llama3_8b",
    "date": "2026-01-01",
    "topology": "v5e:2x2",
    "chip": vars(parse("v5e:2x2").chip),
    "chips": 4,
    "devices": 4,
    "mesh": {"tensor": 4},
    "model": "Llama",
    "parameters": 8_030_261_248,
    "serving": {"slots": 16, "length": 1024, "prompt": 512, "weights": "int8", "block": 128},
    "weights": "int8",
    "compute": "bfloat16",
    "fits": True,
    "refused": "",
    "memory": {
        "limit": 15.75 * GIB,
        "used": 2.75 * GIB,
        "headroom": 13.0 * GIB,
        "parts": {"weights": 2.2 * GIB, "cache": 0.5 * GIB, "temporaries": 0.04 * GIB, "program": 0.01 * GIB},
        "cache_of_a_slot": GIB / 32,
        "weights_by_type": {"int8": 1.7e9, "bfloat16": 5e8, "float32": 5e7},
        "compiler": {},
    },
    "compile": {
        name: {"compile_seconds": 9.0, "cpu_seconds": 9.0, "peak_rss": 1e9, "lower_seconds": 1.0, "cached": False}
        for name in ("decode", "prefill")
    },
    "decode": RATE,
    "prefill": RATE | {"tokens": 512},
    "requests": {"prompt": 512, "answer": 512, "per_second": 5.5, "answer_tokens_per_second": 2800.0, "seconds": 3.0,
                 "dollars_per_thousand": 0.24},
    "largest": {"slots": 400, "used": 15.5 * GIB, "does_not_fit": 432, "step_seconds": 0.1, "tokens_per_second": 4000.0,
                "dollars_per_million": 0.33},
    "dollars_per_chip_hour": 1.2,
    "prices_of": "2025-11",
    "config": {"type": "x:Config", "model": {"type": "x:LlamaConfig", "num_layers": 32}},
}  # fmt: skip

TINY = """
from bigmodel_jax.config import Config
from bigmodel_jax.core.precision import Policy
from bigmodel_jax.data import TextData, TextFiles
from bigmodel_jax.models import LlamaConfig
from bigmodel_jax.objectives import NextToken


def get_config():
    return Config(
        model=LlamaConfig(vocab_size=512, num_layers=2, embed_dim=512, num_heads=4, num_kv_heads=4, head_dim=128,
                          mlp_dim=2048, max_seq_len=256),
        objective=NextToken(),
        data=TextData(source=TextFiles("none.txt", "none.txt"), seq_len=256),
        precision=Policy(compute="bfloat16"),
    )
"""


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--serve", "v5e:2x2", "--slots", "0"), "slots = 0; it must be 1 or more"),
        (("--serve", "v5f:2x2"), "--serve 'v5f:2x2': chip 'v5f' is unknown (perhaps you meant"),
        (("--serve", "v5e:2"), "--serve 'v5e:2': v5e takes 2 numbers"),
        (("--serve", "v5e:2x2", "--weights", "int9"), "--weights = 'int9'; allowed:"),
        (("--serve", "v5e:2x2", "--length", "16384"), "--length 16384: model.max_seq_len is 8192"),
        (("--serve", "v5e:2x2", "--length", "64", "--prompt", "64"), "--prompt 64: it must leave room"),
        (
            ("--serve", "v5e:2x2", "--length", "1"),
            "--length 1: it must have room for a prompt and an answer, so 2 or more",
        ),
        (("--serve", "v5e:2x2", "--slots", "3", "--parallel.data", "2"), "--slots 3 is not divisible by the 2 devices"),
        (("--serve", "v5e:2x2", "--parallel.data", "3"), "these fit: --parallel.data"),
        (("--serve", "v5e:2x2", "--parallel.stage", "2"), "parallel.stage = 2: texts are generated without a pipeline"),
        (("--serve", "v5e:2x2", "--topology", "v5e:2x2"), "--topology belongs to a plan of training"),
        (("--serve", "v5e:2x2", "--search"), "--search belongs to a plan of training"),
        (("--serve", "v5e:2x2", "--mtbf", "5"), "--mtbf belongs to a plan of training"),
        (("--topology", "v5e:16x16", "--slots", "8"), "need --serve NAME"),
    ],
)
def test_a_mistake_is_one_line(args, says, capsys, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    with pytest.raises(SystemExit) as stop:
        cli.main(["plan", str(CONFIG), *args])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert says in line


def test_a_model_without_a_cache_is_refused(capsys, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    with pytest.raises(SystemExit):
        cli.main(["plan", str(ROOT / "configs" / "vit_22b.py"), "--serve", "v5e:2x2"])
    assert "--serve: ViTConfig has no decode cache, so it cannot generate" in capsys.readouterr().err


def test_the_screen_names_the_kind_in_which_a_quantised_run_stores_its_weights():
    config = config_file.load(ROOT / "configs" / "lm_tiny.py")
    small = config_file.load(ROOT / "configs" / "lm_tiny.py", ["--quantize.kind", "int4"])
    assert serving_plan.stored_as(config, Serving()) == "float32"
    assert serving_plan.stored_as(config, Serving(weights="int8")) == "int8"
    assert serving_plan.stored_as(small, Serving()) == "int4, as the run stores them"


@pytest.mark.parametrize(
    ("machine", "model", "sizes"),
    [
        ("v5e:2x4", {}, (1, 8)),
        ("v5e:2x4", {"num_heads": 36, "num_kv_heads": 4}, (2, 4)),
        ("h100:1x1x1", {}, (1, 1)),
    ],
)
def test_by_default_the_weights_are_cut_over_as_many_chips_as_their_sizes_allow(machine, model, sizes):
    config = config_file.load(CONFIG)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, **model))
    found = serving_compile.with_layout(for_options(config), parse(machine)).parallel
    assert (found.data, found.tensor) == sizes


def test_what_the_options_say_of_the_mesh_stands():
    config = dataclasses.replace(config_file.load(CONFIG), parallel=ParallelConfig(data=2, tensor=-1))
    assert serving_compile.with_layout(config, parse("v5e:2x4")) == config


def test_prefill_is_planned_for_a_bucket_of_the_engine():
    assert Serving(length=1024).prompt_tokens == 512
    assert Serving(length=1024, prompt=500).prompt_tokens == 512
    assert Serving(length=2, prompt=1).prompt_tokens == 2


@pytest.mark.parametrize(
    ("length", "prompt", "wanted"),
    [(1024, 0, (512, 512)), (1024, 1000, (1000, 24)), (1024, 1023, (1023, 1)), (16, 0, (8, 8)), (2, 0, (1, 1))],
)
def test_the_answer_is_what_the_prompt_leaves_however_long_prefill_pads_it(length, prompt, wanted, monkeypatch):
    monkeypatch.setattr(serving_plan, "rate", lambda *_: RATE)
    server = serving_compile.Server(None, Serving(length=length, prompt=prompt), dict.fromkeys(("decode", "prefill")))
    found = serving_plan.rates(server, parse("v5e:2x2"), {"price": 1.2, "date": "2025-11"})["requests"]
    assert (found["prompt"], found["answer"]) == wanted
    assert found["answer_tokens_per_second"] == pytest.approx(found["answer"] * found["per_second"])
    assert found["seconds"] > RATE["step_seconds"]


@pytest.mark.parametrize(
    ("length", "prompt", "said"),
    [(2048, 0, "--length 1024"), (2048, 1500, "--length 1024 --prompt 750"), (1025, 1024, "--length 512 --prompt 511")],
)
def test_a_shorter_slot_is_named_with_the_prompt_that_it_has_room_for(length, prompt, said):
    one = SimpleNamespace(sizes={"weights": 0.0}, mesh={"data": 1, "fsdp": 1, "expert": 1, "tensor": 4})
    server = SimpleNamespace(
        config=config_file.load(CONFIG),
        serving=Serving(length=length, prompt=prompt, weights="int4"),
        programs={"decode": one},
        used=1.0,
    )
    *_, (options, _, serving) = serving_limits.candidates(server, parse("v5e:2x2"))
    assert options == said
    assert serving.unpadded < serving.length


@pytest.fixture
def compiled(monkeypatch):
    """A compiler for which a slot takes 0.01 GiB of cache, and from 1,000 slots on a gigabyte more.

    compiled.sizes: the numbers of slots that were compiled.
    """

    def compiled(config, topology, serving, say):
        compiled.sizes.append(serving.slots)
        used = (2.0 + 0.01 * serving.slots + (serving.slots >= 1000)) * GIB
        mesh = dict.fromkeys(("data", "fsdp", "expert", "tensor"), 1)
        one = SimpleNamespace(sizes={"cache": 0.01 * serving.slots * GIB, "weights": 2.0 * GIB}, mesh=mesh)
        fits = lambda topology: used <= topology.chip.hbm  # noqa: E731
        return SimpleNamespace(config=config, serving=serving, programs={"decode": one}, used=used, fits=fits)

    compiled.sizes = []
    monkeypatch.setattr(serving_limits, "compile_server", compiled)
    monkeypatch.setattr(serving_limits, "check", lambda *_: None)
    return compiled


def test_the_largest_batch_is_found_between_one_that_fits_and_one_that_does_not(compiled):
    topology = parse("v5e:1x1")
    found, more = serving_limits.largest(compiled(None, topology, Serving(slots=16), print), topology, print)
    assert len(compiled.sizes) <= serving_limits.TRIES
    assert found.fits(topology)
    assert 1200 < found.serving.slots < 1276
    assert not compiled(None, topology, Serving(slots=more), print).fits(topology)


def test_changes_are_compiled_up_to_the_first_that_fits(compiled):
    topology = parse("v5e:1x1")
    server = compiled(config_file.load(CONFIG), topology, Serving(slots=2000), print)
    found = list(serving_limits.changes(server, topology, print))
    assert [one["fits"] for one in found] == [True]
    assert found[0]["options"] == f"--slots {compiled.sizes[-1]}"
    assert 1000 < compiled.sizes[-1] < 1276


def test_the_screen_fits_eighty_columns_and_says_all_that_is_asked(capsys):
    serving_screen.show(PLAN, Console(width=80))
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert len(out.splitlines()) <= 45, "one screen"
    for text in ("FITS", "13.00 GiB left", "weights cut over tensor", "tokens/s a chip", "400 slots fit", "432 do not",
                 "$ per million tokens", "int8 in blocks of 128", "2025-11", "latency"):  # fmt: skip
        assert text in out


def test_what_does_not_fit_is_shown_with_the_change_that_helps(capsys):
    plan = copy.deepcopy(PLAN) | {"fits": False, "changes": [{"options": "--slots 8", "fits": True, "used": 9 * GIB}]}
    for name in ("decode", "prefill", "largest", "requests"):
        del plan[name]
    plan["memory"] |= {"used": 20 * GIB, "headroom": -4.25 * GIB}
    serving_screen.show(plan, Console(width=80))
    out = capsys.readouterr().out
    assert "4.25 GiB too much" in out
    assert "This makes it fit (compiled): --slots 8" in out


def test_the_page_opens_offline_and_holds_the_pictures(tmp_path):
    page = build_serving_page(PLAN, tmp_path).read_text()
    assert "https://" not in page
    for name in ("memory", "time"):
        assert (tmp_path / f"{name}.png").stat().st_size > 5000
    assert page.count("data:image/png;base64") == 2 * 2
    for text in ("Largest batch", "400", "int8", "models/llama.py:125"):
        assert text in page


NEEDS_LIBTPU = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: uv sync --extra plan"
)


def planned(folder: Path, *options: str) -> tuple[int, dict]:
    """Plans a server of the tiny model, and returns the exit code and plan.json.

    The command must print nothing to stderr.
    """
    (folder / "tiny.py").write_text(TINY)
    env = {k: v for k, v in os.environ.items() if not k.startswith(("TPU_", "JAX_", "XLA_"))}
    env |= {"BIGMODEL_CACHE": str(folder / "cache")}
    command = [sys.executable, str(ROOT / "launch.py"), "plan", "tiny.py", "--output", "out", *options]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.stderr == ""
    return done.returncode, json.loads((folder / "out" / "plan.json").read_text())


@pytest.mark.exhaustive
@NEEDS_LIBTPU
def test_the_compiled_programs_read_the_weights_as_they_are_stored(tmp_path):
    """On two chips, weights and cache have the bytes of their shapes, and int8 moves less of them
    in each step."""
    machine = ("--serve", "v5e:1x2", "--slots", "8", "--length", "256")
    (code, wide), (_, again), (_, narrow) = (
        planned(tmp_path, *machine, *more) for more in ((), (), ("--weights", "int8"))
    )
    assert code == 0
    assert wide["mesh"] == {"tensor": 2}
    assert all(one["cached"] for one in again["compile"].values())
    layer = 4 * 512 * 512 + 3 * 512 * 2048
    tables, norms = 2 * 512 * 512, 5 * 512
    assert wide["memory"]["weights_by_type"] == {"bfloat16": 2 * ((2 * layer + tables) / 2 + norms)}
    stored = (2 * layer + tables) / 2
    # One scale of two bytes for 256 values, or for a head's 128; norms are not stored in blocks.
    scales = stored / 256 + 2 * 3 * 512 * 512 / 2 / 256
    assert narrow["memory"]["weights_by_type"] == {"int8": stored, "bfloat16": 2 * (scales + norms)}
    places = 2 * 8 * 256 * 4 + 4
    assert wide["memory"]["parts"]["cache"] == 2 * 2 * 8 * 256 * 4 * 128 * 2 / 2 + places
    assert wide["largest"]["slots"] > 8
    assert 0 < narrow["decode"]["hbm_bytes"] < wide["decode"]["hbm_bytes"]
    assert wide["prefill"]["flops_per_device"] > 10 * wide["decode"]["flops_per_device"]
    # A step multiplies each weight of a device once for each slot: the loop over layers is counted,
    # and run, once.
    products = 2 * 8 * (2 * layer + tables / 2) / 2
    assert wide["decode"]["flops_per_device"] == pytest.approx(products, rel=0.15)


@pytest.mark.exhaustive  # deploy_page_test.py plans a server by the real compiler in the slow suite
@NEEDS_LIBTPU
def test_what_does_not_fit_ends_with_a_change_that_was_compiled_and_fits(tmp_path):
    code, plan = planned(tmp_path, "--serve", "v5e:1x1", "--slots", "20000", "--length", "256")
    assert code == 3
    assert plan["memory"]["used"] > plan["memory"]["limit"]
    assert plan["changes"][-1]["fits"]
    assert "decode" not in plan
