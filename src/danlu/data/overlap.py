"""Evaluation text inside training data: n-grams that rows of both share (Brown et al. 2020, appendix C).

The evaluation set is indexed in memory, the training set streams past it. A token is a word, in Chinese and Japanese a
sign; case, width, marks and blanks make no difference. A text of an evaluation row, its question for instance, that has
fewer than `ngram` tokens is looked for whole, if it has at least `min_tokens`. N-grams that many evaluation rows have
are the frame of the questions, no content; they do not count.
"""

from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from danlu.core.config import StrictConfig
from danlu.core.errors import DataError
from danlu.core.key_types import CommaList
from danlu.data.clean.output import WholeFiles, check_output, json_line
from danlu.data.clean.source import Chunk, chunk_texts, data_files, fields_of, map_ordered, read_chunks
from danlu.data.dedup.shingles import Hashes, Places, Tokens, ngrams, normalise, tokenise

EXCERPT = 120


class OverlapConfig(StrictConfig):
    """What is compared, and from what share on a row counts as contaminated."""

    train: CommaList = Field(min_length=1, description="Training files, folders or names, comma separated.")
    eval: CommaList = Field(min_length=1, description="Evaluation files, folders or names, comma separated.")
    dataset_dir: str = Field("data", description="Folder of dataset_info.json.")
    train_columns: CommaList = Field((), description="Columns of text in the training data; unset: found.")
    eval_columns: CommaList = Field((), description="Columns of text in the evaluation data; unset: found.")
    ngram: int = Field(13, ge=2, le=100, description="Tokens that must agree in a row.")
    unit: Literal["auto", "char", "word"] = Field(
        "auto", description="A token: a word, in Chinese and Japanese a sign (auto); a character; or a word always.")
    min_tokens: int = Field(8, ge=1, description="Shorter texts cannot be judged; rows of such alone are counted.")
    min_share: float = Field(
        0.0, ge=0, le=1, description="A row is contaminated when more than this share of its n-grams is found.")
    max_rows: int = Field(10, ge=1, description="N-grams that more evaluation rows than this have do not count.")
    fail_above: float | None = Field(
        None, ge=0, le=1, description="Exit code 1 when the share of contaminated rows is above this.")
    out: str | None = Field(None, description="File of JSON lines for the report: one line an evaluation row.")
    num_workers: int | None = Field(None, ge=1, description="Processes; unset: all cores, one for small data.")
    examples: int = Field(10, ge=0, description="Contaminated rows to print, the worst first.")
    on_bad_row: Literal["error", "skip"] = Field(
        "error", description="A row that cannot be read stops the comparison, or is left out and counted.")
    overwrite: bool = Field(False, description="Replace a report that exists.")


@dataclass(frozen=True, slots=True)
class EvalRow:
    """What was found of one evaluation row; `found` of its `ngrams` are in the training data, most in `train`."""

    source: str
    row: int
    ngrams: int
    found: int
    share: float
    is_contaminated: bool
    train: str = ""
    train_share: float = 0.0
    text: str = ""


@dataclass(slots=True)
class OverlapReport:
    """Every evaluation row, and how many were too short or unreadable."""

    rows: list[EvalRow]
    num_train: int
    too_short: int
    num_frame: int
    bad: Counter[str]
    config: OverlapConfig

    @property
    def contaminated(self) -> list[EvalRow]:
        """The contaminated rows, the worst first."""
        found = [row for row in self.rows if row.is_contaminated]
        return sorted(found, key=lambda row: -row.share)

    @property
    def share(self) -> float:
        """Share of contaminated rows among those that could be judged."""
        judged = len(self.rows) - self.too_short
        return len(self.contaminated) / judged if judged else 0.0

    @property
    def is_above_limit(self) -> bool:
        """Whether more rows are contaminated than `fail_above` allows."""
        return self.config.fail_above is not None and self.share > self.config.fail_above

    def lines(self) -> list[str]:
        """Return the summary and the worst rows."""
        config = self.config
        shown = [
            f"{len(self.rows)} evaluation rows against {self.num_train} training rows, {config.ngram}-grams",
            f"contaminated: {len(self.contaminated)} of {len(self.rows) - self.too_short} rows ({self.share:.2%})"]
        if self.too_short:
            shown.append(f"not judged: {self.too_short} rows with no text of {config.min_tokens} tokens that is "
                         "their own")
        if self.num_frame:
            shown.append(f"not counted: {self.num_frame} n-grams that more than {config.max_rows} evaluation rows have")
        shown += [f"left out: {number} bad rows of the {which} data" for which, number in self.bad.items()]
        for row in self.contaminated[:config.examples]:
            shown += [f"  {row.source}:{row.row}  {row.share:.0%} of {row.ngrams} n-grams; {row.train_share:.0%} in "
                      f"{row.train}", f"      {row.text!r}"]
        hidden = len(self.contaminated) - config.examples
        return shown + ([f"  and {hidden} more"] if hidden > 0 else [])


