"""The folder of one run: what is in it, what may be overwritten, and files that are either whole or absent.

Knows nothing of models: weights and checkpoints are written by others into the folders named here.
"""

import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from danlu.core.console import is_main_process, launched_processes, notice
from danlu.core.errors import ConfigError, UserError

CHECKPOINT_PREFIX = "checkpoint-"
TEMPORARY_PREFIX = ".tmp-"
LOG_FILE = "trainer_log.jsonl"
STATE_FILE = "trainer_state.json"
ROLLOUT_FILE = "rollouts.jsonl"
ROLLOUT_PAGE = "rollouts.html"

_JOURNALS = (LOG_FILE, STATE_FILE, ROLLOUT_FILE, ROLLOUT_PAGE, "running_log.txt", "environment.json",
             "training_args.yaml", "training_*.png")
_RESULTS = (
    "train_results.json", "eval_results.json", "predict_results.json", "all_results.json",
    "generated_predictions.jsonl", "adapter_config.json", "adapter_model.safetensors", "model.safetensors",
    "model-*-of-*.safetensors", "model.safetensors.index.json", "value_head.safetensors", "config.json",
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja",
)
_PACKAGES = ("danlu", "torch", "transformers", "accelerate", "peft", "datasets", "safetensors", "tokenizers", "numpy",
             "bitsandbytes")


def write_whole(path: Path, text: str) -> None:
    """Write `text` so that a reader finds the old file or the new one, never a half; survives a power cut."""
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{path.name}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"cannot write: {error.strerror or error}", where=str(path),
                        fix="free space on this disk or choose another output_dir") from error
    sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    write_whole(path, json.dumps(value, indent=2, ensure_ascii=False, sort_keys=False) + "\n")


