"""`danlu run PIPELINE.yaml`: run the steps of a pipeline. Parses and prints; no logic of its own."""

import sys
from collections.abc import Sequence
from pathlib import Path

from danlu.core.errors import ConfigError
from danlu.launch.pipeline import ALL, Choice, run_pipeline
from danlu.launch.pipeline_file import read_pipeline

USAGE = """usage: danlu run PIPELINE.yaml [key=value ...] [--dry-run] [--force [STEP]] [--from STEP] [--only STEP]

Run the steps of a pipeline one after the other, each in a process of its own. A step that is done is left out as long
as its keys, its files and the steps before it are what they were; a broken one goes on from its last checkpoint.
    key=value       replaces the key in every step that has it; step.key=value in one step
    --dry-run       say what each step would do, with all its keys
    --force [STEP]  run every step, or this one, although it is done; what depends on it follows
    --from STEP     run this step and those after it, whatever is done
    --only STEP     run this step alone
A pipeline file:
    name: my-model
    output_dir: runs/my-model            # each step writes to a folder of its name in it
    environment: {OMP_NUM_THREADS: 8}    # variables for every step, unless they are set already
    defaults: {template: qwen}           # keys for every step whose verb reads them
    steps:
      - name: sft
        run: train                       # new, train, export, eval, compare, command
        stage: sft
        model_name_or_path: models/base
        dataset: data/chat.jsonl
      - {name: dpo, run: train, stage: dpo, from: sft, dataset: data/pairs.jsonl}   # starts from the model of sft
      - {name: merged, run: export, from: dpo}
output_dir receives summary.json and pipeline.html, a page with the state and the curves of every step.
${steps.NAME.KEY} is a key of a step above, ${output_dir} the step's own folder, ${here} the folder of the file."""
NAMED = {"--from": "start", "--only": "only"}


def main(argv: Sequence[str]) -> int:
    """Read the pipeline and run it; return its exit code."""
    if not argv or {"-h", "--help"} & set(argv):
        print(USAGE, file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    file, choice, overrides = parse(argv)
    return run_pipeline(read_pipeline(file, overrides), choice)


def parse(argv: Sequence[str]) -> tuple[Path, Choice, list[str]]:
    """Return the pipeline's file, which steps to run, and the `key=value` words.

    Raises ConfigError for a word that is none of these.
    """
    values: dict[str, str] = {}
    files: list[str] = []
    overrides: list[str] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        if name == "--dry-run":
            values["dry_run"] = "yes"
        elif name == "--force":
            values["force"] = value if equals else words.pop(0) if words and _is_step(words[0]) else ALL
        elif name in NAMED:
            if not equals and not words:
                raise ConfigError(f"{name} needs the name of a step", where="command line")
            values[NAMED[name]] = value if equals else words.pop(0)
        elif word.startswith("--") or (equals and not word.endswith((".yaml", ".yml"))):
            overrides.append(word if equals or not words else f"{word}={words.pop(0)}")
        else:
            files.append(word)
    if len(files) != 1:
        raise ConfigError(f"expected one pipeline file, found {', '.join(files) or 'none'}", where="command line",
                          fix="danlu run PIPELINE.yaml [key=value ...]")
    choice = Choice(values.get("force"), values.get("start"), values.get("only"), "dry_run" in values)
    return Path(files[0]), choice, overrides


def _is_step(word: str) -> bool:
    return not word.startswith("-") and "=" not in word and not word.endswith((".yaml", ".yml"))
