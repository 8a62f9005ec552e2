"""Every stage runs on a stock model of each family; what danlu saves, plain transformers loads."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from danlu.stages.base import STAGES
from tests.e2e.test_stages_learn import DATA
from tests.online import stage_keys
from tests.reading import losses, metrics
from tests.tiny import CHATML, FAMILIES, save_tiny

CHATML_PROMPT = "<|im_start|>user\nwhat is rain<|im_end|>\n<|im_start|>assistant\n"
LESSON = {
    "pt": ("5", " what is rain wet</s>"),
    "sft": (CHATML_PROMPT, "wet<|im_end|>")}
CHOICE = (CHATML_PROMPT, "wet<|im_end|>", "蓝色<|im_end|>")
PACE: dict[str, dict[str, Any]] = {
    "rm": {"learning_rate": 3e-3, "max_steps": 20}, "ppo": {"max_steps": 25, "ppo_kl_coef": 0.01},
    "grpo": {"max_steps": 25, "grpo_beta": 0.01}, "kto": {"per_device_train_batch_size": 16, "pref_beta": 0.5}}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("stage", list(STAGES))
def test_family(stage: str, family: str, world: Path, tmp_path: Path, danlu: Callable[..., int]) -> None:
    """Full fine-tuning lowers the loss, and the saved folder is a stock model that remembers it."""
    base, out = save_tiny(tmp_path / "base", family, CHATML), tmp_path / "out"
    assert danlu("train", {
        "model_name_or_path": str(base), "stage": stage, "do_train": True, "finetuning_type": "full",
        "dataset": DATA[stage], "dataset_dir": str(world), "output_dir": str(out), "per_device_train_batch_size": 8,
        "learning_rate": 1e-2, "max_steps": 12, "logging_steps": 1, "save_strategy": "no", "packing": False,
        **stage_keys(stage, world), **PACE.get(stage, {})}) == 0
    trail = losses(out)
    assert trail[-1] < trail[0] - FALL[stage], trail
    tokenizer = AutoTokenizer.from_pretrained(out)
    model = AutoModelForCausalLM.from_pretrained(out).eval()
    assert model.config.model_type == family
    CHECKS[stage](stage, AutoModelForCausalLM.from_pretrained(base).eval(), model, tokenizer, out)


def nll(model: PreTrainedModel, tokenizer: Any, given: str, answer: str) -> float:
    """Return the mean negative log-likelihood of an answer."""
    before, after = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in (given, answer))
    with torch.no_grad():
        ids = torch.tensor([before + after])
        return float(model(ids, labels=torch.tensor([[-100] * len(before) + after])).loss)


def remembers(stage: str, before: PreTrainedModel, after: PreTrainedModel, tokenizer: Any, out: Path) -> None:
    """The text of the lesson is likelier than it was."""
    assert nll(after, tokenizer, *LESSON[stage]) < nll(before, tokenizer, *LESSON[stage]) - 0.2


def prefers(stage: str, before: PreTrainedModel, after: PreTrainedModel, tokenizer: Any, out: Path) -> None:
    """The chosen answer gains on the rejected one."""
    prompt, chosen, rejected = CHOICE
    leads = [nll(model, tokenizer, prompt, rejected) - nll(model, tokenizer, prompt, chosen)
             for model in (before, after)]
    assert leads[1] > leads[0] + 0.2, leads


def scores(stage: str, before: PreTrainedModel, after: PreTrainedModel, tokenizer: Any, out: Path) -> None:
    """The saved value head on plain transformers' last hidden states puts the chosen answer above the rejected one."""
    prompt, *answers = CHOICE
    head = load_file(out / "value_head.safetensors")
    rewards = []
    for answer in answers:
        ids = torch.tensor([tokenizer(prompt + answer, add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            last = after(ids, output_hidden_states=True).hidden_states[-1][0, -1]
        rewards.append(float(head["v_head.summary.weight"][0] @ last.float()))
    assert rewards[0] > rewards[1], rewards


def earns(stage: str, before: PreTrainedModel, after: PreTrainedModel, tokenizer: Any, out: Path) -> None:
    """The rewards of the last steps are above those of the first."""
    rewards = [row["reward"] for row in metrics(out)]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.1, rewards


CHECKS = {"pt": remembers, "sft": remembers, "rm": scores, "dpo": prefers, "kto": prefers, "ppo": earns, "grpo": earns}
FALL = {"pt": 0.3, "sft": 0.3, "rm": 0.3, "dpo": 0.1, "kto": 0.05, "ppo": -math.inf, "grpo": -math.inf}
"""How far the loss must fall; a preference starts at log 2, KTO at 1/2; with own answers it need not fall."""
