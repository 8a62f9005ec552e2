"""The proof that an exported model answers as the trained one does: equal logits, equal token ids.

    merged = adapter     logits before and after the merge
    saved = merged       logits of the folder, read back by plain transformers
    served = trained     danlu's token ids and those of the chat template in the saved tokenizer
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from danlu.core.errors import DataError
from danlu.core.records import Conversation, Message, Origin
from danlu.generation.transformers_backend import generating
from danlu.templates import ChatTemplate, EncodeOptions

# Largest difference allowed, as a share of the largest logit (at least 1): the formats keep 24, 11 and 8 bits.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
PROBES: tuple[tuple[Message, ...], ...] = (
    (Message("user", "What colour is the sky?"),),
    (Message("user", "天空是什么颜色？"), Message("assistant", "蓝色。"), Message("user", "为什么？")),
    (Message("system", "Answer briefly. 请简短回答。"), Message("user", "1 + 1 = ?")),
)
DIALOGUE = (*PROBES[1], Message("assistant", "Because of the air. 因为空气。"))


@dataclass(frozen=True, slots=True)
class LogitCheck:
    """What was compared, the largest difference found and the one allowed."""

    what: str
    difference: float
    allowed: float
    unit: str = "logits"

    @property
    def passed(self) -> bool:
        """Return True when the difference is within bounds."""
        return self.difference <= self.allowed


@dataclass(frozen=True, slots=True)
class TemplateCheck:
    """How many probes were compared, and those that differ: (danlu's ids, the saved template's ids)."""

    compared: int
    differing: tuple[tuple[list[int], list[int]], ...]
    skipped: int = 0

    @property
    def passed(self) -> bool:
        """Return True when every probe has the same ids on both sides."""
        return not self.differing


def probe_ids(template: ChatTemplate | None, tokenizer: PreTrainedTokenizerBase, rows: int) -> list[int]:
    """Return a few token ids to compare logits on, all below `rows`."""
    ids = template.encode_prompt(PROBES[1], tokenizer) if template else tokenizer(PROBES[0][0].content)["input_ids"]
    return [int(i) for i in ids if i < rows][:64] or list(range(min(rows, 8)))


def logits_of(model: Any, ids: list[int]) -> Tensor:
    """Return float32 logits_TV on the CPU."""
    device = model.get_input_embeddings().weight.device
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    with generating(base), torch.no_grad():
        logits_TV: Tensor = model(torch.tensor([ids], device=device), use_cache=False).logits[0].float().cpu()
    return logits_TV


def compare_logits(
    what: str, expected_TV: Tensor, found_TV: Tensor, dtype: torch.dtype, unit: str = "logits",
) -> LogitCheck:
    """Return the largest difference beside what the number format allows."""
    scale = max(1.0, float(expected_TV.abs().max()))
    return LogitCheck(what, float((expected_TV - found_TV).abs().max()), TOLERANCE.get(dtype, 1e-4) * scale, unit)


def saved_logits(folder: Path, ids: list[int], dtype: torch.dtype) -> Tensor:
    """Return logits_TV of the folder as plain transformers reads it, on the CPU."""
    return logits_of(AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval(), ids)


def compare_template(template: ChatTemplate, tokenizer: PreTrainedTokenizerBase, folder: Path) -> TemplateCheck:
    """Compare danlu's ids, of prompts and of a dialogue as it is trained, with those the saved tokenizer renders.

    A probe that the template cannot express, a system message for instance, is skipped and counted.
    """
    saved, pairs, skipped = AutoTokenizer.from_pretrained(folder), [], 0
    for messages in (*PROBES, DIALOGUE):
        try:
            ours = _danlu_ids(template, tokenizer, messages)
        except DataError:
            skipped += 1
            continue
        rows = [{"role": m.role, "content": m.content} for m in messages]
        is_prompt = messages[-1].role != "assistant"
        theirs = saved.apply_chat_template(rows, add_generation_prompt=is_prompt, tokenize=True, return_dict=False)
        pairs.append((ours, list(theirs)))
    return TemplateCheck(len(pairs), tuple(pair for pair in pairs if pair[0] != pair[1]), skipped)


def _danlu_ids(
    template: ChatTemplate, tokenizer: PreTrainedTokenizerBase, messages: tuple[Message, ...],
) -> list[int]:
    """Return the ids of a prompt, or of a dialogue that ends with an answer as training sees it."""
    if messages[-1].role != "assistant":
        return list(template.encode_prompt(messages, tokenizer))
    talk = Conversation(messages, Origin("probe", 1))
    ids: list[int] = template.encode_batch([talk], tokenizer, EncodeOptions())[0].input_ids.tolist()
    return ids
