"""`--fix`: the rows that are good or can be mended, in a new file, and beside it a ledger of every change.

No word is invented. A dialogue is cut to its longest valid part, a number becomes the string it is written as; a row
that this does not save is left out, and so are exact duplicates and rows that evaluation data asks too.
"""

import copy
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from danlu.core.errors import DataError
from danlu.core.records import Origin
from danlu.data.formats.sharegpt import MESSAGES
from danlu.data.lint.pointer import value_at
from danlu.data.lint.reading import ReadRow, RowReader, code_of
from danlu.data.lint.table import RowTable
from danlu.data.lint.texts import is_whole
from danlu.data.registry import Source
from danlu.data.row_format import RowProblem, first_present

CUT = ("broken-alternation", "no-final-answer", "empty-turn")
MOST_NUMBERS = 100
SUFFIXES = (".jsonl", ".json")


class Change(NamedTuple):
    """What was done to a row: mended or dropped, why, and what changed in it."""

    action: str
    code: str
    reason: str
    pointer: str = ""


class Repaired(NamedTuple):
    """Where the rows and their ledger are, and how many were kept, mended and dropped."""

    path: Path
    ledger: Path
    counts: Counter[str]


def check_target(out: Path) -> None:
    """Refuse a target that exists, or of a type that cannot hold rows. Errors: DataError."""
    where = f"--fix {out}"
    if out.suffix.lower() not in SUFFIXES:
        raise DataError("repaired rows are written as .jsonl or .json", where=where, fix="rename the target")
    if out.exists() or ledger_of(out).exists():
        raise DataError("the target exists", where=where, fix="choose another name, or remove it and its ledger")
    if not out.parent.is_dir():
        raise DataError(f"the folder {out.parent} does not exist", where=where, fix="make it first")


def ledger_of(out: Path) -> Path:
    """Return the name of the ledger beside repaired rows."""
    return out.with_name(f"{out.name}.ledger.jsonl")


def write_repaired(sources: Iterable[Source], table: RowTable, dropped: Mapping[int, tuple[str, int]],
                   out: Path) -> Repaired:
    """Write the repaired rows and their ledger; both appear whole or not at all."""
    counts: Counter[str] = Counter()
    targets = (out, ledger_of(out))
    partial = [one.with_name(f".{one.name}.part-{os.getpid()}") for one in targets]
    try:
        with ExitStack() as stack:
            rows, ledger = (stack.enter_context(one.open("w", encoding="utf-8")) for one in partial)
            writer = _Rows(rows, is_list=out.suffix.lower() == ".json")
            for read, value, changes in _decided(sources, table, dropped):
                counts[_outcome(changes)] += 1
                ledger.writelines(json.dumps(_entry(read, one), ensure_ascii=False) + "\n" for one in changes)
                writer.add(value)
            writer.close()
        for temporary, target in zip(reversed(partial), reversed(targets), strict=True):
            os.replace(temporary, target)
    finally:
        for temporary in partial:
            temporary.unlink(missing_ok=True)
    return Repaired(out, targets[1], counts)


def _outcome(changes: list[Change]) -> str:
    if not changes:
        return "kept"
    return "dropped" if any(one.action != "mended" for one in changes) else "mended"


def _entry(read: ReadRow, change: Change) -> dict[str, Any]:
    return {"file": str(read.file.path), "row": read.row.number if read.row else 0, "action": change.action,
            "code": change.code, "pointer": change.pointer, "reason": change.reason}


def _decided(sources: Iterable[Source], table: RowTable,
             dropped: Mapping[int, tuple[str, int]]) -> Iterator[tuple[ReadRow, Any, list[Change]]]:
    """Yield every row with the value to write (None: leave it out) and what was changed."""
    index = -1
    for source in sources:
        reader = RowReader(source)
        for read in reader:
            index += read.row is not None
            if index in dropped and read.row is not None:
                code, twin = dropped[index]
                yield read, None, [Change("dropped", code, f"as {table.named(twin)}")]
            else:
                yield read, *_repaired(read, reader)


