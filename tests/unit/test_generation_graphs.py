"""Recorded decoding steps say what steps that run as they stand say; one that cannot be recorded says so and goes on.

On a CPU two recorders stand in for CUDA graphs. `Again` calls the same function on the same tensors. `Tape` notes
tensor operations and repeats these alone on the same memory, as a graph does: whatever Python computed from tokens or
positions stays as it was when the step was recorded.
"""

import gc
import weakref
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from danlu.generation.base import Completion
from danlu.generation.config import GenerationConfig
from danlu.generation.decode_graphs import CudaRecorder, DecodeGraphs, Recorder, Run, cuda_recorder, no_recorder
from danlu.generation.rollouts import RolloutGenerator
from danlu.generation.slot_attention import LayerStore, TokenPass, in_flight
from danlu.generation.slots import GROWTH, SlotModel, serving
from danlu.models.attention_rule import Rule
from tests.tiny import tiny_tokenizer
from tests.unit.test_generation_rollouts import (
    GREEDY,
    POLICY,
    SHAPED,
    SLOT_FAMILIES,
    STOPS,
    encoded,
    sharp_model,
)

LONG = GenerationConfig(do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=150)


class Again:
    """Repeats a function by calling it; counts."""

    pays_from = 2

    def __init__(self) -> None:
        self.warmed, self.recorded, self.repeated = 0, 0, 0

    def warm(self, run: Run) -> Tensor:
        self.warmed += 1
        return run()

    def record(self, run: Run) -> Run:
        self.recorded += 1

        def replay() -> Tensor:
            self.repeated += 1
            return run()

        return replay


class Operations(TorchDispatchMode):
    """Notes every tensor operation inside the block: with what it was called and what it returned."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.noted.append((func, args, kwargs or {}, result))
        return result


class Tape(Again):
    """Repeats the tensor operations of a function; results land where they were when it was recorded."""

    def record(self, run: Run) -> Run:
        self.recorded += 1
        with Operations() as operations:
            result = run()

        def replay() -> Tensor:
            self.repeated += 1
            for func, args, kwargs, before in operations.noted:
                for old, new in zip(tree_leaves(before), tree_leaves(func(*args, **kwargs)), strict=True):
                    if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)
            return result

        return replay


class Refusing(Again):
    """Fails as a capture does: by a first error, and by another one at its end."""

    def record(self, run: Run) -> Run:
        self.recorded += 1
        try:
            raise RuntimeError("not permitted when stream is capturing\nand more lines")
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")


def made(recorders: list[Any], kind: type[Again]) -> Callable[[PreTrainedModel], Recorder]:
    """Return what makes recorders of one kind and notes each."""
    def make(model: PreTrainedModel) -> Recorder:
        recorders.append(kind())
        return recorders[-1]

    return make


def generator(model: PreTrainedModel, batch_size: int, make: Callable[[PreTrainedModel], Recorder | None],
              ) -> RolloutGenerator:
    return RolloutGenerator(model, tiny_tokenizer(), STOPS, batch_size=batch_size, make_recorder=make)


def answers(ours: RolloutGenerator, settings: GenerationConfig, samples: int = 3) -> list[Completion]:
    groups = ours.sample(encoded(), settings, keys=[(7, row) for row in range(5)], samples=samples)
    return [answer for group in groups for answer in group]


def assert_same(actual: list[Completion], expected: list[Completion]) -> None:
    assert [(one.ids, one.finish_reason) for one in actual] == [(one.ids, one.finish_reason) for one in expected]
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(torch.tensor(ours.logps), torch.tensor(theirs.logps), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", [Again, Tape])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "qwen3"])
def test_recorded_steps_say_what_plain_steps_say(family: str, kind: type[Again]) -> None:
    """15 rows of mixed lengths through 6 slots: grouped key heads, learned positions, a window with soft-capping.

    Sizes 6, 4, 2 and 1 are recorded once at most in each of three rollouts, and most steps are repeated ones.
    """
    model, recorders = sharp_model(family), []
    ours, plain = generator(model, 6, made(recorders, kind)), generator(model, 6, no_recorder)
    for settings in (GREEDY, POLICY, SHAPED):
        assert_same(answers(ours, settings), answers(plain, settings))
    assert len(recorders) == 3
    for one in recorders:
        assert 1 <= one.recorded <= one.warmed <= 4 and one.repeated > 2 * one.warmed


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 8, 40])
def test_the_number_of_slots_changes_no_answer(batch_size: int) -> None:
    """Slots are filled again, and rows move into gaps, while rows that only fill up a size write to free slots."""
    model, recorders = sharp_model("llama"), []
    assert_same(answers(generator(model, batch_size, made(recorders, Tape)), POLICY),
                answers(generator(model, 4, no_recorder), POLICY))
    one, = recorders
    assert one.recorded <= one.warmed <= min(batch_size, 15).bit_length() + 1


def test_a_window_is_kept_beyond_its_width() -> None:
    """Gemma 2 with a window of 4; a wide one gives other answers."""
    found = {}
    for window in (4, 64):
        model = sharp_model("gemma2", sliding_window=window)
        found[window] = answers(generator(model, 4, made([], Tape)), POLICY)
        assert_same(found[window], answers(generator(model, 4, no_recorder), POLICY))
    assert [one.ids for one in found[4]] != [one.ids for one in found[64]]


@pytest.mark.parametrize("family", SLOT_FAMILIES)
def test_no_step_waits_for_what_it_computes(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers is told that a capture goes on, as it asks torch: no operation hands a value back to Python."""
    model = sharp_model(family)
    with serving(model):
        slots = SlotModel(model, 2, 64)
        slots.seat(slots.read([[5, 6, 7]]), [0, 0], [0, 1])
        tokens_B, positions_B = torch.tensor([8, 9]), torch.tensor([3, 3])
        plain = slots.step([8, 9], [3, 3])
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        with Operations() as operations, in_flight(TokenPass.at_full_width(slots.layers, positions_B)):
            logits = model(input_ids=tokens_B[None], position_ids=positions_B[None], use_cache=False).logits[0]
    torch.testing.assert_close(logits, plain, atol=1e-5, rtol=0)
    waiting = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
    assert not [func for func, *_ in operations.noted if waiting & set(func.tags)]


