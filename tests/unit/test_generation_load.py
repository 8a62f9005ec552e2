"""What can be loaded to answer: base, adapter folder alone, base plus adapter, quantised base; and what cannot."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from danlu.core.errors import UserError
from danlu.core.records import Message
from danlu.generation.config import GenerationConfig
from danlu.generation.load import Loaded, load_for_inference, with_base_of_adapter
from danlu.models.config import AdapterConfig, ModelConfig, QuantizationConfig
from danlu.templates import TEMPLATES
from tests.tiny import CHATML, save_tiny, tiny_tokenizer

GREEDY = GenerationConfig(do_sample=False, max_new_tokens=6)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, an adapter with random A and B, and another that carries a tokenizer with the template `default`."""
    root = tmp_path_factory.mktemp("load")
    base = save_tiny(root / "base", "llama", CHATML)
    torch.manual_seed(0)
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(
        task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
    adapted.save_pretrained(root / "adapter")
    adapted.save_pretrained(root / "with_template")
    tokenizer = tiny_tokenizer()
    TEMPLATES["default"].prepare_tokenizer(tokenizer)
    tokenizer.save_pretrained(root / "with_template")
    return root


def load(model: Path | None, *adapters: Path, bits: int | None = None, template: str | None = None) -> Loaded:
    keys = ModelConfig(model_name_or_path=model and str(model), adapter_name_or_path=tuple(map(str, adapters)))
    return load_for_inference(
        keys, QuantizationConfig(quantization_bit=bits), AdapterConfig(), GREEDY, template=template)


def answer(loaded: Loaded) -> tuple[int, ...]:
    prompt = loaded.template.encode_prompt([Message("user", "你好")], loaded.tokenizer)
    return loaded.generator.generate([prompt], GREEDY)[0].ids


def test_three_ways_to_name_an_adapter_answer_alike(folders: Path) -> None:
    """Oracle: peft on plain transformers, asked in the base's own template."""
    base, adapter = folders / "base", folders / "adapter"
    tokenizer = AutoTokenizer.from_pretrained(base)
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "你好"}], add_generation_prompt=True,
                                        return_tensors="pt", return_dict=False)
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    expected = plain.generate(input_ids=ids, max_new_tokens=6, do_sample=False, pad_token_id=0)[0, ids.shape[1]:]
    for loaded in (load(adapter), load(base, adapter), load(None, adapter)):
        assert list(answer(loaded)) == expected.tolist()
        assert loaded.name == "adapter"
    assert answer(load(base)) != tuple(expected.tolist()) and load(base).name == "base"


def test_the_template_comes_with_the_adapter_and_can_be_named(folders: Path) -> None:
    trained = load(folders / "with_template")
    assert trained.tokenizer.decode(trained.template.encode_prompt(
        [Message("user", "你好")], trained.tokenizer)) == "Human: 你好</s>\nAssistant:"
    named = load(folders / "with_template", template="chatml")
    assert "<|im_start|>" in named.tokenizer.decode(named.template.encode_prompt(
        [Message("user", "你好")], named.tokenizer))


def test_a_quantised_base_answers_with_its_adapter(folders: Path) -> None:
    pytest.importorskip("bitsandbytes")
    assert 1 <= len(answer(load(folders / "base", folders / "adapter", bits=4))) <= 6


def test_a_base_that_moved_together_with_its_adapter_is_found(folders: Path, tmp_path: Path) -> None:
    """The recorded path is relative to the folder beside the adapter."""
    shutil.copytree(folders / "base", tmp_path / "base")
    shutil.copytree(folders / "adapter", tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": "base"}))
    found = with_base_of_adapter(ModelConfig(model_name_or_path=str(tmp_path / "adapter")))
    assert found.model_name_or_path == str(tmp_path / "base")
    assert found.adapter_name_or_path == (str(tmp_path / "adapter"),)


def test_a_base_that_is_gone_is_named_with_the_way_out(folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders / "adapter", tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": str(tmp_path / "gone")}))
    with pytest.raises(UserError, match="gone.*is not there"):
        load(tmp_path / "adapter")
    with pytest.raises(UserError, match="--model_name_or_path BASE"):
        load(tmp_path / "adapter")
