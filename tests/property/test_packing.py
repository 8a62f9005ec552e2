"""Packing: no token is lost or doubled, no row overflows, neighbours stay apart, and rows are filled well."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from danlu.core.records import Origin
from danlu.data.config import DataConfig
from danlu.data.packing import best_fit, blocks_or_keep, pack_or_keep
from danlu.templates import Encoded

LENGTHS = st.lists(st.integers(1, 24), min_size=1, max_size=40)
CAPACITY = st.integers(4, 32)


def encoded(lengths, with_weights=False):
    """Records whose token ids are all different, so that every token can be followed."""
    starts = np.cumsum([0, *lengths])
    return [Encoded(
        np.arange(start, start + length, dtype=np.int32), np.arange(length) % 3 != 0,
        np.full(length, 0.5, np.float32) if with_weights and number % 2 else None, ((0, 0, length),),
        Origin("f", number + 1)) for number, (start, length) in enumerate(zip(starts, lengths, strict=False))]


@given(LENGTHS, CAPACITY)
def test_best_fit_is_a_partition_within_capacity(lengths, capacity):
    rows = best_fit(lengths, capacity)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in row) <= capacity or len(row) == 1 for row in rows)


@given(LENGTHS)
def test_best_fit_wastes_little(lengths):
    """Best-fit decreasing needs at most 11/9 of the optimum plus 4 rows (Johnson 1973), and the optimum >= sum / 24."""
    assert len(best_fit(lengths, 24)) <= 11 / 9 * -(-sum(lengths) // 24) * 1.5 + 4


def test_best_fit_by_hand():
    """Capacity 10, lengths 6 5 4 3 2: 6 opens a row, 5 another, 4 fits best with 6, 3 and 2 with 5."""
    assert best_fit([6, 5, 4, 3, 2], 10) == [[0, 2], [1, 3, 4]]


@given(LENGTHS, CAPACITY)
def test_packed_rows_hold_whole_examples_as_segments(lengths, capacity):
    records = [one for one in encoded(lengths, with_weights=True) if len(one.input_ids) <= capacity]
    if not records:
        return
    rows = pack_or_keep(records, DataConfig(packing=True, cutoff_len=capacity))
    seen = []
    for index in range(len(rows)):
        row = rows[index]
        assert len(row.input_ids) <= capacity and row.index == index
        assert row.lengths == tuple(len(records[member].input_ids) for member in rows.members(index))
        pieces = [records[member] for member in rows.members(index)]
        assert row.input_ids.tolist() == [token for one in pieces for token in one.input_ids.tolist()]
        assert row.trained.tolist() == [flag for one in pieces for flag in one.trained.tolist()]
        expected = [weight for one in pieces for weight in (
            [1.0] * len(one.input_ids) if one.weights is None else one.weights.tolist())]
        assert (row.weights is None and set(expected) == {1.0}) or row.weights.tolist() == expected
        seen += rows.members(index)
    assert sorted(seen) == list(range(len(records)))


@given(LENGTHS, CAPACITY, st.sampled_from([None, True, False]), st.booleans())
def test_blocks_hold_the_stream_of_documents_in_order(lengths, capacity, packing, is_neat):
    is_neat = is_neat and packing is not False
    blocks = blocks_or_keep(
        encoded(lengths), DataConfig(cutoff_len=capacity, neat_packing=is_neat, packing=packing))
    sizes = [len(block.input_ids) for block in blocks]
    assert [token for block in blocks for token in block.input_ids.tolist()] == list(range(sum(lengths)))
    if packing is False:
        assert sizes == [min(capacity, length - start) for length in lengths for start in range(0, length, capacity)]
    else:
        assert set(sizes[:-1]) <= {capacity} and 0 < sizes[-1] <= capacity
    assert all(len(block.lengths) == 1 for block in blocks) or is_neat


def test_blocks_by_hand():
    """Documents of 3 and 4 tokens in blocks of 5: [0 1 2 | 3 4] and the remainder [5 6], nothing dropped."""
    blocks = blocks_or_keep(encoded([3, 4]), DataConfig(cutoff_len=5))
    assert [block.input_ids.tolist() for block in blocks] == [[0, 1, 2, 3, 4], [5, 6]]
    assert [block.lengths for block in blocks] == [(5,), (2,)]
    assert [blocks.members(index) for index in range(2)] == [(0, 1), (1,)]
    apart = blocks_or_keep(encoded([3, 4]), DataConfig(cutoff_len=5, neat_packing=True))
    assert [block.lengths for block in apart] == [(3, 2), (2,)]


def test_without_packing_each_example_is_a_row():
    rows = pack_or_keep(encoded([3, 4]), DataConfig(cutoff_len=10))
    assert [row.lengths for row in rows] == [(3,), (4,)]
