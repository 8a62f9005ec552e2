"""Checkpoints that are whole or absent: written beside their name, checksummed, synced, then renamed.

    checkpoint-N/  weights as the user will load them, optimizer.pt, scheduler.pt, scaler.pt, rng_state.pt,
                   trainer_state.json, manifest.json (size and sha256 of every other file)
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from danlu.core.console import notice, warn
from danlu.core.errors import ConfigError, UserError
from danlu.core.run_dir import (
    CHECKPOINT_PREFIX,
    STATE_FILE,
    TEMPORARY_PREFIX,
    RunDir,
    sync_folder,
    write_json,
)

MANIFEST = "manifest.json"
_FORMAT = 1
_WEIGHTS_ONLY = "it holds weights only (save_only_model) and cannot be resumed"
# What the disk, safetensors and write_json raise when a file cannot be written.
_WRITE_ERRORS = (OSError, SafetensorError, UserError)


@dataclass(frozen=True, slots=True)
class Contents:
    """What goes into a checkpoint. `tensors` maps a file name to a value of torch.save; empty: not resumable."""

    save_weights: Callable[[], None]
    state: Mapping[str, Any]
    tensors: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Draft:
    """A checkpoint under a temporary name: opened, then stored from live tensors, then sealed under its own name.

    Only `store` reads tensors of the run; `seal` reads every byte again, which takes longer. A failure of any of them
    is a UserError, removes the draft and leaves every earlier checkpoint as it was.
    """

    run: RunDir
    step: int

    @property
    def folder(self) -> Path:
        """Where the files are until the checkpoint is whole."""
        return self.run.path / f"{TEMPORARY_PREFIX}{self.final.name}"

    @property
    def final(self) -> Path:
        """Where the checkpoint will be."""
        return self.run.checkpoint(self.step)

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Turn a failed write inside the block into the user's error."""
        try:
            yield
        except _WRITE_ERRORS as error:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise _cannot_write(self.run, self.final, error) from error

    def open(self) -> None:
        """Make the empty folder."""
        with self.guarded():
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)

    def store(self, contents: Contents) -> None:
        """Hand all files to the system; the tensors may change afterwards."""
        with self.guarded():
            contents.save_weights()
            for name, value in contents.tensors.items():
                _save_tensors(value, self.folder / name)
            write_json(self.folder / STATE_FILE, contents.state)

    def seal(self, *, resumable: bool) -> None:
        """Bring every byte to the disk, write the manifest, and give the folder its name."""
        with self.guarded():
            files = sorted(path for path in self.folder.rglob("*") if path.is_file())
            facts = {str(path.relative_to(self.folder)): {"bytes": path.stat().st_size, "sha256": _sync(path)}
                     for path in files}
            write_json(self.folder / MANIFEST, {
                "format": _FORMAT, "step": self.step, "resumable": resumable, "files": facts})
            sync_folder(self.folder)
            _remove(self.final)
            self.folder.rename(self.final)
            sync_folder(self.run.path)


def load_tensors(folder: Path, name: str) -> Any:
    """Return what `write_checkpoint` stored under a file name, on the CPU; None when there is no such file."""
    path = folder / name
    return torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None


def load_state(folder: Path) -> dict[str, Any]:
    """Return the counters and log history of a checkpoint."""
    loaded: dict[str, Any] = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
    return loaded


def fault_of(folder: Path, *, checksums: bool) -> str | None:
    """Return why a checkpoint cannot be trusted, None when it can. `checksums` reads every byte."""
    path = folder / MANIFEST
    if not path.exists():
        return f"no {MANIFEST}"
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
    except (ValueError, KeyError, TypeError):
        return f"{MANIFEST} is not readable"
    for name, facts in files.items():
        file = folder / name
        if not file.exists():
            return f"{name} is missing"
        if file.stat().st_size != facts["bytes"]:
            return f"{name} has {file.stat().st_size} bytes, expected {facts['bytes']}"
        if checksums and _sha256(file) != facts["sha256"]:
            return f"the checksum of {name} differs"
    return None


