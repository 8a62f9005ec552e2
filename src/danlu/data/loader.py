"""From a configuration to records: rows are checked on a first walk and read again when they are needed.

Memory holds two integers a row, never the rows. Every row that is not used is in the ledger.
"""

from array import array
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from typing import Any, Protocol, overload

import numpy as np

from danlu.core.console import notice, say, warn
from danlu.core.errors import ConfigError, DataError, did_you_mean
from danlu.core.records import Conversation, Feedback, Graded, Origin, Preference, Prompt, Record, Text
from danlu.data import fingerprint
from danlu.data.answers import has_pair, has_ranking
from danlu.data.config import DataConfig
from danlu.data.formats.text import USUAL
from danlu.data.hub import HubRows
from danlu.data.ledger import Ledger
from danlu.data.mixing import Places, mix, sample, split
from danlu.data.registry import UNREADABLE, Source, find_sources
from danlu.data.row_file import PlacedRow, RowFile, open_rows
from danlu.data.row_format import FORMATS, NOUNS, VERDICTS, Layout, RowFormat, RowProblem, detect, kind_of
from danlu.data.row_values import first_present, keys_of

DEFAULT_SEED = 42


class SourceRows:
    """The rows of one data set that its format can read: number and place of each."""

    def __init__(self, source: Source, record_type: type[Record], config: DataConfig, ledger: Ledger) -> None:
        self.source, self.record_type, self.config, self.ledger = source, record_type, config, ledger
        self.files: tuple[RowFile, ...] = _open(source)
        formatting = "text" if source.layout.text_column else source.formatting
        self._format: RowFormat | None = FORMATS[formatting]() if formatting else None
        self._seen: set[str] = set()

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the contents of the files and of how they are read."""
        contents = fingerprint.of_files(file.path for file in self.files if self.source.hub is None)
        contents += "".join(file.fingerprint for file in self.files if isinstance(file, HubRows))
        return fingerprint.of_values(
            contents, repr(self.source.hub), self.source.formatting, repr(self.source.layout), self.source.num_samples,
            self.record_type.__name__)

    @cached_property
    def kept(self) -> tuple["array[int]", "array[int]", "array[int]"]:
        """Index of file, row number and place of every good row; at most `max_samples` when no more are needed."""
        files, numbers, places = array("q"), array("q"), array("q")
        limit = None if self.source.num_samples is not None else self.config.max_samples
        for index, row in islice(self._good_rows(), limit):
            files.append(index)
            numbers.append(row.number)
            places.append(row.place)
        if not files:
            raise self.no_rows()
        self.warn_of_absent_columns()
        return files, numbers, places

    def __len__(self) -> int:
        return len(self.kept[0])

    def __getitem__(self, index: int) -> Record:
        files, numbers, places = self.kept
        return self.read_at(files[index], places[index], numbers[index])

    def read_at(self, index: int, place: int, number: int) -> Record:
        """Return the record of a row that `check` has found good, by its file, place and number."""
        file = self.files[index]
        origin = Origin(str(file.path), number)
        return self._chosen.read(file.read(place), self.source.layout, origin, self.record_type)

    def no_rows(self) -> DataError:
        """Return the error for a data set of which no row can be used."""
        return _no_rows(_where(self.files), self.ledger)

    @property
    def _chosen(self) -> RowFormat:
        if self._format is None:
            raise RuntimeError(f"{self.source.name}: rows are read before the format is known")
        return self._format

    def _good_rows(self) -> Iterator[tuple[int, PlacedRow]]:
        for index, file in enumerate(self.files):
            for row in file.scan():
                self.ledger.count(str(file.path), "read")
                if self.check(file, row) is not None:
                    yield index, row

    def check(self, file: RowFile, row: PlacedRow) -> Record | None:
        """Return the record of a row; None, with an entry in the ledger, when it is left out."""
        origin = Origin(str(file.path), row.number)
        try:
            record = self._read(row, origin)
        except DataError as error:
            if self.config.on_bad_row == "error":
                raise
            self.ledger.drop(origin, "bad row", error.what)
            return None
        if isinstance(record, Text) and not record.text.strip():
            self.ledger.drop(origin, "empty text")
            return None
        return record

    def _read(self, row: PlacedRow, origin: Origin) -> Record:
        """Return the row's record. Errors: DataError with file, line, JSON pointer, what was found and expected."""
        if row.error:
            raise row.error
        if isinstance(row.value, dict):
            self._seen.update(row.value)
        line = row.line or row.number
        where, prefix = f"{origin.source}:{line}", f"row {row.number}, " if line != row.number else ""
        if self._format is None:
            name = detect(row.value, self.record_type)
            # The only column of strings beside ranked answers is their prompt, and no prose.
            if name is None or name == "text" and has_ranking(row.value):
                raise DataError(prefix + _unknown_row(row.value, self.record_type), where=where,
                                fix=_other_stage(row.value, self.record_type) or _how_to_declare())
            self._format = FORMATS[name]()
            self._announce(name, row.value)
        try:
            return self._format.read(row.value, self.source.layout, origin, self.record_type)
        except RowProblem as problem:
            raise DataError(
                f"{prefix}{problem.pointer or '/'}: found {problem.found}, expected {problem.expected}", where=where,
                fix=self._fix(row.value)) from None

    def _fix(self, row: Any) -> str:
        """Return what to do about a row that cannot be read; it may be of another kind than the rows before."""
        skip = "mend the row, or set on_bad_row: skip to leave such rows out and list them in data_ledger.jsonl"
        if self.record_type in (Conversation, Text) and has_pair(row):
            return f"rows with a chosen and a rejected answer are for the stages rm and dpo; or {skip}"
        other = detect(row, self.record_type)
        if self.source.formatting or other in (None, "text") or isinstance(self._format, FORMATS[str(other)]):
            return skip
        return f"this row looks like {other}, unlike the rows before it: give each format a file of its own; or {skip}"

    def warn_of_absent_columns(self) -> None:
        """Name declared columns that no row read so far has."""
        declared = {name for name in (self.source.layout.columns or {}).values() if name}
        for name in sorted(declared - self._seen):
            hint = did_you_mean(name, self._seen)
            warn(f'data {self.source.name}: dataset_info.json names the column "{name}", which no row has; {hint}')

    def _announce(self, name: str, row: Any) -> None:
        say(f"data {self.source.name}: format {name}, seen from its first row")
        verdict = next((one for one in VERDICTS if isinstance(row, dict) and isinstance(row.get(one), bool)), None)
        if verdict and self.record_type is Conversation:
            warn(f'data {self.source.name}: the column "{verdict}" holds verdicts, which this stage does not read: '
                 "answers marked false are trained like the others (stage kto uses them)")
        for media in UNREADABLE:
            if isinstance(row, dict) and row.get(media) and not self.source.formatting:
                warn(f'data {self.source.name}: the column "{media}" is not read: danlu trains on text alone')
        layout = self.source.layout
        guessed = isinstance(row, dict) and first_present(row, USUAL) is None and not layout.text_column
        if name == "text" and guessed and self.record_type is Conversation:
            notice(f"{self.source.name}: no column is an answer, so the only text is trained as prose "
                   f"({keys_of(row)}); name the columns in dataset_info.json if it is a question")
        if self.record_type is Text and FORMATS[name].is_dialogue:
            notice(f"{self.source.name} holds dialogue: each row's turns, one below the other, are one document")


