"""What a step can run: the verbs with their keys, the folder each writes to, and the numbers it leaves behind."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from danlu.core import schema
from danlu.core.relevance import BESIDES, OWNERS
from danlu.models.new_config import NewConfig

FOLDER = "output_dir"
"""The key under which every step names its folder, whatever its verb calls it."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One thing a step can run.

    folder_key    what the verb itself calls the step's folder; "" when it has no key for it
    own           its keys, when they are not those of the schema
    results       files of its folder that hold its numbers
    shown         which of these numbers the summary shows, by the start of their names
    trains        whether the keys of the training loop reach it as defaults
    """

    name: str
    folder_key: str = FOLDER
    own: tuple[str, ...] = ()
    results: tuple[str, ...] = ()
    shown: tuple[str, ...] = ()
    trains: bool = False

    def known(self) -> set[str]:
        """Return the keys a step of this kind may have."""
        return {*self.own, FOLDER} if self.own else set(schema.keys())

    def knows(self, key: str) -> bool:
        """Return whether a step of this kind may have the key."""
        return key in self.known()

    def takes_default(self, key: str) -> bool:
        """Return whether a default of the pipeline reaches this kind: where its verb reads the key."""
        if self.own:
            return key in self.own
        spec = schema.keys().get(key)
        if spec is None:
            return False
        spec = schema.keys()[spec["x-alias-of"]] if spec.get("x-alias-of") else spec
        owner = spec.get("x-owner", "")
        read = owner in OWNERS[self.name] or owner.startswith("stage:")
        return (read and (self.trains or owner != "engine" or key == "seed")) or key in BESIDES.get(self.name, ())

    def with_implied(self, values: dict[str, Any]) -> dict[str, Any]:
        """Return the keys with the folder that names of data sets are looked up in, also when it is not written."""
        named = any(values.get(key) for key in ("dataset", "eval_dataset"))
        return {"dataset_dir": schema.keys()["dataset_dir"]["default"], **values} if named else values

    def numbers(self, folder: Path) -> dict[str, float]:
        """Return the numbers the summary shows, from the result files in `folder`."""
        found: dict[str, float] = {}
        for name in self.results:
            for key, value in _read(folder / name).items():
                if key.startswith(self.shown) and isinstance(value, (int, float)):
                    found[key] = float(value)
        return found


KINDS: dict[str, Kind] = {kind.name: kind for kind in (
    Kind("new", own=tuple(NewConfig.model_fields)),
    Kind("train", results=("all_results.json",), trains=True, shown=(
        "train_loss", "eval_loss", "perplexity", "eval_perplexity", "eval_accuracy", "eval_rewards/accuracies",
        "eval_reward")),
    Kind("export", folder_key="export_dir"),
    Kind("eval", folder_key="save_dir", results=("eval_results.json",),
         shown=("accuracy", "perplexity", "reward", "kl")),
    Kind("compare", folder_key="", own=("evaluations", "show")),
    Kind("command", folder_key="", own=("command", "inputs"), results=("eval_results.json",), shown=("",)),
)}


def verb_values(kind: Kind, values: dict[str, Any]) -> dict[str, Any]:
    """Return the keys for the verb's own file: the step's folder under the name the verb gives it."""
    return {(kind.folder_key or FOLDER) if key == FOLDER else key: value for key, value in values.items()}


def command_line(kind: Kind, values: dict[str, Any], file: Path) -> list[str]:
    """Return the command of a step that runs in a process of its own; a command given as text is a shell's."""
    if kind.name != "command":
        return [sys.executable, "-m", "danlu", kind.name, str(file)]
    words = values["command"]
    if isinstance(words, str):
        return ["sh", "-c", words]
    return [sys.executable if at == 0 and word == "python" else str(word) for at, word in enumerate(words)]


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return loaded
