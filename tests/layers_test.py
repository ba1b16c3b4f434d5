"""The house's rules: which file may import which, where each third party lives, and what files are
called."""

import ast
import functools
import re
import sys
from pathlib import Path

import pytest

from bigmodel_jax.data import DataConfig, Source
from bigmodel_jax.models import MODELS
from bigmodel_jax.objectives import OBJECTIVES
from bigmodel_jax.optim.names import OPTIMIZERS
from bigmodel_jax.optim.schedules import SCHEDULES
from bigmodel_jax.pretrained import FAMILIES

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "bigmodel_jax"
FILES = [ROOT / "launch.py", *sorted((ROOT / "configs").glob("*.py")), *sorted(PACKAGE.rglob("*.py"))]

# A file imports only from lower layers, or from its own room: a folder of the package with the
# folders inside it. The longest prefix counts.
LAYERS = {
    "bigmodel_jax": 0,
    "bigmodel_jax.core": 0,
    "bigmodel_jax.runtime": -1,  # the package itself imports it, before anything starts JAX
    "bigmodel_jax.nn": 1,
    "bigmodel_jax.optim": 1,
    "bigmodel_jax.data": 1,
    "bigmodel_jax.metrics": 0.5,  # what data and objectives declare and compute
    "bigmodel_jax.models": 2,
    "bigmodel_jax.objectives": 3,
    "bigmodel_jax.config": 4,
    "bigmodel_jax.config_checks": 5,
    "bigmodel_jax.config_metrics": 4,
    "bigmodel_jax.config_reads": 4,
    "bigmodel_jax.eval_sets": 4,
    "bigmodel_jax.config_file": 5,  # reads and writes a Config
    "bigmodel_jax.checkpoint": 6,
    "bigmodel_jax.compress": 8.7,  # runs that are there, made smaller, healed by a run
    "bigmodel_jax.ensemble": 8.7,  # runs that are there, judged as a sweep judges them
    "bigmodel_jax.explain": 3,
    "bigmodel_jax.explain.of_run": 8,  # a run's weights, and an input as its data reads it
    "bigmodel_jax.export": 8.2,  # published weights, checkpoints and the engine's programs together
    "bigmodel_jax.inference": 6,
    "bigmodel_jax.pretrained.adapter_transfer": 8,  # the same of adapters
    "bigmodel_jax.pretrained.transfer": 8,  # checkpoints and published weights together
    "bigmodel_jax.pretrained": 6,  # published weights: into models, out of checkpoints
    "bigmodel_jax.report": 6,
    "bigmodel_jax.report.difference": 7,  # checkpoints of two runs
    "bigmodel_jax.scaling": 8,
    "bigmodel_jax.harness": 8,  # lm-eval's tasks, answered from a checkpoint
    "bigmodel_jax.serve": 8,  # a run's weights behind HTTP
    "bigmodel_jax.serve.config": 1,  # what the verb reads before JAX is imported
    "bigmodel_jax.sweep": 8.5,  # runs, one after another: above a run, below the verbs
    "bigmodel_jax.training": 6,
    "bigmodel_jax.training.beginning": 7,  # a state, fresh or from checkpoints
    "bigmodel_jax.training.shared_programs": 7,  # the same, shared by several runs
    "bigmodel_jax.training.compiled": 7,  # the digest of a batch is a checkpoint's
    "bigmodel_jax.training.constants": 7,  # of a run, beside its checkpoints
    "bigmodel_jax.training.policy": 7,  # the engine's answers, and their rewards
    "bigmodel_jax.training.held_out": 7,
    "bigmodel_jax.training.rollback": 7,  # a spike, and the save to go back to
    "bigmodel_jax.training.rollouts": 7,
    "bigmodel_jax.training.scored_answers": 7,  # the engine's answers, and a user's metrics of them
    "bigmodel_jax.training.set_evaluations": 7,
    "bigmodel_jax.training.speech_ending": 7,  # a model's hearing, drawn
    "bigmodel_jax.training.reconstruction_ending": 7,  # an autoencoder's images, drawn
    "bigmodel_jax.training.drawing_ending": 7,  # a decoder's images, drawn and ranked by another run
    "bigmodel_jax.training.ending": 7,  # samples and the report together
    "bigmodel_jax.training.fresh": 7,  # a state from other runs
    "bigmodel_jax.training.evaluate_saved": 7,  # a checkpoint on the validation split
    "bigmodel_jax.training.reference": 7,  # weights of another run, before this one begins
    "bigmodel_jax.training.run_folder": 7,  # a run known by its config.json or its checkpoints
    "bigmodel_jax.training.saved": 7,  # checkpoints, evaluation and generation together
    "bigmodel_jax.training.new_run": 8.2,  # a run's folder, written as an import writes it
    "bigmodel_jax.training.loop": 8,
    "bigmodel_jax.training.run": 8,
    "bigmodel_jax.profiling": 7.5,  # a step's program as `plan` reads it, beside a trace; the loop starts and stops it
    "bigmodel_jax.plan": 7,  # the step compiled for another machine, and what follows from it
    "bigmodel_jax.cluster": 8,  # what a run's processes must have in common: config and versions
    "bigmodel_jax.verbs": 9,
    "bigmodel_jax.cli": 10,
    "bigmodel_jax.__main__": 11,
    "configs": 11,
    "launch": 12,
}

