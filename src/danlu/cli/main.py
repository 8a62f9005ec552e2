"""The process edge: choose the verb, turn mistakes into sentences and exit codes."""

import errno
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from danlu.core.errors import UserError, did_you_mean
from danlu.engine.faults import Interrupted

VERBS: dict[str, str] = {
    "train": "train a model: FILE.yaml [key=value ...]",
    "plan": "say what a training run would do and need, and refuse what cannot work",
    "export": "merge adapters into the base and write a model that every tool reads",
    "chat": "talk to a model in the terminal",
    "eval": "test a model",
    "data": "check, show, count, clean and dedup data sets",
    "run": "run a pipeline of steps; skip those already done",
    "rollouts": "write a page of the answers that a run has sampled: RUN_DIR",
    "new": "make a base model and tokenizer from scratch",
    "schema": "print the JSON Schema of all keys, or one key",
    "env": "print versions, devices and memory, for bug reports",
    "version": "print the version",
}
"""Each verb is the module `danlu.cli.<verb>` with `main(argv) -> exit code`, imported when it is asked for."""

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code: 0 done, 2 a mistake the user can mend, 130 interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(words)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        return stop.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output (`danlu schema | head`) has left; a second failure at exit would be noise.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print(f"error: {error.filename or 'output'}: the disk is full\n  fix: free space or choose another folder",
              file=sys.stderr)
        return 2


def _dispatch(words: list[str]) -> int:
    verb = words[0] if words else ""
    if verb in ("", "-h", "--help", "help"):
        print(_usage())
        return 0 if verb else 2
    if verb in ("-V", "--version"):
        verb = "version"
    if verb not in VERBS:
        raise UserError(f'unknown verb "{verb}"', fix=did_you_mean(verb, VERBS))
    code: int = import_module(f"danlu.cli.{verb}").main(words[1:])
    return code


def _usage() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {verb.ljust(width)}  {text}" for verb, text in VERBS.items()]
    return "\n".join(["usage: danlu VERB ...", "", *lines, "", "danlu VERB --help says more."])


if __name__ == "__main__":
    raise SystemExit(main())
