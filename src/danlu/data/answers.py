"""The answers of preference data: a chosen and rejected ones, or a list with ranks or scores; the best comes first."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from danlu.core.records import Message
from danlu.data.layout import Layout
from danlu.data.messages import any_turn, read_turns
from danlu.data.row_values import RowProblem, first_present, keys_of, kind_of, text_at
from danlu.data.turns import Dialogue, Turn

LISTS = ("answers", "responses", "completions", "candidates", "outputs", "output", "response")
TEXTS = ("answer", "response", "text", "completion", "output", "content")
RANKS = ("rank", "ranks", "ranking")
SCORES = ("score", "scores", "rating", "ratings", "reward", "rewards", "overall_score")

Answers = tuple[Dialogue, tuple[Turn, ...]]


def has_pair(row: Any) -> bool:
    """Say whether a row shows a chosen and a rejected answer."""
    return isinstance(row, Mapping) and row.get("chosen") is not None and row.get("rejected") is not None


def has_ranking(row: Any) -> bool:
    """Say whether a row shows a list of answers with ranks or scores, beside it or inside it."""
    name = first_present(row, LISTS) if isinstance(row, Mapping) else None
    if name is None or not isinstance(row[name], list) or len(row[name]) < 2:
        return False
    return any(first_present(place, (*RANKS, *SCORES)) is not None for place in (row, row[name][0])
               if isinstance(place, Mapping))


def given_answers(row: Mapping[str, Any], layout: Layout, asked: Dialogue) -> Answers:
    """Return the prompt and the answers of `chosen` and `rejected`.

    Each is a text, a message, a whole dialogue that ends on the answer, or a list of several of these. Dialogues must
    share all turns before the answer; those are the prompt when the row has no other.
    """
    found: list[tuple[tuple[Turn, ...], Turn]] = []
    for role in ("chosen", "rejected"):
        names = layout.column(role, role)
        name = first_present(row, names)
        if name is None:
            raise RowProblem("", keys_of(row), f"a key {' or '.join(names) or role}")
        found += _read_answers(row[name], f"/{name}", layout)
    prefix = found[0][0]
    for other, answer in found[1:]:
        if _words(other) != _words(prefix):
            raise RowProblem(answer.pointer, "turns before the answer that differ from those of the chosen one",
                             "answers to the same prompt, alike in all but their last turn")
    return (_with_prefix(asked, prefix, found[0][1].pointer), tuple(answer for _, answer in found))


def ranked_answers(row: Mapping[str, Any], layout: Layout, asked: Dialogue, *, is_ordered: bool = False) -> Answers:
    """Return the prompt and the answers of a list, sorted by rank (1 is best) or score (highest is best).

    `is_ordered`: without ranks and scores the list itself is best first.
    """
    names = layout.column("response", *LISTS)
    name = first_present(row, names)
    if name is None or not isinstance(row[name], list):
        found = keys_of(row) if name is None else kind_of(row[name])
        wanted = f"a list of answers under {' or '.join(names) or 'response'}"
        raise RowProblem(f"/{name}" if name else "", found, wanted)
    turns = [_one_of_list(value, f"/{name}/{index}", layout) for index, value in enumerate(row[name])]
    order = _order(row, row[name], f"/{name}")
    if order is None:
        if not is_ordered:
            raise RowProblem(f"/{name}", "answers without order", "ranks or scores, beside the list or in its elements")
        return asked, tuple(turns)
    return asked, tuple(turns[index] for index in order)


def margin_at(row: Any, layout: Layout) -> float | None:
    """Return by how much the better answer beats the other, where the row has a number for it; null says nothing."""
    name = first_present(row, layout.column("margin", "margin")) if isinstance(row, Mapping) else None
    if name is None or row[name] is None:
        return None
    value = row[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise RowProblem(f"/{name}", kind_of(value), "a number of 0 or more")
    return float(value)


def check_answers(turns: Sequence[Turn]) -> tuple[Message, ...]:
    """Return the answers: two or more, each by the assistant, with words, and none twice."""
    seen: dict[str, str] = {}
    for turn in turns:
        message = turn.message
        if message.role != "assistant":
            raise RowProblem(turn.pointer, f"a {message.role} turn as an answer", "an assistant turn")
        if not message.content.strip() and not message.tool_calls:
            raise RowProblem(turn.pointer, "an empty answer", "some text")
        words = f"{message.content.strip()}{message.tool_calls}"
        if words in seen:
            raise RowProblem(turn.pointer, f"the same answer as in {seen[words]}", "answers that differ")
        seen[words] = turn.pointer
    if len(turns) < 2:
        pointer = turns[0].pointer.rpartition("/")[0] if turns else ""
        raise RowProblem(pointer, f"{len(turns)} answers", "two or more answers to compare")
    return tuple(turn.message for turn in turns)


def _read_answers(value: Any, pointer: str, layout: Layout) -> list[tuple[tuple[Turn, ...], Turn]]:
    if isinstance(value, str):
        return [((), Turn(Message("assistant", value), pointer))]
    if isinstance(value, Mapping):
        return [((), any_turn(value, layout, pointer))]
    if not isinstance(value, list) or not value:
        raise RowProblem(pointer, kind_of(value), "an answer: a string, a message, or a list of messages")
    if isinstance(value[0], Mapping):
        turns = read_turns(value, pointer, layout)
        return [(tuple(turns[:-1]), turns[-1])]
    return [pair for index, one in enumerate(value) for pair in _read_answers(one, f"{pointer}/{index}", layout)]


def _with_prefix(asked: Dialogue, prefix: tuple[Turn, ...], pointer: str) -> Dialogue:
    """Return the prompt: what the row asks, or the turns before its answers; both must agree."""
    if not prefix:
        return asked
    said = [turn for turn in asked.turns if turn.message.role != "system"]
    body = [turn for turn in prefix if turn.message.role != "system"]
    one_text = len(said) == 1 and any(_words([turn]) == _words(said) for turn in body)
    if said and not one_text and _words(said) != _words(body):
        raise RowProblem(pointer, "turns before the answer that differ from the prompt of the row",
                         "the prompt, or the answer alone")
    systems = [] if len(body) < len(prefix) else [turn for turn in asked.turns if turn.message.role == "system"]
    return replace(asked, turns=(*systems, *prefix))


def _words(turns: Sequence[Turn]) -> list[tuple[str, str, str]]:
    return [(turn.message.role, turn.message.content.strip(), str(turn.message.tool_calls)) for turn in turns]


def _one_of_list(value: Any, pointer: str, layout: Layout) -> Turn:
    if isinstance(value, str):
        return Turn(Message("assistant", value), pointer)
    if not isinstance(value, Mapping):
        raise RowProblem(pointer, kind_of(value), "an answer: a string or an object")
    if "role" in value or "from" in value:
        return any_turn(value, layout, pointer)
    return Turn(Message("assistant", text_at(value, TEXTS, pointer)), f"{pointer}/{first_present(value, TEXTS)}")


def _order(row: Mapping[str, Any], answers: Sequence[Any], pointer: str) -> list[int] | None:
    """Return the answers' indices, best first; None when nothing says which is better."""
    for names, sign in ((RANKS, 1), (SCORES, -1)):
        beside = first_present(row, names)
        inside = first_present(answers[0], names) if answers and isinstance(answers[0], Mapping) else None
        if beside is None and inside is None:
            continue
        place = f"/{beside}" if beside else pointer
        values = row[beside] if beside else [one.get(inside) if isinstance(one, Mapping) else None for one in answers]
        if not isinstance(values, list) or len(values) != len(answers):
            raise RowProblem(place, kind_of(values), f"a list of {len(answers)} numbers, one for each answer")
        return _sorted(values, sign, place, inside if beside is None else None)
    return None


def _sorted(values: Sequence[Any], sign: int, place: str, key: str | None) -> list[int]:
    seen: dict[float, int] = {}
    for index, value in enumerate(values):
        at = f"{place}/{index}" + (f"/{key}" if key else "")
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
            raise RowProblem(at, kind_of(value), "a number")
        if value in seen:
            raise RowProblem(at, f"{kind_of(value)}, as for answer {seen[value] + 1}", "answers of which one is better")
        seen[value] = index
    return sorted(range(len(values)), key=lambda index: sign * values[index])
