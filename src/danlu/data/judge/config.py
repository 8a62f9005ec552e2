"""Keys of `danlu data judge`."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from danlu.core.config import StrictConfig
from danlu.core.key_types import CommaList
from danlu.data.clean.output import default_ledger


class JudgeConfig(StrictConfig):
    """What is judged, who judges, and how patiently."""

    input: CommaList = Field(min_length=1, description="Files of prompts with answers, or predictions of models.")
    output: str = Field(min_length=1, description="File of JSON lines to write: preference pairs.")
    url: str = Field("", description="Server's base URL (http://HOST:PORT/v1), or the whole endpoint.")
    model: str = Field("", description="Name of the judge, as the server knows it.")
    reward_model: str = Field("", description="Folder of a reward model or its adapter, which judges instead.")
    template: str | None = Field(None, description="Chat template of the reward model; unset: its tokenizer's.")
    cutoff_len: int = Field(2048, ge=1, description="Tokens of prompt and answer that the reward model reads.")
    batch_size: int = Field(8, ge=1, description="Prompts in one forward pass of the reward model.")
    lang: Literal["en", "zh"] = Field("en", description="Language in which the judge is asked.")
    api_key_env: str = Field("OPENAI_API_KEY", description="Environment variable that holds the key; unset: no key.")
    prompts: str | None = Field(None, description="Data set that the predictions answer, for its prompts.")
    dataset_dir: str = Field("data", description="Folder of dataset_info.json, for names of data sets.")
    name: str | None = Field(None, description="Name in the output's dataset_info.json; unset: the file's.")
    max_tokens: int = Field(1024, ge=1, description="Tokens of a verdict, reasons included.")
    timeout: float = Field(120.0, gt=0, description="Seconds to wait for a reply.")
    retries: int = Field(5, ge=0, description="Further tries after 1, 2, 4, ... seconds when a request fails.")
    concurrency: int = Field(8, ge=1, le=256, description="Requests under way at a time.")
    give_up_after: int = Field(20, ge=1, description="Failed requests in a row after which the server counts as gone.")
    overwrite: bool = Field(False, description="Replace an output that exists.")

    @property
    def ledger_path(self) -> Path:
        """Where the ledger goes."""
        return default_ledger(Path(self.output))

    @property
    def journal_path(self) -> Path:
        """Where every verdict is kept, so that none is asked for twice."""
        return Path(self.output).with_name(f"_{Path(self.output).stem}.verdicts.jsonl")

    @property
    def set_name(self) -> str:
        """The data set's name."""
        return self.name or Path(self.output).stem

    @model_validator(mode="after")
    def _is_url(self) -> Self:
        if bool(self.url) == bool(self.reward_model):
            raise ValueError("name one judge: url with model, or reward_model")
        if self.reward_model:
            return self
        if not self.model:
            raise ValueError("model is missing: the judge's name at the url")
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"url: {self.url} is no http:// or https:// address")
        return self
