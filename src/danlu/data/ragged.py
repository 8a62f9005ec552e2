"""Arrays of different lengths on disk: a flat file and a file of ends, appended to, then mapped."""

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from danlu.core.errors import DataError

ENDS = np.dtype(np.int64)
ROWS_A_WRITE = 512


class RaggedWriter:
    """Named columns of ragged rows in one folder."""

    def __init__(self, folder: Path, columns: Mapping[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._types = {name: np.dtype(kind) for name, kind in columns.items()}
        self._data = {name: (folder / f"{name}.bin").open("wb") for name in columns}
        self._ends = {name: (folder / f"{name}.ends.bin").open("wb") for name in columns}
        self._length = dict.fromkeys(columns, 0)
        self._waiting: dict[str, list[NDArray[Any]]] = {name: [] for name in columns}

    def append(self, **rows: ArrayLike) -> None:
        """Append one row to each of the named columns; an array may be written later and must stay as it is."""
        for name, row in rows.items():
            waiting = self._waiting[name]
            waiting.append(np.asarray(row, self._types[name]))
            if len(waiting) == ROWS_A_WRITE:
                self._write(name)

    def _write(self, name: str) -> None:
        rows = self._waiting[name]
        if not rows:
            return
        ends = np.cumsum([len(row) for row in rows], dtype=ENDS) + self._length[name]
        self._data[name].write(np.concatenate(rows).tobytes())
        self._ends[name].write(ends.tobytes())
        self._length[name] = int(ends[-1])
        rows.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        for name in self._waiting if kind is None else ():
            self._write(name)
        for file in (*self._data.values(), *self._ends.values()):
            file.close()


class Ragged:
    """One column, mapped from disk: `column[i]` is a view of row i."""

    def __init__(self, folder: Path, name: str, kind: Any) -> None:
        self.flat = _mapped(folder / f"{name}.bin", np.dtype(kind))
        self.ends: NDArray[np.int64] = _mapped(folder / f"{name}.ends.bin", ENDS)
        if len(self.flat) != (int(self.ends[-1]) if len(self.ends) else 0):
            raise DataError(f"column {name} is damaged", where=str(folder), fix="remove the folder")

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> NDArray[Any]:
        start = int(self.ends[index - 1]) if index else 0
        return self.flat[start:int(self.ends[index])]

    def lengths(self) -> NDArray[np.int64]:
        """Return the length of every row."""
        return np.diff(self.ends, prepend=0)


def _mapped(path: Path, kind: np.dtype[Any]) -> NDArray[Any]:
    if not path.stat().st_size:
        return np.zeros(0, kind)
    return np.asarray(np.memmap(path, kind, "r"))
