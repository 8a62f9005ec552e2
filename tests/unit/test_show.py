"""danlu data show and stats: what is shown is what the loss counts."""

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from danlu.core.records import Conversation, Message, Origin
from danlu.core.stream import Example, flatten
from danlu.data.config import DataConfig
from danlu.data.encode import EncodeContext, encode_conversations
from danlu.data.microscope.page import picture
from danlu.data.microscope.sums import histogram
from danlu.data.microscope.view import PART, Lens, view_record
from danlu.templates import TEMPLATES
from tests.tiny import tiny_tokenizer

Run = Callable[..., int]


def context(**keys: Any) -> EncodeContext:
    return EncodeContext(tiny_tokenizer(), TEMPLATES[keys.pop("template", "chatml")], DataConfig(**keys))


def record(*texts: str, reasoning: str | None = None) -> Conversation:
    roles = ("user", "assistant")
    return Conversation(tuple(
        Message(roles[index % 2], text, reasoning=reasoning if index == 1 else None)  # type: ignore[arg-type]
        for index, text in enumerate(texts)), Origin("made", 1))


def test_tokens_shown_as_trained_are_the_targets_of_the_loss() -> None:
    setting = context()
    talk = record("天空 是 什么", "蓝色 sky", "and", "mat 🐱")
    view = view_record(talk, encode_conversations, setting, Lens.of(setting), "t")[0]
    stream = flatten([encode_conversations([talk], setting)[0].to_example()])
    shown = [(token.position, token.id) for token in view.tokens if token.is_trained]
    assert shown == list(zip((stream.loss_rows + 1).tolist(), stream.loss_targets.tolist(), strict=True))
    assert [token.id for token in view.tokens] == stream.input_ids.tolist()


def test_views_are_the_examples_of_the_prepared_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from danlu.data.dataset import build_dataset
    from danlu.data.loader import load_records
    from danlu.stages.sft import SFT

    monkeypatch.setenv("DANLU_CACHE", str(tmp_path / "cache"))
    setting = context(dataset=(str(write_rows(tmp_path / "a.jsonl")),), cutoff_len=60)
    records = load_records(setting.config, Conversation)
    dataset, lens = build_dataset(records, SFT, setting), Lens.of(setting)
    views = [view for one in records for view in view_record(one, SFT.encode, setting, lens, "t")]
    assert len(views) == len(dataset) == 3
    for view, example in zip(views, dataset, strict=True):
        kept = [token for token in view.tokens if not token.is_cut]
        assert [token.id for token in kept] == example.input_ids.tolist()
        assert [token.is_trained for token in kept] == example.trained.tolist()


def test_weights_of_messages_are_shown() -> None:
    setting = context()
    talk = Conversation((Message("user", "q"), Message("assistant", "a", 0.5), Message("user", "r"),
                         Message("assistant", "b", 0.0)), Origin("made", 1))
    view = view_record(talk, encode_conversations, setting, Lens.of(setting), "t")[0]
    trained = [(token.text, token.weight) for token in view.tokens if token.is_trained]
    assert trained == [("a", 0.5), ("<|im_end|>", 0.5)]


def test_the_first_token_of_a_segment_is_shown_as_not_trained() -> None:
    setting = context()
    example = Example(np.array([9, 8, 7, 9, 8]), np.ones(5, np.bool_), None, (3, 2))
    tokens = Lens.of(setting).example(example, "t").tokens
    assert [token.is_trained for token in tokens] == [False, True, True, False, True]
    assert [token.segment for token in tokens] == [0, 0, 0, 1, 1]
    assert [token.position for token in tokens] == [0, 1, 2, 0, 1]


def test_texts_of_tokens_join_to_the_text_without_broken_characters() -> None:
    setting = context()
    text = "the 猫 sat 🐱 é\n"
    ids = setting.tokenizer(text)["input_ids"]
    shown = Lens.of(setting).texts(ids)
    assert "".join(shown).replace(PART, "") == text and len(shown) == len(ids)
    assert any(part == PART for part in shown), "the tiny tokenizer writes the cat in several bytes"


@pytest.mark.parametrize(("on_long", "kept"), [("right", "first question"), ("left", "last question")])
def test_rounds_that_are_cut_are_shown_where_they_were(on_long: str, kept: str) -> None:
    """Whole text = kept tokens and cut tokens in their order, whichever side goes."""
    talk = record("first question", "yes", "last question", "no")
    setting = context(cutoff_len=30, on_long=on_long)
    lens = Lens.of(setting)
    whole = view_record(talk, encode_conversations, context(), lens, "t")[0]
    assert len(whole.tokens) > 30
    view = view_record(talk, encode_conversations, setting, lens, "t")[0]
    assert [token.id for token in view.tokens] == [token.id for token in whole.tokens]
    assert kept in "".join(token.text for token in view.tokens if not token.is_cut)
    assert sum(not token.is_cut for token in view.tokens) <= 30
    assert any("rounds left out" in note for note in view.notes)


def test_a_row_without_room_is_shown_as_cut_whole() -> None:
    setting = context(cutoff_len=8)
    view = view_record(record("long question " * 5, "x"), encode_conversations, setting, Lens.of(setting), "t")[0]
    assert all(token.is_cut for token in view.tokens) and "dropped" in view.notes[0]


