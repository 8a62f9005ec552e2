"""Attention of a whole stream by torch's flex attention, against the dense oracle; its masks are exact and kept."""

from typing import Any

import pytest
import torch
from torch.nn.attention.flex_attention import create_mask

from danlu.models.flex_attention import (
    LEAST_TILES,
    MASKS_KEPT,
    TILE,
    attend_flex,
    attend_tiles,
    mask_of,
    operands,
    serves,
)
from danlu.models.segment_attention import Rule, attend_dense, attend_segments
from danlu.models.segments import Segments

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")

Layout = tuple[tuple[int, ...], tuple[int, ...]]
FORKED: Layout = ((30, 15, 17, 9, 4, 4), (-1, 0, 0, -1, 3, 3))
LAYOUTS: list[Layout] = [((5,), ()), ((3, 9, 1, 9, 3, 2), ()), ((8,) * 12, ()), FORKED]
LONG: list[Layout] = [
    ((300, 140, 5, 200), ()), ((128, 256, 128), ()), ((500, 300, 3, 77, 140, 1), (-1, 0, 0, -1, 3, 3))]
SINKS = (0.3, -1.0, 2.0, 0.0)
RULES = {
    "plain": Rule(),
    "scaled": Rule(scale=0.7),
    "window": Rule(window=3),
    "softcap": Rule(softcap=0.5),
    "sinks": Rule(sinks=torch.tensor(SINKS)),
    "softcap and window": Rule(softcap=0.5, window=12),
}


def segments_of(layout: Layout, device: str = "cpu") -> Segments:
    lengths, parents = layout
    bounds = torch.tensor((0, *lengths), device=device).cumsum(0).to(torch.int32)
    return Segments(lengths, bounds, max(lengths), parents=parents)


