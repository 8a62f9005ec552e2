"""Exported models, read back by plain transformers, give the logits of base plus adapter."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.pytorch_utils import Conv1D

from danlu.core.errors import UserError
from danlu.core.records import Message
from danlu.export.config import ExportConfig
from danlu.export.merge import export_model
from danlu.models.config import AdapterConfig, ModelConfig, QuantizationConfig
from danlu.templates import resolve
from tests.tiny import CHATML, FAMILIES, save_tiny

IDS = torch.tensor([[5, 17, 40, 99, 6, 250, 31]])


def linear_targets(model: torch.nn.Module) -> list[str]:
    heads = {"lm_head", "embed_out"}
    return sorted({name.split(".")[-1] for name, module in model.named_modules()
                   if isinstance(module, torch.nn.Linear | Conv1D)} - heads)


def random_adapter(base: Path, folder: Path, seed: int = 1, **settings: Any) -> Path:
    """An adapter whose A and B are both random, so that merging it changes every layer."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    options = {"r": 4, "lora_alpha": 8, "target_modules": linear_targets(model), "init_lora_weights": False, **settings}
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **options))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name and "magnitude" not in name:
                parameter.add_(0.05 * torch.randn_like(parameter))
    adapted.save_pretrained(folder)
    with torch.no_grad():
        torch.save(adapted.eval()(IDS).logits.float(), folder / "logits.pt")
    return folder


def adapter_logits(base: Path, *adapters: Path) -> torch.Tensor:
    """Oracle: adapters applied one behind the other by peft itself, in float32, never merged the last."""
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    for adapter in adapters[:-1]:
        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    model = PeftModel.from_pretrained(model, adapters[-1]).eval()
    with torch.no_grad():
        return model(IDS).logits.float()


def plain_logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()(IDS).logits.float()


