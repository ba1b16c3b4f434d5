"""The page's tables of answers with their rewards: whatever a sample's file holds is text there."""

import json

from bigmodel_jax.report.answers import read_answers, tables


def written(folder, **files):
    (folder / "samples").mkdir(parents=True)
    for name, lines in files.items():
        content = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
        (folder / "samples" / f"{name.strip('_')}.jsonl").write_text(content)
    return read_answers(folder)


def test_the_newest_answers_are_shown_and_earlier_ones_folded(tmp_path):
    line = {
        "prompt": "1+1=",
        "response": "2",
        "reward": 1.0,
        "rewards": {"right": 1.0, "short": 0.25},
        "finished": False,
    }
    found = written(tmp_path, _00000100=[line], _00000020=[line | {"response": "<b>3</b>", "reward": 0}])
    assert [name for name, _ in found] == ["00000020.jsonl", "00000100.jsonl"]
    page = tables(found)
    assert page.index("Answers after step 100") < page.index("<details") < page.index("Answers after step 20")
    assert "&lt;b&gt;3&lt;/b&gt;" in page
    assert "<b>3" not in page
    for name in ("Prompt", "Response", "Reward", "right", "short"):
        assert f"<th>{name}</th>" in page
    assert '<td class="number">0.25</td>' in page
    assert "cut off" in page


def test_messages_are_lines_and_what_is_no_object_is_left_out(tmp_path):
    messages = [{"role": "user", "content": "hi & bye"}, "odd"]
    deep = "[" * 100_000
    page = tables(written(tmp_path, a=["not JSON", "[1]", deep, {"prompt": messages, "response": "x" * 700}, {}]))
    assert "user: hi &amp; bye" in page
    assert "x ..." in page
    assert "Reward" not in page
    assert tables([]) == ""
