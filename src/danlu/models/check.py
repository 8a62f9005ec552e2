"""Before the first step: every token id and every position of the data must have a row in the embeddings.

Without the check such an id ends a run on a GPU hundreds of steps in with "srcIndex < srcSelectDimSize", which names
neither the token nor the file that brought it.
"""

from collections.abc import Iterable
from pathlib import Path

from torch import nn
from transformers import PreTrainedTokenizerBase

from danlu.core.console import notice
from danlu.core.errors import DataError
from danlu.models.source import local_folder
from danlu.models.vocabulary import embedding_rows, file_that_adds, tokens_beyond

SHOWN = 8


def check_token_ids(ids: Iterable[int], tokenizer: PreTrainedTokenizerBase, model: nn.Module, *,
                    where: str = "") -> None:
    """Refuse ids that the model's embedding does not have.

    ids    ids that the data uses: all of them, or only the smallest and the largest
    where  the row that holds the largest one, when known
    Raises DataError that names the ids, their tokens, the file that adds them, and the ways out.
    """
    rows = embedding_rows(model)
    outside = sorted({int(index) for index in ids if not 0 <= index < rows})
    if not outside:
        return
    known = tokens_beyond(tokenizer, rows)
    named = [f"{index} ({known[index]})" if index in known else str(index) for index in outside[:SHOWN]]
    more = f" and {len(outside) - SHOWN} more" if len(outside) > SHOWN else ""
    token = next((known[index] for index in outside if index in known), None)
    raise DataError(
        f"the data uses token ids that the model's embedding of {rows} rows does not have: {', '.join(named)}{more}"
        f"{_added_by(tokenizer, token)}", where=where, fix=_way_out(token))


def check_positions(longest: tuple[int, str], learned: int | None, context: int | None) -> None:
    """Refuse a text longer than the model's table of positions; say when it only exceeds what the model has seen.

    longest  tokens of the longest text, and the row it is from
    learned  rows of that table; None: positions are computed, not looked up
    context  positions the model was built for; None: no limit
    """
    length, where = longest
    if learned is not None and length > learned:
        raise DataError(f"the longest text has {length:,} tokens, the model's table of positions {learned:,} rows",
                        where=where, fix=f"set cutoff_len: {learned}")
    if context is not None and length > context:
        notice(f"the longest text has {length:,} tokens, the model was built for {context:,} positions; "
               "rope_scaling stretches them, a lower cutoff_len avoids them")


def _added_by(tokenizer: PreTrainedTokenizerBase, token: str | None) -> str:
    folder = local_folder(str(tokenizer.name_or_path))
    name = None if token is None or folder is None else file_that_adds(Path(folder), token)
    return f"; {Path(folder or '') / name} adds these tokens" if name else ""


def _way_out(token: str | None) -> str:
    if token is None:
        return "use the tokenizer that belongs to this model; no token of the tokenizer has these ids"
    return ("set resize_vocab: true to give them rows of their own, or take the tokens out of that file "
            "if the model was never trained on them")
