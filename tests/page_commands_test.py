"""The pages' commands, as they are written, with small stand-ins for the configs and runs that they
name."""

import contextlib
import glob
import json
import re
import shlex
import shutil
import subprocess
import sys
import wave
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import PIL.Image
import pytest
import safetensors.numpy

import bucket_server
import jobs
from bigmodel_jax.cli import main
from chaos_runs import Commands

ROOT = Path(__file__).parents[1]
DEVICES = jax.devices()
STAND_IN = """
from pathlib import Path

from bigmodel_jax.config import override
from bigmodel_jax.core.user_code import import_file

shipped = import_file(Path(__file__).with_suffix(".shipped.py"))
if hasattr(shipped, "SPACE"):
    SPACE = shipped.SPACE


def get_config():
    return override(shipped.get_config(), {options!r}.split())
"""
# A run of text files, for the command that evaluates it on others.
NOTES = """
import dataclasses

from bigmodel_jax.core.user_code import import_file
from bigmodel_jax.data import TextFiles


def get_config():
    config = import_file("configs/lm_tiny.py").get_config()
    return dataclasses.replace(config, data=dataclasses.replace(config.data, source=TextFiles("*/*.txt", "*/*.txt")))
"""
LM = (
    "--model.embed_dim 16 --model.num_heads 4 --model.num_kv_heads 2 --model.head_dim 4 --model.mlp_dim 32 "
    "--model.vocab_size 300 --data.tokenizer.vocab_size 300 --data.seq_len 32 --eval.batch_size 1024 "
    "--eval.sample.max_tokens 4 --optim.warmup_steps 4"
)
FEW = "--train.steps 4 --train.batch_size 8 --optim.warmup_steps 2 --eval.every 0"
SCENES = f"--data.source.train 32 --data.source.validation 16 {FEW}"
IMAGES = "--eval.images.num 4 --eval.images.steps 2"
SPEECH = (
    "--data.source.train 32 --data.source.validation 8 --model.num_layers 1 --model.embed_dim 16 --model.mlp_dim 16"
)
TOWERS = "--model.vision.num_layers 1 --model.text.num_layers 1"
CODES = f"--model.channels 8 8 8 --train.batch_size 32 {FEW}"
# A tiny Llama of bytes: what changes in the files of its fixture. With the merge, the texts that
# docs/explain.md compares have equally many tokens.
LLAMA_CHANGES = (
    ("config.json", '"max_position_embeddings": 64', '"max_position_embeddings": 256'),
    ("tokenizer.json", ": 258", ': 258, "Fr": 259'),
    ("tokenizer.json", '"merges": []', '"merges": ["F r"]'),
)
SIZES = {"vocab_size": 260, "num_layers": 2, "embed_dim": 16, "num_heads": 4, "num_kv_heads": 2, "head_dim": 4}
SIZES |= {"mlp_dim": 24, "max_seq_len": 256, "tied_embeddings": False}
LLAMA = " ".join(f"--model.{name} {value}" for name, value in SIZES.items())
CHAT = f"{LLAMA} --data.seq_len 64 --train.batch_size 64"
LAYERS = "--objective.student_layers 0 1 --objective.teacher_layers 0 1"
# Config -> the options that make it small.
CONFIGS = {
    "configs/lm_tiny.py": f"{LM} --train.steps 120",
    "configs/mnist_mlp.py": "--model.hidden_dims 32 --train.steps 100 --optim.warmup_steps 4",
    "configs/mnist_cnn.py": "--model.channels 4 4 4 --model.hidden_dim 8 --train.steps 8 --optim.warmup_steps 2",
    "configs/linear_regression.py": "",
    "configs/mnist_mlp_sweep.py": "--train.steps 8 --eval.every 4 --optim.warmup_steps 2",
    "configs/text_classification.py": "--train.steps 20 --train.batch_size 16 --eval.every 0",
    "tests/examples/one_file_model.py": "--model.vocab_size 300 --data.tokenizer.vocab_size 300 --data.seq_len 32",
    "configs/detect_digits.py": f"--model.embed_dim 16 --model.mlp_dim 16 --model.num_decoder_layers 1 {SCENES}",
    "configs/segment_digits.py": f"--model.channels 4 8 {SCENES}",
    "configs/segment_digits_vit.py": f"--model.num_layers 1 --model.embed_dim 16 {SCENES}",
    "configs/play_connect4.py": f"--model.num_blocks 1 --data.games 4 --data.simulations 4 --data.eval_simulations 4 {FEW}",
    "configs/flow_digits.py": f"--model.num_layers 1 --model.embed_dim 16 {IMAGES} {FEW}",
    "configs/flow_emoji.py": f"--model.num_layers 2 {IMAGES} {FEW}",
    "configs/flow_latent_emoji.py": f"--model.num_layers 2 --objective.autoencoder_model.channels 8 8 8 {IMAGES} {FEW}",
    "configs/vae_emoji.py": CODES,
    "configs/dvae_emoji.py": CODES,
    "configs/dalle_emoji.py": f"--model.num_layers 1 --objective.autoencoder_model.channels 8 8 8 {FEW}",
    "configs/clip_emoji.py": f"{TOWERS} {FEW}",
    "configs/caption_emoji.py": f"{TOWERS} {FEW}",
    "configs/speech_words.py": f"{SPEECH} {FEW}",
    **dict.fromkeys(("configs/dpo_smollm2.py", "configs/reward_model.py"), CHAT),
    "configs/lora_smollm2.py": f"{CHAT} --adapters.rank 4",
    "configs/distill_smollm2.py": f"{CHAT} {LAYERS} {LLAMA.replace('model', 'objective.teacher_model')}",
}
# Pages whose commands name the saves of steps 400 and 600.
LONG = dict.fromkeys(("docs/eval", "docs/train"), f"{LM} --train.steps 600 --checkpoint.every 200 --checkpoint.keep 5")
# Runs that commands name and do not make -> the command that makes them here.
RUNS = {
    **{name: f"train configs/{name}.py" for name in ("lm_tiny", "mnist_mlp", "mnist_cnn", "linear_regression")},
    "mine": "train configs/mnist_mlp.py --run_dir runs/mine --checkpoint.every 20 --checkpoint.keep 5",
    "fsdp": "train configs/mnist_cnn.py --run_dir runs/fsdp --parallel.fsdp 8",
    **{name: f"import smollm2-135m-instruct --run_dir runs/{name}" for name in ("smollm2", "chat")},
    "notes": "train notes.py",
}
COPIES = dict.fromkeys(("seed0", "seed1", "seed2", "a", "b", "c"), "mnist_mlp") | {"my_model": "lm_tiny"}
PAGES = (
    *("README", "CONTRIBUTING", "docs/data", "docs/ensemble", "docs/eval", "docs/explain", "docs/generate"),
    *("docs/profile", "docs/prune", "docs/quantize", "docs/report", "docs/sharding", "docs/text_classification"),
    *("docs/train", "docs/tune", "docs/detection", "docs/images", "docs/segmentation", "docs/self_play"),
    *("docs/vision_language", "docs/distill", "docs/import", "docs/preference", "docs/transcribe"),
    *("docs/scale", "docs/sweep", "docs/onnx_litert", "docs/security", "docs/serve", "docs/speech"),
)
# Other pages with commands -> the test that reads the commands from the page and runs them.
OTHERS = {
    "docs/cluster": "cluster/cluster_page_test.py",
    "docs/deploy": "deploy_page_test.py",
    "docs/finetune": "finetune_page_test.py",
    "docs/regression": "models/linear_test.py",
}
# Part of a command -> the test that reads such commands from the page and runs them.
ELSEWHERE = {"mixture": "data_page_test.py", "runs/two": "training/several_adapters_test.py"}
# Part of a command that cannot run here -> why, and the tests of its verb.
NOWHERE = {
    "train CONFIG": "the extra s3 conflicts with the tests' packages: data/s3_test.py makes an environment",
    "corpus.py --engine beam": "it needs a Flink cluster: data/beam_test.py",
    "corpus.py": "data_page_test.py has its own corpus",
    "lambada_openai": "its questions lie on the Hugging Face Hub: harness/",
    "configs/llama3_8b.py": "the model compiles for minutes or hours: plan/ and scaling/",
}


