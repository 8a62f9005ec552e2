"""A reward model as a second adapter on the policy's own base: no second base in memory."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from peft import PeftModel

from danlu.core.console import warn
from danlu.core.errors import UserError
from danlu.models.adapter_switch import load_second_adapter, using_adapter
from danlu.models.attention import IMPLEMENTATION
from danlu.models.merged import listed, merged_below, read_merged
from danlu.models.packed_lm import PackedLM
from danlu.models.pissa import is_pissa
from danlu.models.proof import base_of, evaluating
from danlu.models.reward_lm import VALUE_HEAD, RewardLM, load_value_head
from danlu.models.source import check_adapter_source, local_folder
from danlu.rewards.base import REWARDS, Answer, RewardContext, RewardSource, keys_renamed
from danlu.rewards.config import RewardKeys
from danlu.rewards.token_scores import check_same_tokens, score_ids


@REWARDS.register("lora")
class LoraReward(RewardSource):
    """r = w . h(last token) + b with the reward adapter in the policy's place; the policy's is back afterwards."""

    name = "lora"

    def __init__(self, policy: PeftModel, adapter: str, folder: Path, size: int) -> None:
        self._policy, self._adapter, self._size = policy, adapter, size
        with using_adapter(policy, adapter):  # keeps a vocabulary head that trains from being frozen
            self._scorer = RewardLM(PackedLM(policy))
        load_value_head(self._scorer, folder)
        self.network = self._scorer.value_head

    @classmethod
    def build(cls, source: str, keys: RewardKeys, context: RewardContext) -> Self:
        folder = _checked_folder(source, context)
        policy = context.policy
        assert isinstance(policy, PeftModel)
        base = str(context.model.model_name_or_path)
        _check_merged(folder, policy, base)
        check_same_tokens([base, str(folder)], context.tokenizer, context.model)
        name, is_training = _free_name(policy), policy.training
        with keys_renamed(adapter_name_or_path="reward_model"):
            load_second_adapter(policy, str(folder), name, base)
        policy.train(is_training)
        return cls(policy, name, folder, keys.reward_batch_size or context.micro_batch)

    def score(self, answers: Sequence[Answer]) -> list[float]:
        device = next(self._policy.parameters()).device
        with evaluating(self._policy), using_adapter(self._policy, self._adapter), self._own_attention():
            return score_ids(self._scorer, answers, size=self._size, device=device)

    @contextmanager
    def _own_attention(self) -> Iterator[None]:
        """Run packed where the reward's forward is; the policy, which may be generating, keeps what it has."""
        base = base_of(self._policy)
        former = base.config._attn_implementation
        if self._scorer.lm.report().layout == "packed" and former != IMPLEMENTATION:
            base.set_attn_implementation(IMPLEMENTATION)
        try:
            yield
        finally:
            if base.config._attn_implementation != former:
                base.set_attn_implementation(former)


def _checked_folder(source: str, context: RewardContext) -> Path:
    """Return the adapter's folder. Raises UserError when it is none, or the policy has no place for it."""
    with keys_renamed(adapter_name_or_path="reward_model", model_name_or_path="reward_model"):
        folder = local_folder(check_adapter_source(source))
    if folder is None:
        raise UserError(f"{source} is no folder here", where="reward_model",
                        fix="download the adapter and name its folder")
    if not (folder / VALUE_HEAD).is_file():
        raise UserError(f"{folder} holds no {VALUE_HEAD}: this adapter was not trained as a reward model",
                        where="reward_model", fix="name the folder that stage rm wrote")
    base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")).get("base_model_name_or_path")
    instead = (f"set reward_model_type: full, reward_model: {base or 'the base of the reward adapter'} and "
               f"reward_model_adapters: {folder}")
    if not isinstance(context.policy, PeftModel):
        raise UserError(
            f"{folder} is an adapter for the policy's own base, and this policy trains "
            f"{context.adapter.finetuning_type} weights: there is no frozen base to put it on",
            where="reward_model_type", fix=f"{instead}; or set finetuning_type: lora")
    if is_pissa(context.policy):
        raise UserError(f"pissa_init takes its start out of the base, so that {folder} does not fit it",
                        where="reward_model_type", fix=f"{instead}; or leave pissa_init out")
    return folder


def _check_merged(folder: Path, policy: PeftModel, base: str) -> None:
    """Refuse a reward adapter trained above other merged adapters than the policy's."""
    needs, here = read_merged(str(folder)), merged_below(policy)
    if needs is None:
        if here:
            warn(f"{folder} does not record what was merged below it: make sure that it was {listed(here)}")
        return
    if [one.sha256 for one in needs] == [one.sha256 for one in here]:
        return
    adapters = ",".join(one.adapter for one in needs)
    start = (f"start the policy from the same: adapter_name_or_path: {adapters} with create_new_adapter: true" if needs
             else "train the reward model with the adapters that the policy starts from")
    raise UserError(
        f"the reward adapter {folder} was trained above {listed(needs)}, and the policy trains above {listed(here)}",
        where="reward_model", fix=f"{start}; or set reward_model_type: full, reward_model: {base}, "
                                  f"reward_model_adapters: {','.join(filter(None, [adapters, str(folder)]))}")


def _free_name(policy: PeftModel) -> str:
    number = 1
    while (name := "reward" if number == 1 else f"reward_{number}") in policy.peft_config:
        number += 1
    return name
