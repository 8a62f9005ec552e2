"""What an evaluation task is: a loaded model and data in, numbers out. One file per task, registered by name."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from danlu.core.errors import ConfigError
from danlu.core.records import Record
from danlu.core.registry import Registry
from danlu.core.run_dir import write_json
from danlu.data.config import DataConfig
from danlu.data.loader import Records, load_records
from danlu.evaluation.config import EvaluationConfig
from danlu.generation.config import GenerationConfig
from danlu.generation.load import Loaded


@dataclass(frozen=True, slots=True)
class EvalJob:
    """What a task works with. `folder` receives its files, None writes none."""

    loaded: Loaded
    data: DataConfig
    evaluation: EvaluationConfig
    generation: GenerationConfig
    stage: str
    seed: int
    batch_size: int
    folder: Path | None

    def records(self, record_type: type[Record]) -> Records:
        """Return the records of eval_dataset, or of dataset when none is named."""
        which = "eval" if self.data.eval_dataset or self.data.eval_file else "train"
        return load_records(self.data, record_type, which=which, seed=self.seed)


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
