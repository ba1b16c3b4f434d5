"""Preferences: the forms of records, where an answer begins, what does not fit, and what a bad
record is."""

import json
from pathlib import Path

import numpy as np
import pytest

from bigmodel_jax.data import PreferenceData, TableFiles, UnpairedPreferenceData
from bigmodel_jax.data.inspect import show
from bigmodel_jax.data.text.preference_rows import Stream, fit

FIXTURE = Path(__file__).parents[1] / "parity" / "fixtures" / "preference"
USER, SAID = {"role": "user", "content": "k l"}, {"role": "assistant", "content": "mn"}


def said(text: str) -> dict:
    return SAID | {"content": text}


PAIR = {"prompt": [USER], "chosen": [SAID], "rejected": [said("o")]}


def data(tmp_path, records, kind=PreferenceData, template=FIXTURE / "chat_template.jinja", **fields):
    """A config of these records as both splits; a template may be given by its text."""
    if isinstance(template, str) and template:
        (tmp_path / "template.jinja").write_text(template)
        template = tmp_path / "template.jinja"
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(json.dumps(record) for record in records))
    files = {"tokenizer_path": str(FIXTURE / "tokenizer.json"), "template_path": str(template)}
    fields = {"seq_len": 32} | fields
    return kind(source=TableFiles(str(path), str(path)), cache_dir=str(tmp_path / "cache"), **files, **fields)


def texts(rows, i=0) -> list[tuple[list[int], list[int]]]:
    """(tokens fed, tokens asked for) of both texts of a row."""
    batch = rows.batch(np.array([i]), None)
    return [
        (batch["tokens"][0, t][batch["segment_ids"][0, t] > 0].tolist(),
         batch["targets"][0, t][batch["weights"][0, t] > 0].tolist())
        for t in (0, 1)
    ]  # fmt: skip


def words(rows, config, i=0) -> list[str]:
    """What both answers of a row are asked for, as text."""
    model = config.open_tokenizer().model
    return [model.decode(asked, skip_special_tokens=False) for _, asked in texts(rows, i)]


# ---------------------------------------------------------------- as TRL reads them


@pytest.mark.parametrize("form", ["text", "messages", "repeated"])
def test_tokens_are_those_of_trl(form, tmp_path):
    kept = json.loads((FIXTURE / "records.json").read_text())
    config = data(tmp_path, kept["records"][form], template="" if form == "text" else FIXTURE / "chat_template.jinja")
    rows = config.open("train")
    start = [config.open_tokenizer().start] if form == "text" else []  # as `generate` feeds a text
    for i, theirs in enumerate(kept["tokens"][form]):
        for (fed, asked), name in zip(texts(rows, i), ("chosen_ids", "rejected_ids"), strict=True):
            assert fed == start + theirs["prompt_ids"] + theirs[name]
            assert asked == theirs[name]


# ---------------------------------------------------------------- forms


@pytest.mark.parametrize(
    "record",
    [
        PAIR,
        {"prompt": "k l", "chosen": "mn", "rejected": "o"},
        {"prompt": "k l", "chosen": [SAID], "rejected": "o"},
        {"prompt": "k l", "chosen": [USER, SAID], "rejected": [USER, said("o")]},
        {"prompt": [USER], "chosen": [USER, SAID], "rejected": [said("o")]},
        {"prompt": None, "chosen": [USER, SAID], "rejected": [USER, said("o")]},
        {"prompt": "k l", "chosen": [USER | {"tool_calls": None}, SAID], "rejected": [said("o")]},
        {"prompt": USER, "chosen": SAID, "rejected": said("o")},
        {
            "prompt": [{"from": "human", "value": "k l"}],
            "chosen": {"from": "gpt", "value": "mn"},
            "rejected": {"from": "gpt", "value": "o"},
        },
    ],
)
def test_every_form_gives_the_same_row(record, tmp_path):
    config = data(tmp_path, [record])
    rows = config.open("train")
    assert words(rows, config) == ["mn<eos>", "o<eos>"]
    assert texts(rows) == texts(data(tmp_path, [PAIR]).open("train"))


