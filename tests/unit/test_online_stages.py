"""ppo and grpo against loops over plain transformers logits: what a step knows of its answers, and its gradients."""

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from danlu.models.actor_critic import ADAPTER, ActorCritic
from danlu.models.config import AdapterConfig
from danlu.models.save import stock_model
from danlu.models.stream_tensors import StreamTensors
from danlu.stages.grpo import GRPO
from danlu.stages.ppo import PPO, Experience
from danlu.stages.rollouts import Rollout
from danlu.stages.whiten import EPS
from tests.online_world import (
    FULL,
    LORA,
    MOST,
    World,
    gradients,
    logits_and_states,
    logps_of,
    make,
    prompts,
    raw_scores,
    reference_logps,
    value_rows,
)

Table = list[list[float]]


@pytest.mark.parametrize(("precision", "dtype"), [("no", torch.float32), ("bf16", torch.bfloat16)])
def test_answers_are_sampled_in_the_format_of_training(
    tiny_base: Path, tmp_path: Path, precision: str, dtype: torch.dtype,
) -> None:
    """The engine wraps the policy, and not the modules inside that answer: products of the head tell what they ran in.
    """
    world = make(GRPO, tiny_base, tmp_path, FULL)
    world.stage.surroundings = replace(world.stage.surroundings, precision=precision)
    seen: set[torch.dtype] = set()
    model = stock_model(world.stage.models.policy)
    world.rollouts()  # proves that slots serve, before any is counted
    model.lm_head.register_forward_hook(lambda module, inputs, logits: seen.add(logits.dtype))
    world.rollouts()
    assert seen == {dtype}


def naive_experience(world: World, rollouts: Sequence[Rollout], scores: Sequence[float]) -> dict[str, Table]:
    """Return every table of a step by loops; the advantage as a double sum over the tokens to come."""
    keys = world.stage.config
    with torch.no_grad():
        logps = [logps_of(world.policy, one).tolist() for one in rollouts]
        values = [value_rows(world, one).tolist() for one in rollouts]
    rewards = [[-keys.ppo_kl_coef * (a - b) for a, b in zip(own, ref, strict=True)]
               for own, ref in zip(logps, reference_logps(world, rollouts), strict=True)]
    for row, score in zip(rewards, scores, strict=True):
        row[-1] += score
    if keys.ppo_whiten_rewards:
        spread = float(np.std([one for row in rewards for one in row]))
        rewards = [[one / (spread + EPS) for one in row] for row in rewards]
    advantages: Table = []
    for reward, value in zip(rewards, values, strict=True):
        ahead = [*value[1:], 0.0]
        delta = [r + keys.ppo_gamma * after - v for r, after, v in zip(reward, ahead, value, strict=True)]
        advantages.append([
            sum((keys.ppo_gamma * keys.ppo_lambda) ** (later - t) * delta[later] for later in range(t, len(delta)))
            for t in range(len(delta))])
    returns = [[a + v for a, v in zip(*rows, strict=True)] for rows in zip(advantages, values, strict=True)]
    if keys.ppo_whiten_advantages:
        everything = [one for row in advantages for one in row]
        mean, std = float(np.mean(everything)), float(np.std(everything))
        advantages = [[(one - mean) / (std + EPS) for one in row] for row in advantages]
    return {"logps": logps, "values": values, "advantages": advantages, "returns": returns}


def assert_tables(found: Experience, expected: dict[str, Table]) -> None:
    for name, rows in expected.items():
        table = getattr(found, name)
        for row, one in zip(table, rows, strict=True):
            assert row[:len(one)].tolist() == pytest.approx(one, rel=2e-4, abs=2e-5), name


PLAIN = {"ppo_kl_controller": "fixed", "ppo_kl_coef": 0.3}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "discounted": {"ppo_gamma": 0.9, "ppo_lambda": 0.6, "ppo_whiten_advantages": False},
    "monte_carlo": {"ppo_lambda": 1.0, "ppo_whiten_advantages": False},
    "whitened": {"ppo_whiten_rewards": True},
    "no_kl": {"ppo_kl_coef": 0.0},
    "several_answers": {"ppo_num_generations": 3},
}


