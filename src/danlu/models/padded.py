"""From a flat stream to a right-padded batch and back: the layout for models that cannot attend inside segments.

Shape legend: T tokens of the stream, S segments, L the longest segment.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from danlu.models.stream_tensors import StreamTensors

FILLER_ID = 0  # any valid id serves: the mask hides it and no loss row reads it


@dataclass(frozen=True, slots=True)
class PaddedBatch:
    """One segment a row, padded on the right.

    input_ids       (S, L)
    attention_mask  (S, L) int64, 1 where a token is
    places          (T,)   where each token of the stream lies in the flattened batch
    """

    input_ids: Tensor
    attention_mask: Tensor
    places: Tensor

    @classmethod
    def of(cls, stream: StreamTensors) -> "PaddedBatch":
        """Lay a stream out as a batch; needs no wait for the device, as lengths are plain integers."""
        device, num_segments = stream.input_ids.device, len(stream.lengths)
        lengths = torch.tensor(stream.lengths, device=device)
        segment_T = torch.repeat_interleave(
            torch.arange(num_segments, device=device), lengths, output_size=stream.num_tokens)
        places = segment_T * stream.max_length + stream.position_ids
        shape = (num_segments, stream.max_length)
        ids = torch.full(shape, FILLER_ID, dtype=torch.int64, device=device).view(-1)
        mask = torch.zeros_like(ids)
        ids[places] = stream.input_ids
        mask[places] = 1
        return cls(ids.view(shape), mask.view(shape), places)

    def gather(self, values_SLX: Tensor, rows: Tensor) -> Tensor:
        """Return the entries of stream positions `rows`, (len(rows), X)."""
        return values_SLX.reshape(-1, values_SLX.shape[-1])[self.places[rows]]
