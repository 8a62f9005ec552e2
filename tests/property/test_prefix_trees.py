"""A prompt that several answers share is computed once and nothing else changes: layout, attention, loss, gradients."""

from functools import lru_cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from danlu.core.prefix_tree import SHORTEST_PREFIX, share_prefixes
from danlu.core.stream import Example
from danlu.models.packed_lm import PackedLM
from danlu.models.segment_attention import Rule, attend_by_group, attend_dense, attend_varlen
from danlu.models.segments import Layout, Segments
from danlu.models.stream_tensors import StreamTensors
from tests.parity.test_packed_families import sharpen
from tests.tiny import tiny_model


@lru_cache
def model() -> PackedLM:
    """gpt2 computes in float64 throughout; families with RMSNorm pass through float32."""
    return PackedLM(sharpen(tiny_model("gpt2")).double())


@st.composite
def batches(draw: st.DrawFn) -> list[Example]:
    """One to four examples of one to four answers behind a prompt of up to 30 tokens; any token may be supervised."""
    made = []
    for index in range(draw(st.integers(1, 4))):
        rng = np.random.default_rng(draw(st.integers(0, 2**16)))
        prompt = rng.integers(3, 320, draw(st.integers(0, 30)))
        answers = [rng.integers(3, 320, n) for n in draw(st.lists(st.integers(1, 12), min_size=1, max_size=4))]
        ids = [np.concatenate([prompt, answer]) for answer in answers]
        total = sum(map(len, ids))
        made.append(Example(np.concatenate(ids), rng.random(total) < draw(st.floats(0, 1)), rng.random(total),
                            tuple(map(len, ids)), index))
    return made


@settings(max_examples=60, deadline=None)
@given(batches())
def test_every_token_is_found_where_its_past_is_its_own(batch: list[Example]) -> None:
    """Following a token's block up to its root gives exactly the tokens that stand before it in its segment."""
    stream = StreamTensors.of(batch)
    if stream.tree is None:
        return
    tree, layout = stream.tree, Layout.of(stream, shared=True)
    assert torch.equal(layout.input_ids[tree.places], stream.input_ids)
    assert torch.equal(layout.position_ids[tree.places], stream.position_ids)
    assert sum(tree.lengths) == tree.num_tokens < stream.num_tokens and min(tree.lengths) >= 1
    starts = np.cumsum((0, *tree.lengths))
    block_C = np.repeat(np.arange(len(tree.lengths)), tree.lengths)
    segment_starts = stream.cu_seqlens.tolist()
    for first, end in zip(segment_starts, segment_starts[1:], strict=False):
        block = block_C[tree.places[end - 1]]
        path = [*([tree.parents[block]] if tree.parents[block] >= 0 else []), block]
        past = np.concatenate([np.arange(starts[one], starts[one + 1]) for one in path])
        assert tree.places[first:end].tolist() == past.tolist()


@settings(max_examples=30, deadline=None)
@given(batches())
def test_loss_and_gradients_are_those_of_segments_apart(batch: list[Example]) -> None:
    """In float64, to ten digits."""
    stream, packed = StreamTensors.of(batch), model()
    packed(stream)
    found = {}
    for name, tree in (("tree", stream.tree), ("apart", None)):
        packed.zero_grad()
        total = packed(StreamTensors(**{**vars(stream), "tree": tree}))
        total.backward()
        found[name] = [total.detach(), *(p.grad.clone() for p in packed.parameters() if p.grad is not None)]
    for once, apart in zip(found["tree"], found["apart"], strict=True):
        assert float((once - apart).abs().max()) <= 1e-10 * max(1.0, float(apart.abs().max()))


TREES = [((9, 3, 4), (-1, 0, 0)), ((9, 3, 3, 5, 8, 2, 3, 2), (-1, 0, 0, -1, -1, 4, 4, 4)), ((2, 9, 1), (-1, 0, 0)),
         ((9, 3, 3, 9, 3, 3), (-1, 0, 0, -1, 3, 3))]
RULES = {
    "plain": Rule(), "scaled": Rule(scale=0.7), "window": Rule(window=5), "window of one": Rule(window=1),
    "wide window": Rule(window=10), "softcap and window": Rule(softcap=0.5, window=4),
    "sinks": Rule(sinks=torch.tensor([0.3, -1.0, 2.0, 0.0])),
    "sinks and window": Rule(sinks=torch.tensor([0.3, -1.0, 2.0, 0.0]), window=11)}


def tree_of(lengths: tuple[int, ...], parents: tuple[int, ...]) -> Segments:
    bounds = torch.tensor((0, *lengths)).cumsum(0).to(torch.int32)
    return Segments(lengths, bounds, max(lengths), parents=parents)


