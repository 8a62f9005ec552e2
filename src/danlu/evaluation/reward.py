"""Task `reward`: answers sampled from a model, the rewards that sources give them, and how far it is from another."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from danlu.core.errors import ConfigError
from danlu.core.records import Prompt
from danlu.core.stream import Example
from danlu.data.encode import EncodeContext
from danlu.data.encode_prompts import encode_prompts
from danlu.data.row_format import RESPONSE
from danlu.evaluation.answer_quality import describe_answers
from danlu.evaluation.base import TASKS, EvalJob
from danlu.evaluation.exact import PREDICTIONS
from danlu.generation.load import load_for_inference
from danlu.models.packed_lm import PackedLM
from danlu.rewards.base import RewardContext
from danlu.rewards.config import RewardKeys
from danlu.rewards.mixture import RewardTable, build_rewards
from danlu.stages.base import Surroundings, by_number
from danlu.stages.rollouts import Rollout, Row, rollout_of, token_scores


@TASKS.register("reward")
def run_reward(job: EvalJob) -> dict[str, float]:
    """Return the mean reward, that of each source, and the KL to kl_reference where one is named; a column `lang`
    gives reward_<lang> as well.

    Every prompt gets one answer, drawn as the generation keys say from a random stream of its own.
    """
    keys = _keys(job)
    loaded = job.loaded
    device = next(iter(loaded.model.parameters())).device
    records = [one for one in job.records(Prompt) if isinstance(one, Prompt)]
    encoded = encode_prompts(records, EncodeContext(loaded.tokenizer, loaded.template, job.data))
    prompts = [one.to_example(index) for index, one in enumerate(encoded)]
    if not prompts:
        raise ConfigError("no prompt is left to answer", where="dataset", fix="raise cutoff_len, or name other data")
    rewards = build_rewards(keys, RewardContext(
        loaded.tokenizer, loaded.template, loaded.model, job.model, job.quantization, job.adapter,
        micro_batch=job.batch_size, device=lambda: device))
    for network in rewards.networks:
        network.to(device)
    found = loaded.generator.sample(
        [one.input_ids.tolist() for one in prompts], job.generation, keys=[(job.seed, n) for n in range(len(prompts))])
    rollouts = [rollout_of(prompt, answers[0], 0) for prompt, answers in zip(prompts, found, strict=True)]
    table = rewards.score([one.answer for one in rollouts])
    results = _means(rollouts, table)
    if job.evaluation.kl_reference:
        results["kl"] = _kl(job, rollouts, device)
    if job.folder is not None:
        _write(job.folder / PREDICTIONS, prompts, rollouts, table, loaded.tokenizer)
    return results | describe_answers([answers[0] for answers in found])


def _keys(job: EvalJob) -> RewardKeys:
    """Return the keys of the rewards. Raises ConfigError for values that contradict each other, or none at all."""
    try:
        return RewardKeys.model_validate({
            name: value for name, value in job.stage_values.items() if name in RewardKeys.model_fields})
    except ValidationError as error:
        texts = [problem["msg"].removeprefix("Value error, ") for problem in error.errors()]
        raise ConfigError("; ".join(texts), where="reward_model",
                          fix="name what scores the answers, and with reward_model_type what kind of source it is",
                          ) from None


def _means(rollouts: Sequence[Rollout], table: RewardTable) -> dict[str, float]:
    number = len(rollouts)
    results = {"reward": sum(table.total) / number, "answers": float(number)}
    if len(table.parts) > 1:
        results |= {f"reward_{name}": sum(part) / number for name, part in table.parts.items()}
    groups: dict[str, list[float]] = {}
    for one, value in zip(rollouts, table.total, strict=True):
        groups.setdefault(str(one.answer.extra.get("lang", "")), []).append(value)
    return results | {f"reward_{name}": sum(part) / len(part) for name, part in sorted(groups.items()) if name}


def _kl(job: EvalJob, rollouts: Sequence[Rollout], device: torch.device) -> float:
    """Return the mean over answers of sum_t log pi(a_t) - log ref(a_t), in nats; both at temperature 1."""
    source = job.model.model_copy(update={
        "model_name_or_path": job.evaluation.kl_reference, "adapter_name_or_path": ()})
    other = load_for_inference(source, job.quantization, job.adapter, job.generation, template=job.data.template,
                               tool_format=job.data.tool_format, batch_size=job.batch_size)
    around = Surroundings(device, by_number(job.batch_size))
    own, ref = (_logps(PackedLM(model).eval(), rollouts, around) for model in (job.loaded.model, other.model))
    return sum(float((a - b).sum()) for a, b in zip(own, ref, strict=True)) / len(rollouts)


def _logps(network: PackedLM, rollouts: Sequence[Rollout], around: Surroundings) -> list[Row]:
    return token_scores(lambda micro: (network(micro, output="logps"),), rollouts, around)[0]


def _write(path: Path, prompts: Sequence[Example], rollouts: Sequence[Rollout], table: RewardTable,
           tokenizer: Any) -> None:
    with path.open("w", encoding="utf-8") as out:
        for place, (prompt, one) in enumerate(zip(prompts, rollouts, strict=True)):
            row = {"prompt": tokenizer.decode(prompt.input_ids), "predict": one.answer.text,
                   "label": str(one.answer.extra.get(RESPONSE, "")), "reward": table.total[place],
                   "rewards": {name: part[place] for name, part in table.parts.items()}}
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
