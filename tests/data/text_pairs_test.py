"""Pairs of texts: what the encoder reads, what the decoder is fed and asked for, and what is
refused."""

import dataclasses
import json

import numpy as np
import pytest

from bigmodel_jax.data import TableFiles, TextPairData, TokenizerConfig, fields

PAIRS = [("two plus two", "four"), ("the colour of the sky", "blue"), ("naïve", "ingénu"), ("x" * 40, "y" * 30)]
END = 0  # the separator of the byte tokenizer, in which byte b is b + 1


def ids(text):
    return [byte + 1 for byte in text.encode()]


def write(folder, rows, name="pairs.jsonl"):
    path = folder / name
    if name.endswith(".jsonl"):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif name.endswith(".parquet"):
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        delimiter = "," if name.endswith(".csv") else "\t"
        path.write_text("\n".join(delimiter.join(values) for values in [rows[0], *(row.values() for row in rows)]))
    return str(path)


def data(folder, rows=None, name="pairs.jsonl", **more):
    rows = [{"input": a, "target": b} for a, b in PAIRS] if rows is None else rows
    path = write(folder, rows, name)
    fields = {
        "tokenizer": TokenizerConfig("bytes"),
        "input_len": 64,
        "target_len": 48,
        "cache_dir": str(folder / "cache"),
    }
    return TextPairData(source=TableFiles(train=path, validation=path), **(fields | more))


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.csv", "pairs.tsv", "pairs.parquet"])
def test_a_row_is_the_input_and_the_target_each_with_its_end(tmp_path, name):
    cfg = data(tmp_path, name=name, prefix="say: ", decoder_start=7)
    batch = cfg.open("validation").batch(np.arange(4), None)
    for row, (source, target) in enumerate(PAIRS):
        source, target = [*ids("say: " + source), END], [*ids(target), END]
        assert batch["encoder_tokens"][row].tolist() == source + [0] * (64 - len(source))
        assert batch["encoder_segment_ids"][row].tolist() == [1] * len(source) + [0] * (64 - len(source))
        assert batch["targets"][row].tolist() == target + [0] * (48 - len(target))
        assert batch["tokens"][row].tolist() == [7, *target[:-1]] + [0] * (48 - len(target))
        assert batch["weights"][row].tolist() == [1.0] * len(target) + [0.0] * (48 - len(target))
        assert (batch["target_bytes"][row] * batch["weights"][row]).sum() == len(target) - 1
    fields.check(cfg.row(), batch)
    assert cfg.open("train").batch(np.arange(1), np.zeros(1)).keys() == fields.in_training(cfg.row()).keys()


def test_a_side_that_is_too_long_is_dropped_or_cut_before_its_end(tmp_path, caplog):
    assert len(data(tmp_path, input_len=24, target_len=24).open("train")) == 3
    assert "1 of 4 pairs are longer" in caplog.text
    batch = data(tmp_path, input_len=24, target_len=24, too_long="cut").open("train").batch(np.array([3]), None)
    assert batch["encoder_tokens"][0].tolist() == ids("x") * 23 + [END]
    assert batch["targets"][0].tolist() == ids("y") * 23 + [END]
    with pytest.raises(
        ValueError, match="every pair of the train split is longer; give more, or data.too_long = 'cut'"
    ):
        data(tmp_path, input_len=2).open("train")


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"inputs": "a", "target": "b"}, r"pairs.jsonl line 1: no field 'input' \(perhaps you meant 'inputs'\)"),
        ({"input": "a", "target": ""}, "line 1: field 'target': empty"),
        ({"input": 3, "target": "b"}, "line 1: field 'input': no text"),
    ],
)
def test_a_pair_that_lacks_a_side_is_a_bad_record_as_a_whole(tmp_path, row, says):
    rows = [row, {"input": "good", "target": "pair"}]
    with pytest.raises(ValueError, match=says):
        data(tmp_path, rows).open("train")
    kept = data(tmp_path, rows, max_bad_records=1).open("train")
    assert len(kept) == 1
    assert kept.batch(np.array([0]), None)["encoder_tokens"][0, :4].tolist() == ids("good")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("pairs.txt", "x", "must end in .jsonl, .json, .csv, .tsv, .parquet"),
        ("pairs.parquet", "no Parquet", "pairs.parquet: not a readable Parquet file"),
        ("pairs.jsonl", "[1]", "line 1: a JSON object is needed, not list"),
        ("pairs.csv", "input,target\na", "line 2: 1 cells, but the header has 2"),
    ],
)
def test_files_that_are_no_table_are_one_line(tmp_path, name, content, says):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_text(content)
    cfg = TextPairData(
        source=TableFiles(train=str(tmp_path / name)), tokenizer=TokenizerConfig("bytes"), cache_dir=str(tmp_path / "c")
    )
    with pytest.raises(ValueError, match=says):
        cfg.open("train")


