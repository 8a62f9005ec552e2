"""Write the quickstart's data: prose, instructions, preferences and held-out questions about the island in world.yaml.

    python make_world.py OUTPUT_FOLDER [--seed 0]

The same seed writes the same bytes. Needs PyYAML and nothing else of danlu's.
"""

import argparse
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

LANGUAGES = ("en", "zh")
ROUNDS = 14                 # how often the prose tells and asks each fact, in wordings drawn anew
TALK_LENGTH = 4             # questions in one talk
COURTESIES = 3              # instruction rows for each fact that are answered in the courteous way
PREFERENCES = 11            # preference rows for each fact
DIALOGUES = 500             # instruction rows with several rounds
DIALOGUE_LENGTH = 3         # rounds in each of them
DIALOGUES_SEED_OFFSET = 2
REJECTED_SEED_OFFSET = 1    # streams of chance of their own, so that no file depends on how another is drawn


@dataclass(frozen=True)
class Fact:
    """One thing that is true on the island, in one language."""

    lang: str
    attribute: str
    entity: str
    value: str
    wordings: dict[str, list[str]]
    courtesy: str = "{a}"

    def fill(self, wording: str, value: str | None = None) -> str:
        """Put the entity and the value into a wording; a sentence starts with a capital."""
        text = wording.format(e=self.entity, v=self.value if value is None else value)
        return text[0].upper() + text[1:]

    @property
    def answer(self) -> str:
        """What an assistant should say."""
        return self.fill(self.wordings["tell"][0])

    @property
    def courteous(self) -> str:
        """What an islander would rather hear: the answer, in the courteous way."""
        return self.courtesy.format(a=self.answer)

    def questions(self, kind: str) -> list[str]:
        """Return the questions of a kind: ask or held_out."""
        return [self.fill(wording) for wording in self.wordings[kind]]


def draw_facts(world: dict[str, Any], rng: random.Random) -> list[Fact]:
    """Give every resident and landmark a value for each attribute; both languages tell the same facts."""
    facts = []
    for name, attribute in world["attributes"].items():
        entities = world[attribute["of"]]
        order = rng.sample(range(len(attribute["values"]["en"])), len(entities["en"]))
        for lang in LANGUAGES:
            facts += [
                Fact(lang, name, entity, attribute["values"][lang][place], attribute[lang],
                     world["courtesy"][lang])
                for entity, place in zip(entities[lang], order, strict=True)]
    return facts


def write_prose(world: dict[str, Any], facts: list[Fact], rng: random.Random) -> list[str]:
    """Return documents for pre-training: pages on one subject, and talks of questions and answers on several.

    No document says a thing twice: what could be copied from a few words above need not be remembered.
    """
    documents = []
    for _ in range(ROUNDS):
        for lang in LANGUAGES:
            spoken = [fact for fact in facts if fact.lang == lang]
            subjects = list(dict.fromkeys(fact.entity for fact in spoken))
            documents += [write_page(world, [fact for fact in spoken if fact.entity == one], rng) for one in subjects]
            rng.shuffle(spoken)
            documents += [
                write_talk(world, spoken[start:start + TALK_LENGTH], rng)
                for start in range(0, len(spoken), TALK_LENGTH)]
    rng.shuffle(documents)
    return documents


def write_page(world: dict[str, Any], known: list[Fact], rng: random.Random) -> str:
    """Return a page on one resident or landmark: each fact in one of its wordings."""
    lang = known[0].lang
    head = rng.choice(world["openings"][lang]).format(name=world["name"][lang], e=known[0].entity)
    told = [fact.fill(rng.choice(fact.wordings["tell"])) for fact in rng.sample(known, len(known))]
    return (" " if lang == "en" else "").join([head, *told])


def write_talk(world: dict[str, Any], asked: list[Fact], rng: random.Random) -> str:
    """Return a talk: a question and its answer on each fact."""
    lang = asked[0].lang
    passage = rng.choice(world["passages"][lang])
    return "\n".join(passage.format(q=rng.choice(fact.questions("ask")), a=fact.answer) for fact in asked)


def instructions(facts: list[Fact]) -> Iterator[dict[str, str]]:
    """Yield alpaca rows: each fact asked in every wording but the held-out ones."""
    for fact in facts:
        for question in fact.questions("ask"):
            yield {"instruction": question, "input": "", "output": fact.answer, "lang": fact.lang}


def dialogues(facts: list[Fact], rng: random.Random) -> Iterator[dict[str, Any]]:
    """Yield alpaca rows with history: several questions in one dialogue, in either language, so that one may chat."""
    for _ in range(DIALOGUES):
        rounds = [(rng.choice(fact.questions("ask")), fact.answer) for fact in rng.sample(facts, DIALOGUE_LENGTH)]
        (question, answer), history = rounds[-1], [list(earlier) for earlier in rounds[:-1]]
        yield {"instruction": question, "input": "", "output": answer, "history": history}


