"""Every stage runs on a stock model of each family; what danlu saves, plain transformers loads."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from danlu.stages.base import STAGES
from tests.e2e.test_stages_learn import DATA
from tests.reading import losses
from tests.tiny import CHATML, FAMILIES, save_tiny

LESSON = {
    "pt": ("5", " what is rain wet</s>"),
    "sft": ("<|im_start|>user\nwhat is rain<|im_end|>\n<|im_start|>assistant\n", "wet<|im_end|>")}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("stage", list(STAGES))
def test_family(stage: str, family: str, world: Path, tmp_path: Path, danlu: Callable[..., int]) -> None:
    """Full fine-tuning lowers the loss, and the saved folder is a stock model that remembers it."""
    base, out = save_tiny(tmp_path / "base", family, CHATML), tmp_path / "out"
    assert danlu("train", {
        "model_name_or_path": str(base), "stage": stage, "do_train": True, "finetuning_type": "full",
        "dataset": DATA[stage], "dataset_dir": str(world), "output_dir": str(out), "per_device_train_batch_size": 8,
        "learning_rate": 1e-2, "max_steps": 12, "logging_steps": 1, "save_strategy": "no", "packing": False}) == 0
    trail = losses(out)
    assert trail[-1] < trail[0] - 0.3, trail
    tokenizer = AutoTokenizer.from_pretrained(out)
    model = AutoModelForCausalLM.from_pretrained(out).eval()
    assert model.config.model_type == family
    given, learnt = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in LESSON[stage])
    ids, labels = torch.tensor([given + learnt]), torch.tensor([[-100] * len(given) + learnt])
    with torch.no_grad():
        before = AutoModelForCausalLM.from_pretrained(base).eval()(ids, labels=labels).loss
        after = model(ids, labels=labels).loss
    assert after < before - 0.2, (before, after)