def qkv(tokens: int) -> list[torch.Tensor]:
    make = torch.Generator().manual_seed(tokens)
    return [torch.randn((1, tokens, heads, 8), generator=make, dtype=torch.float64).transpose(1, 2).requires_grad_()
            for heads in (4, 2, 2)]


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
@pytest.mark.parametrize(("lengths", "parents"), TREES, ids=str)
def test_branches_attend_as_the_dense_oracle_says(lengths: tuple[int, ...], parents: tuple[int, ...],
                                                  rule: Rule) -> None:
    segments, inputs = tree_of(lengths, parents), qkv(sum(lengths))
    actual, expected = (way(*inputs, segments, rule) for way in (attend_by_group, attend_dense))
    torch.testing.assert_close(actual, expected, atol=1e-12, rtol=1e-10)
    upstream = torch.randn(actual.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    got = torch.autograd.grad(actual, inputs, upstream)
    for one, other in zip(got, torch.autograd.grad(expected, inputs, upstream), strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_a_tree_attends_as_its_segments_written_out(rule: Rule) -> None:
    """Prefix 9 with branches 3 and 4 gives what segments of 12 and 13 tokens give; the oracle itself is checked so."""
    query, key, value = (x.detach() for x in qkv(16))
    out = attend_dense(query, key, value, tree_of((9, 3, 4), (-1, 0, 0)), rule)
    places = torch.tensor([*range(12), *range(9), *range(12, 16)])
    plain = attend_dense(*(x[:, :, places] for x in (query, key, value)), tree_of((12, 13), ()), rule)
    torch.testing.assert_close(out[:, places], plain, atol=1e-12, rtol=1e-10)


def test_keys_laid_out_for_the_varlen_kernel() -> None:
    """Each block's context is its prefix and itself: 0-8 | 0-8, 9-11 | 0-8, 12-15, bounds 0, 9, 21, 34."""
    seen, bounds, longest = tree_of((9, 3, 4), (-1, 0, 0)).contexts
    assert seen.tolist() == [*range(9), *range(12), *range(9), *range(12, 16)]
    assert bounds.tolist() == [0, 9, 21, 34] and bounds.dtype == torch.int32 and longest == 13


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("rule", [Rule(), Rule(window=11)], ids=["plain", "window"])
def test_varlen_kernel_over_a_tree(rule: Rule) -> None:
    """In bfloat16 against the dense oracle in float64: the causal diagonal ends at the bottom right."""
    tree = tree_of((40, 13, 7, 1, 30), (-1, 0, 0, 0, -1))
    segments = Segments(tree.lengths, tree.cu_seqlens.cuda(), tree.max_length, parents=tree.parents)
    inputs = [x.detach().to("cuda", torch.bfloat16).requires_grad_() for x in qkv(91)]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    actual, expected = attend_varlen(*inputs, segments, rule), attend_dense(*exact, segments, rule)
    assert (actual - expected).abs().max() < 2e-2
    upstream = torch.randn_like(expected)
    got = torch.autograd.grad(actual, inputs, upstream.bfloat16())
    for one, other in zip(got, torch.autograd.grad(expected, exact, upstream), strict=True):
        assert (one - other).norm() < 2e-2 * other.norm()


def test_trees_by_hand() -> None:
    """Prompt of 10 behind three answers; a segment apart; then a pair whose beginning of 7 is too short to share."""
    prompt, short = list(range(100, 110)), list(range(50, 57))
    rows = [[*prompt, 1, 2], [*prompt, 3], [*prompt, 1, 4, 5], [9, 9], [*short, 1], [*short, 2]]
    lengths = [len(row) for row in rows]
    tree = share_prefixes(np.array([one for row in rows for one in row]), lengths, [0, 0, 0, 1, 2, 2])
    assert tree is not None and SHORTEST_PREFIX == 8
    assert tree.lengths == (10, 2, 1, 3, 2, 8, 8) and tree.parents == (-1, 0, 0, 0, -1, -1, -1)
    assert tree.kept.tolist() == [*range(12), 22, *range(33, 36), *range(36, 54)]
    assert tree.places[12:23].tolist() == [*range(10), 12]


def test_an_answer_that_begins_another_keeps_its_last_token() -> None:
    """Of 12 and 14 tokens, the first the beginning of the second, 11 are shared: a segment's last token is its own."""
    tree = share_prefixes(np.array([*range(12), *range(14)]), [12, 14], [0, 0])
    assert tree is not None and tree.lengths == (11, 1, 3)


def test_examples_do_not_share_with_each_other() -> None:
    assert share_prefixes(np.array([*range(12), *range(12)]), [12, 12], [0, 1]) is None


def test_a_run_ends_where_a_longer_prefix_is_worth_more() -> None:
    """Answers 1, 2 share 40 tokens, 3, 4 share another 40, all four share 10: two groups save 80, one would save 30."""
    start, one, other = list(range(10)), list(range(20, 50)), list(range(60, 90))
    rows = [[*start, *one, 1], [*start, *one, 2], [*start, *other, 1], [*start, *other, 2]]
    tree = share_prefixes(np.array([n for row in rows for n in row]), [41] * 4, [0] * 4)
    assert tree is not None and tree.lengths == (40, 1, 1, 40, 1, 1)


def test_little_shared_before_long_answers_is_left_alone() -> None:
    """8 of 2 x 200 tokens would be saved: less than a sixteenth."""
    rng = np.random.default_rng(0)
    first, second = (np.concatenate([np.arange(8), rng.integers(9, 300, 192)]) for _ in "ab")
    assert share_prefixes(np.concatenate([first, second]), [200, 200], [0, 0]) is None
