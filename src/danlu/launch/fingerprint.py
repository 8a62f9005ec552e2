"""One number for all that a step's result depends on: its keys, the files they name, the steps before it."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

CONTENT_LIMIT = 64 * 2**20  # bytes; of a larger file the size and the time of change stand for the content


def fingerprint(kind: str, values: Mapping[str, Any], upstream: Mapping[str, str], inside: Path) -> str:
    """Return the fingerprint of a step.

    `upstream` holds the run of each step it depends on; paths `inside` the pipeline's own folder are theirs, and not
    looked at again. Other paths count with their content (files) or the names, sizes and times in them (folders).
    """
    parts = {"kind": kind, "values": values, "upstream": dict(sorted(upstream.items())),
             "files": {str(path): _describe(path) for path in outside_paths(values, inside)}}
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def outside_paths(values: Mapping[str, Any], inside: Path) -> list[Path]:
    """Return the existing paths among the values, but for those inside the pipeline's folder."""
    root = inside.resolve()
    found = []
    for text in _texts(values):
        path = Path(text).expanduser()
        if path.exists() and not path.resolve().is_relative_to(root) and not root.is_relative_to(path.resolve()):
            found.append(path)
    return sorted(set(found))


def _texts(value: Any) -> Iterator[str]:
    """Yield the texts of a value that could be paths; a comma list gives each of its words."""
    if isinstance(value, str):
        yield from (word for word in {value, *(part.strip() for part in value.split(","))}
                    if word and len(word) < 1000 and "\0" not in word and "\n" not in word)
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _texts(one)
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _texts(one)


def _describe(path: Path) -> Any:
    if path.is_dir():
        return [[str(one.relative_to(path)), one.stat().st_size, one.stat().st_mtime_ns]
                for one in sorted(path.rglob("*")) if one.is_file()]
    if path.is_file() and path.stat().st_size <= CONTENT_LIMIT:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    return [path.stat().st_size, path.stat().st_mtime_ns]
