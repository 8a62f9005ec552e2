"""Writes the Jinja chat template of a named template, so that every other tool renders the same text."""

from typing import TYPE_CHECKING

from danlu.templates.slots import Slot, parse, quote

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
    text = _slot(template.system, "ns.system")
    lines = [
        "{%- set ns = namespace(index=" + str(template.first_index - 1) + ", query=-1, pending='', system="
        + quote(template.default_system) + ") %}",
        "{%- if messages and messages[0]['role'] == 'system' %}",
        "{%- set ns.system = messages[0]['content'] %}",
        "{%- set ns.pending = " + text + " %}",
        "{%- elif ns.system %}",
        "{%- set ns.pending = " + text + " %}",
        "{%- endif %}",
        "{{- " + _slot(template.prefix) + " }}",
    ]
    if not template.system_in_user:
        lines += ["{{- ns.pending }}", "{%- set ns.pending = '' %}"]
    if template.thinking.is_managed:
        lines += ["{%- for message in messages %}{%- if message['role'] == 'user' %}"
                  "{%- set ns.query = loop.index0 %}{%- endif %}{%- endfor %}"]
    return lines


def _rounds(template: "NamedTemplate", answer: Slot) -> list[str]:
    observation = template.user if template.observation is None else template.observation
    before, after = answer.around("content")
    return [
        "{%- for message in messages %}",
        "{%- if message['role'] == 'user' %}",
        "{%- set ns.index = ns.index + 1 %}",
        "{{- " + _slot(template.user, "(ns.pending + message['content'])") + " }}",
        "{%- set ns.pending = '' %}",
        "{%- elif message['role'] == 'tool' %}",
        "{{- " + _slot(observation, "(ns.pending + message['content'])") + " }}",
        "{%- set ns.pending = '' %}",
        "{%- elif message['role'] == 'assistant' %}",
        "{{- " + _slot(template.generation) + " }}",
        "{{- " + before.jinja(**_SPECIAL) + " }}",
        *(_managed(template) if template.thinking.is_managed else _plain(template)),
        "{{- " + after.jinja(**_SPECIAL) + " }}",
        "{%- elif not loop.first %}",
        "{{- raise_exception('only the first message can be a system message') }}",
        "{%- endif %}",
        "{%- endfor %}",
    ]


def _plain(template: "NamedTemplate") -> list[str]:
    block = quote(template.thinking.opening) + " + message['reasoning_content'] + " + quote(template.thinking.closing)
    return [
        "{%- if message['reasoning_content'] %}",
        "{{- " + block + " }}",
        "{%- endif %}",
        "{{- message['content'] }}",
    ]


def _managed(template: "NamedTemplate") -> list[str]:
    thinking = template.thinking
    first, last = map(quote, thinking.tags)
    return [
        "{%- set reasoning = message['reasoning_content'] or '' %}",
        "{%- set content = message['content'] %}",
        "{%- if message['reasoning_content'] is not string and content.startswith(" + first + ") and "
        + last + " in content %}",
        "{%- set reasoning = content[" + str(len(thinking.tags[0])) + ":].split(" + last + ", 1)[0] %}",
        "{%- set content = content.split(" + last + ", 1)[1].lstrip('\\n') %}",
        "{%- endif %}",
        "{%- set reasoning = reasoning.strip('\\n') %}",
        "{%- if loop.index0 > ns.query or preserve_thinking %}",
        "{%- if enable_thinking is defined and enable_thinking is false %}{%- set reasoning = '' %}{%- endif %}",
        "{{- " + quote(thinking.opening) + " + reasoning + " + quote(thinking.closing) + " }}",
        "{%- endif %}",
        "{{- content }}",
    ]


def _empty_block_in_prompt(template: "NamedTemplate") -> list[str]:
    if not template.thinking.is_managed:
        return []
    return [
        "{%- if enable_thinking is defined and enable_thinking is false %}",
        "{{- " + quote(template.thinking.opening + template.thinking.closing) + " }}",
        "{%- endif %}",
    ]
