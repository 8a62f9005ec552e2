"""The vLLM back end: what the engine is told, what its answers become, what is refused; the engine itself on a GPU."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from danlu.core.errors import CapabilityError, UserError
from danlu.generation.base import BACKENDS, Source
from danlu.generation.config import GenerationConfig
from danlu.generation.load import Loaded, load_for_inference
from danlu.generation.vllm_arguments import (
    check_adapter,
    check_numbers,
    check_settings,
    check_source,
    drawn_tokens,
    engine_arguments,
    sampling_arguments,
    seed_of,
)
from danlu.generation.vllm_backend import VLLMGenerator
from danlu.models.base_identity import write_identity
from danlu.models.config import AdapterConfig, ModelConfig, QuantizationConfig
from danlu.models.save import write_adapter
from tests.tiny import CHATML, save_tiny, tiny_model, tiny_tokenizer

HAS_ENGINE = torch.cuda.is_available() and find_spec("vllm") is not None
PLAIN = {"peft_type": "LORA", "r": 8}


@dataclass
class Logprob:
    """A number as vLLM reports it."""

    logprob: float


@dataclass
class Output:
    """The attributes of vLLM's CompletionOutput that are read."""

    token_ids: list[int]
    logprobs: list[dict[int, Logprob]] | None
    finish_reason: str | None


def settings(**keys: Any) -> GenerationConfig:
    return GenerationConfig(infer_backend="vllm", **keys)


def source(bits: Any = None, keys: GenerationConfig | None = None, **model: Any) -> Source:
    return Source(ModelConfig(**model), QuantizationConfig(quantization_bit=bits), AdapterConfig(), tiny_tokenizer(),
                  (4,), keys or settings(), torch.bfloat16, 4)


def test_without_the_package_the_way_out_is_named(tmp_path: Path) -> None:
    if find_spec("vllm") is not None:
        pytest.skip("vllm is installed")
    base = save_tiny(tmp_path / "base", "llama", CHATML)
    with pytest.raises(CapabilityError, match=r'pip install "danlu\[vllm\]"'):
        load_for_inference(ModelConfig(model_name_or_path=str(base)), QuantizationConfig(), AdapterConfig(), settings())


def test_a_task_that_reads_numbers_is_refused_where_no_model_is_in_this_process() -> None:
    with pytest.raises(CapabilityError, match="infer_backend: huggingface or danlu"):
        _ = Loaded("one", None, None, None, None).model  # type: ignore[arg-type]


def test_only_vllm_does_without_a_model_in_this_process() -> None:
    assert [name for name in BACKENDS if not BACKENDS[name].needs_model] == ["vllm"]


def test_engine_arguments_follow_the_keys() -> None:
    keys = settings(vllm_maxlen=128, vllm_gpu_util=0.5, vllm_enforce_eager=True, vllm_max_lora_rank=64,
                    vllm_config={"max_num_seqs": 3, "enforce_eager": False})
    told = engine_arguments(source(keys=keys), "base", context=256, has_adapter=True)
    assert told["model"] == "base" and told["dtype"] == "bfloat16"
    assert (told["max_model_len"], told["gpu_memory_utilization"]) == (128, 0.5)
    assert (told["enable_lora"], told["max_loras"], told["max_lora_rank"]) == (True, 1, 64)
    assert told["max_num_seqs"] == 3 and told["enforce_eager"] is False, "vllm_config has the last word"
    assert told["logprobs_mode"] == "raw_logprobs" and told["generation_config"] == "vllm"
    assert engine_arguments(source(keys=settings(vllm_enforce_eager=True)), "b", context=None, has_adapter=False)[
        "enforce_eager"]


@pytest.mark.parametrize(("maxlen", "context", "expected"), [(128, 256, 128), (4096, 256, 256), (4096, None, 4096)])
def test_the_engine_sees_no_further_than_the_model(maxlen: int, context: int | None, expected: int) -> None:
    told = engine_arguments(source(keys=settings(vllm_maxlen=maxlen)), "base", context=context, has_adapter=False)
    assert told["max_model_len"] == expected and "enable_lora" not in told


def test_what_the_answers_hang_on_is_not_to_be_overruled() -> None:
    with pytest.raises(UserError, match="logprobs_mode is set by danlu"):
        engine_arguments(source(keys=settings(vllm_config={"logprobs_mode": "processed_logprobs"})), "base",
                         context=None, has_adapter=False)


def test_sampling_arguments_follow_the_keys() -> None:
    keys = settings(temperature=0.7, top_p=0.9, top_k=5, repetition_penalty=1.2)
    told = sampling_arguments(keys, limit=9, stop_ids=frozenset({7, 2}), seed=3, with_logps=True)
    assert told == {"n": 1, "max_tokens": 9, "seed": 3, "repetition_penalty": 1.2, "stop_token_ids": [2, 7],
                    "detokenize": False, "logprobs": 0, "temperature": 0.7, "top_p": 0.9, "top_k": 5}
    greedy = sampling_arguments(settings(do_sample=False), limit=1, stop_ids=frozenset(), seed=0, with_logps=False)
    assert greedy["temperature"] == 0.0 and greedy["logprobs"] is None and "top_k" not in greedy