def sync_folder(folder: Path) -> None:
    """Ask the system to put the folder's own entries (names, renames) on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class RunDir:
    """An output folder. Every process may hold one; only the first process writes.

    `create` checks and changes no file; `begin`, called when everything else of the run is checked as well, does.
    """

    def __init__(self, path: Path, *, overwrite: bool = False, config: Mapping[str, Any] | None = None,
                 at_start: Callable[[Path], object] | None = None) -> None:
        self.path = path
        self._overwrite, self._config, self._at_start = overwrite, config, at_start
        self._began = False

    @classmethod
    def create(cls, output_dir: str | Path, *, overwrite: bool = False, config: Mapping[str, Any] | None = None,
               inputs: Iterable[str | Path] = (), at_start: Callable[[Path], object] | None = None) -> "RunDir":
        """Open or make the folder; refuse to write over a finished run, or over files the run reads (`inputs`).

        Nothing in it changes before `begin`, which stores `config` as training_args.yaml and calls `at_start` with
        the folder.
        """
        run = cls(Path(output_dir).expanduser(), overwrite=overwrite, config=config, at_start=at_start)
        if not is_main_process():
            return run
        run.check(inputs)
        try:
            run.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"output_dir cannot be made: {error.strerror}", where=str(run.path),
                              fix="choose another output_dir, in a folder that you may write to") from error
        return run

    def check(self, inputs: Iterable[str | Path] = ()) -> None:
        """Refuse a folder that `begin` must not write to; make and change nothing."""
        _refuse_inputs(self.path, inputs, self._overwrite)
        existing = next(one for one in (self.path, *self.path.absolute().parents) if one.exists())
        if not existing.is_dir():
            raise ConfigError(f"output_dir cannot be made: {existing} is a file, expected a folder",
                              where=f"output_dir {self.path}", fix="choose another output_dir, or move that file away")
        if not self._overwrite and not self.checkpoints():
            self._refuse_results()

    def begin(self) -> None:
        """Clear what an earlier run left and write down what this one is; a second call does nothing.

        With overwrite, checkpoints and the files that danlu itself writes go, nothing else. Otherwise checkpoints are
        left for the engine to resume from, and logs without a checkpoint go.
        """
        if self._began or not is_main_process():
            return
        self._began = True
        if self._overwrite:
            self._remove_outputs()
        elif not self.checkpoints():
            for path in self._matching(_JOURNALS):
                path.unlink()
        self.write_json("environment.json", environment())
        if self._config is not None:
            write_whole(self.path / "training_args.yaml",
                        yaml.safe_dump(_plain(self._config), sort_keys=False, allow_unicode=True))
        if self._at_start is not None:
            self._at_start(self.path)

    def checkpoints(self) -> list[Path]:
        """Return the `checkpoint-N` folders, whole or not, in the order of N."""
        found = [p for p in self.path.glob(f"{CHECKPOINT_PREFIX}*") if p.is_dir() and checkpoint_step(p) is not None]
        return sorted(found, key=lambda p: checkpoint_step(p) or 0)

    def checkpoint(self, step: int) -> Path:
        """Return the folder of the checkpoint at `step`."""
        return self.path / f"{CHECKPOINT_PREFIX}{step}"

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file of the run, whole or not at all."""
        if is_main_process():
            write_json(self.path / name, value)

    def write_results(self, kind: str, metrics: Mapping[str, Any]) -> None:
        """Write `{kind}_results.json` and merge the same numbers into all_results.json."""
        if not is_main_process():
            return
        merged = self.read_json("all_results.json") | dict(metrics)
        write_json(self.path / f"{kind}_results.json", dict(sorted(metrics.items())))
        write_json(self.path / "all_results.json", dict(sorted(merged.items())))

    def read_json(self, name: str) -> dict[str, Any]:
        """Return a JSON file of the run, or an empty map when it is absent."""
        path = self.path / name
        if not path.exists():
            return {}
        loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return loaded

    def append_log(self, row: Mapping[str, Any]) -> None:
        """Append one row to trainer_log.jsonl; it is on its way to the disk when this returns."""
        self._append(LOG_FILE, json.dumps(row, ensure_ascii=False))

    def append_text(self, line: str) -> None:
        """Append one line to running_log.txt."""
        self._append("running_log.txt", line)

    def rewind_log(self, step: int) -> None:
        """Drop the rows of trainer_log.jsonl after `step`: the run goes on from there and writes them again."""
        path = self.path / LOG_FILE
        if not is_main_process() or not path.exists():
            return
        kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _row_step(line) <= step]
        write_whole(path, "".join(f"{line}\n" for line in kept))

    def _append(self, name: str, line: str) -> None:
        if not is_main_process():
            return
        try:
            with (self.path / name).open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise UserError(f"cannot write: {error.strerror or error}", where=str(self.path / name),
                            fix="free space on this disk; the run goes on from its last checkpoint") from error

    def _matching(self, patterns: Sequence[str]) -> list[Path]:
        return [path for pattern in patterns for path in sorted(self.path.glob(pattern)) if path.is_file()]

    def _remove_outputs(self) -> None:
        old = [*self._matching((*_JOURNALS, *_RESULTS)), *self.checkpoints(),
               *self.path.glob(f"{TEMPORARY_PREFIX}{CHECKPOINT_PREFIX}*")]
        for path in old:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if old:
            notice(f"overwrite_output_dir: removed {len(old)} files and checkpoints of an earlier run in {self.path}")

    def _refuse_results(self) -> None:
        results = self._matching(_RESULTS)
        if results:
            names = ", ".join(path.name for path in results[:4])
            raise ConfigError(
                f"the folder holds a result and no checkpoint to go on from: {names}", where=f"output_dir {self.path}",
                fix="choose another output_dir, or set overwrite_output_dir: true")


def checkpoint_step(folder: Path) -> int | None:
    """Return N of a folder named `checkpoint-N`, None for any other name."""
    number = folder.name.removeprefix(CHECKPOINT_PREFIX)
    return int(number) if number.isdigit() and number != folder.name else None


def environment() -> dict[str, Any]:
    """Return what the run depends on outside its own files: versions, system, command line."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "processes": launched_processes(),
        "packages": {name: found for name in _PACKAGES if (found := _version(name)) is not None},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _row_step(line: str) -> int:
    try:
        return int(json.loads(line).get("current_steps", 0))
    except (ValueError, AttributeError):
        return sys.maxsize


def _refuse_inputs(output: Path, inputs: Iterable[str | Path], overwrite: bool) -> None:
    folder = output.resolve()
    for path in (Path(one).expanduser().resolve() for one in inputs):
        if path.exists() and (path == folder or (overwrite and folder in path.parents)):
            raise ConfigError(f"output_dir would write over {path}, which the run reads from",
                              where=f"output_dir {output}", fix="choose another output_dir")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
