"""Run a recipe: read, judge, change, write; a row is kept as it is, changed field by field, or dropped."""

from collections import Counter
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import IO

from danlu.core.errors import DataError
from danlu.data.clean.filter import Filter, Verdict
from danlu.data.clean.ledger import Counts, Event, excerpt, first_difference
from danlu.data.clean.output import WholeFiles, check_output, json_line
from danlu.data.clean.recipe import Recipe
from danlu.data.clean.rows import Path as TextPath
from danlu.data.clean.rows import TextField, joined, with_texts
from danlu.data.clean.source import Chunk, data_files, fields_of, map_ordered, read_chunks
from danlu.data.row_file import PlacedRow


@dataclass(slots=True)
class CleanedChunk:
    """The lines to write for a chunk, and what happened to its rows."""

    source: str
    lines: list[bytes] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    events: list[Event] = field(default_factory=list)
    pointers: Counter[str] = field(default_factory=Counter)


def clean(recipe: Recipe) -> Counts:
    """Write the cleaned rows and the ledger, both or neither, and return the counts."""
    config = recipe.config
    output = Path(config.output)
    files = data_files(config.input, config.dataset_dir)
    check_output(output, files, overwrite=config.overwrite)
    check_output(config.ledger_path, [*files, output], overwrite=config.overwrite)
    counts = Counts(config.examples)
    with WholeFiles() as whole:
        rows, ledger = whole.open(output), whole.open(config.ledger_path)
        for done in map_ordered(partial(clean_chunk, recipe), read_chunks(files), config.num_workers):
            rows.writelines(done.lines)
            _record(done, counts, ledger, list_changed=config.list_changed)
        if not counts.total("read"):
            raise DataError("no rows", where=", ".join(config.input), fix="give a file that is not empty")
        ledger.writelines(json_line(line, str(config.ledger_path)) for line in counts.json_lines(recipe.rules))
    return counts


def _record(done: CleanedChunk, counts: Counts, ledger: IO[bytes], *, list_changed: bool) -> None:
    for outcome, number in done.outcomes.items():
        counts.add(done.source, outcome, number)
    counts.pointers.update(done.pointers)
    for event in done.events:
        counts.note(event)
        if event.action == "dropped" or list_changed:
            ledger.write(json_line(asdict(event), str(event.row)))


def clean_chunk(recipe: Recipe, chunk: Chunk) -> CleanedChunk:
    """Judge the rows of a chunk. Errors: DataError for a row that cannot be read, unless the recipe skips these."""
    done = CleanedChunk(chunk.path)
    for row in chunk.rows:
        done.outcomes["read"] += 1
        try:
            fields = fields_of(row, chunk.path, recipe.config.columns)
        except DataError as error:
            if recipe.config.on_bad_row == "error":
                raise
            done.outcomes["dropped"] += 1
            done.events.append(Event(chunk.path, row.number, "dropped", "(bad row)", "cannot be read",
                                     error.what))
            continue
        _clean_row(recipe, row, fields, done)
    return done


def _clean_row(recipe: Recipe, row: PlacedRow, fields: list[TextField], done: CleanedChunk) -> None:
    done.pointers.update(list(dict.fromkeys(one.pointer for one in fields)))
    judged = RowInWork(done.source, row.number, fields, [rule for _, rule in recipe.filters if rule.finds_secrets])
    for name, rule in recipe.filters:
        dropped = judged.edit(name, rule) if rule.edits else judged.judge(name, rule)
        if dropped is not None:
            done.events.append(dropped)
            done.outcomes["dropped"] += 1
            return
    changed = judged.changes()
    done.events += judged.events
    done.outcomes["kept"] += 1
    done.outcomes["changed"] += bool(changed)
    done.lines.append(json_line(with_texts(row.value, changed), f"{done.source}:{row.number}"))


class RowInWork:
    """The texts of one row on their way through the rules."""

    def __init__(self, source: str, number: int, fields: list[TextField], guards: list[Filter]) -> None:
        self.source, self.number, self.guards = source, number, guards
        self.first, self.fields = fields, list(fields)
        self.events: list[Event] = []

    def judge(self, name: str, rule: Filter) -> Event | None:
        """Return the event of a dropped row, None when the rule keeps it."""
        seen = [one for one in self.fields if one.is_one_of(rule.only)]
        if rule.scope == "row":
            text = joined(seen)
            return self._dropped(name, rule.judge(text), text, "") if seen else None
        told = (self._dropped(name, rule.judge(one.text), one.text, one.pointer) for one in seen if one.text)
        return next((event for event in told if event is not None), None)

    def edit(self, name: str, rule: Filter) -> Event | None:
        """Change the texts; return the event of a dropped row, also when a text has nothing left."""
        for place, one in enumerate(self.fields):
            if not one.text or not one.is_one_of(rule.only):
                continue
            verdict = rule.judge(one.text)
            dropped = self._dropped(name, verdict, one.text, one.pointer)
            if dropped is not None:
                return dropped
            if verdict.action == "change" and not verdict.text.strip() and one.text.strip():
                return self._event("dropped", rule, name, "nothing left of a text", verdict.reason, one, "")
            if verdict.action == "change":
                self.events.append(
                    self._event("changed", rule, name, verdict.reason, verdict.detail, one, verdict.text))
                self.fields[place] = TextField(one.path, verdict.text, one.role)
        return None

    def changes(self) -> dict[TextPath, str]:
        """Return the texts that are not what they were, by path."""
        return {after.path: after.text for before, after in zip(self.first, self.fields, strict=True)
                if after.text != before.text}

    def _dropped(self, name: str, verdict: Verdict, text: str, pointer: str) -> Event | None:
        if verdict.action != "drop":
            return None
        return Event(self.source, self.number, "dropped", name, verdict.reason, verdict.detail, pointer,
                     excerpt(self._guarded(text)))

    def _event(self, action: str, rule: Filter, name: str, reason: str, detail: str, before: TextField,
               after: str) -> Event:
        before_shown, after_shown = self._guarded(before.text), self._guarded(after)
        place = first_difference(before.text if rule.finds_secrets else before_shown, after_shown)
        shown = "" if rule.finds_secrets else excerpt(before_shown, place)
        return Event(self.source, self.number, action, name, reason, detail, before.pointer, shown,
                     excerpt(after_shown, place))

    def _guarded(self, text: str) -> str:
        """Return the text as the ledger may show it: what the recipe calls personal appears in no excerpt."""
        for guard in self.guards:
            verdict = guard.judge(text)
            text = verdict.text if verdict.action == "change" else "" if verdict.action == "drop" else text
        return text