def is_resumable(folder: Path) -> bool:
    """Return False for a checkpoint of weights alone (save_only_model)."""
    return bool(json.loads((folder / MANIFEST).read_text(encoding="utf-8")).get("resumable", False))


def find_resume(run: RunDir, wanted: str | bool | None, *, overwrite: bool) -> Path | None:
    """Return the checkpoint to go on from, or None to start anew.

    An explicit path must be whole. Otherwise the newest whole checkpoint of the run counts; broken ones are skipped
    with a warning. A run of weights-only checkpoints is refused rather than written over.
    """
    if isinstance(wanted, str):
        return _checked(Path(wanted).expanduser())
    if overwrite and not wanted:
        return None
    found = run.checkpoints()
    if wanted is False and found:
        raise ConfigError(f"{run.path} holds {found[-1].name} and resume_from_checkpoint is false",
                          fix="set overwrite_output_dir: true to start anew, or choose another output_dir")
    weights_only = []
    for folder in reversed(found):
        fault = fault_of(folder, checksums=True)
        if fault is None and is_resumable(folder):
            return folder
        if fault is None:
            weights_only.append(folder.name)
        warn(f"{folder} is ignored: {fault or _WEIGHTS_ONLY}")
    if wanted is True or weights_only:
        raise ConfigError(
            f"no checkpoint in {run.path} can be resumed", where="resume_from_checkpoint",
            fix="set overwrite_output_dir: true to start anew, or choose another output_dir")
    return None


def remove_leftovers(run: RunDir) -> None:
    """Remove what a crash left half written or half deleted."""
    for folder in run.path.glob(f"{TEMPORARY_PREFIX}{CHECKPOINT_PREFIX}*"):
        shutil.rmtree(folder, ignore_errors=True)
        notice(f"removed {folder.name}, left by a run that was stopped while saving")


def rotate(run: RunDir, limit: int | None, keep: str | None) -> None:
    """Delete the oldest checkpoints beyond `limit`; the one named `keep` (the best) stays.

    A folder without a manifest is not ours and is neither counted nor deleted.
    """
    if limit is None:
        return
    found = [folder for folder in run.checkpoints() if (folder / MANIFEST).exists()]
    spare = [folder for folder in found[:-limit] if folder.name != keep]
    for folder in spare:
        _remove(folder)


def _remove(folder: Path) -> None:
    """Take the name away before deleting, so that a crash in between leaves no half checkpoint under it."""
    if folder.exists():
        doomed = folder.with_name(f"{TEMPORARY_PREFIX}{folder.name}.old")
        shutil.rmtree(doomed, ignore_errors=True)
        folder.rename(doomed)
        shutil.rmtree(doomed)


def _checked(folder: Path) -> Path:
    if not folder.is_dir():
        raise ConfigError("no such checkpoint folder", where=f"resume_from_checkpoint {folder}")
    fault = fault_of(folder, checksums=True)
    if fault is None and not is_resumable(folder):
        fault = _WEIGHTS_ONLY
    if fault is not None:
        others = [p.name for p in RunDir(folder.parent).checkpoints() if p != folder]
        raise ConfigError(f"not a whole checkpoint: {fault}", where=f"resume_from_checkpoint {folder}",
                          fix=f"try another one: {', '.join(others)}" if others else "start the run anew")
    return folder


def _save_tensors(value: Any, path: Path) -> None:
    try:
        torch.save(value, path)
    except RuntimeError as error:
        # torch's archive writer reports every failed write this way, in wordings of its own.
        raise OSError(errno.EIO, str(error)) from error


def _sync(path: Path) -> str:
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return _sha256(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _cannot_write(run: RunDir, final: Path, error: BaseException) -> UserError:
    reason = str(error).splitlines()[0]
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        reason = "no space left on the disk"
    elif shutil.disk_usage(run.path).free < 1 << 20:
        reason = f"no space left on the disk ({reason})"
    whole = [p for p in run.checkpoints() if fault_of(p, checksums=False) is None]
    kept = f"; {whole[-1].name} is whole and the run goes on from it" if whole else ""
    return UserError(f"cannot be written: {reason}", where=str(final),
                     fix=f"free space (save_total_limit keeps fewer checkpoints) and run the command again{kept}")