# The values of the loops in docs/scale.md, and smaller ones.
LOOPS = {"96 144 192": "16 32 48", "225 450 900": "4 6 8"}
COMMAND = r"uv run .*?(?:launch.py |(?=benchmarks/))(.*?)(?:  #.*)?$(?:\nerror: ([^`]*))?"


def commands(page: str) -> list[tuple[str, str]]:
    """(arguments of launch.py, or a script and its own; the error that the page shows below) for
    each command of a page that runs here."""
    text = (ROOT / f"{page}.md").read_text()
    blocks = [block for kind, block in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.S | re.M) if not kind]
    blocks = [unrolled(block) if block.startswith("for ") else block.replace("\\\n", " ") for block in blocks]
    found = [one for block in blocks for one in re.findall(COMMAND, block, re.M)]
    return [(args.strip(), error) for args, error in found if not any(part in args for part in ELSEWHERE | NOWHERE)]


def unrolled(block: str) -> str:
    """The commands that the shell's loops of a block give, with fewer steps and smaller sizes."""
    for shown, smaller in LOOPS.items():
        block = block.replace(shown, smaller)
    # `set -f`: no run is there yet for `runs/law/*`.
    script = f'set -f; uv() {{ echo uv "$@"; }}\n{block}'
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout


def test_each_page_with_commands_runs_here_or_says_where():
    pages = [
        path.relative_to(ROOT).with_suffix("").as_posix() for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))
    ]
    assert {page for page in pages if commands(page)} == {*PAGES, *OTHERS}