def test_growing_slots_are_recorded_anew() -> None:
    """Answers of 150 tokens without an early end: slots of 128 positions grow once, and a second recorder is made."""
    model, recorders = sharp_model("llama"), []
    ours, plain = (RolloutGenerator(model, tiny_tokenizer(), batch_size=2, make_recorder=make)
                   for make in (made(recorders, Tape), no_recorder))
    assert_same(answers(ours, LONG, samples=1), answers(plain, LONG, samples=1))
    assert max(map(len, encoded())) + LONG.max_new_tokens > GROWTH
    assert len(recorders) == 2 and all(1 <= one.recorded <= one.warmed <= 2 for one in recorders)


def test_a_step_that_cannot_be_recorded_is_told_once_and_tried_no_more(capsys: pytest.CaptureFixture[str]) -> None:
    model, recorders = sharp_model("llama"), []
    ours = generator(model, 4, made(recorders, Refusing))
    expected = answers(generator(model, 4, no_recorder), POLICY)
    assert_same(answers(ours, POLICY), expected)
    assert_same(answers(ours, POLICY), expected)
    assert len(recorders) == 1 and recorders[0].recorded == 1
    said = capsys.readouterr().err
    assert said == ("notice: answers are sampled without CUDA graphs, which is slower: "
                    "not permitted when stream is capturing\n")


def test_sizes_are_powers_of_two_and_all_slots() -> None:
    """1 to 12 rows in 12 slots take 1, 2, 4, 8 and 12 rows; logits come back for the rows that were asked for."""
    recorder, seen = Again(), []
    graphs = DecodeGraphs(lambda: recorder, 12, torch.device("cpu"))

    def forward(tokens_B: Tensor, positions_B: Tensor) -> Tensor:
        seen.append((tokens_B.tolist(), positions_B.tolist()))
        return torch.stack([tokens_B, positions_B], 1)

    for rows in (*range(1, 13), *range(12, 0, -1)):
        tokens, positions = [rows + at for at in range(rows)], [at + 3 for at in range(rows)]
        logits = graphs.step(tokens, positions, forward)
        assert logits is not None and logits.tolist() == [list(pair) for pair in zip(tokens, positions, strict=True)]
        assert all(not any(one[rows:]) for one in seen[-1])
    assert sorted({len(tokens) for tokens, _ in seen}) == [1, 2, 4, 8, 12]
    assert recorder.warmed == recorder.recorded == 5 and recorder.repeated == 24 - 5


def test_a_size_is_recorded_when_it_pays() -> None:
    """From its third use on, for instance: of ten steps two run as they stand and eight are repeated."""
    recorder = Again()
    recorder.pays_from = 3
    graphs = DecodeGraphs(lambda: recorder, 4, torch.device("cpu"))
    for _ in range(10):
        graphs.step([1, 2], [3, 4], lambda tokens_B, positions_B: tokens_B + positions_B)
    assert (recorder.warmed, recorder.recorded, recorder.repeated) == (2, 1, 8)


def test_an_error_of_a_step_is_no_reason_to_go_on_without_graphs() -> None:
    """What fails when the step runs as it stands, memory that is short for instance, reaches the caller."""
    def fails(tokens_B: Tensor, positions_B: Tensor) -> Tensor:
        raise RuntimeError("out of memory")

    graphs = DecodeGraphs(Again, 4, torch.device("cpu"))
    with pytest.raises(RuntimeError, match="out of memory"):
        graphs.step([1], [0], fails)
    assert not graphs.has_failed


