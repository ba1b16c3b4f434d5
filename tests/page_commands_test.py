"""The pages' commands, as they are written, with small stand-ins for the configs and runs that they
name."""

import re
import shlex
import shutil
import subprocess
import sys
import wave
from pathlib import Path

import jax
import PIL.Image
import pytest

from bigmodel_jax.cli import main

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
LM = (
    "--model.embed_dim 16 --model.num_heads 4 --model.num_kv_heads 2 --model.head_dim 4 --model.mlp_dim 32 "
    "--model.vocab_size 300 --data.tokenizer.vocab_size 300 --data.seq_len 32 --eval.batch_size 1024 "
    "--eval.sample.max_tokens 4 --optim.warmup_steps 4"
)
FEW = "--train.steps 4 --train.batch_size 8 --optim.warmup_steps 2 --eval.every 0"
SCENES = f"--data.source.train 32 --data.source.validation 16 {FEW}"
IMAGES = "--eval.images.num 4 --eval.images.steps 2"
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
    "smollm2": "import smollm2-135m-instruct --run_dir runs/smollm2",
}
COPIES = dict.fromkeys(("seed0", "seed1", "seed2", "a", "b", "c"), "mnist_mlp")
PAGES = (
    *("README", "CONTRIBUTING", "docs/data", "docs/ensemble", "docs/eval", "docs/explain", "docs/generate"),
    *("docs/profile", "docs/prune", "docs/quantize", "docs/report", "docs/sharding", "docs/text_classification"),
    *("docs/train", "docs/tune", "docs/detection", "docs/images", "docs/segmentation", "docs/self_play"),
    *("docs/vision_language", "docs/distill", "docs/import", "docs/preference", "docs/transcribe"),
    *("docs/scale", "docs/sweep"),
)
# Other pages with commands -> the test that runs them.
OTHERS = {
    "docs/cluster": "cluster/train_test.py and slurm_test.py, with ports and nodes of their own",
    "docs/deploy": "deploy_page_test.py",
    "docs/finetune": "finetune_page_test.py",
    "docs/onnx_litert": "export/onnx_export_test.py and litert_export_test.py",
    "docs/regression": "models/linear_test.py",
    "docs/serve": "serve/, on a small run",
    "docs/security": "faults/, with runs that hold code",
    "docs/speech": "training/speech_ending_test.py, on tones instead of words",
}
# Part of a command -> what runs such commands instead.
ELSEWHERE = {
    "mixture": "data_page_test.py",
    "path/to": "pretrained/adapter_transfer_test.py",
    "corpus.py": "data_page_test.py has its own corpus",
    "gs://": "faults/bucket_test.py",
    "train CONFIG": "data/s3_test.py, with a server of its own",
    "trian": "cli_test.py",
    "runs/two": "models/adapters_test.py",
    "runs/notes": "the reader's files",
    "--harness": "harness/",
    "configs/llama3_8b.py": "plan/ and scaling/, with smaller models",
    "$width": "scaling/law_test.py, on published runs",
    "runs/law": "scaling/law_test.py",
    "/dev/shm": "faults/, on other folders",
}


def commands(page: str) -> list[str]:
    """The arguments of launch.py, or a script and its own, in each command of a page that no other
    test runs."""
    text = (ROOT / f"{page}.md").read_text()
    blocks = [block for kind, block in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.S | re.M) if not kind]
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    found = [re.search(r"uv run .*?(?:launch.py |(?=benchmarks/))(.*?)(?:  #.*)?$", line) for line in lines]
    return [one[1].strip() for one in found if one and not any(part in one[1] for part in ELSEWHERE)]


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
    PIL.Image.new("RGB", (40, 30), "orange").save(folder / "cat.png")
    with wave.open(str(folder / "talk.wav"), "wb") as talk:
        talk.setparams((1, 2, 16_000, 0, "NONE", ""))
        talk.writeframes(bytes(range(256)) * 125)  # a second of a tone


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
    if words[0].endswith(".py"):
        subprocess.run([sys.executable, ROOT / words[0], *words[1:]], check=True)
    else:
        main(words)


def bring(name: str, kept: Path, monkeypatch) -> None:
    """Puts a run into runs/: a copy of the one in `kept`, where it is made at its first use."""
    own = COPIES.get(name, name)
    if not (kept / own).exists():
        call(RUNS[own], monkeypatch)
        shutil.copytree(f"runs/{own}", kept / own)
    shutil.copytree(kept / own, f"runs/{name}", dirs_exist_ok=True)


def run(command: str, kept: Path, monkeypatch) -> None:
    """Runs one command; a run that it reads must be there, and a run that it trains must not."""
    words = shlex.split(command)
    told = words[words.index("--run_dir") + 1] if "--run_dir" in words else ""
    for name in re.findall(r"\bruns/([\w-]+)", command):
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
def test_the_commands_of_a_page_run(page, kept, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_stand_ins(tmp_path, page)
    for command in commands(page):
        run(command, kept / "long" if page in LONG else kept, monkeypatch)
