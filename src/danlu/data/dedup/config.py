"""Keys of `danlu data dedup`."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from danlu.core.config import StrictConfig
from danlu.core.key_types import CommaList
from danlu.data.clean.output import default_ledger


class DedupConfig(StrictConfig):
    """What is compared, how alike two rows must be, and which of them stays."""

    input: CommaList = Field(min_length=1, description="Files, folders or names of dataset_info.json, comma separated.")
    output: str = Field(min_length=1, description="File of JSON lines to write.")
    ledger: str | None = Field(None, description="File for the ledger; unset: `_NAME.ledger.jsonl` beside it.")
    dataset_dir: str = Field("data", description="Folder of dataset_info.json.")
    columns: CommaList = Field((), description="Columns that hold text; unset: found by their usual names.")
    only: CommaList = Field((), description="Compare these columns or roles only; empty: all text of a row.")
    exact_only: bool = Field(False, description="Drop rows of equal text only, case, width and blanks aside.")
    threshold: float = Field(0.8, gt=0, le=1, description="Least Jaccard similarity of near duplicates.")
    ngram: int = Field(3, ge=1, le=50, description="Tokens in an n-gram.")
    unit: Literal["auto", "char", "word"] = Field(
        "auto", description="A token: a word, in Chinese and Japanese a sign (auto); a character; or a word always.")
    num_perm: int = Field(128, ge=8, le=512, description="Values of a signature; more find more pairs, slower.")
    recall: float = Field(0.95, gt=0, lt=1, description="Least chance of finding a pair right at the threshold.")
    verify: bool = Field(True, description="Compute the true similarity of candidates; false trusts the bands.")
    keep: Literal["first", "last", "longest"] = Field("first", description="Which row of a cluster stays.")
    seed: int = Field(0, ge=0, description="Seed of the signatures.")
    on_bad_row: Literal["error", "skip"] = Field(
        "error", description="A row that cannot be read stops the run, or is dropped and listed.")
    num_workers: int | None = Field(None, ge=1, description="Processes; unset: all cores, one for small data.")
    examples: int = Field(3, ge=0, description="Examples of near duplicates in the table and the ledger.")
    overwrite: bool = Field(False, description="Replace an output that exists.")

    @property
    def ledger_path(self) -> Path:
        """Where the ledger goes."""
        return Path(self.ledger) if self.ledger else default_ledger(Path(self.output))
