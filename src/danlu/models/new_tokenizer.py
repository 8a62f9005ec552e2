"""Train a byte-level BPE tokenizer on text files. Any text round-trips; digits stay single."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from danlu.core.console import notice
from danlu.core.errors import DataError, UserError

END, PAD = "<|endoftext|>", "<|pad|>"


def train_tokenizer(
    files: Sequence[str], vocab_size: int, *, special_tokens: Sequence[str] = (), text_column: str = "text",
    max_length: int | None = None,
) -> PreTrainedTokenizerFast:
    """Return a tokenizer of at most `vocab_size` tokens, special ones included (Sennrich et al. 2016, on bytes).

    Raises UserError for a missing file and DataError for one without text.
    """
    special = list(dict.fromkeys((END, PAD, *special_tokens)))
    smallest = 256 + len(special)
    if vocab_size < smallest:
        raise UserError(f"{vocab_size} tokens cannot hold the 256 bytes and {len(special)} special tokens",
                        where="vocab_size", fix=f"set vocab_size to {smallest} or more")
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False)
    raw.train_from_iterator(_texts(files, text_column), trainer)
    if raw.get_vocab_size() < vocab_size:
        notice(f"the text gives {raw.get_vocab_size()} tokens, fewer than vocab_size {vocab_size}")
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token=END, eos_token=END, pad_token=PAD,
        additional_special_tokens=list(special_tokens), clean_up_tokenization_spaces=False,
        **({} if max_length is None else {"model_max_length": max_length}))


def blank_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer that knows its special tokens and nothing else, to ask a template what it writes."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE()), bos_token=END, eos_token=END, pad_token=PAD)


def _texts(files: Sequence[str], column: str) -> Iterator[str]:
    for name in files:
        path = Path(name).expanduser()
        if not path.is_file():
            raise UserError(f"file {name} does not exist", where="tokenizer_corpus", fix="check the path")
        found = False
        for text in _read(path, column):
            found = True
            yield text
        if not found:
            raise DataError("no text in this file", where=str(path), fix="name a file that holds text")


def _read(path: Path, column: str) -> Iterator[str]:
    suffix = path.suffix.lower()
    if suffix == ".json":
        yield from _strings(_parse(path.read_text(encoding="utf-8-sig"), str(path)), column)
        return
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            if suffix == ".jsonl":
                yield from _strings(_parse(line, f"{path}:{number}"), column)
            else:
                yield line


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"broken JSON: {error}", where=where, fix="mend or remove it") from error


def _strings(value: Any, column: str) -> Iterator[str]:
    """Yield the text column of each row; all strings of rows that do not have it."""
    if isinstance(value, str):
        if value.strip():
            yield value
    elif isinstance(value, dict):
        inner = [value[column]] if isinstance(value.get(column), str) else list(value.values())
        for one in inner:
            yield from _strings(one, column)
    elif isinstance(value, list):
        for one in value:
            yield from _strings(one, column)