def qkv(tokens: int, key_heads: int = 2, width: int = 8, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    make = torch.Generator().manual_seed(tokens)
    return [torch.randn((1, tokens, heads, width), generator=make, dtype=dtype).transpose(1, 2)
            for heads in (4, key_heads, key_heads)]


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_one_call_equals_the_dense_oracle(layout: Layout, rule: Rule) -> None:
    inputs, segments = qkv(sum(layout[0])), segments_of(layout)
    actual = attend_flex(*inputs, segments, rule)
    assert actual.shape == (1, sum(layout[0]), 4, 8)
    torch.testing.assert_close(actual, attend_dense(*inputs, segments, rule), atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_query_heads_share_key_heads(key_heads: int) -> None:
    inputs, segments, rule = qkv(79, key_heads), segments_of(FORKED), Rule(softcap=2.0, sinks=torch.tensor(SINKS))
    torch.testing.assert_close(
        attend_flex(*inputs, segments, rule), attend_dense(*inputs, segments, rule), atol=1e-12, rtol=1e-10)


def test_values_may_have_another_width_and_autocast_names_the_dtype() -> None:
    query, key, value = (x.float() for x in qkv(79))
    wide, segments = torch.cat([value, -value], dim=-1), segments_of(FORKED)
    with torch.autocast("cpu", torch.bfloat16):
        near = attend_flex(query, key, wide, segments, Rule())
    assert near.dtype == torch.bfloat16 and near.shape == (1, 79, 4, 16)
    assert (near - attend_dense(query, key, wide, segments, Rule())).abs().max() < 2e-2


@pytest.mark.parametrize("window", [None, 1, 100, 130, 300])
@pytest.mark.parametrize("layout", [*LAYOUTS, *LONG], ids=str)
def test_tiles_are_those_of_the_mask_and_the_mask_is_the_oracles(layout: Layout, window: int | None) -> None:
    """A kernel passes over tiles that are not listed and does not ask the mask in tiles that are listed as full.

    What each token sees is read off the oracle: with equal scores it gives 1 / (number of keys seen) to each of them.
    """
    tokens, segments = sum(layout[0]), segments_of(layout)
    mask = mask_of(segments, window, torch.device("cpu"))
    padded = max(LEAST_TILES, -(-tokens // TILE)) * TILE
    assert mask.shape == (1, 1, padded, padded)
    seen = create_mask(mask.mask_mod, 1, 1, padded, padded, "cpu")[0, 0]
    flat = torch.zeros(1, 1, tokens, 1)
    weights = attend_dense(flat, flat, torch.eye(tokens)[None, None], segments, Rule(window=window))[0, :, 0]
    assert torch.equal(seen[:tokens, :tokens], weights > 0)
    assert not seen[:tokens, tokens:].any() and not seen[tokens:, :tokens].any() and seen.diagonal().all()
    in_tiles = seen.view(padded // TILE, TILE, padded // TILE, TILE).sum((1, 3))
    full = in_tiles == TILE * TILE
    for number, which, expected in (
            (mask.kv_num_blocks, mask.kv_indices, (in_tiles > 0) & ~full),
            (mask.full_kv_num_blocks, mask.full_kv_indices, full),
            (mask.q_num_blocks, mask.q_indices, ((in_tiles > 0) & ~full).T),
            (mask.full_q_num_blocks, mask.full_q_indices, full.T)):
        assert number.dtype == which.dtype == torch.int32
        listed = [set(row[:count].tolist()) for row, count in zip(which[0, 0], number[0, 0], strict=True)]
        assert listed == [set(row.nonzero()[:, 0].tolist()) for row in expected]


def test_masks_are_kept_by_what_they_depend_on() -> None:
    cpu = torch.device("cpu")
    first = mask_of(segments_of(FORKED), 7, cpu)
    assert mask_of(segments_of(FORKED), 7, cpu) is first
    assert mask_of(segments_of(FORKED), 8, cpu) is not first
    assert mask_of(segments_of((FORKED[0], (-1, 0, 0, -1, 3, -1))), 7, cpu) is not first
    assert mask_of(segments_of((FORKED[0], ())), 7, cpu) is not first
    whole = mask_of(segments_of(FORKED), None, cpu)
    assert mask_of(segments_of(FORKED), 47, cpu) is whole, "30 + 17 tokens are the longest: the window cuts nothing"
    for length in range(1, MASKS_KEPT + 1):
        mask_of(segments_of(((length,), ())), None, cpu)
    assert mask_of(segments_of(FORKED), 7, cpu) is not first


def test_a_mask_made_in_inference_mode_serves_training_too() -> None:
    with torch.inference_mode():
        mask = mask_of(segments_of(((11, 13, 17), ())), 5, torch.device("cpu"))
    assert not mask.kv_indices.is_inference()


def test_layouts_windows_and_factors_are_not_compiled_in() -> None:
    """One graph for all; a cap makes the second, sinks the third."""
    torch._dynamo.reset()
    graphs: list[Any] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(attend_tiles, dynamic=True, backend=backend)

    def count(layout: Layout, rule: Rule) -> int:
        inputs, segments = qkv(sum(layout[0]), dtype=torch.float32), segments_of(layout)
        out = compiled(*operands(*inputs, segments, rule))[None, :sum(layout[0])]
        torch.testing.assert_close(out, attend_dense(*inputs, segments, rule), atol=1e-5, rtol=1e-4)
        return len(graphs)

    assert count(FORKED, Rule()) == 1
    assert {count(layout, Rule(scale=scale, window=window)) for layout, scale, window in
            [(LONG[0], 0.3, None), (LONG[1], None, 40), (LONG[2], 0.7, 150), (LAYOUTS[1], None, 1)]} == {1}
    assert count(FORKED, Rule(softcap=2.0)) == 2 and count(LONG[2], Rule(softcap=3.0, window=9)) == 2
    assert count(FORKED, Rule(sinks=torch.tensor(SINKS))) == 3 and count(LONG[0], Rule(sinks=torch.ones(4))) == 3


def test_processors_are_left_to_other_ways() -> None:
    query, _, value = qkv(5, width=16, dtype=torch.float32)
    assert not serves(query, value, Rule())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
@pytest.mark.parametrize("layout", [FORKED, *LONG], ids=str)
def test_gradients_on_cuda_equal_those_of_the_dense_oracle(layout: Layout, rule: Rule) -> None:
    segments = segments_of(layout, "cuda")
    inputs = [x.to("cuda", torch.bfloat16).requires_grad_() for x in qkv(sum(layout[0]), width=64)]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    rules = [rule, rule]
    if rule.sinks is not None:
        inputs.append(rule.sinks.cuda().requires_grad_())
        exact.append(rule.sinks.double().cuda().requires_grad_())
        rules = [Rule(sinks=inputs[-1]), Rule(sinks=exact[-1])]
    assert serves(inputs[0], inputs[2], rule)
    actual, expected = attend_flex(*inputs[:3], segments, rules[0]), attend_dense(*exact[:3], segments, rules[1])
    assert (actual - expected).norm() < 2e-2 * expected.norm()
    upstream = torch.randn_like(expected)
    got = torch.autograd.grad(actual, inputs, upstream.bfloat16())
    for one, other in zip(got, torch.autograd.grad(expected, exact, upstream), strict=True):
        assert (one - other).norm() < 2e-2 * other.norm()
    if not rule.is_plain:
        assert torch.equal(attend_segments(*inputs[:3], segments, rules[0]), actual), "the interface takes this way"