def make_stand_ins(folder: Path, page: str) -> None:
    for name, options in (CONFIGS | ({"configs/lm_tiny.py": LONG[page]} if page in LONG else {})).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(STAND_IN.format(options=options))
        # A copy in the working directory counts as a reader's own file, so a run may name its code.
        shutil.copy(ROOT / name, path.with_suffix(".shipped.py"))
    (folder / "data").mkdir()
    for split in ("train", "test"):
        lines = [f"{split} {n} was a joy\tgood\n{split} {n} was a bore\tbad\n" for n in range(30)]
        (folder / "data" / f"{split}.txt").write_text("".join(lines))
    # `import` prefers a folder of this name to the package, whose model has 135 million parameters.
    llama = folder / "smollm2-135m-instruct"
    shutil.copytree(ROOT / "tests/parity/fixtures/sft", llama)
    for name, old, new in LLAMA_CHANGES:
        (llama / name).write_text((llama / name).read_text().replace(old, new))
    (folder / "notes.py").write_text(NOTES)
    (folder / "other").mkdir()
    shutil.copy(folder / "data/test.txt", folder / "other/more.txt")
    (folder / "my_tasks").mkdir()
    task = re.search(r"```yaml\n(task:.*?)```", (ROOT / "docs/eval.md").read_text(), re.S)[1]
    (folder / "my_tasks/my_choice.yaml").write_text(task.replace("/data/", f"{folder}/data/"))
    questions = [{"question": f"{n} + 1?", "choices": [str(n), str(n + 1)], "answer": 1} for n in range(8)]
    (folder / "data/questions.jsonl").write_text("\n".join(map(json.dumps, questions)))
    adapters(folder / "path/to/peft_folder")
    strangers_run(folder / "downloads/run")
    PIL.Image.new("RGB", (40, 30), "orange").save(folder / "cat.png")
    with wave.open(str(folder / "talk.wav"), "wb") as talk:
        talk.setparams((1, 2, 16_000, 0, "NONE", ""))
        talk.writeframes(bytes(range(256)) * 125)  # a second of a tone


def adapters(folder: Path) -> None:
    """A PEFT folder for the tiny Llama."""
    folder.mkdir(parents=True)
    about = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(about))
    name = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
    shapes = {
        name.format(layer, kind): shape for layer in (0, 1) for kind, shape in {"A": (2, 16), "B": (16, 2)}.items()
    }
    weights = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    safetensors.numpy.save_file(weights, folder / "adapter_model.safetensors")


