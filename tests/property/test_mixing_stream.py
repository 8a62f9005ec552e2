"""Mixing row by row gives the order of mixing whole sets, from any place on."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from danlu.core.errors import ConfigError
from danlu.data.mixing import mix
from danlu.data.streaming.mixer import Mixer

STRATEGIES = ["concat", "interleave_under", "interleave_over", "interleave_once"]


def walk(mixer: Mixer) -> list[tuple[int, int]]:
    """Return data set and row of all that is left of an epoch."""
    found = []
    while (owner := mixer.next()) is not None:
        found.append((owner, (mixer.taken[owner] - 1) % mixer.sizes[owner]))
    return found


@st.composite
def mixes(draw: Any) -> tuple[list[int], str, list[float], int]:
    sizes = draw(st.lists(st.integers(1, 60), min_size=1, max_size=4))
    strategy = draw(st.sampled_from(STRATEGIES))
    weights = [] if strategy == "concat" else draw(
        st.sampled_from([[], [draw(st.floats(0.05, 1.0)) for _ in sizes]]))
    return sizes, strategy, weights, draw(st.integers(0, 2**32 - 1))


@settings(max_examples=150, deadline=None)
@given(mixes())
def test_the_order_is_that_of_the_mixer_of_whole_sets(case: tuple[list[int], str, list[float], int]) -> None:
    sizes, strategy, weights, seed = case
    expected = [tuple(place) for place in mix(sizes, strategy, weights, seed).tolist()]
    mixer = Mixer(sizes, strategy, weights, seed)
    assert walk(mixer) == expected
    counted = [sum(owner == one for owner, _ in expected) for one in range(len(sizes))]
    assert Mixer(sizes, strategy, weights, seed).rows_of_an_epoch() == counted
    mixer.restart()
    assert walk(mixer) == expected


@settings(max_examples=100, deadline=None)
@given(mixes(), st.integers(0, 200))
def test_it_goes_on_from_any_place(case: tuple[list[int], str, list[float], int], place: int) -> None:
    mixer, other = Mixer(*case), Mixer(*case)
    for _ in range(place):
        mixer.next()
    other.restore(mixer.state())
    assert walk(other) == walk(mixer)


def test_draws_go_on_over_blocks() -> None:
    """10,000 rows are three blocks of draws; the state is taken in each."""
    case = ([9000, 9000], "interleave_over", [0.3, 0.7], 5)
    expected = walk(Mixer(*case))
    assert len(expected) > 20000
    for place in (4095, 4096, 4097, 9000):
        mixer, other = Mixer(*case), Mixer(*case)
        for _ in range(place):
            mixer.next()
        other.restore(mixer.state())
        assert walk(other) == expected[place:]


def test_a_probability_of_zero_is_refused() -> None:
    with pytest.raises(ConfigError, match="leaves a data set out"):
        Mixer([3, 3], "interleave_under", [0.0, 1.0], 0)
