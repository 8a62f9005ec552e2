"""The page of a pipeline and the comparison in it: statuses, curves, links, four models side by side."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from danlu.cli.main import main
from danlu.core.errors import UserError
from danlu.launch.compare import compare, side_by_side

EVIL = "<script>alert(1)</script> & 蓝色"


class Page(HTMLParser):
    """Tags, links and the text of each table cell."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.cells: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        if self.cells and self.tags[-1] != "html":
            self.cells[-1] += data.rstrip("\n")


def evaluation(folder: Path, answers: list[str], **numbers: float) -> None:
    folder.mkdir(parents=True)
    rows = [{"prompt": f"question {at}", "predict": answer, "label": f"answer {at}"} for at, answer in
            enumerate(answers)]
    (folder / "generated_predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "eval_results.json").write_text(json.dumps(numbers))


@pytest.fixture
def four(tmp_path: Path) -> Path:
    """Four models' evaluations of two questions, the second half wrong, and golden rewards in folders of their own."""
    for at, name in enumerate(("base", "sft", "ppo", "dpo")):
        evaluation(tmp_path / name, ["answer 0", f"{name} {EVIL}"], accuracy=at / 4, questions=2, runtime=9)
        golden = tmp_path / f"golden_{name}"
        golden.mkdir()
        (golden / "eval_results.json").write_text(json.dumps({"golden_reward": at - 1.25, "kl": 0.5 * at}))
    return tmp_path


def test_four_models_with_numbers_of_two_folders(four: Path) -> None:
    names = ("base", "sft", "ppo", "dpo")
    found = side_by_side({name: [str(four / name), str(four / f"golden_{name}")] for name in names})
    assert found.models == list(names) and found.measures == ["accuracy", "golden_reward", "kl"]
    assert found.numbers["dpo"] == {"accuracy": 0.75, "golden_reward": 1.75, "kl": 1.5}
    assert [said.verdict for said in found.questions[0][1]] == ["right"] * 4
    assert [said.verdict for said in found.questions[1][1]] == ["wrong"] * 4
    text = compare({name: [str(four / name), str(four / f"golden_{name}")] for name in names})
    assert "  base  right answer 0\n" in text
    assert "  ppo   accuracy 50.0 %, golden reward 0.75, kl 1" in text


def test_answers_without_a_reference_show_their_reward(tmp_path: Path) -> None:
    tmp_path.joinpath("generated_predictions.jsonl").write_text(
        json.dumps({"prompt": "q", "predict": "a", "label": "", "reward": 0.25}))
    assert "  x  [0.25] a" in compare({"x": str(tmp_path)})


def test_other_questions_and_missing_answers(four: Path, tmp_path: Path) -> None:
    evaluation(tmp_path / "other", ["x"])
    with pytest.raises(UserError, match="different questions"):
        compare({"base": str(four / "base"), "other": str(tmp_path / "other")})
    with pytest.raises(UserError, match="no answers here"):
        compare({"base": str(four / "golden_base")})


@pytest.fixture
def pipeline(four: Path) -> Path:
    """A step that leaves a log as training does, one that scores, one that compares four models."""
    rows = [{"current_steps": step, "loss": 3.0 - step, "reward": 0.1 * step, "lr": 0.01} for step in (1, 2)]
    log = four / "log.jsonl"
    log.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"current_steps": 3, "lo')
    evaluations = ", ".join(f"{name}: {four / name}" for name in ("base", "sft", "ppo", "dpo"))
    path = four / "p.yaml"
    path.write_text(f"""name: p & q
output_dir: {four}/out
steps:
  - name: train
    run: command
    command: >-
      mkdir -p ${{output_dir}} && cp {log} ${{output_dir}}/trainer_log.jsonl &&
      touch ${{output_dir}}/training_loss.png
  - name: golden
    run: command
    command: mkdir -p ${{output_dir}} && cp {four}/golden_ppo/eval_results.json ${{output_dir}}
  - name: seen
    run: command
    command: cp {four}/out/pipeline.html {four}/while.html
  - name: compare
    run: compare
    evaluations: {{{evaluations}}}
""", encoding="utf-8")
    return path


def test_the_page_tells_all_and_loads_nothing(pipeline: Path, four: Path) -> None:
    assert main(["run", str(pipeline)]) == 0
    text = (four / "out" / "pipeline.html").read_text(encoding="utf-8")
    page = Page(text)
    assert "script" not in page.tags and "img" not in page.tags and "http:" not in text and "https:" not in text
    assert "pipeline p &amp; q" in text
    outside = [link for link in page.links if not link.startswith("#")]
    assert "train/training_loss.png" in outside and "steps/train.yaml" in outside
    assert all((four / "out" / link).is_file() for link in outside)
    assert "<title>loss, last 1</title>" in text and "<title>reward, last 0.2</title>" in text
    assert "golden_reward 0.75, kl 1" in page.cells
    start = page.cells.index("question")
    assert page.cells[start:start + 5] == ["question", "base", "sft", "ppo", "dpo"]
    assert f"dpo {EVIL}wrong" in page.cells
    summary = json.loads((four / "out" / "summary.json").read_text())
    assert summary["steps"][1]["results"] == {"golden_reward": 0.75, "kl": 1.0}


def test_the_page_is_written_as_the_run_goes(pipeline: Path, four: Path) -> None:
    """The third step copies the page as it finds it: two steps done, itself running, one not reached."""
    main(["run", str(pipeline)])
    cells = Page((four / "while.html").read_text(encoding="utf-8")).cells
    assert [cells[cells.index(name) + 1] for name in ("train", "golden", "seen", "compare")] == [
        "done", "done", "running", "not run"]


def test_the_page_of_a_run_that_broke_and_went_on(pipeline: Path, four: Path) -> None:
    text = pipeline.read_text(encoding="utf-8")
    copy = f"cp {four}/out/pipeline.html"
    pipeline.write_text(text.replace(copy, f"test -e {four}/gate && {copy}"))

    def statuses() -> list[str]:
        cells = Page((four / "out" / "pipeline.html").read_text(encoding="utf-8")).cells
        return [cells[cells.index(name) + 1] for name in ("train", "golden", "seen", "compare")]

    assert main(["run", str(pipeline)]) == 1
    assert statuses() == ["done", "done", "failed", "not run"]
    (four / "gate").touch()
    assert main(["run", str(pipeline), "--only", "seen"]) == 0
    assert statuses() == ["done earlier", "done earlier", "done", "not run"]
    assert main(["run", str(pipeline)]) == 0
    assert statuses() == ["already done", "already done", "already done", "done"]


def test_a_dry_run_writes_no_page(pipeline: Path, four: Path) -> None:
    assert main(["run", str(pipeline), "--dry-run"]) == 0
    assert not (four / "out").exists()
