"""What each rule did: counts for the table, some examples, and one line for every row dropped or changed."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

EXCERPT = 160


@dataclass(frozen=True, slots=True)
class Event:
    """One rule's act on one row: `before` and `after` are excerpts around the first difference."""

    source: str
    row: int
    action: str
    rule: str
    reason: str
    detail: str = ""
    pointer: str = ""
    before: str = ""
    after: str = ""


@dataclass(slots=True)
class Counts:
    """Rows in, kept, changed and dropped, by file and by rule, with the first examples of each reason."""

    num_examples: int = 3
    sources: dict[str, Counter[str]] = field(default_factory=dict)
    reasons: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    examples: dict[tuple[str, str, str], list[Event]] = field(default_factory=dict)
    pointers: Counter[str] = field(default_factory=Counter)

    def add(self, source: str, outcome: str, number: int = 1) -> None:
        """Count rows of a file: `read`, `kept`, `changed`, `dropped`."""
        self.sources.setdefault(source, Counter())[outcome] += number

    def note(self, event: Event) -> None:
        """Count an act and keep it as an example while there are few."""
        key = (event.rule, event.action, event.reason)
        self.reasons[key] += 1
        kept = self.examples.setdefault(key, [])
        if len(kept) < self.num_examples:
            kept.append(event)

    def total(self, outcome: str) -> int:
        """Return a count over all files."""
        return sum(counts[outcome] for counts in self.sources.values())

    def lines(self, order: list[str]) -> list[str]:
        """Return the table: one line a file, one line for each rule and reason, examples below it."""
        shown = [f"{source}: {_spell(counts)}" for source, counts in list(self.sources.items())[:8]]
        if len(self.sources) > 1:
            shown.append(f"all {len(self.sources)} files: {_spell(sum(self.sources.values(), Counter()))}")
        if self.pointers:
            shown.append("texts: " + ", ".join(f"{pointer} ({number})" for pointer, number in self.pointers.items()))
        width = max((len(rule) for rule, _, _ in self.reasons), default=0)
        known = {rule: place for place, rule in enumerate(order)}
        for (rule, action, reason), number in sorted(
                self.reasons.items(), key=lambda item: (known.get(item[0][0], -1), -item[1])):
            shown.append(f"  {rule.ljust(width)}  {action:<8} {number:>8}  {reason}")
            shown += [f"      {line}" for event in self.examples[rule, action, reason] for line in _example(event)]
        return shown

    def json_lines(self, order: list[str]) -> Iterator[dict[str, Any]]:
        """Yield counts by file, then by rule and reason with the examples."""
        for source, counts in self.sources.items():
            yield {"source": source, **counts}
        for rule in order:
            if not any(known == rule for known, _, _ in self.reasons):
                yield {"rule": rule, "rows": 0}
        for (rule, action, reason), number in self.reasons.items():
            yield {"rule": rule, "action": action, "reason": reason, "rows": number,
                   "examples": [asdict(event) for event in self.examples[rule, action, reason]]}


def _example(event: Event) -> list[str]:
    told = f"{event.source}:{event.row}{event.pointer and ' ' + event.pointer}"
    told += f" ({event.detail})" if event.detail else ""
    if event.after or event.action == "changed":
        return [told, *([f"  - {event.before!r}"] if event.before else []), f"  + {event.after!r}"]
    return [told, f"  {event.before!r}"] if event.before else [told]


def _spell(counts: Counter[str]) -> str:
    order = ["read", "kept", "changed", "dropped"]
    names = [name for name in order if counts[name] or name in ("read", "kept")]
    return ", ".join(f"{counts[name]} {name}" for name in names + sorted(set(counts) - set(order)))


def excerpt(text: str, around: int = 0) -> str:
    """Return some characters of a text around a place."""
    start = max(0, around - EXCERPT // 4)
    piece = text[start:start + EXCERPT]
    return f"{'…' if start else ''}{piece}{'…' if start + EXCERPT < len(text) else ''}"


def first_difference(before: str, after: str) -> int:
    """Return the first place at which two texts differ."""
    pairs = zip(before, after, strict=False)
    return next((place for place, (one, other) in enumerate(pairs) if one != other), min(len(before), len(after)))
