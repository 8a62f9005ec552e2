"""Tokenizers of every family for template tests: byte-level BPE, GPT-2, sentencepiece in its three habits."""

import json
import shutil
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, GPT2Tokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tests.tiny import CORPUS

BYTES = [f"<0x{i:02X}>" for i in range(256)]


def sentencepiece_like(habit: str) -> PreTrainedTokenizerFast:
    """A BPE with ▁ for space. `habit`: Metaspace's prepend_scheme, or "legacy" (a ▁ behind each control token)."""
    raw = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    if habit == "legacy":
        raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=habit, split=False)
    raw.decoder = decoders.Sequence([
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    words = [w.strip() for line in CORPUS for w in line.split(" ") if w.strip()]
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=["<unk>", "<s>", "</s>", *BYTES], show_progress=False)
    raw.train_from_iterator([f" {w}" for w in words], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def gpt2(shared: Path) -> PreTrainedTokenizerBase:
    """The GPT-2 tokenizer from its published files."""
    folder = shared / "data" / "tokenizers" / "gpt2"
    return GPT2Tokenizer(vocab=str(folder / "encoder.json"), merges=str(folder / "vocab.bpe"))


def chinese(shared: Path, folder: Path) -> PreTrainedTokenizerBase:
    """A real Chinese sentencepiece model, loaded as Llama tokenizers are."""
    shutil.copy(shared / "data" / "tokenizers" / "chinese_sp" / "chinese_sp.model", folder / "tokenizer.model")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    return AutoTokenizer.from_pretrained(folder)
