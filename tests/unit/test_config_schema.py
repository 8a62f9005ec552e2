"""The committed schema is what the Configs generate, and it answers fast."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from danlu.cli.make_schema import render
from danlu.core import schema
from danlu.core.errors import ConfigError

HEAVY = ("torch", "transformers", "pydantic", "numpy", "peft", "datasets", "accelerate")
PROGRAM = f"""
import sys
from danlu.cli.main import main
code = main(sys.argv[1:])
heavy = [name for name in {HEAVY!r} if name in sys.modules]
print("code", code, "heavy", heavy, file=sys.stderr)
"""


def test_committed_schema_is_generated() -> None:
    assert schema.SCHEMA_FILE.read_text("utf-8") == render(), "run `make schema` and commit core/schema.json"


@pytest.mark.parametrize(("arguments", "code"), [
    (["--help"], 0), ([], 2), (["train", "--help"], 0), (["schema"], 0), (["schema", "lora_rank"], 0),
    (["schema", "nonsense"], 2), (["version"], 0), (["--version"], 0), (["nonsense"], 2),
    (["train", "--lora_rnk", "8"], 2), (["train", "lora_rank=x"], 2), (["train", "absent.yaml"], 2),
    (["plan", "lora_rank=x"], 2),
])
def test_answers_without_heavy_imports(arguments: list[str], code: int) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == f"code {code} heavy []", done.stderr
    assert "Traceback" not in done.stderr


def test_schema_is_a_valid_json_schema() -> None:
    """Its types, choices and bounds agree with each other, and every default passes its own check."""
    whole = schema.load_schema()
    assert whole["$schema"].endswith("draft/2020-12/schema") and whole["additionalProperties"] is False
    known = {"boolean", "integer", "number", "string", "object", "array", "null"}
    for key, spec in whole["properties"].items():
        assert spec["description"].strip(), key
        assert set(schema.types(spec)) <= known, key
        if spec["x-status"] == "active" and spec["default"] is not None:
            assert schema.convert(spec, spec["default"]) == spec["default"], key


def test_every_key_has_one_status() -> None:
    for key, spec in schema.keys().items():
        assert spec["x-status"] in ("active", "no_effect", "out_of_scope", "alias"), key
        assert ("x-notice" in spec) == (spec["x-status"] in ("no_effect", "out_of_scope")), key


def test_help_lists_every_active_training_key(capsys: pytest.CaptureFixture[str]) -> None:
    from danlu.cli.train import main

    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    for key, spec in schema.keys().items():
        if spec["x-status"] == "active" and spec["x-owner"] in ("run", "model", "adapter", "data", "engine"):
            assert f"\n  {key}" in said, key
    assert max(map(len, said.splitlines())) <= 120


def test_schema_verb_prints_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    from danlu.cli.schema import main

    assert main([]) == 0
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert printed == schema.load_schema()


def test_every_training_argument_of_transformers_is_known() -> None:
    from dataclasses import fields

    from transformers import Seq2SeqTrainingArguments

    names = {one.name for one in fields(Seq2SeqTrainingArguments) if one.init}
    assert not sorted(names - set(schema.keys()))


def test_schedules_and_optimisers_are_those_of_transformers() -> None:
    """Every schedule is offered; every optimiser is offered or refused with a sentence."""
    from transformers.trainer_utils import SchedulerType
    from transformers.training_args import OptimizerNames

    assert set(schema.keys()["lr_scheduler_type"]["enum"]) == {one.value for one in SchedulerType}
    optim = schema.keys()["optim"]
    assert {one.value for one in OptimizerNames} <= {*optim["enum"], *optim["x-refused"]}


@pytest.mark.shared
def test_every_key_of_the_field_is_known(shared: Path) -> None:
    """Every key of the reference list (sections 1 and 2) is a key, an older name of one, or refused by name."""
    import re

    text = (shared / "reference" / "llamafactory-keys.md").read_text("utf-8")
    one, two = text.split("## 1. ")[1].split("## 2. ")
    listed = set(re.findall(r"^- `(\w+)`:", one, re.M))
    trained = one.split("must be accepted: `")[1].split("`")[0]
    listed |= {word for word in re.findall(r"[a-z][a-z0-9_]+", trained.replace("(LF)", "").replace("(old name)", ""))
               if "_" in word}
    for row in two.split("## 3. ")[0].splitlines():
        values = ("| `stage:", "| `flash_attn:", "| `quantization_method:", "| `--", "| `export_dir")
        if row.startswith("| `") and not row.startswith(values):
            listed |= set(re.findall(r"\b[a-z][a-z0-9_]+\b", " ".join(re.findall(r"`([^`]*)`", row.split("|")[1]))))
    assert len(listed) > 250
    assert not sorted(listed - set(schema.keys()))


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["schema"], ["train", "--lora_rnk", "8"],
                                       ["train", "lora_rank=x"]])
def test_answers_in_a_third_of_a_second(arguments: list[str]) -> None:
    """Processor time counts, not the clock, so that a busy machine does not fail the test; the best of three."""
    import resource

    def spent() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    times = []
    for _ in range(3):
        before = spent()
        subprocess.run([sys.executable, "-m", "danlu", *arguments], capture_output=True, check=False)
        times.append(spent() - before)
    assert min(times) < 0.3, times


def test_schema_verb_names_the_nearest_key() -> None:
    from danlu.cli.schema import main

    for wrong, part in (("nope", "nearest key is"), ("lora_rnak", 'did you mean "lora_rank"')):
        with pytest.raises(ConfigError, match=part):
            main([wrong])
