"""Lines that bring a reader down: long, deep, blank, with a mark before them."""

import pytest

from bigmodel_jax.data.base import BadRecords
from bigmodel_jax.data.sources.lines import parse_json, read_lines
from bigmodel_jax.data.sources.sources import CsvFiles, JsonlFiles


def lines(tmp_path, content, **kwargs):
    (tmp_path / "x").write_bytes(content)
    return list(read_lines(tmp_path / "x", **kwargs))


def test_blank_lines_are_left_out_and_the_others_keep_their_numbers(tmp_path):
    assert lines(tmp_path, b"a\n\n  \r\nb") == [(1, b"a\n", ""), (4, b"b", "")]


def test_a_byte_order_mark_stands_before_the_first_line_alone(tmp_path):
    assert lines(tmp_path, b"\xef\xbb\xbfa\n\xef\xbb\xbfb\n") == [(1, b"a\n", ""), (2, b"\xef\xbb\xbfb\n", "")]


def test_a_line_of_exactly_the_most_bytes_is_read_and_one_byte_more_is_named(tmp_path):
    found = lines(tmp_path, b"12345\n123456\n" + b"9" * 3_000_000 + b"\nend", most=5)
    assert found == [
        (1, b"12345\n", ""),
        (2, b"", "longer than 5 bytes"),
        (3, b"", "longer than 5 bytes"),
        (4, b"end", ""),
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b"1" * 6_000, "not usable JSON"),
        (b'{"a": 1', "not JSON"),
        (b"\xff", "not UTF-8"),
    ],
)
def test_json_that_cannot_be_used_is_said_in_one_line(line, reason):
    value, said = parse_json(line)
    assert value is None
    assert reason in said
    assert "\n" not in said


def records(source, limit):
    bad = BadRecords(limit)
    return [record for _, record in source.records("train", None, bad)], bad.skipped


def test_jsonl_counts_what_it_cannot_use(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\n\n' + b"[" * 100_000 + b"\n" + b"7" * 5_000 + b'\n{"text": "b"}\n')
    found, skipped = records(JsonlFiles(str(path)), 2)
    assert found == [{"text": "a"}, {"text": "b"}]
    assert [where.rpartition("line ")[2] for where, _ in skipped] == ["3", "4"]


def test_csv_takes_a_mark_and_blank_lines_and_counts_a_cell_beyond_the_limit(tmp_path):
    path = tmp_path / "x.csv"
    path.write_bytes(b"\xef\xbb\xbflabel,a\n\n0,1\n1," + b"9" * 140_000 + b"\n\n1,2\n")
    found, skipped = records(CsvFiles(str(path)), 1)
    assert [(r["label"], r["features"].tolist()) for r in found] == [(0, [1.0]), (1, [2.0])]
    assert len(skipped) == 1
    assert "field limit" in skipped[0][1]
