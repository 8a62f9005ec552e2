"""danlu's DPO family, KTO and reward losses against TRL's own methods: the same numbers in, loss and gradient to 1e-6.

TRL lives in an environment of its own, as its pins need not be ours: `make parity-trl` builds `.bench/trl` and runs
this file; DANLU_TRL_PYTHON names another environment's python. danlu's side is the whole path of a stage: collate,
prepare (reference, KL baseline), loss, divided by its count.
"""

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from danlu.core.stream import Example
from danlu.losses import dpo as dpo_losses
from danlu.models.stream_tensors import StreamTensors
from danlu.stages.base import STAGES, Models

ROOT = Path(__file__).resolve().parents[2]
LENGTHS = [(7, 4), (3, 9), (5, 5), (12, 2), (1, 6), (8, 8)]
"""Tokens of the chosen and the rejected answer of each pair; one-token answers and equal lengths are among them."""
PROMPT = (1, 2, 3)
MISMATCHED = [4, 2, 6, 3, 5, 7, 2, 3, 4, 8, 6, 2]
LABELS = [1, 0, 0, 1, 1, 0, 1, 0, 0, 1, 0, 0]
SIGMOID: dict[str, Any] = {"loss_types": ["sigmoid"]}

PAIRS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "sigmoid": ({"pref_beta": 0.3}, SIGMOID | {"beta": 0.3}),
    "sigmoid_label_smoothing": ({"dpo_label_smoothing": 0.2},
                                {"of": "cpo", "ratios": True, "loss_type": "sigmoid", "label_smoothing": 0.2}),
    "hinge": ({"pref_loss": "hinge", "pref_beta": 0.4}, {"loss_types": ["hinge"], "beta": 0.4}),
    "ipo": ({"pref_loss": "ipo", "pref_beta": 0.2}, {"loss_types": ["ipo"], "beta": 0.2}),
    "robust": ({"pref_loss": "robust", "dpo_label_smoothing": 0.1},
               {"loss_types": ["robust"], "label_smoothing": 0.1}),
    "ld_alpha": ({"ld_alpha": 0.4}, SIGMOID | {"ld_alpha": 0.4}),
    "ld_alpha_0": ({"ld_alpha": 0.0, "pref_loss": "hinge"}, {"loss_types": ["hinge"], "ld_alpha": 0.0}),
    "simpo": ({"pref_loss": "simpo", "pref_beta": 2.0, "simpo_gamma": 1.4},
              {"of": "cpo", "loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.4}),
    "simpo_label_smoothing": ({"pref_loss": "simpo", "pref_beta": 2.0, "dpo_label_smoothing": 0.1},
                              {"of": "cpo", "loss_type": "simpo", "beta": 2.0, "label_smoothing": 0.1}),
}
"""Case -> keys of stage dpo, settings of TRL's DPO (or CPO) trainer."""
ANSWERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "kto": ({}, {}),
    "kto_beta": ({"pref_beta": 0.5}, {"beta": 0.5}),
    "kto_weights": ({"kto_chosen_weight": 1.5, "kto_rejected_weight": 0.4},
                    {"desirable_weight": 1.5, "undesirable_weight": 0.4}),
}
REWARDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "reward": ({}, {}),
    "reward_margin": ({"rm_margin": 0.7}, {"margin": 0.7}),
    "reward_centre": ({"rm_centre": 0.01, "rm_margin": 0.2}, {"centre": 0.01, "margin": 0.2}),
}
PARTS: dict[str, dict[str, Any]] = {
    "bco_pair": {"loss_types": ["bco_pair"], "beta": 0.3}, "apo_zero": {"loss_types": ["apo_zero"], "beta": 0.3},
    "orpo_odds": {"of": "orpo", "beta": 0.25}, "sft": {"loss_types": ["sft"]}}
"""What a part of a danlu loss equals."""


class Table(nn.Module):
    """A policy whose log-probability of each answer token, and reward at each, is given: tokens are numbered."""

    def __init__(self, numbers: Tensor) -> None:
        super().__init__()
        self.numbers = nn.Parameter(numbers)

    def forward(self, stream: StreamTensors, *, output: str = "reward") -> Tensor:
        """Return (R,) log-probabilities of the targets, or (S,) rewards at the segments' last tokens."""
        ends = stream.input_ids[stream.cu_seqlens[1:].long() - 1]
        return self.numbers[stream.loss_targets if output == "logps" else ends]


