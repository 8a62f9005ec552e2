"""Keys of `danlu eval`: which benchmark, how many questions at a time, where the scores go."""

from pydantic import Field

from danlu.core.config import StrictConfig


class EvaluationConfig(StrictConfig):
    """What a model is tested on."""

    task: str | None = Field(None, description="Benchmark and split, such as mmlu_test.")
    batch_size: int = Field(4, ge=1, description="Questions per forward pass.")
    save_dir: str | None = Field(None, description="Folder for the scores.")
