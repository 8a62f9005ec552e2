"""Keys of `danlu eval`: which benchmark, from which folder, with how many examples in the prompt."""

from typing import Literal

from pydantic import Field

from danlu.core.config import StrictConfig


class EvaluationConfig(StrictConfig):
    """What a model is tested on."""

    task: str | None = Field(None, description="Benchmark and split, such as mmlu_test.")
    task_dir: str = Field("evaluation", description="Folder with the benchmark's files.")
    batch_size: int = Field(4, ge=1, description="Questions per forward pass.")
    lang: Literal["en", "zh"] = Field("en", description="Language of the prompt around the questions.")
    n_shot: int = Field(5, ge=0, description="Solved examples before each question.")
    save_dir: str | None = Field(None, description="Folder for the scores.")
