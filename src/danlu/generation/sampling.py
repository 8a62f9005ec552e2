"""The choice of the next token, one random number per row and step. Knows nothing of models or text.

Shape legend: B rows, T tokens so far (left-padded), V vocabulary.

Every row draws from its own generator, so that its answer does not depend on its neighbours in the batch:
    token = min { v : cdf(v) > u },   u ~ U[0, 1)        # inverse transform sampling, Devroye 1986, II.2
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from danlu.generation.config import GenerationConfig


def penalise_repetition(scores_BV: Tensor, input_ids_BT: Tensor, is_real_BT: Tensor, penalty: float) -> Tensor:
    """Divide positive and multiply negative scores of tokens already seen by `penalty` (Keskar et al. 2019, 4.1).

    Padding is not "seen", or a row's answer would change with the length of its neighbours.
    """
    seen_BV = torch.zeros_like(scores_BV).scatter_reduce_(1, input_ids_BT, is_real_BT.to(scores_BV), "amax")
    penalised_BV = torch.where(scores_BV < 0, scores_BV * penalty, scores_BV / penalty)
    return torch.where(seen_BV > 0, penalised_BV, scores_BV)


class RowSampler(LogitsProcessor):  # type: ignore[misc]
    """Replace the scores by a single admissible token per row: the best one, or one drawn from the row's own stream."""

    def __init__(
        self, settings: GenerationConfig, pads: Sequence[int], seeds: Sequence[Sequence[int]], max_steps: int,
        with_logps: bool = False,
    ) -> None:
        self._settings, self._pads, self._step = settings, torch.tensor(list(pads)), 0
        self._draws = np.stack([np.random.default_rng(list(seed)).random(max_steps) for seed in seeds])
        self.logps: list[Tensor] | None = [] if with_logps else None
        self._warpers: list[LogitsProcessor] = []
        if settings.do_sample:
            self._warpers.append(TemperatureLogitsWarper(settings.temperature))
            if settings.top_k > 0:
                self._warpers.append(TopKLogitsWarper(settings.top_k))
            if settings.top_p < 1:
                self._warpers.append(TopPLogitsWarper(settings.top_p))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores_BV that are 0 at the chosen token and -inf elsewhere."""
        raw_BV, penalty = scores, self._settings.repetition_penalty
        if penalty != 1.0:
            is_real_BT = torch.arange(input_ids.shape[1]) >= self._pads[:, None]
            scores = penalise_repetition(scores, input_ids, is_real_BT.to(scores.device), penalty)
        for warp in self._warpers:
            scores = warp(input_ids, scores)
        chosen_B1 = self._draw(scores) if self._settings.do_sample else scores.argmax(-1, keepdim=True)
        if self.logps is not None:
            self.logps.append(raw_BV.float().log_softmax(-1).gather(1, chosen_B1).squeeze(1).cpu())
        self._step += 1
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen_B1, 0.0)

    def _draw(self, scores_BV: Tensor) -> Tensor:
        cdf_BV = scores_BV.double().softmax(-1).cumsum(-1)
        draws_B1 = torch.from_numpy(self._draws[:, self._step : self._step + 1]).to(cdf_BV)
        passed_B1 = (cdf_BV <= draws_B1 * cdf_BV[:, -1:]).sum(-1, keepdim=True)
        return passed_B1.clamp_(max=scores_BV.shape[1] - 1)
