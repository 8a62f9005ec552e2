"""`do_predict` and `predict_with_generate`: answer the evaluation set after a run, compare texts, keep the answers."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from accelerate.utils import extract_model_from_parallel

from danlu.core.console import is_main_process, say
from danlu.core.records import Conversation, Feedback, Preference, Record
from danlu.core.run_dir import RunDir
from danlu.data.config import DataConfig
from danlu.data.dataset import TokenDataset
from danlu.data.encode import EncodeContext
from danlu.data.loader import Records, load_records, split_validation
from danlu.engine.config import EngineConfig
from danlu.evaluation.answer_quality import describe_answers
from danlu.evaluation.exact import PREDICTIONS, accuracy
from danlu.evaluation.judged import judge, measure, write_judged
from danlu.evaluation.questions import CHUNK, answer, questions_of
from danlu.evaluation.text_metrics import TextMetrics
from danlu.generation.config import GenerationConfig
from danlu.generation.transformers_backend import TransformersGenerator
from danlu.models.actor_critic import ActorCritic
from danlu.models.proof import evaluating
from danlu.models.reward_lm import RewardLM
from danlu.templates import resolve


class PredictKeys(Protocol):
    """The parts of a run's configuration that prediction reads."""

    @property
    def data(self) -> DataConfig:
        """Return the data keys."""

    @property
    def engine(self) -> EngineConfig:
        """Return the engine keys."""

    @property
    def generation(self) -> GenerationConfig:
        """Return the generation keys."""

    @property
    def do_predict(self) -> bool:
        """Return whether the results are called predict_ or eval_."""


def predict(
    config: PredictKeys, policy: Any, context: EncodeContext, run: RunDir, sets: Mapping[str, TokenDataset],
    record: type[Record],
) -> dict[str, float]:
    """Return predict_bleu-4, predict_rouge-1, -2, -l and how the answers read; write them and every answer.

    `policy` is what was trained; of a reward model the rewards of the evaluation `sets` are written instead, with
    predict_accuracy, -margin and -ece. `record` is what the run reads: of preferences the best answer is the reference,
    of verdicts the desirable ones are. The first process answers for all.
    Raises CapabilityError when the extra `eval` is not installed, before anything is generated.
    """
    if not is_main_process():
        return {}
    packed, kind = extract_model_from_parallel(policy), "predict" if config.do_predict else "eval"
    if isinstance(packed, RewardLM):
        numbers = predict_rewards(packed, sets, run.path, config.engine.per_device_eval_batch_size)
    else:
        numbers = _predict_answers(config, packed, context, run, record)
    results = {f"{kind}_{name}": value for name, value in numbers.items()}
    run.write_results(kind, results)
    return results


def predict_rewards(scorer: RewardLM, sets: Mapping[str, TokenDataset], folder: Path, size: int) -> dict[str, float]:
    """Write the rewards of every row of all sets; return how they agree with its order."""
    began, device = time.monotonic(), scorer.value_head.weight.device
    with evaluating(scorer):
        judged = [one for dataset in sets.values() for one in judge(scorer, dataset, size=size, device=device)]
    write_judged(folder, PREDICTIONS, judged)
    return measure(judged) | _speed(time.monotonic() - began, len(judged))


def _speed(seconds: float, count: int) -> dict[str, float]:
    return {"runtime": round(seconds, 4), "samples_per_second": round(count / seconds, 3)}


def _predict_answers(
    config: PredictKeys, packed: Any, context: EncodeContext, run: RunDir, record: type[Record],
) -> dict[str, float]:
    metrics, tokenizer, batch = TextMetrics(), context.tokenizer, config.engine.per_device_eval_batch_size
    template = context.template or resolve(
        config.data.template, tokenizer, tool_format=config.data.tool_format)
    began = time.monotonic()
    policy = packed.lm if isinstance(packed, ActorCritic) else packed
    with policy.generation_mode() as model:
        generator = TransformersGenerator(model, tokenizer, template.stop_token_ids(tokenizer), batch_size=batch)
        questions = questions_of(
            evaluation_dialogues(config, record), template, tokenizer, default_system=config.data.default_system,  # type: ignore[arg-type]
            enable_thinking=config.data.enable_thinking, context=generator.context)
        say(f"answering {len(questions)} questions")
        answered = list(answer(
            generator, questions, config.generation, tokenizer, seed=config.engine.seed, chunk=CHUNK * batch,
            file=run.path / PREDICTIONS))
    seconds = time.monotonic() - began
    numbers = metrics.mean([(one.completion.text, one.question.label) for one in answered])
    numbers |= {"exact": round(100 * accuracy(answered), 4)}
    numbers |= describe_answers([one.completion for one in answered])
    return numbers | _speed(seconds, len(answered))


def evaluation_dialogues(config: PredictKeys, record: type[Record]) -> Sequence[Conversation]:
    """Return the dialogues of the evaluation set, or of what val_size sets aside, each ending on its reference."""
    if record not in (Preference, Feedback):
        return _evaluation_records(config, Conversation)  # type: ignore[return-value]
    return [talk for one in _evaluation_records(config, record) for talk in _with_reference(one)]


def _with_reference(one: Record) -> list[Conversation]:
    if isinstance(one, Preference):
        return [Conversation((*one.prompt, one.answers[0]), one.origin, one.tools)]
    assert isinstance(one, Feedback)
    return [Conversation(one.messages, one.origin)] if one.desirable else []


def _evaluation_records(config: PredictKeys, kind: type[Record]) -> Records:
    data, seed = config.data, config.engine.seed
    if data.val_size:
        return split_validation(load_records(data, kind, seed=seed), data.val_size, seed)[1]
    return load_records(data, kind, which="eval", seed=seed)
