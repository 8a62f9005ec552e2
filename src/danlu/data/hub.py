"""Rows of a data set on the Hugging Face hub, read through `datasets`; only sets that the user names."""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from danlu.core.errors import DataError
from danlu.data.registry import HubId
from danlu.data.row_file import PlacedRow


class HubRows:
    """An Arrow table on disk, fetched on first use."""

    def __init__(self, hub: HubId) -> None:
        self.hub, self.path = hub, Path(hub.name)

    def scan(self) -> Iterator[PlacedRow]:
        for index, row in enumerate(self._table):
            yield PlacedRow(index + 1, index, row)

    def read(self, place: int) -> Any:
        return self._table[place]

    @cached_property
    def _table(self) -> Any:
        import datasets

        hub = self.hub
        try:
            return datasets.load_dataset(hub.name, name=hub.subset, split=hub.split, data_dir=hub.folder)
        except (OSError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise DataError(f"the hub gives no data set: {reason}", where=f"{hub.name}, split {hub.split}",
                            fix="check the id, subset and split; without network, download it and give its path"
                            ) from None
