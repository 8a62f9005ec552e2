"""A reward model's scores of answers, for those who choose between them."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from danlu.core.records import Preference
from danlu.data.config import DataConfig
from danlu.data.encode_answers import encode_preferences, keep_answers_together
from danlu.evaluation.base import EvalJob
from danlu.evaluation.config import EvaluationConfig
from danlu.evaluation.pairs import load_scorer, scoring_context
from danlu.generation.config import GenerationConfig
from danlu.models.config import AdapterConfig, ModelConfig, QuantizationConfig
from danlu.models.stream_tensors import StreamTensors

AnswerScorer = Callable[[Sequence[Preference]], list[list[float] | None]]


def answer_scorer(folder: str, *, template: str | None, cutoff_len: int) -> AnswerScorer:
    """Load a reward model, or the adapter of one; return what gives a score for each answer of each record.

    The scores are None for a record that cannot be read within `cutoff_len`. Raises UserError for no reward model.
    """
    is_adapter = (Path(folder) / "adapter_config.json").is_file()
    place = {"adapter_name_or_path": (folder,)} if is_adapter else {"model_name_or_path": folder}
    data = DataConfig.model_validate({"template": template, "cutoff_len": cutoff_len})
    job = EvalJob(
        ModelConfig.model_validate(place), QuantizationConfig.model_validate({}), AdapterConfig.model_validate({}),
        data, EvaluationConfig.model_validate({}), GenerationConfig.model_validate({}), "rm", {}, 0, 1, None)
    context, device = scoring_context(job), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = load_scorer(job, context, device)

    def scores(records: Sequence[Preference]) -> list[list[float] | None]:
        encoded = [encode_preferences([one], context) for one in records]
        examples = keep_answers_together([one for group in encoded for one in group], data)
        if not len(examples):
            return [None for _ in encoded]
        micro = StreamTensors.of(list(examples)).to(device)
        with torch.no_grad():
            rewards = iter(network(micro).tolist())
        return [[next(rewards) for _ in group[0].turns] if group else None for group in encoded]

    return scores
