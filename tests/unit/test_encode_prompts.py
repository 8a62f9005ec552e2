"""Prompts as tokens: what is cut, what is dropped, and what a reward still knows of them."""

import json
from pathlib import Path
from typing import Any

import pytest

from danlu.cli.main import main
from danlu.core.errors import DataError
from danlu.core.records import Message, Origin, Prompt
from danlu.data.config import DataConfig
from danlu.data.encode import EncodeContext
from danlu.data.encode_prompts import encode_prompts, note_of, read_note
from danlu.templates import resolve as resolve_template
from tests.reading import losses
from tests.tiny import CHATML, tiny_tokenizer

CALL = {"name": "weather", "arguments": {"city": "天津"}}


STRICT = "{% if messages[0]['role'] == 'tool' %}{{ raise_exception('a tool cannot begin') }}{% endif %}" + CHATML


def context(name: str | None = None, chat_template: str = CHATML, **keys: Any) -> EncodeContext:
    tokenizer = tiny_tokenizer(chat_template=chat_template)
    template = resolve_template(name, tokenizer)
    template.prepare_tokenizer(tokenizer)
    return EncodeContext(tokenizer, template, DataConfig(**keys))


def prompt(*said: str, system: str = "", row: int = 1, **extra: Any) -> Prompt:
    turns = [Message(("user", "assistant")[at % 2], text) for at, text in enumerate(said)]
    return Prompt((*([Message("system", system)] if system else []), *turns), Origin("ask.jsonl", row), extra)


def test_a_prompt_ends_where_the_answer_begins() -> None:
    """No token is trained, and the last ones are the generation prompt."""
    here = context()
    one, = encode_prompts([prompt("what is rain", "wet", "你好", system="请 回答")], here)
    assert here.tokenizer.decode(one.input_ids) == (
        "<|im_start|>system\n请 回答<|im_end|>\n<|im_start|>user\nwhat is rain<|im_end|>\n<|im_start|>assistant\nwet"
        "<|im_end|>\n<|im_start|>user\n你好<|im_end|>\n<|im_start|>assistant\n")
    assert not one.trained.any() and one.to_example(3).note == one.note


def test_the_oldest_rounds_go_first_and_the_note_follows() -> None:
    """The system message stays; tokens, messages of the note and ledger agree."""
    talk = prompt("what is rain", "wet", "what is the sky", "blue", "the sun", system="warm")
    short = prompt("what is the sky", "blue", "the sun", system="warm")
    limit = len(encode_prompts([short], context())[0].input_ids)
    here = context(cutoff_len=limit)
    one, = encode_prompts([talk], here)
    assert one.input_ids.tolist() == encode_prompts([short], context())[0].input_ids.tolist()
    assert read_note(one.note)[0] == short.messages
    assert list(here.ledger.reasons()) == ["cut: whole first rounds left out to fit cutoff_len"]


def test_what_is_too_long_is_told() -> None:
    """A last question that does not fit is dropped; on_long: drop and error hold for prompts as for examples."""
    talk = prompt("rain", "wet", "the sun " * 9)
    here = context(cutoff_len=12)
    assert encode_prompts([talk], here) == []
    assert list(here.ledger.reasons()) == ["dropped: the prompt alone exceeds cutoff_len"]
    talk = prompt("rain " * 9, "wet", "sun")
    assert len(encode_prompts([talk], context(cutoff_len=24))) == 1
    here = context(cutoff_len=24, on_long="drop")
    assert encode_prompts([talk], here) == [] and list(here.ledger.reasons()) == ["dropped: longer than cutoff_len"]
    with pytest.raises(DataError, match="ask.jsonl:1: .* tokens, and cutoff_len is 24"):
        encode_prompts([talk], context(cutoff_len=24, on_long="error"))


def test_a_note_gives_back_all_it_was_given() -> None:
    """Tools, reasoning, turns without words, Chinese, numbers, lists and what JSON has no word for."""
    messages = (Message("user", "天空 是 什么 颜色"), Message("assistant", "", reasoning="想", tool_calls=(CALL,)),
                Message("tool", ""), Message("user", "\n"))
    extra = {"response": "蓝色", "answers": [1, 2.5, None], "place": Path("a")}
    found = read_note(note_of(messages, extra, "文件.jsonl:7"))
    assert found == (messages, {**extra, "place": "a"}, "文件.jsonl:7")
    assert "蓝色" in note_of(messages, extra, "")


def test_tools_of_a_row_are_offered() -> None:
    """The prompt of a row with tools is that of a dialogue with them: their definitions are in its text."""
    tools = ({"name": "weather", "description": "tells the weather", "parameters": {"type": "object"}},)
    here = context("qwen")
    asked = Prompt((Message("user", "天津?"),), Origin("ask.jsonl", 1), {}, tools)
    text = here.tokenizer.decode(encode_prompts([asked], here)[0].input_ids)
    assert "tells the weather" in text


def test_rows_that_the_template_cannot_express() -> None:
    """The run stops and names the row, or leaves it out and writes it down; the others stay."""
    bad = Prompt((Message("tool", "sun"),), Origin("ask.jsonl", 2))
    rows = [prompt("rain"), bad, prompt("sun", row=3)]
    with pytest.raises(DataError, match="ask.jsonl:2"):
        encode_prompts(rows, context(chat_template=STRICT))
    here = context(chat_template=STRICT, on_bad_row="skip")
    kept = encode_prompts(rows, here)
    assert [str(one.origin) for one in kept] == ["ask.jsonl:1", "ask.jsonl:3"]
    assert list(here.ledger.reasons()) == ["dropped: the template cannot express it"]


REWARD = '''
import json
from pathlib import Path


def length(completions, messages, answer, mark):
    with Path(__file__).with_name("seen.jsonl").open("a") as out:
        for talk, one, number in zip(messages, answer, mark):
            out.write(json.dumps([talk[-1]["content"], one, number]) + "\\n")
    return [len(text) / 10 for text in completions]
'''


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("stage", ["ppo", "grpo"])
def test_rewards_see_the_columns_of_a_row(stage: str, streaming: bool, tiny_base: Path, tmp_path: Path) -> None:
    """Read whole or streamed, the first time or from the cache, each prompt comes with its own columns."""
    rows = [{"prompt": f"天空 {number}", "answer": f"蓝色 {number}", "mark": number} for number in range(6)]
    (tmp_path / "ask.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "mine.py").write_text(REWARD, encoding="utf-8")
    for run in range(1 if streaming else 2):
        assert main(["train", f"stage={stage}", f"model_name_or_path={tiny_base}", f"streaming={streaming}".lower(),
                     f"train_file={tmp_path / 'ask.jsonl'}", f"output_dir={tmp_path}/{run}", "max_steps=3",
                     "per_device_train_batch_size=2", "max_new_tokens=3", "reward_model_type=function",
                     f"reward_model={tmp_path}/mine.py:length", "disable_tqdm=true", "save_strategy=no"]) == 0
        seen = [tuple(json.loads(line)) for line in (tmp_path / "seen.jsonl").read_text("utf-8").splitlines()]
        assert set(seen) <= {(row["prompt"], row["answer"], row["mark"]) for row in rows} and len(set(seen)) == 6
        assert len(losses(tmp_path / str(run))) >= 1
        (tmp_path / "seen.jsonl").unlink()