class Part(Protocol):
    """Rows of one data set by their position."""

    source: Source
    files: tuple[RowFile, ...]

    def __getitem__(self, index: int) -> Record: ...


class Records(Sequence[Record]):
    """The records of a run in their order. Nothing is read before the first length, item or walk."""

    def __init__(self, parts: Sequence[Part], places: Callable[[], Places], key: str, which: str,
                 ledger: Ledger) -> None:
        self.parts, self.fingerprint, self.which, self.ledger = parts, key, which, ledger
        self._find_places = places

    @cached_property
    def places(self) -> Places:
        """(N, 2): data set, position in it."""
        return self._find_places()

    @property
    def names(self) -> tuple[str, ...]:
        """The data sets, in the order the user named them."""
        return tuple(part.source.name for part in self.parts)

    @property
    def files(self) -> tuple[str, ...]:
        """The files read, in order."""
        return tuple(str(file.path) for part in self.parts for file in part.files)

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Record]: ...

    def __getitem__(self, index: int | slice) -> Record | Sequence[Record]:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        part, row = self.parts[int(self.places[index, 0])], int(self.places[index, 1])
        return part[row]

    def __iter__(self) -> Iterator[Record]:
        return (self[index] for index in range(len(self)))


def load_records(config: DataConfig, record_type: type[Record], *, which: str = "train",
                 seed: int = DEFAULT_SEED) -> Records:
    """Return the records of `which` = train or eval as `record_type`, mixed as the configuration says.

    Errors: ConfigError when no data is named, DataError naming the file and row of bad data.
    """
    sources = find_sources(config, which)
    if not sources:
        if config.tokenized_path:
            return Records((), lambda: np.zeros((0, 2), np.int64), "", which, Ledger())
        key = "dataset or train_file" if which == "train" else "eval_dataset or eval_file"
        raise ConfigError(f"no {which} data is named", where=key, fix=f"set {key}")
    ledger = Ledger()
    parts = open_sources(sources, record_type, config, ledger)
    probabilities = config.interleave_probs if which == "train" else ()
    if probabilities and abs(sum(probabilities) - 1) > 1e-6:
        shares = ", ".join(f"{value / sum(probabilities):.3g}" for value in probabilities)
        notice(f"interleave_probs are weights: the sets are drawn with probabilities {shares}")
    strategy = config.mix_strategy if which == "train" else "concat"
    key = fingerprint.of_values([part.fingerprint for part in parts], config.max_samples, strategy, probabilities, seed,
                                config.on_bad_row)
    return Records(parts, lambda: _order(parts, config, strategy, probabilities, seed), key, which, ledger)


