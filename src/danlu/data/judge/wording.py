"""What the judge is asked, in English and Chinese, and how its verdict is read: from the last line, to the letter."""

from collections.abc import Sequence
from typing import Literal

from danlu.core.records import Message

Verdict = Literal["A", "B", "tie", ""]
"""Which of two answers is better; "" when the reply does not say it as asked."""

ENGLISH = """You are asked to compare two answers to the same conversation. Judge which of them serves the user better:
it does what was asked, what it says is true, it leaves out nothing that matters and is clearly written. Do not let
length, style or the order of the answers sway you.

[Conversation]
{prompt}

[Answer A]
{first}

[Answer B]
{second}

First explain in a few sentences what speaks for and against each. Then end with one line that holds nothing but one of
Verdict: A
Verdict: B
Verdict: tie"""
CHINESE = """请比较对同一段对话的两个回答，判断哪一个对用户更有帮助：
做到了用户要求的事，内容属实，没有遗漏要点，表达清楚。不要受回答的长短、文风或先后顺序影响。

【对话】
{prompt}

【回答 A】
{first}

【回答 B】
{second}

请先用几句话说明两个回答各自的优点和不足，然后在最后单独写一行，只能是下面三者之一：
结论：A
结论：B
结论：平局"""
WORDINGS = {"en": ENGLISH, "zh": CHINESE}
ROLES = {"en": {"system": "System", "user": "User", "assistant": "Assistant", "tool": "Tool"},
         "zh": {"system": "系统", "user": "用户", "assistant": "助手", "tool": "工具"}}
VERDICTS: dict[str, Verdict] = {
    "Verdict: A": "A", "Verdict: B": "B", "Verdict: tie": "tie", "结论：A": "A", "结论：B": "B", "结论：平局": "tie"}


def question(prompt: Sequence[Message], first: str, second: str, lang: str) -> str:
    """Return the text that the judge reads."""
    said = "\n\n".join(f"{ROLES[lang][one.role]}: {one.content}" for one in prompt)
    parts = {"{prompt}": said, "{first}": first, "{second}": second}
    text = WORDINGS[lang]
    places = sorted((text.index(mark), mark) for mark in parts)
    shown, at = [], 0
    for place, mark in places:  # piece by piece: an answer may hold the marks itself
        shown += [text[at:place], parts[mark]]
        at = place + len(mark)
    return "".join((*shown, text[at:]))


def verdict_of(reply: str) -> Verdict:
    """Return the verdict of the reply's last line that is not blank; bold type and a full stop are no offence."""
    lines = [line.strip() for line in reply.splitlines() if line.strip()]
    return VERDICTS.get(lines[-1].strip("*").rstrip(".。").strip("*"), "") if lines else ""
