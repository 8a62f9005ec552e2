"""A conversation: history, commands, what leaves when the context is full. The model is a tiny random one."""


import pytest

from danlu.core.errors import UserError
from danlu.core.records import Message
from danlu.generation.chat import ChatSession, as_message
from danlu.generation.config import GenerationConfig
from danlu.generation.load import Loaded, load_for_inference
from danlu.models.config import AdapterConfig, ModelConfig, QuantizationConfig
from tests.tiny import CHATML, save_tiny

SETTINGS = GenerationConfig(do_sample=True, temperature=1.5, top_p=1.0, top_k=0, max_new_tokens=8)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    base = save_tiny(tmp_path_factory.mktemp("chat"), "llama", CHATML)
    return load_for_inference(
        ModelConfig(model_name_or_path=str(base)), QuantizationConfig(), AdapterConfig(), SETTINGS)


def test_turns_are_kept_and_the_prompt_is_the_templates(loaded: Loaded) -> None:
    session = ChatSession(loaded, SETTINGS, system="sky")
    first = "".join(session.ask("你好"))
    assert session.turns == [Message("user", "你好"), Message("assistant", first)]
    prompt = loaded.template.encode_prompt([Message("system", "sky"), Message("user", "你好")], loaded.tokenizer)
    assert first == loaded.generator.generate([prompt], SETTINGS, seed=0)[0].text
    assert loaded.tokenizer.decode(prompt).endswith("<|im_start|>assistant\n")


def test_regenerate_answers_the_same_question_differently(loaded: Loaded) -> None:
    session = ChatSession(loaded, SETTINGS)
    first = "".join(session.ask("the cat"))
    second = "".join(session.regenerate())
    assert [turn.role for turn in session.turns] == ["user", "assistant"]
    assert session.turns[0].content == "the cat" and first != second
    with pytest.raises(UserError):
        ChatSession(loaded, SETTINGS).regenerate()


def test_system_and_clear_begin_anew(loaded: Loaded) -> None:
    session = ChatSession(loaded, SETTINGS)
    "".join(session.ask("the cat"))
    session.set_system("blue")
    assert session.turns == []
    "".join(session.ask("sat"))
    session.clear()
    assert session.turns == []


def test_a_stopped_answer_is_kept_as_far_as_it_came(loaded: Loaded) -> None:
    session = ChatSession(loaded, SETTINGS)
    pieces = session.ask("the cat")
    first = next(pieces)
    pieces.close()
    assert session.turns == [Message("user", "the cat"), Message("assistant", first)]


def test_the_oldest_turns_leave_a_full_context_with_a_notice(loaded: Loaded) -> None:
    """The context is 256 tokens; each question has about 60, so not all of five fit."""
    told: list[str] = []
    session = ChatSession(loaded, SETTINGS, on_notice=told.append, system="sky")
    for turn in range(6):
        "".join(session.ask(f"question {turn} " + "the cat sat on a mat " * 2))
    assert told and "oldest messages left" in told[0]
    assert session.turns[0].role == "user" and "question 0" not in session.turns[0].content
    prompt = loaded.template.encode_prompt(session.turns, loaded.tokenizer)
    assert len(prompt) <= 256


def test_one_message_longer_than_the_context_is_an_error_and_is_forgotten(loaded: Loaded) -> None:
    session = ChatSession(loaded, SETTINGS)
    with pytest.raises(UserError, match="context is 256"):
        "".join(session.ask("the cat sat " * 300))
    assert session.turns == []


def test_thoughts_are_kept_apart() -> None:
    assert as_message("<think>\n1+1\n</think>\n\n2") == Message("assistant", "2", reasoning="1+1")
    assert as_message("2") == Message("assistant", "2")
