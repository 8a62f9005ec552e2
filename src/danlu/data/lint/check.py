"""One walk over the data: every row by itself, then what the rows are to each other."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from danlu.core.records import Preference, Record
from danlu.data.lint.finding import Finding, Report, short
from danlu.data.lint.near import MOST_CANDIDATES, Sketches
from danlu.data.lint.pointer import place_of, pointer_to, value_at
from danlu.data.lint.reading import Fault, ReadRow, RowReader
from danlu.data.lint.table import MOST_ROWS, Repeat, RowTable
from danlu.data.lint.texts import Identity, Suspicion, TextCheck, identity_of, is_whole, texts_of
from danlu.data.lint.tokens import TokenCheck, TokenFault
from danlu.data.registry import Source
from danlu.data.row_file import PlacedRow, RowFile

NOBODY = Identity(0, 0, 0)


@dataclass(slots=True)
class Lint:
    """Checks data sets; with `repairs`, `dropped` then maps rows to leave out to (code, the row they repeat)."""

    limit: int = 20
    repairs: bool = False
    controls: frozenset[str] = frozenset()
    tokens: TokenCheck | None = None
    report: Report = field(init=False)
    table: RowTable = field(default_factory=RowTable)
    dropped: dict[int, tuple[str, int]] = field(default_factory=dict)
    _sketches: Sketches = field(default_factory=Sketches)
    _readers: dict[int, RowReader] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.report = Report(self.limit)

    def run(self, sources: Sequence[Source], evals: Sequence[Source] = ()) -> Report:
        """Check training sources, and evaluation sources against them."""
        check = TextCheck(self.controls)
        for source, is_eval in [*((one, False) for one in sources), *((one, True) for one in evals)]:
            reader = RowReader(source)
            for read in reader:
                self._read(read, reader, check, is_eval=is_eval)
        if self.tokens is not None:
            self._add_token_faults(self.tokens.flush())
        self._compare()
        if self.table.is_full:
            self.report.notes.append(f"rows behind the first {MOST_ROWS:,} were not compared with others")
        return self.report

    def _read(self, read: ReadRow, reader: RowReader, check: TextCheck, *, is_eval: bool) -> None:
        self.table.open(read.file, is_eval=is_eval)
        self._readers[len(self.table.files) - 1] = reader
        if read.fault is not None:
            self._add_fault(read.file, read.row, read.fault)
        if read.row is None:
            return
        self.report.rows += not is_eval
        self.report.eval_rows += is_eval
        if read.record is None:
            self._remember(read.row, NOBODY)
            return
        for suspicion in check(read.record):
            self._add_suspicion(read.file, read.row, suspicion)
        if not is_eval and not self.table.is_full:
            self._sketches.add(len(self.table), _joined(read.record))
        self._remember(read.row, identity_of(read.record))
        if self.tokens is not None and not is_eval and is_whole(read.record):
            self._add_token_faults(self.tokens.add(read.file, read.row, read.record))

    def _remember(self, row: PlacedRow, identity: Identity) -> None:
        if not self.table.is_full:
            self.table.add(row, identity)

    def _add_fault(self, file: RowFile, row: PlacedRow | None, fault: Fault) -> None:
        if not self.report.is_listed(fault.code):
            self.report.count(fault.code)
            return
        line, column = fault.line, fault.column
        if row is not None and line is None:
            line, column = place_of(file.path, row, fault.pointer)
        value = value_at(row.value, fault.pointer) if row is not None and row.value is not None else None
        self.report.add(Finding(
            fault.code, str(file.path), row.number if row else 0, fault.reason, fault.pointer,
            "" if value is None else short(value), line, column, fault.cure))

    def _add_suspicion(self, file: RowFile, row: PlacedRow, one: Suspicion) -> None:
        if not self.report.is_listed(one.code):
            self.report.count(one.code)
            return
        pointer = pointer_to(row.value, one.words) if one.words else ""
        line, column = place_of(file.path, row, pointer, one.words)
        value = value_at(row.value, pointer) if pointer else None
        self.report.add(Finding(one.code, str(file.path), row.number, one.reason, pointer,
                                _around(value, one.words) if isinstance(value, str) else "", line, column))

    def _add_token_faults(self, faults: Iterable[TokenFault]) -> None:
        for one in faults:
            line, column = place_of(one.file.path, one.row, "") if self.report.is_listed(one.code) else (None, None)
            self.report.add(Finding(one.code, str(one.file.path), one.row.number, one.reason, line=line, column=column))

    def _compare(self) -> None:
        for repeat in self.table.leaks():
            self._add_repeat("leak", repeat, f"{self.table.named(repeat.twin)} of the evaluation data asks the same")
        for repeat in self.table.duplicates():
            self._add_repeat("duplicate", repeat, f"says the same as {self.table.named(repeat.twin)}"
                             + (f"; {repeat.number} such rows" if repeat.number > 2 else ""))
        for repeat in self.table.contradictions():
            code, what = self._disagreement(repeat)
            self._add_repeat(code, repeat, f"{what} {self.table.named(repeat.twin)}"
                             + (f"; {repeat.number} answers in all" if repeat.number > 2 else ""))
        for pair in self._sketches.pairs(self.table.hashes(), self._text_of):
            self._add_repeat("near-duplicate", Repeat(pair.later, pair.earlier, 2),
                             f"{pair.similarity:.2f} alike with {self.table.named(pair.earlier)}")
        if self._sketches.is_cut:
            self.report.notes.append(f"near-duplicates: at most {MOST_CANDIDATES:,} candidates were compared; "
                                     "danlu data dedup compares all")

    def _disagreement(self, repeat: Repeat) -> tuple[str, str]:
        if self._readers[self.table.owner(repeat.row)].record_type is Preference:
            return "reversed-pair", "prefers the other answer than"
        return "contradiction", "answers otherwise than"

    def _add_repeat(self, code: str, repeat: Repeat, reason: str) -> None:
        if self.repairs and code in ("duplicate", "leak"):
            self.dropped.setdefault(repeat.row, (code, repeat.twin))
        if not self.report.is_listed(code):
            self.report.count(code)
            return
        file, row = self.table.locate(repeat.row)
        line, column = place_of(file.path, row, "")
        self.report.add(Finding(code, str(file.path), row.number, reason, "",
                                short(_last_words(self._record(repeat.row))), line, column))

    def _record(self, index: int) -> Record:
        file, row = self.table.locate(index)
        return self._readers[self.table.owner(index)].record(file, row)

    def _text_of(self, index: int) -> str:
        return _joined(self._record(index))


def _joined(record: Record) -> str:
    return "\n".join(texts_of(record))


def _last_words(record: Record) -> str:
    return " | ".join(text for text in texts_of(record) if text)


def _around(text: str, words: str) -> str:
    """Return the text around the words in question."""
    at = max(0, text.find(words) - 30)
    return short(text[at:at + 200]) if at == 0 else "…" + short(text[at:at + 200])
