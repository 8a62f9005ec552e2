"""The engine with the real stage and model: dropout, adapters, noise and packed rows do not break its promises."""

import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from danlu.core.run_dir import RunDir
from danlu.core.stream import Example
from danlu.engine.faults import Interrupted
from danlu.engine.loop import Engine, TrainResult
from danlu.models.neftune import add_embedding_noise
from danlu.models.packed_lm import PackedLM
from danlu.models.save import ModelSaver
from danlu.stages.base import Models, NoKeys
from danlu.stages.sft import SFT
from tests.tiny import tiny_model, tiny_tokenizer
from tests.toy_stage import ToyData, losses, make_config
from tests.unit.test_engine_resume import StopAt


class Rows(ToyData):
    """Ten rows of tokens; `packed` joins them two by two into rows of two segments."""

    def __init__(self, packed: bool = False) -> None:
        random = np.random.default_rng(1)
        self.fingerprint = f"rows-{packed}"
        rows = [(random.integers(5, 300, n), random.random(n) < 0.6) for n in random.integers(6, 30, 10)]
        groups = [rows[i:i + 2] for i in range(0, 10, 2)] if packed else [[row] for row in rows]
        self.examples = [
            Example(np.concatenate([ids for ids, _ in group]), np.concatenate([trained for _, trained in group]),
                    lengths=tuple(len(ids) for ids, _ in group), index=i) for i, group in enumerate(groups)]


def build(method: str) -> SFT:
    """gpt2 with dropout: full with embedding noise, or LoRA with dropout of its own."""
    model: nn.Module = tiny_model("gpt2", resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.0)
    if method == "lora":
        torch.manual_seed(1)
        model = get_peft_model(model, LoraConfig(r=4, lora_dropout=0.2, target_modules=["c_attn", "c_proj"]))
    policy = PackedLM(model)
    if method == "full":
        add_embedding_noise(policy, 5.0)
    return SFT(NoKeys(), Models(policy))


def run(folder: Path, stage: SFT, data: Rows, stop: int | None = None, **keys: object) -> TrainResult:
    config = make_config(folder, learning_rate=5e-3, lr_scheduler_type="cosine", **keys)
    engine = Engine(config, RunDir.create(folder), ModelSaver(tiny_tokenizer(), None, "base"),
                    hooks=[StopAt(stop, signal.SIGTERM)] if stop else [])
    return engine.fit(stage, data)


def trained(stage: SFT) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in stage.models.policy.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("stop", [1, 4])
def test_stopped_and_resumed_is_bit_identical(tmp_path: Path, method: str, stop: int) -> None:
    stage = build(method)
    whole = run(tmp_path / "whole", stage, Rows())
    with pytest.raises(Interrupted):
        run(tmp_path / "parts", build(method), Rows(), stop)
    again = build(method)
    result = run(tmp_path / "parts", again, Rows())
    assert result.resumed_from is not None
    assert losses(result) == losses(whole)
    left, right = trained(stage), trained(again)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("keys", [
    {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4},
    {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1},
])
def test_micro_batches_and_packing_do_not_change_the_step(tmp_path: Path, keys: dict[str, int]) -> None:
    """Ten rows, four a step, three steps; packed: five rows of two, two a step. No dropout, file order.

    AdamW divides by the gradient's size: where that is near 0 the order of a sum shows, up to 2 % of a step of 5e-3.
    """
    def plain() -> SFT:
        return SFT(NoKeys(), Models(PackedLM(tiny_model("llama"))))

    one, two, three = plain(), plain(), plain()
    fixed: dict[str, object] = {"num_train_epochs": 2, "disable_shuffling": True}
    reference = run(tmp_path / "a", one, Rows(), **fixed)
    cut = run(tmp_path / "b", two, Rows(), **fixed, **keys)
    packed = run(tmp_path / "c", three, Rows(packed=True), **fixed, per_device_train_batch_size=1)
    for other, stage in ((cut, two), (packed, three)):
        assert losses(other) == pytest.approx(losses(reference), abs=1e-5)
        for name, value in trained(one).items():
            torch.testing.assert_close(trained(stage)[name], value, atol=1e-4, rtol=1e-4)
