"""The page of a data card: what a reader finds there, and what of it stands on a run's page."""

import hashlib
import html
import json
import re

import numpy as np
import pytest

from bigmodel_jax.data import Corpus, JsonlFiles, MixtureData, Stage, TableFiles, TextData, TokenizerConfig
from bigmodel_jax.data.cleaning.duplicates import ExactDuplicates, LabelAgreement, NearDuplicates
from bigmodel_jax.data.corpus import kept_cards
from bigmodel_jax.data.corpus.prepare import CARD, prepare
from bigmodel_jax.data.corpus.token_statistics import add_to_card, statistics
from bigmodel_jax.data.text.text import splits
from bigmodel_jax.data.tokenizers import tokenizers
from bigmodel_jax.report.card_page import build_card_page, folded_card
from bigmodel_jax.report.history import load_run

WORDS = [f"word{i}" for i in range(60)]
TEXTS = [" ".join(WORDS[i : i + 20]) for i in range(0, 60, 20)]
ALL = [*TEXTS, TEXTS[0], TEXTS[1] + " word1", "<script>alert(1)</script>"]


@pytest.fixture
def data(tmp_path):
    """Six records: three texts, one of them twice, one nearly twice, and one that would be a
    program on a page."""
    (tmp_path / "raw.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in ALL))
    source = TableFiles(f"{tmp_path}/raw.jsonl")
    corpus = Corpus(source, (ExactDuplicates(), NearDuplicates(words=1)), licence="CC0 & free")
    return TextData(source=corpus, tokenizer=TokenizerConfig("bytes"), seq_len=16, cache_dir=str(tmp_path / "cache"))


def made(data, folder):
    """The card, and the page's text without its marks."""
    corpus, root = data.source, data.root()
    prepare(corpus.job(root), folder, root)
    add_to_card(folder, corpus, data)
    page = build_card_page(folder).read_text()
    body = re.sub(r"<style>.*?</style>|<script>.*?</script>", "", page, flags=re.DOTALL)
    return json.loads((folder / CARD).read_text()), " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split()), page


@pytest.mark.parametrize("where", ["cache", "out"])
def test_the_page_shows_counts_pairs_lengths_tokens_licence_and_digests(data, tmp_path, where):
    folder = data.source.folder(data.root()) if where == "cache" else tmp_path / "out"
    card, text, page = made(data, folder)
    assert card["steps"][0]["compares records"]
    for said in (
        "6 records read",
        "4 kept",
        "licence: CC0 & free",
        "ExactDuplicates dropped 1",
        "an earlier record has",
    ):
        assert said in text
    assert re.search(r"similarity \d\.\d\d, 0\.8 or more, to a text before: word20 word21", text), (
        "the other of the pair"
    )
    assert ALL[4] in text, "the one that was dropped"
    digest = hashlib.sha256((tmp_path / "raw.jsonl").read_bytes()).hexdigest()
    size = (tmp_path / "raw.jsonl").stat().st_size
    assert card["inputs"] == {"train": [{"name": "raw.jsonl", "bytes": size, "sha256": digest}]}
    for shown in (digest, *card["shards"], *card["shards"].values()):
        assert shown in text
    assert "<script>alert" not in page
    assert not re.search(r'(src|href)="(?!data:)', page), "it asks for nothing from anywhere"
    assert "width=device-width" in page
    kept = [*TEXTS, ALL[-1]]
    tokens = card["tokens"]["train"]
    assert tokens["tokens"] == sum(len(t) for t in kept)
    assert sum(tokens["tokens of a record"].values()) == 4
    assert tokens["tokens of a record"]["16 to 31"] == 1
    assert (tokens["tokens per byte"], tokens["vocabulary"], tokens["unknown"]) == (1, 257, None)
    assert tokens["used"] == len({c for t in kept for c in t})
    assert card["splits"]["train"]["records"] == 4


def test_token_statistics_are_what_numpy_says():
    tokenizer = tokenizers.TRAINERS["wordpiece"](["one two three four"] * 50, 60)
    texts = ["one two", "three \u4e00", "four"]
    ids = list(tokenizer.encode_batch(texts))
    sizes = np.array([len(i) for i in ids])
    stream = np.concatenate([np.append(i, tokenizer.separator) for i in ids])
    found = statistics(
        tokenizer, np.array_split(stream, 3), [sizes[:1], sizes[1:]], sum(len(t.encode()) for t in texts)
    )
    assert found["tokens"] == sizes.sum()
    assert found["unknown"] == 1, "a character that it never saw"
    assert found["used"] == len(set(np.concatenate(ids).tolist()))
    assert found["used fewer than 10 times"] == found["used"]
    assert sum(found["tokens of a record"].values()) == 3
    assert found["tokens per byte"] == round(int(sizes.sum()) / 20, 4)


def test_a_corpus_of_a_mixture_lies_in_the_mixtures_cache_and_its_card_on_the_runs_page(data, tmp_path):
    plain = TextData(source=JsonlFiles(*[f"{tmp_path}/raw.jsonl"] * 2), tokenizer=data.tokenizer, seq_len=16)
    own = TextData(source=data.source, tokenizer=data.tokenizer, seq_len=16)
    mixture = MixtureData(parts=(own, plain), stages=(Stage(0, (1, 1)),), cache_dir=data.cache_dir)
    assert {part.cache_dir for part, _ in splits(mixture)} == {data.cache_dir}, "where its tokens lie, too"
    kept_cards.keep(tmp_path, mixture)
    assert not (tmp_path / "data_cards").exists(), "it is not prepared yet"
    mixture.open("train")
    kept_cards.keep(tmp_path, mixture)
    (tmp_path / "data_cards" / "damaged.json").write_text("{")
    (tmp_path / "data_cards" / "other.json").write_text('{"a": 1}')
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    cards = load_run(tmp_path).cards
    shown = [folded_card(card) for card in cards]
    assert sum(map(bool, shown)) == 1
    assert "4 records" in "".join(shown)
    assert "raw.jsonl" in "".join(shown)


def test_labels_and_no_licence(tmp_path):
    rows = [("a", 0), ("b", 1), ("a", 1)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t, "label": x}) + "\n" for t, x in rows))
    corpus = Corpus(TableFiles(f"{tmp_path}/a.jsonl"), (LabelAgreement(),))
    card, text, _ = made(TextData(source=corpus, tokenizer=TokenizerConfig("bytes")), tmp_path / "out")
    assert "no licence given" in text
    assert "1, 0 before" in text
    assert card["tokens"]["train"]["tokens"] == 2
