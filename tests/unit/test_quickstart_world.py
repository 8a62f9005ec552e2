"""The quickstart's generator: the same seed, the same bytes; both languages; held-out wordings seen nowhere else."""

import json
import sys
from pathlib import Path

import pytest
import yaml

QUICKSTART = Path(__file__).resolve().parents[2] / "examples" / "quickstart"
sys.path.insert(0, str(QUICKSTART))

from golden import golden  # noqa: E402  the example's files are scripts beside their data, not a package
from make_world import make_world  # noqa: E402

FILES = ("prose.jsonl", "sft.jsonl", "dialogues.jsonl", "courtesies.jsonl", "held_out.jsonl", "preferences.jsonl",
         "preferences_held_out.jsonl", "verdicts.jsonl", "dataset_info.json")


@pytest.fixture(scope="module")
def island(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("island")
    make_world(folder)
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_same_seed_same_bytes(island: Path, tmp_path: Path) -> None:
    """Two runs agree in every byte; another seed tells other facts."""
    make_world(tmp_path / "again")
    make_world(tmp_path / "other", seed=1)
    for name in FILES:
        assert (tmp_path / "again" / name).read_bytes() == (island / name).read_bytes()
    assert (tmp_path / "other" / "sft.jsonl").read_bytes() != (island / "sft.jsonl").read_bytes()


def test_held_out_wordings_are_in_no_training_file(island: Path) -> None:
    """No held-out question stands in the prose, the instructions or the preferences, in whole."""
    seen = "\n".join(row["text"] for row in rows(island / "prose.jsonl"))
    files = [island / f"{name}.jsonl" for name in ("sft", "courtesies", "preferences")]
    asked = {row["instruction"] for file in files for row in rows(file)}
    for row in rows(island / "dialogues.jsonl"):
        asked |= {row["instruction"], *(question for question, _ in row["history"])}
    for row in rows(island / "held_out.jsonl"):
        assert row["instruction"] not in asked
        assert row["instruction"] not in seen


def test_every_fact_is_told_taught_and_asked_in_both_languages(island: Path) -> None:
    """Four attributes of 20 residents and two of 10 landmarks are 100 facts a language; each held out in 2 wordings,
    taught in 11, with the answer in the prose."""
    prose = " ".join(row["text"] for row in rows(island / "prose.jsonl"))
    for lang in ("en", "zh"):
        held = [row for row in rows(island / "held_out.jsonl") if row["lang"] == lang]
        taught = [row for row in rows(island / "sft.jsonl") if row["lang"] == lang]
        answers = {row["output"] for row in held}
        assert len(answers) == 100 and len(held) == 200
        assert len(taught) == 1100 and {row["output"] for row in taught} == answers
        assert all(answer in prose for answer in answers)
    assert any("一" <= sign <= "鿿" for sign in prose)


def test_every_chosen_answer_pleases_islanders_more(island: Path) -> None:
    """By the golden function each pair is ordered; it gives 1, 1/2 and 0; held-out pairs ask in held-out wordings."""
    best = {row["output"]: row["courteous"] for row in rows(island / "held_out.jsonl")}
    answered = [*rows(island / "sft.jsonl"), *rows(island / "held_out.jsonl")]
    right = {row["instruction"]: row["output"] for row in answered}
    seen = set()
    for name in ("preferences", "preferences_held_out"):
        for row in rows(island / f"{name}.jsonl"):
            plain = right[row["instruction"]]
            chosen, rejected = golden([row["chosen"], row["rejected"]], [plain] * 2, [best[plain]] * 2)
            seen.add((chosen, rejected))
            assert chosen > rejected
    assert seen == {(1.0, 0.5), (1.0, 0.0), (0.5, 0.0)}


def test_registry_names_the_files(island: Path) -> None:
    info = json.loads((island / "dataset_info.json").read_text(encoding="utf-8"))
    for entry in info.values():
        columns = entry["columns"].values()
        first = rows(island / entry["file_name"])[0]
        assert set(columns) <= set(first)


def test_wordings_are_distinct() -> None:
    """Within an attribute no two wordings are equal, and held-out ones differ from all others."""
    world = yaml.safe_load((QUICKSTART / "world.yaml").read_text(encoding="utf-8"))
    for name, attribute in world["attributes"].items():
        for lang in ("en", "zh"):
            wordings = [one for kind in attribute[lang].values() for one in kind]
            assert len(wordings) == len(set(wordings)), (name, lang)
        assert len(attribute["values"]["en"]) == len(attribute["values"]["zh"]) == len(world[attribute["of"]]["en"])
