"""Fused norms, rotary embeddings, adapters and product attention against the plain formulas, values and gradients."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from danlu.models import product_attention
from danlu.models.lean_adapter import FEW, plain_adapter, project
from danlu.models.lean_ops import rms_norm, rotate
from danlu.models.product_attention import attend_by_products
from danlu.models.segment_attention import Rule, attend_dense, attend_segments
from danlu.models.segments import Segments


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    made = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return made.to(dtype).requires_grad_()


def same(one: Callable[..., Tensor], other: Callable[..., Tensor], inputs: Sequence[Tensor], tolerance: float) -> None:
    """Assert equal values and gradients, relative to the largest entry of each."""
    actual, expected = one(*inputs), other(*inputs)
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    got, wanted = (torch.autograd.grad(out, inputs, upstream.to(out.dtype)) for out in (actual, expected))
    for a, b in ((actual, expected), *zip(got, wanted, strict=True)):
        assert a.shape == b.shape and a.dtype == b.dtype
        assert (a - b).abs().max() <= tolerance * b.abs().max()


@pytest.mark.parametrize("shape", [(7, 16), (5, 3, 16), (1, 16)], ids=str)
def test_norm_is_that_of_the_family(shape: tuple[int, ...]) -> None:
    stock = LlamaRMSNorm(16, eps=1e-3).double()
    with torch.no_grad():
        stock.weight.copy_(numbers(16, seed=1))
    # the stock module computes in float32 whatever it is given
    same(lambda x, w: rms_norm(x, w, 1e-3, torch.float64),
         lambda x, w: w * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-3), (numbers(*shape), stock.weight),
         1e-12)
    same(lambda x: rms_norm(x, stock.weight.float(), 1e-3, torch.float32), stock.float(),
         (numbers(*shape, dtype=torch.float32),), 1e-5)


def test_norm_by_hand() -> None:
    """x = (3, 4), w = (1, 2), eps = 0: mean square 12.5, so y = (3, 8) / 3.5355 = (0.8485, 2.2627)."""
    out = rms_norm(torch.tensor([[3.0, 4.0]]), torch.tensor([1.0, 2.0]), 0.0, torch.float32)
    torch.testing.assert_close(out, torch.tensor([[0.848528, 2.262742]]))


def test_norm_rounds_once() -> None:
    """Under bf16 autocast the result is the float32 result rounded, as the product behind a stock norm rounds it."""
    hidden, weight = numbers(6, 16, dtype=torch.float32), numbers(16, seed=2, dtype=torch.float32)
    exact = rms_norm(hidden, weight, 1e-6, torch.float32)
    assert torch.equal(rms_norm(hidden, weight, 1e-6, torch.bfloat16), exact.bfloat16())


def test_rotation_is_that_of_the_family() -> None:
    """Other angles in both halves too, which no family has: the formula does not lean on their being equal."""
    cos, sin = numbers(5, 8, seed=1).detach(), numbers(5, 8, seed=2).detach()

    def stock(states_CNX: Tensor) -> Tensor:
        turned: Tensor = apply_rotary_pos_emb(*[states_CNX.transpose(0, 1)[None]] * 2, cos[None], sin[None])[0]
        return turned[0].transpose(0, 1)

    same(lambda x: rotate(x, cos, sin, torch.float64), stock, (numbers(5, 3, 8),), 1e-12)


LAYOUTS = {"one": ((40,), ()), "equal": ((6, 6, 6), ()), "mixed": ((3, 50, 1, 9, 3, 20), ()),
           "tree": ((20, 5, 7, 5, 30), (-1, 0, 0, 0, -1)), "two trees": ((30, 15, 17, 9, 4, 4), (-1, 0, 0, -1, 3, 3))}


def laid_out(lengths: tuple[int, ...], parents: tuple[int, ...]) -> Segments:
    ends = torch.tensor((0, *lengths)).cumsum(0).to(torch.int32)
    return Segments(lengths, ends, max(lengths), None, parents)


@pytest.mark.parametrize("strip", [4, 16, 128])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_products_equal_the_dense_oracle(layout: str, strip: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product_attention, "STRIP_ROWS", strip)
    segments = laid_out(*LAYOUTS[layout])
    inputs = [numbers(1, heads, sum(segments.lengths), 8, seed=heads) for heads in (4, 2, 2)]
    same(lambda *x: attend_by_products(*x, segments, 0.3), lambda *x: attend_dense(*x, segments, Rule(scale=0.3)),
         inputs, 1e-11)


def test_products_are_taken_only_where_they_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short blocks, no window that cuts, no dropout; each of the others goes to the fused kernel."""
    seen = []
    monkeypatch.setattr(product_attention, "attend_by_products", lambda *x: seen.append(x) or x[0].transpose(1, 2))
    inputs = [numbers(1, 2, 30, 8, seed=at).detach() for at in range(3)]
    for rule, served in ((Rule(), True), (Rule(window=30), True), (Rule(window=29), False), (Rule(dropout=0.1), False),
                         (Rule(softcap=2.0), False)):
        seen.clear()
        attend_segments(*inputs, laid_out((30,), ()), rule)
        assert bool(seen) == served, rule
    monkeypatch.setattr(product_attention, "MAX_TOKENS", 30)
    seen.clear()
    attend_segments(*inputs, laid_out((30,), ()), Rule())
    assert not seen


