"""Which adapters were merged into a base before the one that trains. What is trained above them needs them below."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from weakref import WeakKeyDictionary

from torch import nn

from danlu.core.errors import UserError
from danlu.models.source import local_folder

FILE = "danlu_merged.json"
WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True, slots=True)
class Merged:
    """An adapter in a base: its folder, and a hash of its weights that knows it again elsewhere ("" from a hub)."""

    adapter: str
    sha256: str


def remember_merged(model: nn.Module, paths: Sequence[str]) -> None:
    """Note which adapters, in this order, the base below the model's own adapter holds."""
    _BELOW[model] = tuple(map(_merged, paths))


def merged_below(model: nn.Module) -> tuple[Merged, ...]:
    """Return the adapters that the base below the model's own adapter holds."""
    return _BELOW.get(model, ())


def write_merged(model: nn.Module, folder: Path) -> None:
    """Record in an adapter's folder what is merged below it."""
    text = json.dumps([asdict(one) for one in merged_below(model)], indent=2)
    (folder / FILE).write_text(text + "\n", encoding="utf-8")


def read_merged(adapter: str) -> tuple[Merged, ...] | None:
    """Return what a saved adapter was trained above; None where nothing is recorded."""
    folder = local_folder(adapter)
    if folder is None or not (folder / FILE).is_file():
        return None
    return tuple(Merged(**one) for one in json.loads((folder / FILE).read_text(encoding="utf-8")))


def check_merged(adapter: str, paths: Sequence[str]) -> None:
    """Refuse an adapter that was trained above merged adapters when these are not below it here.

    paths  the adapters merged so far; more of them than were recorded is the user's choice
    """
    recorded = read_merged(adapter) or ()
    here = iter([_merged(path).sha256 for path in paths])
    if all(one.sha256 in here for one in recorded):
        return
    raise UserError(
        f"the adapter {adapter} was trained above {listed(recorded)}, merged into the base; here "
        f"{'only ' + ', '.join(paths) if paths else 'nothing'} is merged", where="adapter_name_or_path",
        fix=f"set adapter_name_or_path: {','.join([*(one.adapter for one in recorded), adapter])}; to use it here all "
            f"the same, delete {Path(adapter) / FILE}")


def listed(merged: Sequence[Merged]) -> str:
    """Return the adapters' folders for a message."""
    return ", ".join(one.adapter for one in merged) or "the bare base"


def _merged(path: str) -> Merged:
    folder = local_folder(path)
    if folder is None or not (folder / WEIGHTS).is_file():
        return Merged(path, "")
    with (folder / WEIGHTS).open("rb") as file:
        return Merged(str(folder.resolve()), hashlib.file_digest(file, "sha256").hexdigest())


# Models and what is merged into their base; a model that is gone is forgotten.
_BELOW: WeakKeyDictionary[nn.Module, tuple[Merged, ...]] = WeakKeyDictionary()
