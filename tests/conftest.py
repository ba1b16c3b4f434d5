"""Every test sees 8 virtual CPU devices; compiled programs are kept between runs."""

import functools
import gc
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

QUICK = {"llama", "mlp", "cnn", "flax_module", "bases", "adapters", "quantize"}
# One forward pass of every family against its reference is quick all the same, unless the family
# has the code of another one.
FORWARD = {
    "decoders_test": "test_logits_of_packed_documents",
    "encoders_test": "test_outputs_of_packed_documents",
    "encoder_decoders_test": "test_logits_of_packed_pairs",
    "clip_siglip_test": "test_embeddings_and_logits",
    "denoisers_test": "test_outputs",
    "vision_test": "test_logits",
    "recurrent_test": "test_logits_of_packed_documents_with_padding",
    "speech_test": "test_logits_of_rows_with_padding",
}
# Families that are another's code with other fields. Their outputs and exports are compared in the
# slow suite. Their gradients follow from the same code: they are exhaustive, as are all other
# comparisons.
KIN = {
    "llama31", "mistral", "qwen2", "qwen3", "qwen3_moe", "smollm3", "olmo2", "olmo3", "granite", "glm4", "phi4_mini", "gemma",
    "gemma2", "moonlight", "t5_v11", "opus_mt", "distilbert", "roberta", "siglip", "dinov2", "smolvlm", "text_to_image",
    "alexnet", "vgg", "vgg_bn",
}  # fmt: skip
OF_KIN = {"test_logits", "test_outputs", "test_an_export_reloaded_computes_the_same"}
# A further head of an encoder that is compared without one: its outputs stand in the slow suite.
FURTHER_HEADS = {"roberta", "distilbert", "electra", "modernbert"}
OF_FURTHER_HEADS = {"test_outputs", "test_an_architecture_is_a_head"}
TWICE = {
    "llama", "llama31", "qwen2", "qwen3_moe", "qwen3_next", "gemma", "moonlight", "t5_v11", "rnn", "conformer_bare",
    "alexnet", "vgg", "vgg_bn", "resnet", "resnet_basic", "efficientnet",
}  # fmt: skip
CACHE = Path(__file__).parents[1] / ".jax_cache"

# Tracing makes many small objects that live on; Python would look through them for cycles every 700
# allocations.
gc.set_threshold(50_000, 20, 10)
# In the environment, so that the processes that tests start inherit it.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
# Tests compile much and compute little: what they compile runs once or twice. Without optimizations
# it takes a third less time to compile, and as one piece instead of 32 a seventh less.
XLA_FLAGS = "--xla_backend_optimization_level={} --xla_cpu_parallel_codegen_split_count=1"
FLAGS_GIVEN = "XLA_FLAGS" in os.environ  # by the user, or to a worker by the process that started it
os.environ.setdefault("XLA_FLAGS", XLA_FLAGS.format(0))


TABLES = {f"--{name}-table": f"{name}_table" for name in ("models", "layouts", "optimizers")}


def pytest_addoption(parser):
    parser.addoption("--update-golden", action="store_true", help="write tests/golden/*.txt anew from the configs")
    parser.addoption("--reference-python", help="a Python with torch and transformers: run the reference live")
    parser.addoption("--models-table", help="write this file from the parity and contract tests' results")
    parser.addoption("--layouts-table", help="write this file from the results of tests/multidevice")
    parser.addoption(
        "--optimizers-table", help="write this file from the results of tests/optim/optimizer_table_test.py"
    )


def pytest_xdist_auto_num_workers(config):
    """More workers than cores: many tests wait for processes that they have started, or for a
    clock, and slow tests more so."""
    return (os.cpu_count() or 1) + (2 if config.option.markexpr.startswith("slow") else 1)