@pytest.mark.parametrize("adapter", [LORA, FULL], ids=["lora", "full"])
@pytest.mark.parametrize("case", CASES)
def test_experience_by_loops(case: str, adapter: AdapterConfig, tiny_base: Path, tmp_path: Path) -> None:
    """Log-probabilities, values before each token, token rewards, returns and advantages, answer by answer."""
    world = make(PPO, tiny_base, tmp_path, adapter, **PLAIN | CASES[case])
    together = world.stage.config.ppo_num_generations
    rollouts = world.rollouts(samples=together)
    assert len({one.length for one in rollouts}) > 1 and len({one.answer.is_whole for one in rollouts}) == 2
    found = world.stage.experience(rollouts)
    expected = naive_experience(world, rollouts, raw_scores(rollouts))
    assert_tables(found, expected)
    examples = found.examples()
    assert [len(one.lengths) for one in examples] == [together] * (len(rollouts) // together)
    assert [one.index for one in examples] == [one.example.index for one in rollouts[::together]]
    tracks = [part for one in examples for part in np.split(one.tracks, np.cumsum(one.lengths)[:-1], axis=1)]
    trained = [part for one in examples for part in np.split(one.trained, np.cumsum(one.lengths)[:-1])]
    for track, where, one, *rows in zip(tracks, trained, rollouts, *expected.values(), strict=True):
        start = len(one.answer.prompt_ids)
        assert not track[:, :start].any()
        assert [int(at) for at in np.flatnonzero(where)] == list(range(start, start + one.length))
        np.testing.assert_allclose(track[:, start:], np.array(rows), rtol=2e-4, atol=2e-5)


def test_scores_shaped_over_two_steps(tiny_base: Path, tmp_path: Path) -> None:
    """Penalty of cut answers, running mean and spread of all scores so far, bound; an evaluation moves nothing."""
    world = make(PPO, tiny_base, tmp_path, **PLAIN, missing_eos_penalty=0.7, ppo_score_norm=True, ppo_score_clip=0.9)
    stage, seen = world.stage, []
    for step in (1, 2, 0, 3):
        stage.surroundings.step = step
        rollouts = world.rollouts()
        raw = [score - 0.7 * (not one.answer.is_whole)
               for score, one in zip(raw_scores(rollouts), rollouts, strict=True)]
        past = [*seen, *raw]
        expected = [max(-0.9, min(0.9, (one - np.mean(past)) / np.std(past, ddof=1))) for one in raw]
        assert max(map(abs, expected)) == 0.9 and any(abs(one) < 0.9 for one in expected)
        assert_tables(stage.experience(rollouts), naive_experience(world, rollouts, expected))
        seen = past if step else seen
    assert (stage.state()["scores_count"], stage.state()["scores_mean"]) == (
        len(seen), pytest.approx(np.mean(seen), rel=1e-5))


def test_what_a_step_tells(tiny_base: Path, tmp_path: Path) -> None:
    """Reward and KL are means over answers, lengths and entropy over what was sampled; the weight follows the KL."""
    world = make(PPO, tiny_base, tmp_path, ppo_kl_coef=0.5, ppo_target=0.01, ppo_kl_horizon=50)
    rollouts = world.rollouts()
    world.stage.experience(rollouts)
    own = [logps_of(world.policy, one).tolist() for one in rollouts]
    kl = np.mean([sum(a) - sum(b) for a, b in zip(own, reference_logps(world, rollouts), strict=True)])
    told, raw = world.stage._told, raw_scores(rollouts)
    assert told["kl"] == pytest.approx(kl, rel=1e-4) and kl > 0.012
    assert told["reward"] == pytest.approx(np.mean(raw), rel=1e-5)
    assert told["reward_std"] == pytest.approx(np.std(raw), rel=1e-4)
    assert told["length"] == np.mean([one.length for one in rollouts])
    assert told["truncated"] == np.mean([not one.answer.is_whole for one in rollouts])
    assert told["entropy"] == pytest.approx(-sum(map(sum, own)) / sum(map(len, own)), rel=1e-4)
    assert told["kl_coef"] == 0.5
    assert world.stage.state()["kl_coef"] == pytest.approx(0.5 * (1 + 0.2 * len(rollouts) / 50))


def assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor], least: int = 4) -> None:
    assert found.keys() == expected.keys() and len(found) >= least
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-6 + 1e-4 * float(gradient.abs().max()))


