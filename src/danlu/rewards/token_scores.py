"""Answers through a network that reads the policy's own token ids: same vocabulary, micro-batches, order kept."""

from collections.abc import Callable, Sequence
from itertools import groupby

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from danlu.core.console import warn
from danlu.core.errors import UserError
from danlu.core.stream import Example
from danlu.models.config import ModelConfig
from danlu.models.source import TOKENIZER_FILES, has_any, local_folder
from danlu.models.stream_tensors import StreamTensors
from danlu.models.tokenizer import load_tokenizer
from danlu.rewards.base import Answer, keys_renamed


def score_ids(
    network: Callable[[StreamTensors], Tensor], answers: Sequence[Answer], *, size: int, device: torch.device,
) -> list[float]:
    """Return the network's number for each prompt with its answer, `size` of like length in one forward pass.

    Answers to one prompt lie side by side, as one example, so that a network that can computes their prompt once.
    """
    longest: dict[tuple[int, ...], int] = {}
    for one in answers:
        longest[one.prompt_ids] = max(longest.get(one.prompt_ids, 0), len(one.prompt_ids) + len(one.ids))
    order = sorted(range(len(answers)), key=lambda index: (
        longest[answers[index].prompt_ids], answers[index].prompt_ids, len(answers[index].ids)))
    scores = [0.0] * len(answers)
    with torch.no_grad():
        for start in range(0, len(order), size):
            part = order[start:start + size]
            groups = groupby((answers[index] for index in part), key=lambda one: one.prompt_ids)
            stream = StreamTensors.of([example_of(*group) for _, group in groups]).to(device)
            for index, score in zip(part, network(stream).tolist(), strict=True):
                scores[index] = score
    return scores


def check_same_tokens(folders: Sequence[str], tokenizer: PreTrainedTokenizerBase, config: ModelConfig) -> None:
    """Refuse a reward model in whose vocabulary a token of the policy has another id, or none.

    folders  where its tokenizer may lie, the last one first
    """
    found = next((name for name in reversed(folders) if _has_tokenizer(name)), None)
    if found is None:
        warn(f"{folders[-1]} holds no tokenizer to compare with the policy's: make sure that both have the same tokens")
        return
    plain = config.model_copy(update={
        "model_name_or_path": found, "adapter_name_or_path": (), "adapter_folder": None, "add_tokens": (),
        "add_special_tokens": (), "new_special_tokens_config": None})
    with keys_renamed(model_name_or_path="reward_model"):
        theirs = load_tokenizer(plain).get_vocab()
    ours = tokenizer.get_vocab()
    differing = sorted((index, token) for token, index in ours.items() if theirs.get(token) != index)
    if differing:
        index, token = differing[0]
        other = f"{theirs[token]} there" if token in theirs else "unknown there"
        raise UserError(
            f"the reward model {found} has another tokenizer than the policy: {len(differing)} of {len(ours)} tokens "
            f"differ; {token!r} is {index} here and {other}", where="reward_model",
            fix="name a reward model trained from the policy's base; one of another family works as "
                "reward_model_type: classifier or api, which read text")


def _has_tokenizer(name: str) -> bool:
    folder = local_folder(name)
    return folder is None or has_any(folder, TOKENIZER_FILES)


def example_of(*answers: Answer) -> Example:
    """Return the prompt with each answer as a segment without targets."""
    segments = [np.array((*one.prompt_ids, *one.ids), np.int64) for one in answers]
    ids = np.concatenate(segments)
    return Example(ids, np.zeros(len(ids), np.bool_), lengths=tuple(map(len, segments)))
