"""`danlu data lint NAME|PATH ...`: what is wrong in data, where, why, and what to do. Parses and prints."""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from danlu.cli.data_sets import Words, read_words
from danlu.core.console import say
from danlu.core.errors import ConfigError, did_you_mean
from danlu.data.lint.check import Lint
from danlu.data.lint.finding import CODES, Finding, Report
from danlu.data.lint.repair import check_target, write_repaired
from danlu.data.lint.tokens import TokenCheck
from danlu.data.registry import Source, find_sources
from danlu.data.row_format import FORMATS
from danlu.run_config import RunConfig

USAGE = """usage: danlu data lint NAME|PATH ... [key=value ...]
       danlu data lint FILE.yaml          check the data of a training run

  --fix OUT.jsonl      write the rows that are good or can be mended, and OUT.jsonl.ledger.jsonl with every change
  --eval NAME|PATH     evaluation data: checked too, and its prompts searched in the training data
  --format FORMAT      the format of the rows, instead of what the first row shows
  --model FOLDER       with its tokenizer, find rows cut at cutoff_len and control tokens of this tokenizer
  --template NAME, --cutoff_len N, --dataset_dir FOLDER, ...   as in training
  --limit N            findings listed of each code (20; counts are always exact)
  --only CODES         list these codes only, comma separated
  --json               machine-readable
  --strict             warnings count as errors
  --codes              print every code with its meaning and cure

Exit code 0: no errors (warnings are allowed). 1: errors. 2: the command itself cannot be carried out."""
OPTIONS = {"fix": "OUT.jsonl", "eval": "NAME|PATH", "format": "FORMAT", "limit": "N", "only": "CODES"}
SWITCHES = ("json", "strict", "codes")


def main(argv: Sequence[str]) -> int:
    """Check data sets; 1 when errors are found."""
    if not argv or {"-h", "--help"} & set(argv):
        print(USAGE, file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    words = read_words(argv, OPTIONS, SWITCHES)
    if "codes" in words.switches:
        print("\n".join(f"{kind.severity:<8} {code:<22} {kind.meaning}. {kind.cure}" for code, kind in CODES.items()))
        return 0
    limit, only = words.number("limit", 20, 1), _only(words)
    config = words.config()
    sources, evals = _sources(config, words)
    out = Path(words.options["fix"]) if "fix" in words.options else None
    if out is not None:
        check_target(out)
    tokens, controls = _tokens(config)
    lint = Lint(limit, repairs=out is not None, controls=controls, tokens=tokens)
    report = lint.run(sources, evals)
    if "json" in words.switches:
        print(json.dumps(report.to_dict(), ensure_ascii=False, indent=1))
    else:
        _print(report, only)
    if out is not None:
        done = write_repaired(sources, lint.table, lint.dropped, out)
        numbers = ", ".join(f"{done.counts[name]:,} {name}" for name in ("kept", "mended", "dropped"))
        say(f"wrote {done.path}: {numbers}; every change is in {done.ledger}")
    return int(report.total("error") > 0 or ("strict" in words.switches and bool(report.counts)))


def _only(words: Words) -> set[str]:
    chosen = {code for code in words.options.get("only", "").split(",") if code}
    for code in chosen - set(CODES):
        raise ConfigError(f'unknown code "{code}"', where="--only", fix=did_you_mean(code, CODES))
    return chosen or set(CODES)


def _sources(config: RunConfig, words: Words) -> tuple[list[Source], list[Source]]:
    data = config.data
    if "eval" in words.options:
        data = data.model_copy(update={"eval_dataset": tuple(words.options["eval"].split(",")), "eval_file": None})
    formatting = words.options.get("format")
    if formatting is not None and formatting not in FORMATS:
        raise ConfigError(f'unknown format "{formatting}"', where="--format", fix=did_you_mean(formatting, FORMATS))
    train, held_out = ([replace(one, formatting=formatting or one.formatting) for one in find_sources(data, which)]
                       for which in ("train", "eval"))
    return train, held_out


def _tokens(config: RunConfig) -> tuple[TokenCheck | None, frozenset[str]]:
    """Return the check by tokens, and the tokenizer's control strings, when a model is named."""
    if not config.model.model_name_or_path:
        return None, frozenset()
    # Imported here: without a tokenizer the check needs neither torch nor transformers.
    from danlu.data.encode import EncodeContext
    from danlu.models.tokenizer import load_tokenizer
    from danlu.stages.base import STAGES
    from danlu.templates import resolve as resolve_template
    from danlu.templates.controls import control_strings

    tokenizer = load_tokenizer(config.model)
    template = resolve_template(config.data.template, tokenizer, tool_format=config.data.tool_format)
    template.prepare_tokenizer(tokenizer)
    controls = control_strings(tokenizer, template.literal_text(tokenizer)) - {"<think>", "</think>"}
    if not STAGES[config.stage].needs_template:
        return None, controls  # documents are cut into blocks: none is too long
    return TokenCheck(EncodeContext(tokenizer, template, config.data)), controls


def _print(report: Report, only: set[str]) -> None:
    for finding in report.sorted():
        if finding.code in only:
            print(_shown(finding))
    listed = [(code, number) for code, number in report.counts.most_common() if code in only]
    for severity in ("error", "warning"):
        for code, number in listed:
            if CODES[code].severity == severity:
                print(f"{number:>9,} {severity:<8} {code:<22} {CODES[code].meaning}")
    for note in report.notes:
        print(f"note: {note}")
    compared = f" and {report.eval_rows:,} of evaluation data" if report.eval_rows else ""
    print(f"{report.rows:,} rows{compared}, {report.total('error'):,} errors, {report.total('warning'):,} warnings")
    if any(number > report.limit for _, number in listed):
        print(f"the first {report.limit} of each code are listed; --limit N lists more")


def _shown(one: Finding) -> str:
    pointer = f" {one.pointer}" if one.pointer else ""
    row = f" (row {one.row})" if one.row and one.line not in (None, one.row) else ""
    value = f"\n    found: {one.value}" if one.value else ""
    return (f"{one.where}: {one.severity} {one.code}{row}{pointer}: {one.reason}{value}\n"
            f"    cure: {one.cure or CODES[one.code].cure}")
