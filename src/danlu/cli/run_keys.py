"""From the words behind a verb to a checked configuration: what `train`, `plan`, `export` and `eval` begin with."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from danlu.core.arguments import split_file
from danlu.core.console import notice
from danlu.core.resolve import resolve

if TYPE_CHECKING:
    from danlu.run_config import RunConfig


def read_run_config(words: Sequence[str], verb: str) -> "RunConfig":
    """Return the configuration of a file and the keys behind it; say its notices.

    Raises ConfigError for every mistake that can be seen without torch.
    """
    path, overrides = split_file(words)
    resolved = resolve(path, overrides, verb)
    # Imported here so that a mistake in the keys is told at once.
    from danlu.run_config import build_run_config

    config = build_run_config(resolved)
    for text in config.notices:
        notice(text)
    return config
