"""Rewards from any transformers sequence classifier, with a tokenizer of its own: text in, one label's score out."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from danlu.core.console import notice
from danlu.core.errors import UserError, did_you_mean
from danlu.models.source import unreachable
from danlu.rewards.base import REWARDS, Answer, RewardContext, RewardSource
from danlu.rewards.config import RewardKeys
from danlu.rewards.sequence_model import is_classifier, load_classifier, read_config

POSITIVE = ("positive", "pos")
KIND = "sequence-classification"
UNBOUNDED = 10**6  # tokenizers without a limit say a number far above


@REWARDS.register("classifier")
class ClassifierReward(RewardSource):
    """The probability, or the logit, of one label."""

    name = "classifier"
    network: PreTrainedModel

    def __init__(
        self, network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, keys: RewardKeys, size: int,
    ) -> None:
        self.network, self._tokenizer, self._size = network, tokenizer, size
        self._label = label_index(network.config, keys.reward_label)
        self._kind = keys.reward_score or ("logit" if network.config.num_labels == 1 else "probability")
        self._text, self._limit = keys.reward_text, _limit(network, tokenizer)
        self._is_chat = self._text == "dialogue" and bool(tokenizer.chat_template)
        self._ends_at_answer = is_own_export(network.name_or_path)
        # what is cut from a text too long: the end of an answer, but the start of a dialogue, which ends on the answer
        tokenizer.truncation_side = "right" if self._text == "answer" else "left"

    @classmethod
    def build(cls, source: str, keys: RewardKeys, context: RewardContext) -> Self:
        if not is_classifier(read_config(source, context)):
            raise UserError(f"{source} is no sequence classifier", where="reward_model",
                            fix="name a model of class ...ForSequenceClassification; what stage rm wrote is of "
                                "reward_model_type lora or full")
        network = load_classifier(source, context, keys.reward_model_quantization_bit)
        try:
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=context.model.trust_remote_code)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise unreachable(source, error, "reward_model") from error
        made = cls(network, tokenizer, keys, keys.reward_batch_size or context.micro_batch)
        notice(f"reward classifier {source}: the {made._kind} of label {made.label}")
        return made

    @property
    def label(self) -> str:
        """The label whose score is the reward."""
        return str(self.network.config.id2label.get(self._label, self._label))

    def score(self, answers: Sequence[Answer]) -> list[float]:
        rows = [self._ids(answer) for answer in answers]
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]["input_ids"]))
        scores = [0.0] * len(rows)
        for start in range(0, len(order), self._size):
            part = order[start:start + self._size]
            for index, score in zip(part, self._forward([rows[index] for index in part]).tolist(), strict=True):
                scores[index] = score
        return scores

    def _ids(self, answer: Answer) -> dict[str, list[int]]:
        """Return the classifier's own tokens of an answer; say once when a text does not fit."""
        texts = self._texts(answer)
        # a chat template writes its own special tokens
        settings = {"add_special_tokens": not self._is_chat, "verbose": False}
        encoded = self._tokenizer(*texts, **settings)
        if self._limit is not None and len(encoded["input_ids"]) > self._limit:
            notice(f"some texts are longer than the {self._limit} tokens that the reward classifier reads: the "
                   f"{'end' if self._text == 'answer' else 'start'} of these is left out")
            encoded = self._tokenizer(*texts, truncation=True, max_length=self._limit, **settings)
        return {name: list(encoded[name]) for name in ("input_ids", "token_type_ids") if name in encoded}

    def _texts(self, answer: Answer) -> tuple[str, ...]:
        if self._text == "answer":
            return (answer.text,)
        prompt = "\n".join(one.content for one in answer.messages)
        if self._text == "pair":
            return (prompt, answer.text)
        if self._is_chat:
            turns = [{"role": one.role, "content": one.content} for one in answer.messages]
            turns.append({"role": "assistant", "content": answer.text})
            text = str(self._tokenizer.apply_chat_template(turns, tokenize=False))
            return (text.rstrip() if self._ends_at_answer else text,)
        return ("\n".join(text for text in (prompt, answer.text) if text),)

    def _forward(self, rows: Sequence[dict[str, list[int]]]) -> Tensor:
        """Return the scores of a batch, (B,) float32.

        Decoders read the score at the last token that is not the pad token, found by its id: the padding is therefore
        made of a token that no text of the batch holds.
        """
        longest = max(len(row["input_ids"]) for row in rows)
        filler = _filler(self.network, self._tokenizer, rows)
        self.network.config.pad_token_id = filler
        batch = {name: torch.tensor([row[name] + [filler if name == "input_ids" else 0] * (longest - len(row[name]))
                                     for row in rows]) for name in rows[0]}
        batch["attention_mask"] = torch.tensor(
            [[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in rows])
        device = self.network.device
        with torch.no_grad():
            out = self.network.eval()(**{name: values.to(device) for name, values in batch.items()})
        logits_BC: Tensor = out.logits.float()
        if self._kind == "logit":
            return logits_BC[:, self._label]
        probabilities_BC = logits_BC.sigmoid() if _is_independent(self.network.config) else logits_BC.softmax(-1)
        return probabilities_BC[:, self._label]


def label_index(config: Any, asked: str | None) -> int:
    """Return the label that the reward is read from: by name or index; unset: `positive`, else the last one."""
    names = {int(index): str(name) for index, name in config.id2label.items()}
    if asked is None:
        return next((index for index, name in names.items() if name.lower() in POSITIVE), config.num_labels - 1)
    by_name = {name.lower(): index for index, name in names.items()}
    if asked.lower() in by_name:
        return by_name[asked.lower()]
    if asked.isdecimal() and int(asked) < config.num_labels:
        return int(asked)
    raise UserError(f'the classifier has no label "{asked}"', where="reward_label",
                    fix=did_you_mean(asked, names.values()) + f"; or an index from 0 to {config.num_labels - 1}")


def is_own_export(source: str) -> bool:
    """Return whether danlu exported the classifier: its score is that of the token that ends the answer.

    Chat templates may write white space behind that token; other classifiers were trained with it.
    """
    report = Path(source) / "export_report.json"
    return report.is_file() and json.loads(report.read_text(encoding="utf-8")).get("kind") == KIND


def _is_independent(config: Any) -> bool:
    """Return whether labels do not compete: several may hold at once, or there is one only."""
    return bool(config.num_labels == 1 or config.problem_type == "multi_label_classification")


def _limit(network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return how many tokens the classifier reads; None without a bound."""
    limits = [tokenizer.model_max_length] if tokenizer.model_max_length < UNBOUNDED else []
    positions = getattr(network.config.get_text_config(), "max_position_embeddings", None)
    if positions:
        table = getattr(getattr(network.base_model, "embeddings", None), "position_embeddings", None)
        # RoBERTa counts positions from behind its padding index
        first = getattr(table, "padding_idx", None)
        limits.append(int(positions) - (0 if first is None else first + 1))
    return min(limits, default=None)


def _filler(
    network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict[str, list[int]]],
) -> int:
    used = {index for row in rows for index in row["input_ids"]}
    usual = tokenizer.pad_token_id if network.config.pad_token_id is None else network.config.pad_token_id
    if usual is not None and usual not in used:
        return int(usual)
    return next(index for index in range(len(used) + 1) if index not in used)
