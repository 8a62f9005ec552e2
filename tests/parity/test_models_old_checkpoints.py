"""Baichuan and ChatGLM2 checkpoints of 2023 load without their Python code and compute what that code computed."""

import json
from pathlib import Path

import pytest
import sentencepiece
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from danlu.core.errors import UserError
from danlu.models.config import AdapterConfig, ModelConfig, QuantizationConfig
from danlu.models.load import load_model
from danlu.models.save import ModelSaver
from danlu.models.tokenizer import load_tokenizer
from tests.tiny import CORPUS, tiny_model

IDS = torch.tensor([[5, 9, 30, 77, 12, 250, 3, 8, 61]])
TEXTS = ["the cat sat", "天空 是 什么 颜色", "  two  blanks ", "你好，世界 2024!", "emoji 🔥", "philosophy of the sop",
         "line\nbreak\ttab", ""]


def sentencepiece_file(folder: Path, *, size: int = 320, **settings: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "text").write_text("\n".join(CORPUS * 4), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"), model_prefix=str(folder / "tokenizer"), vocab_size=size, model_type="bpe",
        byte_fallback=True, minloglevel=2, hard_vocab_limit=False, **settings)
    (folder / "text").unlink()
    (folder / "tokenizer.vocab").unlink()
    return folder / "tokenizer.model"


def remote_code(folder: Path, config: dict[str, object], state: dict[str, Tensor], tokenizer_class: str) -> Path:
    """Write a checkpoint as it was published: torch file, auto_map, a tokenizer in Python."""
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": tokenizer_class, "auto_map": {"AutoTokenizer": [f"tokenization.{tokenizer_class}", None]},
    }), encoding="utf-8")
    torch.save(state, folder / "pytorch_model.bin")
    return folder


def baichuan(folder: Path, second: bool) -> tuple[Path, Tensor]:
    """Return the folder and the logits its own code gives."""
    sentencepiece_file(folder, user_defined_symbols=["<reserved_102>", "<reserved_103>"], add_dummy_prefix=False,
                       remove_extra_whitespaces=False, normalization_rule_name="identity")
    llama = tiny_model("llama", num_key_value_heads=4)
    state = {}
    for name, value in llama.state_dict().items():
        if "q_proj" in name:
            parts = [llama.state_dict()[name.replace("q_proj", f"{which}_proj")] for which in "qkv"]
            state[name.replace("q_proj", "W_pack")] = torch.cat(parts)
        elif "k_proj" not in name and "v_proj" not in name:
            state[name] = value.clone()
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    config: dict[str, object] = {
        "architectures": ["BaichuanForCausalLM"], "model_type": "baichuan", "vocab_size": 320, "hidden_size": 32,
        "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_act": "silu",
        "rms_norm_eps": 1e-6, "model_max_length": 256, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
        "tie_word_embeddings": False, "auto_map": {"AutoModelForCausalLM": "modeling_baichuan.BaichuanForCausalLM"}}
    with torch.no_grad():
        hidden = llama.model(IDS).last_hidden_state
        weight = llama.lm_head.weight
        expected = hidden @ (F.normalize(weight) if second else weight).T
    if second:
        config["z_loss_weight"] = 0
    return remote_code(folder, config, state, "BaichuanTokenizer"), expected


GLM = {"num_layers": 2, "hidden_size": 32, "ffn_hidden_size": 48, "num_attention_heads": 4, "kv_channels": 8,
       "multi_query_attention": True, "multi_query_group_num": 2, "layernorm_epsilon": 1e-5, "seq_length": 256}


def chatglm_state(rows: int) -> dict[str, Tensor]:
    torch.manual_seed(3)
    d, f, kv = 32, 48, 2 * 8
    state = {"transformer.embedding.word_embeddings.weight": torch.randn(rows, d),
             "transformer.rotary_pos_emb.inv_freq": torch.ones(2),
             "transformer.encoder.final_layernorm.weight": torch.rand(d) + 0.5,
             "transformer.output_layer.weight": torch.randn(rows, d) * 0.3}
    for layer in range(2):
        head = f"transformer.encoder.layers.{layer}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            state[f"{head}.{norm}.weight"] = torch.rand(d) + 0.5
        state[f"{head}.self_attention.query_key_value.weight"] = torch.randn(d + 2 * kv, d) * 0.3
        state[f"{head}.self_attention.query_key_value.bias"] = torch.randn(d + 2 * kv) * 0.3
        state[f"{head}.self_attention.dense.weight"] = torch.randn(d, d) * 0.3
        state[f"{head}.mlp.dense_h_to_4h.weight"] = torch.randn(2 * f, d) * 0.3
        state[f"{head}.mlp.dense_4h_to_h.weight"] = torch.randn(d, f) * 0.3
    return state


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)