def test_texts_begin_with_a_start_token_where_the_model_asks_for_it(tmp_path):
    from bigmodel_jax.config import Config
    from bigmodel_jax.models import BartConfig
    from bigmodel_jax.objectives import NextToken
    from bigmodel_jax.training.checks import check_data

    cfg = data(tmp_path, text_bos=True, decoder_start=7, target_len=8, too_long="cut")
    batch, start = cfg.open("validation").batch(np.arange(4), None), cfg.open_tokenizer().start
    for row, (source, target) in enumerate(PAIRS):
        source, target = [start, *ids(source), END], [start, *ids(target)[:6], END]
        assert batch["encoder_tokens"][row].tolist() == source + [0] * (64 - len(source))
        assert batch["targets"][row].tolist() == target + [0] * (8 - len(target))
        assert batch["tokens"][row].tolist() == [7, *target[:-1]] + [0] * (8 - len(target))
    assert len(data(tmp_path, text_bos=True, target_len=6).open("validation")) == 2  # four letters and both ends
    with pytest.raises(ValueError, match="every pair"):
        data(tmp_path, text_bos=True, target_len=5).open("validation")
    model = dataclasses.replace(BartConfig.tiny(), vocab_size=264, max_seq_len=64, eos_token_id=END, bos_token_id=start)
    check_data(Config(model=dataclasses.replace(model, decoder_start_token_id=7), objective=NextToken(), data=cfg))
    with pytest.raises(ValueError, match=r"model.text_bos = True, but the data needs False \(data.text_bos\)"):
        check_data(Config(model=model, objective=NextToken(), data=data(tmp_path, decoder_start=2)))


@pytest.mark.slow
def test_an_encoder_decoder_learns_pairs_and_a_model_with_another_start_is_refused(tmp_path):
    from bigmodel_jax.config import Config, EvalConfig, TrainConfig
    from bigmodel_jax.models import T5Config
    from bigmodel_jax.objectives import NextToken
    from bigmodel_jax.optim import OptimConfig
    from bigmodel_jax.training.checks import check_data
    from bigmodel_jax.training.run import train

    sizes = {
        "vocab_size": 264,
        "num_layers": 1,
        "num_decoder_layers": 1,
        "embed_dim": 32,
        "num_heads": 2,
        "head_dim": 16,
    }
    model = T5Config(**sizes, mlp_dim=64, max_seq_len=64, eos_token_id=END, decoder_start_token_id=END)
    config = Config(
        model=model,
        objective=NextToken(),
        data=data(tmp_path, decoder_start=END),
        optim=OptimConfig(lr=1e-2, warmup_steps=2),
        train=TrainConfig(steps=40, batch_size=8),
        eval=EvalConfig(batch_size=8),
    )
    assert train(config, tmp_path / "run")["eval/accuracy"] > 0.6
    with pytest.raises(ValueError, match="model.decoder_start_token_id = 0, but the data needs 7"):
        check_data(Config(model=model, objective=NextToken(), data=data(tmp_path, decoder_start=7)))
