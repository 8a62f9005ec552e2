"""A reward model as transformers' own sequence classifier: one label, whose score is the reward.

The classifier reads its score at the last token that is not padding, so that a padding token never ends an answer.
Its score has no constant in most classes; a constant changes no comparison of rewards, and is told.
"""

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from danlu.core.console import notice, say
from danlu.core.errors import CapabilityError, DataError
from danlu.core.records import Conversation, Origin
from danlu.export.certificate import DIALOGUE, PROBES
from danlu.models.config import ModelConfig
from danlu.models.proof import body_of
from danlu.models.reward_lm import VALUE_HEAD, read_value_head
from danlu.models.source import local_folder
from danlu.models.tokenizer import adapter_paths
from danlu.templates import EncodeOptions
from danlu.templates.base import ChatTemplate

ADAPTER = "adapter"
LABEL = "reward"


@dataclass(frozen=True, slots=True)
class Classifier:
    """The classifier, what was probed, the rewards expected there, and the constant that it leaves out."""

    model: PreTrainedModel
    probes: tuple[tuple[int, ...], ...]
    rewards: Tensor
    constant: float

    @property
    def ends(self) -> tuple[int, ...]:
        """Token ids at which rewards are read."""
        return tuple(sorted({ids[-1] for ids in self.probes}))


def value_head_folder(source: ModelConfig) -> Path | None:
    """Return the folder that holds the value head of what is exported; None for a language model."""
    folder = local_folder((adapter_paths(source) or (str(source.model_name_or_path),))[-1])
    return folder if folder is not None and (folder / VALUE_HEAD).is_file() else None


def as_classifier(
    network: PreTrainedModel, head_folder: Path, tokenizer: PreTrainedTokenizerBase, template: ChatTemplate | None,
) -> Classifier:
    """Return the network's body under transformers' classification class, with the value head as its score.

    Gives model and tokenizer a padding token that ends no answer. Raises CapabilityError when transformers has no such
    class for the family, or one that is built otherwise.
    """
    head, body = read_value_head(network, head_folder), body_of(network)
    probes = _probes(tokenizer, template)
    pad_id = _padding(tokenizer, {ids[-1] for ids in probes}, network.get_input_embeddings().weight.shape[0])
    model = _empty_classifier(network, pad_id)
    setattr(model, model.base_model_prefix, body)
    score: Any = model.score
    model.score = nn.Linear(head.in_features, 1, bias=score.bias is not None, dtype=network.dtype)
    with torch.no_grad():
        model.score.weight.copy_(head.weight)
        if score.bias is not None:
            model.score.bias.copy_(head.bias)
        body.eval()
        device = next(body.parameters()).device
        hidden = [body(torch.tensor([ids], device=device), use_cache=False).last_hidden_state[0, -1] for ids in probes]
        rewards = head(torch.stack(hidden).float().cpu()).squeeze(-1)
    constant = 0.0 if score.bias is not None else head.bias.item()
    if constant:
        notice(f"{type(model).__name__} has no place for the value head's constant {constant:.6g}: exported rewards "
               "are lower by it, all alike, which changes no comparison between answers")
    return Classifier(model.eval(), probes, rewards - constant, constant)


def saved_rewards(folder: Path, found: Classifier, dtype: torch.dtype) -> Tensor:
    """Return the rewards of all probes, in one padded batch, as plain transformers gives them."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype).eval()
    longest = max(map(len, found.probes))
    pad = model.config.get_text_config().pad_token_id
    ids = torch.tensor([[*one, *[pad] * (longest - len(one))] for one in found.probes])
    mask = torch.tensor([[1] * len(one) + [0] * (longest - len(one)) for one in found.probes])
    with torch.no_grad():
        scores: Tensor = model(input_ids=ids, attention_mask=mask).logits[:, 0].float()
    return scores


def write_adapter(folder: Path, adapter: Path, found: Classifier) -> bool:
    """Write the adapter as peft keeps one for sequence classification, the score in it; say why when it cannot be."""
    state = load_file(adapter / "adapter_model.safetensors")
    inside = f"base_model.model.{found.model.base_model_prefix}."
    if outside := sorted(name for name in state if not name.startswith(inside)):
        say(f"no peft adapter for sequence classification: {outside[0]} lies outside the body")
        return False
    settings = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    settings |= {"task_type": "SEQ_CLS", "modules_to_save": [*(settings.get("modules_to_save") or []), "score"]}
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    weight = found.model.get_submodule("score").get_parameter("weight").detach().cpu().float().contiguous()
    save_file({**state, "base_model.model.score.weight": weight}, folder / "adapter_model.safetensors",
              metadata={"format": "pt"})
    return True


def _empty_classifier(network: PreTrainedModel, pad_id: int) -> PreTrainedModel:
    """Return the classification class of the family, with one label and without weights."""
    settings = copy.deepcopy(network.config)
    settings.num_labels, settings.id2label, settings.label2id = 1, {0: LABEL}, {LABEL: 0}
    settings.pad_token_id = settings.get_text_config().pad_token_id = pad_id
    kind: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(settings), None)
    name = type(network).__name__
    if kind is None:
        raise _unfit(f"transformers has no sequence classifier of the family of {name}")
    with torch.device("meta"):
        model: PreTrainedModel = kind(settings)
    score, body = getattr(model, "score", None), body_of(network)
    if not isinstance(score, nn.Linear) or type(getattr(model, model.base_model_prefix)) is not type(body):
        raise _unfit(f"{kind.__name__} is no body of {name} with one score of its last token")
    return model


def _unfit(what: str) -> CapabilityError:
    return CapabilityError(what, where="model_name_or_path", fix="use the reward model as danlu wrote it: `danlu eval` "
                           "scores with it, and stage ppo takes it as reward_model")


def _probes(tokenizer: PreTrainedTokenizerBase, template: ChatTemplate | None) -> tuple[tuple[int, ...], ...]:
    """Return a few dialogues as token ids, each up to the token that ends its answer."""
    if template is None:
        return tuple(tuple(tokenizer(one[-1].content)["input_ids"]) for one in PROBES)
    found = []
    for messages in (DIALOGUE, *((*one, DIALOGUE[-1]) for one in PROBES)):
        try:
            talk = template.encode_batch([Conversation(messages, Origin("probe", 1))], tokenizer, EncodeOptions())[0]
        except DataError:  # the template cannot express it, a system message for instance
            continue
        found.append(tuple(int(i) for i in talk.input_ids[: int(talk.trained.nonzero()[0][-1]) + 1]))
    return tuple(found)


def _padding(tokenizer: PreTrainedTokenizerBase, ends: set[int], rows: int) -> int:
    """Return a padding token that ends no answer, and make it the tokenizer's; say so when it is a new one."""
    special = [tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id, *tokenizer.all_special_ids]
    pad = next(i for i in (*special, *reversed(range(min(rows, len(tokenizer))))) if i is not None and i not in ends)
    if pad != tokenizer.pad_token_id:
        token = tokenizer.convert_ids_to_tokens(pad)
        notice(f"padding token {tokenizer.pad_token} ends answers, and a classifier reads its score before padding; "
               f"the exported model pads with {token}")
        tokenizer.pad_token = token
    return int(pad)
