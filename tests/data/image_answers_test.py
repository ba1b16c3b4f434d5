"""Pictures with answers: what a row holds, tiles of any shape, a user's own lines, and the one line
that each bad one gets."""

import json

import numpy as np
import pytest

from bigmodel_jax.data import ImageAnswerData, ImageChatFiles, ImagePromptData, TokenizerConfig
from bigmodel_jax.data.images import pictures, tiles

SHADES = {"red.png": (255, 0, 0), "blue.png": (0, 0, 255)}


def message(*parts, answer="It is red.") -> dict:
    return {"messages": [{"role": "user", "content": list(parts)}, {"role": "assistant", "content": answer}]}


PICTURE, TEXT = {"type": "image", "image": "red.png"}, {"type": "text", "text": "Which colour?"}


@pytest.fixture
def data(tmp_path):
    """data(lines, **fields): the data of these lines, on both splits."""
    for name, shade in SHADES.items():
        image = np.broadcast_to(np.array(shade, np.uint8), (12, 30, 3))
        (tmp_path / name).write_bytes(pictures.encode(image))
    (tmp_path / "cut.png").write_bytes((tmp_path / "red.png").read_bytes()[:40])

    def make(lines, cls=ImageAnswerData, **fields):
        (tmp_path / "lines.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        source = ImageChatFiles(train=str(tmp_path / "lines.jsonl"), validation=str(tmp_path / "lines.jsonl"))
        more = {"tokenizer": TokenizerConfig("bytes"), "image_size": 8, "image_tokens": 4, "seq_len": 48} | fields
        return cls(source=source, cache_dir=str(tmp_path / "cache"), **more)

    return make


PAIRS = [{"image": "red.png", "prompt": "Which?", "answer": "red"}, {"image": "blue.png", "answer": "blue"}]


def test_a_row_is_image_prompt_and_answer_and_asks_for_the_answer_alone(data):
    made = data(PAIRS, prompt="What?")
    tokenizer, batch = made.open_tokenizer(), made.open("train").batch(np.array([0, 1]), None)
    image, start, stop = tokenizer.vocab_size, tokenizer.start, tokenizer.stops[0]
    for row, (prompt, answer, shade) in enumerate([("Which?", "red", 0), ("What?", "blue", 2)]):
        before, after = [image] * 4 + [start, *tokenizer.encode(prompt)], [*tokenizer.encode(answer), stop]
        length = len(before) + len(after) - 1
        assert batch["tokens"][row, :length].tolist() == [*before, *after[:-1]]
        assert batch["targets"][row][batch["weights"][row] > 0].tolist() == after
        assert batch["prefix"][row].sum() == len(before)
        assert batch["segment_ids"][row].sum() == length
        expected = np.zeros(3)
        expected[shade] = 1
        np.testing.assert_array_equal(batch["image"][row], np.broadcast_to(expected, (8, 8, 3)))
    assert made.row().keys() == batch.keys()
    assert {name: (field.shape, field.dtype) for name, field in made.row().items()} == {
        name: (x.shape[1:], str(x.dtype)) for name, x in batch.items()
    }


def test_messages_say_the_same(data):
    one = data([message(PICTURE, TEXT)]).open("train").batch(np.array([0]), None)
    line = {"image": "red.png", "prompt": "Which colour?", "answer": "It is red."}
    other = data([line]).open("train").batch(np.array([0]), None)
    for name, x in one.items():
        np.testing.assert_array_equal(x, other[name])


def test_tiles_stand_before_the_whole_and_each_has_its_tokens(data):
    made = data(PAIRS, tiles=4, seq_len=64)
    rows = made.open("train")
    batch = rows.batch(np.array([0]), None)
    squares = rows.records[0]["squares"]
    assert squares == 4  # 12 x 30 pixels: a grid of 1 x 3, and the whole
    assert batch["image"].shape == (1, 5, 8, 8, 3)
    assert (batch["tokens"] == made.open_tokenizer().vocab_size).sum() == 4 * squares
    assert batch["image"][0, :squares].any(axis=(1, 2, 3)).all()
    assert not batch["image"][0, squares:].any()


@pytest.mark.parametrize(
    ("size", "most", "grid"),
    [((100, 100), 4, (2, 2)), ((100, 400), 4, (1, 4)), ((300, 100), 4, (3, 1)), ((1, 5000), 6, (1, 6))],
)
def test_a_grid_is_near_to_the_shape_of_the_picture(size, most, grid):
    assert tiles.grid(*size, most) == grid


def test_a_picture_on_white_is_whole():
    image = np.zeros((4, 8, 3), np.uint8)
    padded = tiles.padded(image, 8)
    assert padded[:, 0, 0].tolist() == [255] * 2 + [0] * 4 + [255] * 2


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"image": "red.png"}, "no field 'answer'; its fields: image"),
        ({"image": "none.png", "answer": "a"}, "no such picture: "),
        ({"image": 3, "answer": "a"}, "its picture is no text but int"),
        ({"image": "red.png", "answer": " "}, "its answer is empty"),
        ({"image": "cut.png", "answer": "a"}, "cut.png is not a readable picture"),
        ({"image": "red.png", "answer": "a" * 99}, "tokens with its image; it must have at most data.seq_len = 48"),
        ([1], "a JSON object is needed, not list"),
        (message(TEXT), "its user's message has 0 images; it must have 1"),
        (message(PICTURE, PICTURE), "its user's message has 2 images; it must have 1"),
        (
            message({"type": "video", "video": "a.mp4"}),
            "it has a part of type 'video'; allowed: image, text; videos are not read",
        ),
        (
            {"messages": [{"role": "user", "content": "hi"}]},
            "its messages are of ['user']; it must have one of a user and one",
        ),
        ({"messages": 7}, "its messages are of int"),
    ],
)
def test_a_bad_record_is_one_line_with_its_place(data, line, said):
    with pytest.raises(ValueError) as error:
        data([*PAIRS, line]).open("train")
    place, _, reason = str(error.value).partition("lines.jsonl line 3: ")
    assert said in reason
    assert place
    assert "\n" not in str(error.value)
    assert len(data([*PAIRS, line], max_bad_records=1).open("train")) == 2