def test_a_text_without_a_prompt_is_cut_where_the_answers_part(tmp_path):
    config = data(
        tmp_path, [{"chosen": "ab cd", "rejected": "ab ce f"}, {"chosen": "ab c", "rejected": "ab d"}], template=""
    )
    rows = config.open("train")
    assert words(rows, config, 0) == ["d<eos>", "e f<eos>"]
    assert words(rows, config, 1) == [" c<eos>", " d<eos>"]


def test_columns_of_other_names(tmp_path):
    record = {"question": "k l", "good": "mn", "bad": "o"}
    config = data(tmp_path, [record], prompt_field="question", chosen_field="good", rejected_field="bad")
    assert words(config.open("train"), config) == ["mn<eos>", "o<eos>"]
    with pytest.raises(ValueError, match=r"pairs.jsonl line 1: no field 'chosen'.*its fields: question, good, bad"):
        data(tmp_path, [record], prompt_field="question").open("train")


def test_a_row_is_what_it_declares(tmp_path):
    for kind, records in ((PreferenceData, [PAIR]), (UnpairedPreferenceData, [PAIR, PAIR | {"prompt": "j"}])):
        config = data(tmp_path, records, kind)
        batch = config.open("train").batch(np.array([0, 0]), None)
        assert {name: (x.shape[1:], x.dtype.name) for name, x in batch.items()} == {
            name: (field.shape, field.dtype) for name, field in config.row().items()
        }


@pytest.mark.parametrize("label", [1.0, 0.0, 2, "yes", None, [True]])
def test_a_label_that_is_no_truth_value_is_one_line(tmp_path, label):
    """1.0 equals True in Python, but its text is not that of a wanted answer."""
    record = {"prompt": "a", "completion": "b", "label": label}
    with pytest.raises(ValueError, match=r"pairs.jsonl line 1: its label is .*; allowed: true, false|no field 'label'"):
        data(tmp_path, [record], UnpairedPreferenceData, template="").open("train")


def test_answers_taken_singly(tmp_path):
    records = [
        {"prompt": "a", "completion": "b", "label": True},
        {"prompt": "c", "completion": "d", "label": "false"},
        {"prompt": "e", "chosen": "f", "rejected": "g"},
    ]
    # As in tables, every record has every column.
    records = [dict.fromkeys(("completion", "label", "chosen", "rejected")) | record for record in records]
    config = data(tmp_path, records, UnpairedPreferenceData, template="")
    rows = config.open("train")
    assert rows.batch(np.arange(4), None)["label"].tolist() == [1, 0, 1, 0]
    # The second text asks for an answer of the record before; before the first one comes the last.
    assert [words(rows, config, i) for i in range(4)] == [
        ["b<eos>", "f<eos>"], ["d<eos>", "b<eos>"], ["f<eos>", "d<eos>"], ["g<eos>", "d<eos>"],
    ]  # fmt: skip
    first = [[fed[1] for fed, _ in texts(rows, i)] for i in range(4)]
    assert all(a == b for a, b in first), "under the row's own prompt"
    with pytest.raises(ValueError, match="there is only one record"):
        data(tmp_path, records[:1], UnpairedPreferenceData, template="").open("train")


def test_single_answers_and_their_neighbours_are_those_of_trl(tmp_path):
    with np.load(FIXTURE / "reference.npz") as arrays:
        kept = {name: arrays[f"kto/{name}"] for name in ("ids", "held", "KL_ids", "KL_held", "label")}
    theirs = {
        (*(tuple(kept[f"{side}ids"][i][kept[f"{side}held"][i] > 0].tolist()) for side in ("", "KL_")), int(label))
        for i, label in enumerate(kept["label"])
    }
    prompts, answers = ("ab", "abc", "k", "lm no", "pq"), ("cde", "xy", "no", "pqrst uv", "w")
    records = [
        {"prompt": prompt, "completion": answer, "label": i % 2 == 0}
        for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
    ]
    rows = data(tmp_path, records, UnpairedPreferenceData, template="").open("train")
    labels = rows.batch(np.arange(5), None)["label"]
    ours = {(*(tuple(fed[1:]) for fed, _ in texts(rows, i)), int(labels[i])) for i in range(5)}
    assert ours == theirs


