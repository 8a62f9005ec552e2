"""Task `exact`: the share of questions answered word for word as the reference says, greedily."""

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from danlu.core.records import Conversation
from danlu.evaluation.answer_quality import describe_answers
from danlu.evaluation.base import TASKS, EvalJob
from danlu.evaluation.questions import CHUNK, Answered, answer, questions_of
from danlu.generation.base import Generator
from danlu.generation.config import GenerationConfig
from danlu.templates.base import ChatTemplate

MARGIN = 16  # tokens beyond the longest reference; an answer that goes on from there is wrong already
PREDICTIONS = "generated_predictions.jsonl"


@TASKS.register("exact")
def run_exact(job: EvalJob) -> dict[str, float]:
    """Answer the last question of every dialogue and compare with its answer."""
    loaded = job.loaded
    return evaluate_exact(
        loaded.generator, loaded.template, loaded.tokenizer, job.records(Conversation), job.generation,  # type: ignore[arg-type]
        file=None if job.folder is None else job.folder / PREDICTIONS, default_system=job.data.default_system,
        enable_thinking=job.data.enable_thinking, chunk=CHUNK * job.batch_size)


def evaluate_exact(
    generator: Generator, template: ChatTemplate, tokenizer: PreTrainedTokenizerBase, records: Sequence[Conversation],
    settings: GenerationConfig, *, file: Path | None = None, default_system: str | None = None,
    enable_thinking: bool | None = None, chunk: int = 64,
) -> dict[str, float]:
    """Return accuracy (0 to 1, over all and per group), the number of questions, and how the answers read.

    Decoding is greedy, and stops a few tokens beyond the longest reference: what is longer cannot be equal.
    Records in several groups (a column `lang`, or several data sets) also give accuracy_<group>.
    """
    questions = questions_of(records, template, tokenizer, default_system=default_system,
                             enable_thinking=enable_thinking, context=generator.context)
    longest = max(len(tokenizer(q.label, add_special_tokens=False)["input_ids"]) for q in questions) + MARGIN
    limit = min(longest, settings.max_new_tokens) if settings.max_new_tokens else longest
    greedy = settings.model_copy(update={"do_sample": False, "num_beams": 1, "max_new_tokens": limit})
    answered = list(answer(generator, questions, greedy, tokenizer, chunk=chunk, file=file))
    results = {"accuracy": accuracy(answered), "questions": float(len(answered))}
    groups = sorted({one.question.group for one in answered} - {""})
    for group in groups:
        results[f"accuracy_{group}"] = accuracy([one for one in answered if one.question.group == group])
    return results | describe_answers([one.completion for one in answered])


def accuracy(answered: Sequence[Answered]) -> float:
    """Return the share of answers equal to their reference, white space around both ignored."""
    right = sum(one.completion.text.strip() == one.question.label.strip() for one in answered)
    return right / len(answered)
