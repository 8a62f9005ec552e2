"""How tools look in a dialogue: definitions, calls, and calls read back from an answer. Knows nothing of tokenizers."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from danlu.core.registry import Registry
from danlu.templates.reading_calls import Call, Read
from danlu.templates.slots import parse, quote

_TAG = re.compile(r"</?[a-z_]+>|\[/?[A-Z_]+\]")
Tools = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class ToolFormat:
    """A format of tools as slots; the same slots write the text and the Jinja that is saved with the model.

    definition  one tool: {name}, and {definition}, its JSON
    read        read(text, at) returns the calls that begin at text[at:], and where they end
    begin       pattern of the places where calls may begin
    intro, between, outro   around the definitions
    is_nested   a definition is written as {"type": "function", "function": ...}, else what is inside
    indent      spaces of a definition's JSON; None: on one line
    place       definitions end the system message, or stand in front of everything
    call        one call: {name}, {quoted} (the name in JSON), {arguments} (their JSON)
    call_join, brackets     between calls; around them when there are several
    brackets_one            brackets also around a single call
    marker      in front of the calls of an answer, a control token mostly
    join        between what an answer says and its calls
    is_bare     an answer of calls alone begins without the white space that the template puts in front of words
    """

    name: str
    call: str
    read: Callable[[str, int], Read]
    begin: str
    definition: str = "{definition}"
    intro: str = ""
    between: str = ""
    outro: str = ""
    is_nested: bool = True
    indent: int | None = None
    place: Literal["system", "front"] = "system"
    call_join: str = "\n"
    brackets: tuple[str, str] = ("", "")
    brackets_one: bool = False
    marker: str = ""
    join: str = "\n"
    is_bare: bool = False

    def render_tools(self, tools: Tools) -> str:
        """Return the text that tells the model which tools there are."""
        return self.intro + self.between.join(map(self._definition, tools)) + self.outro

    def _definition(self, tool: Mapping[str, Any]) -> str:
        shown = nested(tool) if self.is_nested else inner(tool)
        text = json.dumps(shown, ensure_ascii=False, indent=self.indent)
        return parse(self.definition).fill(name=str(inner(tool).get("name", "")), definition=text)

    def render_calls(self, calls: Tools) -> str:
        """Return the text of calls, without the marker."""
        opening, closing = self.brackets if len(calls) > 1 or self.brackets_one else ("", "")
        return opening + self.call_join.join(map(self._call, calls)) + closing

    def _call(self, call: Mapping[str, Any]) -> str:
        name, arguments = inner(call)["name"], inner(call)["arguments"]
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        return parse(self.call).fill(name=name, quoted=json.dumps(name, ensure_ascii=False), arguments=text)

    def add_calls(self, content: str, calls: Tools) -> str:
        """Return what an answer says and then calls."""
        return content + (self.join if content else "") + self.marker + self.render_calls(calls)

    def parse_calls(self, text: str) -> tuple[str, tuple[Call, ...]] | None:
        """Return what an answer says and the calls that end it; None when there are none, or they are broken.

        Calls are `{"type": "function", "function": {"name": str, "arguments": dict}}`. The marker may be missing, as
        it is where special tokens are left out of decoded text.
        """
        behind = 0
        for found in self._begin.finditer(text):
            if found.start() < behind:
                continue  # inside calls that something else follows
            calls, behind = self.read(text, found.end())
            if calls and behind == len(text):
                content = text[:found.start()]
                return content.removesuffix(self.join) if self.join else content, tuple(calls)
        return None

    @cached_property
    def _begin(self) -> re.Pattern[str]:
        marker = f"(?:{re.escape(self.marker.rstrip())}[ ]?)?" if self.marker else ""
        return re.compile(marker + self.begin, re.MULTILINE)

    @property
    def tags(self) -> list[str]:
        """Return the tags that the format writes, which may be tokens of their own: <tool_call>, [TOOL_CALLS]."""
        return _TAG.findall("\n".join([self.intro, self.definition, self.outro, self.call, self.marker]))

    def jinja_tools(self) -> list[str]:
        """Return Jinja lines that add the definitions of `tools` to `ns.tools`."""
        inside = "(tool['function'] if tool['function'] is defined else tool)"
        outside = "(tool if tool['function'] is defined else {'type': 'function', 'function': tool})"
        indent = "" if self.indent is None else f"(indent={self.indent})"
        text = parse(self.definition).jinja(
            name=f"{inside}['name']", definition=f"({outside if self.is_nested else inside} | tojson{indent})")
        between = ["{%- if not loop.first %}{%- set ns.tools = ns.tools + " + quote(self.between) + " %}{%- endif %}"]
        return [
            "{%- set ns.tools = " + quote(self.intro) + " %}",
            "{%- for tool in tools %}",
            *(between if self.between else []),
            "{%- set ns.tools = ns.tools + " + text + " %}",
            "{%- endfor %}",
            "{%- set ns.tools = ns.tools + " + quote(self.outro) + " %}",
        ]

    def jinja_calls(self) -> list[str]:
        """Return Jinja lines that write the calls of `message` behind its `content`."""
        text = parse(self.call).jinja(
            name="function['name']", quoted="(function['name'] | tojson)",
            arguments="(function['arguments'] if function['arguments'] is string "
                      "else function['arguments'] | tojson)")
        opening, closing = ([self._bracket(bracket)] if bracket else [] for bracket in self.brackets)
        return [
            "{%- if content %}{{- " + quote(self.join) + " }}{%- endif %}",
            "{{- " + quote(self.marker) + " }}",
            *opening,
            "{%- for call in message['tool_calls'] %}",
            "{%- set function = call['function'] if call['function'] is defined else call %}",
            "{%- if not loop.first %}{{- " + quote(self.call_join) + " }}{%- endif %}",
            "{{- " + text + " }}",
            "{%- endfor %}",
            *closing,
        ]

    def _bracket(self, bracket: str) -> str:
        written = "{{- " + quote(bracket) + " }}"
        return written if self.brackets_one else (
            "{%- if message['tool_calls'] | length > 1 %}" + written + "{%- endif %}")


def inner(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what is inside the nesting {"type": "function", "function": ...} of a definition or call."""
    found: Mapping[str, Any] = tool.get("function", tool)
    return found


def nested(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a definition in the nesting {"type": "function", "function": ...}."""
    return tool if "function" in tool else {"type": "function", "function": tool}


def declare_tools(name: str, **slots: Any) -> ToolFormat:
    """Register a format of tools."""
    return TOOL_FORMATS.add(ToolFormat(name, **slots), name)


TOOL_FORMATS: Registry[ToolFormat] = Registry("tool_format", "danlu.templates.tool_formats")
