"""`danlu data stats NAME|PATH ...`: rows, turns, lengths and languages of data sets. Parses and prints."""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from danlu.cli.data_sets import read_words
from danlu.core.errors import ConfigError, did_you_mean
from danlu.data.registry import find_sources
from danlu.data.row_format import FORMATS
from danlu.run_config import RunConfig

if TYPE_CHECKING:
    from danlu.data.encode import EncodeContext

USAGE = """usage: danlu data stats NAME|PATH ... [key=value ...]
       danlu data stats FILE.yaml         the data of a training run

  --model FOLDER       count tokens with its tokenizer, before anything is cut at cutoff_len
  --template NAME, --cutoff_len N, --dataset_dir FOLDER, ...   as in training
  --format FORMAT      the format of the rows, instead of what the first row shows
  --json               machine-readable

Languages are told by their letters and, for English, by its commonest words: shares of rows, rough."""
OPTIONS = {"format": "FORMAT"}
SWITCHES = ("json",)
MOST_SHOWN = 6


def main(argv: Sequence[str]) -> int:
    """Count and print, one column a data set."""
    if not argv or {"-h", "--help"} & set(argv):
        print(USAGE, file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    words = read_words(argv, OPTIONS, SWITCHES)
    config, formatting = words.config(), words.options.get("format")
    if formatting is not None and formatting not in FORMATS:
        raise ConfigError(f'unknown format "{formatting}"', where="--format", fix=did_you_mean(formatting, FORMATS))
    sources = [replace(one, formatting=formatting or one.formatting) for one in find_sources(config.data, "train")]
    context = _context(config) if config.model.model_name_or_path else None
    from danlu.data.microscope.stats import count_sources

    found = [stats.to_dict() for stats in count_sources(sources, context)]
    if "json" in words.switches:
        print(json.dumps(found, ensure_ascii=False, indent=1))
    else:
        _print(found)
    return 0


def _context(config: RunConfig) -> "EncodeContext":
    # Imported here: without a tokenizer the count needs neither torch nor transformers.
    from danlu.data.encode import EncodeContext
    from danlu.models.tokenizer import load_tokenizer
    from danlu.templates import resolve as resolve_template

    tokenizer = load_tokenizer(config.model)
    template = resolve_template(config.data.template, tokenizer, tool_format=config.data.tool_format)
    template.prepare_tokenizer(tokenizer)
    return EncodeContext(tokenizer, template, config.data)


def _print(found: list[dict[str, Any]]) -> None:
    for stats in found:
        print(f"{stats['name']}:")
        for name, value in _rows(stats):
            print(f"  {name:<22} {value}")


def _rows(stats: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [("rows", f"{stats['rows']:,}" + (f", {stats['bad_rows']:,} cannot be read: danlu data lint says why"
                                             if stats["bad_rows"] else "")),
            ("format", stats["format"]), ("turns", f"{stats['turns']:,}: {_listed(stats['roles'])}"),
            ("rows by answers", _listed({f"{number}:": count for number, count in stats["answers_per_row"].items()})),
            ("languages", ", ".join(f"{name} {100 * share:.1f} %" for name, share in
                                    list(stats["languages"].items())[:MOST_SHOWN]))]
    for name in ("characters", "tokens"):
        if name in stats:
            one = stats[name]
            rows += [(name, f"{one['total']:,}, {one['mean']:,} a row"),
                     (f"  {name} by percentile", _listed({f"{share} %": v for share, v in one["percentiles"].items()}))]
    if "tokens" in stats:
        one = stats["tokens"]
        rows += [("  trained", f"{one['trained']:,} ({100 * one['trained'] / max(1, one['total']):.1f} %)"),
                 (f"  over cutoff_len {one['cutoff_len']}", f"{one['longer_than_cutoff_len']:,} rows")]
    return rows


def _listed(counts: dict[str, int]) -> str:
    shown = list(counts.items())[:2 * MOST_SHOWN]
    return ", ".join(f"{name} {count:,}" for name, count in shown) + (", ..." if len(shown) < len(counts) else "")
