"""A ppo or grpo stage on a tiny model, ready to sample, and plain float64 copies of its networks as oracles."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn

from danlu.core.records import Message
from danlu.core.stream import Example
from danlu.data.encode_prompts import note_of
from danlu.generation.config import GenerationConfig
from danlu.generation.rollouts import RolloutGenerator
from danlu.models.actor_critic import ADAPTER, ActorCritic
from danlu.models.config import AdapterConfig, ModelConfig, QuantizationConfig
from danlu.models.load import load_model
from danlu.models.packed_lm import PackedLM
from danlu.rewards.base import RewardContext
from danlu.rewards.config import RewardKeys
from danlu.rewards.mixture import build_rewards
from danlu.stages.base import Models, Stage, Surroundings, by_number
from danlu.stages.rollouts import Rollout, Rollouts
from tests.tiny import CHATML, tiny_tokenizer

LORA, FULL = AdapterConfig(lora_rank=4), AdapterConfig(finetuning_type="full")
TOKENIZER = tiny_tokenizer(chat_template=CHATML)
STOPS = tuple(range(5, 45))  # an eighth of the vocabulary, so that some answers end and some are cut
QUESTIONS = ("the cat sat on", "天空 是 什么 颜色", "a", "what colour is the sky and the sun", "rain")
MOST = 7
SCORE = '''
def score(completion_ids):
    return [((sum(ids) * 37) % 11) / 3 - 1 + 0.01 * len(ids) for ids in completion_ids]
'''


@dataclass
class World:
    """A stage ready to sample, and plain float64 copies of its networks as they were before anything ran."""

    stage: Any
    policy: Any
    reference: Any
    value: Any
    head: Any

    def rollouts(self, number: int = len(QUESTIONS), samples: int = 1) -> list[Rollout]:
        stage = self.stage
        rollouts: list[Rollout] = stage.models.rollouts.sample(prompts()[:number], samples, stage.surroundings)
        return rollouts


def prompts() -> list[Example]:
    """Return encoded prompts of different lengths."""
    made = []
    for index, question in enumerate(QUESTIONS):
        ids = np.array(TOKENIZER(f"<|im_start|>user\n{question}")["input_ids"], np.int64)
        note = note_of((Message("user", question),), {}, f"ask.jsonl:{index + 1}")
        made.append(Example(ids, np.zeros(len(ids), np.bool_), index=10 + index, note=note))
    return made


def load(base: Path, adapter: AdapterConfig, seed: int = 0, **keys: Any) -> Any:
    """Return a model to train that has opinions, its trainable weights moved away from where they start."""
    torch.manual_seed(seed)
    model = load_model(ModelConfig(model_name_or_path=str(base)), QuantizationConfig(**keys), adapter,
                       tokenizer=TOKENIZER, trainable=True, compute_dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def jolt(critic: ActorCritic) -> ActorCritic:
    """Move the value network away from the policy, and its head away from 0."""
    torch.manual_seed(5)
    for value in (*critic.value_state().values(), *critic.value_head.parameters()):
        value.data += 0.1 * torch.randn_like(value)
    return critic


def make(kind: type[Stage], base: Path, folder: Path, adapter: AdapterConfig = LORA, **keys: Any) -> World:
    """Return the stage with a reward function of the answers' tokens."""
    (folder / "mine.py").write_text(SCORE, encoding="utf-8")
    keys = {"reward_model": f"{folder}/mine.py:score", "reward_model_type": "function", **keys}
    config = kind.Config(**keys)
    model = load(base, adapter)
    policy = kind.make_policy(PackedLM(model))
    context = RewardContext(TOKENIZER, None, model, ModelConfig(model_name_or_path=str(base)), QuantizationConfig(),
                            adapter)
    rewards = build_rewards(RewardKeys.model_validate({
        name: value for name, value in keys.items() if name in RewardKeys.model_fields}), context)
    settings = GenerationConfig(max_new_tokens=MOST, temperature=1.0, top_p=1.0, top_k=0)
    rollouts = Rollouts(RolloutGenerator(model, TOKENIZER, STOPS, batch_size=4), settings, rewards)
    reference, head, value = None, None, None
    if isinstance(policy, ActorCritic):
        jolt(policy)
        head = copy.deepcopy(policy.value_head).double()
        value = copy.deepcopy(policy.lm.model if policy.critic is None else policy.critic.model).double()
        if policy.critic is None:
            value.set_adapter(ADAPTER)
    if adapter is FULL:
        reference = PackedLM(load(base, adapter, seed=8)).requires_grad_(False)
    plain_reference = copy.deepcopy(model if reference is None else reference.model).double()
    stage = kind(config, Models(policy, reference=reference, rollouts=rollouts))
    stage.surroundings = Surroundings(deal=by_number(2), step=1, seed=3)
    return World(stage, copy.deepcopy(model).double(), plain_reference, value, head)


def logits_and_states(model: Any, one: Rollout) -> tuple[Tensor, Tensor]:
    """Return what predicts each token of the answer: logits (T, V) and last hidden states (T, H), both at t - 1."""
    start = len(one.answer.prompt_ids)
    ids = torch.tensor([*one.answer.prompt_ids, *one.answer.ids])[None]
    out = model.eval()(input_ids=ids, output_hidden_states=True)
    return out.logits[0, start - 1:-1], out.hidden_states[-1][0, start - 1:-1]


def logps_of(model: Any, one: Rollout) -> Tensor:
    """Return log p of each token of the answer, (T,), with its graph."""
    logits = logits_and_states(model, one)[0]
    return logits.log_softmax(-1)[torch.arange(one.length), torch.tensor(one.answer.ids)]


def reference_logps(world: World, rollouts: Sequence[Rollout]) -> list[list[float]]:
    """Return the reference's numbers: a model of its own, or the base alone."""
    with torch.no_grad():
        if isinstance(world.reference, PeftModel):
            with world.reference.disable_adapter():
                return [logps_of(world.reference, one).tolist() for one in rollouts]
        return [logps_of(world.reference, one).tolist() for one in rollouts]


def value_rows(world: World, one: Rollout) -> Tensor:
    """Return the value of the state before each token of the answer, (T,), with its graph."""
    rows: Tensor = world.head(logits_and_states(world.value, one)[1])[:, 0]
    return rows


def raw_scores(rollouts: Sequence[Rollout]) -> list[float]:
    """Return what SCORE says."""
    return [((sum(one.answer.ids) * 37) % 11) / 3 - 1 + 0.01 * one.length for one in rollouts]


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.grad.double() for name, value in module.named_parameters() if value.grad is not None}