def test_pixels_are_what_the_tower_was_trained_on(data):
    made = data(PAIRS, mean=(0.5, 0.25, 0.0), spread=(0.5, 0.5, 2.0))
    batch = made.open("train").batch(np.array([0]), None)  # red
    np.testing.assert_allclose(batch["image"][0, 0, 0], [1.0, -0.5, 0.0])


def test_options_that_cannot_be_are_one_line(data):
    for fields, said in (
        ({"tiles": 1}, "data.tiles = 1; it must be 0, or 2 or more: one tile is the whole picture"),
        ({"mean": (0.5,)}, "data.mean = (0.5,) and data.spread = (); both must have 3 numbers, or none"),
        ({"tiles": 2, "max_shift": 1}, "data.max_shift = 1 with data.tiles = 2; one of them must be 0"),
    ):
        with pytest.raises(ValueError) as error:
            data(PAIRS, **fields)
        assert str(error.value) == said
    with pytest.raises(ValueError, match=r"^data.template_path = 'x.jinja': no such file$"):
        data(PAIRS, template_path="x.jinja").open("train")


def test_a_run_does_not_train_on_prompts(data):
    with pytest.raises(ValueError, match=r"^data: ImagePromptData is for evaluation sets"):
        data(PAIRS, cls=ImagePromptData).validate(8)


def test_prompts_are_the_rows_without_their_answers(data):
    prompts = data(PAIRS, cls=ImagePromptData).open("validation")
    rows = data(PAIRS).open("validation").batch(np.array([1]), None)
    length = int(rows["prefix"].sum())
    assert prompts.prompts[1] == rows["tokens"][0, :length].tolist()
    np.testing.assert_array_equal(prompts.inputs(1)["image"], rows["image"])
    assert prompts.picture(1).startswith("data:image/png;base64,")
    assert prompts.records[1]["answer"] == "blue"
