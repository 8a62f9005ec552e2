"""The sampler: every example once an epoch, whatever the sizes, and a function of the step alone."""

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from danlu.engine.sampler import Sampler, share

sizes = st.integers(1, 200)


def some_lengths(size: int, seed: int) -> list[int]:
    return [int(n) for n in np.random.default_rng(seed).integers(1, 500, size)]


@settings(deadline=None)
@given(sizes, st.integers(1, 40), st.integers(0, 2**31), st.booleans(), st.booleans())
def test_every_example_once_an_epoch(size: int, batch: int, seed: int, shuffle: bool, grouped: bool) -> None:
    sampler = Sampler(size, batch, seed, shuffle, lengths=some_lengths(size, seed), grouped=grouped and shuffle)
    assert sampler.steps_per_epoch == math.ceil(size / batch)
    for epoch in range(2):
        steps = range(epoch * sampler.steps_per_epoch, (epoch + 1) * sampler.steps_per_epoch)
        batches = [sampler.batch(step) for step in steps]
        assert sorted(i for one in batches for i in one) == list(range(size))
        assert all(len(one) == batch for one in batches[:-1])


@settings(deadline=None)
@given(sizes, st.integers(1, 40), st.lists(st.integers(0, 300), min_size=1, max_size=10))
def test_steps_in_any_order_give_the_same_batches(size: int, batch: int, steps: list[int]) -> None:
    straight, jumping = (Sampler(size, batch, 7, lengths=some_lengths(size, 7)) for _ in range(2))
    expected = [straight.batch(step) for step in range(301)]
    assert [jumping.batch(step) for step in steps] == [expected[step] for step in steps]


@given(st.lists(st.integers(), max_size=50), st.integers(1, 8))
def test_shares_are_a_partition_of_nearly_equal_parts(batch: list[int], world: int) -> None:
    parts = [share(batch, rank, world) for rank in range(world)]
    assert sorted(i for part in parts for i in part) == sorted(batch)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_drop_last_and_order_of_the_file() -> None:
    """10 examples, 4 a step: with drop_last two steps, 8 and 9 are left out."""
    sampler = Sampler(10, 4, 0, shuffle=False, drop_last=True)
    assert [sampler.batch(step) for step in range(3)] == [[0, 1, 2, 3], [4, 5, 6, 7], [0, 1, 2, 3]]


def test_grouping_by_length_wastes_little_and_starts_with_the_longest() -> None:
    lengths = list(np.random.default_rng(0).integers(1, 1000, 4000))
    grouped, plain = (Sampler(4000, 8, 3, lengths=lengths, grouped=one) for one in (True, False))

    def spread(sampler: Sampler) -> float:
        batches = [sampler.batch(step) for step in range(500)]
        return float(np.mean([max(lengths[i] for i in b) - min(lengths[i] for i in b) for b in batches]))

    assert spread(grouped) < spread(plain) / 10
    assert max(lengths) in [lengths[i] for i in grouped.batch(0)]
    assert grouped.batch(0) != grouped.batch(500)


@settings(deadline=None)
@given(sizes, st.integers(1, 40), st.integers(0, 2**31), st.booleans())
def test_the_first_epoch_starts_with_the_heaviest_whole_batches(size: int, batch: int, seed: int, drop: bool) -> None:
    """Batches hold the rows that were drawn; the first has the most tokens, the second the longest other row."""
    lengths = some_lengths(size, seed)
    plain, led = (Sampler(size, batch, seed, drop_last=drop, lengths=one) for one in (None, lengths))
    number, whole = plain.steps_per_epoch, size // batch
    drawn, taken = ([one.batch(step) for step in range(2 * number)] for one in (plain, led))
    assert sorted(drawn[:number]) == sorted(taken[:number])
    assert drawn[whole:] == taken[whole:]  # the incomplete batch, and all later epochs
    assert sum(a != b for a, b in zip(drawn, taken, strict=True)) <= 4
    rows = [[lengths[i] for i in one] for one in taken[:whole]]
    assert all(sum(rows[0]) >= sum(one) for one in rows)
    assert all(max(rows[1]) >= max(one) for one in rows[1:])


def test_the_order_of_the_file_stays_as_it_is() -> None:
    """The last rows are the longest by far, and come last all the same."""
    assert Sampler(8, 2, 0, shuffle=False, lengths=[1] * 6 + [99] * 2).batch(0) == [0, 1]


def test_epochs_and_seeds_differ() -> None:
    one, two = Sampler(100, 100, 1), Sampler(100, 100, 2)
    assert one.batch(0) != one.batch(1)
    assert one.batch(0) != two.batch(0)
