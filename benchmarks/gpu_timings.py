"""How fast danlu trains and samples on this device: tokens and samples a second, share of the measured peak, memory.

Useful tokens are those of the data, a shared prompt once for each answer; the share of the peak counts the operations
of benchmarks/flops.py, in which a shared prompt counts once and nothing recomputed counts.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import GenerationConfig as ModelGenerationConfig
from transformers import PreTrainedModel

from benchmarks.gpu_models import (
    Method,
    Place,
    Recordings,
    Rows,
    dialogues,
    empty_tokenizer,
    formula,
    log_normal_lengths,
    make_stage,
    make_stepper,
    pairs,
    prompts,
    random_model,
    trainable,
)
from danlu.core.stream import Example
from danlu.engine.step import Stepper
from danlu.generation.config import GenerationConfig
from danlu.generation.decode_graphs import Recorder, no_recorder
from danlu.generation.rollouts import RolloutGenerator
from danlu.models.packed_lm import PackedLM
from danlu.models.reward_lm import RewardLM
from danlu.rewards.base import Answer, RewardContext, RewardSource
from danlu.rewards.config import RewardKeys
from danlu.rewards.mixture import Rewards, Weighted
from danlu.rewards.token_scores import score_ids
from danlu.stages.base import Surroundings
from danlu.stages.rollouts import Rollout, Rollouts

Line = dict[str, Any]
SECONDS = 6.0
"""How long one workload is timed, after two steps that are not; at least two steps."""
SAMPLING = GenerationConfig(temperature=1.0, top_k=0, top_p=1.0)
LADDER = ((16_384, False), (12_288, False), (8192, False), (16_384, True), (4096, True))
"""Tokens of a forward pass, and whether activations are computed again: the first that fits the memory is taken."""


def uniform(place: Place, name: str) -> Rows:
    """32k tokens in rows of 4096, every token supervised: no padding to gain from."""
    length = place.small(4096, 48)
    return dialogues(place.shape(name), [length] * place.small(8, 2), 1.0)


def log_normal(place: Place, name: str) -> Rows:
    """About 32k tokens in dialogues of log-normal lengths, 61 % supervised."""
    lengths = log_normal_lengths(place.small(64, 6), place.small(400, 16), place.small(4096, 48))
    return dialogues(place.shape(name), lengths, 0.61)


def thousand(place: Place, name: str) -> Rows:
    """Samples of 1024 tokens each, as the documents' Baichuan2 run cost."""
    return dialogues(place.shape(name), [place.small(1024, 32)] * place.small(32, 3), 0.61)


def preferences(place: Place, name: str) -> Rows:
    """Pairs of answers as long as their prompt."""
    return pairs(place.shape(name), place.small(24, 2), place.small(512, 24), place.small(512, 24))


def judged(place: Place, name: str) -> Rows:
    """The same pairs with the facts that stage rm reads: margin 0, one good answer."""
    rows = preferences(place, name)
    return replace(rows, examples=[replace(one, facts=(0.0, 1.0)) for one in rows.examples])


@dataclass(frozen=True, slots=True)
class Training:
    """One model that trains, on one or more workloads in turn."""

    model: str
    method: Method
    loads: dict[str, Callable[[Place, str], Rows]]
    stage: str = "sft"
    head: bool = True
    ladder: Sequence[tuple[int, bool]] = LADDER
    keys: dict[str, Any] = field(default_factory=dict)


TRAININGS = {
    "lora-7B": Training("7B", Method("lora"), {"uniform": uniform, "log-normal": log_normal}),
    "qlora-7B": Training("7B", Method("qlora"), {"uniform": uniform, "log-normal": log_normal}),
    "baichuan2": Training("Baichuan2-7B", Method("qlora", 64), {"1024 each": thousand}),
    "full-1.5B": Training("1.5B", Method("full"), {"uniform": uniform, "log-normal": log_normal}),
    "dpo-7B": Training("7B", Method("lora"), {"pairs": preferences}, "dpo"),
    "full-0.5B": Training("0.5B", Method("full"), {"uniform": uniform}, ladder=((32_768, False), *LADDER)),
    "lora-1.5B": Training("1.5B", Method("lora"), {"uniform": uniform}, ladder=((32_768, False), *LADDER)),
    "rm-1.5B": Training("1.5B", Method("lora"), {"pairs": judged}, "rm", head=False),
    "lora-0.5B": Training("0.5B", Method("lora"), {"uniform": uniform}, ladder=((32_768, False), *LADDER)),
    "lora-8B": Training("8B", Method("lora"), {"uniform": uniform}),
}