def open_sources(sources: Sequence[Source], record_type: type[Record], config: DataConfig,
                 ledger: Ledger) -> tuple[SourceRows, ...]:
    """Return the rows of each data set; refuse a set of another kind than the stage takes."""
    for source in sources:
        _check_ranking(source, record_type)
    return tuple(SourceRows(source, record_type, config, ledger) for source in sources)


def split_validation(records: Records, val_size: float, seed: int) -> tuple[Records, Records]:
    """Return training and validation records: `val_size` is a share below 1, or a count."""
    if not records.fingerprint:
        raise ConfigError("val_size needs the data itself, and only tokenized_path is given", where="val_size",
                          fix="set dataset, or leave val_size out")
    halves: list[tuple[Places, Places]] = []

    def half(which: int) -> Places:
        if not halves:
            if val_size >= len(records) or len(records) < 2:
                raise ConfigError(f"val_size {val_size:g} leaves nothing of {len(records)} records to train on",
                                  where="val_size", fix="choose a smaller val_size")
            train, held_out = split(len(records), val_size, seed)
            halves.append((records.places[train], records.places[held_out]))
        return halves[0][which]

    key = fingerprint.of_values(records.fingerprint, val_size, seed)
    return (Records(records.parts, lambda: half(0), key + "-train", "train", records.ledger),
            Records(records.parts, lambda: half(1), key + "-eval", "eval", Ledger()))


def _order(parts: tuple[SourceRows, ...], config: DataConfig, strategy: str, probabilities: Sequence[float],
           seed: int) -> Places:
    chosen = [sample(len(part), part.source.num_samples, seed)[:config.max_samples] for part in parts]
    places = mix([len(rows) for rows in chosen], strategy, probabilities, seed)
    for owner, rows in enumerate(chosen):
        is_owner = places[:, 0] == owner
        places[is_owner, 1] = rows[places[is_owner, 1]]
    return places


def _check_ranking(source: Source, record_type: type[Record]) -> None:
    """Refuse preference data and verdicts, as declared, for a stage that would train on every answer alike."""
    takes = f"and this stage takes {NOUNS[record_type]}"
    if source.ranking and record_type not in (Preference, Graded, Prompt):
        raise ConfigError(f'data set "{source.name}" is declared as preference data (ranking: true), {takes}',
                          where="dataset", fix="use it with stage rm or dpo")
    columns = source.layout.columns or {}
    if columns.get("kto_tag") and record_type not in (Feedback, Graded, Prompt):
        raise ConfigError(f'data set "{source.name}" is declared as answers with verdicts (kto_tag), {takes}',
                          where="dataset", fix="use it with stage kto, or leave kto_tag out of its columns")
    if record_type is Preference and source.formatting and not source.ranking and (
            Conversation in FORMATS[source.formatting].kinds):
        raise ConfigError(f'data set "{source.name}" is not declared as preference data (ranking: true), {takes}',
                          where="dataset", fix="add ranking: true to its entry")


def _open(source: Source) -> tuple[RowFile, ...]:
    if source.hub:
        return (HubRows(source.hub),)
    if source.sha1 and len(source.files) == 1 and fingerprint.sha1_of(source.files[0]) != source.sha1:
        warn(f"data {source.name}: {source.files[0]} is not the file that file_sha1 of its entry was written for")
    return tuple(open_rows(path) for path in source.files)


def _where(files: tuple[RowFile, ...]) -> str:
    return str(files[0].path) + (f" and {len(files) - 1} more" if len(files) > 1 else "")


def _no_rows(where: str, ledger: Ledger) -> DataError:
    reasons = "; ".join(f"{count} {reason}" for reason, count in ledger.reasons().items())
    if not reasons:
        return DataError("no rows: the data set is empty", where=where, fix="give a file that has rows")
    return DataError(f"no usable row: {reasons}", where=where,
                     fix="on_bad_row: error stops at the first of them and says what is wrong")


def _unknown_row(row: Any, record_type: type[Record]) -> str:
    if has_pair(row) and record_type not in (Preference, Graded):
        return "the row holds a preference pair (chosen, rejected), which stages rm and dpo take"
    if has_ranking(row) and record_type not in (Preference, Graded):
        return "the row holds ranked answers, which stages rm and dpo take"
    shown = keys_of(row) if isinstance(row, dict) else kind_of(row)
    other = detect(row)
    if other is not None and not FORMATS[other].gives(record_type) or record_type is Preference:
        return f"no {NOUNS[record_type]} in a row that has {shown}"
    return f"no known data format has {shown}"


def _other_stage(row: Any, record_type: type[Record]) -> str:
    """Return what to do with answers that are compared where single ones are wanted; empty for other rows."""
    if record_type in (Preference, Graded) or not (has_pair(row) or has_ranking(row)):
        return ""
    return "set stage: rm or stage: dpo, or give rows with one answer each"


def _how_to_declare() -> str:
    return ("name the columns in dataset_info.json (columns: prompt, response, ...), set text_column, or use a known "
            f"format: {', '.join(FORMATS)}")


__all__ = ["Layout", "Records", "SourceRows", "load_records", "open_sources", "split_validation"]
