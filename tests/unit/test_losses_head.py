"""The tiled head: numbers by hand, against float64, and the work it does."""

import math
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from danlu.losses import vocabulary_sweep as head_module
from danlu.losses.linear_cross_entropy import linear_cross_entropy, linear_logps
from danlu.losses.logit_transform import LogitTransform
from danlu.losses.logprobs import reference_logps, reference_nll_sum
from danlu.losses.vocabulary_sweep import MAX_TILE_ROWS, MIN_TILE_ROWS, TILE_BYTES, tile_rows_for

TRANSFORMS = [LogitTransform(), LogitTransform(scale=0.25), LogitTransform(softcap=1.5), LogitTransform(2.0, 3.0)]


@pytest.fixture(params=["one block", "blocks of four words"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param != "one block":
        monkeypatch.setattr(head_module, "BLOCK_WORDS", 4)
        monkeypatch.setitem(head_module.BLOCK_BYTES, "cpu", 1)
    return str(request.param)


class Watch(TorchDispatchMode):
    """Counts matrix products and remembers the largest tensor made."""

    def __init__(self) -> None:
        super().__init__()
        self.products, self.largest = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.products += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_)
        if isinstance(out, torch.Tensor):
            self.largest = max(self.largest, out.numel())
        return out


def operands(rows: int = 7, hidden: int = 4, vocab: int = 11, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    make = torch.Generator().manual_seed(3)
    tensors = [torch.randn(shape, generator=make, dtype=torch.float64).to(dtype).requires_grad_()
               for shape in ((rows, hidden), (vocab, hidden), (vocab,))]
    targets = torch.randint(vocab, (rows,), generator=make)
    weights = torch.rand(rows, generator=make)
    return [*tensors, targets, weights]


def test_two_word_vocabulary_by_hand() -> None:
    """h = 1, W = (0, ln 3), so z = (0, ln 3) and p = (1/4, 3/4).

    Target 1 with weight 2: loss 2 ln(4/3); d/dh = 2 (1/4 * 0 + (3/4 - 1) ln 3) = -ln 3 / 2;
    d/dW = 2 (1/4, 3/4 - 1) = (1/2, -1/2); d/db the same, as h = 1.
    """
    hidden = torch.ones(1, 1, dtype=torch.float64, requires_grad=True)
    weight = torch.tensor([[0.0], [math.log(3)]], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    target, scale = torch.tensor([1]), torch.tensor([2.0])
    loss = linear_cross_entropy(hidden, weight, target, scale, bias_V=bias)
    loss.backward()
    assert loss.item() == pytest.approx(2 * math.log(4 / 3), abs=1e-14)
    assert hidden.grad is not None and hidden.grad.item() == pytest.approx(-math.log(3) / 2, abs=1e-14)
    assert weight.grad is not None and weight.grad.flatten().tolist() == pytest.approx([0.5, -0.5], abs=1e-14)
    assert bias.grad is not None and bias.grad.tolist() == pytest.approx([0.5, -0.5], abs=1e-14)
    logps = linear_logps(hidden, weight, target, bias_V=bias)
    assert logps.item() == pytest.approx(math.log(3 / 4), abs=1e-14)


def test_soft_capping_by_hand() -> None:
    """W h = (0, 2), c = 1, so z = (0, tanh 2); target 0: loss ln(1 + e^tanh 2); d/dh has the slope 1 - tanh(2)^2."""
    hidden = torch.ones(1, 1, dtype=torch.float64, requires_grad=True)
    weight = torch.tensor([[0.0], [2.0]], dtype=torch.float64)
    loss = linear_cross_entropy(
        hidden, weight, torch.tensor([0]), torch.ones(1), transform=LogitTransform(softcap=1.0))
    loss.backward()
    z = math.tanh(2)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(z)), abs=1e-14)
    share = math.exp(z) / (1 + math.exp(z))
    assert hidden.grad is not None and hidden.grad.item() == pytest.approx(share * (1 - z * z) * 2, abs=1e-14)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("tile_rows", [1, 3, 7, 50])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_and_gradients_equal_the_float64_oracle(
    transform: LogitTransform, tile_rows: int, smoothing: float
) -> None:
    hidden, weight, bias, targets, weights = operands()
    actual = linear_cross_entropy(
        hidden, weight, targets, weights, bias_V=bias, transform=transform, label_smoothing=smoothing,
        tile_rows=tile_rows)
    expected = reference_nll_sum(
        transform.apply(hidden @ weight.t() + bias), targets, weights, label_smoothing=smoothing)
    assert actual.item() == pytest.approx(expected.item(), abs=1e-12)
    wanted = torch.autograd.grad(expected * 0.37, (hidden, weight, bias))
    got = torch.autograd.grad(actual * 0.37, (hidden, weight, bias))
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-10)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("tile_rows", [2, 50])
def test_logps_equal_the_float64_oracle(transform: LogitTransform, tile_rows: int) -> None:
    hidden, weight, bias, targets, weights = operands()
    actual = linear_logps(hidden, weight, targets, bias_V=bias, transform=transform, tile_rows=tile_rows)
    expected = reference_logps(transform.apply(hidden @ weight.t() + bias), targets)
    torch.testing.assert_close(actual, expected, atol=1e-12, rtol=1e-12)
    upstream = torch.cos(torch.arange(7.0, dtype=torch.float64))
    wanted = torch.autograd.grad(expected, (hidden, weight, bias), upstream)
    got = torch.autograd.grad(actual, (hidden, weight, bias), upstream)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-10)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_gradcheck(transform: LogitTransform) -> None:
    hidden, weight, bias, targets, _ = operands(rows=3, hidden=2, vocab=6)
    assert torch.autograd.gradcheck(
        lambda h, w, b: linear_logps(h, w, targets, bias_V=b, transform=transform, tile_rows=2),
        (hidden, weight, bias))


