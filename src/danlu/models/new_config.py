"""Keys of `danlu new`: an architecture, a tokenizer, a place. Knows nothing of training."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from danlu.core.config import StrictConfig
from danlu.core.key_types import CommaList


class NewConfig(StrictConfig):
    """A base model from scratch: random weights, and a tokenizer trained on the user's text or taken over."""

    output_dir: str = Field(description="Folder of the new model; must not hold anything yet.")
    architecture: str = Field("llama-2m", description="Preset by name, or the path of a transformers config.json.")
    config_overrides: dict[str, Any] = Field(
        default_factory=dict, description="Keys of the transformers config that differ from the preset, as a map.")
    tokenizer_corpus: CommaList = Field(
        (), description="Text files a byte-level BPE tokenizer is trained on: txt, json, jsonl; comma separated.")
    text_column: str = Field("text", description="Column of json files with the text; without it all strings count.")
    vocab_size: int | None = Field(
        None, ge=260, description="Tokens of the trained tokenizer, special ones included; unset: the preset's.")
    tokenizer_name_or_path: str | None = Field(None, description="Existing tokenizer to take over: folder or hub id.")
    special_tokens: CommaList = Field(
        (), description="Control tokens beside <|endoftext|> and <|pad|>; those of `template` come by themselves.")
    template: str | None = Field(None, description="Named chat template that is saved with the tokenizer.")
    seed: int = Field(42, ge=0, description="Seed of the random weights.")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="Number format on disk.")
    overwrite_output_dir: bool = Field(False, description="Replace a model that is in output_dir already.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if bool(self.tokenizer_corpus) == (self.tokenizer_name_or_path is not None):
            raise ValueError("name either tokenizer_corpus (text to train a tokenizer on) or tokenizer_name_or_path")
        if self.tokenizer_name_or_path is not None and self.vocab_size is not None:
            raise ValueError("vocab_size belongs to a tokenizer that is trained; this one is taken over as it is")
        if "vocab_size" in self.config_overrides:
            raise ValueError("config_overrides: vocab_size follows the tokenizer; set the key vocab_size instead")
        return self
