"""Old checkpoints whose code is not part of transformers, read as the equal architecture that is (no remote code).

Baichuan-7B, Baichuan2-7B   a Llama; W_pack holds the query, key and value projections one below the other.
                            Baichuan2 divides each row of the head by its length; the division is done once, here.
ChatGLM2-6B, ChatGLM3-6B    a GLM; other names, query, key and value in one matrix with bias.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig, PreTrainedTokenizerFast

from danlu.core.console import notice
from danlu.core.errors import CapabilityError, UserError
from danlu.models.sentencepiece_tokenizer import from_sentencepiece
from danlu.models.source import local_folder

State = dict[str, Tensor]
Raw = dict[str, Any]

_BAICHUAN2_ROWS = 125_696
_CHATGLM_TOKENS = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop")
_CHATGLM3_TOKENS = (*_CHATGLM_TOKENS, "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")


@dataclass(frozen=True, slots=True)
class Conversion:
    """How one family of old checkpoints becomes a native one."""

    says: str
    config: Callable[[Raw], PreTrainedConfig]
    weights: Callable[[State, Raw], State]
    tokenizer: Callable[[Path, Raw], PreTrainedTokenizerFast]


def conversion_of(name: str) -> tuple[Conversion, Path, Raw] | None:
    """Return how the checkpoint in a local folder is converted; None for one that transformers reads by itself."""
    folder = local_folder(name)
    path = None if folder is None else folder / "config.json"
    if folder is None or path is None or not path.is_file():
        return None
    try:
        raw: Raw = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError:
        return None
    known = CONVERSIONS.get(str(raw.get("model_type")).lower()) if isinstance(raw, dict) else None
    return None if known is None else (known, folder, raw)


def converted_config(conversion: Conversion, folder: Path, raw: Raw) -> PreTrainedConfig:
    """Return the native config of an old checkpoint, and say what it is read as."""
    config = conversion.config(raw)
    config.name_or_path = str(folder)
    config.dtype = raw.get("torch_dtype") or raw.get("dtype")
    notice(f"{folder} is read as {conversion.says}; what danlu saves from it is in that format")
    return config


def converted_weights(conversion: Conversion, folder: Path, raw: Raw) -> State:
    """Return the weights of an old checkpoint under the native names. Raises UserError for a folder that lacks some."""
    try:
        return conversion.weights(read_state(folder), raw)
    except (KeyError, RuntimeError, ValueError) as error:
        raise UserError(f"the weights in {folder} do not fit its config.json: {error}", where="model_name_or_path",
                        fix="copy the model again") from error


def read_state(folder: Path) -> State:
    """Return all weights of a folder, from safetensors or from torch files (which may hold tensors only)."""
    state: State = {}
    for path in sorted(folder.glob("*.safetensors")):
        state |= load_file(path)
    for path in sorted(folder.glob("pytorch_model*.bin")) if not state else ():
        state |= torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return state


def _baichuan_config(raw: Raw) -> PreTrainedConfig:
    if raw["hidden_size"] > 4096:
        raise CapabilityError("the 13B models of Baichuan use ALiBi positions, which no native architecture has",
                              where="model_name_or_path", fix="use a 7B model")
    length = raw.get("max_position_embeddings") or raw.get("model_max_length") or 4096
    return AutoConfig.for_model("llama", **_kept(raw, (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act",
        "rms_norm_eps", "initializer_range", "bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings")),
        max_position_embeddings=length, num_key_value_heads=raw["num_attention_heads"])


def _baichuan_weights(state: State, raw: Raw) -> State:
    new: State = {}
    for name, value in state.items():
        if name.endswith("W_pack.weight"):
            head = name.removesuffix("W_pack.weight")
            for part, rows in zip(("q_proj", "k_proj", "v_proj"), value.chunk(3), strict=True):
                new[f"{head}{part}.weight"] = rows
        elif not name.endswith("rotary_emb.inv_freq"):
            new[name] = value
    if is_baichuan2(raw):
        new["lm_head.weight"] = torch.nn.functional.normalize(new["lm_head.weight"].float()).to(
            new["lm_head.weight"].dtype)
    return new


def is_baichuan2(raw: Raw) -> bool:
    """Return True for the second generation, whose head has rows of length one."""
    return raw["vocab_size"] == _BAICHUAN2_ROWS or "z_loss_weight" in raw


def _chatglm_config(raw: Raw) -> PreTrainedConfig:
    unlike = [key for key, value in (("rmsnorm", True), ("post_layer_norm", True), ("add_bias_linear", False),
                                     ("apply_residual_connection_post_layernorm", False))
              if raw.get(key, value) != value]
    if "padded_vocab_size" not in raw or unlike:
        raise CapabilityError(
            "this ChatGLM is built differently from ChatGLM2, and no native architecture equals it"
            + (f": {', '.join(unlike)}" if unlike else ""), where="model_name_or_path",
            fix="use ChatGLM2-6B, ChatGLM3-6B or a GLM-4 in transformers' own format")
    heads = raw["num_attention_heads"]
    return AutoConfig.for_model(
        "glm", vocab_size=raw["padded_vocab_size"], hidden_size=raw["hidden_size"], num_attention_heads=heads,
        intermediate_size=raw["ffn_hidden_size"], num_hidden_layers=raw["num_layers"], head_dim=raw["kv_channels"],
        num_key_value_heads=raw["multi_query_group_num"] if raw.get("multi_query_attention") else heads,
        rms_norm_eps=raw["layernorm_epsilon"], max_position_embeddings=raw["seq_length"],
        attention_bias=raw.get("add_qkv_bias", False), attention_dropout=raw.get("attention_dropout", 0.0),
        tie_word_embeddings=False, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0 * raw.get("rope_ratio", 1),
                         "partial_rotary_factor": 0.5})


_CHATGLM_NAMES = (
    (r"^transformer\.embedding\.word_embeddings\.", "model.embed_tokens."),
    (r"^transformer\.encoder\.final_layernorm\.", "model.norm."),
    (r"^transformer\.output_layer\.", "lm_head."),
    (r"^transformer\.encoder\.layers\.", "model.layers."),
    (r"\.self_attention\.dense\.", ".self_attn.o_proj."),
    (r"\.mlp\.dense_h_to_4h\.", ".mlp.gate_up_proj."),
    (r"\.mlp\.dense_4h_to_h\.", ".mlp.down_proj."),
)


def _chatglm_weights(state: State, raw: Raw) -> State:
    queries = raw["num_attention_heads"] * raw["kv_channels"]
    groups = raw["multi_query_group_num"] if raw.get("multi_query_attention") else raw["num_attention_heads"]
    sizes = [queries, groups * raw["kv_channels"], groups * raw["kv_channels"]]
    new: State = {}
    for name, value in state.items():
        for old, native in _CHATGLM_NAMES:
            name = re.sub(old, native, name)
        head, fused, kind = name.partition("self_attention.query_key_value.")
        if fused:
            for part, rows in zip(("q_proj", "k_proj", "v_proj"), value.split(sizes), strict=True):
                new[f"{head}self_attn.{part}.{kind}"] = rows
        elif "rotary_pos_emb" not in name:
            new[name] = value
    return new


def _baichuan_tokenizer(folder: Path, raw: Raw) -> PreTrainedTokenizerFast:
    return from_sentencepiece(folder / "tokenizer.model", pad="<unk>")


def _chatglm_tokenizer(folder: Path, raw: Raw) -> PreTrainedTokenizerFast:
    path = folder / "tokenizer_config.json"
    settings = path.read_text(encoding="utf-8") if path.is_file() else ""
    third = "<|user|>" in settings or (folder / "tokenization_chatglm.py").is_file() and "<|user|>" in (
        folder / "tokenization_chatglm.py").read_text(encoding="utf-8")
    return from_sentencepiece(
        folder / "tokenizer.model", control_tokens=_CHATGLM3_TOKENS if third else _CHATGLM_TOKENS,
        prefix=("[gMASK]", "sop"), pad="<unk>")


def _kept(raw: Raw, keys: tuple[str, ...]) -> Raw:
    return {key: raw[key] for key in keys if key in raw}


CONVERSIONS: Mapping[str, Conversion] = {
    "baichuan": Conversion("a Llama with W_pack split into q_proj, k_proj and v_proj", _baichuan_config,
                           _baichuan_weights, _baichuan_tokenizer),
    "chatglm": Conversion("a GLM with query_key_value split into q_proj, k_proj and v_proj", _chatglm_config,
                          _chatglm_weights, _chatglm_tokenizer),
}