def test_the_head_s_gradient_is_handed_over_not_copied_and_serves_once() -> None:
    """No tensor of the head's size is made in the backward pass: the one of the forward pass becomes weight.grad."""
    hidden, weight, _, targets, weights = operands(rows=6, dtype=torch.float32)
    total = linear_cross_entropy(hidden, weight, targets, weights)
    made = total.grad_fn.grads[1].data_ptr()  # type: ignore[union-attr]
    (total * 3.0).backward(retain_graph=True)
    assert weight.grad is not None and weight.grad.data_ptr() == made
    with pytest.raises(RuntimeError, match="one backward pass"):
        total.backward()


@pytest.mark.parametrize("frozen", ["nothing", "head", "body", "everything"])
def test_matrix_products_are_three_two_with_a_frozen_head_and_one_without_gradients(frozen: str) -> None:
    """Two tiles, so twice (logits, d hidden, d weight) less what nobody asks for; the backward pass has no product."""
    hidden, weight, _, targets, weights = operands(rows=6, dtype=torch.float32)
    hidden.requires_grad_(frozen not in ("body", "everything"))
    weight.requires_grad_(frozen not in ("head", "everything"))
    with Watch() as forward:
        loss = linear_cross_entropy(hidden, weight, targets, weights, tile_rows=3)
    assert forward.products == 2 * {"nothing": 3, "head": 2, "body": 2, "everything": 1}[frozen]
    if frozen != "everything":
        with Watch() as backward:
            loss.backward()
        assert backward.products == 0
    assert (weight.grad is None) == (frozen in ("head", "everything"))


@pytest.mark.parametrize(("tile_rows", "frozen", "forward_pass", "backward_pass"), [
    (6, False, 2, 1), (6, True, 2, 0), (3, False, 4, 4), (3, True, 4, 0)])
def test_row_logps_keep_a_single_tile_and_form_several_again(
        tile_rows: int, frozen: bool, forward_pass: int, backward_pass: int) -> None:
    """One tile: 3 products in all; two tiles: twice 4; 2 a tile with a frozen head, none in the backward pass."""
    hidden, weight, _, targets, _ = operands(rows=6, dtype=torch.float32)
    weight.requires_grad_(not frozen)
    with Watch() as forward:
        logps = linear_logps(hidden, weight, targets, tile_rows=tile_rows)
    with Watch() as backward:
        logps.sum().backward()
    assert (forward.products, backward.products) == (forward_pass, backward_pass)


