"""What lint finds: one code for each kind of fault, with its severity, meaning and cure; and the bounded report."""

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

Severity = Literal["error", "warning"]
LONGEST_VALUE = 80


class Kind(NamedTuple):
    """One kind of fault. An error stops a run, loses rows or spoils a measurement; a warning deserves a look."""

    severity: Severity
    meaning: str
    cure: str


CODES: dict[str, Kind] = {
    "unreadable": Kind("error", "the file cannot be read", "write the file again"),
    "truncated-file": Kind("error", "the file ends early", "download or write the file again"),
    "no-rows": Kind("error", "the file holds no row", "give a file that has rows"),
    "broken-json": Kind("error", "text that is no JSON", "mend the place shown, or drop the row with --fix"),
    "not-utf8": Kind("error", "bytes that are no UTF-8", "save the file as UTF-8: iconv -f gb18030 -t utf-8 OLD > NEW"),
    "broken-csv": Kind("error", "text that is no CSV", "quote cells that hold commas, quotes or line breaks"),
    "ragged-csv": Kind("error", "a row with more or fewer cells than the header", "quote cells that hold commas"),
    "endless-line": Kind("error", "a line too long to be a row", "give every row a line of its own"),
    "unknown-format": Kind("error", "rows of no known format", "name its columns in dataset_info.json"),
    "mixed-formats": Kind("error", "rows of another format than the first", "keep one format in a file"),
    "wrong-type": Kind("error", "a value that is not of the kind expected", "write the value that is expected"),
    "missing-key": Kind("error", "a key that a row must have is absent", "add the key, or drop the row with --fix"),
    "unknown-role": Kind("error", "a role that the format does not have", "rename the role, or declare its tag"),
    "no-turns": Kind("error", "a dialogue without turns", "drop the row with --fix"),
    "empty-turn": Kind("error", "a turn without words", "write the turn, or cut the dialogue before it with --fix"),
    "broken-alternation": Kind("error", "turns out of order", "add the missing turn, or cut before it with --fix"),
    "no-final-answer": Kind("error", "a dialogue that does not end on the assistant",
                            "add the answer, or cut the open question with --fix"),
    "equal-answers": Kind("error", "a preference pair of equal answers", "drop the row with --fix"),
    "lone-surrogate": Kind("error", "half of a surrogate pair, which no tokenizer takes",
                           "write the whole character, or drop the row with --fix"),
    "template-refuses": Kind("error", "a dialogue that the template cannot express", "choose another template"),
    "leak": Kind("error", "an evaluation prompt inside the training data", "drop the training row with --fix"),
    "duplicate": Kind("warning", "a row that is there already", "drop it with --fix"),
    "near-duplicate": Kind("warning", "a row almost the same as another", "see danlu data dedup"),
    "contradiction": Kind("warning", "the same prompt with different answers",
                          "keep one answer, unless they are meant as several good ones"),
    "reversed-pair": Kind("warning", "a pair that is ranked the other way elsewhere", "keep one of the two"),
    "control-token": Kind("warning", "a control token written in text",
                          "remove it; danlu's templates train it as plain text, never as the token"),
    "placeholder": Kind("warning", "a placeholder that was never filled in", "replace it by the real name"),
    "replacement-character": Kind("warning", "U+FFFD, left by a wrong decoding", "get the text again from its source"),
    "misread-encoding": Kind("warning", "UTF-8 read as another encoding", "get the text again from its source"),
    "control-character": Kind("warning", "an invisible control character", "remove it"),
    "empty-text": Kind("warning", "an empty text, which training leaves out", "drop the row with --fix"),
    "long-line": Kind("warning", "a row of more than a million characters", "split it, if it is many rows in one"),
    "too-long": Kind("warning", "a row longer than cutoff_len", "raise cutoff_len, or choose on_long"),
    "eos-lost": Kind("warning", "an answer cut before its end-of-turn token", "raise cutoff_len, or on_long: drop"),
    "row-lost": Kind("warning", "a row of which nothing can be trained", "raise cutoff_len, or drop the row"),
    "unknown-token": Kind("warning", "text that the tokenizer cannot express", "use another tokenizer, or extend it"),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault at one place. `row` 0 is the file as a whole; line and column count from 1, None where unknown."""

    code: str
    source: str
    row: int
    reason: str
    pointer: str = ""
    value: str = ""
    line: int | None = None
    column: int | None = None
    cure: str = ""

    @property
    def severity(self) -> Severity:
        """error or warning."""
        return CODES[self.code].severity

    @property
    def where(self) -> str:
        """`file:line:column` as far as it is known, else `file row N`."""
        if self.line is None:
            return f"{self.source} row {self.row}" if self.row else self.source
        return f"{self.source}:{self.line}" + (f":{self.column}" if self.column is not None else "")

    def to_dict(self) -> dict[str, Any]:
        """Return the finding as JSON values."""
        return {"code": self.code, "severity": self.severity, "file": self.source, "row": self.row, "line": self.line,
                "column": self.column, "pointer": self.pointer, "value": self.value, "reason": self.reason,
                "cure": self.cure or CODES[self.code].cure}


@dataclass(slots=True)
class Report:
    """All counts, and the first `limit` findings of each code."""

    limit: int = 20
    rows: int = 0
    eval_rows: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def is_listed(self, code: str) -> bool:
        """Say whether the next finding of this code is kept, so that its place is worth working out."""
        return self.counts[code] < self.limit

    def add(self, finding: Finding) -> None:
        """Count a finding, and keep it while there are few of its code."""
        if self.is_listed(finding.code):
            # Half of a surrogate pair, which a file may hold as an escape, cannot be printed.
            self.findings.append(replace(finding, value=_printable(finding.value), reason=_printable(finding.reason)))
        self.counts[finding.code] += 1

    def count(self, code: str, number: int = 1) -> None:
        """Count findings that are not listed."""
        self.counts[code] += number

    def total(self, severity: Severity) -> int:
        """Return the number of findings of a severity."""
        return sum(number for code, number in self.counts.items() if CODES[code].severity == severity)

    def sorted(self) -> list[Finding]:
        """Return the kept findings by file and row."""
        return sorted(self.findings, key=lambda one: (one.source, one.line or one.row, one.row, one.column or 0))

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {"rows": self.rows, "eval_rows": self.eval_rows, "errors": self.total("error"),
                "warnings": self.total("warning"),
                "counts": dict(self.counts), "findings": [one.to_dict() for one in self.sorted()],
                "listed_per_code": self.limit, "notes": self.notes}


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def short(value: Any) -> str:
    """Return a value on one line of at most 80 characters."""
    text = value if isinstance(value, str) else repr(value)
    text = " ".join(text[:4 * LONGEST_VALUE].split())
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE - 1]}…"