def test_tools_and_reasoning_reach_the_template(tmp_path):
    template = (
        "{% if tools %}{{ tools[0].name }}{% endif %}{% for m in messages %}{{ m.content }}{{ m.reasoning_content }}"
        "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    )
    answer = [SAID | {"reasoning_content": "rr"}]
    record = {"prompt": [USER], "chosen": answer, "rejected": [said("o")], "tools": '[{"name": "tt"}]'}
    config = data(tmp_path, [record], template=template)
    rows = config.open("train")
    assert words(rows, config) == ["mnrr<eos>", "o<eos>"]
    assert config.open_tokenizer().decode(texts(rows)[0][0]).startswith("ttk l")
    stripped = data(tmp_path, [record], template=template, reasoning="strip")
    assert words(stripped.open("train"), stripped) == ["mn<eos>", "o<eos>"]


# ---------------------------------------------------------------- what is no pair


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"prompt": "k", "chosen": "l"}, "no field 'rejected'"),
        (PAIR | {"rejected": None}, "its rejected is no text and no list of messages"),
        (PAIR | {"rejected": PAIR["chosen"]}, "chosen and rejected are the same"),
        ({"chosen": [USER, SAID], "rejected": [USER, SAID]}, "chosen and rejected are the same"),
        ({"chosen": [USER], "rejected": [USER, SAID]}, "one answer begins with the whole other answer"),
        (PAIR | {"chosen": []}, "the assistant says nothing; its roles: none"),
        (PAIR | {"chosen": [USER]}, "the assistant says nothing; its roles: user"),
        (PAIR | {"chosen": [{"role": "assistant"}]}, "a message lacks its role or content; its keys: role"),
        (PAIR | {"chosen": [{"role": "assistant", "content": 5}]}, "a message whose content is no text but int"),
        (PAIR | {"chosen": {"from": ["gpt"], "value": "mn"}}, "a message is from .'gpt'.*; known: human"),
        (
            PAIR | {"chosen": [USER | {"content": "K"}, SAID]},
            "begins with a message of the user that is not in the prompt",
        ),
        (
            {"chosen": [{"role": "system", "content": "a"}, USER, SAID], "rejected": [USER, SAID]},
            "message of the system",
        ),
        (PAIR | {"tools": [{"name": "t"}]}, "it has tools, which this template does not write"),
        (PAIR | {"chosen": "x<eos>y"}, "a control token of this tokenizer"),
        ({"chosen": "ab", "rejected": [said("b")]}, "one answer is a text and the other one is messages"),
    ],
)
def test_a_record_that_is_no_pair_is_one_line_and_counted(record, reason, tmp_path):
    with pytest.raises(ValueError, match=reason) as said:
        data(tmp_path, [PAIR, record]).open("train")
    assert "pairs.jsonl line 2: " in str(said.value)
    assert "\n" not in str(said.value)
    rows = data(tmp_path, [PAIR, record], max_bad_records=1).open("train")
    assert len(rows) == 1
    assert rows.counts()["skipped records"] == 1


def test_pairs_that_differ_in_spaces_alone(tmp_path):
    spaced = PAIR | {"rejected": "mn "}
    config = data(tmp_path, [spaced])
    assert words(config.open("train"), config) == ["mn<eos>", "mn <eos>"], "a space is a token"
    trimmed = "{% for m in messages %}{{ m['content'] | trim }}{{ eos_token }}{% endfor %}"
    with pytest.raises(ValueError, match="line 1: chosen and rejected are the same tokens"):
        data(tmp_path, [spaced], template=trimmed).open("train")


