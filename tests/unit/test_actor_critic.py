"""Policy and value network beside each other: neither moves the other, and each survives saving and switching."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from danlu.core.errors import UserError
from danlu.core.stream import Example
from danlu.models.actor_critic import ADAPTER, WEIGHTS, ActorCritic
from danlu.models.adapter_switch import add_second_adapter, switch_adapter, using_adapter
from danlu.models.checkpointing import set_checkpointing
from danlu.models.config import AdapterConfig
from danlu.models.packed_lm import PackedLM
from danlu.models.reward_lm import RewardLM
from danlu.models.save import ModelSaver
from danlu.models.stream_tensors import StreamTensors
from danlu.stages.ppo import PPO
from danlu.stages.reference import reference_of
from tests.online_world import FULL, LORA, TOKENIZER, World, gradients, jolt, load, logps_of, make, prompts
from tests.tiny import CHATML, tiny_tokenizer

FREEZE = AdapterConfig(finetuning_type="freeze", freeze_trainable_layers=1)
HEAD = AdapterConfig(lora_rank=4, lora_target=("q_proj", "lm_head"))
WHOLE = AdapterConfig(lora_rank=4, additional_target=("lm_head", "norm"))
DORA = AdapterConfig(lora_rank=4, use_dora=True)
KINDS = pytest.mark.parametrize("adapter", [LORA, FULL], ids=["lora", "full"])
EVERY = pytest.mark.parametrize("adapter", [LORA, FULL, FREEZE, HEAD, WHOLE, DORA],
                                ids=["lora", "full", "freeze", "lm_head", "modules_to_save", "dora"])


def stream(*, trained: int = 3) -> StreamTensors:
    """Return the prompts as a stream, their last tokens the targets."""
    laid = []
    for one in prompts():
        mask = one.trained.copy()
        mask[-trained:] = True
        laid.append(Example(one.input_ids, mask, index=one.index))
    return StreamTensors.of(laid)


def numbers(policy: ActorCritic) -> list[Tensor]:
    with torch.no_grad():
        return list(policy.eval()(stream(), wanted=("logps", "values")))


def same(left: Sequence[Tensor], right: Sequence[Tensor]) -> list[bool]:
    return [torch.equal(a, b) for a, b in zip(left, right, strict=True)]


@EVERY
@pytest.mark.parametrize("part", ["logps", "values"])
def test_gradients_stay_in_their_network(part: str, adapter: AdapterConfig, tiny_base: Path) -> None:
    """A loss on log-probabilities leaves the value network alone, one on values the policy; a frozen base both."""
    policy = jolt(ActorCritic(PackedLM(load(tiny_base, adapter))))
    frozen = {name for name, value in policy.named_parameters() if not value.requires_grad}
    policy(stream(), wanted=("logps", "values"))[part == "values"].sum().backward()
    touched = {name for name, gradient in gradients(policy).items() if gradient.any()}
    own = {name for name in touched if ADAPTER in name or name.startswith(("critic.", "value_head."))}
    assert own == (touched if part == "values" else set()) and len(touched) > 4 and not touched & frozen
    trained = {name for name, value in policy.named_parameters() if value.requires_grad}
    wanted = {name for name in trained if ADAPTER in name or name.startswith(("critic.", "value_head."))}
    assert touched == (wanted if part == "values" else trained - wanted)


def test_the_critic_of_freeze_trains_its_top_layers_only(tiny_base: Path) -> None:
    """One of two layers, in both networks; and the critic's vocabulary head never."""
    policy = ActorCritic(PackedLM(load(tiny_base, FREEZE)))
    trained = [name for name, value in policy.named_parameters() if value.requires_grad]
    for network in ("lm.model.model.layers.1.", "critic.model.model.layers.1."):
        assert any(name.startswith(network) for name in trained)
    assert all(".layers.1." in name or name.startswith("value_head.") for name in trained)


def passes(world: World, batch: Sequence[Example]) -> dict[str, Tensor]:
    policy = world.stage.models.policy
    policy.zero_grad(set_to_none=True)
    world.stage.loss(StreamTensors.of(batch)).total.backward()
    return gradients(policy)


