"""What must not change the result of a run: accumulation, packing, being stopped; and merging an adapter."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from danlu.cli.main import main
from danlu.stages.base import STAGES
from tests.e2e.test_stages_learn import DATA
from tests.online import stage_keys
from tests.reading import losses

METHODS: dict[str, dict[str, Any]] = {
    "full": {"finetuning_type": "full"},
    "freeze": {"finetuning_type": "freeze", "freeze_trainable_layers": 1},
    "lora": {"finetuning_type": "lora", "lora_dropout": 0.1},
    "qlora": {"finetuning_type": "lora", "lora_dropout": 0.1, "quantization_bit": 4},
}


def train(base: Path, world: Path, out: Path, **settings: Any) -> Path:
    """Run six steps (SFT on the tiny dialogues, unless `settings` say otherwise) and return the output folder."""
    config: dict[str, Any] = {
        "model_name_or_path": str(base), "stage": "sft", "do_train": True, "dataset": "chat", "dataset_dir": str(world),
        "output_dir": str(out), "learning_rate": 5e-3, "max_steps": 6, "logging_steps": 1, "save_steps": 100,
        "per_device_train_batch_size": 4, "lr_scheduler_type": "cosine", "warmup_steps": 2, **settings}
    file = out.parent / f"{out.name}.json"
    file.write_text(json.dumps(config), encoding="utf-8")
    assert main(["train", str(file)]) == 0
    return out


def weights(out: Path) -> dict[str, torch.Tensor]:
    """Return the trained tensors a run wrote: the adapter, or the whole model."""
    adapter = out / "adapter_model.safetensors"
    return load_file(adapter if adapter.exists() else out / "model.safetensors")


def assert_close(left: Path, right: Path, tolerance: float) -> None:
    """Assert that two runs logged the same losses and wrote the same weights."""
    assert losses(left) == pytest.approx(losses(right), rel=tolerance, abs=tolerance)
    one, other = weights(left), weights(right)
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize("stage", list(STAGES))
@pytest.mark.parametrize("layout", [
    pytest.param({"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}, id="1x8"),
    pytest.param({"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}, id="2x4"),
])
def test_accumulation_does_not_change_the_run(layout: dict[str, int], stage: str, tiny_base: Path, world: Path,
                                              tmp_path: Path) -> None:
    """8x1 and 1x8 see the same eight examples a step; sums are divided by the step's own count, so all agree."""
    same = {"stage": stage, "dataset": DATA[stage], "finetuning_type": "full", "packing": False,
            **stage_keys(stage, world)}
    whole = train(tiny_base, world, tmp_path / "whole", **same, per_device_train_batch_size=8)
    parts = train(tiny_base, world, tmp_path / "parts", **same, **layout)
    assert_close(whole, parts, 2e-4)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_packing_does_not_change_the_run(method: str, tiny_base: Path, world: Path, tmp_path: Path) -> None:
    """All eight dialogues fit one packed row of 256 tokens: one row a step equals eight examples a step."""
    loose = train(tiny_base, world, tmp_path / "loose", finetuning_type=method, per_device_train_batch_size=8)
    packed = train(tiny_base, world, tmp_path / "packed", finetuning_type=method, per_device_train_batch_size=1,
                   packing=True, cutoff_len=256)
    assert_close(loose, packed, 2e-4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stage", list(STAGES))
def test_resumed_run_is_bit_identical(stage: str, method: str, tiny_base: Path, world: Path, tmp_path: Path) -> None:
    """Stopped after step 3 and started again, a run logs the same losses and writes the same bits, dropout included."""
    assert_resumes(tiny_base, world, tmp_path, stage=stage, dataset=DATA[stage], packing=False, **METHODS[method],
                   **stage_keys(stage, world))


@pytest.mark.parametrize(("stage", "cutoff_len"), [("sft", 64), ("pt", 96)])
def test_resumed_run_over_packs_or_blocks_is_bit_identical(stage: str, cutoff_len: int, tiny_base: Path, world: Path,
                                                           tmp_path: Path) -> None:
    """One packed row or block a step; the run stops within an epoch (of four rows, of two blocks) and goes on there."""
    assert_resumes(tiny_base, world, tmp_path, stage=stage, dataset=DATA[stage], packing=True, cutoff_len=cutoff_len,
                   per_device_train_batch_size=1, **METHODS["lora"])


def assert_resumes(base: Path, world: Path, folder: Path, **settings: Any) -> None:
    """Assert that six steps, and the last three of them anew from the checkpoint of the third, end alike."""
    same = {**settings, "save_steps": 3}
    never = train(base, world, folder / "never", **same)
    again = folder / "again"
    shutil.copytree(never, again, ignore=shutil.ignore_patterns("checkpoint-6", "*.safetensors"))
    shutil.copytree(never / "checkpoint-3", again / "checkpoint-3", dirs_exist_ok=True)
    train(base, world, again, **same)
    assert losses(again)[-3:] == losses(never)[-3:]
    one, other = weights(never), weights(again)
    assert all(torch.equal(one[name], other[name]) for name in one) and one.keys() == other.keys()


@pytest.mark.parametrize("stage", sorted({*STAGES} - {"rm"}))  # its export: tests/parity/test_export_classifier.py
def test_merged_model_equals_adapter(stage: str, tiny_base: Path, world: Path, tmp_path: Path) -> None:
    """After `danlu export` plain transformers gives the logits that base plus adapter gives, to 1e-4."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    adapter = train(tiny_base, world, tmp_path / "adapter", stage=stage, dataset=DATA[stage], finetuning_type="lora",
                    template="chatml", packing=False, **stage_keys(stage, world))
    merged = tmp_path / "merged"
    assert main(["export", "--model_name_or_path", str(tiny_base), "--adapter_name_or_path", str(adapter),
                 "--template", "chatml", "--export_dir", str(merged)]) == 0
    ids = torch.arange(5, 45)[None]
    base = AutoModelForCausalLM.from_pretrained(tiny_base)
    with torch.no_grad():
        plain = base(ids).logits
        with_adapter = PeftModel.from_pretrained(base, adapter).eval()(ids).logits
        after = AutoModelForCausalLM.from_pretrained(merged)(ids).logits
    assert (with_adapter - plain).abs().max() > 1e-2
    torch.testing.assert_close(after, with_adapter, rtol=0, atol=1e-4)
    assert AutoTokenizer.from_pretrained(merged).chat_template
