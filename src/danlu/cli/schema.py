"""`danlu schema [KEY ...]`: print the JSON Schema of the configuration, or what it says about some keys."""

import sys
from collections.abc import Sequence
from difflib import get_close_matches

from danlu.cli.key_help import key_page
from danlu.core import schema
from danlu.core.errors import ConfigError, did_you_mean

USAGE = """usage: danlu schema          print the JSON Schema (draft 2020-12), for editors and other tools
       danlu schema KEY ...  print what a key means, accepts and defaults to"""


def main(argv: Sequence[str]) -> int:
    """Print the committed schema or some of its keys."""
    if any(word in ("-h", "--help") for word in argv):
        print(USAGE)
        return 0
    if not argv:
        sys.stdout.write(schema.SCHEMA_FILE.read_text(encoding="utf-8"))
        return 0
    names = [word.removeprefix("--").replace("-", "_") for word in argv]
    for name in names:
        if not schema.is_known(name):
            nearest = get_close_matches(name, schema.keys(), n=1, cutoff=0.0)[0]
            raise ConfigError(f'unknown key "{name}"', fix=did_you_mean(name, schema.keys(), list_all=False)
                              or f'the nearest key is "{nearest}"; `danlu train --help` lists every key')
    print("\n\n".join(key_page(name) for name in names))
    return 0