def test_without_grad_mode_the_number_is_the_same_and_no_gradient_is_formed() -> None:
    hidden, weight, bias, targets, weights = operands(dtype=torch.float32)
    trained = linear_cross_entropy(hidden, weight, targets, weights, bias_V=bias)
    with torch.no_grad(), Watch() as watch:
        scored = linear_cross_entropy(hidden, weight, targets, weights, bias_V=bias)
    assert watch.products == 1
    assert scored.item() == trained.item() and not scored.requires_grad


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("largest", [0, 5, 10])
def test_logits_of_any_size_stay_finite_wherever_the_largest_is(largest: int) -> None:
    """Logits of +-20,000: exp overflows at 89, and the largest one may stand in any block."""
    hidden = torch.full((3, 2), 100.0, requires_grad=True)
    weight = torch.linspace(-100.0, 50.0, 22).reshape(11, 2)
    weight[largest] = 100.0
    weight.requires_grad_()
    logps = linear_logps(hidden, weight, torch.tensor([largest, 0, 10]))
    expected = torch.log_softmax(hidden.double() @ weight.double().t(), dim=1)[[0, 1, 2], [largest, 0, 10]]
    torch.testing.assert_close(logps.double(), expected, rtol=1e-6, atol=1e-3)
    wanted = torch.autograd.grad(expected.sum(), (hidden, weight))
    for one, other in zip(torch.autograd.grad(logps.sum(), (hidden, weight)), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-3)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tile_rows", [2, 50])
def test_16_bit_gradients_are_right_beside_far_and_sure_logits(dtype: torch.dtype, tile_rows: int) -> None:
    """Row 0: its target has 99.9 %, and what is left of the gradient is a thousandth of the target's own. Row 1: blocks
    150 below the largest logit. Row 2: nothing special. Each row's own part of the gradients is within 2 %."""
    hidden = torch.eye(3, 8)
    weight = torch.zeros(12, 8)
    weight[:, :3] = torch.tensor([[7.0, 150.0, 1.0]]) * torch.tensor([[1.0, 1.0, 1.0]] + [[0.0, 0.0, 0.5]] * 11)
    weight[:, 3:] = torch.linspace(-1.0, 1.0, 60).reshape(12, 5)
    targets = torch.tensor([0, 3, 7])
    exact = [hidden.double().requires_grad_(), weight.double().requires_grad_()]
    scored = reference_logps(exact[0] @ exact[1].t(), targets)
    for row in range(3):
        wanted = torch.autograd.grad(scored[row], exact, retain_graph=True)
        mine = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
        only = torch.zeros(3)
        only[row] = 1.0
        with torch.autocast("cpu", dtype):
            logps = linear_logps(*mine, targets, tile_rows=tile_rows)
            loss = linear_cross_entropy(*mine, targets, only, tile_rows=tile_rows)
        for got in (torch.autograd.grad(logps[row], mine), torch.autograd.grad(-loss, mine)):
            for one, other in zip(got, wanted, strict=True):
                assert (one - other).norm() < 2e-2 * other.norm()


def test_a_second_backward_pass_gives_the_same_and_blocks_are_gone_after_the_first() -> None:
    hidden, weight, bias, targets, _ = operands()
    logps = linear_logps(hidden, weight, targets, bias_V=bias)
    first = torch.autograd.grad(logps.sum(), (hidden, weight, bias), retain_graph=True)
    assert not any(swept.kept for swept in logps.grad_fn.swept)  # type: ignore[union-attr]
    for one, other in zip(torch.autograd.grad(logps.sum(), (hidden, weight, bias)), first, strict=True):
        torch.testing.assert_close(one, other, atol=1e-14, rtol=1e-12)


def test_gradients_repeat_bit_for_bit_where_targets_repeat() -> None:
    """40,000 numbers are added to seven rows, which torch would do on several threads in an order of chance."""
    make = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(1000, 40, generator=make), torch.randn(7, 40, generator=make).requires_grad_()
    targets = torch.randint(7, (1000,), generator=make)
    found = [torch.autograd.grad(linear_cross_entropy(hidden, weight, targets, torch.ones(1000)), weight)[0]
             for _ in range(5)]
    assert all(torch.equal(one, found[0]) for one in found)


@pytest.mark.parametrize("trained", ["weight", "bias"])
def test_one_half_of_a_head_may_be_frozen(trained: str) -> None:
    hidden, weight, bias, targets, weights = operands()
    kept = {"weight": weight, "bias": bias}[trained]
    for one in (hidden, weight, bias):
        one.requires_grad_(one is kept)
    expected = reference_nll_sum(hidden @ weight.t() + bias, targets, weights)
    for actual in (linear_cross_entropy(hidden, weight, targets, weights, bias_V=bias),
                   -(linear_logps(hidden, weight, targets, bias_V=bias) * weights).sum()):
        torch.testing.assert_close(torch.autograd.grad(actual, kept)[0],
                                   torch.autograd.grad(expected, kept, retain_graph=True)[0], atol=1e-12, rtol=1e-10)


