"""What a packed forward must not change: neighbours, modes, checkpointing, wrapped heads, memory."""

from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from danlu.core.console import forget_notices
from danlu.core.stream import Example, flatten
from danlu.losses.vocabulary_sweep import tile_rows_for
from danlu.models.attention import IMPLEMENTATION
from danlu.models.head import WRAPPED_TILE_ROWS
from danlu.models.packed_lm import PackedLM
from danlu.models.stream_tensors import StreamTensors
from tests.tiny import tiny_model

aten = torch.ops.aten


def make_stream(lengths: tuple[int, ...], seed: int = 0, trained: float = 0.7) -> StreamTensors:
    rng = np.random.default_rng(seed)
    return StreamTensors.from_stream(flatten([
        Example(rng.integers(3, 320, n), rng.random(n) < trained, index=i) for i, n in enumerate(lengths)]))


def gradients(model: torch.nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(got: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], tolerance: float = 1e-5) -> None:
    assert got.keys() == wanted.keys()
    scale = max(float(grad.abs().max()) for grad in wanted.values())
    for name, grad in wanted.items():
        assert float((got[name] - grad).abs().max()) <= tolerance * scale, name


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "bloom"])
def test_a_segment_does_not_see_its_neighbours(family: str) -> None:
    """Other tokens in segment 1 leave every log-probability of segments 0 and 2 untouched."""
    model = PackedLM(tiny_model(family))
    rng = np.random.default_rng(5)
    ids = [rng.integers(3, 320, 9) for _ in range(3)]

    def logps(middle: Any) -> torch.Tensor:
        examples = [Example(row, np.ones(9, bool)) for row in (ids[0], middle, ids[2])]
        scored: torch.Tensor = model(StreamTensors.from_stream(flatten(examples)), output="logps")
        return scored.view(3, 8)

    before, after = logps(ids[1]), logps(ids[1][::-1].copy())
    assert torch.equal(before[[0, 2]], after[[0, 2]])
    assert (before[1] - after[1]).abs().max() > 1e-3


def test_order_and_company_do_not_matter() -> None:
    """The loss of a stream is the sum of the losses of its examples alone."""
    model, rng = PackedLM(tiny_model()), np.random.default_rng(2)
    examples = [Example(rng.integers(3, 320, n), rng.random(n) < 0.5) for n in (8, 8, 3, 40, 8, 1)]
    together = model(StreamTensors.from_stream(flatten(examples))).item()
    backwards = model(StreamTensors.from_stream(flatten(examples[::-1]))).item()
    alone = sum(model(StreamTensors.from_stream(flatten([one]))).item() for one in examples)
    assert together == pytest.approx(alone, rel=1e-6)
    assert together == pytest.approx(backwards, rel=1e-6)


def test_segments_of_one_example_are_separate_too() -> None:
    """Packing: one example of two segments scores as two examples."""
    model, rng = PackedLM(tiny_model()), np.random.default_rng(3)
    ids, trained = rng.integers(3, 320, 12), np.ones(12, bool)
    packed = model(StreamTensors.from_stream(flatten([Example(ids, trained, lengths=(5, 7))]))).item()
    apart = model(StreamTensors.from_stream(flatten(
        [Example(ids[:5], trained[:5]), Example(ids[5:], trained[5:])]))).item()
    assert packed == pytest.approx(apart, rel=1e-6)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_replays_the_segments_of_its_own_stream(reentrant: bool) -> None:
    """Two streams go forward, then the first goes backward: its layers are recomputed inside its own segments."""
    model = tiny_model().train()
    packed = PackedLM(model)
    first, second = make_stream((30, 4, 11)), make_stream((5, 5, 20, 15), seed=1)
    wanted = gradients(model, packed(first))
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    loss = packed(first)
    packed(second)
    assert_same(gradients(model, loss), wanted, 1e-6)


def test_no_grad_evaluation_gives_the_training_number() -> None:
    model, data = PackedLM(tiny_model()), make_stream((12, 7, 8))
    trained = model(data)
    with torch.no_grad():
        scored = model(data)
    assert scored.item() == trained.item()
    assert trained.requires_grad and not scored.requires_grad


def test_modes_are_respected_and_survive_the_first_forward() -> None:
    """The trial forwards run in evaluation mode; afterwards dropout is on where it was on and off where it was off."""
    model = tiny_model("gpt2", resid_pdrop=0.5).train()
    model.transformer.h[0].eval()
    modes = {name: module.training for name, module in model.named_modules()}
    packed, data = PackedLM(model), make_stream((12, 7, 8))
    draws = {packed(data).item() for _ in range(3)}
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert len(draws) == 3
    packed.eval()
    assert len({packed(data).item() for _ in range(3)}) == 1