def strangers_run(folder: Path) -> None:
    """The folder of a run whose config names code in it."""
    folder.mkdir(parents=True)
    (folder / "model.py").write_text("raise SystemExit('executed')")
    (folder / "config.json").write_text(json.dumps({"type": f"{folder}/model.py:Own"}))


def see(devices: list[jax.Device], monkeypatch) -> None:
    """From now on, JAX has these devices."""
    for name, value in {"devices": devices, "local_devices": devices}.items():
        monkeypatch.setattr(jax, name, lambda *_, value=value, **__: value)
    for name in ("device_count", "local_device_count"):
        monkeypatch.setattr(jax, name, lambda *_: len(devices))


def call(command: str, monkeypatch) -> None:
    """Runs a command on one device, or on all eight where it cuts or copies a model."""
    see(DEVICES if re.search(r"--parallel\.(fsdp [28]|strategy)", command) else DEVICES[:1], monkeypatch)
    words = shlex.split(command)
    # The shell would write out the runs of a pattern.
    words = [name for word in words for name in (word.startswith("runs/") and sorted(glob.glob(word))) or [word]]
    if words[0] == "serve":
        serve(words)
    elif words[0].endswith(".py"):
        subprocess.run([sys.executable, ROOT / words[0], *words[1:]], check=True)
    else:
        with bucket(monkeypatch) if "gs://" in command else contextlib.nullcontext():
            main(words)


@contextlib.contextmanager
def bucket(monkeypatch) -> Iterator[None]:
    """A server of the bucket that the page names."""
    monkeypatch.setattr(bucket_server, "BUCKET", "my-runs")
    with bucket_server.serving(Path.cwd(), monkeypatch):
        yield


def serve(words: list[str]) -> None:
    """Starts a server on a free port, and asks it as docs/serve.md does."""
    port = str(jobs.free_port())
    ask = re.search(r"```python\n(.*?)```", (ROOT / "docs/serve.md").read_text(), re.S)[1]
    with Commands(Path("said")).serving(port, *words, "--port", port, real=True):
        exec(ask.replace("8000", port))


def refuse(command: str, shown: str, capsys) -> None:
    """Runs a command that ends with the error that the page shows."""
    with pytest.raises(SystemExit) as ended:
        main(shlex.split(command))
    assert ended.value.code == 2
    said = " ".join(capsys.readouterr().err.split())
    assert all(" ".join(part.split()) in said for part in shown.split("…"))


def bring(name: str, kept: Path, monkeypatch) -> None:
    """Puts a run into runs/: a copy of the one in `kept`, where it is made at its first use."""
    own = COPIES.get(name, name)
    if not (kept / own).exists():
        call(RUNS[own], monkeypatch)
        shutil.copytree(f"runs/{own}", kept / own)
    shutil.copytree(kept / own, f"runs/{name}", dirs_exist_ok=True)


def run(command: str, kept: Path, monkeypatch) -> None:
    """Runs one command; a run that it reads must be there, and a run that it trains must not."""
    command = command.replace("/dev/shm", str(kept))  # all of the machine's processes share that folder
    words = shlex.split(command)
    told = words[words.index("--run_dir") + 1] if "--run_dir" in words else ""
    for name in re.findall(r"(?<!-)\bruns/([\w-]+)", command):
        if name in RUNS | COPIES and not Path("runs", name).exists() and f"runs/{name}" != told:
            bring(name, kept, monkeypatch)
    if words[0] == "train" and words[1].endswith(".py"):
        shutil.rmtree(told or f"runs/{Path(words[1]).stem}", ignore_errors=True)
    call(command, monkeypatch)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """The runs that several pages read."""
    return tmp_path_factory.mktemp("kept")


# All pages together take minutes, so most are exhaustive.
@pytest.mark.slow
@pytest.mark.few("docs/data", "docs/ensemble", "docs/sharding", "docs/import", "docs/transcribe")
@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_run(page, kept, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_stand_ins(tmp_path, page)
    for command, error in commands(page):
        if error:
            refuse(command, error, capsys)
        else:
            run(command, kept / "long" if page in LONG else kept, monkeypatch)