def export(base: Path, target: Path, *adapters: Path, template: str | None = None, **keys: Any) -> Any:
    model = ModelConfig(model_name_or_path=str(base), adapter_name_or_path=tuple(map(str, adapters)),
                        **{k: keys.pop(k) for k in list(keys) if k in ModelConfig.model_fields})
    quantization = QuantizationConfig(quantization_bit=keys.pop("quantization_bit", None))
    return export_model(model, quantization, AdapterConfig(), ExportConfig(export_dir=str(target), **keys),
                        template=template)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_merged_equals_adapter_in_every_family(family: str, tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", family, CHATML)
    adapter = random_adapter(base, tmp_path / "adapter")
    report = export(base, tmp_path / "merged", adapter)
    torch.testing.assert_close(plain_logits(tmp_path / "merged"), adapter_logits(base, adapter), atol=1e-4, rtol=0)
    assert (plain_logits(base) - plain_logits(tmp_path / "merged")).abs().max() > 1e-2
    assert len(report.logits) == 2 and all(check.passed for check in report.logits)


@pytest.mark.parametrize("settings", [
    {"use_dora": True}, {"use_rslora": True}, {"init_lora_weights": "pissa"},
    {"modules_to_save": ["embed_tokens", "lm_head"]},
], ids=["dora", "rslora", "pissa", "modules_to_save"])
def test_kinds_of_adapter(settings: dict[str, Any], tmp_path: Path) -> None:
    """Oracle: the adapted model as it was in memory before it was saved."""
    base = save_tiny(tmp_path / "base", "llama", CHATML)
    adapter = random_adapter(base, tmp_path / "adapter", **settings)
    export(base, tmp_path / "merged", adapter)
    trained = torch.load(adapter / "logits.pt")
    torch.testing.assert_close(plain_logits(tmp_path / "merged"), trained, atol=1e-4, rtol=0)


def test_two_adapters_add_up(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", "qwen3", CHATML)
    first, second = (random_adapter(base, tmp_path / f"adapter{seed}", seed) for seed in (1, 2))
    report = export(base, tmp_path / "merged", first, second)
    torch.testing.assert_close(
        plain_logits(tmp_path / "merged"), adapter_logits(base, first, second), atol=1e-4, rtol=0)
    assert [check.what for check in report.logits] == ["merged = adapter1", "merged = adapter2", "saved = merged"]


def test_tied_embeddings_stay_tied(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", "llama", CHATML, tie_word_embeddings=True)
    adapter = random_adapter(base, tmp_path / "adapter")
    export(base, tmp_path / "merged", adapter)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    torch.testing.assert_close(plain_logits(tmp_path / "merged"), adapter_logits(base, adapter), atol=1e-4, rtol=0)


def test_the_base_keeps_its_number_format(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", "llama", CHATML)
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(base)
    adapter = random_adapter(base, tmp_path / "adapter")
    assert export(base, tmp_path / "half", adapter).dtype == "bfloat16"
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "half", dtype="auto").dtype == torch.bfloat16
    assert export(base, tmp_path / "whole", adapter, infer_dtype="float32").dtype == "float32"


def test_an_adapter_folder_alone_names_its_base(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", "llama", CHATML)
    adapter = random_adapter(base, tmp_path / "adapter")
    export(adapter, tmp_path / "merged")
    torch.testing.assert_close(plain_logits(tmp_path / "merged"), adapter_logits(base, adapter), atol=1e-4, rtol=0)


@pytest.mark.parametrize("template", [None, "default", "chatml"])
def test_saved_template_gives_the_ids_of_training_and_stop_ids_are_saved(template: str | None, tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", "llama", CHATML)
    report = export(base, tmp_path / "out", template=template)
    assert report.template is not None and report.template.passed and report.template.compared >= 2
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    rows = [{"role": "user", "content": "天空 是 什么 颜色"}]
    theirs = tokenizer.apply_chat_template(rows, add_generation_prompt=True, return_dict=False)
    chosen = resolve(template, AutoTokenizer.from_pretrained(base))
    ours = chosen.encode_prompt([Message("user", "天空 是 什么 颜色")], AutoTokenizer.from_pretrained(base))
    assert theirs == ours
    stops = json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"]
    assert set(chosen.stop_token_ids(tokenizer)) <= set(stops if isinstance(stops, list) else [stops])
    written = json.loads((tmp_path / "out" / "export_report.json").read_text())
    assert written["template"]["passed"] and all(check["passed"] for check in written["logits"])


def test_a_base_without_template_gets_none(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", "gpt2")
    assert export(base, tmp_path / "out").template is None
    assert not AutoTokenizer.from_pretrained(tmp_path / "out").chat_template


def test_a_full_model_is_saved_anew(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", "llama", CHATML)
    report = export(base, tmp_path / "out", export_size=1)
    assert "model.safetensors" in report.files
    assert torch.equal(plain_logits(tmp_path / "out"), plain_logits(base))


def test_targets_in_use_are_refused_and_earlier_exports_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:
    base = save_tiny(tmp_path / "base", "llama", CHATML)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match=r"thesis\.txt"):
        export(base, tmp_path / "mine")
    with pytest.raises(UserError, match="read from"):
        export(base, base)
    export(base, tmp_path / "out")
    assert "earlier export" not in capsys.readouterr().err
    export(base, tmp_path / "out")
    assert f"{tmp_path / 'out'} holds an earlier export" in capsys.readouterr().err
    assert sorted(child.name for child in tmp_path.iterdir()) == ["base", "mine", "out"]


def test_quantised_bases_are_refused_with_the_way_out(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", "llama", CHATML)
    adapter = random_adapter(base, tmp_path / "adapter")
    with pytest.raises(UserError, match="remove quantization_bit"):
        export(base, tmp_path / "merged", adapter, quantization_bit=4)
    assert not (tmp_path / "merged").exists()


def test_a_failed_export_leaves_nothing_behind(tmp_path: Path) -> None:
    """An adapter of another base fails while loading: neither the target nor a partial folder remains."""
    base = save_tiny(tmp_path / "base", "llama", CHATML)
    other = save_tiny(tmp_path / "other", "llama", CHATML, hidden_size=48, num_attention_heads=6, head_dim=8)
    adapter = random_adapter(other, tmp_path / "adapter")
    with pytest.raises(UserError, match="adapter"):
        export(base, tmp_path / "merged", adapter)
    assert sorted(child.name for child in tmp_path.iterdir()) == ["adapter", "base", "other"]