@pytest.mark.parametrize("adapter", [LORA, FULL], ids=["lora", "full"])
def test_a_first_step_is_the_policy_gradient(adapter: AdapterConfig, tiny_base: Path, tmp_path: Path) -> None:
    """At ratio 1 the gradients are those of sum(-A log pi + c1 (V - R)^2 / 2) / N, by autograd on stock models."""
    world = make(PPO, tiny_base, tmp_path, adapter, **PLAIN, ppo_epochs=1, ppo_value_coef=0.4)
    minibatches = list(world.stage.prepare(prompts()))
    assert len(minibatches) == 1
    rollouts = {one.example.index: one for one in world.rollouts()}
    micro = StreamTensors.of(minibatches[0])
    count = float(world.stage.count(micro))
    assert count == sum(one.length for one in rollouts.values())
    output = world.stage.loss(micro)
    (output.total / count).backward()
    total = torch.zeros((), dtype=torch.float64)
    for example in minibatches[0]:
        one = rollouts[example.index]
        assert example.input_ids.tolist() == one.example.input_ids.tolist()
        _, _, advantages, returns = torch.tensor(example.tracks[:, -one.length:]).double()
        total = total - (advantages * logps_of(world.policy, one)).sum() / count
        total = total + 0.4 * 0.5 * ((value_rows(world, one) - returns) ** 2).sum() / count
    total.backward()
    policy: ActorCritic = world.stage.models.policy
    expected = gradients(world.policy)
    if policy.critic is None:
        expected |= gradients(world.value)
        assert {ADAPTER in name for name in expected} == {True, False}
        assert_same_gradients(gradients(policy.lm.model), expected)
    else:
        assert_same_gradients(gradients(policy.lm.model), expected)
        assert_same_gradients(gradients(policy.critic.model), {
            name: gradient for name, gradient in gradients(world.value).items() if "lm_head" not in name})
    assert_same_gradients(gradients(policy.value_head), gradients(world.head), least=2)
    assert float(output.metrics["clip_fraction"]) == 0.0


def test_a_moved_policy_is_clipped_and_its_entropy_counts(tiny_base: Path, tmp_path: Path) -> None:
    """The whole loss after the policy and the values have moved, token by token; the entropy over the vocabulary."""
    world = make(PPO, tiny_base, tmp_path, **PLAIN, ppo_epochs=1, ppo_entropy_coef=0.3, ppo_clip=0.05,
                 ppo_value_clip=0.03)
    batch, = world.stage.prepare(prompts())
    rollouts = {one.example.index: one for one in world.rollouts()}
    policy: ActorCritic = world.stage.models.policy
    torch.manual_seed(1)
    with torch.no_grad():
        for value in policy.parameters():
            if value.requires_grad:
                value += 0.05 * torch.randn_like(value)
    moved = copy.deepcopy(policy.lm.model).double()
    head = copy.deepcopy(policy.value_head).double()
    moved.base_model.model.set_attn_implementation("eager")
    terms, clipped, gone = [], 0, 0
    for example in batch:
        one = rollouts[example.index]
        old, old_value, advantage, goal = (row.tolist() for row in example.tracks[:, -one.length:])
        moved.set_adapter("default")
        with torch.no_grad():
            logits = logits_and_states(moved, one)[0].log_softmax(-1)
            moved.set_adapter(ADAPTER)
            value = head(logits_and_states(moved, one)[1])[:, 0].tolist()
        for t, token in enumerate(one.answer.ids):
            ratio = math.exp(float(logits[t, token]) - old[t])
            bounded = min(max(ratio, 0.95), 1.05)
            near = old_value[t] + min(max(value[t] - old_value[t], -0.03), 0.03)
            entropy = -sum(p * math.exp(p) for p in logits[t].tolist())
            clipped += ratio != bounded
            gone += near != value[t]
            terms.append(-min(ratio * advantage[t], bounded * advantage[t]) - 0.3 * entropy
                         + 0.1 * 0.5 * max((value[t] - goal[t]) ** 2, (near - goal[t]) ** 2))
    output = world.stage.loss(StreamTensors.of(batch))
    assert 0 < clipped < len(terms) and 0 < gone < len(terms)
    assert float(output.total.detach()) == pytest.approx(sum(terms), rel=1e-4)
    assert float(output.metrics["clip_fraction"]) == clipped


GRPO_CASES: dict[str, dict[str, Any]] = {
    "grpo": {},
    "dr_grpo": {"grpo_advantage": "dr_grpo", "grpo_weighting": "constant", "grpo_beta": 0.0},
    "rloo": {"grpo_advantage": "rloo", "grpo_kl_in": "reward", "grpo_weighting": "constant"},
    "dapo": {"grpo_clip_high": 0.28, "grpo_weighting": "token", "mask_truncated": True, "grpo_beta": 0.0},
    "k1": {"grpo_kl": "k1", "missing_eos_penalty": 0.5, "mask_truncated": True},
    "k2": {"grpo_kl": "k2", "grpo_weighting": "token", "grpo_clip": 0.05},
}


