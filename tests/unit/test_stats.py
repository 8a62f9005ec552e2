"""danlu data stats: numbers counted by hand."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from danlu.data.lint.languages import language_of

Run = Callable[..., int]


@pytest.mark.parametrize(("text", "language"), [
    ("The sky is blue and the cat is on the mat.", "en"), ("天空是蓝色的，猫在垫子上。", "zh"),
    ("空は青いです。猫がいます。", "ja"), ("하늘은 파랗다", "ko"), ("Небо голубое", "ru, uk, ..."),
    ("Der Himmel über Berlin ist heute blau", "latin"), ("1 + 1 = 2", "none"),
    ("用 Python 写一个函数来计算斐波那契数列的值", "zh"), ("def f(x): return x", "latin")])
def test_language_by_letters(text: str, language: str) -> None:
    assert language_of(text) == language


def test_numbers_counted_by_hand(
        tmp_path: Path, tiny_base: Path, danlu: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """Characters: 2+3 and 3+4+2+1 -> 5 and 10, in sum 15. Turns 2 + 4. The third line is no JSON."""
    path = tmp_path / "a.jsonl"
    rows = [[("user", "hi"), ("assistant", "you")],
            [("user", "the"), ("assistant", "cat!"), ("user", "is"), ("assistant", "a")]]
    lines = [json.dumps({"messages": [{"role": role, "content": text} for role, text in row]}) for row in rows]
    path.write_text("\n".join([*lines, "{"]), encoding="utf-8")
    assert danlu("data", ["stats", str(path), "--model", str(tiny_base), "--cutoff_len", "20", "--json"]) == 0
    stats = json.loads(capsys.readouterr().out)[0]
    assert (stats["rows"], stats["bad_rows"], stats["format"], stats["turns"]) == (3, 1, "openai", 6)
    assert stats["roles"] == {"user": 3, "assistant": 3} and stats["answers_per_row"] == {"1": 1, "2": 1}
    assert stats["characters"] == {"total": 15, "mean": 7.5, "percentiles": {
        "0": 5, "5": 5, "25": 5, "50": 5, "75": 5, "95": 5, "99": 5, "100": 10}}
    from danlu.core.records import Conversation, Message, Origin
    from danlu.data.config import DataConfig
    from danlu.data.encode import EncodeContext, encode_conversations
    from danlu.templates import resolve
    from tests.tiny import CHATML, tiny_tokenizer

    tokenizer = tiny_tokenizer(chat_template=CHATML)
    talks = [Conversation(tuple(Message(role, text) for role, text in row), Origin("", 1))  # type: ignore[arg-type]
             for row in rows]
    encoded = encode_conversations(talks, EncodeContext(tokenizer, resolve(None, tokenizer), DataConfig()))
    assert stats["tokens"]["total"] == sum(len(one.input_ids) for one in encoded)
    assert stats["tokens"]["trained"] == sum(int(one.trained.sum()) for one in encoded)
    assert stats["tokens"]["longer_than_cutoff_len"] == sum(len(one.input_ids) > 20 for one in encoded) > 0


def test_table_has_one_block_a_source(world: Path, danlu: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert danlu("data", ["stats", "chat", "prose", "--dataset_dir", str(world)]) == 0
    shown = capsys.readouterr().out
    assert shown.count("rows  ") == 2 and "alpaca" in shown and "text" in shown
    assert danlu("data", ["stats", "nothing", "--dataset_dir", str(world)]) == 2
