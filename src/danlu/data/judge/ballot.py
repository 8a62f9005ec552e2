"""Two answers shown in both orders, and what follows from what the judge said."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from danlu.data.judge.questions import Question
from danlu.data.judge.wording import verdict_of

OUTCOMES = ("judged", "tie", "unparsable", "failed", "equal")


@dataclass(frozen=True, slots=True)
class Reply:
    """What the judge wrote, or why nothing came."""

    text: str
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Ballot:
    """One pair of a question's answers with its replies: the pair in order, then in reverse; none for equal answers."""

    asked: Question
    pair: tuple[int, int]
    replies: tuple[Reply, ...] = ()

    @property
    def verdicts(self) -> list[str]:
        """What each reply says in its last line: A, B, tie, or nothing."""
        return [verdict_of(one.text) for one in self.replies]

    @property
    def better(self) -> int | None:
        """The answer that both orders prefer, None where they do not agree on one."""
        first, second = self.pair
        return {("A", "B"): first, ("B", "A"): second}.get(tuple(self.verdicts))  # type: ignore[arg-type]

    @property
    def outcome(self) -> str:
        """One of OUTCOMES."""
        if not self.replies:
            return "equal"
        if any(one.failure for one in self.replies):
            return "failed"
        if "" in self.verdicts:
            return "unparsable"
        return "tie" if self.better is None else "judged"

    def row(self, judge: str) -> dict[str, Any]:
        """Return the preference of a judged pair as a row of data."""
        better = self.better
        assert better is not None
        worse = self.pair[1] if better == self.pair[0] else self.pair[0]
        asked = self.asked
        return {"prompt": [{"role": message.role, "content": message.content} for message in asked.prompt],
                "chosen": asked.answers[better], "rejected": asked.answers[worse], "judge": judge,
                "votes": self.verdicts, "chosen_by": asked.givers[better], "rejected_by": asked.givers[worse]}

    def entry(self) -> dict[str, Any]:
        """Return the ledger's line."""
        told: dict[str, Any] = {
            "source": self.asked.origin.source, "row": self.asked.origin.row, "outcome": self.outcome,
            "answers": [self.asked.givers[index] for index in self.pair], "votes": self.verdicts}
        detail = self._detail()
        return told | ({"detail": detail} if detail else {})

    def _detail(self) -> list[str]:
        if self.outcome == "unparsable":
            return [_end(one.text) for one, verdict in zip(self.replies, self.verdicts, strict=True) if not verdict]
        return [one.failure for one in self.replies if one.failure]


@dataclass(frozen=True, slots=True)
class ScoredPair:
    """One pair of a question's answers with a reward model's scores; None: not scored, or alike."""

    asked: Question
    pair: tuple[int, int]
    scores: tuple[float, float] | None

    @property
    def outcome(self) -> str:
        """One of OUTCOMES."""
        if self.scores is None:
            return "equal" if is_equal(self.asked.answers, self.pair) else "failed"
        return "tie" if self.scores[0] == self.scores[1] else "judged"

    def row(self, judge: str) -> dict[str, Any]:
        """Return the preference of a judged pair as a row of data."""
        assert self.scores is not None
        scored = sorted(zip(self.scores, self.pair, strict=True), reverse=True)
        (high, better), (low, worse) = scored
        asked = self.asked
        return {"prompt": [{"role": message.role, "content": message.content} for message in asked.prompt],
                "chosen": asked.answers[better], "rejected": asked.answers[worse], "judge": judge,
                "votes": [high, low], "chosen_by": asked.givers[better], "rejected_by": asked.givers[worse]}

    def entry(self) -> dict[str, Any]:
        """Return the ledger's line."""
        told: dict[str, Any] = {
            "source": self.asked.origin.source, "row": self.asked.origin.row, "outcome": self.outcome,
            "answers": [self.asked.givers[index] for index in self.pair], "votes": list(self.scores or ())}
        return told | ({"detail": ["not within cutoff_len"]} if self.outcome == "failed" else {})


def is_equal(answers: Sequence[str], pair: tuple[int, int]) -> bool:
    """Return whether two answers say the same, blanks at their ends aside."""
    return answers[pair[0]].strip() == answers[pair[1]].strip()


def _end(text: str) -> str:
    return text.strip().splitlines()[-1][-160:] if text.strip() else "an empty reply"
