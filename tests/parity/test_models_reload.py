"""What danlu saves, plain transformers and peft read, with the same answers."""

from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from danlu.core.errors import UserError
from danlu.core.stream import Example, flatten
from danlu.models.config import AdapterConfig, ModelConfig, QuantizationConfig
from danlu.models.load import load_model
from danlu.models.packed_lm import PackedLM
from danlu.models.save import ModelSaver, stock_model
from danlu.models.stream_tensors import StreamTensors
from danlu.models.tokenizer import load_tokenizer
from danlu.templates import TEMPLATES
from tests.tiny import CHATML, FAMILIES, save_tiny

METHODS: dict[str, AdapterConfig] = {
    "full": AdapterConfig(finetuning_type="full"),
    "freeze": AdapterConfig(finetuning_type="freeze", freeze_trainable_layers=1),
    "lora": AdapterConfig(finetuning_type="lora", lora_rank=4),
}
IDS = torch.tensor([[5, 9, 30, 77, 12, 250, 3, 8], [7, 7, 100, 4, 4, 19, 20, 21]])


def build(
    base: Path, method: AdapterConfig, dtype: torch.dtype = torch.float32,
    quantization: QuantizationConfig | None = None, seed: int = 0, **model_keys: object,
) -> nn.Module:
    torch.manual_seed(seed)
    config = ModelConfig(model_name_or_path=str(base), **model_keys)
    return load_model(config, quantization or QuantizationConfig(), method, tokenizer=load_tokenizer(config),
                      trainable=True, compute_dtype=dtype)


def saver(base: Path) -> ModelSaver:
    return ModelSaver(load_tokenizer(ModelConfig(model_name_or_path=str(base))), None, str(base))


