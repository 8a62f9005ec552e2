"""The handbook of data: every example row becomes the record that is printed below it, in both languages alike."""

import json
import re
from pathlib import Path

import pytest

from danlu.core.records import Conversation, Feedback, Graded, Preference, Prompt, Text
from danlu.data.config import DataConfig
from danlu.data.layout import Layout
from danlu.data.loader import load_records
from danlu.data.registry import COLUMNS, ENTRY_KEYS, TAGS, UNREADABLE
from danlu.data.row_file import ROW_FILES
from danlu.data.row_format import FORMATS, detect

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = [DOCS / "data.md", DOCS / "data_zh.md"]
KINDS = {kind.__name__: kind for kind in (Text, Conversation, Preference, Feedback, Graded, Prompt)}
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def examples(page):
    """Return (registry or None, row, record as printed) of every row block of a page."""
    blocks = BLOCK.findall(page.read_text("utf-8"))
    found = []
    for index, (language, body) in enumerate(blocks):
        if language == "jsonl":
            after, printed = blocks[index + 1]
            assert after == "text", f"no record is printed below {body}"
            before, registry = blocks[index - 1] if index else ("", "")
            found.append((json.loads(registry) if before == "json" else None, body, printed))
    return found


def printed(record):
    """Return a record as the handbook prints it."""
    lines = [type(record).__name__]
    if isinstance(record, Text):
        lines.append(f"text: {record.text}")
    if tools := getattr(record, "tools", ()):
        lines.append(f"tools: {', '.join(tool['name'] for tool in tools)}")
    for message in getattr(record, "prompt", ()) or getattr(record, "messages", ()):
        lines.append(said(message.role, message))
    lines += [said(f"answer {number}", message) for number, message in enumerate(getattr(record, "answers", ()), 1)]
    if isinstance(record, Preference) and record.margin is not None:
        lines.append(f"margin: {record.margin:g}")
    if isinstance(record, Graded):
        lines.append(f"good: the first {record.num_good}")
    if isinstance(record, Feedback):
        lines.append(f"desirable: {json.dumps(record.desirable)}")
    if isinstance(record, Prompt):
        lines.append(f"extra: {json.dumps(record.extra, ensure_ascii=False)}")
    return "\n".join(line.replace("\n", "\\n") for line in lines) + "\n"


def said(who, message):
    if message.tool_calls:
        call = message.tool_calls[0]["function"]
        return f"{who} calls: {call['name']} {json.dumps(call['arguments'])}"
    weight = f" [weight {message.weight}]" if message.weight is not None else ""
    reasoning = f" [reasoning: {message.reasoning}]" if message.reasoning else ""
    return f"{who}: {message.content}{weight}{reasoning}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_example_becomes_the_record_below_it(page, tmp_path):
    shown = examples(page)
    assert len(shown) >= 25
    for number, (registry, row, wanted) in enumerate(shown):
        folder = tmp_path / str(number)
        folder.mkdir()
        kind = KINDS[wanted.split("\n")[0]]
        config = DataConfig(train_file=str(folder / "row.jsonl"))
        path = folder / "row.jsonl"
        if registry:
            (name, entry), = registry.items()
            path = folder / entry["file_name"]
            (folder / "dataset_info.json").write_text(json.dumps(registry))
            config = DataConfig(dataset=name, dataset_dir=str(folder))
        path.write_text(row, "utf-8")
        assert [printed(record) for record in load_records(config, kind)] == [wanted], row


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_format_kind_file_type_and_key_is_in_the_handbook(page):
    text = page.read_text("utf-8")
    shown = [(detect(json.loads(row), KINDS[wanted.split("\n")[0]]), wanted.split("\n")[0])
             for registry, row, wanted in examples(page) if not registry]
    assert {name for name, _ in shown} == set(FORMATS)
    assert {kind for _, kind in shown} == set(KINDS)
    for word in (*COLUMNS, *TAGS, *ENTRY_KEYS, *UNREADABLE):
        assert f"`{word}`" in text, word
    for suffix in ROW_FILES:
        assert f".{suffix}" in text, suffix


def test_both_languages_show_the_same_examples():
    english, chinese = map(examples, PAGES)
    assert [wanted.split("\n")[0] for _, _, wanted in english] == [wanted.split("\n")[0] for _, _, wanted in chinese]
    assert all(set(one[0] or ()) == set(other[0] or ()) for one, other in zip(english, chinese, strict=True))


def test_a_layout_without_declarations_looks_for_the_usual_names():
    assert Layout().column("prompt", "instruction") == ("instruction",)
    assert Layout(columns={"prompt": "ask"}).column("query", "input") == ()
