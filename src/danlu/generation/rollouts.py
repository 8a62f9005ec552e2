"""The rollout engine: many answers at once from the modules that train, without a copy of their weights.

A fixed number of slots decodes together. A prompt is read once for all its answers; an answer that ends leaves at once
and the next waiting one takes its slot. Which answer shares a step with which changes no answer: each draws from a
random stream of its own, and attends to its own slot alone; numbers differ by rounding at most.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from danlu.core.console import notice
from danlu.generation.base import BACKENDS, Backend, Completion, Source
from danlu.generation.config import GenerationConfig
from danlu.generation.decode_graphs import Recorder, cuda_recorder, no_recorder
from danlu.generation.sampling import TokenChooser, check_finite, row_stream
from danlu.generation.slot_proof import lean_in_slots, why_not_slots
from danlu.generation.slots import ReadPrompts, SlotModel, serving
from danlu.generation.transformers_backend import TransformersGenerator, check_sampling, completion, new_tokens
from danlu.models.lean_body import LeanBody
from danlu.models.packed_lm import PackedLM
from danlu.models.proof import base_of

READ_AHEAD = 2048  # prompt tokens computed in one pass, unless a single prompt is longer


@dataclass(frozen=True, slots=True)
class Request:
    """One answer wanted: to which prompt, from which random stream, of how many tokens at most."""

    prompt: int
    seed: tuple[int, ...]
    limit: int


@dataclass(slots=True)
class Row:
    """An answer in the making."""

    request: Request
    draws: NDArray[Any]
    prompt_length: int
    ids: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    is_done: bool = False

    @property
    def position(self) -> int:
        """Return where the last token goes: the number of tokens before it, prompt included."""
        return self.prompt_length + len(self.ids) - 1


@dataclass(frozen=True, slots=True)
class Entrant:
    """A row that may take a slot, and where its prompt was read."""

    row: Row
    read: ReadPrompts
    prompt: int


class RolloutGenerator:
    """Continues prompts in `batch_size` slots. `model` may be wrapped by peft, PackedLM or DDP.

    A model that slots do not serve (ALiBi, recurrent layers) and beam search go through TransformersGenerator; a notice
    says so. `stop_ids` end an answer, besides those the model itself names. `make_recorder` returns what records steps
    of the model, CUDA graphs on a GPU; after a step that cannot be recorded it is asked no more.
    """

    def __init__(
        self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, stop_ids: Sequence[int] = (), *,
        batch_size: int = 32, make_recorder: Callable[[PreTrainedModel], Recorder | None] = cuda_recorder,
    ) -> None:
        self.model = inner_model(model)
        self.tokenizer = tokenizer
        self.plain = TransformersGenerator(self.model, tokenizer, stop_ids, batch_size=batch_size)
        self.stop_ids = self.plain.stop_ids
        self._num_slots, self._make_recorder = batch_size, make_recorder
        self._objection: str | None = None
        self._lean: LeanBody | None = None

    @property
    def context(self) -> int | None:
        """Return the number of positions the model was built for; None when its positions are unbounded."""
        return self.plain.context

    def generate(
        self, prompts: Sequence[Sequence[int]], settings: GenerationConfig, *, seed: int = 0
    ) -> list[Completion]:
        """Answer every prompt, in the order given; see `Generator.generate`."""
        check_sampling(settings, seed, with_logps=False)
        if not self._takes(prompts, settings):
            return self.plain.generate(prompts, settings, seed=seed)
        return self._answer(prompts, settings, [[(seed, row)] for row in range(len(prompts))], with_logps=False)

    def sample(
        self, prompts: Sequence[Sequence[int]], settings: GenerationConfig, *, keys: Sequence[Sequence[int]],
        samples: int = 1,
    ) -> list[list[Completion]]:
        """Return `samples` answers of each prompt with the log-probability of every token; see `Generator.sample`."""
        check_sampling(settings, 0, with_logps=True)
        if not self._takes(prompts, settings):
            return self.plain.sample(prompts, settings, keys=keys, samples=samples)
        seeds = [[(*key, number) for number in range(samples)] for key in keys]
        answers = self._answer(prompts, settings, seeds, with_logps=True)
        return [answers[first : first + samples] for first in range(0, len(answers), samples)]

    def stream(self, prompt: Sequence[int], settings: GenerationConfig, *, seed: int = 0) -> Iterator[str]:
        """Yield the answer to one prompt piece by piece; a single row has no use for slots."""
        return self.plain.stream(prompt, settings, seed=seed)

    def refresh(self) -> None:
        """Do nothing: the modules that train are the modules that answer."""

    def complete(
        self, prompts: Sequence[Sequence[int]], requests: Sequence[Request], settings: GenerationConfig
    ) -> list[Row]:
        """Return the row of each request, in the order given."""
        rows = [Row(ask, row_stream(ask.seed, ask.limit), len(prompts[ask.prompt])) for ask in requests]
        longest = max((row.prompt_length + row.request.limit for row in rows), default=0)
        with serving(self.model):
            slots = SlotModel(self.model, min(self._num_slots, len(rows)), longest, self._make_recorder,
                              self._lean)
            _Rollout(slots, TokenChooser(settings), self.stop_ids, prompts, rows, self._num_slots).run()
        if slots.graphs.has_failed:
            self._make_recorder = no_recorder
        return rows

    def _answer(
        self, prompts: Sequence[Sequence[int]], settings: GenerationConfig,
        seeds: Sequence[Sequence[tuple[int, ...]]], *, with_logps: bool,
    ) -> list[Completion]:
        limits = [new_tokens(len(prompt), settings, self.context) for prompt in prompts]
        requests = [Request(number, seed, limits[number]) for number, mine in enumerate(seeds) for seed in mine]
        return [
            completion(self.tokenizer, row.ids, self.stop_ids, settings, row.logps if with_logps else None)
            for row in self.complete(prompts, requests, settings)]

    def _takes(self, prompts: Sequence[Sequence[int]], settings: GenerationConfig) -> bool:
        """Return whether slots serve this call; the model is tried once."""
        if settings.num_beams > 1 or not settings.use_kv_cache or not any(prompts):
            return False
        if self._objection is None:
            tokens = [token for prompt in prompts[:16] for token in prompt[:64]]
            self._objection = why_not_slots(self.model, tokens)
            if self._objection:
                notice(f"{self._objection}: answers come from plain generation in batches, which is slower")
            else:
                self._lean, reason = lean_in_slots(self.model, tokens)
                if reason:
                    notice(f"{reason}: slots decode through the whole model, which is slower")
        return not self._objection


def _build(source: Source, model: Any) -> RolloutGenerator:
    return RolloutGenerator(model, source.tokenizer, source.stop_ids, batch_size=source.batch_size)


BACKENDS.add(Backend(_build), "danlu")


class _Rollout:
    """Seats waiting rows, steps all seated rows, lets finished ones go, until none is left."""

    def __init__(
        self, slots: SlotModel, choose: TokenChooser, stop_ids: frozenset[int], prompts: Sequence[Sequence[int]],
        rows: Sequence[Row], num_slots: int,
    ) -> None:
        self._slots, self._choose, self._stop_ids, self._num_slots = slots, choose, stop_ids, num_slots
        self._prompts = prompts
        self._waiting = _by_prompt(rows)
        self._ready: deque[Entrant] = deque()
        self._rows: list[Row] = []  # row r sits in slot r
        self._seen_SV: Tensor | None = None

    def run(self) -> None:
        """Complete every row."""
        self._fill()
        while self._rows:
            tokens, positions = [row.ids[-1] for row in self._rows], [row.position for row in self._rows]
            self._draw(self._slots.step(tokens, positions), range(len(self._rows)))
            self._fill()

    def _fill(self) -> None:
        """Give free slots to waiting rows until all are taken or nobody waits; then close the gaps."""
        while entrants := self._next(free := self._free()):
            self._seat(entrants, free[: len(entrants)])
        for slot in reversed(self._done()):
            last = self._rows.pop()
            if slot < len(self._rows):
                self._rows[slot] = last
                self._slots.move(len(self._rows), slot, last.position)
                if self._seen_SV is not None:
                    self._seen_SV[slot] = self._seen_SV[len(self._rows)]

    def _done(self) -> list[int]:
        return [slot for slot, row in enumerate(self._rows) if row.is_done]

    def _free(self) -> list[int]:
        return [*self._done(), *range(len(self._rows), self._num_slots)]

    def _next(self, free: Sequence[int]) -> list[Entrant]:
        """Return the rows that take the free slots, fewer where fewer wait; reads prompts ahead."""
        while len(self._ready) < len(free) and self._waiting:
            self._read_ahead()
        return [self._ready.popleft() for _ in range(min(len(free), len(self._ready)))]

    def _read_ahead(self) -> None:
        """Read the next prompts in one pass, as many as READ_AHEAD tokens hold, at least one."""
        taken, tokens = [self._waiting.popleft()], 0
        tokens += taken[0][0].prompt_length
        while self._waiting and tokens + self._waiting[0][0].prompt_length <= READ_AHEAD:
            taken.append(self._waiting.popleft())
            tokens += taken[-1][0].prompt_length
        read = self._slots.read([self._prompts[rows[0].request.prompt] for rows in taken])
        self._ready.extend(Entrant(row, read, number) for number, rows in enumerate(taken) for row in rows)

    def _seat(self, entrants: Sequence[Entrant], slots: Sequence[int]) -> None:
        """Put rows into slots and draw their first tokens from the logits after their prompts."""
        for entrant, slot in zip(entrants, slots, strict=True):
            self._rows[slot : slot + 1] = [entrant.row]
        for read in {id(entrant.read): entrant.read for entrant in entrants}.values():
            mine = [(e.prompt, slot) for e, slot in zip(entrants, slots, strict=True) if e.read is read]
            numbers, places = [number for number, _ in mine], [slot for _, slot in mine]
            self._slots.seat(read, numbers, places)
            logits_NV = read.logits[numbers]
            if self._choose.needs_seen:
                self._see_prompts(places, logits_NV)
            self._draw(logits_NV, places)

    def _see_prompts(self, slots: Sequence[int], logits_NV: Tensor) -> None:
        """Note which tokens occur in the prompts of the rows that just took `slots`."""
        if self._seen_SV is None:
            self._seen_SV = logits_NV.new_zeros(self._num_slots, logits_NV.shape[1], dtype=torch.bool)
        for slot in slots:
            self._seen_SV[slot] = False
            self._seen_SV[slot, list(self._prompts[self._rows[slot].request.prompt])] = True

    def _draw(self, logits_BV: Tensor, slots: Sequence[int]) -> None:
        """Append the next token of the rows in `slots`."""
        rows, device = [self._rows[slot] for slot in slots], logits_BV.device
        uniforms = torch.tensor([row.draws[len(row.ids)] for row in rows], dtype=torch.float64, device=device)
        seen_BV = None if self._seen_SV is None else self._seen_SV[list(slots)]
        tokens_B, logps_B = self._choose(logits_BV, uniforms, seen_BV)
        if self._seen_SV is not None:
            self._seen_SV[torch.tensor(list(slots), device=device), tokens_B] = True
        for row, token, logp in zip(rows, tokens_B.tolist(), check_finite(logps_B.cpu()).tolist(), strict=True):
            row.ids.append(token)
            row.logps.append(logp)
            row.is_done = token in self._stop_ids or len(row.ids) == row.request.limit


def _by_prompt(rows: Sequence[Row]) -> deque[list[Row]]:
    """Return the rows of each prompt, the longest prompts first: neighbours are alike, and memory peaks at once."""
    groups: dict[int, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.request.prompt, []).append(row)
    return deque(sorted(groups.values(), key=lambda mine: -mine[0].prompt_length))


def inner_model(model: nn.Module) -> PreTrainedModel:
    """Return the stock model inside DDP, PackedLM and peft; adapters live in its own modules and stay active."""
    while isinstance(model, (DistributedDataParallel, PackedLM)):
        model = model.module if isinstance(model, DistributedDataParallel) else model.model
    return base_of(model)