def test_every_answer_has_a_seed_of_its_own() -> None:
    """2 x 3 x 4 x 5 streams (seed, step, row, sample) give 120 seeds, all storable as a signed 64-bit number."""
    streams = [(a, b, c, d) for a in range(2) for b in range(3) for c in range(4) for d in range(5)]
    seeds = {seed_of(stream) for stream in streams}
    assert len(seeds) == 120 and all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of((1, 2)) == seed_of([1, 2]) != seed_of((2, 1))


def test_an_answer_keeps_its_stop_token_and_the_numbers_of_the_drawn_tokens() -> None:
    """Each place may hold further candidates; the drawn token's own number counts, also where it is not the best."""
    places = [{5: Logprob(-0.5)}, {9: Logprob(-0.1), 6: Logprob(-2.5)}, {2: Logprob(-1.0)}]
    assert drawn_tokens(Output([5, 6, 2], places, "stop")) == ((5, 6, 2), [-0.5, -2.5, -1.0])
    assert drawn_tokens(Output([5], None, "length")) == ((5,), None)


@pytest.mark.parametrize("reason", ["abort", "error", None])
def test_an_answer_the_engine_gave_up_is_no_answer(reason: str | None) -> None:
    with pytest.raises(RuntimeError, match="answer of 1 tokens"):
        drawn_tokens(Output([5], None, reason))


def test_broken_logits_stop_the_run() -> None:
    check_numbers([-1.0])
    with pytest.raises(FloatingPointError):
        check_numbers([-1.0, float("nan")])


@pytest.mark.parametrize(("keys", "where"), [
    ({"num_beams": 2}, "num_beams"), ({"use_kv_cache": False}, "use_kv_cache"),
    ({"temperature": 2.5}, "temperature"), ({"temperature": 0.001}, "temperature")])
def test_keys_without_a_counterpart_are_refused(keys: dict[str, Any], where: str) -> None:
    with pytest.raises(CapabilityError, match=where):
        check_settings(settings(**keys))
    check_settings(settings(temperature=2.5, do_sample=False))


@pytest.mark.parametrize("model", [
    {"rope_scaling": "linear"}, {"resize_vocab": True}, {"train_from_scratch": True}, {"upcast_layernorm": True}])
def test_keys_that_change_weights_after_reading_are_refused(model: dict[str, Any]) -> None:
    with pytest.raises(CapabilityError, match=next(iter(model))):
        check_source(source(**model))
    with pytest.raises(CapabilityError, match="bitsandbytes"):
        check_source(source(bits=4))
    check_source(source())


@pytest.mark.parametrize("odd", [
    {"use_dora": True}, {"modules_to_save": ["embed_tokens"]}, {"lora_bias": True}, {"peft_type": "LOHA"},
    {"init_lora_weights": "pissa_niter_16"}])
def test_adapters_beyond_plain_lora_are_refused(odd: dict[str, Any]) -> None:
    check_adapter(PLAIN, 8, "adapter")
    with pytest.raises(CapabilityError, match="danlu export"):
        check_adapter(PLAIN | odd, 8, "adapter")


@pytest.mark.parametrize("rank", [{"r": 16}, {"rank_pattern": {"q_proj": 9}}])
def test_an_adapter_needs_room_for_its_rank(rank: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="vllm_max_lora_rank is 8"):
        check_adapter(PLAIN | rank, 8, "adapter")


def test_the_adapter_handed_over_is_the_one_that_trains(tmp_path: Path) -> None:
    """Oracle: peft on the plain base reads the two files and gives the policy's own logits."""
    policy = get_peft_model(tiny_model("llama"), LoraConfig(
        task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)).eval()
    write_adapter(policy, tmp_path, "base")
    written = PeftConfig.from_pretrained(str(tmp_path)).to_dict()
    check_adapter(written, 8, "adapter")
    assert written["base_model_name_or_path"] == "base"
    ids = torch.tensor([[5, 6, 7]])
    expected = policy(input_ids=ids).logits
    read = PeftModel.from_pretrained(tiny_model("llama"), str(tmp_path)).eval()
    assert torch.equal(read(input_ids=ids).logits, expected)
    assert not torch.equal(tiny_model("llama")(input_ids=ids).logits, expected)


def adapted(base: Path, folder: Path, **keys: Any) -> PeftModel:
    """A policy with a LoRA adapter of rank 8, which is in `folder` too."""
    policy = get_peft_model(tiny_model("llama"), LoraConfig(
        task_type="CAUSAL_LM", r=8, target_modules=["q_proj"], init_lora_weights=False, **keys))
    folder.mkdir()
    write_adapter(policy, folder, str(base))
    write_identity(str(base), folder)
    return policy