def test_an_empty_answer_is_its_end(tmp_path):
    for template in (FIXTURE / "chat_template.jinja", ""):
        config = data(tmp_path, [{"prompt": "k", "chosen": "", "rejected": "o"}], template=template)
        assert words(config.open("train"), config) == ["<eos>", "o<eos>"]


def test_an_answer_that_the_template_does_not_end_gets_an_end(tmp_path):
    config = data(tmp_path, [PAIR], template="{% for m in messages %}{{ m['content'] }}{% endfor %}")
    assert words(config.open("train"), config) == ["mn<eos>", "o<eos>"]


def test_a_template_without_an_assistant(tmp_path):
    template = "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor %}"
    with pytest.raises(ValueError, match="data.template_path = .*: it has no assistant"):
        data(tmp_path, [PAIR], template=template).open("train")


def test_messages_need_a_template_and_files_are_looked_for(tmp_path):
    with pytest.raises(ValueError, match=r"which need a template \(data.template_path\)"):
        data(tmp_path, [PAIR], template="").open("train")
    with pytest.raises(ValueError, match="data.template_path = '/nowhere': no such file"):
        data(tmp_path, [PAIR], template=Path("/nowhere")).open("train")


# ---------------------------------------------------------------- what does not fit


def test_too_long_pairs_are_dropped_or_cut(tmp_path):
    long = {"prompt": "abcdefgh", "chosen": "ij", "rejected": "klm"}
    records = [{"prompt": "a", "chosen": "b", "rejected": "c"}, long]
    rows = data(tmp_path, records, template="", seq_len=8).open("train")
    assert (len(rows), rows.counts()["too long, dropped"]) == (1, 1)
    config = data(tmp_path, records, template="", seq_len=8, too_long="cut")
    rows = config.open("train")
    # The start of a text and three tokens of its prompt: the longer answer says how many, for both
    # texts.
    assert [config.open_tokenizer().decode(fed) for fed, _ in texts(rows, 1)] == ["fghij", "fghklm"]
    assert all(fed[0] == config.open_tokenizer().start for fed, _ in texts(rows, 1))
    assert words(rows, config, 1) == ["ij<eos>", "klm<eos>"]
    counts = rows.counts()
    assert (counts["prompts cut at the front"], counts["answers cut at the end"]) == (1, 0)


def test_answers_too_long_by_themselves_lose_their_end(tmp_path):
    records = [
        {"prompt": "ab", "chosen": "cdefghij", "rejected": "k"},
        {"prompt": "a", "chosen": "cdefghx", "rejected": "cdefghy"},
    ]
    config = data(tmp_path, records, template="", seq_len=6, too_long="cut")
    rows = config.open("train")
    assert words(rows, config) == ["cdefg", "k<eos>"]
    counts = rows.counts()
    assert (counts["answers cut at the end"], counts["too long, dropped"]) == (1, 1), (
        "the second pair's are the same by then"
    )


def test_nothing_fits(tmp_path):
    with pytest.raises(
        ValueError, match=r"data.seq_len = 3: every text of the train split is longer; .*too_long = 'cut'"
    ):
        data(tmp_path, [PAIR], seq_len=3).open("train")


def test_cuts_leave_one_token_of_a_prompt():
    sizes = np.array([5, 3, 9])
    stream = Stream(np.arange(17), np.concatenate([[0], np.cumsum(sizes)]), np.array([0, 0, 3]), np.array([1, 0]))
    cuts, counts = fit(stream, np.array([[0, 1, 2]]), 6, "cut")
    assert (cuts.skip.tolist(), cuts.prompt.tolist(), cuts.answers.tolist()) == ([4], [1], [[3, 5]])
    assert counts["answers cut at the end"] == 1


def test_the_data_verb_shows_them(tmp_path, capsys):
    show(data(tmp_path, [PAIR]))
    assert "tokens of an answer" in capsys.readouterr().out
