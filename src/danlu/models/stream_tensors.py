"""A flat token stream as torch tensors: what crosses from the collator to a device and into a model.

Shape legend: T tokens of the stream, C tokens that are computed where segments share their beginnings, S segments,
N blocks of the tree, R supervised rows, B examples, F facts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from danlu.core.prefix_tree import share_prefixes
from danlu.core.stream import Example, IntArray, Stream, flatten

TENSORS = ("input_ids", "position_ids", "cu_seqlens", "loss_rows", "loss_targets", "loss_weights", "owners", "facts",
           "tracks")


@dataclass(frozen=True)
class TreeTensors:
    """The torch mirror of `core.prefix_tree.PrefixTree`: the stream with each shared beginning computed once.

    kept     (C,) int64  tokens of the plain stream that are computed, in order
    places   (T,) int64  where among them each token of the plain stream is found
    lengths  (N,)        tokens in each block
    parents  (N,)        the block that a branch continues; -1 for a block that starts at position 0
    """

    kept: Tensor
    places: Tensor
    lengths: tuple[int, ...]
    parents: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens that are computed, C."""
        return int(self.kept.shape[0])


@dataclass(frozen=True)
class StreamTensors:
    """The torch mirror of `core.stream.Stream`; lengths are plain integers, so that layout never waits on a device.

    Every index counts the tokens as the data has them, a shared prompt once for each answer; `tree` says which of
    them a model that can computes once.

    input_ids    (T,)   int64    all segments one behind the other
    position_ids (T,)   int64    restart at 0 in each segment
    cu_seqlens   (S+1,) int32    where segments start and end
    loss_rows    (R,)   int64    positions whose next token is a target
    loss_targets (R,)   int64    those next tokens
    loss_weights (R,)   float32  scale of each row's loss
    owners       (S,)   int64    which example of the batch a segment belongs to
    indices      (B,)            data-set positions of the examples
    lengths      (S,)            tokens in each segment
    max_length                   the longest of them
    facts        (B, F) float32  what the stage knows of each example beside its tokens
    tracks       (K, R) float32  what the stage knows of each supervised row's target
    tree                         what the segments of an example share; None: nothing
    """

    input_ids: Tensor
    position_ids: Tensor
    cu_seqlens: Tensor
    loss_rows: Tensor
    loss_targets: Tensor
    loss_weights: Tensor
    owners: Tensor
    indices: tuple[int, ...]
    lengths: tuple[int, ...]
    max_length: int
    facts: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    tracks: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    tree: TreeTensors | None = None

    @classmethod
    def of(cls, examples: Sequence[Example]) -> "StreamTensors":
        """Lay examples out as one stream on the CPU."""
        return cls.from_stream(flatten(examples))

    @classmethod
    def from_stream(cls, stream: Stream) -> "StreamTensors":
        """Wrap a stream as CPU tensors; empty segments are left out, as no token belongs to them."""
        starts, ends = stream.cu_seqlens[:-1], stream.cu_seqlens[1:]
        filled = ends > starts
        lengths = tuple(int(n) for n in (ends - starts)[filled])
        cu_seqlens = torch.zeros(len(lengths) + 1, dtype=torch.int32)
        cu_seqlens[1:] = torch.tensor(lengths, dtype=torch.int32).cumsum(0)
        return cls(
            input_ids=torch.as_tensor(stream.input_ids, dtype=torch.int64),
            position_ids=torch.as_tensor(stream.position_ids, dtype=torch.int64),
            cu_seqlens=cu_seqlens,
            loss_rows=torch.as_tensor(stream.loss_rows, dtype=torch.int64),
            loss_targets=torch.as_tensor(stream.loss_targets, dtype=torch.int64),
            loss_weights=torch.as_tensor(stream.loss_weights, dtype=torch.float32),
            owners=torch.as_tensor(stream.owners[filled], dtype=torch.int64),
            indices=stream.indices,
            lengths=lengths,
            max_length=max(lengths, default=0),
            facts=torch.as_tensor(stream.facts, dtype=torch.float32),
            tracks=torch.as_tensor(stream.tracks, dtype=torch.float32),
            tree=_tree(stream.input_ids, lengths, stream.owners[filled]),
        )

    @property
    def num_tokens(self) -> int:
        """Tokens of the stream, T."""
        return int(self.input_ids.shape[0])

    @property
    def num_rows(self) -> int:
        """Supervised rows, R."""
        return int(self.loss_rows.shape[0])

    def to(self, device: torch.device | str) -> "StreamTensors":
        """Return the same stream on `device`; counts stay plain integers.

        To a GPU it goes through page-locked memory, so that the copy does not wait for the work that runs there.
        """
        if torch.device(device).type != "cuda":
            return self._moved(lambda tensor: tensor.to(device))
        return self._moved(lambda tensor: (tensor if tensor.is_cuda else tensor.pin_memory()).to(
            device, non_blocking=True))

    def _moved(self, move: Callable[[Tensor], Tensor]) -> "StreamTensors":
        tree = self.tree and replace(self.tree, kept=move(self.tree.kept), places=move(self.tree.places))
        return replace(self, tree=tree, **{name: move(getattr(self, name)) for name in TENSORS})


def _tree(ids_T: IntArray, lengths: tuple[int, ...], owners_S: IntArray) -> TreeTensors | None:
    tree = share_prefixes(ids_T, lengths, owners_S.tolist())
    if tree is None:
        return None
    return TreeTensors(torch.as_tensor(tree.kept), torch.as_tensor(tree.places), tree.lengths, tree.parents)
