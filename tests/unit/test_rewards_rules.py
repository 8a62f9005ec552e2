"""Rewards without a model: rules and Python functions, sums with weights, and what each mistake is told."""

import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from torch import nn

from danlu.core.errors import UserError
from danlu.core.records import Message
from danlu.core.relevance import _meets
from danlu.models.config import AdapterConfig, ModelConfig, QuantizationConfig
from danlu.rewards.base import REWARDS, Answer, RewardContext, RewardError
from danlu.rewards.config import Kind, RewardKeys
from danlu.rewards.final_answer import boxed, final_number, final_text, whole_number
from danlu.rewards.mixture import build_rewards
from danlu.rewards.rules import RULES
from tests.tiny import tiny_tokenizer

ROOT = Path(__file__).resolve().parents[2]


def context() -> RewardContext:
    return RewardContext(tiny_tokenizer(), None, nn.Identity(), ModelConfig(), QuantizationConfig(), AdapterConfig())


def answer(text: str, size: int = 3, **extra: Any) -> Answer:
    talk = (Message("system", "be short"), Message("user", "how many"))
    return Answer((1, 2), tuple(range(size)), text, talk, extra, origin="gsm.jsonl:7")


def rewards(spec: Path | str, kind: str = "rules", **keys: Any) -> Any:
    return build_rewards(RewardKeys(reward_model=[str(spec)], reward_model_type=kind, **keys), context())


def rule_scores(spec: str, *answers: Answer) -> list[float]:
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(spec)
        file.flush()
        return list(rewards(file.name).score(answers).total)


def told(call: Callable[[], Any], *parts: str, kind: type[UserError] = UserError) -> None:
    """The call fails with a message that holds each part."""
    with pytest.raises(kind) as caught:
        call()
    for part in parts:
        assert part in str(caught.value), f"{part!r} is not in {caught.value}"


# rules

def test_regex() -> None:
    texts = [answer("the sky is blue"), answer("Blue\nblue"), answer("warm")]
    assert rule_scores("- regex: blue$", *texts) == [1, 1, 0]
    whole = "- regex: b.*e\n  match: whole\n  ignore_case: true\n  score: 2\n  miss: -1"
    assert rule_scores(whole, *texts) == [-1, 2, -1]


@pytest.mark.parametrize(("text", "number"), [
    ("she has 1,234 apples", 1234), ("a 3\n#### 18\n99", 18), ("so 5-3 is 2.", 2), ("答案是72。", 72),
    (r"5 and \boxed{\frac{1}{2}} or 7", Fraction(1, 2)), ("x = -0.5", Fraction(-1, 2)), (".50", Fraction(1, 2)),
    ("1/2", Fraction(1, 2)), ("\u22127", -7), ("costs $18.00 total", 18), ("v2 is 3.14.", Fraction(157, 50)),
    ("none", None), ("1/0", None)])
def test_final_number(text: str, number: Fraction | None) -> None:
    assert final_number(text) == number


def test_boxes_may_hold_braces() -> None:
    assert boxed(r"so \boxed{\frac{a}{b}} is it") == r"\frac{a}{b}"
    assert boxed(r"\boxed{1") is None
    assert final_text("x\n#### Paris \nignored") == "Paris"
    assert whole_number(" 72.0 ") == 72 and whole_number("72 apples") is None


def test_rules_written_in_place() -> None:
    source = rewards("- regex: blue\n- length: 2\n")
    assert source.score([answer("blue", 3)]).total == [0.99]
    told(lambda: rewards("- regex: blue\n- lenth: 2\n"), "reward_model:2", 'did you mean "length"')


def test_exact() -> None:
    """A reference that is a number is compared by value, words by spelling; a list offers several."""
    assert rule_scores("- exact: gold", answer("it is 72.0", gold="#### 72"), answer("#### 72", gold=72),
                       answer("72 or 73", gold="72")) == [1, 1, 0]
    assert rule_scores("- exact: gold", answer(" Paris. ", gold="paris"), answer("in Paris", gold="Paris"),
                       answer("B", gold=["A", "b"])) == [1, 0, 1]
    assert rule_scores("- exact: gold\n  extract: text", answer("72.0", gold="72")) == [0]
    assert rule_scores("- exact: gold\n  extract: number", answer("7 of 9", gold="they are 9")) == [1]
    inside = "- exact: gold\n  within: answer\n  miss: -0.5"
    assert rule_scores(inside, answer("<think>5</think><answer>4</answer>", gold=4), answer("4", gold=4)) == [1, -0.5]


def test_length() -> None:
    """-0.1 a token outside 4 to 6, at most -0.25: 6 -> 0, 8 -> -0.2, 9 -> -0.25, 3 -> -0.1."""
    spec = "- length: 6\n  least: 4\n  penalty: 0.1\n  lowest: -0.25"
    assert rule_scores(spec, *(answer("", size) for size in (6, 8, 9, 3))) == pytest.approx([0, -0.2, -0.25, -0.1])


