"""Keys of `danlu eval`: which benchmark, how many questions at a time, where the scores go."""

from pydantic import Field

from danlu.core.config import StrictConfig
from danlu.core.key_types import only_with


class EvaluationConfig(StrictConfig):
    """What a model is tested on."""

    task: str | None = Field(None, description="Benchmark and split, such as mmlu_test.")
    batch_size: int = Field(4, ge=1, description="Questions per forward pass.")
    kl_reference: str | None = Field(
        None, description="Model folder that task reward measures the KL of the answers against.",
        json_schema_extra=only_with(task="reward"))
    save_dir: str | None = Field(None, description="Folder for the scores.")