@pytest.mark.parametrize("adapter", [LORA, FULL, HEAD, WHOLE], ids=["lora", "full", "lm_head", "modules_to_save"])
def test_checkpointing_keeps_the_gradients_of_both(adapter: AdapterConfig, tiny_base: Path, tmp_path: Path) -> None:
    """Layers computed again in backward see the adapter of their forward; afterwards the policy's is active."""
    world = make(PPO, tiny_base, tmp_path, adapter, ppo_value_coef=3.0)
    policy: ActorCritic = world.stage.models.policy
    batch = world.stage.experience(world.rollouts()).examples()
    policy.train()
    plain = passes(world, batch)
    flags = [value.requires_grad for value in policy.parameters()]
    for network in [policy.lm.model] if policy.critic is None else [policy.lm.model, policy.critic.model]:
        assert set_checkpointing(network, True)
    for _ in range(2):
        again = passes(world, batch)
        assert again.keys() == plain.keys() and flags == [value.requires_grad for value in policy.parameters()]
        for name, gradient in plain.items():
            scale = float(gradient.abs().max())
            torch.testing.assert_close(again[name], gradient, rtol=1e-5, atol=1e-6 * scale, msg=name)
        assert not isinstance(policy.lm.model, PeftModel) or policy.lm.model.active_adapter == "default"
    values, = policy(stream(), wanted=("values",))
    values.sum().backward()
    assert not isinstance(policy.lm.model, PeftModel) or policy.lm.model.active_adapter == "default"


def test_switching_keeps_every_flag(tiny_base: Path) -> None:
    """Within the block and after it, also when it fails; a frozen policy stays frozen, no base wakes up."""
    model = load(tiny_base, LORA)
    add_second_adapter(model, ADAPTER)
    for name, value in model.named_parameters():
        if "layers.0" in name:
            value.requires_grad_(False)
    flags = {name: value.requires_grad for name, value in model.named_parameters()}
    assert {ADAPTER in name for name, flag in flags.items() if flag} == {True, False}
    for name in (ADAPTER, "default", None):
        with pytest.raises(ZeroDivisionError), using_adapter(model, name):
            assert flags == {name: value.requires_grad for name, value in model.named_parameters()}
            assert model.active_adapter == (name or "default")
            raise ZeroDivisionError
        assert flags == {name: value.requires_grad for name, value in model.named_parameters()}
        assert model.active_adapter == "default"
    switch_adapter(model, ADAPTER)
    assert model.active_adapter == ADAPTER
    assert flags == {name: value.requires_grad for name, value in model.named_parameters()}


def test_the_reference_is_the_bare_base(tiny_base: Path, tmp_path: Path) -> None:
    """With policy and value adapter moved, the adapter-off model gives what the base alone gives; then all is back."""
    world = make(PPO, tiny_base, tmp_path)
    policy = world.stage.models.policy
    before = numbers(policy)
    rollouts = world.rollouts()
    with reference_of(world.stage.models) as reference, torch.no_grad():
        found, = reference(StreamTensors.of([one.example for one in rollouts]), wanted=("logps",))
    with torch.no_grad(), world.reference.disable_adapter():
        expected = torch.cat([logps_of(world.reference, one) for one in rollouts])
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
    assert same(numbers(policy), before) == [True, True]


def test_a_value_adapter_leaves_a_pissa_base_alone(tiny_base: Path) -> None:
    """PiSSA takes its start out of the base once; the value adapter starts with the same weights and takes nothing."""
    model = load(tiny_base, AdapterConfig(lora_rank=4, pissa_init=True, pissa_iter=-1))
    lm = PackedLM(model).eval()
    with torch.no_grad():
        before = lm(stream(), output="logps")
    policy = ActorCritic(lm)
    assert torch.equal(numbers(policy)[0], before)
    weights = dict(model.named_parameters())
    pairs = [(value, weights[name.replace(ADAPTER, "default")]) for name, value in weights.items() if ADAPTER in name]
    assert len(pairs) > 8 and all(torch.equal(a, b) for a, b in pairs)


def save_reward_model(base: Path, folder: Path, adapter: AdapterConfig) -> RewardLM:
    """Write what stage rm writes; return the model."""
    scorer = RewardLM(PackedLM(load(base, adapter, seed=3)))
    torch.nn.init.normal_(scorer.value_head.bias)
    ModelSaver(tiny_tokenizer(chat_template=CHATML), None, str(base)).save(scorer, folder, dtype=torch.float32)
    return scorer.eval()


