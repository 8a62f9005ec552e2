"""Run the losses of TRL's trainers on given log-probabilities and rewards; imports nothing of danlu.

    python trl_losses.py asked.npz answered.npz

The trainers' own methods run, unbound, on a stand-in for `self` that holds their settings; the model they call hands
out the given numbers. `asked` holds arrays and, as JSON, `cases`: name -> {"of": dpo | kto | reward | cpo | orpo, and
settings}. `answered` holds for each case its loss and the gradient of every given number: NAME.loss, NAME.grad.

Legend: P pairs, T positions after the shift. policy, reference (2P, T) per-token log-probabilities, chosen answers
first, 0 outside answers; mask (2P, T) True on answers. For kto: rows are answers, `mismatched` and
`reference_mismatched` (rows, T), `label` (rows,). For reward: `rewards` (2P,).
"""

import json
import sys
from collections import defaultdict
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from trl import DPOTrainer, KTOTrainer, RewardTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

PADDED = {"input_ids": "mask", "attention_mask": "mask", "completion_mask": "mask"}


class Given(nn.Module):
    """A model whose answer is known: `outputs` for its forward pass, `mismatched` where KTO asks for those."""

    is_gradient_checkpointing = False

    def __init__(self, logps: Tensor, mismatched: Tensor | None = None) -> None:
        super().__init__()
        self.logps, self.mismatched = logps, mismatched

    def forward(self, *, attention_mask: Tensor, **_: Any) -> SimpleNamespace:
        asks_mismatched = self.mismatched is not None and bool((attention_mask == 2).any())
        logps = self.mismatched if asks_mismatched else self.logps
        empty = torch.zeros_like(logps)
        return SimpleNamespace(log_probs=logps, entropy=empty, mean_logits=empty, is_top1=empty.bool())


def stand_in(**settings: Any) -> SimpleNamespace:
    """What a trainer's method reads of its `self`."""
    return SimpleNamespace(
        accelerator=Accelerator(cpu=True), _metrics={"train": defaultdict(list)}, _total_train_tokens=0, _tp_size=1,
        aux_loss_enabled=False, **settings)


def with_first(mask: Tensor) -> Tensor:
    """Return (rows, T + 1): the position that no row predicts comes first."""
    return torch.cat([torch.zeros_like(mask[:, :1]), mask], dim=1)


def dpo(arrays: dict[str, Tensor], policy: Tensor, settings: dict[str, Any]) -> Tensor:
    """TRL's DPOTrainer on pairs."""
    model = Given(policy)
    chosen = {"beta": 0.1, "label_smoothing": 0.0, "ld_alpha": None, "loss_types": ["sigmoid"],
              "loss_weights": [1.0]} | settings
    trainer = stand_in(model=model, ref_model=Given(arrays["reference"]), precompute_ref_logps=False,
                       f_divergence_type="reverse_kl", use_weighting=False,
                       args=SimpleNamespace(gradient_checkpointing_kwargs=None), **chosen)
    mask = with_first(arrays["mask"].long())
    inputs = dict.fromkeys(PADDED, mask)
    return DPOTrainer._compute_loss(trainer, model, inputs, False)


def kto(arrays: dict[str, Tensor], policy: Tensor, settings: dict[str, Any]) -> Tensor:
    """TRL's KTOTrainer on single answers; an attention mask of twos marks the mismatched batch."""
    model = Given(policy, arrays["mismatched"])
    chosen = {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0} | settings
    trainer = stand_in(model=model, ref_model=Given(arrays["reference"], arrays["reference_mismatched"]),
                       precompute_ref_logps=False, calculate_KL=True, loss_type="kto",
                       args=SimpleNamespace(gradient_checkpointing_kwargs=None), **chosen)
    trainer._compute_kl_logps = partial(KTOTrainer._compute_kl_logps, trainer)
    mask = with_first(arrays["mask"].long())
    other = with_first(torch.ones_like(arrays["mismatched"]).long())
    inputs = dict.fromkeys(PADDED, mask) | {
        "KL_input_ids": other, "KL_attention_mask": 2 * other, "KL_completion_mask": other,
        "label": arrays["label"].bool()}
    return KTOTrainer._compute_loss(trainer, model, inputs, False)


def reward(arrays: dict[str, Tensor], policy: Tensor, settings: dict[str, Any]) -> Tensor:
    """TRL's RewardTrainer on rewards."""

    def model(**_: Any) -> SimpleNamespace:
        return SimpleNamespace(logits=policy[:, None])

    trainer = stand_in(model=SimpleNamespace(training=True),
                       args=SimpleNamespace(center_rewards_coefficient=settings.get("centre")))
    inputs: dict[str, Any] = {"attention_mask": torch.ones(len(policy), 1)}
    if "margin" in settings:
        inputs["margin"] = torch.full((len(policy) // 2,), settings["margin"], dtype=policy.dtype)
    return RewardTrainer.compute_loss(trainer, model, inputs)


def means(policy: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean log-probability of chosen and rejected answers, as CPO and ORPO take them."""
    chosen, rejected = ((policy * mask).sum(-1) / mask.sum(-1)).chunk(2)
    return chosen, rejected


def cpo(arrays: dict[str, Tensor], policy: Tensor, settings: dict[str, Any]) -> Tensor:
    """TRL's CPOTrainer.cpo_loss: SimPO on means; with `ratios` the conservative sigmoid on log-ratios."""
    chosen = {"beta": 0.1, "alpha": 0.0, "label_smoothing": 0.0, "simpo_gamma": 0.5} | settings
    ratios = chosen.pop("ratios", False)
    answers = (policy - arrays["reference"]).sum(-1).chunk(2) if ratios else means(policy, arrays["mask"])
    return CPOTrainer.cpo_loss(stand_in(**chosen), *answers)[0].mean()


def orpo(arrays: dict[str, Tensor], policy: Tensor, settings: dict[str, Any]) -> Tensor:
    """TRL's ORPOTrainer.odds_ratio_loss, the term it takes from the NLL."""
    return -ORPOTrainer.odds_ratio_loss(stand_in(**settings), *means(policy, arrays["mask"]))[0].mean()


LOSSES = {"dpo": dpo, "kto": kto, "reward": reward, "cpo": cpo, "orpo": orpo}


def main() -> None:
    """Answer every case of the file."""
    asked, answered = sys.argv[1:]
    with np.load(asked) as file:
        cases = json.loads(str(file["cases"]))
        arrays = {name: torch.from_numpy(file[name]) for name in file.files if name != "cases"}
    results: dict[str, Any] = {}
    for name, settings in cases.items():
        kind = settings.pop("of")
        own = {key.partition("/")[2]: value for key, value in arrays.items() if key.startswith(f"{kind}/")}
        given = own if own else {key: value for key, value in arrays.items() if "/" not in key}
        policy = given["policy"].clone().requires_grad_()
        loss = LOSSES[kind](given, policy, settings)
        loss.backward()
        results |= {f"{name}.loss": loss.detach().numpy(), f"{name}.grad": policy.grad.numpy()}
    np.savez(answered, **results)


if __name__ == "__main__":
    main()