@pytest.mark.parametrize("family", ["llama", "gemma2", "bloom"])
@pytest.mark.parametrize("lengths", [(9,), (1, 1), (1, 9, 1)], ids=str)
def test_a_stream_without_supervised_rows_is_zero_and_reaches_every_parameter(
    family: str, lengths: tuple[int, ...]
) -> None:
    model = tiny_model(family)
    loss = PackedLM(model)(make_stream(lengths, trained=0.0))
    got = gradients(model, loss)
    assert loss.item() == 0.0
    assert got.keys() == {name for name, _ in model.named_parameters()}
    assert all(not grad.any() for grad in got.values())


def test_the_trial_draws_no_random_number() -> None:
    """A resumed run tries the model again, so the trial must leave the generator where it was."""
    model = tiny_model("gpt2", resid_pdrop=0.5, embd_pdrop=0.5).eval()
    before = torch.get_rng_state()
    PackedLM(model)(make_stream((12, 7)))
    assert torch.equal(torch.get_rng_state(), before)


def test_generation_mode_brings_the_own_implementation_back() -> None:
    model = tiny_model()
    packed, own = PackedLM(model), model.config._attn_implementation
    with packed.generation_mode():
        assert model.config._attn_implementation == own
    packed(make_stream((6,)))
    assert model.config._attn_implementation == IMPLEMENTATION
    with packed.generation_mode() as inner:
        assert inner is model and model.config._attn_implementation == own
    assert model.config._attn_implementation == IMPLEMENTATION


def test_the_attention_setting_is_not_saved(tmp_path: Any) -> None:
    model = tiny_model()
    PackedLM(model)(make_stream((6,)))
    model.save_pretrained(tmp_path)
    assert IMPLEMENTATION not in (tmp_path / "config.json").read_text()


