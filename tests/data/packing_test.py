import numpy as np
import pytest

from bigmodel_jax.data.text import packing

SEPARATOR, SEQ_LEN = 0, 8
PACKINGS = ("concat", "first_fit", "best_fit", "none")


def make_stream(lengths):
    """`S d1 S d2 ... S`: token k * 100 + j is the j-th of document k, so that every token says
    where it is from."""
    documents = [np.arange(n) + 100 * (k + 1) for k, n in enumerate(lengths)]
    offsets = np.cumsum([0, *(n + 1 for n in lengths)])
    return np.concatenate([np.concatenate([[SEPARATOR], d]) for d in documents] + [[SEPARATOR]]), offsets


LENGTHS = (3, 1, 20, 7, 8, 2, 30, 5, 1, 1, 4)


@pytest.fixture(params=PACKINGS)
def batch(request):
    stream, offsets = make_stream(LENGTHS)
    plan = packing.make_plan(request.param, offsets, SEQ_LEN)
    return packing.collate(stream, plan, np.arange(plan.num_rows), SEQ_LEN, offsets)


def test_every_token_and_every_end_is_a_target_exactly_once(batch):
    stream, _ = make_stream(LENGTHS)
    targets = batch["targets"][batch["weights"] > 0]
    np.testing.assert_array_equal(np.sort(targets), np.sort(stream[1:]))


def test_target_is_the_next_token(batch):
    stream, _ = make_stream(LENGTHS)
    follows = set(zip(stream[:-1].tolist(), stream[1:].tolist(), strict=True))
    real = batch["weights"] > 0
    assert set(zip(batch["tokens"][real].tolist(), batch["targets"][real].tolist(), strict=True)) <= follows


def test_segment_holds_one_document(batch):
    for tokens, segments in zip(batch["tokens"], batch["segment_ids"], strict=True):
        for s in set(segments.tolist()) - {0}:
            inside = tokens[segments == s]
            assert len(set((inside[inside != SEPARATOR] // 100).tolist())) <= 1
            assert np.sum(inside == SEPARATOR) <= 1
            assert SEPARATOR not in inside[1:]


def test_positions_count_from_zero_in_each_segment(batch):
    for segments, positions in zip(batch["segment_ids"], batch["positions"], strict=True):
        for s in set(segments.tolist()) - {0}:
            np.testing.assert_array_equal(positions[segments == s], np.arange(np.sum(segments == s)))


def test_segments_count_from_one_and_padding_is_zero(batch):
    np.testing.assert_array_equal(batch["segment_ids"] > 0, batch["weights"] > 0)
    for segments in batch["segment_ids"]:
        used = segments[segments > 0]
        assert set(used.tolist()) == set(range(1, used.max() + 1))
        assert np.all(np.diff(used) >= 0)
    padding = batch["weights"] == 0
    assert not any(batch[k][padding].any() for k in ("tokens", "targets", "positions"))


def test_concat_pads_only_its_last_row():
    stream, offsets = make_stream(LENGTHS)
    plan = packing.make_plan("concat", offsets, SEQ_LEN)
    assert np.all(plan.lengths[:-1] == SEQ_LEN)
    assert plan.num_rows == -(-(len(stream) - 1) // SEQ_LEN)


def test_none_holds_one_piece_per_row():
    _, offsets = make_stream(LENGTHS)
    plan = packing.make_plan("none", offsets, SEQ_LEN)
    np.testing.assert_array_equal(np.diff(plan.first), 1)
    assert plan.num_rows == sum(-(-(n + 1) // SEQ_LEN) for n in LENGTHS)


def test_first_fit_takes_the_first_row_with_room():
    np.testing.assert_array_equal(packing.first_fit(np.array([5, 6, 3, 2, 4]), 8), [0, 1, 0, 1, 2])


def test_first_fit_fills_rows_well():
    lengths = np.random.default_rng(0).integers(5, 60, 2000)
    row = packing.first_fit(lengths, 128)
    assert np.bincount(row, weights=lengths).max() <= 128
    assert lengths.sum() / (128 * (row.max() + 1)) > 0.9


def test_a_separator_inside_a_document_starts_no_segment():
    """Mistral ends a turn with </s>, which is also the separator between documents."""
    stream, offsets = np.array([0, 5, 0, 6, 0, 7, 8, 0]), np.array([0, 4, 7])
    for kind in ("first_fit", "best_fit", "concat"):
        batch = packing.collate(stream, packing.make_plan(kind, offsets, 8), np.array([0]), 8, offsets)
        assert batch["segment_ids"][0].tolist() == [1, 1, 1, 1, 2, 2, 2, 0]
        assert batch["positions"][0].tolist() == [0, 1, 2, 3, 0, 1, 2, 0]


def test_a_start_token_is_fed_where_documents_begin_and_the_separator_asked_for():
    stream, offsets = make_stream((2, 3))
    batch = packing.collate(stream, packing.make_plan("concat", offsets, 5), np.arange(2), 5, offsets, start=9)
    assert batch["tokens"].tolist() == [[9, 100, 101, 9, 200], [201, 202, 0, 0, 0]]
    assert batch["targets"].tolist() == [[100, 101, 0, 200, 201], [202, 0, 0, 0, 0]]
    assert batch["segment_ids"].tolist() == [[1, 1, 1, 2, 2], [1, 1, 0, 0, 0]]


def test_a_row_can_be_read_alone():
    stream, offsets = make_stream(LENGTHS)
    plan = packing.make_plan("first_fit", offsets, SEQ_LEN)
    whole = packing.collate(stream, plan, np.arange(plan.num_rows), SEQ_LEN, offsets)
    for r in range(plan.num_rows):
        alone = packing.collate(stream, plan, np.array([r]), SEQ_LEN, offsets)
        assert all(np.array_equal(whole[k][r : r + 1], alone[k]) for k in whole)


def test_ranges():
    np.testing.assert_array_equal(packing.ranges(np.array([5, 0, 7]), np.array([2, 0, 3])), [5, 6, 7, 8, 9])
    assert len(packing.ranges(np.array([], int), np.array([], int))) == 0