def rotate(x_THh: Tensor) -> Tensor:
    """Turn pairs (0,1), (2,3) of the first half of each head by t / 10000^(2i/half); leave the second half."""
    half = x_THh.shape[-1] // 2
    angle = torch.arange(len(x_THh))[:, None] / 10000 ** (torch.arange(0, half, 2) / half)
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    even, odd = x_THh[..., :half:2], x_THh[..., 1:half:2]
    turned = torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2)
    return torch.cat([turned, x_THh[..., half:]], dim=-1)


def chatglm_forward(state: dict[str, Tensor], ids: Tensor) -> Tensor:
    """ChatGLM2's forward pass for one sequence, written from its description: multi-query attention, SwiGLU."""
    x = state["transformer.embedding.word_embeddings.weight"][ids[0]]
    mask = torch.ones(len(x), len(x), dtype=torch.bool).tril()
    for layer in range(2):
        w = {k.split(f"layers.{layer}.")[1]: v for k, v in state.items() if f"layers.{layer}." in k}
        mixed = F.linear(rms_norm(x, w["input_layernorm.weight"]), w["self_attention.query_key_value.weight"],
                         w["self_attention.query_key_value.bias"])
        query, key, value = mixed.split([32, 16, 16], dim=-1)
        query, key = rotate(query.view(-1, 4, 8)), rotate(key.view(-1, 2, 8))
        key, value = (y.repeat_interleave(2, dim=1) for y in (key, value.view(-1, 2, 8)))
        scores = torch.einsum("qhd,khd->hqk", query, key) / 8**0.5
        weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
        x = x + torch.einsum("hqk,khd->qhd", weights, value).flatten(1) @ w["self_attention.dense.weight"].T
        gate, up = (rms_norm(x, w["post_attention_layernorm.weight"]) @ w["mlp.dense_h_to_4h.weight"].T).chunk(2, -1)
        x = x + (F.silu(gate) * up) @ w["mlp.dense_4h_to_h.weight"].T
    return rms_norm(x, state["transformer.encoder.final_layernorm.weight"]) @ state["transformer.output_layer.weight"].T


def chatglm(folder: Path) -> tuple[Path, Tensor]:
    sentencepiece_file(folder)
    state = chatglm_state(352)
    config = {**GLM, "model_type": "chatglm", "padded_vocab_size": 352, "add_qkv_bias": True, "rmsnorm": True,
              "add_bias_linear": False, "post_layer_norm": True, "apply_residual_connection_post_layernorm": False,
              "auto_map": {"AutoModelForCausalLM": "modeling_chatglm.ChatGLMForConditionalGeneration"}}
    return remote_code(folder, config, state, "ChatGLMTokenizer"), chatglm_forward(state, IDS)[None]


def load(folder: Path, adapter: AdapterConfig, *, trainable: bool = True, bits: int | None = None) -> nn.Module:
    config = ModelConfig(model_name_or_path=str(folder))
    return load_model(config, QuantizationConfig(quantization_bit=bits), adapter, tokenizer=load_tokenizer(config),
                      trainable=trainable, compute_dtype=torch.float32)


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model.eval()(IDS).logits


@pytest.fixture(params=["baichuan", "baichuan2", "chatglm2"])
def old(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path, Tensor]:
    if request.param == "chatglm2":
        return (request.param, *chatglm(tmp_path / "old"))
    return (request.param, *baichuan(tmp_path / "old", second=request.param == "baichuan2"))


def test_old_checkpoints_compute_what_their_code_computed(old: tuple[str, Path, Tensor], tmp_path: Path) -> None:
    name, folder, expected = old
    model = load(folder, AdapterConfig(finetuning_type="full"))
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)
    ModelSaver(load_tokenizer(ModelConfig(model_name_or_path=str(folder))), None, str(folder)).save(
        model, tmp_path / "native")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "native")
    assert plain.config.model_type == ("glm" if name == "chatglm2" else "llama")
    torch.testing.assert_close(logits(plain), expected, rtol=1e-4, atol=1e-4)
    ours = load_tokenizer(ModelConfig(model_name_or_path=str(folder)))
    saved = AutoTokenizer.from_pretrained(tmp_path / "native")
    assert all(saved(text)["input_ids"] == ours(text)["input_ids"] for text in TEXTS)