def test_a_policy_trained_in_full_is_sampled_by_slots(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", "llama", CHATML)
    with pytest.raises(CapabilityError, match="infer_backend: danlu"):
        BACKENDS["vllm"].build(source(model_name_or_path=str(base)), tiny_model("llama"))


def test_a_policy_needs_room_for_its_rank(tmp_path: Path) -> None:
    """The check reads the adapter that trains: of rank 8 here, of no rank with DoRA."""
    base = save_tiny(tmp_path / "base", "llama", CHATML)
    narrow = source(keys=settings(vllm_max_lora_rank=1), model_name_or_path=str(base))
    with pytest.raises(UserError, match="rank is 8, vllm_max_lora_rank is 1"):
        BACKENDS["vllm"].build(narrow, adapted(base, tmp_path / "plain"))
    with pytest.raises(CapabilityError, match="use_dora"):
        BACKENDS["vllm"].build(narrow, adapted(base, tmp_path / "dora", use_dora=True))


def test_one_adapter_goes_with_a_request(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", "llama", CHATML)
    adapted(base, tmp_path / "one")
    adapted(base, tmp_path / "two")
    both = (str(tmp_path / "one"), str(tmp_path / "two"))
    with pytest.raises(CapabilityError, match="one adapter, 2 are named"):
        BACKENDS["vllm"].build(source(model_name_or_path=str(base), adapter_name_or_path=both), None)
    narrow = source(keys=settings(vllm_max_lora_rank=1), model_name_or_path=str(base), adapter_name_or_path=both[:1])
    with pytest.raises(UserError, match="vllm_max_lora_rank is 1"):
        BACKENDS["vllm"].build(narrow, None)


@pytest.mark.skipif(find_spec("vllm") is None, reason="needs the vllm package")
def test_each_round_hands_over_what_was_learnt_under_a_new_name(tmp_path: Path) -> None:
    """The engine gets no name or number twice, and only the folder in use is kept."""
    policy = adapted(tmp_path / "base", tmp_path / "first")
    generator, seen = VLLMGenerator(None, tiny_tokenizer(), frozenset({2}), policy=policy), []
    for _ in range(2):
        with torch.no_grad():
            weight = next(p for name, p in policy.named_parameters() if "lora_B" in name)
            weight.add_(1.0)
        generator.refresh()
        request = generator.adapter_request
        written = load_file(Path(request.lora_path) / "adapter_model.safetensors")
        name = next(name for name in written if "layers.0" in name and "lora_B" in name)
        assert torch.equal(written[name], weight)
        seen.append((request.lora_name, request.lora_int_id, Path(request.lora_path)))
    assert len({name for name, _, _ in seen}) == len({number for _, number, _ in seen}) == 2
    assert [path.exists() for *_, path in seen] == [False, True]


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_ENGINE, reason="needs a CUDA device and the vllm package")
@pytest.mark.parametrize("has_adapter", [False, True])
def test_greedy_answers_are_those_of_transformers(tmp_path: Path, has_adapter: bool) -> None:
    """Both in bfloat16, by other kernels: the first token is the same, numbers agree to a tenth of a nat, and the
    pieces of a stream join to the text."""
    sizes = {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 512}
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    model, tokenizer = tiny_model("llama", **sizes), tiny_tokenizer(chat_template=CHATML)
    with torch.no_grad():
        model.lm_head.weight.mul_(40)  # the best token is far ahead, so that rounding does not change it
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    if has_adapter:
        policy = get_peft_model(model, LoraConfig(
            task_type="CAUSAL_LM", r=8, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
        adapter.mkdir()
        write_adapter(policy, adapter, str(base))
    keys = ModelConfig(model_name_or_path=str(base), adapter_name_or_path=(str(adapter),) if has_adapter else (),
                       infer_dtype="bfloat16")
    greedy = {"do_sample": False, "max_new_tokens": 4, "vllm_gpu_util": 0.2, "vllm_enforce_eager": True}
    prompts = [tokenizer.encode(text) for text in ("the cat sat", "what colour is the sky")]
    answers = {}
    for name in ("huggingface", "vllm"):
        asked = GenerationConfig(infer_backend=name, **greedy)  # type: ignore[arg-type]
        loaded = load_for_inference(keys, QuantizationConfig(), AdapterConfig(), asked)
        answers[name] = loaded.generator.sample(prompts, asked, keys=[(0, 0), (0, 1)])
        assert "".join(loaded.generator.stream(prompts[0], asked)) == answers[name][0][0].text
    for (ours,), (theirs,) in zip(answers["huggingface"], answers["vllm"], strict=True):
        assert ours.ids[0] == theirs.ids[0]
        assert ours.logps is not None and theirs.logps is not None
        assert abs(ours.logps[0] - theirs.logps[0]) < 0.1
