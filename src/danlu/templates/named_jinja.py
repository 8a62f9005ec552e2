"""Writes the Jinja chat template of a named template, so that every other tool renders the same text."""

from typing import TYPE_CHECKING

from danlu.templates.slots import Slot, parse, quote
from danlu.templates.writer import BEHIND_SYSTEM

if TYPE_CHECKING:
    from danlu.templates.named import NamedTemplate

_SPECIAL = {"bos": "(bos_token or '')", "eos": "(eos_token or '')"}


def write_jinja(template: "NamedTemplate", answer: Slot) -> str:
    """Return the chat template; `answer` is the assistant slot as it is written for this tokenizer."""
    lines = [
        *_system(template),
        *_rounds(template, answer),
        "{%- if add_generation_prompt %}",
        "{{- " + _slot(template.generation) + " }}",
        *_empty_block_in_prompt(template),
        "{%- endif %}",
    ]
    return "\n".join(lines)


def _slot(text: str, content: str = "''") -> str:
    return parse(text).jinja(content=content, index="(ns.index | string)", **_SPECIAL)


def _system(template: "NamedTemplate") -> list[str]:
    is_in_front = template.tools is not None and template.tools.place == "front"
    lines = [
        "{%- set ns = namespace(index=" + str(template.first_index - 1) + ", query=-1, pending='', tools='', system="
        + quote(template.default_system) + ") %}",
        "{%- set ns.has_system = ns.system | length > 0 %}",
        "{%- if messages and messages[0]['role'] == 'system' %}",
        "{%- set ns.system = messages[0]['content'] %}",
        "{%- set ns.has_system = true %}",
        "{%- endif %}",
        *_tools(template),
        "{%- if ns.has_system %}",
        "{%- set ns.pending = " + _slot(template.system, "ns.system") + " %}",
        "{%- endif %}",
        "{{- " + _slot(template.prefix) + " }}",
    ]
    if is_in_front:
        lines += ["{{- ns.tools }}"]
    if not template.system_in_user:
        lines += ["{{- ns.pending }}", "{%- set ns.pending = '' %}"]
    if template.thinking.is_managed:
        lines += ["{%- for message in messages %}{%- if message['role'] == 'user' %}"
                  "{%- set ns.query = loop.index0 %}{%- endif %}{%- endfor %}"]
    return lines


def _tools(template: "NamedTemplate") -> list[str]:
    if template.tools is None:
        return []
    behind = [
        "{%- set ns.system = ns.system + (" + quote(BEHIND_SYSTEM) + " if ns.system else '') + ns.tools %}",
        "{%- set ns.has_system = true %}",
    ]
    return ["{%- if tools %}", *template.tools.jinja_tools(), *(behind if template.tools.place == "system" else []),
            "{%- endif %}"]


def _rounds(template: "NamedTemplate", answer: Slot) -> list[str]:
    before, after = answer.around("content")
    is_bare = template.tools is not None and template.tools.is_bare
    condition = ("{%- if said or not message['tool_calls'] %}", "{%- endif %}") if is_bare else ("", "")
    return [
        "{%- for message in messages %}",
        "{%- if message['role'] == 'user' %}",
        "{%- set ns.index = ns.index + 1 %}",
        "{{- " + _slot(template.user, "(ns.pending + message['content'])") + " }}",
        "{%- set ns.pending = '' %}",
        "{%- elif message['role'] == 'tool' %}",
        *_observation(template),
        "{%- set ns.pending = '' %}",
        "{%- elif message['role'] == 'assistant' %}",
        "{{- " + _slot(template.generation) + " }}",
        *(_managed(template) if template.thinking.is_managed else _plain(template)),
        condition[0] + "{{- " + before.jinja(**_SPECIAL) + " }}" + condition[1],
        "{{- said }}",
        *_calls(template),
        "{{- " + after.jinja(**_SPECIAL) + " }}",
        "{%- elif not loop.first %}",
        "{{- raise_exception('only the first message can be a system message') }}",
        "{%- endif %}",
        "{%- endfor %}",
    ]


def _observation(template: "NamedTemplate") -> list[str]:
    slot = template.user if template.observation is None else template.observation
    if template.result is None:
        return ["{{- " + _slot(slot, "(ns.pending + message['content'])") + " }}"]
    before, after = parse(slot).around("content")
    fields = {"index": "''", **_SPECIAL}
    return [
        "{%- if loop.first or loop.previtem['role'] != 'tool' %}",
        "{{- " + before.jinja(**fields) + " + ns.pending }}",
        '{%- else %}{{- "\\n" }}{%- endif %}',
        "{{- " + _slot(template.result, "message['content']") + " }}",
        "{%- if loop.last or loop.nextitem['role'] != 'tool' %}{{- " + after.jinja(**fields) + " }}{%- endif %}",
    ]


def _calls(template: "NamedTemplate") -> list[str]:
    if template.tools is None:
        return []
    return ["{%- if message['tool_calls'] %}", *template.tools.jinja_calls(), "{%- endif %}"]


def _plain(template: "NamedTemplate") -> list[str]:
    block = quote(template.thinking.opening) + " + message['reasoning_content'] + " + quote(template.thinking.closing)
    return [
        "{%- set content = message['content'] or '' %}",
        "{%- set said = (" + block + " if message['reasoning_content'] else '') + content %}",
    ]


def _managed(template: "NamedTemplate") -> list[str]:
    thinking = template.thinking
    first, last = map(quote, thinking.tags)
    return [
        "{%- set reasoning = message['reasoning_content'] or '' %}",
        "{%- set content = message['content'] or '' %}",
        "{%- if message['reasoning_content'] is not string and content.startswith(" + first + ") and "
        + last + " in content %}",
        "{%- set reasoning = content[" + str(len(thinking.tags[0])) + ":].split(" + last + ", 1)[0] %}",
        "{%- set content = content.split(" + last + ", 1)[1].lstrip('\\n') %}",
        "{%- endif %}",
        "{%- set reasoning = reasoning.strip('\\n') %}",
        "{%- set said = content %}",
        "{%- if loop.index0 > ns.query or preserve_thinking %}",
        "{%- if enable_thinking is defined and enable_thinking is false %}{%- set reasoning = '' %}{%- endif %}",
        "{%- set said = " + quote(thinking.opening) + " + reasoning + " + quote(thinking.closing) + " + content %}",
        "{%- endif %}",
    ]


def _empty_block_in_prompt(template: "NamedTemplate") -> list[str]:
    if not template.thinking.is_managed:
        return []
    return [
        "{%- if enable_thinking is defined and enable_thinking is false %}",
        "{{- " + quote(template.thinking.opening + template.thinking.closing) + " }}",
        "{%- endif %}",
    ]
