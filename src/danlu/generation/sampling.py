"""The choice of the next token, one random number per row and step. Knows nothing of models or text.

Shape legend: B rows, T tokens so far (left-padded), V vocabulary, C blocks of the vocabulary.

Every row draws from its own stream, so that its answer does not depend on its neighbours in the batch:
    token = min { v : cdf(v) > u },   u ~ U[0, 1)        # inverse transform sampling, Devroye 1986, II.2
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from transformers import LogitsProcessor
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from danlu.generation.config import GenerationConfig

BLOCK = 128  # tokens whose probabilities are first looked at as one sum


def row_stream(seed: Sequence[int], steps: int) -> NDArray[np.float64]:
    """Return the first `steps` numbers of the random stream named by `seed`, each in [0, 1)."""
    return np.random.default_rng(list(seed)).random(steps)


def penalise_repetition(scores_BV: Tensor, seen_BV: Tensor, penalty: float) -> Tensor:
    """Divide positive and multiply negative scores of tokens already seen by `penalty` (Keskar et al. 2019, 4.1)."""
    penalised_BV = torch.where(scores_BV < 0, scores_BV * penalty, scores_BV / penalty)
    return torch.where(seen_BV, penalised_BV, scores_BV)


def invert_cdf(probabilities_BV: Tensor, uniforms_B: Tensor) -> Tensor:
    """Return min { v : cdf(v) > u total } of each row, (B,); a token of probability 0 is never returned.

    The sum runs over blocks of the vocabulary first and inside one block after, in float64, so that the whole
    vocabulary is neither sorted nor summed up token by token.
    """
    spare = -probabilities_BV.shape[1] % BLOCK
    blocks_BCN = (F.pad(probabilities_BV, (0, spare)) if spare else probabilities_BV).unflatten(1, (-1, BLOCK))
    block_cdf_BC = blocks_BCN.sum(-1).double().cumsum(-1)
    target_B1 = _below(uniforms_B.double()[:, None] * block_cdf_BC[:, -1:], block_cdf_BC[:, -1:])
    block_B1 = (block_cdf_BC <= target_B1).sum(-1, keepdim=True)
    before_B1 = F.pad(block_cdf_BC, (1, 0)).gather(1, block_B1)
    chosen_BN = blocks_BCN.gather(1, block_B1[:, :, None].expand(-1, -1, BLOCK)).squeeze(1)
    cdf_BN = chosen_BN.double().cumsum(-1)
    inside_B1 = (cdf_BN <= _below(target_B1 - before_B1, cdf_BN[:, -1:])).sum(-1, keepdim=True)
    return (block_B1 * BLOCK + inside_B1).squeeze(1)


def _below(value: Tensor, total: Tensor) -> Tensor:
    """Return `value`, at most the number before `total`: rounding must not carry a draw past the last token."""
    return torch.minimum(value, torch.nextafter(total, torch.zeros_like(total)))


class TokenChooser:
    """Chooses a token per row from logits, as the settings say, and gives its log-probability under the model."""

    def __init__(self, settings: GenerationConfig) -> None:
        self._draws, self._penalty = settings.do_sample, settings.repetition_penalty
        self._warpers: list[LogitsProcessor] = []
        if settings.do_sample and settings.temperature != 1.0:
            self._warpers.append(TemperatureLogitsWarper(settings.temperature))
        if settings.do_sample and settings.top_k > 0:
            self._warpers.append(TopKLogitsWarper(settings.top_k))
        if settings.do_sample and settings.top_p < 1:
            self._warpers.append(TopPLogitsWarper(settings.top_p))

    @property
    def needs_seen(self) -> bool:
        """Return whether the choice depends on the tokens that occurred."""
        return self._penalty != 1.0

    def __call__(
        self, logits_BV: Tensor, uniforms_B: Tensor, seen_BV: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the tokens, (B,), and log pi(token | before) of the unscaled policy, (B,) float32."""
        raw_BV = logits_BV.to(torch.promote_types(logits_BV.dtype, torch.float32))
        scores_BV = raw_BV if seen_BV is None else penalise_repetition(raw_BV, seen_BV, self._penalty)
        for warp in self._warpers:
            scores_BV = warp(None, scores_BV)
        if not self._draws:
            tokens_B = scores_BV.argmax(-1)
            return tokens_B, _logps(raw_BV, tokens_B)
        probabilities_BV = scores_BV.softmax(-1)
        tokens_B = invert_cdf(probabilities_BV, uniforms_B)
        if scores_BV is raw_BV:  # the drawn distribution is the policy's own: nothing is exponentiated twice
            return tokens_B, probabilities_BV.gather(1, tokens_B[:, None]).squeeze(1).log().float()
        return tokens_B, _logps(raw_BV, tokens_B)


def _logps(raw_BV: Tensor, tokens_B: Tensor) -> Tensor:
    return (raw_BV.gather(1, tokens_B[:, None]).squeeze(1) - raw_BV.logsumexp(-1)).float()


def check_finite(logps_B: Tensor) -> Tensor:
    """Return log-probabilities of drawn tokens. Raises FloatingPointError where a model's logits were not numbers."""
    if not logps_B.isfinite().all():
        raise FloatingPointError(f"a drawn token has log-probability {logps_B.min()}: the model's logits are broken")
    return logps_B


class RowSampler(LogitsProcessor):  # type: ignore[misc]
    """Replace the scores by a single admissible token per row: the best one, or one drawn from the row's own stream."""

    def __init__(
        self, settings: GenerationConfig, pads: Sequence[int], seeds: Sequence[Sequence[int]], max_steps: int,
        with_logps: bool = False,
    ) -> None:
        self._choose, self._pads, self._step = TokenChooser(settings), torch.tensor(list(pads)), 0
        self._draws = torch.from_numpy(np.stack([row_stream(seed, max_steps) for seed in seeds]))
        self.logps: list[Tensor] | None = [] if with_logps else None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores_BV that are 0 at the chosen token and -inf elsewhere."""
        seen_BV = self._seen(input_ids, scores) if self._choose.needs_seen else None
        uniforms_B = self._draws[:, self._step].to(scores.device)
        chosen_B, logps_B = self._choose(scores, uniforms_B, seen_BV)
        if self.logps is not None:
            self.logps.append(check_finite(logps_B.cpu()))
        self._step += 1
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen_B[:, None], 0.0)

    def _seen(self, input_ids_BT: Tensor, scores_BV: Tensor) -> Tensor:
        """Return which tokens occurred. Padding did not, or a row's answer would change with its neighbours' length."""
        is_real_BT = (torch.arange(input_ids_BT.shape[1]) >= self._pads[:, None]).to(scores_BV)
        return torch.zeros_like(scores_BV).scatter_reduce_(1, input_ids_BT, is_real_BT, "amax") > 0
