import io
import re
from pathlib import Path

import numpy as np
from rich.console import Console

from bigmodel_jax.config_file import load
from bigmodel_jax.data import ImageData, JsonlFiles, MaskedTextData, PermutedTextData, TextData, TokenizerConfig
from bigmodel_jax.data.images.augment import Flip, RandomResizedCrop
from bigmodel_jax.data.images.mix import CutMix
from bigmodel_jax.data.inspect import describe, show
from bigmodel_jax.data.sources.sources import Arrays


def page(cfg):
    out = io.StringIO()
    show(cfg, Console(file=out, width=100))
    return out.getvalue()


def make_arrays():
    split = {"image": np.full((12, 6, 6, 1), 7, np.uint8), "label": [0, 0, 0, 1] * 3}
    return {"train": split, "validation": split}


def text_config(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "hello there"}\n[]\n{"text": "and more"}\n')
    source = JsonlFiles(str(path), str(path))
    return TextData(
        cache_dir=str(tmp_path), source=source, tokenizer=TokenizerConfig("bytes"), seq_len=16, max_bad_records=1
    )


def test_text_counts_are_true(tmp_path):
    train = describe(text_config(tmp_path))["train"]
    assert (train["documents"], train["characters"], train["UTF-8 bytes"], train["tokens"]) == (2, 19, 19, 19)
    # S hello there S and more: 21 inputs in two rows of 16.
    assert train["rows of 16 tokens"] == 2
    assert train["padding, % of row cells"] == 100 * 11 / 32
    assert train["skipped records"] == 1


def test_text_page_shows_the_steps_and_what_was_skipped(tmp_path):
    shown = page(text_config(tmp_path))
    for piece in ("hello there", "<|endoftext|>", "segment", "most frequent", "t.jsonl line 2"):
        assert piece in " ".join(shown.split())  # a long path wraps
    assert max(len(line) for line in shown.splitlines() if "t.jsonl" not in line) <= 100


def test_image_page_counts_labels(tmp_path):
    shown = page(ImageData(cache_dir=str(tmp_path), source=Arrays(f"{__name__}:make_arrays"), max_shift=1))
    assert "epoch 2" in shown
    assert "0  9  ███" in shown
    assert max(map(len, shown.splitlines())) <= 100


def test_the_page_shows_files_as_training_sees_them_over_their_shares(tmp_path):
    data = ImageData(
        cache_dir=str(tmp_path),
        source=Arrays(f"{__name__}:make_arrays"),
        image_size=60,
        augment=(RandomResizedCrop(), Flip()),
        mix=(CutMix(alpha=8.0),),
        normalise="train",
    )
    shown = page(data)
    assert "shape (60, 60, 3)" in shown
    assert "epoch 2" in shown
    assert re.search(r"class [01] 0\.\d\d .*\n.*\+ class [01] 0\.\d\d", shown)
    assert "shorter side, median" in shown
    assert max(map(len, shown.splitlines())) <= 100


def test_rows_of_numbers_are_shown_too(tmp_path):
    shown = page(ImageData(cache_dir=str(tmp_path), source=Arrays(f"{__name__}:make_rows"), num_classes=2))
    assert "0.5 1 2" in shown


def make_rows():
    split = {"features": np.tile(np.float32([0.5, 1, 2]), (4, 1)), "label": [0, 1, 0, 1]}
    return {"train": split, "validation": split}


def test_pages_of_rows_for_encoders(tmp_path):
    """A hidden token shows as the mask. In an order of prediction every token stays at its
    place."""
    fields = vars(text_config(tmp_path))
    assert "[MASK]" in page(MaskedTextData(**fields, mask_rate=0.99))
    assert "[MASK]" not in page(PermutedTextData(**fields))


def test_rows_of_ones_own_are_shown_as_they_declare_themselves():
    """The page follows what rows declare and not their class: it shows counts where they have them,
    and arrays with their axes."""
    own = load(Path(__file__).parents[1] / "examples" / "own_data_and_objective.py").data
    assert describe(own) == {"train": {"rows": 512}, "validation": {"rows": 64}}
    assert "tokens 2x2x16 - seq" in " ".join(page(own).split())
    undeclared = page(type("Undeclared", (type(own),), {"row": lambda self: {}})())
    assert "tokens 2x2x16 not declared" in " ".join(undeclared.split())