# Third party -> the modules (or their folders) that may import it. Whatever is not listed here may
# be used nowhere.
METRICS = ("sacrebleu", "rouge_score", "jiwer", "faster_coco_eval")
EVERYWHERE = {"jax", "numpy"}
ROOMS = {
    "optax": ("optim", "objectives", "training.step", "training.state", "training.reference"),
    "chex": ("core.metrics", "nn.attention.attention", "nn.cross_entropy", "training.step"),  # shapes at boundaries
    "orbax": ("checkpoint", "export.orbax_folder", "export.use"),
    # Scripts of an exported folder, which run where these are installed.
    **dict.fromkeys(("torch", "transformers", "peft", "llama_cpp"), ("export.use",)),
    # No dependencies: environments of their own, which uv makes.
    **dict.fromkeys(("jax2onnx", "onnx", "onnxruntime"), ("export.onnx_worker", "export.use")),
    **dict.fromkeys(("litert_converter", "ai_edge_litert"), ("export.litert_worker", "export.use")),
    "etils": ("core.paths",),  # paths in buckets
    "fsspec": ("core.paths",),  # what epath reads them with, and what it has no call for
    "grain": ("data.sources.grain_source",),
    "cloudpickle": ("data.sources.grain_source",),  # how Grain sends a pipeline to its worker processes
    "absl": ("data.sources.grain_source",),  # flags that Grain's worker processes read
    "tensorflow_datasets": ("data",),
    "tokenizers": ("data",),
    "sentencepiece": ("data.tokenizers.sentencepiece_model",),
    "google": ("data.tokenizers.sentencepiece_model",),  # protobuf, in which SentencePiece models are written
    "jinja2": ("data.text.chat_sandbox",),
    "gguf": ("pretrained.gguf", "pretrained.gguf_config", "export.gguf_file"),
    "ray": ("cluster",),  # no dependency: a Ray job runs where Ray is
    "safetensors": ("pretrained", "export.weights_file", "export.onnx_worker"),
    "flax": (
        "models.flax_module",
        "models.cnn",
        "models.efficientnet",
        "models.vgg",
        "models.resnet",
        "models.unet",
        "models.rnn",
        "models.decoder",  # struct: the decode cache is a pytree
        "training.state",
        "core",  # struct and traverse_util: pytrees and their paths
        "checkpoint",  # traverse_util
    ),
    "array_record": ("data.sources.array_record_files", "data.corpus.folder"),  # comes with Grain and TFDS
    "apache_beam": ("data.corpus.beam",),  # no dependency: an environment of its own
    "pyarrow": ("data.sources.table_files", "data.sources.opened"),  # the extra "parquet"
    "datasets": ("data.sources.hugging_face",),  # the extra "datasets"
    **dict.fromkeys(("ftfy", "py3langid", "rensa"), ("data.cleaning",)),  # the extra "clean"
    **dict.fromkeys(METRICS, ("metrics",)),  # the extra "metrics"
    "lm_eval": ("harness",),  # the extra "harness"
    **dict.fromkeys(("starlette", "uvicorn", "prometheus_client", "llguidance"), ("serve",)),  # the extra "serve"
    "matplotlib": ("report",),
    "PIL": ("data.images", "serve.pictures"),
    "optuna": ("sweep",),  # the extra "sweep"
    "scipy": (
        "scaling.law",
        "sweep.seeds",
        "sweep.rate_curve",
        "data.audio",
    ),  # L-BFGS, the t distribution, a smoothing window, WAV files and their rates; JAX itself needs scipy
    "tensorboardX": ("report",),
    "wandb": ("report",),
    "mlflow": ("report",),
    "rich": (
        "cli",
        "verbs",
        "report",
        "core.terminal",
        "training.beginning",
        "training.reference",
        "data.inspect",
        "plan.screen",
        "plan.serving_screen",
        "scaling.benchmark",
        "sweep.rate_finder",
    ),
    "tyro": ("core.options", "verbs"),
}
BANNED_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@functools.cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(parsed(path)))


