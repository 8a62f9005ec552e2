"""What a step of ppo and grpo runs, and how often: forward passes by kind, tokens computed, operations by the formula.

Sampling apart. N_b weights of the body's matrices, N_h = V d, N_a of an adapter; T tokens computed, R response tokens.
A pass without gradient costs F_b, and F_h where the head is read; one that trains 3 (F_b + F_h), with LoRA
2 (F_b + F_h) + 6 N_a T.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from danlu.core.prefix_tree import SHORTEST_PREFIX, share_prefixes
from danlu.engine.config import EngineConfig
from danlu.engine.micro_batches import MicroBatches
from danlu.engine.optimizers import default_groups, make_optimizer
from danlu.engine.step import Stepper
from danlu.generation.slot_attention import IMPLEMENTATION as SLOTS
from danlu.losses.vocabulary_sweep import BLOCK_WORDS
from danlu.models.actor_critic import ADAPTER
from danlu.models.adapter_switch import POLICY
from danlu.models.config import AdapterConfig
from danlu.models.proof import base_of
from danlu.models.stream_tensors import StreamTensors
from danlu.stages.base import by_number
from danlu.stages.grpo import GRPO
from danlu.stages.ppo import PPO
from danlu.stages.rollouts import Rollout, SampledLogps
from tests.invariant.test_flops import Updates, cut_small, watch_logits
from tests.invariant.test_tree_costs import COUNTED
from tests.online_world import FULL, LORA, QUESTIONS, World, make, prompts
from tests.unit.test_rewards_models import save_reward_model

LAYERS, WIDTH, VOCABULARY, EPOCHS, SAMPLES = 2, 32, 320, 3, 3
METHODS = pytest.mark.parametrize("adapter", [LORA, FULL], ids=["lora", "full"])
Pass = tuple[str, bool]


class Passes:
    """Notes every forward pass of a body: whose it is, whether it has a gradient, how many tokens it computes."""

    def __init__(self, world: World) -> None:
        self.seen: list[tuple[str, bool, int]] = []
        models = world.stage.models
        policy, source = models.policy, models.rollouts._rewards.sources[0].source
        lm = policy.lm if isinstance(world.stage, PPO) else policy
        self._base = base_of(lm.model)
        self._switch = next((one for one in lm.model.modules() if isinstance(one, LoraLayer)), None)
        self._watch(self._base, "policy")
        if self._switch is None:
            self._watch(base_of(models.reference.model), "reference")
            self._watch(base_of(source.network.lm.model), "reward")
            if isinstance(world.stage, PPO):
                self._watch(base_of(policy.critic.model), "value")

    def _watch(self, base: Any, name: str) -> None:
        def see(module: nn.Module, args: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
            if base is not self._base or self._base.config._attn_implementation != SLOTS:
                self.seen.append((self._whose() or name, torch.is_grad_enabled(), args[0].numel()))

        base.get_input_embeddings().register_forward_hook(see)

    def _whose(self) -> str:
        """Return which adapter answers, with one base for all; empty where each network has its own."""
        if self._switch is None:
            return ""
        if self._switch.disable_adapters:
            return "reference"
        active, = self._switch.active_adapters
        return {POLICY: "policy", ADAPTER: "value"}.get(active, "reward")

    def tokens(self, name: str) -> list[int]:
        """Return the tokens of each pass of one network."""
        return [tokens for whose, _, tokens in self.seen if whose == name]

    def counted(self) -> Counter[Pass]:
        """Return how many passes of each kind there were."""
        return Counter((name, trains) for name, trains, _ in self.seen)


class Columns(TorchDispatchMode):
    """Notes the most rows of what is made with as many columns as the vocabulary has; 0 without any."""

    makers = (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten._log_softmax)

    def __init__(self) -> None:
        super().__init__()
        self.rows = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in self.makers and out.shape[-1] == VOCABULARY:
            self.rows = max(self.rows, out.numel() // VOCABULARY)
        return out


def build(kind: Any, base: Path, folder: Path, adapter: AdapterConfig, **more: Any) -> tuple[World, Stepper]:
    """Return a stage with a trained reward model, its first step already done: models have proved themselves."""
    reward = save_reward_model(base, folder / "reward", adapter)
    keys = {"ppo_epochs": EPOCHS} if kind is PPO else {"grpo_epochs": EPOCHS, "num_generations": SAMPLES}
    world = make(kind, base, folder, adapter, reward_model_type="lora" if adapter is LORA else "full",
                 reward_model=str(reward), reward_batch_size=len(QUESTIONS) * SAMPLES, **keys, **more)
    stage = world.stage
    stage.surroundings.deal = by_number(len(QUESTIONS))
    policy, config = stage.models.policy.train(), EngineConfig()
    groups = default_groups(policy, config)
    stepper = Stepper(
        Accelerator(cpu=True), stage, policy, make_optimizer(groups, config),
        [one for group in groups for one in group["params"]], MicroBatches(len(QUESTIONS) * SAMPLES), 1.0, str)
    stepper.run(prompts(), counts=True, step=1)
    return world, stepper


def expected_passes(kind: Any, *, epochs: int = EPOCHS) -> Counter[Pass]:
    wanted = Counter({("reference", False): 1, ("reward", False): 1, ("policy", True): epochs})
    return wanted + Counter({("value", False): 1, ("value", True): epochs} if kind is PPO else {})


@METHODS
@pytest.mark.parametrize("kind", [PPO, GRPO])
def test_forward_passes_of_a_step(kind: Any, adapter: AdapterConfig, tiny_base: Path, tmp_path: Path) -> None:
    """One pass each of value network, reference and reward; the first step alone scores the policy anew."""
    world, stepper = build(kind, tiny_base, tmp_path, adapter)
    passes = Passes(world)
    stepper.run(prompts(), counts=True, step=2)
    assert passes.counted() == expected_passes(kind)
    passes.seen.clear()
    world.stage._sampled = SampledLogps()
    stepper.run(prompts(), counts=True, step=3)
    assert passes.counted() == expected_passes(kind) + Counter({("policy", False): 1})
    assert world.stage._sampled.serve


@METHODS
def test_an_evaluation_runs_each_network_once(adapter: AdapterConfig, tiny_base: Path, tmp_path: Path) -> None:
    world, _ = build(PPO, tiny_base, tmp_path, adapter)
    passes = Passes(world)
    world.stage.surroundings.step = 0
    with torch.no_grad():
        minibatches = list(world.stage.prepare(prompts()))
    assert len(minibatches) == 1
    assert passes.counted() == Counter({("value", False): 1, ("reference", False): 1, ("reward", False): 1})


@METHODS
@pytest.mark.parametrize("kind", [PPO, GRPO])
def test_a_group_costs_its_tree(kind: Any, adapter: AdapterConfig, tiny_base: Path, tmp_path: Path) -> None:
    """Policy, value network, reference and reward compute each prompt once for its answers, in every pass."""
    several = {"ppo_num_generations": SAMPLES} if kind is PPO else {}
    world, stepper = build(kind, tiny_base, tmp_path, adapter, **several)
    passes = Passes(world)
    world.stage.surroundings.step = 2
    rollouts = world.rollouts(samples=SAMPLES)
    tokens, answers = tree_tokens(rollouts, SAMPLES), sum(one.length for one in rollouts)
    starts = [len(one.answer.prompt_ids) for one in rollouts[::SAMPLES]]
    once = sum(start if start >= SHORTEST_PREFIX else SAMPLES * start for start in starts) + answers
    assert tokens <= once < 0.75 * sum(len(one.example.input_ids) for one in rollouts)
    stepper.run(prompts(), counts=True, step=2)
    for name in ("policy", "reference", *(["value"] if kind is PPO else [])):
        assert set(passes.tokens(name)) == {tokens}, name
    assert all(seen <= once for seen in passes.tokens("reward"))


@METHODS
def test_values_and_rewards_never_touch_the_vocabulary(
    adapter: AdapterConfig, tiny_base: Path, tmp_path: Path,
) -> None:
    """Not even their backward passes; the policy's pass shows that the watch sees a head."""
    world, _ = build(PPO, tiny_base, tmp_path, adapter)
    stage, rollouts = world.stage, world.rollouts()
    micro = StreamTensors.of([one.example for one in rollouts])
    with Columns() as columns:
        stage.models.policy(micro, wanted=("values",))[0].sum().backward()
        stage.models.rollouts.reward(rollouts, stage.surroundings)
    assert columns.rows == 0
    with Columns() as columns, torch.no_grad():
        stage.models.policy(micro, wanted=("logps",))
    assert columns.rows > 0


