"""Rows of one prompt and one answer under any of the usual names; both may be lists of messages, or of texts."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from danlu.core.records import Message, Role
from danlu.data.formats.prompt import PROMPTS, prompt_dialogue
from danlu.data.messages import read_turns
from danlu.data.row_format import FORMATS, Layout, Row, RowFormat, RowProblem, first_present, mapping_at, text_at
from danlu.data.turns import Dialogue, Turn, system_turn

RESPONSES = ("completion", "response", "answer", "target", "output")


@FORMATS.register("prompt_completion")
class PromptCompletion(RowFormat):
    """One round; `system` may give the system turn. Lists of questions and answers are as many rounds."""

    def matches(self, row: Row, kind: type[Any] | None = None) -> bool:
        return (isinstance(row, Mapping) and first_present(row, PROMPTS) is not None
                and first_present(row, RESPONSES) is not None)

    def dialogue(self, row: Row, layout: Layout) -> Dialogue:
        row = mapping_at(row)
        if rounds := _rounds(row, layout):
            return rounds
        asked = self.asked(row, layout)
        answered = _turns(row, layout.column("response", *RESPONSES), "assistant")
        return replace(asked, turns=(*asked.turns, *answered))

    def asked(self, row: Row, layout: Layout) -> Dialogue:
        row = mapping_at(row)
        rounds = _rounds(row, layout)
        if rounds:
            return replace(rounds, turns=rounds.turns[:-1], answer=rounds.turns[-1].message)
        return prompt_dialogue(row, layout)


def _turns(row: Mapping[str, Any], names: tuple[str, ...], role: Role) -> list[Turn]:
    name = first_present(row, names)
    if name is not None and isinstance(row[name], list):
        return read_turns(row[name], f"/{name}")
    return [Turn(Message(role, text_at(row, names)), f"/{name}")]


def _rounds(row: Mapping[str, Any], layout: Layout) -> Dialogue | None:
    """Return the rounds of a list of questions and a list of answers, None when the row holds no such lists."""
    asked = first_present(row, layout.column("prompt", *PROMPTS))
    answered = first_present(row, layout.column("response", *RESPONSES))
    if asked is None or answered is None or not (_are_texts(row[asked]) and _are_texts(row[answered])):
        return None
    questions, answers = row[asked], row[answered]
    if len(questions) != len(answers):
        raise RowProblem(f"/{answered}", f"{len(answers)} answers", f"{len(questions)}, one for each of /{asked}")
    turns: list[Turn] = []
    for index, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        turns.append(Turn(Message("user", question), f"/{asked}/{index}"))
        turns.append(Turn(Message("assistant", answer), f"/{answered}/{index}"))
    systems = layout.column("system", "system")
    leading = system_turn(text_at(row, systems), f"/{systems[0]}") if first_present(row, systems) else []
    return Dialogue((*leading, *turns), f"/{asked}", columns=frozenset({asked, *systems}))


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, str) for one in value)