@pytest.mark.parametrize("adapter", [LORA, FULL, FREEZE, HEAD, DORA], ids=["lora", "full", "freeze", "lm_head", "dora"])
def test_the_value_network_begins_as_the_reward_model(adapter: AdapterConfig, tiny_base: Path, tmp_path: Path,
                                                      capsys: pytest.CaptureFixture[str]) -> None:
    """At the last token the value is the reward; the policy keeps its numbers."""
    scorer = save_reward_model(tiny_base, tmp_path / "rm", adapter)
    policy = jolt(ActorCritic(PackedLM(load(tiny_base, adapter))))
    before = numbers(policy)
    state = torch.get_rng_state()
    policy.begin_value_at(tmp_path / "rm")
    assert "starts as the policy" not in capsys.readouterr().err and torch.equal(state, torch.get_rng_state())
    assert same(numbers(policy), before) == [True, False]
    batch = stream()
    ends = torch.tensor(batch.lengths).cumsum(0) - 1
    with torch.no_grad():
        expected = scorer(batch)
        whole = StreamTensors(**{**vars(batch), "loss_rows": ends, "loss_targets": batch.input_ids[ends],
                                 "loss_weights": torch.ones(len(ends))})
        found, = policy(whole, wanted=("values",))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


MISFITS: dict[str, tuple[AdapterConfig, AdapterConfig]] = {
    "lora_alpha is 8 there and 32 here": (LORA, AdapterConfig(lora_rank=4, lora_alpha=32)),
    "r is 4 there and 2 here": (LORA, AdapterConfig(lora_rank=2)),
    "in one of them only": (AdapterConfig(lora_rank=4, lora_target=("q_proj",)), LORA),
}


@pytest.mark.parametrize("said", MISFITS)
def test_a_reward_adapter_that_does_not_fit_leaves_the_value_network_whole(
    said: str, tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:
    """Half a reward model would be neither: nothing is copied, and the notice says why."""
    there, here = MISFITS[said]
    save_reward_model(tiny_base, tmp_path / "rm", there)
    policy = jolt(ActorCritic(PackedLM(load(tiny_base, here))))
    before = numbers(policy)
    policy.begin_value_at(tmp_path / "rm")
    told = capsys.readouterr().err
    assert "starts as the policy" in told and said in told
    assert same(numbers(policy), before) == [True, True]


def without_a_layer(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    save_file({name: value for name, value in state.items() if "layers.1.mlp" not in name},
              folder / "model.safetensors", metadata={"format": "pt"})


def without_a_head(folder: Path) -> None:
    (folder / "value_head.safetensors").unlink()


@pytest.mark.parametrize("spoil", [without_a_layer, without_a_head])
def test_a_whole_reward_model_that_lacks_something_leaves_the_critic_whole(
    spoil: Callable[[Path], None], tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:
    save_reward_model(tiny_base, tmp_path / "rm", FULL)
    spoil(tmp_path / "rm")
    policy = jolt(ActorCritic(PackedLM(load(tiny_base, FULL))))
    before = numbers(policy)
    policy.begin_value_at(tmp_path / "rm")
    assert "starts as the policy" in capsys.readouterr().err
    assert same(numbers(policy), before) == [True, True]


@EVERY
def test_the_value_network_is_saved_bit_for_bit(adapter: AdapterConfig, tiny_base: Path, tmp_path: Path) -> None:
    """Written from one, read into another: the same values; the other's policy is untouched."""
    saved = jolt(ActorCritic(PackedLM(load(tiny_base, adapter))))
    other = ActorCritic(PackedLM(load(tiny_base, adapter)))
    assert same(numbers(saved), numbers(other)) == [True, False]
    saved.save_value(tmp_path)
    other.load_value(tmp_path)
    assert same(numbers(saved), numbers(other)) == [True, True]
    narrow = ActorCritic(PackedLM(load(tiny_base, AdapterConfig(lora_rank=2))))
    with pytest.raises(UserError, match="no value network that fits"):
        narrow.load_value(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(UserError, match="no value network that fits"):
        other.load_value(tmp_path)


def test_a_quantised_base_serves_all_three(tiny_base: Path, tmp_path: Path) -> None:
    """Policy, value network and reference on one 4-bit base: only adapters and head train, and a step moves both."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes absent (extra qlora)")
    model: Any = load(tiny_base, LORA, quantization_bit=4)
    policy = jolt(ActorCritic(PackedLM(model)))
    logps, values = policy(stream(), wanted=("logps", "values"))
    (logps.sum() + values.sum()).backward()
    touched = {name for name, gradient in gradients(policy).items() if gradient.any()}
    assert {ADAPTER in name for name in touched if "lora_" in name} == {True, False}
    assert all("lora_" in name or name.startswith("value_head.") for name in touched)
    copied = copy.deepcopy(numbers(policy))
    with using_adapter(model, None), torch.no_grad():
        bare, = policy(stream(), wanted=("logps",))
    assert not torch.equal(bare, copied[0]) and same(numbers(policy), copied) == [True, True]
    assert TOKENIZER.vocab_size <= model.get_base_model().config.vocab_size
