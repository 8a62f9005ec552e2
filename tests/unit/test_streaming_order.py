"""What a stream gives, and that a state of places brings any example back."""

import gzip
import json
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from danlu.core.errors import ConfigError, DataError
from danlu.core.stream import Example
from danlu.data.config import DataConfig
from danlu.data.dataset import build_dataset
from danlu.data.encode import EncodeContext
from danlu.data.loader import load_records
from danlu.data.streaming import estimate, row_stream
from danlu.data.streaming.open_stream import Order, open_stream
from danlu.data.streaming.token_stream import TokenStream
from danlu.engine.sampler import StreamBatches, share
from danlu.run_config import load_run_config
from danlu.stages.base import STAGES
from danlu.templates import resolve
from tests.tiny import tiny_tokenizer

LAYOUTS: dict[str, dict[str, Any]] = {
    "sft": {}, "packed": {"packing": True, "cutoff_len": 96}, "split": {"cutoff_len": 40, "on_long": "split"},
    "pt": {"stage": "pt", "cutoff_len": 64}, "documents": {"stage": "pt", "cutoff_len": 32, "neat_packing": True}}


WINDOW = 128


@pytest.fixture(autouse=True)
def small_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of its own; windows of 128 rows, so that few rows make several of them."""
    monkeypatch.setenv("DANLU_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(row_stream, "WINDOW_ROWS", WINDOW)


def write(folder: Path, name: str, count: int) -> str:
    """Write rows that can be told apart."""
    rng = random.Random(name)
    rows = [{"instruction": f"{name} {n} {'the sky ' * rng.randint(0, 6)}", "output": "blue " * rng.randint(1, 9)}
            for n in range(count)]
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


def opened(datasets: Sequence[str], *, shuffles: bool = True, seed: int = 3, stage: str = "sft",
           **keys: Any) -> tuple[TokenStream, EncodeContext]:
    config = DataConfig(dataset=tuple(datasets), streaming=True, **{"buffer_size": 100, **keys})
    tokenizer = tiny_tokenizer()
    template = resolve("default", tokenizer)
    template.prepare_tokenizer(tokenizer)
    context = EncodeContext(tokenizer, template, config)
    return open_stream(config, STAGES[stage], context, Order(seed, seed, shuffles))[0], context


def taken(stream: TokenStream, number: int, size: int = 7) -> list[tuple[Example, str]]:
    """Return the examples of the next `number` batches, each with its rows."""
    return [(stream[one], stream.origin(one)) for _ in range(number) for one in stream.batch(size)]


def epoch(stream: TokenStream) -> list[tuple[Example, str]]:
    """Return all examples of the first epoch."""
    found = taken(stream, 1)
    while stream.epoch < 1:
        found += taken(stream, 1)
    return found


def assert_same(one: Sequence[tuple[Example, str]], other: Sequence[tuple[Example, str]]) -> None:
    assert [(e.index, e.lengths, origin) for e, origin in one] == [(e.index, e.lengths, origin) for e, origin in other]
    for (left, _), (right, _) in zip(one, other, strict=True):
        assert np.array_equal(left.input_ids, right.input_ids) and np.array_equal(left.trained, right.trained)


@pytest.mark.parametrize("layout", ["sft", "split", "pt", "documents"])
@pytest.mark.parametrize("mixing", [
    {}, {"mix_strategy": "interleave_under"}, {"mix_strategy": "interleave_over", "interleave_probs": "0.7,0.3"},
    {"mix_strategy": "interleave_once", "interleave_probs": "0.2,0.8", "max_samples": 80}], ids=str)
def test_without_shuffling_it_is_the_prepared_set(layout: str, mixing: dict[str, Any], tmp_path: Path) -> None:
    """The examples of an epoch are those that `build_dataset` writes down, block for block, over several windows."""
    names = [write(tmp_path, "first", WINDOW + 100), write(tmp_path, "second", 90)]
    keys = {**LAYOUTS[layout], **mixing}
    stage = STAGES[keys.get("stage", "sft")]
    stream, context = opened(names, shuffles=False, **keys)
    whole = build_dataset(load_records(context.config, stage.record, seed=3), stage, context)
    found = epoch(stream)
    assert_same(found, [(whole[n], whole.origin(n)) for n in range(len(whole))])
    stream.finish()
    assert stream.ledger.total("used") == whole.ledger.total("used")


@pytest.mark.parametrize("layout", ["sft", "packed", "pt", "documents"])
def test_a_state_brings_every_example_back(layout: str, tmp_path: Path) -> None:
    """Taken in the first window, behind it, and in the second epoch: the examples to come are the same, bit for bit."""
    names = [write(tmp_path, "first", WINDOW + 40), write(tmp_path, "second", 20)]
    keys = {"mix_strategy": "interleave_over", "interleave_probs": "0.9,0.1", **LAYOUTS[layout]}
    stream, _ = opened(names, **keys)
    ran = 0
    for place in (0, 1, 9, 17, 30, 50):
        taken(stream, max(0, place - ran))
        state, ran = json.loads(json.dumps(stream.state())), place
        again, _ = opened(names, **keys)
        again.restore(state)
        assert again.epoch == stream.epoch
        assert_same(taken(again, 6), taken(stream, 6))
        ran += 6
    assert stream.epoch > 1


def test_resuming_reads_nothing_that_was_seen(tmp_path: Path) -> None:
    """With what lies before the buffer overwritten by garbage, the stream goes on as if nothing had happened.

    800 rows of 300 bytes, of which three windows are drawn. Rows that the buffer of 100 holds are spared, and so are
    64 KiB at the edges, for they are how a changed file is found out.
    """
    path = Path(write(tmp_path, "first", 800))
    path.write_text("".join(line[:-2] + f', "more": "{"x" * 200}"}}\n' for line in path.read_text().splitlines(True)))
    stream, _ = opened([str(path)])
    taken(stream, 3 * WINDOW // 7 + 2)
    state, facts = stream.state(), path.stat()
    expected = taken(stream, 40)
    needed = {place for _, _, place, _ in state["window"]["buffer"]}
    again, _ = opened([str(path)])
    start, lines = 0, []
    for line in path.read_bytes().splitlines(True):
        is_seen = 1 << 16 < start < state["window"]["walks"][0]["last"][2] and start not in needed
        lines.append(b"#" * (len(line) - 1) + b"\n" if is_seen else line)
        start += len(line)
    assert sum(line.startswith(b"#") for line in lines) > 100
    path.write_bytes(b"".join(lines))
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    again.restore(state)
    assert_same(taken(again, 40), expected)


@pytest.mark.parametrize("packed", ["gz", "zst"])
def test_a_packed_file_resumes_too(packed: str, tmp_path: Path) -> None:
    """It is unpacked up to the cursor; what comes is what comes from the plain file."""
    import pyarrow as pa

    plain = write(tmp_path, "first", 300)
    path = f"{plain}.{packed}"
    content = Path(plain).read_bytes()
    if packed == "gz":
        Path(path).write_bytes(gzip.compress(content))
    else:
        with pa.CompressedOutputStream(path, "zstd") as file:
            file.write(content)
    stream, _ = opened([path])
    reference, _ = opened([plain])
    first = taken(stream, 20)
    assert [e.input_ids.tolist() for e, _ in first] == [e.input_ids.tolist() for e, _ in taken(reference, 20)]
    again, _ = opened([path])
    again.restore(stream.state())
    assert_same(taken(again, 12), taken(stream, 12))


@pytest.mark.parametrize("layout", ["sft", "packed", "pt"])
def test_the_estimate_of_a_sample(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fifth of 2,500 rows of 1 to 9 answers tells examples and tokens within 6 %; one example a row exactly."""
    monkeypatch.setattr(estimate, "SAMPLE_ROWS", 512)
    keys = {**LAYOUTS[layout], "cutoff_len": LAYOUTS[layout].get("cutoff_len", 128)}
    stream, _ = opened([write(tmp_path, "first", 2500)], **keys)
    found = epoch(stream)
    assert not stream.estimate.is_exact and stream.estimate.rows == 2500
    assert len(stream) == pytest.approx(len(found), rel=0.06 if layout != "sft" else 0)
    assert stream.num_tokens == pytest.approx(sum(len(one.input_ids) for one, _ in found), rel=0.06)


