"""What the words of a record tell: its identity as hashes, and suspicious text inside it."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

from danlu.core.records import Conversation, Feedback, Graded, Message, Preference, Prompt, Record, Text

GENERIC_CONTROLS = (
    r"<\|[A-Za-z_/][\w .:/-]{0,40}\|>|<｜[^｜\n]{1,40}｜>|</?s>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|"
    r"<(?:bos|eos|pad|unk|mask|eop|sop|eod|eoh|eom|eot)>|\[(?:gMASK|sMASK|CLS|SEP|PAD|UNK|BOS|EOS)\]|"
    r"\[\|(?:system|user|assistant|endofturn)\|\]")
PLACEHOLDER = re.compile(r"\{\{ ?[\w.\- ]{1,40} ?\}\}")
SUSPECTS = re.compile(r"[\ufffd\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]|\{\{")
HALVES = re.compile("[\ud800-\udfff]")
LONGEST_ROW = 1_000_000


class Suspicion(NamedTuple):
    """A code, the words that raised it, and a reason."""

    code: str
    words: str
    reason: str


@dataclass(frozen=True, slots=True)
class Identity:
    """64-bit hashes of a record; 0 where there is nothing to compare.

    row     every word of it
    prompt  what comes before the last answer (of a pair: prompt and answers in any order)
    ask     what the user says, without case and spacing
    """

    row: int
    prompt: int
    ask: int


class TextCheck:
    """Looks for text that should not be in data."""

    def __init__(self, controls: Iterable[str] = ()) -> None:
        literal = "|".join(re.escape(text) for text in sorted(controls, key=len, reverse=True))
        self._controls = re.compile("|".join(filter(None, (literal, GENERIC_CONTROLS))))

    def __call__(self, record: Record) -> Iterator[Suspicion]:
        """Yield what is suspicious, each code once a record."""
        seen: set[str] = set()
        characters = 0
        for text in texts_of(record):
            characters += len(text)
            for one in self._text(text):
                if one.code not in seen:
                    seen.add(one.code)
                    yield one
        if characters > LONGEST_ROW:
            yield Suspicion("long-line", "", f"{characters:,} characters in one row")
        if isinstance(record, Text) and not record.text.strip():
            yield Suspicion("empty-text", "", "no text but white space")

    def _text(self, text: str) -> Iterator[Suspicion]:
        found = self._controls.search(text)
        if found:
            yield Suspicion("control-token", found[0], f"the text holds the control token {found[0]}")
        meant = misread(text)
        if meant:
            yield Suspicion("misread-encoding", text[:40], f"UTF-8 read as another encoding; it says {meant[:40]!r}")
        if not SUSPECTS.search(text):
            return
        filled = PLACEHOLDER.search(text)
        if filled:
            yield Suspicion("placeholder", filled[0], f"the text holds the placeholder {filled[0]}")
        for letter in set(text):
            code = _letter_code(letter)
            if code:
                yield Suspicion(code, letter, f"the text holds the character U+{ord(letter):04X}")


def misread(text: str) -> str:
    """Return what UTF-8 text said before it was read as Western or Chinese code pages; "" when nothing points to that.

    Such text goes back to bytes in the wrong encoding and forward again in UTF-8, which ordinary text does not.
    """
    if text.isascii():
        return ""
    for wrong in ("cp1252", "gbk"):
        try:
            meant = text.encode(wrong).decode("utf-8")
        except UnicodeError:
            continue
        foreign = [letter for letter in meant if letter > "\x7f"]
        # Two Chinese signs may form valid UTF-8 by chance; four that all come out as usual letters do not.
        if len(text) - len(meant) >= 2 and all(_is_usual(letter) for letter in foreign):
            return meant
    return ""


def _is_usual(letter: str) -> bool:
    return "\u00a0" <= letter <= "\u024f" or "\u2010" <= letter <= "\u2030" or "\u3000" <= letter <= "\u9fff" or (
        "\uff00" <= letter <= "\uffef")


def _letter_code(letter: str) -> str:
    if letter == "\ufffd":
        return "replacement-character"
    if "\ud800" <= letter <= "\udfff":
        return "lone-surrogate"
    return "control-character" if letter < " " and letter not in "\t\n\r" or letter == "\x7f" else ""


def texts_of(record: Record) -> Iterator[str]:
    """Yield every text of a record."""
    if isinstance(record, Text):
        yield record.text
        return
    for message in messages_of(record):
        yield message.content
        if message.reasoning:
            yield message.reasoning


def is_whole(record: Record) -> bool:
    """Say whether no text of a record holds half of a surrogate pair."""
    return not any(HALVES.search(text) for text in texts_of(record))


def messages_of(record: Record) -> tuple[Message, ...]:
    """Return all messages of a record, answers included; none for prose."""
    if isinstance(record, Text):
        return ()
    if isinstance(record, Preference | Graded):
        return (*record.prompt, *record.answers)
    return record.messages


def identity_of(record: Record) -> Identity:
    """Return the hashes that tell whether two records say the same."""
    if isinstance(record, Text):
        return Identity(_hash("text", record.text), 0, _hash("ask", " ".join(record.text.lower().split())))
    asked, answers = _parts(record)
    tools = repr(record.tools) if isinstance(record, Conversation | Preference | Graded) and record.tools else ""
    words = [tools, *(f"{one.role}\x1f{_said(one)}" for one in asked)]
    if isinstance(record, Preference | Graded | Prompt):
        prompt = _hash("pair", *words, *sorted(answers)) if answers else 0
    else:
        prompt = _hash("prompt", *words)
    question = " ".join(" ".join(one.content for one in asked if one.role == "user").lower().split())
    return Identity(_hash("row", *words, "\x1d", *answers), prompt, _hash("ask", question) if question else 0)


def _parts(record: Conversation | Preference | Graded | Feedback | Prompt) -> tuple[tuple[Message, ...], list[str]]:
    """Return the messages before the last answer, and the answers as text."""
    if isinstance(record, Preference | Graded):
        return record.prompt, [_said(one) for one in record.answers]
    if isinstance(record, Feedback):
        return record.messages, [str(record.desirable)]
    if isinstance(record, Prompt):
        return record.messages, []
    return record.messages[:-1], [_said(record.messages[-1])]


def _said(message: Message) -> str:
    calls = repr(message.tool_calls) if message.tool_calls else ""
    return f"{message.reasoning or ''}\x1e{message.content}\x1e{calls}"


def _hash(*words: str) -> int:
    digest = blake2b("\x1c".join(words).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1