class Rows:
    """Answers as both sides want them: tokens numbered one by one, and the same numbers in padded rows."""

    def __init__(self, lengths: list[int]) -> None:
        starts = len(PROMPT) + 1 + np.concatenate([[0], np.cumsum(lengths)])
        self.answers = [np.arange(a, b) for a, b in zip(starts[:-1], starts[1:], strict=True)]
        self.size = int(starts[-1])
        self.mask = np.arange(max(lengths)) < np.array(lengths)[:, None]

    def padded(self, numbers: Tensor) -> Tensor:
        """Return (rows, T) with 0 where a row has ended."""
        rows = torch.zeros(self.mask.shape, dtype=numbers.dtype)
        rows[torch.from_numpy(self.mask)] = numbers[torch.from_numpy(np.concatenate(self.answers))]
        return rows


def dialogue(index: int, answers: list[np.ndarray], facts: tuple[float, ...] = ()) -> Example:
    """Return the prompt with each of the answers, as segments of one example."""
    ids = np.concatenate([np.concatenate([PROMPT, answer]) for answer in answers])
    lengths = tuple(len(PROMPT) + len(answer) for answer in answers)
    return Example(ids, ids > len(PROMPT), lengths=lengths, index=index, facts=facts)


def log_probabilities(size: int, seed: int) -> Tensor:
    """Return float64 numbers like a small model's."""
    draw = torch.Generator().manual_seed(seed)
    return -torch.rand(size, dtype=torch.float64, generator=draw) * 3 - 0.01


PAIR_ROWS = Rows([pair[0] for pair in LENGTHS] + [pair[1] for pair in LENGTHS])
POLICY, REFERENCE = (log_probabilities(PAIR_ROWS.size, seed) for seed in (0, 1))
KTO_ROWS = Rows([n for pair in LENGTHS for n in pair] + MISMATCHED)
KTO_POLICY, KTO_REFERENCE = (log_probabilities(KTO_ROWS.size, seed) for seed in (2, 3))


@pytest.fixture(scope="module")
def trl(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, np.ndarray]:
    """The losses and gradients of every case from TRL, computed in one process of its environment."""
    python = Path(os.environ.get("DANLU_TRL_PYTHON", ROOT / ".bench/trl/bin/python"))
    if not python.is_file():
        pytest.skip("TRL's environment absent (make parity-trl builds it)")
    rows = len(LABELS)
    kto = {"policy": KTO_POLICY, "reference": KTO_REFERENCE}
    padded = {name: KTO_ROWS.padded(numbers) for name, numbers in kto.items()}
    arrays = {
        "policy": PAIR_ROWS.padded(POLICY), "reference": PAIR_ROWS.padded(REFERENCE), "mask": PAIR_ROWS.mask,
        "kto/policy": padded["policy"][:rows], "kto/mismatched": padded["policy"][rows:],
        "kto/reference": padded["reference"][:rows], "kto/reference_mismatched": padded["reference"][rows:],
        "kto/mask": KTO_ROWS.mask[:rows], "kto/label": np.array(LABELS),
        "reward/policy": POLICY[[answer[-1] for answer in PAIR_ROWS.answers]]}
    cases = {name: {"of": "dpo"} | theirs for name, (_, theirs) in PAIRS.items()}
    cases |= {name: {"of": "dpo"} | theirs for name, theirs in PARTS.items()}
    cases |= {name: {"of": "kto"} | theirs for name, (_, theirs) in ANSWERS.items()}
    cases |= {name: {"of": "reward"} | theirs for name, (_, theirs) in REWARDS.items()}
    folder = tmp_path_factory.mktemp("trl")
    np.savez(folder / "asked.npz", cases=json.dumps(cases), **{k: np.asarray(v) for k, v in arrays.items()})
    run = subprocess.run(
        [python, ROOT / "benchmarks/peers/trl_losses.py", folder / "asked.npz", folder / "answered.npz"],
        capture_output=True, text=True, cwd=folder, env=os.environ | {"ACCELERATE_USE_CPU": "true"})
    assert run.returncode == 0, run.stderr[-3000:]
    with np.load(folder / "answered.npz") as file:
        return {name: file[name] for name in file.files}


def stage_loss(name: str, keys: Mapping[str, Any], policy: Tensor, reference: Tensor | None,
               examples: list[Example]) -> tuple[float, Tensor]:
    """Return the mean loss of one step of a stage, and the gradient of every given number."""
    kind = STAGES[name]
    models = Models(Table(policy.clone()), None if reference is None else Table(reference))
    stage = kind(kind.Config.model_validate(dict(keys)), models)
    with torch.no_grad():
        (minibatch,) = list(stage.prepare(examples))
    micro = stage.collate(minibatch)
    loss = stage.loss(micro).total / stage.count(micro)
    (gradient,) = torch.autograd.grad(loss, [models.policy.numbers])
    return loss.item(), gradient


