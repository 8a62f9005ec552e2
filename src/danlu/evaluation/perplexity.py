"""Task `perplexity`: exp of the mean loss per supervised token, exactly as the stage trains it."""

from accelerate import Accelerator

from danlu.core.errors import ConfigError
from danlu.data.dataset import build_dataset
from danlu.data.encode import EncodeContext
from danlu.engine.evaluate import evaluate
from danlu.evaluation.base import TASKS, EvalJob
from danlu.models.packed_lm import PackedLM
from danlu.stages.base import STAGES, Models


@TASKS.register("perplexity")
def run_perplexity(job: EvalJob) -> dict[str, float]:
    """Return eval_loss and eval_perplexity of the data set under the stage's encoding and mask."""
    stage_class, loaded = STAGES[job.stage], job.loaded
    if not stage_class.loss_is_nll:
        raise ConfigError(f"the loss of stage {job.stage} is no likelihood: it has no perplexity", where="stage",
                          fix="set stage: sft or pt; `danlu train` with do_eval: true evaluates every stage")
    context = EncodeContext(loaded.tokenizer, loaded.template, job.data)
    dataset = build_dataset(job.records(stage_class.record), stage_class, context)
    stage = stage_class(stage_class.Config(), Models(policy=PackedLM(loaded.model).eval()))
    return evaluate(stage, {"": dataset}, Accelerator(), job.batch_size)
