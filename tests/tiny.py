"""Tiny tokenizers and random models for tests, made on the spot; nothing is downloaded."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

SENTENCE = (
    "the cat sat on a mat and what colour is sky blue sun warm rain wet "
    "天空 是 什么 颜色 蓝色 你好 请 回答 问题 猫")
WORDS = SENTENCE.split(" ")
CORPUS = [" ".join(WORDS[i:] + WORDS[:i]) + "。 Human: Assistant: user system assistant\n" for i in range(len(WORDS))]
SPECIAL = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@lru_cache
def _backend(vocab_size: int) -> str:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False)
    raw.train_from_iterator(CORPUS, trainer)
    return raw.to_str()


def tiny_tokenizer(vocab_size: int = 320, chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most `vocab_size` tokens; round-trips any text."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_backend(vocab_size)), pad_token="<pad>", bos_token="<s>",
        eos_token="</s>", additional_special_tokens=["<|im_start|>", "<|im_end|>"], chat_template=chat_template)


_COMMON = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 256}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {**_COMMON, "intermediate_size": 64, "num_key_value_heads": 2},
    "qwen3": {**_COMMON, "intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "resid_pdrop": 0.0, "embd_pdrop": 0.0,
             "attn_pdrop": 0.0},
    "opt": {**_COMMON, "ffn_dim": 64, "word_embed_proj_dim": 32, "dropout": 0.0},
    "gpt_neox": {**_COMMON, "intermediate_size": 64},
    "gemma": {**_COMMON, "intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8},
    "gemma2": {**_COMMON, "intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 16},
    "glm": {**_COMMON, "intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
}


def tiny_model(family: str = "llama", vocab_size: int = 320, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A random stock transformers model of `family`, a few tens of thousands of parameters, float32, eval mode."""
    torch.manual_seed(seed)
    settings = {**FAMILIES[family], "vocab_size": vocab_size, "bos_token_id": 1, "eos_token_id": 2, **overrides}
    settings.setdefault("pad_token_id", 0)
    return AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**settings)).eval()


def save_tiny(folder: Path, family: str = "llama", chat_template: str | None = None, **overrides: Any) -> Path:
    """Write a tiny base model with its tokenizer to `folder`, as a user would have one."""
    tiny_model(family, **overrides).save_pretrained(folder)
    tiny_tokenizer(chat_template=chat_template).save_pretrained(folder)
    return folder