def pairs_examples(facts: tuple[float, ...] = ()) -> list[Example]:
    """The pairs as danlu lays them out: chosen, rejected."""
    number = len(LENGTHS)
    return [dialogue(i, [PAIR_ROWS.answers[i], PAIR_ROWS.answers[number + i]], facts) for i in range(number)]


def agree(ours: tuple[float, Tensor], theirs: Mapping[str, np.ndarray], name: str, rows: Rows, number: int) -> None:
    """Hold loss and the gradient of the first `number` rows to 1e-6."""
    loss, gradient = ours
    assert abs(loss - float(theirs[f"{name}.loss"])) < 1e-6
    mask = rows.mask[:number]
    assert np.abs(theirs[f"{name}.grad"])[mask].max() > 1e-4
    np.testing.assert_allclose(rows.padded(gradient)[:number].numpy()[mask], theirs[f"{name}.grad"][mask], atol=1e-6)


@pytest.mark.parametrize("name", PAIRS)
def test_pairs(name: str, trl: Mapping[str, np.ndarray]) -> None:
    """Every loss on pairs that both have: sigmoid, cDPO, hinge, IPO, robust, LD-DPO, SimPO."""
    ours = stage_loss("dpo", PAIRS[name][0], POLICY, REFERENCE, pairs_examples())
    agree(ours, trl, name, PAIR_ROWS, 2 * len(LENGTHS))


@pytest.mark.parametrize("name", ANSWERS)
def test_kto(name: str, trl: Mapping[str, np.ndarray]) -> None:
    """KTO with its KL baseline from mismatched answers, beta and both weights."""
    rows = len(LABELS)
    examples = [dialogue(i, [KTO_ROWS.answers[i], KTO_ROWS.answers[rows + i]], (float(label),))
                for i, label in enumerate(LABELS)]
    ours = stage_loss("kto", ANSWERS[name][0], KTO_POLICY, KTO_REFERENCE, examples)
    agree(ours, trl, name, KTO_ROWS, rows)


@pytest.mark.parametrize("name", REWARDS)
def test_rewards(name: str, trl: Mapping[str, np.ndarray]) -> None:
    """Bradley-Terry with margin and centring."""
    own_margin, num_good = 0.0, 1.0
    loss, gradient = stage_loss("rm", REWARDS[name][0], POLICY, None, pairs_examples((own_margin, num_good)))
    assert abs(loss - float(trl[f"{name}.loss"])) < 1e-6
    last = [answer[-1] for answer in PAIR_ROWS.answers]
    np.testing.assert_allclose(gradient[last].numpy(), trl[f"{name}.grad"], atol=1e-6)


def answer_sums(mean: bool = False) -> tuple[Tensor, Tensor]:
    """Return log-ratios of chosen and rejected answers, or mean log-probabilities."""
    numbers = PAIR_ROWS.padded(POLICY if mean else POLICY - REFERENCE).sum(1)
    numbers = numbers / torch.from_numpy(PAIR_ROWS.mask.sum(1)) if mean else numbers
    chosen, rejected = numbers.chunk(2)
    return chosen, rejected


def test_parts(trl: Mapping[str, np.ndarray]) -> None:
    """Where danlu's loss differs by a documented choice, the part they share is equal.

    BCO: without danlu's running mean of rewards. kto_pair: with both baselines 0 it is APO-zero. ORPO: its odds-ratio
    term. pref_ftx: a mean over all chosen tokens there, over answers here.
    """
    chosen, rejected = answer_sums()
    zero = torch.zeros(())
    bco = dpo_losses.bco_pair_loss(0.3 * chosen, 0.3 * rejected, shift=zero).mean()
    apo = dpo_losses.kto_pair_loss(chosen, rejected, torch.zeros_like(chosen), torch.zeros_like(rejected), beta=0.3,
                                   chosen_kl=zero, rejected_kl=zero).mean()
    odds = 0.25 * dpo_losses.orpo_odds_loss(*answer_sums(mean=True)).mean()
    lengths = torch.tensor([pair[0] for pair in LENGTHS])
    nll = -(answer_sums(mean=True)[0] * lengths).sum() / lengths.sum()
    for name, ours in (("bco_pair", bco), ("apo_zero", apo), ("orpo_odds", odds), ("sft", nll)):
        assert abs(ours.item() - float(trl[f"{name}.loss"])) < 1e-6, name
