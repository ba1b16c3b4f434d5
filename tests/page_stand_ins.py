"""What stands in the folder in which a page's commands run: small configs, a tiny model, a few
files."""

import json
import re
import shutil
import wave
from pathlib import Path

import numpy as np
import PIL.Image
import safetensors.numpy

ROOT = Path(__file__).parents[1]
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
from pathlib import Path

from bigmodel_jax.core.user_code import import_file
from bigmodel_jax.data import TextFiles


def get_config():
    config = import_file(Path("configs/lm_tiny.py")).get_config()
    return dataclasses.replace(config, data=dataclasses.replace(config.data, source=TextFiles("*/*.txt", "*/*.txt")))
"""
TEXT = "--model.vocab_size 300 --data.tokenizer.vocab_size 300 --data.seq_len 32"
LM = (
    f"{TEXT} --model.embed_dim 16 --model.num_heads 4 --model.num_kv_heads 2 --model.head_dim 4 --model.mlp_dim 32 "
    "--eval.batch_size 1024 --eval.sample.max_tokens 4 --optim.name adamw --optim.warmup_steps 4 "
    "--data.source.train_split train[:10%] --data.source.eval_split validation[:10%]"
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
    "tests/examples/one_file_model.py": f"{TEXT} --train.steps 20",
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
LONG = dict.fromkeys(
    ("docs/eval", "docs/train"),
    f"{LM} --train.steps 600 --train.batch_size 2 --checkpoint.every 200 --checkpoint.keep 5",
)


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
    np.savez(folder / "in.npz", image=np.zeros((2, 28, 28, 1), np.float32))
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
