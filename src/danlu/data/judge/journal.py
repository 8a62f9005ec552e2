"""Every reply of a judge on disk as it comes, so that a run that was stopped asks for none of them again."""

import json
from pathlib import Path
from threading import Lock
from typing import IO

from danlu.core.errors import DataError
from danlu.data.clean.output import json_line


class Journal:
    """Replies by the hash of judge and question; a line that a killed run left half written is cut off."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, Lock()
        self._file: IO[bytes] | None = None
        self._known: dict[str, str] = {}
        content = path.read_bytes() if path.is_file() else b""
        whole = content[:content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            path.write_bytes(whole)
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                row = json.loads(line)
                self._known[row["key"]] = row["reply"]
            except (ValueError, LookupError, TypeError):
                raise DataError("no line of a judge's journal", where=f"{path}:{number}",
                                fix="remove this line, or the file: its verdicts are then asked for again") from None

    def __len__(self) -> int:
        return len(self._known)

    def find(self, key: str) -> str | None:
        """Return the reply that was given before."""
        return self._known.get(key)

    def keep(self, key: str, reply: str) -> None:
        """Write a reply."""
        with self._lock:
            if self._file is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self._path.open("ab")
            self._known[key] = reply
            self._file.write(json_line({"key": key, "reply": reply}, str(self._path)))
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
