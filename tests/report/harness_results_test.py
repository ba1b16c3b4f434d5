"""What lm-eval found of a run, on its page."""

import json
import logging

from bigmodel_jax.report import harness_results

RESULTS = {
    "step": 1200,
    "results": {
        "own": {"name": "own", "alias": "own", "acc,none": 0.25, "acc_stderr,none": 0.0625, "sample_len": 12},
        "text": {"word_perplexity,none": 31.5, "word_perplexity_stderr,none": "N/A"},
        "sums": {"exact_match,strict": 0.5, "exact_match_stderr,strict": 0.1},
    },
    "higher_is_better": {"own": {"acc": True}, "text": {"word_perplexity": False}},
    "n-shot": {"own": 5, "text": 0},
    "n-samples": {"own": {"original": 20, "effective": 12}},
}


def test_each_metric_of_each_task_is_a_row():
    own, text, sums = harness_results.rows(RESULTS)
    assert own == (1200, "own", "acc", 0.25, 0.0625, "more", 5, 12)
    assert harness_results.written(own) == ("own", "acc ↑", "0.2500", "± 0.0625", "5", "12")
    assert harness_results.written(text) == ("text", "word_perplexity ↓", "31.5000", "", "0", "")
    assert sums.metric == "exact_match (strict)"


def test_the_page_has_the_newest_of_each_task_and_skips_what_is_no_results(tmp_path, caplog):
    assert harness_results.table(tmp_path) == ""
    folder = tmp_path / "harness"
    folder.mkdir()
    newer = RESULTS | {"step": 2400, "results": {"own": {"acc,none": 0.75}}}
    (folder / "00001200.own.json").write_text(json.dumps(RESULTS))
    (folder / "00002400.own.json").write_text(json.dumps(newer))
    (folder / "00002400.broken.json").write_text("[1, 2")
    with caplog.at_level(logging.WARNING):
        body = harness_results.table(tmp_path)
    assert "broken.json holds no results of lm-eval" in caplog.text
    assert "0.7500" in body
    assert "0.2500" not in body
    assert "<td>2,400</td>" in body
    assert "31.5000" in body


def test_names_of_a_task_are_text_and_no_markup(tmp_path):
    (tmp_path / "harness").mkdir()
    evil = {"step": 1, "results": {"<script>": {"acc,none": 1.0}}}
    (tmp_path / "harness" / "1.json").write_text(json.dumps(evil))
    assert "<script>" not in harness_results.table(tmp_path)