@functools.cache
def imports(path: Path) -> list[tuple[int, str]]:
    """(line, module) of every import, those inside functions too."""
    found = []
    for node in nodes(path):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            # `from package import module` imports the module, `from module import name` does not.
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [(node.lineno, name if name in MODULES else node.module) for name in whole]
    return found


def layer(module: str) -> int:
    while module not in LAYERS:
        module, _, last = module.rpartition(".")
        assert module, f"{last} is in no layer: add it to LAYERS"
    return LAYERS[module]


def room(module: str) -> str:
    folder = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    return ".".join(folder.split(".")[:2])


def upward(module: str, imported: str) -> bool:
    """Whether this import breaks the order."""
    if imported == "bigmodel_jax" or layer(imported) < layer(module):
        return False
    same_room = room(module) == room(imported) not in ("bigmodel_jax", "")
    return not (same_room and layer(imported) == layer(module))


def test_a_module_imports_only_from_below_or_beside():
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {module} (layer {layer(module)}) imports {name} (layer {layer(name)})"
        for module, path in MODULES.items()
        for line, name in imports(path)
        if name.split(".")[0] in ("bigmodel_jax", "configs", "launch") and upward(module, name)
    ]
    assert not wrong, "\n".join(wrong)


def test_the_order_is_one_that_can_be_broken():
    assert upward("bigmodel_jax.core.params", "bigmodel_jax.models.llama")
    assert upward("bigmodel_jax.nn.linear", "bigmodel_jax.data.text.text"), "another room of the same layer"
    assert upward("bigmodel_jax.training.step", "bigmodel_jax.training.loop"), "a higher layer of the same room"
    assert not upward("bigmodel_jax.training.step", "bigmodel_jax.training.state")
    assert not upward("bigmodel_jax.training.loop", "bigmodel_jax.core.params")
    assert not upward("bigmodel_jax.nn.experts.moe", "bigmodel_jax.nn.linear"), "a folder inside the room"


