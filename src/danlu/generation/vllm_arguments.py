"""What vLLM is told, as plain data: engine and sampling arguments, seeds, and what it cannot serve. Never imports vllm.

Names and ranges are those of vLLM 0.32 and 0.33.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from danlu.core.errors import CapabilityError, UserError
from danlu.generation.base import Source
from danlu.generation.config import GenerationConfig

COLDEST, WARMEST = 0.01, 2.0  # vLLM silently raises a temperature below and refuses one above
OTHERWISE = "set infer_backend: danlu, or leave it out"
CHANGES_BASE = ("pissa", "olora", "corda", "loftq")  # peft changes the base's weights when it reads such an adapter
IN_THE_ENGINE = {"logprobs_mode", "skip_tokenizer_init", "generation_config", "enable_lora", "max_loras"}


def engine_arguments(source: Source, name: str, *, context: int | None, has_adapter: bool) -> dict[str, Any]:
    """Return the keyword arguments of vllm.LLM for the base `name`, whose positions are `context` (None: unbounded).

    vllm_config comes last and so has the last word, except on what the answers' meaning hangs on.
    Raises UserError for the latter.
    """
    settings, model = source.settings, source.model
    taken = sorted(IN_THE_ENGINE & set(settings.vllm_config or {}))
    if taken:
        raise UserError(f"{', '.join(taken)} is set by danlu", where="vllm_config", fix="take it out")
    adapters = {"enable_lora": True, "max_loras": 1, "max_lora_rank": settings.vllm_max_lora_rank}
    return {
        "model": name, "revision": model.model_revision, "hf_token": model.hf_hub_token,
        "download_dir": model.cache_dir, "trust_remote_code": model.trust_remote_code,
        "dtype": str(source.compute_dtype).removeprefix("torch."),
        "max_model_len": min(settings.vllm_maxlen, context or settings.vllm_maxlen),
        "gpu_memory_utilization": settings.vllm_gpu_util, "enforce_eager": settings.vllm_enforce_eager,
        "enable_prefix_caching": True,  # the answers to one prompt share its keys and values
        "logprobs_mode": "raw_logprobs",  # before temperature, top_k, top_p and penalties
        "generation_config": "vllm",  # not the sampling that the model's publisher recommends
        "skip_tokenizer_init": True,  # ids go in and ids come out
        **(adapters if has_adapter else {}), **(settings.vllm_config or {})}


def sampling_arguments(
    settings: GenerationConfig, *, limit: int, stop_ids: frozenset[int], seed: int, with_logps: bool,
) -> dict[str, Any]:
    """Return the keyword arguments of vllm.SamplingParams for one answer of at most `limit` tokens."""
    drawn = {"temperature": settings.temperature, "top_p": settings.top_p, "top_k": settings.top_k}
    return {
        "n": 1, "max_tokens": limit, "seed": seed, "repetition_penalty": settings.repetition_penalty,
        "stop_token_ids": sorted(stop_ids), "detokenize": False,
        "logprobs": 0 if with_logps else None,  # 0: of the drawn token and of no other
        **(drawn if settings.do_sample else {"temperature": 0.0})}


def seed_of(stream: Sequence[int]) -> int:
    """Return the seed, in [0, 2^63), of the random stream named by `stream`."""
    return int(np.random.SeedSequence(list(stream)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def drawn_tokens(output: Any) -> tuple[tuple[int, ...], list[float] | None]:
    """Return the tokens of one CompletionOutput, the stop token included, and their log-probabilities if recorded.

    Raises RuntimeError where the engine gave the answer up.
    """
    ids = tuple(int(token) for token in output.token_ids)
    if output.finish_reason not in ("stop", "length"):
        raise RuntimeError(f"vLLM ended an answer of {len(ids)} tokens with finish_reason {output.finish_reason!r}")
    if output.logprobs is None:
        return ids, None
    return ids, [float(place[token].logprob) for token, place in zip(ids, output.logprobs, strict=True)]


def check_settings(settings: GenerationConfig) -> None:
    """Refuse generation keys that vLLM has no counterpart for."""
    if settings.num_beams > 1:
        raise CapabilityError("infer_backend: vllm has no beam search here", where="num_beams",
                              fix="set num_beams: 1, or infer_backend: huggingface")
    if not settings.use_kv_cache:
        raise CapabilityError("infer_backend: vllm always keeps keys and values", where="use_kv_cache",
                              fix="leave use_kv_cache out, or set infer_backend: huggingface")
    if settings.do_sample and not COLDEST <= settings.temperature <= WARMEST:
        raise CapabilityError(
            f"infer_backend: vllm takes temperatures from {COLDEST} to {WARMEST}, not {settings.temperature:g}",
            where="temperature", fix=f"do_sample: false is temperature 0; or {OTHERWISE}")


def check_source(source: Source) -> None:
    """Refuse keys that change the weights after they are read: vLLM reads the folder as it is."""
    model, bits = source.model, source.quantization.quantization_bit
    asked = {"quantization_bit": bits, "rope_scaling": model.rope_scaling, "resize_vocab": model.resize_vocab,
             "train_from_scratch": model.train_from_scratch, "upcast_layernorm": model.upcast_layernorm}
    for key, value in asked.items():
        if value:
            hint = 'set vllm_config: {"quantization": "bitsandbytes"}' if key == "quantization_bit" else ""
            raise CapabilityError(f"infer_backend: vllm reads weights as they are on disk; {key} changes them",
                                  where=key, fix=" or ".join(filter(None, [hint, OTHERWISE])))


def check_adapter(adapter: Mapping[str, Any], max_rank: int, where: str) -> None:
    """Refuse an adapter, given as its adapter_config.json, that vLLM does not compute."""
    rank = max([int(adapter.get("r") or 0), *(adapter.get("rank_pattern") or {}).values()])
    unserved = [name for name in ("use_dora", "modules_to_save", "lora_bias", "trainable_token_indices")
                if adapter.get(name)]
    if str(adapter.get("init_lora_weights")).lower().startswith(CHANGES_BASE):
        unserved.append(f"init_lora_weights {adapter['init_lora_weights']}")
    if str(getattr(adapter.get("peft_type"), "value", adapter.get("peft_type"))) != "LORA":
        unserved.append(f"peft_type {adapter.get('peft_type')}")
    if unserved:
        raise CapabilityError(f"infer_backend: vllm serves plain LoRA, this adapter has {', '.join(unserved)}",
                              where=where, fix=f"merge it with `danlu export`; or {OTHERWISE}")
    if rank > max_rank:
        raise UserError(f"the adapter's rank is {rank}, vllm_max_lora_rank is {max_rank}", where="vllm_max_lora_rank",
                        fix="raise it to 64, 128, 256, 320 or 512")


def check_numbers(logps: Sequence[float]) -> None:
    """Raise FloatingPointError where a drawn token's log-probability is not a number."""
    if not torch.tensor(logps).isfinite().all():
        raise FloatingPointError(f"a drawn token has log-probability {min(logps)}: the model's logits are broken")