def test_each_epoch_is_another_order_of_all_rows(tmp_path: Path) -> None:
    stream, _ = opened([write(tmp_path, "first", 300)])
    first = [origin for _, origin in epoch(stream)]
    second = [origin for _, origin in taken(stream, 43)]
    assert len(set(first)) == 300 and sorted(first) == sorted(second) and first != second
    assert sorted(first) != first


def test_a_buffer_too_large_for_memory_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows beyond the bytes that the buffer may hold are read again when they are drawn."""
    name = write(tmp_path, "first", 400)
    expected = epoch(opened([name])[0])
    monkeypatch.setattr("danlu.data.streaming.row_stream.BUFFER_BYTES", 5000)
    assert_same(epoch(opened([name])[0]), expected)


def test_processes_give_the_same_and_resume(tmp_path: Path) -> None:
    """Two processes encode ahead; examples, state and ledger are those of one process that does not."""
    name = write(tmp_path, "first", 3 * WINDOW)
    alone, ahead = opened([name])[0], opened([name], preprocessing_num_workers=2)[0]
    assert_same(taken(ahead, 40), taken(alone, 40))
    assert ahead.state() == alone.state()
    pool = ahead._encoder._pool
    assert pool is not None and not pool.submit(eval, "'torch' in __import__('sys').modules").result()
    ahead.restore(alone.state())
    assert_same(taken(ahead, 20), taken(alone, 20))
    ahead.finish()
    alone.finish()
    assert ahead.ledger.state()["counts"] == alone.ledger.state()["counts"]


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_share_the_same_global_batches(ranks: int, tmp_path: Path) -> None:
    """Each rank walks the same order and takes its share; together they see the batches of one process."""
    names = [write(tmp_path, "first", 100), write(tmp_path, "second", 60)]
    whole = StreamBatches(opened(names)[0], 12)
    streams = [opened(names)[0] for _ in range(ranks)]
    for step in range(20):
        batch = whole.batch(step)
        seen: dict[int, str] = {}
        for rank, stream in enumerate(streams):
            own = share(StreamBatches(stream, 12).batch(step), rank, ranks)
            seen |= {index: stream.origin(index) for index in own}
        assert seen == {index: whole.stream.origin(index) for index in batch}


def test_the_last_batch_of_an_epoch(tmp_path: Path) -> None:
    """10 rows in batches of 4: 4, 4, 2 and again; with drop_last 4, 4 and again; too few for one batch is refused."""
    name = write(tmp_path, "first", 10)
    stream = opened([name])[0]
    assert [len(stream.batch(4)) for _ in range(7)] == [4, 4, 2, 4, 4, 2, 4] and stream.epoch == pytest.approx(2.4)
    stream = opened([name])[0]
    assert [len(stream.batch(4, drop_last=True)) for _ in range(6)] == [4] * 6
    with pytest.raises(ConfigError, match="an epoch has 10 examples, a step 11"):
        opened([name])[0].batch(11, drop_last=True)


def test_rows_set_aside_are_never_trained(tmp_path: Path) -> None:
    """The first 30 rows of the mixed order: 15 of each set; sets that start again (over) leave them out too."""
    names = [write(tmp_path, "first", 100), write(tmp_path, "second", 40)]
    config = DataConfig(dataset=tuple(names), streaming=True, val_size=30, mix_strategy="interleave_over")
    _, context = opened(names)
    stream, held = open_stream(config, STAGES["sft"], context, Order(1, 1))
    assert held is not None
    aside = {str(record.origin) for record in held}
    assert aside == {f"{name}:{row}" for name in names for row in range(1, 16)}
    assert not aside & {origin for _, origin in epoch(stream)}
    with pytest.raises(ConfigError, match="val_size"):
        open_stream(config.model_copy(update={"val_size": 100}), STAGES["sft"], context, Order(1, 1))


def test_samples_are_those_of_the_prepared_set(tmp_path: Path) -> None:
    """`num_samples` of the registry picks the same rows, in the order of the file."""
    write(tmp_path, "first", 200)
    (tmp_path / "dataset_info.json").write_text(json.dumps({"some": {"file_name": "first.jsonl", "num_samples": 50}}))
    stream, context = opened(["some"], shuffles=False, dataset_dir=str(tmp_path))
    records = load_records(context.config, STAGES["sft"].record, seed=3)
    assert [origin for _, origin in epoch(stream)] == sorted(
        (str(record.origin) for record in records), key=lambda origin: int(origin.rsplit(":", 1)[1]))


def test_bad_and_long_rows_are_in_the_ledger(tmp_path: Path) -> None:
    """Row 5 has no answer, row 9 is too long: both are counted once though two epochs are read; the file lists them."""
    path = Path(write(tmp_path, "first", 20))
    lines = path.read_text().splitlines()
    lines[4], lines[8] = '{"instruction": "x", "output": 7}', json.dumps({"instruction": "x", "output": "sky " * 300})
    path.write_text("\n".join(lines) + "\n")
    stream, _ = opened([str(path)], on_bad_row="skip", on_long="drop", cutoff_len=120)
    stream.ledger.write(tmp_path)
    taken(stream, 9)
    stream.finish()
    entries = [json.loads(line) for line in (tmp_path / "data_ledger.jsonl").read_text().splitlines()]
    assert {(entry["row"], entry["reason"]) for entry in entries if "row" in entry} == {
        (5, "bad row"), (9, "longer than cutoff_len")}
    assert entries[-1] == {"source": str(path), "read": 20, "dropped": 2, "used": 18}
    with pytest.raises(DataError, match="first.jsonl:5: /output"):
        opened([str(path)])


def test_keys_that_do_not_go_with_a_stream() -> None:
    for keys, words in (({"tokenized_path": "x"}, "never written down"), ({"val_size": 0.1}, "such as val_size: 1000")):
        with pytest.raises(ValueError, match=words):
            DataConfig(streaming=True, **keys)
    with pytest.raises(ConfigError, match="group_by_length"):
        load_run_config(None, ["dataset=x", "model_name_or_path=x", "output_dir=x", "streaming=true",
                               "group_by_length=true"], "train")


def test_ids_outside_the_embedding_stop_the_stream(tmp_path: Path) -> None:
    """Of the sample they are told before the first step; later ones name their row."""
    stream, _ = opened([write(tmp_path, "first", 20)])
    highest = max(stream.estimate.ids)
    assert stream.find_ids(highest + 1) == []
    assert stream.find_ids(highest) == [(highest, stream.estimate.ids[highest])]
    with pytest.raises(DataError, match=f"first.jsonl:.*token id {highest} is outside"):
        epoch(stream)
