"""Attention inside segments against the dense block-diagonal oracle, and its manners outside packed forwards."""

import pytest
import torch
from transformers import PreTrainedModel

from danlu.models.attention import IMPLEMENTATION
from danlu.models.segment_attention import Rule, attend_by_group, attend_dense, attend_segments, attend_varlen
from danlu.models.segments import Segments
from tests.tiny import tiny_model

LAYOUTS = [(5,), (1,), (1, 1, 1), (4, 4, 4), (3, 9, 1, 9, 3, 2), (8,) * 12, (20, 7)]
RULES = {
    "plain": Rule(),
    "scaled": Rule(scale=0.7),
    "window": Rule(window=3),
    "window of one": Rule(window=1),
    "softcap": Rule(softcap=0.5),
    "softcap and window": Rule(softcap=0.5, window=4),
    "sinks": Rule(sinks=torch.tensor([0.3, -1.0, 2.0, 0.0])),
    "sinks and window": Rule(sinks=torch.tensor([0.3, -1.0, 2.0, 0.0]), window=2),
}


def segments_of(lengths: tuple[int, ...], device: str = "cpu") -> Segments:
    ends = torch.tensor((0, *lengths), dtype=torch.int32, device=device).cumsum(0).to(torch.int32)
    return Segments(lengths, ends, max(lengths))


def qkv(tokens: int, key_heads: int = 2, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    make = torch.Generator().manual_seed(tokens)
    shapes = [(1, tokens, heads, 8) for heads in (4, key_heads, key_heads)]
    # laid out as models lay them: heads transposed forward from a projection's output
    return [torch.randn(s, generator=make, dtype=dtype).transpose(1, 2).requires_grad_() for s in shapes]


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
@pytest.mark.parametrize("lengths", LAYOUTS, ids=str)
def test_grouped_calls_equal_the_dense_oracle(lengths: tuple[int, ...], rule: Rule) -> None:
    segments, inputs = segments_of(lengths), qkv(sum(lengths))
    actual, expected = (way(*inputs, segments, rule) for way in (attend_by_group, attend_dense))
    assert actual.shape == (1, sum(lengths), 4, 8)
    torch.testing.assert_close(actual, expected, atol=1e-12, rtol=1e-10)
    upstream = torch.randn(actual.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    got = torch.autograd.grad(actual, inputs, upstream)
    for one, other in zip(got, torch.autograd.grad(expected, inputs, upstream), strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_query_heads_share_key_heads(key_heads: int) -> None:
    segments, inputs = segments_of((6, 3, 6)), qkv(15, key_heads)
    torch.testing.assert_close(
        attend_segments(*inputs, segments, Rule()), attend_dense(*inputs, segments, Rule()), atol=1e-12, rtol=1e-10)


def test_a_token_alone_receives_its_own_value() -> None:
    """softmax over one score is 1, whatever the score: the output is v. With a sink equal to the score it is v / 2."""
    query, key, value = qkv(3, key_heads=4)
    alone = segments_of((1, 1, 1))
    torch.testing.assert_close(attend_segments(query, key, value, alone, Rule()), value.transpose(1, 2))
    rule = Rule(scale=0.0, sinks=torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(attend_segments(query, key, value, alone, rule), value.transpose(1, 2) / 2)


def test_dropout_is_drawn_and_keeps_the_mean() -> None:
    """Dropping half of the weights and doubling the rest: the mean over 2000 draws nears the plain result."""
    query, key, value = (x.detach() for x in qkv(6))
    segments = segments_of((6,))
    torch.manual_seed(0)
    draws = torch.stack([attend_segments(query, key, value, segments, Rule(dropout=0.5)) for _ in range(2000)])
    plain = attend_segments(query, key, value, segments, Rule())
    assert draws.std(0).max() > 0.1
    assert (draws.mean(0) - plain).abs().max() < 0.15


@pytest.mark.parametrize("family", ["llama", "gemma2", "opt"])
def test_outside_packed_forwards_the_model_generates_as_ever(family: str) -> None:
    model = tiny_model(family)
    ids = torch.tensor([[0, 0, 5, 6, 7], [9, 8, 7, 6, 5]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])

    def generate(model: PreTrainedModel) -> torch.Tensor:
        made: torch.Tensor = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=24, do_sample=False)
        return made

    expected, logits = generate(model), model(input_ids=ids, attention_mask=mask).logits
    model.set_attn_implementation(IMPLEMENTATION)
    assert torch.equal(generate(model), expected)
    actual = model(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(actual[mask.bool()], logits[mask.bool()], atol=1e-5, rtol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("rule", [Rule(), Rule(scale=0.3), Rule(window=3)], ids=["plain", "scaled", "window"])
def test_varlen_kernel_equals_the_dense_oracle(rule: Rule) -> None:
    segments = segments_of((30, 1, 8, 8, 77), "cuda")
    inputs = [x.detach().to("cuda", torch.bfloat16).requires_grad_() for x in qkv(124)]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    actual, expected = attend_varlen(*inputs, segments, rule), attend_dense(*exact, segments, rule)
    assert (actual - expected).abs().max() < 2e-2
    upstream = torch.randn_like(expected)
    got = torch.autograd.grad(actual, inputs, upstream.bfloat16())
    for one, other in zip(got, torch.autograd.grad(expected, exact, upstream), strict=True):
        assert (one - other).norm() < 2e-2 * other.norm()