def test_without_a_recorder_nothing_is_recorded() -> None:
    """On a CPU the rollout engine makes none: steps are those by neighbourhoods of rows."""
    model = sharp_model("llama")
    assert cuda_recorder(model) is None
    assert DecodeGraphs(lambda: None, 4, torch.device("cpu")).step([1], [0], lambda a, b: a) is None


@pytest.mark.parametrize("rule", [Rule(), Rule(window=5), Rule(softcap=2.0), Rule(scale=0.3, window=7)],
                         ids=["plain", "window", "softcap", "scaled"])
@pytest.mark.parametrize("with_sinks", [False, True], ids=["", "sinks"])
def test_attention_at_full_width_equals_attention_by_neighbourhood(rule: Rule, with_sinks: bool) -> None:
    """Ten rows at positions 0 to 18 of slots that hold 32; what lies behind a row's position is noise."""
    torch.manual_seed(0)
    rule = Rule(rule.scale, rule.window, rule.softcap, torch.randn(4, dtype=torch.float64) if with_sinks else None)
    positions = [0, 18, 3, 3, 9, 1, 12, 7, 7, 16]
    held = [torch.randn(12, 32, 2, 8, dtype=torch.float64) for _ in range(2)]
    query, key, value = (torch.randn(1, heads, 10, 8, dtype=torch.float64) for heads in (4, 2, 2))
    results = []
    for make in (lambda layers: TokenPass.by_neighbourhood(layers, positions, torch.device("cpu")),
                 lambda layers: TokenPass.at_full_width(layers, torch.tensor(positions))):
        layer = LayerStore(*(x.clone() for x in held))
        results.append((make([layer]).attend(query, key, value, rule), layer.keys, layer.values))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=0)


def test_slots_are_freed_when_nothing_refers_to_them() -> None:
    """Recordings do not hold the slot model that owns them: keys and values go without waiting for the collector."""
    model = sharp_model("llama")
    gc.disable()
    try:
        with serving(model):
            slots = SlotModel(model, 2, 64, made([], Tape))
            slots.seat(slots.read([[5, 6, 7]]), [0, 0], [0, 1])
            for position in range(3, 6):
                slots.step([8, 9], [position, position])
        gone = weakref.ref(slots)
        del slots
        assert gone() is None
    finally:
        gc.enable()


def on_gpu(family: str) -> PreTrainedModel:
    return sharp_model(family).to("cuda", torch.float32)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "qwen3"])
def test_cuda_graphs_say_what_plain_steps_say(family: str) -> None:
    """float32, and slots that grow: another width may round otherwise, so log-probs agree up to where tokens differ."""
    model, kept = on_gpu(family), []

    def make(base: PreTrainedModel) -> Recorder | None:
        kept.append(cuda_recorder(base))
        return kept[-1]

    for settings in (GREEDY, LONG):
        ours, plain = (answers(generator(model, 6, one), settings) for one in (make, no_recorder))
        agreeing = 0
        for one, other in zip(ours, plain, strict=True):
            length = next((at for at, (a, b) in enumerate(zip(one.ids, other.ids, strict=False)) if a != b),
                          min(len(one.ids), len(other.ids)))
            torch.testing.assert_close(
                torch.tensor(one.logps[:length]), torch.tensor(other.logps[:length]), atol=1e-3, rtol=0)
            agreeing += one.ids == other.ids
        assert agreeing >= 13
    assert all(isinstance(one, CudaRecorder) for one in kept)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_capture_that_fails_leaves_cuda_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    """A model that waits for its logits: same answers, one notice, and streams, random numbers and memory go on."""
    model = on_gpu("llama")
    expected = answers(generator(model, 4, no_recorder), GREEDY)

    def wait(module: torch.nn.Module, inputs: object, logits: Tensor) -> None:
        logits.sum().item()

    handle = model.lm_head.register_forward_hook(wait)
    assert [one.ids for one in answers(generator(model, 4, cuda_recorder), GREEDY)] == [one.ids for one in expected]
    handle.remove()
    assert capsys.readouterr().err.count("without CUDA graphs") == 1
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    assert not torch.cuda.is_current_stream_capturing()
    draws = [torch.rand(4, device="cuda").tolist() for _ in range(3)]
    assert all(one != other for one, other in pairwise(draws))
    torch.nn.functional.dropout(torch.ones(8, device="cuda"))
    assert [one.ids for one in answers(generator(model, 4, cuda_recorder), GREEDY)] == [one.ids for one in expected]
    assert "without CUDA graphs" not in capsys.readouterr().err
