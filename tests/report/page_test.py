import base64
import re
from html.parser import HTMLParser

import pytest

import run_folders as folders
from bigmodel_jax.report import plots
from bigmodel_jax.report.page import build_report
from bigmodel_jax.report.plot_style import DARK, LIGHT


class Page(HTMLParser):
    """Attributes that a browser would fetch, and whether every element is closed in its turn."""

    VOID = ("meta", "link", "img", "source", "br", "wbr")

    def __init__(self, text):
        super().__init__()
        self.references, self.open, self.counts = [], [], {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.references += [value for name, value in attrs if name in ("src", "href", "srcset", "action", "poster")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    root = tmp_path_factory.mktemp("pages")
    text = folders.text_run(root / "text_run")
    other = folders.text_run(root / "other", lr=0.2, loss=8.0)
    digits = folders.digit_run(root / "digits")
    labelled, pairs = folders.labelled_run(root / "labelled"), folders.pairs_run(root / "pairs")
    made = {
        "text": [text],
        "digits": [digits],
        "labelled": [labelled],
        "pairs": [pairs],
        "own": [folders.own_metrics_run(root / "own", evaluations=1)],
        "faster": [text, other],
        "several": [text, other, digits],
    }
    return {name: build_report(dirs, root / f"{name}.html").read_text() for name, dirs in made.items()}


@pytest.mark.parametrize("name", ["text", "digits", "labelled", "pairs", "own", "several"])
def test_the_page_is_whole_and_asks_for_nothing_outside(pages, name):
    page = Page(pages[name])
    assert page.open == []
    assert page.references
    assert all(reference.startswith("data:") for reference in page.references)
    assert not re.search(r"url\(|@import|https?://", pages[name])
    assert page.counts["img"] >= 3


def test_pictures_are_inlined_for_light_and_dark(pages):
    light, dark = (base64.b64encode(theme.paper.encode()).decode() for theme in (LIGHT, DARK))
    pairs = re.findall(
        r'dark\)" srcset="data:image/png;base64,(.*?)"><img src="data:image/png;base64,(.*?)"', pages["text"]
    )
    assert set(pairs) == {(dark, light)}


def test_what_a_run_wrote_is_escaped(pages):
    assert "fellow &lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt; citizens &amp; friends" in pages["text"]
    assert "Tiny&lt;Config&gt;" in pages["text"]
    assert Page(pages["text"]).counts["script"] == 1


def test_a_language_models_page_has_its_figures_beside_xz(pages):
    for text in ("1.750", "xz -9 primed", "2.25", "Perplexity", "40.0 %", "1.00 %", "config.json", "Abacus"):
        assert text in pages["text"]


def test_a_classifiers_page_has_accuracy_and_a_row_per_class(pages):
    assert "90.00 %" in pages["digits"]
    assert "18 of 20 held-out examples right" in pages["digits"]
    table = pages["digits"].split("<tbody>")[1]
    assert table.count("<tr>") == 4, "two classes and two means"
    assert "80.0 %" in table  # recall of class 0


def test_classes_are_called_by_their_names(pages):
    table = pages["labelled"].split("<tbody>")[1]
    assert "<th>negative &amp; &lt;sadness&gt;</th>" in table
    assert "<th>positive</th>" in table
    assert "F1, positive" in pages["labelled"]
    assert "<th>0</th>" in pages["digits"].split("<tbody>")[1]
    assert "F1, class 1" in pages["digits"]


def test_a_page_of_pairs_has_what_was_found_beside_chance(pages):
    for text in ("25.00 %", "of the held-out images, among all held-out texts", "first 5", "50.0", "chance", "20.00 %"):
        assert text in pages["pairs"]


def test_a_metric_that_is_not_known_is_on_the_page_and_in_the_comparison(pages, tmp_path):
    assert '<div class="name">F/<wbr>beta</div><div class="value">0.125</div>' in pages["own"]
    assert "Plot: router entropy" in pages["own"]
    both = [folders.own_metrics_run(tmp_path / name) for name in "ab"]
    page = build_report(both, tmp_path / "r.html").read_text()
    assert "<th>F/beta</th>" in page
    assert {"Plot: f beta", "Plot: router entropy", "Plot: learning rate"} <= set(re.findall(r'alt="(.*?)"', page))


def test_generated_pictures_are_on_the_page(pages):
    assert base64.b64encode(folders.PICTURE).decode() in pages["pairs"]
    assert "00000003.png" in pages["pairs"]


def test_several_runs_show_only_fields_that_differ(pages):
    diff = pages["several"].split("Configurations</h2>")[1]
    assert "optim.<wbr>lr" in diff
    assert "0.2" in diff
    assert "No field differs" not in diff


def test_equal_configs_say_so(tmp_path):
    both = [folders.text_run(tmp_path / name) for name in "ab"]
    page = build_report(both, tmp_path / "r.html").read_text()
    assert "No field differs" in page
    assert 'class="marked best"' not in page


def test_the_best_of_several_is_marked_by_direction(pages):
    row = re.search(r"<tr><th>Held-out loss</th>(.*?)</tr>", pages["faster"]).group(1)
    assert re.findall(r'best">([^<]*)', row) == ["1.000"]
    row = re.search(r"<tr><th>Held-out loss(.*?)</tr>", pages["several"]).group(1)
    assert "best" not in row  # tokens, tokens and digits
    assert "task differs" in row
    row = re.search(r"<tr><th>Bits per byte</th>(.*?)</tr>", pages["several"]).group(1)
    assert "best" not in row  # equal in both that have it
    assert "–" in row


@pytest.mark.parametrize("records", [[], [{"step": 1, "loss": None}], [folders.training(1, 8.3)]])
def test_a_run_that_died_early_has_a_page(tmp_path, records):
    run = folders.metrics(tmp_path / "dead", records)
    assert "dead" in build_report([run], tmp_path / "r.html").read_text()
    assert "2 runs" in build_report([run, run], tmp_path / "r2.html").read_text()


def test_no_run_is_one_clear_error(tmp_path):
    with pytest.raises(ValueError, match="not a run's folder"):
        build_report([tmp_path], tmp_path / "r.html")


def test_a_run_that_may_only_be_read_has_its_page_elsewhere(tmp_path, monkeypatch, caplog):
    run = folders.metrics(tmp_path / "run", [{"step": n, "loss": 3.0 - n / 9} for n in range(1, 9)])

    def refused(*_):
        raise PermissionError(13, "Permission denied", str(run / "plots"))

    monkeypatch.setattr(plots, "write", refused)
    built = build_report([run], tmp_path / "page.html")
    assert "data:image/png" in built.read_text()
    assert "Permission denied; only the page has the plots" in caplog.text


@pytest.mark.parametrize("content", ["{", "[]", "null", "[" * 100_000, "\x00"])
def test_a_damaged_environment_file_is_left_out_of_the_page(tmp_path, content, caplog):
    run = folders.metrics(tmp_path / "run", [{"step": n, "loss": 3.0 - n / 9} for n in range(1, 9)])
    (run / "environment.json").write_text(content)
    build_report([run], tmp_path / "page.html")
    assert "environment.json is not a JSON object and is left out" in caplog.text


def test_cards_of_metrics_with_one_title_say_which_they_are(tmp_path):
    text = build_report([folders.preference_run(tmp_path / "run")], tmp_path / "report.html").read_text()
    assert "Rewards, chosen" in text
    assert "Rewards, rejected" in text
    assert ">Reward margin<" in text
