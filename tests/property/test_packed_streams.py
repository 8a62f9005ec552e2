"""Any way of laying examples into streams gives the same rows, the same layout facts and the same loss."""

from functools import lru_cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from danlu.core.stream import Example, flatten
from danlu.models.packed_lm import PackedLM
from danlu.models.padded import PaddedBatch
from danlu.models.stream_tensors import StreamTensors
from tests.tiny import tiny_model


@lru_cache
def model() -> PackedLM:
    return PackedLM(tiny_model())


@st.composite
def examples(draw: st.DrawFn) -> list[Example]:
    """One to five examples of one to three segments of one to twelve tokens, any of them supervised."""
    made = []
    for _ in range(draw(st.integers(1, 5))):
        lengths = tuple(draw(st.lists(st.integers(1, 12), min_size=1, max_size=3)))
        rng = np.random.default_rng(draw(st.integers(0, 2**16)))
        total = sum(lengths)
        made.append(Example(
            rng.integers(3, 320, total), rng.random(total) < draw(st.floats(0, 1)), lengths=lengths, index=len(made)))
    return made


@settings(max_examples=25, deadline=None)
@given(examples())
def test_one_stream_equals_many(batch: list[Example]) -> None:
    with torch.no_grad():
        together = model()(StreamTensors.from_stream(flatten(batch))).item()
        apart = sum(model()(StreamTensors.from_stream(flatten([one]))).item() for one in batch)
    assert together == pytest.approx(apart, rel=1e-5, abs=1e-5)


@settings(max_examples=50, deadline=None)
@given(examples())
def test_layout_facts_agree(batch: list[Example]) -> None:
    stream = StreamTensors.from_stream(flatten(batch))
    assert sum(stream.lengths) == stream.num_tokens == int(stream.cu_seqlens[-1])
    assert stream.max_length == max(stream.lengths) and stream.cu_seqlens.dtype == torch.int32
    assert torch.equal(stream.input_ids[stream.loss_rows + 1], stream.loss_targets)
    padded = PaddedBatch.of(stream)
    assert padded.input_ids.shape == (len(stream.lengths), stream.max_length)
    assert padded.attention_mask.sum(1).tolist() == list(stream.lengths)
    rows = torch.arange(stream.num_tokens)
    assert torch.equal(padded.gather(padded.input_ids[..., None], rows)[:, 0], stream.input_ids)


def test_segments_without_tokens_are_left_out() -> None:
    empty = Example(np.zeros(0, np.int64), np.zeros(0, bool))
    full = Example(np.array([5, 6, 7]), np.array([True, True, True]))
    stream = StreamTensors.from_stream(flatten([empty, full, empty]))
    assert stream.lengths == (3,) and stream.owners.tolist() == [1]
    alone = StreamTensors.from_stream(flatten([full]))
    assert model()(stream).item() == model()(alone).item()