def naive_grpo(world: World, rollouts: Sequence[Rollout], moved: Any, old: Table) -> tuple[float, float]:
    """Return the summed loss of a step and what it is divided by, as the papers write them."""
    keys, n = world.stage.config, world.stage.config.num_generations
    ref = reference_logps(world, rollouts)
    rewards = [score - keys.missing_eos_penalty * (not one.answer.is_whole)
               for score, one in zip(raw_scores(rollouts), rollouts, strict=True)]
    if keys.grpo_kl_in == "reward":
        rewards = [r - keys.grpo_beta * (sum(a) - sum(b)) for r, a, b in zip(rewards, old, ref, strict=True)]
    loss, count = 0.0, 0.0
    for at, one in enumerate(rollouts):
        group = rewards[at // n * n:at // n * n + n]
        others = (sum(group) - rewards[at]) / (n - 1)
        advantage = {"grpo": (rewards[at] - np.mean(group)) / (np.std(group, ddof=1) + 1e-4),
                     "dr_grpo": rewards[at] - np.mean(group), "rloo": rewards[at] - others}[keys.grpo_advantage]
        if keys.mask_truncated and not one.answer.is_whole:
            continue
        weight = {"answer": 1 / one.length, "token": 1.0, "constant": 1 / MOST}[keys.grpo_weighting]
        count += one.length if keys.grpo_weighting == "token" else 1
        with torch.no_grad():
            logps = logps_of(moved, one).tolist()
        for new, was, base in zip(logps, old[at], ref[at], strict=True):
            ratio = math.exp(new - was)
            high = keys.grpo_clip if keys.grpo_clip_high is None else keys.grpo_clip_high
            bounded = min(max(ratio, 1 - keys.grpo_clip), 1 + high)
            kl = {"k1": new - base, "k2": (new - base) ** 2 / 2,
                  "k3": math.exp(base - new) - 1 - (base - new)}[keys.grpo_kl]
            in_loss = keys.grpo_beta if keys.grpo_kl_in == "loss" else 0.0
            loss += weight * (-min(ratio * advantage, bounded * advantage) + in_loss * kl)
    return loss, count


@pytest.mark.parametrize("case", GRPO_CASES)
def test_a_grpo_step_by_loops(case: str, tiny_base: Path, tmp_path: Path) -> None:
    """The loss of a whole step, at ratio 1 and after the policy has moved, and the count it is divided by."""
    keys = {"num_generations": 3, "grpo_beta": 0.2} | GRPO_CASES[case]
    world = make(GRPO, tiny_base, tmp_path, **keys)
    rollouts = world.rollouts(3, samples=3)
    old = [logps_of(world.policy, one).tolist() for one in rollouts]
    batch, = world.stage.prepare(prompts()[:3])
    model = world.stage.models.policy.model
    for moves in (False, True):
        if moves:
            torch.manual_seed(2)
            with torch.no_grad():
                for value in model.parameters():
                    if value.requires_grad:
                        value += 0.05 * torch.randn_like(value)
        moved = copy.deepcopy(model).double()
        moved.base_model.model.set_attn_implementation("eager")
        expected, divisor = naive_grpo(world, rollouts, moved, old)
        micros = [StreamTensors.of(batch[:2]), StreamTensors.of(batch[2:])]
        assert sum(float(world.stage.count(micro)) for micro in micros) == divisor
        found = sum(float(world.stage.loss(micro).total.detach()) for micro in micros)
        assert found == pytest.approx(expected, rel=2e-4, abs=2e-5)


def test_a_step_of_idle_groups_has_no_gradient(tiny_base: Path, tmp_path: Path) -> None:
    """Rewards of 0.1 for every answer: advantages of exactly 0, so that without a KL nothing moves."""
    (tmp_path / "flat.py").write_text("def score(completions):\n    return [0.1] * len(completions)\n", "utf-8")
    world = make(GRPO, tiny_base, tmp_path, num_generations=8, grpo_beta=0.0, reward_model=f"{tmp_path}/flat.py:score")
    batch, = world.stage.prepare(prompts()[:2])
    micro = StreamTensors.of(batch)
    assert not micro.tracks[2].any()
    output = world.stage.loss(micro)
    output.total.backward()
    assert all(not gradient.any() for gradient in gradients(world.stage.models.policy).values())
    assert world.stage._told["idle_groups"] == 1.0


def test_an_answer_may_be_bounded_by_the_whole(tiny_base: Path, tmp_path: Path) -> None:
    """With max_new_tokens 0 the bound is max_length, so Dr. GRPO's constant too; and without a reference no KL is told.
    """
    world = make(GRPO, tiny_base, tmp_path, num_generations=2, grpo_weighting="constant", grpo_beta=0.0)
    rollouts = world.stage.models.rollouts
    rollouts.settings = rollouts.settings.model_copy(update={"max_new_tokens": 0, "max_length": 30})
    micro = StreamTensors.of(world.stage.groups(world.rollouts(2, samples=2)))
    assert micro.loss_weights.tolist() == pytest.approx([1 / 30] * micro.num_rows)
    assert "kl" not in world.stage._told and "reward" in world.stage._told
    assert max(one.example.input_ids.size for one in world.rollouts(2, samples=2)) <= 30