def test_format() -> None:
    texts = ["<think>a</think>\n<answer>b</answer>", "<think>a</think>", "x <think>a</think><answer>b</answer>",
             "<think> </think><answer>b</answer>", "<answer>b</answer><think>a</think>",
             "<think>a</think><answer>b</answer><answer>c</answer>"]
    assert rule_scores("- format: think, answer", *map(answer, texts)) == [1, 0, 0, 0, 0, 0]
    assert rule_scores("- format: [think]", answer("<think>a</think>")) == [1]


def test_rules_add_up(tmp_path: Path) -> None:
    """0.5 * 1 + 2 * 1 - 0.01 * 2 = 2.48."""
    file = tmp_path / "rules.yaml"
    file.write_text("- regex: yes\n  weight: 0.5\n- exact: gold\n  within: a\n  weight: 2\n- length: 1\n", "utf-8")
    assert rewards(file).score([answer("yes <a>4</a>", 3, gold="4")]).total == pytest.approx([2.48])


@pytest.mark.parametrize(("text", "parts"), [
    ("- regex: a\n- regexp: b\n", [":2", "none of", 'did you mean "regex"']),
    ("- regex: a\n  scor: 2\n", [":2", '"scor"', 'did you mean "score"']),
    ("- regex: (a\n", [":1", "regular expression"]),
    ("- regex: a\n\n- length: many\n", [":3", '"length"', "integer"]),
    ("- length: 5\n  least: 9\n", ["above length 5"]),
    ("- format: <think>\n", [":1", "names no tag: <think>"]),
    ("- regex: a\n  exact: b\n", ["regex and exact in one rule"]),
    ("- regex: a\n  regex: b\n", [":2", "twice"]),
    ("- blue\n", [":1", "a rule is a map"]), ("regex: a\n", ["no list of rules"]), ("", ["no list of rules"]),
    ("- regex: [a\n- b", ["no YAML", ":2"]), ("- length: 5\n  penalty: 0\n", [":2", "greater than 0"]),
])
def test_mistakes_in_rules_name_the_line(tmp_path: Path, text: str, parts: list[str]) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text(text, encoding="utf-8")
    told(lambda: rewards(file), str(file), *parts)


def test_rules_that_cannot_be_applied(tmp_path: Path) -> None:
    told(lambda: rewards(tmp_path / "none.yaml"), "does not exist", "reward_model")
    told(lambda: rule_scores("- exact: gold", answer("4", goal="4")), ".yaml:1", 'no "gold"', "gsm.jsonl:7",
         'did you mean "goal"', kind=RewardError)


def test_every_rule_key_is_documented() -> None:
    page = (ROOT / "docs" / "rewards.md").read_text(encoding="utf-8")
    for rule in RULES.values():
        for name, field in rule.model_fields.items():
            assert f"`{field.alias or name}`" in page, name


# functions

def function(tmp_path: Path, body: str, name: str = "score") -> Any:
    file = tmp_path / "mine.py"
    file.write_text(body, encoding="utf-8")
    return rewards(f"{file}:{name}", "function")