def training(place: Place, task: Training) -> Iterator[Line]:
    """Yield a line for each workload; where memory does not suffice, begin again with smaller passes."""
    done: set[str] = set()
    refused: list[str] = []
    for tokens, checkpointing in task.ladder:
        method = replace(task.method, checkpointing=checkpointing)
        setting = f"{tokens} tokens a pass" + (", activations computed again" if checkpointing else "")
        try:
            for line in _timed_loads(place, task, method, tokens, done):
                done.add(line["load"])
                yield line | {"setting": setting, "refused": list(refused)}
        except torch.OutOfMemoryError as error:
            refused.append(f"{setting}: out of memory")
            error.__traceback__ = None  # its frames hold the tensors that have to go
        place.clear()
        if len(done) == len(task.loads):
            return
    raise RuntimeError("out of memory in every setting: " + "; ".join(refused))


def _timed_loads(place: Place, task: Training, method: Method, tokens: int, done: set[str]) -> Iterator[Line]:
    began = time.perf_counter()
    stage = make_stage(task.stage, task.keys, trainable(place, task.model, method))
    stepper = make_stepper(place, stage, tokens, micro_batch=8)
    built = time.perf_counter() - began
    for name, load in task.loads.items():
        if name in done:
            continue
        rows = load(place, task.model)
        seconds, loss = _seconds_a_step(place, stepper, rows.examples)
        useful = formula(place.shape(task.model), rows.work, method, head=task.head) / seconds
        yield {
            "run": f"{task.stage} {method.name} r{method.rank}" if method.name != "full" else f"{task.stage} full",
            "model": task.model, "load": name, "tokens_per_second": rows.num_tokens / seconds,
            "samples_per_second": len(rows.examples) / seconds, "flops_per_second": useful,
            "share_of_peak": useful / place.peak if place.peak else None, "seconds": seconds, "loss": loss,
            "peak_memory": place.peak_memory(), "built_in": built, "layout": _layout(stage.models.policy)}


def _seconds_a_step(place: Place, stepper: Stepper, examples: Sequence[Example]) -> tuple[float, float]:
    """Return the mean time of a step, and the last loss."""
    for number in range(2):
        stepper.run(examples, counts=True, step=number + 1)
    place.wait()
    began, steps, most = time.perf_counter(), 0, 0.1 if place.toy else SECONDS
    while steps < 2 or time.perf_counter() - began < most:
        loss = stepper.run(examples, counts=True, step=steps + 3).loss
        steps += 1
    place.wait()
    return (time.perf_counter() - began) / steps, loss


def _layout(policy: torch.nn.Module) -> str:
    """Return how the network inside the policy is run, with what stood against the fast way."""
    lm = next(one for one in policy.modules() if isinstance(one, PackedLM))
    report = lm.report()
    against = "; ".join(filter(None, [report.notice, report.apart]))
    return f"{report.layout}, head {report.head}" + (f" ({against})" if against else "")


class MeanToken(RewardSource):
    """The mean token id of an answer: a reward that costs nothing."""

    name = "mean token"

    @classmethod
    def build(cls, source: str, keys: RewardKeys, context: RewardContext) -> "MeanToken":
        """Return the source; there is nothing to read."""
        return cls()

    def score(self, answers: Sequence[Answer]) -> list[float]:
        return [sum(one.ids) / len(one.ids) / 1000 for one in answers]


class RandomNetwork(MeanToken):
    """A reward model of the policy's shape with random weights."""

    name = "random network"

    def __init__(self, place: Place, model: str) -> None:
        self._device = place.device
        self.network = RewardLM(PackedLM(random_model(place, model, place.dtype))).to(place.device)
        self.network.requires_grad_(False).eval()

    def score(self, answers: Sequence[Answer]) -> list[float]:
        return score_ids(self.network, answers, size=32, device=self._device)


class TimedRollouts(Rollouts):
    """Rollouts that note how long sampling takes."""

    seconds = 0.0

    def sample(self, prompts: Sequence[Example], samples: int, around: Surroundings) -> list[Rollout]:
        began = time.perf_counter()
        found = super().sample(prompts, samples, around)
        self.seconds += time.perf_counter() - began
        return found


@dataclass(frozen=True, slots=True)
class Online:
    """One step of a stage that samples: `prompts` x `samples` answers of 256 tokens to prompts of 256.

    tokens   of one forward pass; the two networks of ppo keep activations side by side
    network  whether a reward model of the policy's shape scores the answers
    """

    stage: str
    prompts: int
    samples: int
    keys: dict[str, Any]
    tokens: int
    network: bool = False
    model: str = "1.5B"