def _repaired(read: ReadRow, reader: RowReader) -> tuple[Any, list[Change]]:
    if read.row is None or read.row.value is None:
        fault = read.fault
        reason = fault.reason if fault else ""
        unread = "; rows behind it were not read" if read.row is None else ""
        return None, [Change("dropped", fault.code if fault else "unreadable", reason + unread)]
    if read.fault is None:
        if read.record is not None and not is_whole(read.record):
            return None, [Change("dropped", "lone-surrogate", "half of a surrogate pair")]
        return read.row.value, []
    origin = Origin(str(read.file.path), read.row.number)
    value, changes = mend(read.row.value, reader, origin)
    if value is None:
        return None, [Change("dropped", read.fault.code, read.fault.reason, read.fault.pointer)]
    return value, changes


def mend(value: Any, reader: RowReader, origin: Origin) -> tuple[Any, list[Change]]:
    """Return a row that its format can read, and what was changed; (None, []) when that cannot be had."""
    changed, changes = copy.deepcopy(value), list[Change]()
    for _ in range(MOST_NUMBERS):
        problem = _problem(changed, reader, origin)
        if problem is None:
            return changed, changes
        code = code_of(problem)
        found = value_at(changed, problem.pointer)
        if code == "wrong-type" and isinstance(found, int | float) and not isinstance(found, bool):
            _set(changed, problem.pointer, str(found))
            changes.append(Change("mended", code, f"the number {found} written as a string", problem.pointer))
        elif code in CUT:
            return _cut(changed, changes, code, reader, origin)
        else:
            break
    return None, []


def _problem(value: Any, reader: RowReader, origin: Origin) -> RowProblem | None:
    try:
        reader.read(value, origin)
    except RowProblem as problem:
        return problem
    except DataError as error:
        return RowProblem("", error.what, "")
    return None


def _cut(value: Any, changes: list[Change], code: str, reader: RowReader, origin: Origin) -> tuple[Any, list[Change]]:
    """Cut a dialogue to its first turns that read well, without the turns before the first question where needed."""
    name = first_present(value, _turn_names(reader)) if isinstance(value, Mapping) else None
    turns = value[name] if name is not None else value
    if not isinstance(turns, list):
        return None, []
    for first in (0, 1):
        for end in range(len(turns), 1, -1):
            kept = turns[first:end]
            shorter = kept if name is None else {**value, name: kept}
            if _problem(shorter, reader, origin) is None:
                what = f"turns {first + 1} to {end} of {len(turns)} kept"
                return shorter, [*changes, Change("mended", code, what, f"/{name}" if name else "")]
    return None, []


def _turn_names(reader: RowReader) -> tuple[str, ...]:
    return reader.source.layout.column("messages", *MESSAGES)


def _set(value: Any, pointer: str, new: str) -> None:
    parent, _, last = pointer.rpartition("/")
    holder = value_at(value, parent)
    if isinstance(holder, list):
        holder[int(last)] = new
    else:
        holder[last] = new


class _Rows:
    """Writes rows as lines, or as the elements of one list."""

    def __init__(self, file: TextIO, *, is_list: bool) -> None:
        self._file, self._is_list, self._count = file, is_list, 0

    def add(self, value: Any) -> None:
        """Write one row, unless it is None."""
        if value is None:
            return
        # Lone surrogates stay escaped: a file cannot hold them.
        line = json.dumps(value, ensure_ascii=False, default=str)
        if not line.isascii() and any("\ud800" <= letter <= "\udfff" for letter in line):
            line = json.dumps(value, default=str)
        if self._is_list:
            self._file.write(("[\n" if not self._count else ",\n") + line)
        else:
            self._file.write(line + "\n")
        self._count += 1

    def close(self) -> None:
        """End the list."""
        if self._is_list:
            self._file.write("\n]\n" if self._count else "[]\n")
