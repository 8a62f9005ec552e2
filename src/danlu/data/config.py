"""Keys of the data: which sets, how they are mixed, cut, masked, packed and cached."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from danlu.core.config import StrictConfig
from danlu.core.key_types import CommaList, FloatList, not_in, only_with


class DataConfig(StrictConfig):
    """What is read and how it becomes token sequences."""

    template: str | None = Field(
        None, description="Chat template by name; unset takes the tokenizer's own, or `default` with a notice.",
        json_schema_extra=not_in("pt"))
    dataset: CommaList = Field((), description="Training sets, comma separated: names of dataset_info.json or paths.")
    eval_dataset: CommaList = Field((), description="Evaluation sets, comma separated: names or paths.")
    train_file: str | None = Field(None, description="A training file or folder read directly, without a registry.")
    eval_file: str | None = Field(None, description="An evaluation file or folder read directly.")
    dataset_dir: str = Field("data", description="Folder of dataset_info.json and the files it names.")
    split: str | None = Field(None, description="Split to read of every set; unset takes the registry's, or `train`.")
    text_column: str | None = Field(None, description="Column with plain text; unset: the registry's, or `text`.")
    on_bad_row: Literal["error", "skip"] = Field(
        "error", description="A row that cannot be read stops the run, or is left out and listed.")
    cutoff_len: int = Field(2048, ge=1, description="Longest example in tokens; longer ones are cut, and counted.")
    on_long: Literal["drop", "left", "right", "split", "error"] = Field(
        "right", description="An example longer than cutoff_len: last rounds go first, then the answer's tail (right), "
        "first rounds go (left), several examples (split), left out (drop), or the run stops (error).")
    reserved_label_len: int = Field(
        1, ge=0, description="Tokens of the answer that shortening keeps at least.",
        json_schema_extra=not_in("pt"))
    train_on_prompt: bool = Field(
        False, description="Put loss on the prompt's tokens as well.",
        json_schema_extra=not_in("pt"))
    mask_history: bool = Field(
        False, description="Put loss on the last answer of a dialogue only.",
        json_schema_extra=not_in("pt"))
    streaming: bool = Field(
        False, description="Read and encode rows while training; for data too large to be encoded beforehand.")
    buffer_size: int = Field(
        16384, ge=1, description="Rows that a stream draws from at random; it reads ahead by as many.",
        json_schema_extra=only_with(streaming=True))
    mix_strategy: Literal["concat", "interleave_under", "interleave_over", "interleave_once"] = Field(
        "concat", description="How several sets are mixed: one after the other, or drawn in turn until the first, "
        "or the last, is used up (once: no row twice).")
    interleave_probs: FloatList = Field(
        (), description="Weight of each set when drawn in turn, comma separated; they are scaled to sum to 1.",
        json_schema_extra=only_with(mix_strategy=("interleave_under", "interleave_over", "interleave_once")))
    overwrite_cache: bool = Field(False, description="Encode again although a cached copy exists.")
    preprocessing_batch_size: int = Field(1000, ge=1, description="Records encoded at a time.")
    preprocessing_num_workers: int | None = Field(
        None, ge=1, description="Processes that encode; unset: one a core, at least 1000 rows each; streaming: none.")
    max_samples: int | None = Field(None, ge=1, description="Records taken from each set at most.")
    val_size: float = Field(
        0.0, ge=0, description="Part of the training records set aside for evaluation: a share below 1, or a count.")
    eval_on_each_dataset: bool = Field(
        False, description="Evaluate each set of eval_dataset by itself.",
        json_schema_extra=only_with(eval_dataset=True))
    packing: bool | None = Field(
        None, description="Fill rows of cutoff_len with whole examples; unset: true for pt, false otherwise.")
    neat_packing: bool = Field(False, description="Same as packing: true; neighbours never see each other anyway.")
    default_system: str | None = Field(
        None, description="System message of dialogues that have none.",
        json_schema_extra=not_in("pt"))
    enable_thinking: bool | None = Field(
        True, description="Reasoning templates: true asks for reasoning, false for none, null leaves it to the row.",
        json_schema_extra=not_in("pt"))
    preserve_thinking: bool = Field(
        False, description="Keep the reasoning of earlier answers in the prompt.",
        json_schema_extra=not_in("pt"))
    tool_format: str | None = Field(
        None, description="How a named template writes tools: default, glm4, llama3, mistral, mistral_tekken or qwen; "
        "unset: the template's own way.", json_schema_extra=not_in("pt"))
    tokenized_path: str | None = Field(None, description="Folder to save the encoded set to, or load it from.")

    @model_validator(mode="before")
    @classmethod
    def _pack_neatly(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("neat_packing") and values.get("packing") is None:
            return {**values, "packing": True}
        return values

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.val_size >= 1 and self.val_size != int(self.val_size):
            raise ValueError(f"val_size is a share below 1 or a whole number of records, found {self.val_size}")
        if self.val_size and (self.eval_dataset or self.eval_file):
            raise ValueError("val_size and an evaluation set exclude each other: remove one")
        if self.dataset and self.train_file:
            raise ValueError("dataset and train_file exclude each other: write both sets into dataset, comma separated")
        if self.eval_dataset and self.eval_file:
            raise ValueError("eval_dataset and eval_file exclude each other: write both into eval_dataset")
        if self.neat_packing and self.packing is False:
            raise ValueError("neat_packing: true means packing: true, but packing is false")
        if self.mask_history and self.train_on_prompt:
            raise ValueError("mask_history and train_on_prompt exclude each other")
        self._check_mixing()
        self._check_streaming()
        return self

    def _check_streaming(self) -> None:
        if self.streaming and self.tokenized_path:
            raise ValueError("streaming and tokenized_path exclude each other: a stream is never written down")
        if self.streaming and 0 < self.val_size < 1:
            raise ValueError(f"val_size {self.val_size:g} is a share, and a stream sets its first rows aside: give "
                             "their number, such as val_size: 1000")

    def _check_mixing(self) -> None:
        if self.interleave_probs and self.mix_strategy == "concat":
            raise ValueError("interleave_probs needs mix_strategy interleave_under, interleave_over or interleave_once")
        if self.interleave_probs and len(self.interleave_probs) != len(self.dataset):
            raise ValueError(f"interleave_probs has {len(self.interleave_probs)} values for {len(self.dataset)} sets")
