"""CUDA graphs of the decoding step: recorded once for a number of rows, replayed for every later token.

A step of one token a row is hundreds of short kernels, and a processor starts them more slowly than a GPU runs them; a
graph starts all of them at once. It repeats the same kernels on the same memory, so rows are padded to a few sizes and
tokens and positions are copied to where it reads them. Knows nothing of models. Shape legend: B rows, V vocabulary.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from danlu.core.console import notice

Run = Callable[[], Tensor]


class Recorder(Protocol):
    """Turns a function of fixed tensors into one that does the same to the same tensors with less work.

    Recordings of one recorder may share memory: what one returns holds until the next of them runs.

    pays_from  from which use of a size on it is worth recording; 2 at least
    """

    pays_from: int

    def warm(self, run: Run) -> Tensor:
        """Run as it stands, so that what happens only once has happened when `run` is recorded."""
        ...

    def record(self, run: Run) -> Run:
        """Return what repeats `run`. Raises RuntimeError where `run` cannot be recorded."""
        ...


class CudaRecorder:
    """Captures CUDA graphs on a stream of its own; they share one pool of memory.

    A capture waits for the device and empties the allocator's cache, which sizes that soon pass are not worth.
    """

    pays_from = 8

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream, self._pool = device, torch.cuda.Stream(device), torch.cuda.graph_pool_handle()

    def warm(self, run: Run) -> Tensor:
        """Run on the stream that captures, as torch asks for."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = run()
        current.wait_stream(self._stream)
        result.record_stream(current)
        return result

    def record(self, run: Run) -> Run:
        """Capture `run`, which computes nothing yet. Other threads may go on, such as one that writes a checkpoint."""
        graph = torch.cuda.CUDAGraph()
        capture = torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local")
        try:
            # When the end of a capture fails, the inner block does not leave the stream; the outer one does.
            with torch.cuda.stream(self._stream), capture:
                result = run()
        except RuntimeError:
            self._recover()
            raise

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay

    def _recover(self) -> None:
        """Let the generator and the allocator forget a failed capture, which they may take for one that goes on.

        Dropout would raise, and memory kept for later use would not be freed when it runs short. A torch that does the
        second itself (https://github.com/pytorch/pytorch/pull/180395) refuses to do it twice.
        """
        generator = torch.cuda.default_generators[self._device.index]
        generator.graphsafe_set_state(generator.clone_state())
        with suppress(RuntimeError, AttributeError):
            torch._C._cuda_endAllocateToPool(self._device.index, self._pool)


def cuda_recorder(model: nn.Module) -> Recorder | None:
    """Return what captures CUDA graphs; None for a model that is not on one CUDA device as a whole."""
    devices = {parameter.device for parameter in model.parameters()}
    device = devices.pop()
    return CudaRecorder(device) if device.type == "cuda" and not devices else None


def no_recorder(model: nn.Module) -> Recorder | None:
    """Return None: every step runs as it stands."""
    return None


class DecodeGraphs:
    """Recordings of one step function, one for each padded size that is used often enough."""

    def __init__(self, make_recorder: Callable[[], Recorder | None], num_slots: int, device: torch.device) -> None:
        self._make_recorder, self._num_slots, self._device = make_recorder, num_slots, device
        self._inputs: dict[int, Tensor] = {}
        self._uses: Counter[int] = Counter()
        self._replays: dict[int, Run] = {}
        self._recorder = make_recorder()
        self.has_failed = False

    def drop(self) -> None:
        """Forget all recordings, since memory that they use moves. A pool that none uses cannot be taken up again."""
        self._inputs, self._uses, self._replays = {}, Counter(), {}
        self._recorder = None if self.has_failed else self._make_recorder()

    def step(
        self, tokens: Sequence[int], positions: Sequence[int], forward: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor | None:
        """Return the logits of `forward`, (B, V), which hold until the next step; None where nothing is recorded.

        `forward` takes tokens and positions, (B,) each, and does the same however often it is called with the same.
        Rows are added, with token 0 at position 0, up to the next power of two or the number of slots. A step that
        cannot be recorded is told, and no other is tried; errors of steps that run are the caller's.
        """
        if self._recorder is None:
            return None
        size = min(1 << (len(tokens) - 1).bit_length(), self._num_slots)
        run = partial(forward, *self._filled(size, tokens, positions))
        self._uses[size] += 1
        if self._uses[size] < self._recorder.pays_from:
            return self._recorder.warm(run)[: len(tokens)]
        if size not in self._replays:
            try:
                self._replays[size] = self._recorder.record(run)
            except RuntimeError as error:
                notice(f"answers are sampled without CUDA graphs, which is slower: {_cause(error)}")
                self.has_failed = True
                self.drop()
                return None
        return self._replays[size]()[: len(tokens)]

    def _filled(self, size: int, tokens: Sequence[int], positions: Sequence[int]) -> Tensor:
        """Return tokens and positions, (2, B) with rows added, where the recording of their size reads them."""
        spare = [0] * (size - len(tokens))
        fresh_2B = torch.tensor([[*tokens, *spare], [*positions, *spare]], pin_memory=self._device.type == "cuda")
        if size not in self._inputs:
            self._inputs[size] = torch.empty(2, size, dtype=torch.long, device=self._device)
        return self._inputs[size].copy_(fresh_2B, non_blocking=True)


def _cause(error: BaseException) -> str:
    """Return the first line of what went wrong first: the end of a failed capture raises once more."""
    while error.__context__ is not None:
        error = error.__context__
    return next(iter(str(error).splitlines()), type(error).__name__)