@pytest.mark.parametrize("settings", [
    {"target_modules": ["q_proj", "lm_head"]},
    {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
], ids=["LoRA on the head", "a trained copy of the head"])
def test_wrapped_heads_are_called_tile_by_tile(settings: dict[str, Any]) -> None:
    model = get_peft_model(tiny_model(), LoraConfig(r=4, init_lora_weights=False, **settings))
    packed, data = PackedLM(model), make_stream((15, 8, 8))
    got = gradients(model, packed(data))
    assert (packed.report().layout, packed.report().head) == ("packed", "module")
    at, total = 0, torch.zeros(())
    for length in data.lengths:
        inside = (data.loss_rows >= at) & (data.loss_rows < at + length)
        logits = model(input_ids=data.input_ids[None, at:at + length]).logits[0, data.loss_rows[inside] - at]
        total = total + torch.nn.functional.cross_entropy(logits, data.loss_targets[inside], reduction="sum")
        at += length
    assert_same(got, gradients(model, total))
    assert any("lm_head" in name for name in got)
    empty = gradients(model, packed(make_stream((4,), trained=0.0)))
    assert empty.keys() == got.keys()


def test_lora_with_a_frozen_head_takes_the_tiled_head() -> None:
    model = get_peft_model(tiny_model(), LoraConfig(r=4, init_lora_weights=False, target_modules=["q_proj", "v_proj"]))
    packed, data = PackedLM(model), make_stream((15, 8, 8))
    got = gradients(model, packed(data))
    assert (packed.report().layout, packed.report().head) == ("packed", "tiled")
    assert got and all("lora" in name for name in got)


def balanced_mixtral() -> Any:
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    return MixtralForCausalLM(MixtralConfig(
        vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, output_router_logits=True, router_aux_loss_coef=0.5)).train()


def test_router_balancing_loss_is_the_models_own(capsys: pytest.CaptureFixture[str]) -> None:
    """With output_router_logits the sum grows by coefficient * the model's own aux_loss * supervised weight.

    One notice says that the model makes its own logits for it; without the loss there is none.
    """
    model = balanced_mixtral()
    data = make_stream((14,), trained=1.0)
    packed = PackedLM(model)
    out = model(input_ids=data.input_ids[None], labels=data.input_ids[None])
    assert packed.report().head == "undecided"
    assert packed(data).item() == pytest.approx(13 * out.loss.item(), rel=1e-5)
    packed(data)
    assert (packed.report().layout, packed.report().head) == ("packed", "model")
    said = "notice: the router's balancing loss needs the whole model's forward: taking the slower plain path"
    assert capsys.readouterr().err.count(said) == 1
    model.config.output_router_logits = False
    forget_notices()
    unbalanced = PackedLM(model)
    unbalanced(data)
    assert unbalanced.report().head == "tiled" and "notice" not in capsys.readouterr().err


def test_router_balancing_loss_counts_a_shared_prompt_in_each_answer() -> None:
    """Answers that share a prompt, and a row apart: the sum is that of the stock model on the padded batch."""
    model = balanced_mixtral()
    random = np.random.default_rng(0)
    prompt = random.integers(5, 300, 24)
    rows = [np.concatenate([prompt, random.integers(5, 300, n)]) for n in (9, 5)] + [random.integers(5, 300, 17)]
    pair = Example(np.concatenate(rows[:2]), np.ones(24 + 9 + 24 + 5, np.bool_), lengths=(33, 29))
    stream = StreamTensors.of([pair, Example(rows[2], np.ones(17, np.bool_))])
    assert stream.tree is not None
    packed = PackedLM(model)
    found = packed(stream)
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    out = model(input_ids=ids, attention_mask=mask, labels=torch.where(mask.bool(), ids, -100))
    assert packed.report().layout == "packed" and packed.report().head == "model"
    assert found.item() == pytest.approx(sum(len(row) - 1 for row in rows) * out.loss.item(), rel=1e-5)


def test_label_smoothing_counts_in_training_only() -> None:
    model, data = tiny_model(), make_stream((15, 8))
    smooth, plain = PackedLM(model, label_smoothing=0.2), PackedLM(model)
    assert smooth.eval()(data).item() == plain.eval()(data).item()
    logits = model(input_ids=data.input_ids[None, :15]).logits[0]
    first = make_stream((15, 8)).loss_rows < 15
    rows, targets = data.loss_rows[first], data.loss_targets[first]
    alone = StreamTensors.from_stream(flatten([
        Example(data.input_ids[:15].numpy(), np.isin(np.arange(15) - 1, rows.numpy()))]))
    expected = torch.nn.functional.cross_entropy(logits[rows], targets, reduction="sum", label_smoothing=0.2)
    assert smooth.train()(alone).item() == pytest.approx(expected.item(), rel=1e-5)


class LargestLogits(TorchDispatchMode):
    """Remembers the most rows that a tensor as wide as the vocabulary had."""

    def __init__(self, vocab: int) -> None:
        super().__init__()
        self.vocab, self.rows = vocab, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.ndim and out.shape[-1] == self.vocab:
            self.rows = max(self.rows, out.numel() // self.vocab)
        return out


@pytest.mark.parametrize("wrapped", [False, True], ids=["tiled", "module"])
def test_logits_never_exist_beyond_one_tile(wrapped: bool) -> None:
    """1960 supervised rows of an 8001-word vocabulary are scored in two tiles, forward and backward."""
    vocab, data = 8001, make_stream((50,) * 40, trained=1.0)
    model = tiny_model(vocab_size=vocab)
    lora = LoraConfig(r=2, target_modules=["q_proj", "lm_head"])
    packed = PackedLM(get_peft_model(model, lora) if wrapped else model)
    packed(make_stream((3,)))
    tile = tile_rows_for(data.num_rows, vocab, torch.device("cpu"), at_least=WRAPPED_TILE_ROWS)
    assert data.num_rows == 1960 and tile < 1100
    with LargestLogits(vocab) as watch:
        packed(data).backward()
    assert watch.rows == tile if wrapped else watch.rows == 0  # the tiled head makes blocks of words, see test_flops


@pytest.mark.parametrize("frozen", [False, True], ids=["full", "frozen head"])
def test_no_product_is_wasted(frozen: bool) -> None:
    """Linear layers cost 6 flops a weight and token, the head 6 a weight and supervised row (4 when it is frozen).

    The last layer's MLP costs 6 a weight and supervised row where that saves 5 %: beside the frozen, cheaper head too.
    """
    model, data = tiny_model(vocab_size=500, tie_word_embeddings=False), make_stream((40, 13, 13, 5))
    model.lm_head.requires_grad_(not frozen)
    packed = PackedLM(model)
    packed(data)
    with FlopCounterMode(display=False) as counter:
        packed(data).backward()
    spent = sum(n for op, n in counter.get_flop_counts()["Global"].items() if op in (aten.mm, aten.addmm))
    body = sum(p.numel() for p in model.model.layers.parameters() if p.ndim == 2)
    head = model.lm_head.weight.numel() * data.num_rows
    dead = sum(p.numel() for p in model.model.layers[-1].mlp.parameters()) * (data.num_tokens - data.num_rows)
    assert spent == 6 * (body * data.num_tokens - dead) + (4 if frozen else 6) * head


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_models_sum_in_float32(dtype: torch.dtype) -> None:
    data = make_stream((15, 8, 8))
    exact = PackedLM(tiny_model())(data).item()
    packed = PackedLM(tiny_model().to(dtype))
    loss = packed(data)
    loss.backward()
    assert loss.dtype == torch.float32
    assert packed.report().layout == "packed" and packed.report().head == "tiled"
    assert loss.item() == pytest.approx(exact, rel=2e-2)


def test_under_autocast_the_packed_layout_is_kept() -> None:
    data, model = make_stream((15, 8, 8)), tiny_model()
    exact = PackedLM(tiny_model())(data).item()
    packed = PackedLM(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = packed(data)
    loss.backward()
    assert packed.report().layout == "packed" and loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact, rel=2e-2)
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())
