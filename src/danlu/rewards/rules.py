"""Rewards that need no model: a pattern, the right answer, a length, a format; added up with weights."""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from danlu.core.config import StrictConfig
from danlu.core.errors import did_you_mean
from danlu.core.key_types import CommaList
from danlu.rewards.base import REWARDS, Answer, RewardContext, RewardError, RewardSource, describe
from danlu.rewards.config import RewardKeys
from danlu.rewards.final_answer import final_number, final_text, spelling, whole_number
from danlu.rewards.rules_file import Read, read_rules


class Rule(StrictConfig, ABC):
    """One rule. Its first key says which."""

    weight: float = Field(1.0, description="Weight of this rule in the sum.")

    @abstractmethod
    def score(self, answer: Answer) -> float:
        """Return the rule's number for an answer, unweighted. Raises RowLacks for a row without the column it needs."""


class Verdict(Rule):
    """A rule that holds or does not."""

    score_if: float = Field(1.0, alias="score", description="Score where the rule holds.")
    miss: float = Field(0.0, description="Score where it does not.")

    @abstractmethod
    def holds(self, answer: Answer) -> bool:
        """Return whether the answer meets the rule."""

    def score(self, answer: Answer) -> float:
        return self.score_if if self.holds(answer) else self.miss


class RegexRule(Verdict):
    """The answer holds a pattern."""

    regex: str = Field(description="Python regular expression; `.` also matches line ends.")
    match: Literal["search", "whole"] = Field("search", description="Somewhere in the answer, or all of it.")
    ignore_case: bool = Field(False, description="Letters match in either case.")

    @field_validator("regex")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"is no regular expression: {error}") from None
        return pattern

    def holds(self, answer: Answer) -> bool:
        find = re.search if self.match == "search" else re.fullmatch
        return find(self.regex, answer.text, re.DOTALL | (re.IGNORECASE if self.ignore_case else 0)) is not None


class ExactRule(Verdict):
    """The final answer equals a column of the row."""

    exact: str = Field(description="Column that holds the right answer, or a list of right answers.")
    extract: Literal["auto", "number", "text"] = Field(
        "auto", description="number: the final number, by value; text: the final words; auto: as the reference is.")
    within: str | None = Field(None, description="Tag around the final answer: answer for <answer>...</answer>.")

    def holds(self, answer: Answer) -> bool:
        if answer.extra.get(self.exact) is None:
            raise RowLacks(self.exact)
        given = answer.extra[self.exact]
        text = answer.text if self.within is None else _inside(answer.text, self.within)
        references = given if isinstance(given, list | tuple) else [given]
        return text is not None and any(self._equal(text, str(one)) for one in references)

    def _equal(self, text: str, reference: str) -> bool:
        number = final_number(reference) if self.extract == "number" else whole_number(final_text(reference))
        if number is not None and self.extract != "text":
            return final_number(text) == number
        return spelling(final_text(text)) == spelling(final_text(reference))


class LengthRule(Rule):
    """The answer is neither too long nor too short."""

    length: int = Field(ge=1, description="Tokens that an answer may have at most, the stop token included.")
    least: int = Field(0, ge=0, description="Tokens that it must have; equal to length it makes that a target.")
    penalty: float = Field(0.01, gt=0, description="Taken off for each token too many or too few.")
    lowest: float = Field(-1.0, le=0, description="The rule takes no more than this.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.least > self.length:
            raise ValueError(f"least is {self.least}, above length {self.length}: no answer would do")
        return self

    def score(self, answer: Answer) -> float:
        size = len(answer.ids)
        outside = max(size - self.length, self.least - size, 0)
        return max(-self.penalty * outside, self.lowest) if outside else 0.0


class FormatRule(Verdict):
    """The whole answer consists of tagged parts: <think>...</think> <answer>...</answer>."""

    format: CommaList = Field(description="Tags in their order; each occurs once and holds something.")

    @field_validator("format")
    @classmethod
    def _names_tags(cls, tags: tuple[str, ...]) -> tuple[str, ...]:
        odd = [tag for tag in tags if not re.fullmatch(r"[\w-]+", tag)]
        if odd or not tags:
            raise ValueError(f"names no tag: {odd[0] if odd else 'it is empty'}; write think, answer")
        return tags

    def holds(self, answer: Answer) -> bool:
        if any(answer.text.count(f"<{tag}>") != 1 or answer.text.count(f"</{tag}>") != 1 for tag in self.format):
            return False
        parts = (rf"<{tag}>\s*\S.*?</{tag}>" for tag in map(re.escape, self.format))
        return re.fullmatch(r"\s*" + r"\s*".join(parts) + r"\s*", answer.text, re.DOTALL) is not None


RULES: dict[str, type[Rule]] = {"regex": RegexRule, "exact": ExactRule, "length": LengthRule, "format": FormatRule}


class RowLacks(Exception):
    """A row has no such column."""


@REWARDS.register("rules")
class RulesReward(RewardSource):
    """The weighted sum of the rules of a YAML file, or of YAML written in the key itself."""

    name = "rules"

    def __init__(self, rules: Sequence[Read[Rule]]) -> None:
        self._rules = tuple(rules)

    @classmethod
    def build(cls, source: str, keys: RewardKeys, context: RewardContext) -> Self:
        return cls(read_rules(source, RULES))

    def score(self, answers: Sequence[Answer]) -> list[float]:
        return [sum(one.rule.weight * _score(one, answer) for one in self._rules) for answer in answers]


def _score(one: Read[Rule], answer: Answer) -> float:
    try:
        return one.rule.score(answer)
    except RowLacks as lacking:
        columns: dict[str, Any] = answer.extra
        raise RewardError(
            f'no "{lacking}" in the row of {describe(answer)}', where=one.where,
            fix=did_you_mean(str(lacking), columns) or f"add the column {lacking} to the data") from None


def _inside(text: str, tag: str) -> str | None:
    """Return what the last <tag>...</tag> holds."""
    found = re.findall(rf"<{re.escape(tag)}>(.*?)</{re.escape(tag)}>", text, re.DOTALL)
    return found[-1] if found else None
