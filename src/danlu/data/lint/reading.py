"""Every row of a data set with its record or its fault: reads as a run does, but goes on after a bad row."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from danlu.core.errors import DataError
from danlu.core.records import Conversation, Feedback, Origin, Preference, Prompt, Record, Text
from danlu.data.answers import has_ranking
from danlu.data.lint.finding import short
from danlu.data.registry import Source
from danlu.data.row_file import PlacedRow, RowFile, open_rows
from danlu.data.row_format import FORMATS, RowFormat, RowProblem, detect, kind_of

FILE_FAULTS = (
    ("broken JSON", "broken-json"), ("not UTF-8", "not-utf8"), ("broken CSV", "broken-csv"),
    ("the header", "broken-csv"), ("not a whole", "truncated-file"), ("truncated", "truncated-file"),
    ("not gzip", "unreadable"), ("not zstd", "unreadable"),
    ("the line is longer", "endless-line"), ("the row is longer", "endless-line"),
    ("ends", "truncated-file"))
ROW_FAULTS = (
    ("found", "half of a character", "lone-surrogate"),
    ("found", "an empty ", "empty-turn"), ("found", "no turns", "no-turns"),
    ("found", "the same answer ", "equal-answers"),
    ("expected", "an assistant turn at the end", "no-final-answer"),
    ("found", "the keys ", "missing-key"), ("expected", "one of ", "unknown-role"))
TURNS = ("a user turn", "a tool turn", "an assistant turn", "a system turn")


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a row gives no record: code of the finding, JSON pointer, reason; line and column when the reader knows."""

    code: str
    reason: str
    pointer: str = ""
    line: int | None = None
    column: int | None = None
    cure: str = ""


@dataclass(frozen=True, slots=True)
class ReadRow:
    """A row as it was read: record or fault. `row` None: the fault is of the file, which ends there."""

    file: RowFile
    row: PlacedRow | None
    record: Record | None
    fault: Fault | None = None


class RowReader:
    """Reads the rows of one data set; the format is that of its first readable row unless one is declared."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.files = _files(source)
        self.format_name = "text" if source.layout.text_column else source.formatting
        self._format: RowFormat | None = FORMATS[self.format_name]() if self.format_name else None
        self.record_type: type[Record] | None = None

    def __iter__(self) -> Iterator[ReadRow]:
        for file in self.files:
            yield from self._walk(file)

    def read(self, value: Any, origin: Origin) -> Record:
        """Return the record of a row. Errors: RowProblem, DataError."""
        if self._format is None or self.record_type is None:
            raise DataError("the format is not known yet", where=str(origin))
        return self._format.read(value, self.source.layout, origin, self.record_type)

    def record(self, file: RowFile, row: PlacedRow) -> Record:
        """Return the record of a row that was read before."""
        return self.read(row.value, Origin(str(file.path), row.number))

    def _walk(self, file: RowFile) -> Iterator[ReadRow]:
        rows = file.scan()
        count = 0
        while True:
            try:
                row = next(rows, None)
            except DataError as error:
                yield ReadRow(file, None, None, fault_of(error, str(file.path)))
                return
            if row is None:
                break
            count += 1
            yield self._one(file, row)
        if not count:
            yield ReadRow(file, None, None, Fault("no-rows", "the file is empty"))

    def _one(self, file: RowFile, row: PlacedRow) -> ReadRow:
        if row.error is not None:
            return ReadRow(file, row, None, fault_of(row.error, str(file.path)))
        origin = Origin(str(file.path), row.number)
        try:
            fault = self._settle(row.value, origin)
            if fault is None:
                return ReadRow(file, row, self.read(row.value, origin))
        except RowProblem as problem:
            fault = self._problem(row.value, problem)
        except DataError as error:
            fault = Fault("unknown-format", error.what, cure=error.fix)
        return ReadRow(file, row, None, fault)

    def _settle(self, value: Any, origin: Origin) -> Fault | None:
        """Choose format and kind of record by the first row that shows them."""
        if self._format is not None and self.record_type is not None:
            return None
        fitting: list[tuple[str, type[Record]]] = []
        for kind in (*_kinds(self.source, value), Prompt):
            # A dialogue that lacks its answer reads well as a prompt, and is a fault all the same.
            if kind is Prompt and fitting:
                break
            name = self.format_name or detect(value, kind)
            reads = None if name is None else self._reads(name, value, origin, kind)
            if name is not None and reads is not None:
                fitting = [(name, kind)] if reads else [*fitting, (name, kind)]
            if reads:
                break
        if not fitting:
            keys = short(f"the keys {', '.join(map(str, value))}") if isinstance(value, dict) else kind_of(value)
            return Fault("unknown-format", f"no known format has {keys}")
        self.format_name, self.record_type = fitting[0]
        self._format = FORMATS[self.format_name]()
        return None

    def _reads(self, name: str, value: Any, origin: Origin, kind: type[Record]) -> bool | None:
        """Say whether a format reads the row as such a record; None when it never gives such records."""
        try:
            FORMATS[name]().read(value, self.source.layout, origin, kind)
        except RowProblem:
            return False
        except DataError:
            return None
        return True

    def _other_format(self, value: Any) -> str | None:
        """Return the format that the row has instead, of any kind of record; a lone column is no prose."""
        for kind in dict.fromkeys((self.record_type, Conversation, Preference, Text)):
            name = detect(value, kind)
            is_prose = name == "text" and isinstance(value, Mapping) and "text" in value
            if name not in (None, self.format_name) and (name != "text" or is_prose):
                return name
        return None

    def _problem(self, value: Any, problem: RowProblem) -> Fault:
        other = None if self.source.formatting else self._other_format(value)
        if other is not None:
            return Fault("mixed-formats", f"the row is {other}, the rows before it are {self.format_name}")
        reason = f"found {problem.found}, expected {problem.expected}"
        return Fault(code_of(problem), reason, problem.pointer)


def _kinds(source: Source, value: Any) -> tuple[type[Record], ...]:
    columns = source.layout.columns or {}
    keys = set(value) if isinstance(value, Mapping) else set()
    if source.ranking:
        return (Preference,)
    if columns.get("kto_tag"):
        return (Feedback,)
    if keys & {"chosen", "rejected"} or has_ranking(value):
        return (Preference, Conversation)
    if isinstance(value, Mapping) and isinstance(value.get("label"), bool):
        return (Feedback, Conversation)
    return (Conversation, Preference)


def code_of(problem: RowProblem) -> str:
    """Return the code of what is wrong in a row."""
    for side, start, code in ROW_FAULTS:
        if getattr(problem, side).startswith(start):
            return code
    if problem.found.startswith(TURNS):
        return "broken-alternation"
    return "wrong-type"


def fault_of(error: DataError, path: str) -> Fault:
    """Return what an error of a reader says of its row or file."""
    code = next((code for start, code in FILE_FAULTS if error.what.startswith(start)), "unreadable")
    if "cells where the header" in error.what:
        code = "ragged-csv"
    numbers = [int(part) for part in error.where.removeprefix(path).split(":") if part.isdigit()]
    line, column = numbers[0] if numbers else None, numbers[1] if len(numbers) > 1 else None
    return Fault(code, error.what, line=line, column=column, cure=error.fix)


def _files(source: Source) -> tuple[RowFile, ...]:
    if source.hub:
        from danlu.data.hub import HubRows

        return (HubRows(source.hub),)
    return tuple(open_rows(path) for path in source.files)