def test_function_gets_what_its_signature_names(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("FACTOR = 10\n", encoding="utf-8")
    body = ("from beside import FACTOR\n"
            "def score(prompts, completions, gold, is_whole, scale=FACTOR):\n"
            "    assert prompts == ['how many'] * 2 and is_whole == [True, True]\n"
            "    return [scale * (text == right) for text, right in zip(completions, gold)]\n"
            "def everything(**columns):\n"
            "    assert columns['messages'][0][1] == {'role': 'user', 'content': 'how many'}\n"
            "    assert columns['gold'] == ['4', None] and columns['completion_ids'] == [[0, 1], [0, 1, 2]]\n"
            "    return (len(columns), True)\n"
            "def arrays(completions):\n"
            "    import numpy, torch\n"
            "    return [numpy.float32(0.5), torch.tensor([1.5])]\n"
            "def tensor(completions):\n"
            "    import torch\n"
            "    return torch.tensor([1.0, 2.0])\n")
    rows = [answer("4", 2, gold="4"), answer("5", 3)]
    assert function(tmp_path, body).score(rows).total == [10, 0]
    assert function(tmp_path, body, "everything").score(rows).total == [6, 1]
    assert function(tmp_path, body, "arrays").score(rows).total == [0.5, 1.5]
    assert function(tmp_path, body, "tensor").score(rows).total == [1, 2]


@pytest.mark.parametrize(("body", "parts"), [
    ("def score(completions):\n    return [1 / 0]\n", ["mine.py:2", "ZeroDivisionError: division by zero"]),
    ("import json\ndef score(completions):\n    return json.loads('{')\n", ["mine.py:3", "JSONDecodeError"]),
    ("def score(completions):\n    return [float('nan')] * 2\n", ["mine.py:score", "is nan", "gsm.jsonl:7", "'4'"]),
    ("def score(completions):\n    return [0, float('-inf')]\n", ["is -inf"]),
    ("def score(completions):\n    return [0, 10**400]\n", ["is 1000"]),
    ("def score(completions):\n    return [1.0]\n", ["1 rewards for 2 answers"]),
    ("def score(completions):\n    return ['high', 1]\n", ["is 'high', which is no number"]),
    ("def score(completions):\n    return [None, 1]\n", ["is None, which is no number"]),
    ("def score(completions):\n    return 1.0\n", ["returned float, not a list"]),
    ("def score(completions, golden):\n    return [1, 1]\n", ['asks for "golden"', 'did you mean "gold"']),
])
def test_functions_that_fail_while_scoring(tmp_path: Path, body: str, parts: list[str]) -> None:
    source = function(tmp_path, body)
    told(lambda: source.score([answer("4", gold="4"), answer("5", gold="5")]), *parts, kind=RewardError)


@pytest.mark.parametrize(("body", "name", "parts"), [
    ("def score(completions):\n    return [1\n", "score", ["mine.py:2", "SyntaxError"]),
    ("import nowhere_at_all\n", "score", ["mine.py:1", "ModuleNotFoundError"]),
    ("def score(completions): ...\n", "scores", ['no function "scores"', 'did you mean "score"']),
    ("async def score(completions): ...\n", "score", ["is async"]),
    ("score = 3\n", "score", ['no function "score"']),
])
def test_functions_that_cannot_be_used(tmp_path: Path, body: str, name: str, parts: list[str]) -> None:
    told(lambda: function(tmp_path, body, name), *parts)


@pytest.mark.parametrize("source", ["mine.py", "mine:score", "mine.py:a b"])
def test_names_of_functions(source: str) -> None:
    told(lambda: rewards(source, "function"), "names no function", "file.py:name")


def test_files_of_functions_must_exist(tmp_path: Path) -> None:
    told(lambda: rewards(tmp_path / "none.py:score", "function"), "does not exist")


# mixtures and keys

def test_mixtures_are_weighted_sums(tmp_path: Path) -> None:
    """2 * [1, 0] + 0.5 * [0, 1] - 1 * [1, 2] = [1, -1.5]; parts stay unweighted."""
    (tmp_path / "mine.py").write_text("def score(completions):\n    return [1, 2]\n", encoding="utf-8")
    keys = RewardKeys(reward_model=["- regex: blue\n", "- regex: wet\n", f"{tmp_path}/mine.py:score"],
                      reward_model_type="rules, rules, function", reward_weights="2, 0.5, -1")
    table = build_rewards(keys, context()).score([answer("blue"), answer("wet")])
    assert table.total == [1, -1.5]
    assert table.parts == {"rules_1": [1, 0], "rules_2": [0, 1], "function": [1, 2]}


@pytest.mark.parametrize(("keys", "part"), [
    ({}, "reward_model is missing: with reward_model_type lora it names the folder of an adapter"),
    ({"reward_model": "a,b"}, "reward_model_type names 1 kinds and reward_model 2"),
    ({"reward_model": "a", "reward_weights": "1,2"}, "reward_weights holds 2 numbers and reward_model 1"),
    ({"reward_model": "a", "reward_weights": "0"}, "reward_weights are all 0"),
    ({"reward_model": "a", "reward_model_adapters": "b"}, "reward_model_adapters belong to one source"),
    ({"reward_model": "a", "reward_model_type": "lore"}, "'lora', 'full'"),
    ({"reward_model": ["- format: a, b\n"], "reward_model_type": "rules"}, "write these rules to a file"),
    ({"reward_model": "a", "reward_timeout": 0}, "greater than 0"),
])
def test_keys_that_contradict_each_other(keys: dict[str, Any], part: str) -> None:
    with pytest.raises(ValidationError, match=".*") as caught:
        RewardKeys(**keys)
    assert part in str(caught.value)


def test_kinds_of_the_key_and_of_the_registry_agree() -> None:
    assert set(Kind.__args__) == set(REWARDS)  # type: ignore[attr-defined]


def test_a_listed_kind_gives_its_keys_effect() -> None:
    """A key that acts with classifiers only is not called idle where a classifier is one of two sources."""
    wanted = RewardKeys.model_json_schema()["properties"]["reward_label"]["x-only-with"]["reward_model_type"]
    assert _meets(["rules", "classifier"], wanted) and not _meets(["rules"], wanted)