@pytest.mark.parametrize("bits", [None, 4])
def test_the_old_names_of_targets_work(old: tuple[str, Path, Tensor], bits: int | None, tmp_path: Path) -> None:
    """`lora_target: W_pack` and `query_key_value` of the old recipes train; the adapter comes back on the old base."""
    name, folder, _ = old
    target = "query_key_value" if name == "chatglm2" else "W_pack"
    model = load(folder, AdapterConfig(lora_target=target), bits=bits)
    trained = {n.split(".")[-4] for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {"q_proj", "k_proj", "v_proj"}
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    ModelSaver(load_tokenizer(ModelConfig(model_name_or_path=str(folder))), None, str(folder)).save(
        model, tmp_path / "adapter")
    config = ModelConfig(model_name_or_path=str(folder), adapter_name_or_path=str(tmp_path / "adapter"))
    again = load_model(config, QuantizationConfig(quantization_bit=bits), AdapterConfig(),
                       tokenizer=load_tokenizer(config), trainable=False, compute_dtype=torch.float32)
    torch.testing.assert_close(logits(again), logits(model))


@pytest.mark.parametrize("settings", [
    {}, {"add_dummy_prefix": False, "remove_extra_whitespaces": False, "normalization_rule_name": "identity"},
    {"normalization_rule_name": "nmt_nfkc"},
    {"add_dummy_prefix": False, "remove_extra_whitespaces": False, "normalization_rule_name": "identity",
     "user_defined_symbols": ["<reserved_102>"]},
], ids=str)
def test_pieces_are_those_of_sentencepiece(settings: dict[str, object], tmp_path: Path) -> None:
    from danlu.models.sentencepiece_tokenizer import from_sentencepiece

    file = sentencepiece_file(tmp_path, **settings)
    original = sentencepiece.SentencePieceProcessor(model_file=str(file))
    tokenizer = from_sentencepiece(file)
    for text in [*TEXTS, *CORPUS[:10], "ＡＢ①２", "the <reserved_102>cat<reserved_102>" if len(settings) == 4 else "a"]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids == original.encode(text), text
        assert tokenizer.decode(ids) == original.decode(ids), text


def test_chatglm_texts_begin_with_its_prefix_and_words_stay_whole(tmp_path: Path) -> None:
    """The control token `sop` is a word of its own, never a part of philosophy."""
    folder, _ = chatglm(tmp_path / "old")
    size = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model")).vocab_size()
    tokenizer = load_tokenizer(ModelConfig(model_name_or_path=str(folder)))
    gmask, sop = size + 1, size + 3
    assert tokenizer.convert_tokens_to_ids(["[gMASK]", "sop"]) == [gmask, sop]
    assert tokenizer("the cat")["input_ids"][:2] == [gmask, sop]
    assert tokenizer("[gMASK]sop[Round 1]", add_special_tokens=False)["input_ids"][:2] == [gmask, sop]
    assert sop not in tokenizer("philosophy", add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(("changes", "said"), [
    ({"hidden_size": 5120, "model_type": "baichuan", "num_attention_heads": 40}, "ALiBi"),
    ({"model_type": "chatglm", "position_encoding_2d": True}, "ChatGLM2"),
    ({**GLM, "model_type": "chatglm", "padded_vocab_size": 352, "rmsnorm": False}, "rmsnorm"),
], ids=["13b", "chatglm1", "layernorm"])
def test_what_has_no_equal_is_refused(changes: dict[str, object], said: str, tmp_path: Path) -> None:
    folder, _ = chatglm(tmp_path / "old")
    (folder / "config.json").write_text(json.dumps(changes), encoding="utf-8")
    with pytest.raises(UserError, match=said):
        load_model(ModelConfig(model_name_or_path=str(folder)), QuantizationConfig(), AdapterConfig(),
                   tokenizer=load_tokenizer(ModelConfig(model_name_or_path=str(folder))), trainable=True,
                   compute_dtype=torch.float32)