def pytest_configure(config):
    if config.option.markexpr == "slow":  # a slow grid runs its representatives
        config.option.markexpr = "slow and not exhaustive"
    if config.option.markexpr == "exhaustive" and not FLAGS_GIVEN:
        os.environ["XLA_FLAGS"] = XLA_FLAGS.format(1)  # whole grids and long runs compute more
    # Workers send their reports to the one process that writes.
    for option, plugin in TABLES.items():
        if config.getoption(option) and not hasattr(config, "workerinput"):
            results = importlib.import_module(plugin).Results(Path(config.getoption(option)).absolute())
            config.pluginmanager.register(results)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Marks tests. A test of one family alone is slow, except for the families in QUICK. The cases
    of a grid that its mark `few` does not name are exhaustive."""
    # A long file that begins last would keep all other workers waiting.
    items.sort(key=lambda item: item.path.parent.name != "training")
    left = {(item.function, case) for item in items for mark in item.iter_markers("few") for case in mark.args}
    for item in items:
        chosen = item.get_closest_marker("few")
        if chosen and item.callspec.id not in chosen.args:
            item.add_marker(pytest.mark.exhaustive)
        elif chosen:
            left.discard((item.function, item.callspec.id))
        folder, name = item.path.parent.name, item.path.stem.removesuffix("_test")
        if folder == "parity":
            params = item.callspec.params if hasattr(item, "callspec") else {}
            name = params.get("name", params.get("cell"))
            if FORWARD.get(item.path.stem) == item.originalname and name not in TWICE:
                continue
            head = item.path.stem == "encoders_test" and name and name.partition("-")
            if head and head[2] and head[0] in FURTHER_HEADS and item.originalname not in OF_FURTHER_HEADS:
                item.add_marker(pytest.mark.exhaustive)
            if name in KIN and item.originalname not in OF_KIN:
                item.add_marker(pytest.mark.exhaustive)
        if folder in ("models", "parity") and name and name.partition("-")[0] not in QUICK:
            item.add_marker(pytest.mark.slow)
    if left and not any("[" in arg for arg in config.args):  # a name that has changed would leave its case out
        raise pytest.UsageError(f"no case of these names: {sorted((f.__name__, case) for f, case in left)}")


@pytest.fixture
def measured(record_property):
    """measured(family, column, value) -> value: notes a difference for the table of
    docs/models.md."""

    def note(family: str, column: str, value: float) -> float:
        record_property("measured", (family, column, float(value)))
        return value

    return note


@pytest.fixture(scope="module", autouse=True)
def quick_pictures(request):
    """Replaces the pictures of pages by a few bytes. The slow tests of tests/report keep those of
    light pages.

    This saves two seconds for each run. The other tests only check where a picture goes. Runs in
    processes of their own draw.
    """
    from bigmodel_jax.report import plot_style, plots, plots_together

    quick, draw = "not slow" in request.config.option.markexpr, plot_style.render
    elsewhere = request.path.parent.name != "report"

    def render(figures, subject, theme):
        left_out = quick or elsewhere or theme is plot_style.DARK
        return dict.fromkeys(figures, theme.paper.encode()) if left_out else draw(figures, subject, theme)

    with pytest.MonkeyPatch.context() as patch:
        for module in (plots, plots_together):
            patch.setattr(module, "render", render)
        yield


MOST_MAPS = 30_000


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """A process may have 65,530 memory mappings (vm.max_map_count), and each compiled program takes
    three. One more ends it by a segmentation fault, so a worker that ran many tests lets go of
    their programs."""
    import jax  # not before its environment is set

    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="module")
def reference(request, tmp_path_factory):
    """reference(family): its weights and what the reference implementation computed, read once for
    all tests of a file."""
    from reference import fixture_folder, load  # of tests/parity

    python = request.config.getoption("--reference-python")
    return functools.cache(lambda name: load(fixture_folder(name, python, tmp_path_factory.mktemp("reference"))))


@pytest.fixture(scope="session")
def compiled_for_tpus(tmp_path_factory):
    """Starts a program that compiles for TPUs that are not here, as `plan` starts its own; what it
    prints last, as JSON."""
    from bigmodel_jax.plan.compile import environment  # not before JAX's environment is set

    def run(program, *args):
        env = environment("tpu", str(tmp_path_factory.mktemp("libtpu")))
        done = subprocess.run([sys.executable, program, *args], env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A server of gs:// on this machine, with an empty bucket."""
    from bucket_server import serving

    with serving(tmp_path, monkeypatch) as server:
        yield server