def test_reasoning_is_visible_and_its_loss_is_said() -> None:
    shown = context(template="qwen3")
    last = view_record(record("q", "a", reasoning="I think so"), encode_conversations, shown, Lens.of(shown), "t")[0]
    assert "I think so" in "".join(token.text for token in last.tokens if token.is_trained) and not last.notes
    early = record("q", "a", "r", "b", reasoning="I think so")
    view = view_record(early, encode_conversations, shown, Lens.of(shown), "t")[0]
    assert view.notes == ("the reasoning of answer 1 of 2 is left out by the template "
                          "(see preserve_thinking, enable_thinking)",)


def test_histogram_counts_every_value_once() -> None:
    values = np.array([3, 3, 4, 90, 91, 150])
    bars = histogram(values, bins=10)
    assert sum(count for _, _, count in bars) == 6 and bars[0][0] == 3 and bars[-1][1] >= 150
    assert all(later[0] == earlier[1] + 1 for earlier, later in zip(bars, bars[1:], strict=False))
    assert picture(values, "x").count("<rect") == len(histogram(values))


class Page(HTMLParser):
    """Gathers the tokens of a page, and everything it would load."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tokens: list[tuple[str, str]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.loads += [str(given[name]) for name in ("src", "href", "srcset", "action") if name in given]
        self.loads += [tag] * (tag in ("script", "link", "iframe", "img"))
        if tag == "span" and given.get("title", "").startswith("id "):  # type: ignore[union-attr]
            self.tokens.append((str(given["class"]), str(given["title"])))


def write_rows(path: Path) -> Path:
    rows = [{"instruction": "what colour is <b>sky</b>", "output": "blue & warm"},
            {"instruction": "the cat", "output": "sat on a mat " * 20}, {"instruction": "你好", "output": "你好 请"}]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def test_page_is_self_contained_and_agrees_with_the_sums(
        tmp_path: Path, tiny_base: Path, danlu: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DANLU_CACHE", str(tmp_path / "cache"))
    path, out = write_rows(tmp_path / "a.jsonl"), tmp_path / "page.html"
    words = ["show", str(path), "--model", str(tiny_base), "--cutoff_len", "60", "--html", str(out)]
    assert danlu("data", words) == 0
    text = out.read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert not page.loads and "http" not in text and "@import" not in text and "url(" not in text
    assert "<b>sky" not in text and "<svg" in text
    trained = sum("tr" in names.split() for names, _ in page.tokens)
    cut = sum("cut" in names.split() for names, _ in page.tokens)
    assert f">{trained:,} (" in text, "the table counts the tokens that are marked"
    assert cut > 0 and "2 of 3 (66.7 %)" in text, "two of three answers end with a stop token"
    assert "1 of 3 (33.3 %)" in text, "one row of three is cut"
    assert all(re.fullmatch(r"id \d+, (cut|position \d+, weight [01])", title) for _, title in page.tokens)


def test_terminal_marks_what_is_trained(
        tmp_path: Path, tiny_base: Path, danlu: Run, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("DANLU_CACHE", str(tmp_path / "cache"))
    path = write_rows(tmp_path / "a.jsonl")
    assert danlu("data", ["show", str(path), "--model", str(tiny_base), "--row", "3"]) == 0
    shown = capsys.readouterr().out
    assert "⟦你好 请<|im_end|>⟧" in shown and "row 3" in shown
    assert danlu("data", ["show", str(path), "--model", str(tiny_base), "--example", "1", "--packing", "true"]) == 0
    packed = capsys.readouterr().out
    assert packed.count("<|im_start|>assistant") == 3, "all three rows are packed into one example"


def test_a_training_file_is_shown_checked_and_counted(
        tmp_path: Path, tiny_base: Path, danlu: Run, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str]) -> None:
    """Pre-training blocks of 16 tokens are all trained but their first; no document is too long for blocks."""
    monkeypatch.setenv("DANLU_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "prose.jsonl"
    path.write_text("".join(json.dumps({"text": f"the cat sat on mat {n} and what"}) + "\n" for n in range(9)), "utf-8")
    run = tmp_path / "run.yaml"
    run.write_text(f"stage: pt\nmodel_name_or_path: {tiny_base}\ndataset: {path}\ncutoff_len: 16\noutput_dir: x\n"
                   "learning_rate: 1.0e-4\n", "utf-8")
    assert danlu("data", ["show", str(run), "--example", "2"]) == 0
    shown = capsys.readouterr().out
    assert "16 tokens, 15 trained" in shown
    assert danlu("data", ["lint", str(run), "--only", "eos-lost,too-long", "--strict"]) in (0, 1)
    assert "eos-lost" not in capsys.readouterr().out
    assert danlu("data", ["stats", str(run)]) == 0
    assert "rows                   9" in capsys.readouterr().out


def test_show_refuses_what_cannot_be_shown(
        tmp_path: Path, tiny_base: Path, danlu: Run, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("DANLU_CACHE", str(tmp_path / "cache"))
    path = write_rows(tmp_path / "a.jsonl")
    model = ["--model", str(tiny_base)]
    for words, said in (
            ([str(path)], "no model"), ([str(path), *model, "--row", "9"], "there are 3"),
            ([str(path), *model, "--row", "0"], "--row"), ([str(path), *model, "--row", "x"], "--row"),
            ([str(path), *model, "--html", str(tmp_path / "no" / "p.html")], "does not exist"),
            ([str(path), *model, "--template", "chatm"], "chatml"), (model, "no data is named")):
        capsys.readouterr()
        assert danlu("data", ["show", *words]) == 2, words
        assert said in capsys.readouterr().err, words
    assert not list(tmp_path.glob("**/*.html*"))
