"""The rollout browser: what stands in the page, that nothing in it is loaded or run, and what its script chooses."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from danlu.cli.main import main
from danlu.data.microscope.page import document
from danlu.data.microscope.rollout_page import MOST_ROWS, read_rollouts, rollout_page
from danlu.stages.rollout_log import RolloutLog

EVIL = '</script><script>alert(1)</script><!-- <img src=x onerror="alert(2)"> & "quotes"'
SCRIPT = Path(__file__).parents[2] / "src/danlu/data/microscope/rollouts.js"


class Elements(HTMLParser):
    """The elements of a page in order, and the text inside each script."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script":
            self.scripts[-1] += data


def answer(step: int, sample: int = 0, **other: Any) -> dict[str, Any]:
    return {"step": step, "index": 7, "sample": sample, "origin": "a.json:1", "prompt": "天空是什么颜色？",
            "answer": f"蓝色 {step}", "reward": step / 10, "rewards": {"rules": 1.0}, "kl": 0.5, "length": 3,
            "whole": True, **other}


def test_all_answers_stand_in_the_page_as_data() -> None:
    rows = [answer(1), answer(2, reward=None), answer(3, answer=EVIL, prompt=EVIL)]
    found = Elements(rollout_page("run <b>", rows))
    assert json.loads(found.scripts[0]) == rows
    assert len(found.scripts) == 2, "no text of an answer opens a script"
    assert [tag for tag, _ in found.tags if tag in ("img", "b", "link", "iframe")] == []
    controls = {attributes.get("id") for _, attributes in found.tags}
    assert {"first", "last", "sort", "search", "prompts", "cut", "list", "more", "rows", "steps", "count"} <= controls


def test_nothing_is_loaded_from_elsewhere() -> None:
    page = rollout_page("run", [answer(1), answer(2)])
    assert not re.search(r"https?:|//[a-z]|@import|url\(", page.replace("// The rollout browser", ""))
    assert all("src" not in attributes and "href" not in attributes for _, attributes in Elements(page).tags)
    assert "innerHTML" not in page and "eval(" not in page


def test_every_id_that_the_script_asks_for_is_in_the_page() -> None:
    page = rollout_page("run", [answer(1)])
    asked = set(re.findall(r'(?:control|getElementById)\("(\w+)"\)', SCRIPT.read_text(encoding="utf-8")))
    assert asked and asked <= {attributes.get("id") for _, attributes in Elements(page).tags}


def test_curves_are_means_over_the_answers_of_a_step() -> None:
    """Steps 1 and 2 with rewards (0, 1) and (2, 2): from 0.5 to 2."""
    page = rollout_page("run", [answer(1, 0, reward=0.0), answer(1, 1, reward=1.0), answer(2, 0, reward=2.0),
                                answer(2, 1, reward=2.0)])
    assert "<title>mean reward of the answers here, last 2</title>" in page and ">0.5 to 2<" in page


def test_more_answers_than_a_page_takes_are_said() -> None:
    page = rollout_page("run", [answer(step, sample) for step in range(1, 11) for sample in range(MOST_ROWS // 5)])
    assert f"{MOST_ROWS:,} of them, of every 2th step" in page
    assert {row["step"] for row in json.loads(Elements(page).scripts[0])} == {1, 3, 5, 7, 9}


def test_the_verb_writes_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A number that is not finite, and the half line of a run that is writing, do not stop it."""
    RolloutLog(tmp_path).write(1, [answer(1, kl=float("nan"), prompt="a\u2028b")])
    with (tmp_path / "rollouts.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 2, "ans')
    assert main(["rollouts", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "rollouts.html")
    rows = json.loads(Elements((tmp_path / "rollouts.html").read_text(encoding="utf-8")).scripts[0])
    assert rows == read_rollouts(tmp_path / "rollouts.jsonl")
    assert rows[0]["kl"] is None and rows[0]["prompt"] == "a\u2028b"


def test_mistakes_of_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rollouts", str(tmp_path)]) == 2
    assert "no sampled answers here" in capsys.readouterr().err
    (tmp_path / "rollouts.jsonl").write_text('{"step": 1}\n[]\n')
    assert main(["rollouts", str(tmp_path)]) == 2
    assert "rollouts.jsonl:2" in capsys.readouterr().err


def test_the_frame_escapes_its_title() -> None:
    assert "<title>&lt;x&gt;</title>" in document("<x>", [])


def in_node(expression: str) -> Any:
    """The value of an expression in which the script's functions are known."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node to run the page's script")
    text = SCRIPT.read_text(encoding="utf-8") + f"\nconsole.log(JSON.stringify({expression}));"
    return json.loads(subprocess.run([node, "-"], input=text, capture_output=True, text=True, check=True).stdout)


CHOICE = '{first: 1, last: 3, search: "", cut: false, sort: "step-up"}'
ROWS = json.dumps([answer(1, reward=0.5, length=9), answer(2, reward=None, length=3, whole=False),
                   answer(3, reward=-1.0, length=5, prompt="The Sky"), answer(4, reward=2.0, length=1)])


@pytest.mark.parametrize(("changed", "steps"), [
    ("{}", [1, 2, 3]), ("{last: 4, first: 2}", [2, 3, 4]), ('{sort: "length-down"}', [1, 3, 2]),
    ('{sort: "reward-up"}', [3, 1, 2]), ('{sort: "reward-down", last: 4}', [4, 1, 3, 2]), ("{cut: true}", [2]),
    ('{search: "the sky"}', [3]), ('{search: "颜色", first: 2}', [2]),
])
def test_the_script_chooses_and_sorts(changed: str, steps: list[int]) -> None:
    """Answers without the number stand last, whichever way."""
    assert in_node(f"select({ROWS}, {{...{CHOICE}, ...{changed}}}).map((row) => row.step)") == steps


def test_a_prompt_of_messages_is_shown_with_its_roles() -> None:
    messages = [{"role": "system", "content": "简短"}, {"role": "user", "content": "The sky?"}]
    rows = json.dumps([answer(1, prompt=messages), answer(2, prompt="x")])
    assert in_node(f"{rows}.map((row) => said(row.prompt))") == ["system: 简短\nuser: The sky?", "x"]
    assert in_node(f"select({rows}, {{...{CHOICE}, search: 'the sky'}}).length") == 1
    assert in_node(f"byPrompt({rows}).length") == 2


def test_the_script_lays_answers_of_one_prompt_together() -> None:
    rows = json.dumps([answer(2, 1), answer(2, 0), answer(1), answer(1, index=8)])
    assert in_node(f"byPrompt({rows}).map((group) => group.map((row) => [row.step, row.sample]))") == [
        [[1, 0], [2, 0], [2, 1]], [[1, 0]]]


def test_the_script_colours_by_reward_and_tells_numbers() -> None:
    assert in_node("[colour(-1, -1, 1), colour(1, -1, 1), colour(null, 0, 1), colour(3, 3, 3)]") == [
        "hsl(0 65% 50% / 0.25)", "hsl(120 65% 50% / 0.25)", "transparent", "hsl(60 65% 50% / 0.25)"]
    assert in_node(f"numbers({json.dumps(answer(2, whole=False, kl=0.123456))})") == [
        "step 2", "reward 0.2000", "rewards: rules 1", "kl 0.1235", "length 3", "cut at the limit"]
