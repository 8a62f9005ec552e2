"""Mixing: each strategy's rows are exactly those it promises, whatever the sizes and probabilities."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from danlu.data.mixing import concat, mix, sample, split

SIZES = st.lists(st.integers(1, 40), min_size=2, max_size=4)
SEEDS = st.integers(0, 9)


def weights(draw, sizes):
    return draw(st.one_of(st.just([]), st.lists(st.floats(0.05, 1), min_size=len(sizes), max_size=len(sizes))))


@given(st.data(), SIZES, SEEDS)
def test_once_and_concat_give_every_row_once(data, sizes, seed):
    every = sorted((owner, row) for owner, size in enumerate(sizes) for row in range(size))
    once = mix(sizes, "interleave_once", weights(data.draw, sizes), seed)
    assert sorted(map(tuple, once.tolist())) == every
    assert list(map(tuple, concat(sizes).tolist())) == every


@given(st.data(), SIZES, SEEDS)
def test_under_stops_when_the_first_set_is_used_up_and_repeats_nothing(data, sizes, seed):
    order = list(map(tuple, mix(sizes, "interleave_under", weights(data.draw, sizes), seed).tolist()))
    taken = Counter(owner for owner, _ in order)
    assert max(Counter(order).values()) == 1
    assert any(taken[owner] == size for owner, size in enumerate(sizes))
    assert all(taken[owner] <= size for owner, size in enumerate(sizes))


@given(st.data(), SIZES, SEEDS)
def test_over_uses_every_row_and_cycles_in_order(data, sizes, seed):
    order = list(map(tuple, mix(sizes, "interleave_over", weights(data.draw, sizes), seed).tolist()))
    for owner, size in enumerate(sizes):
        rows = [row for one, row in order if one == owner]
        assert len(rows) >= size and rows == [index % size for index in range(len(rows))]


def test_probabilities_are_kept():
    """1000 draws at 0.9: 900 expected, standard deviation sqrt(1000 * 0.9 * 0.1) = 9.5; six of them either way."""
    order = mix([10000, 10000], "interleave_under", [0.9, 0.1], 0)[:1000]
    assert abs(int((order[:, 0] == 0).sum()) - 900) < 57


@given(st.integers(1, 30), st.integers(1, 80), SEEDS)
def test_a_sample_repeats_only_when_it_must(size, wanted, seed):
    drawn = sample(size, wanted, seed).tolist()
    assert len(drawn) == wanted and set(drawn) <= set(range(size))
    assert len(set(drawn)) == min(size, wanted)


@given(st.integers(2, 50), st.floats(0.01, 0.9), SEEDS)
def test_a_split_is_a_partition(size, share, seed):
    train, held_out = split(size, share, seed)
    assert sorted([*train.tolist(), *held_out.tolist()]) == list(range(size))
    assert len(held_out) == max(1, round(size * share))
