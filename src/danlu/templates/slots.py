"""The small language of slots: text with {content}, {bos}, {eos}, {index}; in formats of tools {name} and its kind."""

import json
import re
from dataclasses import dataclass
from functools import cache

_FIELD = re.compile(r"\{(content|bos|eos|index|name|quoted|arguments|definition)\}")


@dataclass(frozen=True, slots=True)
class Slot:
    """Literal texts and fields in turn: `parts[0]` is text, `parts[1]` a field's name, `parts[2]` text, ..."""

    parts: tuple[str, ...]

    def fill(self, **fields: str) -> str:
        """Return the text with every field filled in."""
        return "".join(fields[part] if i % 2 else part for i, part in enumerate(self.parts))

    def jinja(self, **names: str) -> str:
        """Return a Jinja expression that fills the fields with the variables `names`."""
        terms = [names[part] if i % 2 else quote(part) for i, part in enumerate(self.parts) if part]
        return " + ".join(terms) or "''"

    def around(self, field: str) -> tuple["Slot", "Slot"]:
        """Return what stands before and behind a field."""
        at = next(i for i, part in enumerate(self.parts) if i % 2 and part == field)
        return Slot(self.parts[:at]), Slot(self.parts[at + 1:])

    @property
    def literal(self) -> str:
        """Return the literal texts, joined by a newline."""
        return "\n".join(self.parts[::2])


@cache
def parse(text: str) -> Slot:
    """Read a slot."""
    return Slot(tuple(_FIELD.split(text)))


def quote(text: str) -> str:
    """Return `text` as a Jinja string literal."""
    return json.dumps(text, ensure_ascii=False)
