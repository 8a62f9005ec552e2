"""A stock causal LM with a fixed number of slots: prompts are read once, rows of different lengths step together.

Knows nothing of sampling or of who waits for a slot. Shape legend: T tokens of all prompts, B rows, N rows to seat,
V vocabulary, S slots, P positions a slot can hold, K key/value heads, D head width.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor
from transformers import PreTrainedModel

from danlu.generation.decode_graphs import DecodeGraphs, Recorder, no_recorder
from danlu.generation.slot_attention import IMPLEMENTATION, LayerStore, Pass, PromptPass, TokenPass, in_flight
from danlu.models.attention import implementation
from danlu.models.lean_adapter import project
from danlu.models.lean_body import LeanBody
from danlu.models.proof import evaluating
from danlu.models.segments import Segments

GROWTH = 128  # positions by which slots become longer at least; memory follows the answers, not their limit


@dataclass(frozen=True, eq=False)
class ReadPrompts:
    """Prompts computed in one pass: keys and values of each layer, (T, K, D), and the logits after each prompt."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    windows: tuple[int | None, ...]
    starts: tuple[int, ...]
    lengths: tuple[int, ...]
    logits: Tensor


class SlotModel:
    """Runs `base` over slots. Use it inside `serving`; row r lives in slot r.

    `make_recorder` returns what records steps of this model, or None; `lean` runs its body with fewer passes, where one
    has proved to compute the same.
    """

    def __init__(
        self, base: PreTrainedModel, num_slots: int, max_positions: int,
        make_recorder: Callable[[PreTrainedModel], Recorder | None] = no_recorder, lean: LeanBody | None = None,
    ) -> None:
        self._base, self._num_slots, self._max_positions = base, num_slots, max_positions
        self._device = base.get_input_embeddings().weight.device
        self._lean = lean if lean is not None and lean.is_lean(base) else None
        self._keeps = "logits_to_keep" in inspect.signature(base.forward).parameters
        self.layers: list[LayerStore] = []
        self.graphs = DecodeGraphs(partial(make_recorder, base), num_slots, self._device)

    def read(self, prompts: Sequence[Sequence[int]]) -> ReadPrompts:
        """Compute prompts end to end in one pass without padding."""
        lengths = tuple(map(len, prompts))
        ends = list(accumulate(lengths))
        starts = (0, *ends[:-1])
        bounds = torch.tensor((0, *ends), dtype=torch.int32, device=self._device)
        current = PromptPass(Segments(lengths, bounds, max(lengths)))
        tokens_T = torch.tensor([token for prompt in prompts for token in prompt], device=self._device)
        positions_T = torch.tensor([at for length in lengths for at in range(length)], device=self._device)
        logits = self._forward(tokens_T, positions_T, current, ends)
        return ReadPrompts(
            tuple(current.keys), tuple(current.values), tuple(current.windows), starts, lengths, logits)

    def seat(self, read: ReadPrompts, prompts: Sequence[int], slots: Sequence[int]) -> None:
        """Copy the keys and values of `prompts` (numbers within `read`, repeats allowed) into `slots`."""
        self._reserve(read, max(read.lengths[prompt] for prompt in prompts))
        capacity = self.layers[0].keys.shape[1]
        source, places = [], []
        for prompt, slot in zip(prompts, slots, strict=True):
            start, length = read.starts[prompt], read.lengths[prompt]
            source.append(torch.arange(start, start + length, device=self._device))
            places.append(torch.arange(slot * capacity, slot * capacity + length, device=self._device))
        source_T, places_T = torch.cat(source), torch.cat(places)
        for layer, keys, values in zip(self.layers, read.keys, read.values, strict=True):
            layer.write(places_T, keys.index_select(0, source_T), values.index_select(0, source_T))

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of one slot to another."""
        for layer in self.layers:
            for buffer in (layer.keys, layer.values):
                buffer[target, :length] = buffer[source, :length]

    def step(self, tokens: Sequence[int], positions: Sequence[int]) -> Tensor:
        """Append token r at position r of slot r for every row; return the logits that follow, (B, V).

        They hold until the next step. A recorded step also writes to position 0 of a few slots behind the last row.
        """
        self._grow(max(positions) + 1)
        recorded = self.graphs.step(tokens, positions, self._step_at_full_width)
        if recorded is not None:
            return recorded
        current = TokenPass.by_neighbourhood(self.layers, positions, self._device)
        tokens_B, positions_B = (torch.tensor(list(one), device=self._device) for one in (tokens, positions))
        return self._forward(tokens_B, positions_B, current, None)

    def _step_at_full_width(self, tokens_B: Tensor, positions_B: Tensor) -> Tensor:
        """Return the same logits from tensors alone: nothing that is launched depends on what they hold."""
        return self._forward(tokens_B, positions_B, TokenPass.at_full_width(self.layers, positions_B), None)

    def _forward(
        self, tokens_T: Tensor, positions_T: Tensor, current: Pass, ends: Sequence[int] | None
    ) -> Tensor:
        """Return the logits of all tokens, or of the last ones before `ends`."""
        rows = None if ends is None else torch.tensor(ends, device=self._device) - 1
        if self._lean is not None:
            hidden_TH = self._lean.attended(tokens_T, positions_T, current.attend)
            return project(self._base.get_output_embeddings(), hidden_TH if rows is None else hidden_TH[rows])
        kept = {"logits_to_keep": rows} if rows is not None and self._keeps else {}
        with in_flight(current):
            out = self._base(input_ids=tokens_T[None], position_ids=positions_T[None], use_cache=False, **kept)
        logits: Tensor = out.logits[0]
        return logits if rows is None or kept else logits[rows]

    def _reserve(self, read: ReadPrompts, width: int) -> None:
        """Make slots of at least `width` positions, shaped as the model's keys and values are."""
        if self.layers:
            self._grow(width)
            return
        capacity = self._capacity(width)
        self.layers = [
            LayerStore(*(x.new_zeros(self._num_slots, capacity, *x.shape[1:]) for x in pair))
            for pair in zip(read.keys, read.values, strict=True)]

    def _grow(self, width: int) -> None:
        held = self.layers[0].keys.shape[1]
        if width <= held:
            return
        self.graphs.drop()
        capacity = self._capacity(max(width, held + held // 2))
        for layer in self.layers:
            layer.keys, layer.values = (_longer(buffer, capacity) for buffer in (layer.keys, layer.values))

    def _capacity(self, width: int) -> int:
        return min(-(-(width + 1) // GROWTH) * GROWTH, max(width, self._max_positions))


def _longer(buffer: Tensor, capacity: int) -> Tensor:
    """Return (S, P, K, D) with more positions, those added zero: what is never seen must still be a number."""
    grown = buffer.new_zeros(buffer.shape[0], capacity, *buffer.shape[2:])
    grown[:, : buffer.shape[1]] = buffer
    return grown


@contextmanager
def serving(base: PreTrainedModel) -> Iterator[None]:
    """Put a model in the state slots need, no dropout and no gradient, and back as it was."""
    with evaluating(base), implementation(base, IMPLEMENTATION), torch.no_grad():
        yield