@dataclass(frozen=True, slots=True)
class Hits:
    """What a chunk of training rows shares with the evaluation set: for each find, gram and training row."""

    num_rows: int
    num_bad: int
    grams: Places
    rows: Places
    origins: dict[int, str]


class EvalIndex:
    """The n-grams of the evaluation rows, by length: rows shorter than n are one gram of their own length."""

    def __init__(self, config: OverlapConfig) -> None:
        self.config = config
        self.origins: list[tuple[str, int]] = []
        self.texts: list[str] = []
        self.num_bad = 0
        parts: dict[int, list[tuple[Hashes, Places]]] = defaultdict(list)
        for chunk in read_chunks(data_files(config.eval, config.dataset_dir)):
            self._add(chunk, parts)
        if not self.origins:
            raise DataError("no rows", where=", ".join(config.eval), fix="give a file that is not empty")
        self._build(parts)

    def _add(self, chunk: Chunk, parts: dict[int, list[tuple[Hashes, Places]]]) -> None:
        """Index each text of a row by itself: the question may stand in the training data without the answer."""
        config = self.config
        texts, owners = [], []
        for row in chunk.rows:
            try:
                fields = fields_of(row, chunk.path, config.eval_columns)
            except DataError:
                if config.on_bad_row == "error":
                    raise
                self.num_bad += 1
                continue
            own = [normalise(one.text) for one in fields]
            owners += [len(self.origins)] * len(own)
            texts += own
            self.origins.append((chunk.path, row.number))
            self.texts.append(" ".join(own)[:EXCERPT])
        if texts:
            self._add_texts(texts, np.array(owners), parts)

    def _add_texts(self, texts: list[str], owners: Places, parts: dict[int, list[tuple[Hashes, Places]]]) -> None:
        config = self.config
        tokens = tokenise(texts, config.unit)
        counts = tokens.counts
        for length in {config.ngram, *counts[(counts >= config.min_tokens) & (counts < config.ngram)].tolist()}:
            hashes, begin = ngrams(tokens, length, whole_if_short=False)
            place = tokens.text_T[begin]
            is_meant = counts[place] >= config.ngram if length == config.ngram else counts[place] == length
            parts[length].append((hashes[is_meant], owners[place[is_meant]]))

    def _build(self, parts: dict[int, list[tuple[Hashes, Places]]]) -> None:
        """Number the different grams of all lengths; `rows_of` lists the rows that have each, by `starts`."""
        self.hashes: dict[int, Hashes] = {}
        self.first_id: dict[int, int] = {}
        ids, rows, number, self.num_frame = [], [], 0, 0
        for length, found in parts.items():
            hash_G, row_G = (np.concatenate([part[side] for part in found]) for side in (0, 1))
            pairs = np.unique(np.stack([hash_G, row_G.astype(np.uint64)]), axis=1)
            different, index, uses = np.unique(pairs[0], return_inverse=True, return_counts=True)
            is_content = uses <= self.config.max_rows
            self.num_frame += int((~is_content).sum())
            new_id = np.cumsum(is_content) - 1 + number
            kept = is_content[index]
            ids.append(new_id[index[kept]])
            rows.append(pairs[1][kept].astype(np.int64))
            self.hashes[length], self.first_id[length] = different[is_content], number
            number += int(is_content.sum())
        id_P, row_P = np.concatenate(ids), np.concatenate(rows)
        order = np.argsort(id_P, kind="stable")
        self.rows_of = row_P[order]
        self.starts = np.searchsorted(id_P[order], np.arange(number + 1))
        self.num_grams = np.bincount(row_P, minlength=len(self.origins))

    @cached_property
    def searcher(self) -> "Searcher":
        """What the processes need of this index."""
        return Searcher(self.config, self.hashes, self.first_id)


