"""Content fingerprints: what decides whether a prepared data set may be used again."""

import hashlib
import json
from collections.abc import Iterable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


CODE = {
    "danlu.data": "*.py", "danlu.data.formats": "**/*.py", "danlu.data.readers": "**/*.py",
    "danlu.templates": "**/*.py"}
CHUNK = 1 << 22


def of_files(paths: Iterable[Path]) -> str:
    """Return a hash of the names and contents of files."""
    digest = hashlib.blake2b(digest_size=20)
    for path in paths:
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


def sha1_of(path: Path) -> str:
    """Return the SHA-1 of a file in hexadecimal, as old registries name it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha1").hexdigest()


def of_values(*values: Any) -> str:
    """Return a hash of JSON-like values; anything else counts by its repr."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=False, default=repr)
    return hashlib.blake2b(text.encode(), digest_size=20).hexdigest()


def of_tokenizer(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return a hash of everything that decides which ids a text gets; padding and truncation state do not."""
    special = {name: str(value) for name, value in sorted(tokenizer.special_tokens_map.items())}
    if not tokenizer.is_fast:
        added = {str(token): index for index, token in tokenizer.added_tokens_decoder.items()}
        return of_values(type(tokenizer).__name__, tokenizer.get_vocab(), added, special, _switches(tokenizer))
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state.pop("padding", None)
    state.pop("truncation", None)
    return of_values(type(tokenizer).__name__, state, special, _switches(tokenizer))


def _switches(tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
    names = ("add_bos_token", "add_eos_token", "add_prefix_space", "split_special_tokens", "legacy")
    return {name: tokenizer.init_kwargs.get(name) for name in names}


@cache
def of_code() -> str:
    """Return a hash of the source that turns rows into tokens, so that no cache outlives the code that wrote it."""
    roots = [(Path(root), pattern) for name, pattern in CODE.items() for root in import_module(name).__path__]
    return of_files(path for root, pattern in roots for path in sorted(root.glob(pattern)))