def test_no_two_modules_import_each_other():
    """Imports inside functions count too: two files that need each other are one subject, or a
    third file is missing."""
    graph = {m: {n for _, n in imports(p) if n in MODULES and n != m} for m, p in MODULES.items()}
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " -> ".join((*above[above.index(module) :], module))
        if module not in done:
            for name in graph[module] if MODULES[module].name != "__init__.py" else ():
                visit(name, (*above, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_a_private_name_stays_in_its_file():
    for module, path in MODULES.items():
        ours = [n for n in nodes(path) if isinstance(n, ast.ImportFrom) and n.module.startswith("bigmodel_jax")]
        assert [alias.name for node in ours for alias in node.names if alias.name.startswith("_")] == [], module


def test_third_parties_stay_in_their_rooms():
    for module, line, name in [(module, *found) for module, path in MODULES.items() for found in imports(path)]:
        own, package = module.removeprefix("bigmodel_jax."), name.split(".")[0]
        if package in EVERYWHERE | {"bigmodel_jax", "configs"} or package in sys.stdlib_module_names:
            continue
        where = f"{MODULES[module].relative_to(ROOT)}:{line}"
        assert package in ROOMS, f"{where}: {package} has no room: add it to ROOMS, with the reason"
        rooms = ROOMS[package]
        assert any(own == room or own.startswith(f"{room}.") for room in rooms), f"{where}: {package} lives in {rooms}"


def test_every_layer_and_room_is_in_use():
    used = {name.split(".")[0] for path in FILES for _, name in imports(path)}
    # Imported by name: see report.writers, data.cleaning.step and metrics.
    lazily = {"wandb", "mlflow", "ftfy", "py3langid", "rensa", *METRICS}
    assert set(ROOMS) - lazily <= used
    assert [name for name in LAYERS if name != "configs" and name not in MODULES] == []


def test_nn_and_models_know_no_run_and_no_mesh():
    for module, path in MODULES.items():
        if module.startswith(("bigmodel_jax.nn", "bigmodel_jax.models", "bigmodel_jax.core")):
            assert not [name for _, name in imports(path) if name.startswith("bigmodel_jax.config")], module
        if module.startswith("bigmodel_jax.models"):
            assert not re.search(r"\bMesh\b|\bNamedSharding\b", path.read_text()), module


def test_names_of_files_say_what_is_in_them():
    for path in [*FILES, *(ROOT / "tests").rglob("*.py")]:
        assert path.stem not in BANNED_NAMES, path


def test_every_file_begins_with_what_it_is():
    assert [str(path) for path in FILES if not ast.get_docstring(parsed(path))] == []


def test_files_stay_short():
    """A file has at most about 300 lines."""
    lengths = {str(path): len(path.read_text().splitlines()) for path in FILES}
    assert {path: lines for path, lines in lengths.items() if lines > 305} == {}


def subclasses(base: type) -> set[type]:
    """Subclasses that ship; other tests define some of their own."""
    found = {cls for direct in base.__subclasses__() for cls in {direct} | subclasses(direct)}
    return {cls for cls in found if cls.__module__.startswith("bigmodel_jax.")}


# What ships, by name -> the rooms that may name it. Published weights know their models; the verb
# `import` makes a config.
TABLES = {
    "MODELS": ({cls.__name__ for cls in MODELS.values()}, ("models", "pretrained")),
    "OBJECTIVES": ({cls.__name__ for cls in OBJECTIVES.values()}, ("objectives", "pretrained.transfer", "inference")),
    "OPTIMIZERS": (set(OPTIMIZERS), ("optim",)),
    "SCHEDULES": (set(SCHEDULES) - {"linear", "constant"}, ("optim",)),  # words of many meanings
    "sources": ({cls.__name__ for cls in subclasses(Source)} - {"Steps"}, ("data",)),  # a title of the report, too
    "data": ({cls.__name__ for cls in subclasses(DataConfig)}, ("data", "pretrained.transfer")),
    "FAMILIES": (set(FAMILIES), ("pretrained",)),
}


@functools.cache
def words(path: Path) -> set[str]:
    """Every name and every whole text of a file."""
    found = set()
    for node in nodes(path):
        match node:
            case ast.Name(id=word) | ast.Attribute(attr=word) | ast.alias(name=word) | ast.Constant(value=str(word)):
                found.add(word)
    return found


@pytest.mark.parametrize("table", TABLES)
def test_to_ship_one_touches_its_file_and_one_row(table):
    names, rooms = TABLES[table]
    shipped = {m.removeprefix("bigmodel_jax."): path for m, path in MODULES.items() if m.startswith("bigmodel_jax")}
    assert names & set().union(*(words(path) for own, path in shipped.items() if own.startswith(rooms)))
    for own, path in shipped.items():
        if not own.startswith(rooms):
            assert not names & words(path), f"{own} names what {table} lists"