def test_no_tensor_is_larger_than_a_tile_or_the_head() -> None:
    """600 rows of 1000 words in tiles of 50: nothing has more than 50 * 1000 entries, all logits would be 600,000."""
    hidden, weight, _, targets, weights = operands(rows=600, hidden=8, vocab=1000, dtype=torch.float32)
    for score in (lambda: linear_cross_entropy(hidden, weight, targets, weights, tile_rows=50),
                  lambda: linear_logps(hidden, weight, targets, tile_rows=50).sum()):
        with Watch() as watch:
            score().backward()
        assert watch.largest <= 50 * 1000


def test_tiles_are_equal_and_fit_the_budget() -> None:
    cpu = torch.device("cpu")
    for rows, vocab in ((1, 100), (5000, 8192), (5000, 151_936), (0, 50)):
        size = tile_rows_for(rows, vocab, cpu)
        assert size >= 1
        assert size <= MIN_TILE_ROWS or size * vocab * 4 <= TILE_BYTES["cpu"]
        assert size <= MAX_TILE_ROWS["cpu"]
    assert tile_rows_for(MIN_TILE_ROWS + 1, 10**7, cpu) == (MIN_TILE_ROWS + 2) // 2


def test_bfloat16_weights_sum_and_gradients_in_float32() -> None:
    """512 tiles of 4 rows: sums in bfloat16 would stop growing at 256 terms of like size; float32 keeps 3 digits."""
    make = torch.Generator().manual_seed(0)
    hidden = torch.randn(2048, 16, generator=make).bfloat16().requires_grad_()
    weight = torch.randn(32, 16, generator=make).bfloat16().requires_grad_()
    targets, weights = torch.randint(32, (2048,), generator=make), torch.ones(2048)
    loss = linear_cross_entropy(hidden, weight, targets, weights, tile_rows=4)
    loss.backward()
    exact_hidden, exact_weight = (x.detach().double().requires_grad_() for x in (hidden, weight))
    exact = reference_nll_sum(exact_hidden @ exact_weight.t(), targets, weights)
    exact.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=2e-3)
    assert weight.grad is not None and exact_weight.grad is not None
    assert weight.grad.dtype == torch.bfloat16
    error = (weight.grad.double() - exact_weight.grad).norm() / exact_weight.grad.norm()
    assert error < 5e-3


@pytest.mark.usefixtures("blocks")
def test_under_bfloat16_autocast_the_loss_and_the_gradients_stay_float32() -> None:
    hidden, weight, bias, targets, weights = operands(rows=64, hidden=16, vocab=50, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = linear_cross_entropy(hidden, weight, targets, weights, bias_V=bias)
        logps = linear_logps(hidden, weight, targets, bias_V=bias)
    exact = reference_nll_sum(hidden.double() @ weight.double().t() + bias.double(), targets, weights)
    assert loss.dtype == logps.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=1e-2)
    wanted = torch.autograd.grad(exact, (hidden, weight, bias))
    for got in (torch.autograd.grad(loss, (hidden, weight, bias)),
                torch.autograd.grad(-(logps * weights).sum(), (hidden, weight, bias))):
        for one, other in zip(got, wanted, strict=True):
            assert one.dtype == torch.float32
            assert (one - other).norm() < 2e-2 * other.norm()


def test_no_rows_give_zero_with_a_path_for_every_gradient() -> None:
    hidden, weight, bias, _, _ = operands(rows=0)
    empty = torch.zeros(0, dtype=torch.int64)
    for total in (linear_cross_entropy(hidden, weight, empty, torch.zeros(0), bias_V=bias),
                  linear_logps(hidden, weight, empty, bias_V=bias).sum()):
        assert total.item() == 0.0
        grads = torch.autograd.grad(total, (hidden, weight, bias))
        assert [g.abs().sum().item() for g in grads] == [0.0, 0.0, 0.0]


@pytest.mark.usefixtures("blocks")
def test_a_loss_scale_does_not_carry_float16_out_of_range() -> None:
    """Hidden states near 10 times a scale of 65536 are no float16; the head still gets the gradient of float32."""
    make = torch.Generator().manual_seed(0)
    hidden, targets, scale = 10 * torch.randn(5, 8, generator=make), torch.tensor([0, 3, 7, 11, 2]), 65536.0
    weight = 0.1 * torch.randn(12, 8, generator=make)
    found = []
    for is_half in (True, False):
        head = weight.clone().requires_grad_()
        with torch.autocast("cpu", torch.float16, enabled=is_half):
            logps = linear_logps(hidden, head, targets)
        logps.sum().mul(scale).backward()
        assert head.grad is not None
        found.append(head.grad / scale)
    torch.testing.assert_close(*found, rtol=1e-2, atol=1e-2)