ONLINES = {
    "grpo-1.5B": Online("grpo", 64, 8, {"num_generations": 8}, tokens=16_384),
    "ppo-1.5B": Online("ppo", 512, 1, {"ppo_epochs": 4}, tokens=8192, network=True),
}


def online(place: Place, task: Online) -> Iterator[Line]:
    """Yield the line of one whole step: sampling, reward, reference, values, updates."""
    number = max(2, place.small(task.prompts, 3))
    length, answer = place.small(256, 12), place.small(256, 8)
    answers = number * task.samples
    model = trainable(place, task.model, Method("lora"))
    generator = RolloutGenerator(model, empty_tokenizer(), batch_size=min(answers, 512))
    source: RewardSource = RandomNetwork(place, task.model) if task.network else MeanToken()
    rewards = Rewards([Weighted("reward", source, 1.0)])
    made = {size: TimedRollouts(generator, SAMPLING.model_copy(update={"max_new_tokens": size}), rewards)
            for size in (4, answer)}
    keys = {"reward_model": ("random",), "reward_model_type": ("function",), "rollout_log_samples": 0, **task.keys}
    stage = make_stage(task.stage, keys, model, made[4])
    stepper = make_stepper(place, stage, task.tokens, micro_batch=max(1, 32 // task.samples))
    stepper.run(prompts(place.shape(task.model), 8, 16), counts=True, step=1)
    stage.models.rollouts = made[answer]
    asked = prompts(place.shape(task.model), number, length)
    place.wait()
    began = time.perf_counter()
    result = stepper.run(asked, counts=True, step=2)
    place.wait()
    seconds = time.perf_counter() - began
    yield {
        "run": f"{task.stage} lora r16", "model": task.model, "load": f"{answers} answers of {answer} to {length}",
        "tokens_per_second": answers * answer / seconds, "samples_per_second": answers / seconds, "seconds": seconds,
        "sampling_seconds": made[answer].seconds, "updates": result.updates, "loss": result.loss,
        "peak_memory": place.peak_memory(), "setting": f"{min(answers, 512)} slots", "refused": [],
        "layout": _layout(stage.models.policy)}


def generation(place: Place, bandwidth: float) -> Iterator[Line]:
    """Yield tokens a second of danlu's slots and of transformers' generate, 128 tokens after prompts of 128.

    Slots come with CUDA graphs, whose recording counts, and without; on a CPU recorded steps are called again.
    """
    name, length, answer = "1.5B", place.small(128, 10), place.small(128, 6)
    shape = place.shape(name)
    model = random_model(place, name, place.dtype).eval()
    weights = 2 * (shape.body + shape.head)
    fixed = "graphs" if place.device.type == "cuda" else "steps of fixed shape"
    for batch in (place.small(32, 2), place.small(128, 4)):
        asked = [one.input_ids.tolist() for one in prompts(shape, batch, length)]
        recordings = Recordings()
        ways = {f"danlu slots, {fixed}": _by_slots(model, asked, recordings),
                "danlu slots, eager": _by_slots(model, asked, no_recorder),
                "transformers generate": _by_generate(model, torch.tensor(asked, device=place.device))}
        for way, call in ways.items():
            call(4)
            place.wait()
            recordings.replayed, began = 0, time.perf_counter()
            call(answer)
            place.wait()
            seconds = time.perf_counter() - began
            yield {
                "run": f"generation, {way}", "model": name, "load": f"batch {batch}, {length} + {answer}",
                "tokens_per_second": batch * answer / seconds, "samples_per_second": batch / seconds,
                "seconds": seconds, "of_reading_weights": answer * weights / bandwidth / seconds,
                "peak_memory": place.peak_memory(), "refused": [], "layout": "",
                "setting": f"{recordings.replayed} of {answer - 1} steps replayed" if "slots" in way else ""}


def _by_slots(
    model: PreTrainedModel, asked: list[list[int]], make_recorder: Callable[[PreTrainedModel], Recorder | None]
) -> Callable[[int], object]:
    slots = RolloutGenerator(model, empty_tokenizer(), batch_size=len(asked), make_recorder=make_recorder)
    keys = [(0, at) for at in range(len(asked))]
    return lambda tokens: slots.sample(asked, SAMPLING.model_copy(update={"max_new_tokens": tokens}), keys=keys)


def _by_generate(model: Any, ids: torch.Tensor) -> Callable[[int], object]:
    mask = torch.ones_like(ids)
    return lambda tokens: model.generate(ids, attention_mask=mask, generation_config=ModelGenerationConfig(
        max_new_tokens=tokens, do_sample=True, top_k=0, pad_token_id=0))
