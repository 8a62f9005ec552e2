"""`danlu data show NAME|PATH ...`: the mask microscope, in the terminal and as a page. Parses, wires and prints."""

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from danlu.cli.data_sets import Words, read_words
from danlu.core.console import notice, say
from danlu.core.errors import ConfigError, DataError
from danlu.run_config import RunConfig

if TYPE_CHECKING:
    from rich.text import Text

    from danlu.data.dataset import TokenDataset
    from danlu.data.microscope.sums import Sums
    from danlu.data.microscope.view import View
    from danlu.recipe import Prepared

USAGE = """usage: danlu data show NAME|PATH ... --model FOLDER [--template NAME] [key=value ...]
       danlu data show FILE.yaml          what this training run trains

  --row 3 | 1-20 | 1,5    records to show, from 1 in the order of the run (1; in a page 1-20)
  --example 3 | 1-20      examples of the prepared set instead, as they are packed
  --html OUT.html         write a page: tokens, counts, pictures of the lengths
  --stage, --cutoff_len, --packing, --train_on_prompt, --mask_history, ...   as in training

In a terminal trained tokens are green (yellow: their weight is not 1), special ones bold, cut ones red; elsewhere
trained text stands between ⟦ ⟧ and cut text between ✂ ✂."""
OPTIONS = {"row": "1-20", "example": "1-20", "html": "OUT.html"}
BAR = 40
BINS = 12
STREAMED = 10_000


def main(argv: Sequence[str]) -> int:
    """Encode as training does, then show."""
    if not argv or {"-h", "--help"} & set(argv):
        print(USAGE, file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    words = read_words(argv, OPTIONS)
    config = words.config()
    if not config.model.model_name_or_path:
        raise ConfigError("no model is named", where="--model", fix="give a folder with a tokenizer")
    out = Path(words.options["html"]) if "html" in words.options else None
    if out is not None and not out.parent.is_dir():
        raise DataError(f"the folder {out.parent} does not exist", where=f"--html {out}", fix="make it first")
    chosen = _chosen(words, is_page=out is not None)
    # Imported here so that a mistake in the words is told at once.
    from danlu.data.dataset import TokenDataset
    from danlu.data.microscope.sums import sum_up
    from danlu.recipe import prepare

    config = _training_only(config)
    prepared = prepare(config)
    assert isinstance(prepared.train, TokenDataset)
    template, tokenizer = prepared.context.template, prepared.tokenizer
    stops = set(template.stop_token_ids(tokenizer)) if template else {tokenizer.eos_token_id}
    sums = sum_up(prepared.train, stops)
    views = list(_views(config, prepared, prepared.train, words, chosen))
    if out is None:
        _print(sums, views)
    else:
        _write(config, sums, views, out)
    return 0


def _training_only(config: RunConfig) -> RunConfig:
    update: dict[str, object] = {"eval_dataset": (), "eval_file": None, "val_size": 0.0, "streaming": False}
    if config.data.streaming and config.data.max_samples is None:
        notice(f"streaming: the sums are of the first {STREAMED:,} rows of each set; max_samples sets another number")
        update["max_samples"] = STREAMED
    data = config.data.model_copy(update=update)
    return replace(config, do_train=True, data=data)


def _chosen(words: Words, *, is_page: bool) -> list[int]:
    """Return the indices that --row or --example names."""
    text = words.options.get("row") or words.options.get("example") or ("1-20" if is_page else "1")
    chosen: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if not first.isdigit() or not (last or first).isdigit() or int(first) < 1:
            raise ConfigError(f'expected a number, a range or a list of them, found "{text}"',
                              where="--example" if "example" in words.options else "--row", fix="--row 1-20")
        chosen += range(int(first) - 1, int(last or first))
    return chosen


def _views(config: RunConfig, prepared: "Prepared", dataset: "TokenDataset", words: Words,
           chosen: list[int]) -> Iterator["View"]:
    from danlu.data.loader import load_records
    from danlu.data.microscope.view import Lens, view_record

    lens = Lens.of(prepared.context)
    if "example" in words.options:
        for index in _within(chosen, len(dataset), "example", words):
            yield lens.example(dataset[index], f"example {index + 1} ({dataset.origin(index)})")
        return
    records = load_records(config.data, prepared.stage.record_of(prepared.settings), seed=config.engine.seed)
    for index in _within(chosen, len(records), "row", words):
        record = records[index]
        yield from view_record(record, prepared.stage.encode, prepared.context, lens,
                               f"row {index + 1} ({record.origin})")


def _within(chosen: list[int], number: int, option: str, words: Words) -> list[int]:
    within = [index for index in chosen if index < number]
    if option in words.options and not within:
        raise ConfigError(f"there are {number} of them, found {words.options[option]}", where=f"--{option}")
    return within


def _write(config: RunConfig, sums: "Sums", views: list["View"], out: Path) -> None:
    from danlu.data.microscope.page import page

    names = ", ".join(config.data.dataset) or str(config.data.train_file)
    partial = out.with_name(f".{out.name}.part-{os.getpid()}")
    try:
        partial.write_text(page(f"{names}: what is trained", sums, views, cutoff=config.data.cutoff_len), "utf-8")
        os.replace(partial, out)
    finally:
        partial.unlink(missing_ok=True)
    say(f"wrote {out}: {len(views)} examples")


def _print(sums: "Sums", views: list["View"]) -> None:
    from rich.console import Console

    from danlu.data.microscope.sums import histogram

    console = Console(highlight=False)
    for view in views:
        console.print(f"{view.title}: {view.summary}", markup=False, style="bold", soft_wrap=True)
        for note in view.notes:
            console.print(note, markup=False, style="red", soft_wrap=True)
        console.print(_coloured(view) if console.is_terminal else _marked(view), markup=False, soft_wrap=True)
        console.print()
    width = max(len(name) for name, _ in sums.rows)
    for name, value in sums.rows:
        console.print(f"{name.ljust(width)}  {value}", markup=False, soft_wrap=True)
    bars = histogram(sums.lengths, BINS)
    most = max((count for _, _, count in bars), default=1)
    for first, last, count in bars:
        console.print(f"{first:>8,} - {last:<8,} {'█' * round(BAR * count / most):<{BAR}} {count:,}", markup=False)


def _coloured(view: "View") -> "Text":
    from rich.text import Text

    text = Text()
    for token in view.tokens:
        colour = "green" if token.weight == 1 else "yellow" if token.is_trained else "bright_black"
        style = "red strike" if token.is_cut else colour
        text.append(token.text, f"bold underline {style}" if token.is_special else style)
    return text


def _marked(view: "View") -> str:
    """Return the text with marks instead of colours."""
    from danlu.data.microscope.view import PART

    parts: list[str] = []
    lot = ""
    for token in view.tokens:
        now = "cut" if token.is_cut else "trained" if token.is_trained else ""
        if now != lot:
            parts += [_END[lot], _BEGIN[now]]
        parts.append("" if token.text == PART else token.text)
        lot = now
    return "".join([*parts, _END[lot]])


_BEGIN = {"": "", "trained": "⟦", "cut": "✂"}
_END = {"": "", "trained": "⟧", "cut": "✂"}
