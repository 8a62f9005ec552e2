"""What an evaluation task is: a model and data in, numbers out. One file per task, registered by name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from danlu.core.errors import ConfigError
from danlu.core.records import Record
from danlu.core.registry import Registry
from danlu.core.run_dir import write_json
from danlu.data.config import DataConfig
from danlu.data.loader import Records, load_records
from danlu.evaluation.config import EvaluationConfig
from danlu.generation.config import GenerationConfig
from danlu.generation.load import Loaded, load_for_inference
from danlu.models.config import AdapterConfig, ModelConfig, QuantizationConfig


@dataclass(frozen=True)
class EvalJob:
    """What a task works with. `folder` receives its files, None writes none."""

    model: ModelConfig
    quantization: QuantizationConfig
    adapter: AdapterConfig
    data: DataConfig
    evaluation: EvaluationConfig
    generation: GenerationConfig
    stage: str
    stage_values: Mapping[str, Any]
    seed: int
    batch_size: int
    folder: Path | None

    @cached_property
    def loaded(self) -> Loaded:
        """The model, ready to answer; loaded when a task first asks for it."""
        return load_for_inference(
            self.model, self.quantization, self.adapter, self.generation, template=self.data.template,
            tool_format=self.data.tool_format, batch_size=self.batch_size)

    def records(self, record_type: type[Record]) -> Records:
        """Return the records of eval_dataset, or of dataset when none is named."""
        return load_records(self.data, record_type, which=self._which, seed=self.seed)

    def each_set(self, record_type: type[Record]) -> dict[str, Records]:
        """Return the records of every data set by its name; of a single one, or a file, under the empty name."""
        key = "eval_dataset" if self._which == "eval" else "dataset"
        names = getattr(self.data, key)
        if len(names) < 2:
            return {"": self.records(record_type)}
        return {Path(name).stem: load_records(self.data.model_copy(update={key: (name,)}), record_type,
                                              which=self._which, seed=self.seed) for name in names}

    @property
    def _which(self) -> str:
        return "eval" if self.data.eval_dataset or self.data.eval_file else "train"


Task = Callable[[EvalJob], dict[str, float]]
TASKS: Registry[Task] = Registry("evaluation task", "danlu.evaluation")


def run_task(name: str | None, job: EvalJob) -> dict[str, float]:
    """Run one task and write eval_results.json beside its other files.

    Raises ConfigError, naming the known tasks, when none is chosen.
    """
    if not name:
        raise ConfigError("no task is named", where="task", fix=f"set task to one of {', '.join(TASKS)}")
    results = TASKS[name](job)
    if job.folder is not None:
        write_json(job.folder / "eval_results.json", results)
    return results