def test_products_keep_nothing_without_a_gradient() -> None:
    inputs = [numbers(1, 2, 30, 8, seed=at) for at in range(3)]
    with torch.no_grad():
        assert attend_by_products(*inputs, laid_out((30,), ()), 1.0).grad_fn is None


class Two(nn.Module):
    """A matrix and what follows it."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Linear(6, 10, bias=True)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.matrix(inputs)
        return out


def adapted(**settings: Any) -> Any:
    torch.manual_seed(0)
    keys = {"r": 3, "lora_alpha": 5, "target_modules": ["matrix"], "init_lora_weights": False} | settings
    return get_peft_model(Two(), LoraConfig(**keys)).double().base_model.model.matrix


def test_an_adapter_adds_what_peft_adds() -> None:
    module = adapted()
    assert plain_adapter(module) == "default"
    weights = (module.lora_A.default.weight, module.lora_B.default.weight)
    same(lambda x, *_: F.silu(project(module, x)), lambda x, *_: F.silu(module(x)), (numbers(7, 6), *weights), 1e-12)


def test_a_frozen_input_needs_no_gradient() -> None:
    """The lowest adapted layer: nothing before it trains."""
    module = adapted()
    project(module, numbers(7, 6).detach()).sum().backward()
    assert module.lora_A.default.weight.grad is not None and module.base_layer.weight.grad is None


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"lora_dropout": 0.1}, {"lora_bias": True}], ids=str)
def test_other_adapters_are_left_to_peft(settings: dict[str, Any]) -> None:
    module = adapted(**settings)
    assert plain_adapter(module) is None
    inputs = numbers(7, 6).detach()
    torch.manual_seed(1)
    expected = module(inputs)
    torch.manual_seed(1)
    assert torch.equal(project(module, inputs), expected)


def test_dropout_at_rest_and_adapters_switched_off() -> None:
    resting = adapted(lora_dropout=0.1).eval()
    assert plain_adapter(resting) == "default"
    resting.enable_adapters(False)
    assert plain_adapter(resting) is None
    inputs = numbers(7, 6).detach()
    assert torch.equal(project(resting, inputs), resting.base_layer(inputs))


@pytest.mark.parametrize("rows", [1, *FEW, FEW[1] + 1])
def test_few_rows_are_multiplied_the_other_way_round(rows: int) -> None:
    """y^T = W x^T lies in memory as (O, C); a plain matrix with a bias, and one with an adapter."""
    for module in (adapted().float(), adapted().float().base_layer):
        inputs = numbers(rows, 6, dtype=torch.float32).detach()
        with torch.no_grad():
            found, expected = project(module, inputs), module(inputs)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        assert (found.stride() == (1, rows)) == (FEW[0] <= rows <= FEW[1])


def test_the_other_way_round_is_for_float32_without_gradient_or_listeners() -> None:
    """Each of the others comes row by row, as the module itself returns it."""
    module = adapted().float().base_layer
    inputs = numbers(4, 6, dtype=torch.float32).detach()
    assert project(module, inputs).stride() == (10, 1)  # a gradient may be asked for
    with torch.no_grad():
        assert project(module, inputs).stride() == (1, 4)
        with torch.autocast("cpu", torch.bfloat16):
            assert project(module, inputs).stride() == (10, 1)
        assert project(module.double(), inputs.double()).stride() == (10, 1)
        handle = module.float().register_forward_hook(lambda *_: torch.zeros(4, 10))
        assert not project(module, inputs).any()
        handle.remove()