@METHODS
@pytest.mark.parametrize("kind", [PPO, GRPO])
def test_a_step_costs_what_the_formula_says(
    kind: Any, adapter: AdapterConfig, tiny_base: Path, tmp_path: Path,
) -> None:
    """Below the formula only by the last layer's MLP where no loss reads (under 0.3 of the body of two layers)."""
    world, stepper = build(kind, tiny_base, tmp_path, adapter)
    samples = SAMPLES if kind is GRPO else 1
    world.stage.surroundings.step = 2
    with FlopCounterMode(display=False, custom_mapping=COUNTED) as sampling:
        rollouts = world.rollouts(samples=samples)
    with FlopCounterMode(display=False, custom_mapping=COUNTED) as step:
        stepper.run(prompts(), counts=True, step=2)
    wanted = formula(world, rollouts, samples)
    assert 0.7 * wanted <= step.get_total_flops() - sampling.get_total_flops() <= 1.05 * wanted


@METHODS
@pytest.mark.parametrize("kind", [PPO, GRPO])
def test_logits_never_exceed_a_tile_and_each_group_is_one_update(
    kind: Any, adapter: AdapterConfig, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Tiles of at most 8 rows, fewer than a step supervises, for scoring and training; an update an epoch and group."""
    cut_small(monkeypatch, VOCABULARY, 8, BLOCK_WORDS)
    _, stepper = build(kind, tiny_base, tmp_path, adapter)
    seen = watch_logits(monkeypatch)
    with Updates() as updates:
        stepper.run(prompts(), counts=True, step=2)
    assert len(seen["tile"]) >= 2 * (1 + EPOCHS)  # of the reference and of each pass that trains
    assert 0 < max(seen["block"]) <= 8 * 2 * BLOCK_WORDS  # rounded up to a multiple
    assert max(seen["alive"]) <= 8 * VOCABULARY
    assert updates.number == EPOCHS * len(stepper.optimizer.param_groups)


@METHODS
def test_logits_of_an_entropy_never_exceed_a_tile(
    adapter: AdapterConfig, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All words of at most 8 rows at once, forward and backward."""
    cut_small(monkeypatch, VOCABULARY, 8, BLOCK_WORDS)
    world, _ = build(PPO, tiny_base, tmp_path, adapter, ppo_entropy_coef=0.01)
    stage = world.stage
    stage.surroundings.step = 2
    with torch.no_grad():
        minibatch = next(iter(stage.prepare(prompts())))
    micro = stage.collate(minibatch)
    assert micro.num_rows > 8
    with Columns() as columns:
        stage.loss(micro).total.backward()
    assert 0 < columns.rows <= 8


def formula(world: World, rollouts: Sequence[Rollout], samples: int) -> float:
    """Return F_b + F_h of the reference, F_b of the reward, and of the value network, EPOCHS passes that train."""
    base = base_of(world.policy)
    linear = {name: one.weight.numel() for name, one in base.named_modules()
              if isinstance(one, nn.Linear) and "lora" not in name}
    adapters = sum(p.numel() for name, p in world.policy.named_parameters() if f".{POLICY}." in name)
    has_adapters, has_value = adapters > 0, isinstance(world.stage, PPO)
    tokens, rows = tree_tokens(rollouts, samples), sum(one.length for one in rollouts)
    body = 2.0 * sum(size for name, size in linear.items() if "lm_head" not in name) * tokens
    body += 2.0 * LAYERS * WIDTH * sum(contexts(one, first=at % samples == 0) for at, one in enumerate(rollouts))
    head, passes = 2.0 * VOCABULARY * WIDTH * rows, 2 if has_adapters else 3
    training = EPOCHS * (passes * (body + head) + 6.0 * adapters * tokens)
    frozen = (body + head) + (body + 2.0 * adapters * tokens)
    if has_value:
        training += EPOCHS * (passes * body + 6.0 * adapters * tokens)
        frozen += body + 2.0 * adapters * tokens
    return training + frozen


def contexts(one: Rollout, *, first: bool) -> int:
    """Return the squares that attention computes: of the prompt once, of the answer over prompt and itself."""
    prompt, answer = len(one.answer.prompt_ids), one.length
    return answer * (2 * prompt + answer) + (prompt * prompt if first else 0)


def tree_tokens(rollouts: Sequence[Rollout], samples: int) -> int:
    """Return the tokens of the prefix trees: each prompt once, and what its answers begin alike once too."""
    total, bounds = 0, range(0, len(rollouts) + 1, samples)
    for start, end in pairwise(bounds):
        group = [one.example.input_ids for one in rollouts[start:end]]
        stream = torch.cat([torch.as_tensor(ids) for ids in group]).numpy()
        tree = share_prefixes(stream, tuple(map(len, group)), [0] * len(group))
        total += len(stream) if tree is None else len(tree.kept)
    return total
