"""`danlu chat`: talk to a model, or to several side by side. Reads lines, prints answers; no logic of its own."""

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from danlu.cli.key_help import key_table
from danlu.core.arguments import split_file
from danlu.core.console import notice, say
from danlu.core.errors import UserError, did_you_mean
from danlu.core.resolve import resolve

if TYPE_CHECKING:
    from danlu.generation.chat import ChatSession

USAGE = """usage: danlu chat [FILE.yaml] [key=value ...] [--key value ...]
       danlu chat --compare FOLDER FOLDER ... [key=value ...]

Talk to a base model, an adapter or a merged model. FOLDER is a model or an adapter.
    danlu chat model_name_or_path=runs/sft
    danlu chat --model_name_or_path base --adapter_name_or_path runs/sft --template default
    danlu chat --compare base runs/sft do_sample=false
Reads one message a line from a pipe as well. Ctrl-C stops an answer, Ctrl-D leaves."""
COMMANDS = {
    "/clear": "forget the conversation (also: clear)",
    "/system": "TEXT: begin anew under this system prompt; without TEXT, under none",
    "/regenerate": "answer the last message again",
    "/help": "show these commands",
    "/exit": "leave (also: exit, Ctrl-D)",
}
PLAIN_WORDS = {"clear": "/clear", "exit": "/exit"}
Answers = list[tuple[str, Iterator[str]]]


OWNERS = ("model", "quantization", "generation")


def main(argv: Sequence[str]) -> int:
    """Talk until the reader leaves; return the exit code."""
    if not argv or {"-h", "--help"} & set(argv):
        print(USAGE, key_table(OWNERS), sep="\n", file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    folders, rest = split_compare(list(argv))
    sessions = _sessions(folders, rest)
    is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    show = (_show_columns if is_terminal else _show_blocks) if len(sessions) > 1 else (
        _show_spoken if is_terminal else _show_bare)
    if is_terminal:
        say(f"talking to {', '.join(session.loaded.name for session in sessions)}; /help lists the commands")
    for line in _lines(is_terminal):
        if not _handle(line, sessions, show):
            break
    return 0


def split_compare(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Return the folders after --compare and the other arguments.

    Raises UserError for fewer than two folders.
    """
    if "--compare" not in arguments:
        return [], arguments
    start = arguments.index("--compare")
    end = start + 1
    while end < len(arguments) and not arguments[end].startswith("-") and "=" not in arguments[end]:
        end += 1
    folders = arguments[start + 1 : end]
    if len(folders) < 2:
        raise UserError(f"found {len(folders)} after it, two or more are needed", where="--compare",
                        fix="danlu chat --compare FOLDER FOLDER")
    return folders, arguments[:start] + arguments[end:]


def _sessions(folders: list[str], arguments: list[str]) -> "list[ChatSession]":
    path, overrides = split_file(arguments)
    named = [[f"model_name_or_path={folder}"] for folder in folders] or [[]]
    resolved = [resolve(path, [*overrides, *one], "chat") for one in named]
    # Imported here so that a mistake in the keys is told at once.
    from danlu.generation.chat import ChatSession
    from danlu.generation.load import load_for_inference
    from danlu.run_config import build_run_config

    sessions = []
    for config in map(build_run_config, resolved):
        for text in config.notices:
            notice(text)
        loaded = load_for_inference(
            config.model, config.quantization, config.adapter, config.generation, template=config.data.template)
        sessions.append(ChatSession(
            loaded, config.generation, system=config.data.default_system, seed=config.engine.seed,
            enable_thinking=config.data.enable_thinking))
    return sessions


def _lines(is_terminal: bool) -> Iterator[str]:
    """Yield messages until the input ends."""
    if not is_terminal:
        yield from (line.rstrip("\n") for line in sys.stdin)
        return
    import readline  # noqa: F401  input() then has arrow keys and a history

    while True:
        try:
            yield input("\nUser: ")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            say("\n/exit or Ctrl-D leaves")


def _handle(line: str, sessions: "list[ChatSession]", show: Callable[[Answers], None]) -> bool:
    """Do what one line asks; return False when the reader leaves."""
    word, _, rest = line.strip().partition(" ")
    command = PLAIN_WORDS.get(line.strip(), word)
    if command == "/exit":
        return False
    if command == "/help":
        say("\n".join(f"  {name:12} {text}" for name, text in COMMANDS.items()))
    elif command == "/clear":
        for session in sessions:
            session.clear()
        say("the conversation is forgotten")
    elif command == "/system":
        for session in sessions:
            session.set_system(rest.strip())
        say("a new conversation begins")
    elif re.fullmatch(r"/[a-z]+", line.strip()) and command != "/regenerate":
        say(f"no such command. {did_you_mean(command, COMMANDS)}")
    elif line.strip():
        _answer(line if command != "/regenerate" else None, sessions, show)
    return True


def _answer(text: str | None, sessions: "list[ChatSession]", show: Callable[[Answers], None]) -> None:
    """Print the answers to a message, or other answers to the last one; Ctrl-C stops them."""
    try:
        answers = [(s.loaded.name, s.regenerate() if text is None else s.ask(text)) for s in sessions]
        show(answers)
    except UserError as error:
        say(str(error))
    except KeyboardInterrupt:
        for _, pieces in answers:
            pieces.close()  # type: ignore[attr-defined]
        say("\nstopped")


def _show_bare(answers: Answers) -> None:
    for piece in answers[0][1]:
        print(piece, end="", flush=True)
    print(flush=True)


def _show_spoken(answers: Answers) -> None:
    print("Assistant: ", end="", flush=True)
    _show_bare(answers)


def _show_blocks(answers: Answers) -> None:
    for name, pieces in answers:
        print(f"[{name}] {''.join(pieces)}", flush=True)


def _show_columns(answers: Answers) -> None:
    """Draw one column for each model and fill them one after the other."""
    from rich.live import Live
    from rich.table import Column, Table
    from rich.text import Text

    texts = [""] * len(answers)

    def table() -> Table:
        grid = Table(*(Column(name, ratio=1) for name, _ in answers), expand=True)
        grid.add_row(*map(Text, texts))
        return grid

    with Live(table(), refresh_per_second=12) as live:
        for column, (_, pieces) in enumerate(answers):
            for piece in pieces:
                texts[column] += piece
                live.update(table())
