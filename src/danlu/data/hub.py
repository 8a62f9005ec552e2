"""Rows of a data set on the Hugging Face hub or ModelScope; only sets that the user names are fetched."""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from danlu.core.errors import CapabilityError, DataError
from danlu.data.registry import HubId
from danlu.data.row_file import PlacedRow


class HubRows:
    """An Arrow table on disk, fetched on first use."""

    def __init__(self, hub: HubId) -> None:
        self.hub, self.path = hub, Path(hub.name)

    def scan(self) -> Iterator[PlacedRow]:
        for index, row in enumerate(self._table):
            yield PlacedRow(index + 1, index, row)

    def scan_from(self, place: int, number: int) -> Iterator[PlacedRow]:
        for index in range(place, len(self._table)):
            yield PlacedRow(index + 1, index, self._table[index])

    def read(self, place: int) -> Any:
        return self._table[place]

    @property
    def fingerprint(self) -> str:
        """The version of the data, as `datasets` tells it from the files that were fetched."""
        return str(self._table._fingerprint)

    @cached_property
    def _table(self) -> Any:
        hub = self.hub
        try:
            return _from_modelscope(hub) if hub.is_modelscope else _from_hugging_face(hub)
        except (OSError, ValueError, RuntimeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise DataError(f"the hub gives no data set: {reason}", where=f"{hub.name}, split {hub.split}",
                            fix="check the id, subset and split; without network, download it and give its path"
                            ) from None


def fetch_file(name: str, file: str) -> Path:
    """Return a local copy of one file of a data set on the hub. Errors: DataError."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, file, repo_type="dataset"))
    except (OSError, ValueError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"the hub gives no file {file}: {reason}", where=name,
                        fix="check the id; without network, download the file and give its path") from None


def _from_hugging_face(hub: HubId) -> Any:
    import datasets

    return datasets.load_dataset(hub.name, name=hub.subset, split=hub.split, data_dir=hub.folder)


def _from_modelscope(hub: HubId) -> Any:
    try:
        from modelscope.msdatasets import MsDataset
    except ImportError as error:
        raise CapabilityError(
            f"{hub.name} is a data set of ModelScope, and the package modelscope cannot be imported ({error})",
            where="ms_hub_url", fix='pip install "danlu[modelscope]", or download the data and give its path') from None
    found = MsDataset.load(hub.name, subset_name=hub.subset, split=hub.split, data_dir=hub.folder)
    return found.to_hf_dataset() if isinstance(found, MsDataset) else found