def shake(model: nn.Module, seed: int = 1) -> None:
    """Move every trainable weight, as training would."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator) * 0.05
            parameter.data += noise.to(parameter.dtype)


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    return model.eval()(input_ids=IDS).logits.float()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_plain_libraries_read_what_is_saved(family: str, method: str, tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", family, CHATML)
    model = build(base, METHODS[method])
    before = logits(model)
    shake(model)
    saver(base).save(model, tmp_path / "out")
    plain = (AutoPeftModelForCausalLM if method == "lora" else AutoModelForCausalLM).from_pretrained(tmp_path / "out")
    assert (logits(model) - before).abs().max() > 1e-3
    torch.testing.assert_close(logits(plain), logits(model), rtol=0, atol=1e-6)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == CHATML


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_restore_is_bit_exact(family: str, method: str, dtype: torch.dtype, tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", family)
    trained = build(base, METHODS[method], dtype)
    shake(trained)
    saver(base).save(trained, tmp_path / "checkpoint")
    fresh = build(base, METHODS[method], dtype, seed=5)
    saver(base).restore(fresh, tmp_path / "checkpoint")
    for (name, ours), theirs in zip(trained.named_parameters(), fresh.parameters(), strict=True):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs), name


@pytest.mark.parametrize("keys", [
    {"use_dora": True}, {"use_rslora": True}, {"additional_target": "embed_tokens,lm_head"},
    {"additional_target": "norm"}, {"pissa_init": True, "pissa_iter": 4}, {"pissa_init": True, "pissa_iter": -1},
    {"pissa_init": True, "use_rslora": True}, {"pure_bf16": False, "lora_target": "q_proj,v_proj"},
], ids=str)
@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_every_kind_of_adapter_survives_saving(family: str, keys: dict[str, object], tmp_path: Path) -> None:
    if family == "gemma" and "lm_head" in str(keys.get("additional_target")):
        keys = {"additional_target": "embed_tokens"}
    base = save_tiny(tmp_path / "base", family)
    config = AdapterConfig(lora_rank=4, **keys)
    model = build(base, config)
    untouched = logits(AutoModelForCausalLM.from_pretrained(base))
    torch.testing.assert_close(logits(model), untouched, rtol=0, atol=2e-5)
    shake(model)
    saver(base).save(model, tmp_path / "out")
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "out")
    torch.testing.assert_close(logits(plain), logits(model), rtol=0, atol=2e-5)
    fresh = build(base, config, seed=3)
    saver(base).restore(fresh, tmp_path / "out")
    torch.testing.assert_close(logits(fresh), logits(model), rtol=0, atol=2e-5)


@pytest.mark.parametrize("quantization", [
    QuantizationConfig(quantization_bit=4), QuantizationConfig(quantization_bit=4, double_quantization=False),
    QuantizationConfig(quantization_bit=4, quantization_type="fp4"), QuantizationConfig(quantization_bit=8),
], ids=["nf4-double", "nf4", "fp4", "int8"])
def test_adapters_of_a_quantised_base_train_and_survive(quantization: QuantizationConfig, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    base = save_tiny(tmp_path / "base", "llama", hidden_size=64, intermediate_size=128)
    model = build(base, METHODS["lora"], quantization=quantization)
    stock = stock_model(model)
    assert "4bit" in type(stock.base_model.model.model.layers[0].self_attn.q_proj).__name__ or (
        quantization.quantization_bit == 8)
    assert type(stock.base_model.model.lm_head) is nn.Linear
    shake(model)
    model.train()(input_ids=IDS, labels=IDS).loss.backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(g is not None and torch.isfinite(g).all() and g.abs().sum() > 0 for g in gradients)
    saver(base).save(model, tmp_path / "out")
    fresh = build(base, METHODS["lora"], quantization=quantization, seed=9)
    saver(base).restore(fresh, tmp_path / "out")
    assert torch.equal(logits(fresh), logits(model))
    onto_full = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "out")
    assert (logits(onto_full) - logits(model)).abs().max() < 0.5


def test_a_final_adapter_keeps_what_was_learnt(tmp_path: Path) -> None:
    """On a bfloat16 base the adapter stays float32, and PiSSA leaves nothing behind that only a checkpoint needs."""
    base = save_tiny(tmp_path / "base")
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(base)
    model = build(base, AdapterConfig(lora_rank=4, pissa_init=True), torch.bfloat16)
    shake(model)
    saver(base).save(model, tmp_path / "out", dtype=torch.bfloat16)
    assert not [child for child in (tmp_path / "out").iterdir() if child.is_dir()]
    saved = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {value.dtype for value in saved.values()} == {torch.float32}


def test_a_final_save_takes_the_dtype_of_the_base(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(base)
    model = build(base, METHODS["full"], torch.bfloat16)
    shake(model)
    keeper = saver(base)
    assert keeper.stored_dtype == torch.bfloat16
    keeper.save(model, tmp_path / "out", dtype=keeper.stored_dtype)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert plain.dtype == torch.bfloat16
    expected = {name: value.to(torch.bfloat16) for name, value in model.state_dict().items()}
    assert all(torch.equal(expected[name], value) for name, value in plain.state_dict().items())


class OneProcess:
    """A gloo group of one process, so that DDP can wrap a model."""

    def __enter__(self) -> None:
        store = torch.distributed.HashStore()
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)

    def __exit__(self, *error: object) -> None:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("method", ["full", "lora"])
def test_wrappers_are_looked_through(method: str, tiny_base: Path, tmp_path: Path) -> None:
    """DDP(PackedLM(model)) saves the stock model, and its attention implementation stays out of the files."""
    model = build(tiny_base, METHODS[method])
    batch = StreamTensors.from_stream(flatten([Example(IDS[0].numpy(), torch.ones(8, dtype=torch.bool).numpy())]))
    with OneProcess():
        policy = nn.parallel.DistributedDataParallel(PackedLM(model))
        policy(batch).backward()
        shake(model)
        assert stock_model(policy) is model
        saver(tiny_base).save(policy, tmp_path / "out")
    assert "danlu_segments" not in "".join(p.read_text("utf-8") for p in (tmp_path / "out").glob("*.json"))
    kind = AutoPeftModelForCausalLM if method == "lora" else AutoModelForCausalLM
    with PackedLM(model).generation_mode() as inner:
        expected = logits(inner)
    torch.testing.assert_close(logits(kind.from_pretrained(tmp_path / "out")), expected, rtol=0, atol=1e-5)


def test_template_and_stop_tokens_go_with_the_model(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    tokenizer = load_tokenizer(ModelConfig(model_name_or_path=str(base)))
    model = build(base, METHODS["full"])
    ModelSaver(tokenizer, TEMPLATES["chatml"], str(base)).save(model, tmp_path / "out")
    saved = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert "<|im_start|>" in saved.chat_template
    stops = GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id
    assert set(stops) == {2, saved.convert_tokens_to_ids("<|im_end|>")}
    assert model.generation_config.eos_token_id == 2


def test_restore_refuses_another_model(tiny_base: Path, tmp_path: Path) -> None:
    saver(tiny_base).save(build(tiny_base, METHODS["lora"]), tmp_path / "lora")
    saver(tiny_base).save(build(tiny_base, METHODS["full"]), tmp_path / "full")
    wider = build(tiny_base, AdapterConfig(lora_rank=16))
    other = build(tiny_base, AdapterConfig(lora_target="q_proj"))
    for model, folder, what in ((wider, "lora", "lora_rank is 4 in the checkpoint and 16 in this run"),
                                (other, "lora", "lora_target is .* and q_proj in this run"),
                                (build(tiny_base, METHODS["full"]), "lora", "holds an adapter .finetuning_type lora"),
                                (wider, "full", "holds whole weights"), (wider, "nowhere", "holds nothing")):
        with pytest.raises(UserError, match=f"does not fit the model of this run: .*{what}"):
            saver(tiny_base).restore(model, tmp_path / folder)


def test_large_models_are_sharded(tiny_base: Path, tmp_path: Path) -> None:
    model = build(tiny_base, METHODS["full"])
    keeper = ModelSaver(load_tokenizer(ModelConfig(model_name_or_path=str(tiny_base))), None, str(tiny_base),
                        shard_size="60KB")
    keeper.save(model, tmp_path / "out")
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 1
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), logits(model))
