"""Files that appear whole or not at all: written beside their name and renamed together at the end."""

import json
import os
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import date, datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from danlu.core.errors import ConfigError, DataError

SUFFIXES = (".jsonl", ".ndjson", ".jsonlines")


def check_output(path: Path, inputs: Sequence[Path], *, overwrite: bool) -> None:
    """Refuse a name that is no JSON lines file, that is an input, or that exists and may not be replaced."""
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError("the output is a file of JSON lines", where=str(path), fix=f"end its name in {SUFFIXES[0]}")
    if any(path.resolve() == one.resolve() for one in inputs):
        raise ConfigError("the output is one of the inputs", where=str(path), fix="write to another file")
    if path.exists() and not overwrite:
        raise ConfigError("this file exists", where=str(path), fix="choose another name, or set overwrite: true")


def default_ledger(output: Path) -> Path:
    """Return `_NAME.ledger.jsonl` beside the output: reading its folder as data leaves names with `_` out."""
    return output.with_name(f"_{output.stem}.ledger.jsonl")


class WholeFiles:
    """A context in which files are opened under other names; leaving it without an error gives them theirs."""

    def __init__(self) -> None:
        self._names: list[tuple[Path, Path]] = []
        self._open = ExitStack()

    def open(self, path: Path) -> IO[bytes]:
        """Return a new file for binary writing that becomes `path`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
        self._names.append((temporary, path))
        return self._open.enter_context(temporary.open("wb"))

    def __enter__(self) -> "WholeFiles":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        try:
            self._open.close()
            if kind is None:
                for temporary, path in self._names:
                    temporary.replace(path)
        finally:
            for temporary, _ in self._names:
                temporary.unlink(missing_ok=True)


def json_line(value: Any, where: str) -> bytes:
    """Return the value as one line of JSON. Errors: DataError for what JSON cannot hold."""
    try:
        return json.dumps(value, ensure_ascii=False, default=_plain).encode("utf-8", "surrogatepass") + b"\n"
    except (TypeError, ValueError) as error:
        raise DataError(f"a value that JSON cannot hold: {error}", where=where, fix="leave this column out") from None


def _plain(value: Any) -> str:
    if isinstance(value, date | datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} {str(value)[:40]!r}")