@dataclass(frozen=True)
class Searcher:
    """Finds grams of the index in chunks of training rows; picklable."""

    config: OverlapConfig
    hashes: dict[int, Hashes]
    first_id: dict[int, int]

    def __call__(self, chunk: Chunk) -> Hits:
        config = self.config
        read = chunk_texts(chunk, config.train_columns, (), skip_bad=config.on_bad_row == "skip")
        texts = [normalise(text) if isinstance(text, str) else "" for text in read]
        tokens = tokenise(texts, config.unit)
        found = [self._of_length(tokens, length) for length in self.hashes]
        grams, places = (np.concatenate([part[side] for part in found]) for side in (0, 1))
        pairs = np.unique(np.stack([places, grams]), axis=1)
        origins = {chunk.index + int(place): f"{chunk.path}:{chunk.rows[int(place)].number}"
                   for place in np.unique(pairs[0])}
        num_bad = sum(not isinstance(text, str) for text in read)
        return Hits(len(texts), num_bad, pairs[1], pairs[0] + chunk.index, origins)

    def _of_length(self, tokens: Tokens, length: int) -> tuple[Places, Places]:
        known = self.hashes[length]
        hash_G, begin = ngrams(tokens, length, whole_if_short=False)
        if not len(known):
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        at = np.minimum(np.searchsorted(known, hash_G), len(known) - 1)
        is_known: NDArray[np.bool_] = known[at] == hash_G
        return at[is_known] + self.first_id[length], tokens.text_T[begin[is_known]]


def find_overlap(config: OverlapConfig) -> OverlapReport:
    """Compare the two sets; write the report when `out` is set."""
    train = data_files(config.train, config.dataset_dir)
    out = Path(config.out) if config.out else None
    if out is not None:
        check_output(out, [*train, *data_files(config.eval, config.dataset_dir)], overwrite=config.overwrite)
    index = EvalIndex(config)
    is_found = np.zeros(len(index.starts) - 1, bool)
    best: dict[int, tuple[int, str]] = {}
    num_train = num_bad = 0
    for hits in map_ordered(index.searcher, read_chunks(train), config.num_workers):
        num_train, num_bad = num_train + hits.num_rows, num_bad + hits.num_bad
        is_found[hits.grams] = True
        _note_best(index, hits, best)
    if not num_train:
        raise DataError("no rows", where=", ".join(config.train), fix="give a file that is not empty")
    rows = _rows(index, is_found, best, config)
    bad = Counter({which: number for which, number in (("training", num_bad), ("evaluation", index.num_bad)) if number})
    report = OverlapReport(rows, num_train, int((index.num_grams == 0).sum()), index.num_frame, bad, config)
    if out is not None:
        with WholeFiles() as whole:
            whole.open(out).writelines(json_line(asdict(row), str(out)) for row in rows)
    return report


def _note_best(index: EvalIndex, hits: Hits, best: dict[int, tuple[int, str]]) -> None:
    """Keep, for each evaluation row, the training row that shares most of its n-grams, the first of equals."""
    lengths = index.starts[hits.grams + 1] - index.starts[hits.grams]
    within = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    eval_rows = index.rows_of[np.repeat(index.starts[hits.grams], lengths) + within]
    pairs, counts = np.unique(np.stack([eval_rows, np.repeat(hits.rows, lengths)]), axis=1, return_counts=True)
    for eval_row, train_row, count in zip(*pairs.tolist(), counts.tolist(), strict=True):
        if count > best.get(eval_row, (0, ""))[0]:
            best[eval_row] = (count, hits.origins[train_row])


def _rows(index: EvalIndex, is_found: NDArray[np.bool_], best: dict[int, tuple[int, str]],
          config: OverlapConfig) -> list[EvalRow]:
    lengths = np.diff(index.starts)
    found = np.bincount(index.rows_of[np.repeat(is_found, lengths)], minlength=len(index.origins)).tolist()
    rows = []
    for number, (source, row) in enumerate(index.origins):
        grams = int(index.num_grams[number])
        share = found[number] / grams if grams else 0.0
        count, origin = best.get(number, (0, ""))
        rows.append(EvalRow(source, row, grams, found[number], round(share, 4), share > config.min_share, origin,
                            round(count / grams, 4) if grams else 0.0, index.texts[number]))
    return rows
