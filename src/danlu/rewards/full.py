"""A reward model with a base of its own that reads token ids: from stage rm, or a sequence classifier of one label."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn
from transformers import PreTrainedModel

from danlu.core.errors import UserError
from danlu.models.load import load_model
from danlu.models.packed_lm import PackedLM
from danlu.models.padded import PaddedBatch
from danlu.models.reward_lm import VALUE_HEAD, RewardLM, load_value_head
from danlu.models.source import local_folder
from danlu.models.stream_tensors import StreamTensors
from danlu.models.tokenizer import adapter_paths
from danlu.rewards.base import REWARDS, Answer, RewardContext, RewardSource, keys_renamed
from danlu.rewards.config import RewardKeys
from danlu.rewards.sequence_model import is_classifier, load_classifier, own_model_config, read_config
from danlu.rewards.token_scores import check_same_tokens, score_ids

NAMES = {"adapter_name_or_path": "reward_model_adapters", "model_name_or_path": "reward_model",
         "quantization_bit": "reward_model_quantization_bit"}


@REWARDS.register("full")
class FullReward(RewardSource):
    """r = w . h(last token) + b of a frozen model of its own."""

    name = "full"

    def __init__(self, network: nn.Module, size: int) -> None:
        self.network, self._size = network, size

    @classmethod
    def build(cls, source: str, keys: RewardKeys, context: RewardContext) -> Self:
        config = read_config(source, context)
        with keys_renamed(adapter_name_or_path="reward_model_adapters"):
            adapters = adapter_paths(context.model.model_copy(update={
                "adapter_name_or_path": keys.reward_model_adapters, "adapter_folder": None}))
        check_same_tokens([source, *adapters], context.tokenizer, context.model)
        if is_classifier(config):
            network: nn.Module = _classifier(source, keys, context, config)
        else:
            network = _reward_lm(source, adapters, keys, context)
        return cls(network, keys.reward_batch_size or context.micro_batch)

    def score(self, answers: Sequence[Answer]) -> list[float]:
        assert self.network is not None
        device = next(self.network.parameters()).device
        return score_ids(self.network.eval(), answers, size=self._size, device=device)


class LastTokenScore(nn.Module):
    """A decoder with a linear score head: the score of each segment's last token, whatever the pad token is."""

    def __init__(self, model: PreTrainedModel, head: nn.Module) -> None:
        super().__init__()
        self.model, self.head = model, head

    def forward(self, stream: StreamTensors) -> Tensor:
        """Return the score of each segment, (S,) float32."""
        batch = PaddedBatch.of(stream)
        hidden_SLH = self.model.base_model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).last_hidden_state
        scores: Tensor = self.head(batch.gather(hidden_SLH, stream.cu_seqlens[1:].long() - 1))
        return scores.float().squeeze(-1)


def _reward_lm(source: str, adapters: tuple[str, ...], keys: RewardKeys, context: RewardContext) -> RewardLM:
    folder = local_folder((source, *adapters)[-1])
    if folder is None or not (folder / VALUE_HEAD).is_file():
        raise UserError(
            f"{folder or source} holds no {VALUE_HEAD}: it was not trained as a reward model", where="reward_model",
            fix="name the folder that stage rm wrote; a model that stage rm trained with LoRA is named by its base "
                "(reward_model) and its adapter (reward_model_adapters)")
    model_keys = own_model_config(source, context).model_copy(update={"adapter_name_or_path": adapters})
    quantization = context.quantization.model_copy(update={"quantization_bit": keys.reward_model_quantization_bit})
    with keys_renamed(**NAMES):
        model = load_model(model_keys, quantization, context.adapter, tokenizer=context.tokenizer, trainable=False,
                           compute_dtype=context.compute_dtype, max_length=context.max_length)
        scorer = RewardLM(PackedLM(model))
    load_value_head(scorer, Path(folder))
    return scorer


def _classifier(source: str, keys: RewardKeys, context: RewardContext, config: Any) -> LastTokenScore:
    if keys.reward_model_adapters:
        raise UserError(f"{source} is a sequence classifier, and reward_model_adapters fit causal language models",
                        where="reward_model_adapters", fix="merge them into the classifier first")
    model = load_classifier(source, context, keys.reward_model_quantization_bit)
    head = getattr(model, "score", None)
    if config.num_labels != 1 or not isinstance(head, nn.Module):
        raise UserError(
            f"{source} is a {type(model).__name__} of {config.num_labels} labels; reward_model_type full reads the one "
            "score of an answer's last token", where="reward_model_type", fix="set reward_model_type: classifier")
    return LastTokenScore(model, head)
