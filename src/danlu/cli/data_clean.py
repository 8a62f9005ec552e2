"""`danlu data clean RECIPE.yaml [key=value ...]`: filter, mend and mask rows by a recipe."""

import sys
from collections.abc import Sequence
from pathlib import Path

from danlu.core.errors import ConfigError
from danlu.data.clean.filter import FILTERS, Filter
from danlu.data.clean.recipe import CleanConfig, read_recipe
from danlu.data.clean.run import clean

USAGE = """usage: danlu data clean RECIPE.yaml [key=value ...]
       danlu data clean --filters [NAME]     list the rules, or one with its options

Reads any data set, takes each row through the rules of the recipe in order, writes the rows that are kept as JSON lines
in their own shape, and beside them a ledger with every row dropped or changed. A recipe:
    input: raw.jsonl
    output: clean.jsonl
    filters:
      - unicode
      - html
      - pii: {kinds: [email, cn_mobile]}
      - length: {min_chars: 10, only: [output]}
"""


def main(argv: Sequence[str]) -> int:
    """Run the recipe and print the table of what each rule did."""
    words = list(argv)
    if not words or any(word in ("-h", "--help") for word in words):
        print("\n".join([USAGE, "keys:", *_options(CleanConfig), "", "rules: " + ", ".join(FILTERS)]),
              file=sys.stdout if words else sys.stderr)
        return 0 if words else 2
    if words[0] == "--filters":
        print("\n".join(_described(words[1:])))
        return 0
    if words[0].startswith("-") or ("=" in words[0] and not words[0].endswith((".yaml", ".yml", ".json"))):
        raise ConfigError("the recipe's file comes first", where="command line", fix="danlu data clean RECIPE.yaml")
    recipe = read_recipe(Path(words[0]), words[1:])
    counts = clean(recipe)
    print("\n".join(counts.lines(recipe.rules)))
    print(f"wrote {recipe.config.output}: {counts.total('kept')} rows; ledger {recipe.config.ledger_path}")
    return 0


def _described(names: Sequence[str]) -> list[str]:
    chosen = {name: FILTERS[name] for name in (names or FILTERS)}
    lines = []
    for name, rule in chosen.items():
        lines += [f"{name}: {(rule.__doc__ or '').strip().splitlines()[0]}"]
        lines += _options(rule) if names else []
    return lines


def _options(config: type[CleanConfig] | type[Filter]) -> list[str]:
    shown = []
    for key, field in config.model_fields.items():
        default = "needed" if field.is_required() else repr(field.default)
        shown.append(f"    {key:<16} {field.description} [{default}]")
    return shown
