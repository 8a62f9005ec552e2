"""A folder that appears whole or not at all: written beside its final name and renamed. Knows nothing of models."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from danlu.core.console import notice
from danlu.core.errors import UserError

REPORT = "export_report.json"


def check_target(target: Path, sources: tuple[str, ...]) -> None:
    """Refuse a target that holds anything but an earlier export, or that is one of the sources.

    Raises UserError that names the folder and what is in it.
    """
    if any(Path(source).expanduser().resolve() == target.resolve() for source in sources):
        raise UserError(f"{target} is where the weights are read from", where="export_dir", fix="name another folder")
    if target.is_file():
        raise UserError(f"{target} is a file", where="export_dir", fix="name a folder")
    if target.is_dir() and any(target.iterdir()) and not (target / REPORT).is_file():
        found = ", ".join(sorted(child.name for child in target.iterdir())[:8])
        raise UserError(
            f"{target} is not empty and not an earlier export; found {found}", where="export_dir",
            fix="name a new folder, or empty this one yourself")
    if (target / REPORT).is_file():
        notice(f"{target} holds an earlier export; this one takes its place once it is whole")


def check_space(target: Path, num_bytes: int) -> None:
    """Refuse to start writing `num_bytes` where they cannot fit."""
    parent = next(folder for folder in target.resolve().parents if folder.is_dir())
    free = shutil.disk_usage(parent).free
    if free < num_bytes:
        raise UserError(
            f"the export needs {num_bytes / 1e9:.2f} GB; {parent} has {free / 1e9:.2f} GB left", where="export_dir",
            fix="free some space or name a folder on another disk")


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Yield a folder to write into; it takes the target's name when the block ends well and vanishes otherwise."""
    partial, old = (target.with_name(f".{target.name}.{state}") for state in ("partial", "replaced"))
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():
            target.rename(old)
        partial.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
