"""The prepared set: the same from memory, cache, saved path and several processes; never from a stale copy."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from danlu.core.errors import ConfigError, DataError
from danlu.core.records import Conversation, Text
from danlu.data.config import DataConfig
from danlu.data.dataset import build_dataset
from danlu.data.encode import EncodeContext, encode_conversations, encode_texts
from danlu.data.loader import load_records, split_validation
from danlu.data.packing import blocks_or_keep, pack_or_keep
from danlu.data.preview import describe_first
from danlu.templates import resolve
from tests.tiny import CHATML, tiny_tokenizer

OTHER_JINJA = CHATML.replace("<|im_end|>\n", "<|im_end|>")


class Sft:
    record = Conversation
    encode = staticmethod(encode_conversations)
    arrange = staticmethod(pack_or_keep)


class Pt:
    record = Text
    encode = staticmethod(encode_texts)
    arrange = staticmethod(blocks_or_keep)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DANLU_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "rows.jsonl"
    write(path, 30)
    return path


def write(path, number, word="sky"):
    rows = [{"messages": [
        {"role": "user", "content": f"what colour is the {word} {n}" * (1 + n % 3)},
        {"role": "assistant", "content": f"blue {n} 天空" * (1 + n % 5), "weight": 0.5 if n % 7 == 3 else 1}]}
        for n in range(number)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def build(file, stage=Sft, jinja=CHATML, tokenizer=None, which="train", **keys):
    config = DataConfig(train_file=str(file), **keys)
    tokenizer = tokenizer or tiny_tokenizer(chat_template=jinja)
    context = EncodeContext(tokenizer, resolve(config.template, tokenizer), config)
    return build_dataset(load_records(config, stage.record, which=which), stage, context)


def content(dataset):
    return [(one.input_ids.tolist(), one.trained.tolist(), one.lengths, one.index,
             None if one.weights is None else one.weights.tolist(), dataset.origin(one.index)) for one in dataset]


def sets(cache):
    return sorted(path.name for path in (cache / "tokenized").iterdir() if path.is_dir())


def test_the_prepared_set_is_what_encoding_gives(file):
    dataset = build(file)
    tokenizer = tiny_tokenizer(chat_template=CHATML)
    config = DataConfig(train_file=str(file))
    direct = encode_conversations(list(load_records(config, Conversation)),
                                  EncodeContext(tokenizer, resolve(None, tokenizer), config))
    assert [one.input_ids.tolist() for one in dataset] == [one.input_ids.tolist() for one in direct]
    assert [one.trained.tolist() for one in dataset] == [one.trained.tolist() for one in direct]
    assert [None if one.weights is None else one.weights.tolist() for one in dataset] == [
        None if one.weights is None else one.weights.tolist() for one in direct]
    assert sum(one.weights is not None for one in dataset) == 4
    assert dataset.num_tokens == sum(len(one.input_ids) for one in direct) == dataset.lengths.sum()
    assert dataset.num_trained == sum(one.trained[1:].sum() for one in direct)
    assert dataset.origin(4) == f"{file}:5"
    assert dataset.ledger.counts[str(file)] == {"read": 30, "used": 30}


def test_a_second_run_reads_the_cache_and_parses_nothing(file, cache):
    first = build(file)
    stamp = (first.folder / "meta.json").stat().st_mtime_ns
    config = DataConfig(train_file=str(file))
    records = load_records(config, Conversation)
    tokenizer = tiny_tokenizer(chat_template=CHATML)
    second = build_dataset(records, Sft, EncodeContext(tokenizer, resolve(None, tokenizer), config))
    assert (second.folder / "meta.json").stat().st_mtime_ns == stamp
    assert "places" not in vars(records)
    assert content(first) == content(second) and first.fingerprint == second.fingerprint
    assert second.ledger.to_dict() == first.ledger.to_dict()


def test_whatever_changes_tokens_makes_another_set(file, cache):
    prints = [build(file).folder.name]
    prints.append(build(file, jinja=OTHER_JINJA).folder.name)
    prints.append(build(file, template="default").folder.name)
    prints.append(build(file, tokenizer=tiny_tokenizer(310, CHATML)).folder.name)
    prints += [build(file, **keys).folder.name for keys in (
        {"cutoff_len": 40}, {"train_on_prompt": True}, {"mask_history": True}, {"packing": True}, {"max_samples": 3},
        {"default_system": "s"}, {"on_long": "drop"})]
    prints.append(build(file, Pt).folder.name)
    added = tiny_tokenizer(chat_template=CHATML)
    added.add_tokens(["colour"])
    prints.append(build(file, tokenizer=added).folder.name)
    write(file, 30, "sun")
    prints.append(build(file).folder.name)
    assert len(set(prints)) == len(prints) == len(sets(cache))


def test_an_edit_of_one_letter_at_equal_length_is_seen(file):
    before = content(build(file))
    file.write_text(file.read_text().replace("blue 7", "blue 9"))
    assert content(build(file)) != before


def test_a_padded_tokenizer_is_the_same_tokenizer(file, cache):
    tokenizer = tiny_tokenizer(chat_template=CHATML)
    build(file, tokenizer=tokenizer)
    tokenizer(["a", "b c d"], padding=True, truncation=True, max_length=2)
    build(file, tokenizer=tokenizer)
    assert len(sets(cache)) == 1


def test_overwrite_cache_writes_again(file, cache):
    first = build(file)
    (first.folder / "ids.bin").write_bytes(b"\0" * (first.folder / "ids.bin").stat().st_size)
    assert content(build(file, overwrite_cache=True)) == content(build(file))
    assert any(build(file)[0].input_ids)
    assert len(sets(cache)) == 1


def test_a_crash_leaves_nothing_that_looks_whole(file, cache):
    def fail(*_):
        raise RuntimeError("power cut")

    broken = SimpleNamespace(encode=encode_conversations, arrange=fail)
    config, tokenizer = DataConfig(train_file=str(file)), tiny_tokenizer(chat_template=CHATML)
    broken = type("Broken", (), {"encode": staticmethod(encode_conversations), "arrange": staticmethod(fail)})
    with pytest.raises(RuntimeError, match="power cut"):
        build_dataset(load_records(config, Conversation), broken,
                      EncodeContext(tokenizer, resolve(None, tokenizer), config))
    assert sets(cache) == []


@pytest.mark.parametrize("stage", [Sft, Pt])
def test_several_processes_give_the_same_set(tmp_path, stage):
    file = tmp_path / "many.jsonl"
    write(file, 2100)
    alone = build(file, stage, cutoff_len=60, packing=True, preprocessing_num_workers=1)
    together = build(file, stage, cutoff_len=60, packing=True, preprocessing_num_workers=2,
                     preprocessing_batch_size=100, overwrite_cache=True)
    assert content(alone) == content(together)
    assert alone.ledger.to_dict() == together.ledger.to_dict()


def test_an_error_in_a_process_names_the_row(tmp_path):
    file = tmp_path / "many.jsonl"
    write(file, 2100)
    with pytest.raises(DataError, match=r"many.jsonl:\d+: \d+ tokens, and cutoff_len is 60"):
        build(file, cutoff_len=60, on_long="error", preprocessing_num_workers=2)


def test_a_saved_set_is_loaded_and_a_different_one_refused(file, tmp_path):
    saved = str(tmp_path / "saved")
    first = build(file, tokenized_path=saved)
    again = build(file, tokenized_path=saved)
    assert content(first) == content(again)
    with pytest.raises(ConfigError, match="made with another template"):
        build(file, jinja=OTHER_JINJA, tokenized_path=saved)
    with pytest.raises(ConfigError, match="made with other options"):
        build(file, cutoff_len=40, tokenized_path=saved)
    write(file, 29)
    with pytest.raises(ConfigError, match="made with other data"):
        build(file, tokenized_path=saved)
    tokenizer, config = tiny_tokenizer(chat_template=CHATML), DataConfig(tokenized_path=saved)
    context = EncodeContext(tokenizer, resolve(None, tokenizer), config)
    without_data = build_dataset(load_records(config, Conversation), Sft, context)
    assert content(without_data) == content(first)


def test_halves_of_a_split_are_cached_apart(file, cache):
    config, tokenizer = DataConfig(train_file=str(file)), tiny_tokenizer(chat_template=CHATML)
    def halves():
        context = EncodeContext(tokenizer, resolve(None, tokenizer), config)
        return [build_dataset(part, Sft, context)
                for part in split_validation(load_records(config, Conversation), 0.2, 7)]

    first = halves()
    assert [len(part) for part in first] == [24, 6] == [len(part) for part in halves()]
    rows = sorted(int(part.origin(index).split(":")[-1]) for part in first for index in range(len(part)))
    assert rows == list(range(1, 31)) and len(sets(cache)) == 2


def test_packed_rows_know_their_records(file):
    dataset = build(file, packing=True, cutoff_len=200)
    assert len(dataset) < 30
    rows = [origin for index in range(len(dataset)) for origin in dataset.origins(index)]
    assert sorted(rows) == sorted(f"{file}:{row}" for row in range(1, 31))
    assert all(len(one.input_ids) <= 200 for one in dataset)


def test_a_row_of_many_records_names_the_first(file):
    dataset = build(file, packing=True, cutoff_len=4000)
    assert dataset.origin(0).endswith(f"{file}:8 and 22 more") and len(dataset.origins(0)) == 30


def test_the_ledger_of_one_set_does_not_run_into_the_next(file):
    tokenizer, config = tiny_tokenizer(chat_template=CHATML), DataConfig(train_file=str(file), cutoff_len=60)
    context = EncodeContext(tokenizer, resolve(None, tokenizer), config)
    train, held_out = (build_dataset(part, Sft, context)
                       for part in split_validation(load_records(config, Conversation), 0.5, 7))
    assert train.ledger.counts[str(file)]["read"] == 30 and held_out.ledger.counts[str(file)]["read"] == 0
    rows = {entry.row for entry in train.ledger.entries}, {entry.row for entry in held_out.ledger.entries}
    assert all(rows) and not rows[0] & rows[1]


def test_the_same_file_elsewhere_names_its_own_rows(file, tmp_path):
    other = tmp_path / "elsewhere" / file.name
    other.parent.mkdir()
    other.write_bytes(file.read_bytes())
    assert build(file).fingerprint == build(other).fingerprint
    assert build(other).origin(0) == f"{other}:1" and build(file).origin(0) == f"{file}:1"


def test_evaluation_sets_are_saved_side_by_side(file, tmp_path):
    second, saved = tmp_path / "second.jsonl", str(tmp_path / "saved")
    write(second, 3)
    sizes = []
    for path in (file, second, file):
        config, tokenizer = DataConfig(eval_file=str(path), tokenized_path=saved), tiny_tokenizer(chat_template=CHATML)
        context = EncodeContext(tokenizer, resolve(None, tokenizer), config)
        sizes.append(len(build_dataset(load_records(config, Conversation, which="eval"), Sft, context)))
    assert sizes == [30, 3, 30]


def test_nothing_left_is_an_error_with_reasons(file):
    with pytest.raises(DataError, match="nothing to train on is left.*30 dropped: longer than cutoff_len"):
        build(file, cutoff_len=2, on_long="drop")


def test_token_ids_above_a_limit_are_found_with_their_row(file):
    dataset = build(file)
    limit = dataset.max_token_id
    assert limit == max(int(one.input_ids.max()) for one in dataset)
    (token, origin), = dataset.find_ids(limit)
    assert token == limit and any(origin == dataset.origin(i) and limit in dataset[i].input_ids for i in range(30))
    assert dataset.find_ids(limit + 1) == []


def test_the_first_example_is_shown_with_its_trained_tokens(file):
    shown = describe_first(build(file), tiny_tokenizer(chat_template=CHATML))
    assert shown.endswith("what colour is the sky 0<|im_end|>↵<|im_start|>assistant↵⟦blue 0 天空<|im_end|>⟧↵")


def test_indices_of_numpy_are_fine(file):
    dataset = build(file)
    assert dataset[np.int64(3)].index == 3 and [one.index for one in dataset[1:3]] == [1, 2]
    with pytest.raises(IndexError):
        dataset[30]