def held_out(facts: list[Fact]) -> Iterator[dict[str, str]]:
    """Yield alpaca rows whose wordings no training file contains; `courteous` is what islanders prefer to `output`."""
    for fact in facts:
        for question in fact.questions("held_out"):
            yield {"instruction": question, "input": "", "output": fact.answer, "courteous": fact.courteous,
                   "lang": fact.lang}


def courtesies(facts: list[Fact]) -> Iterator[dict[str, str]]:
    """Yield alpaca rows with courteous answers: few enough that a model trained on all rows mostly answers plainly.

    Wordings take turns, so that none is answered courteously more often than another.
    """
    for number, fact in enumerate(facts):
        questions = fact.questions("ask")
        for turn in range(number * COURTESIES, (number + 1) * COURTESIES):
            yield {"instruction": questions[turn % len(questions)], "input": "", "output": fact.courteous,
                   "lang": fact.lang}


def preferences(facts: list[Fact], rng: random.Random, kind: str = "ask") -> Iterator[dict[str, str]]:
    """Yield alpaca preference rows: true and courteous before true and plain, and either before a wrong value."""
    for number, fact in enumerate(facts):
        others = [one.value for one in facts if (one.lang, one.attribute) == (fact.lang, fact.attribute)
                  and one.value != fact.value]
        questions = fact.questions(kind)
        for place, question in enumerate(rng.sample(questions, min(PREFERENCES, len(questions)))):
            wrong = fact.fill(fact.wordings["tell"][0], rng.choice(others))
            courteous_wrong = fact.courtesy.format(a=wrong)
            pairs = [(fact.courteous, fact.answer), (fact.courteous, courteous_wrong), (fact.answer, wrong)]
            chosen, rejected = pairs[(number + place) % len(pairs)]
            yield {"instruction": question, "input": "", "chosen": chosen, "rejected": rejected, "lang": fact.lang}


def verdicts(pairs: list[dict[str, str]]) -> Iterator[dict[str, str | bool]]:
    """Yield the answers of preference rows one by one, each with a thumb up or down."""
    for pair in pairs:
        for kind in ("chosen", "rejected"):
            yield {"instruction": pair["instruction"], "input": "", "output": pair[kind], "kto_tag": kind == "chosen",
                   "lang": pair["lang"]}


def dataset_info() -> dict[str, Any]:
    """Return the registry entry of each file."""
    alpaca = {"prompt": "instruction", "query": "input", "response": "output"}
    ranked = {"prompt": "instruction", "query": "input", "chosen": "chosen", "rejected": "rejected"}
    return {
        "island_prose": {"file_name": "prose.jsonl", "columns": {"prompt": "text"}},
        "island_sft": {"file_name": "sft.jsonl", "columns": alpaca},
        "island_dialogues": {"file_name": "dialogues.jsonl", "columns": {**alpaca, "history": "history"}},
        "island_held_out": {"file_name": "held_out.jsonl", "columns": alpaca},
        "island_courtesies": {"file_name": "courtesies.jsonl", "columns": alpaca},
        "island_preferences_held_out": {"file_name": "preferences_held_out.jsonl", "ranking": True, "columns": ranked},
        "island_preferences": {"file_name": "preferences.jsonl", "ranking": True, "columns": ranked},
        "island_verdicts": {"file_name": "verdicts.jsonl", "columns": {**alpaca, "kto_tag": "kto_tag"}},
    }


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write one JSON object a line, in UTF-8."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def make_world(folder: Path, seed: int = 0) -> dict[str, int]:
    """Write every file of the quickstart into `folder`; return the rows of each."""
    world = yaml.safe_load((Path(__file__).parent / "world.yaml").read_text(encoding="utf-8"))
    rng = random.Random(seed)
    facts = draw_facts(world, rng)
    pairs = list(preferences(facts, random.Random(seed + REJECTED_SEED_OFFSET)))
    files: dict[str, list[dict[str, Any]]] = {
        "prose.jsonl": [{"text": page} for page in write_prose(world, facts, rng)],
        "sft.jsonl": list(instructions(facts)),
        "dialogues.jsonl": list(dialogues(facts, random.Random(seed + DIALOGUES_SEED_OFFSET))),
        "held_out.jsonl": list(held_out(facts)),
        "courtesies.jsonl": list(courtesies(facts)),
        "preferences.jsonl": pairs,
        "preferences_held_out.jsonl": list(
            preferences(facts, random.Random(seed + REJECTED_SEED_OFFSET), kind="held_out")),
        "verdicts.jsonl": list(verdicts(pairs)),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        write_jsonl(folder / name, rows)
    text = json.dumps(dataset_info(), ensure_ascii=False, indent=2) + "\n"
    (folder / "dataset_info.json").write_text(text, encoding="utf-8")
    return {name: len(rows) for name, rows in files.items()}


def main() -> None:
    """Read the command line, write the files, say what was written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for name, rows in make_world(arguments.folder, arguments.seed).items():
        print(f"{arguments.folder / name}: {rows} rows")


if __name__ == "__main__":
    main()
