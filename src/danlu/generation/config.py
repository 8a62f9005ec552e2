"""Keys of text generation: chat, prediction, sampling in reinforcement learning."""

from typing import Any, Literal

from pydantic import Field

from danlu.core.config import StrictConfig
from danlu.core.key_types import only_with


class GenerationConfig(StrictConfig):
    """How an answer is drawn from the model."""

    infer_backend: Literal["huggingface", "danlu", "vllm"] = Field(
        "huggingface",
        description="What generates: huggingface (transformers), danlu (slots; default of ppo and grpo) or vllm.")
    do_sample: bool = Field(True, description="Draw tokens at random; false takes the most probable one.")
    temperature: float = Field(0.95, gt=0, description="Divides the logits before drawing; below 1 is more certain.")
    top_p: float = Field(0.7, gt=0, le=1, description="Draw from the most probable tokens that sum to this mass.")
    top_k: int = Field(50, ge=0, description="Draw from this many most probable tokens; 0 for all.")
    num_beams: int = Field(1, ge=1, description="Beams of beam search; 1 switches it off.")
    max_length: int = Field(1024, ge=1, description="Prompt and answer in tokens; used when max_new_tokens is 0.")
    max_new_tokens: int = Field(1024, ge=0, description="Answer in tokens at most; 0 leaves the limit to max_length.")
    repetition_penalty: float = Field(1.0, gt=0, description="Divides the score of tokens that occurred; 1 is none.")
    length_penalty: float = Field(1.0, description="Exponent of the length in beam search; above 0 favours long.")
    skip_special_tokens: bool = Field(True, description="Leave control tokens out of the decoded text.")
    use_kv_cache: bool = Field(True, description="Keep keys and values of earlier tokens while generating.")
    vllm_maxlen: int = Field(
        4096, ge=2, description="Prompt and answer in tokens that the engine makes room for, at most.",
        json_schema_extra=only_with(infer_backend="vllm"))
    vllm_gpu_util: float = Field(
        0.7, gt=0, le=1, description="Share of the GPU's memory for the engine: weights, keys and values.",
        json_schema_extra=only_with(infer_backend="vllm"))
    vllm_enforce_eager: bool = Field(
        False, description="Build no CUDA graphs: the engine starts sooner and answers more slowly.",
        json_schema_extra=only_with(infer_backend="vllm"))
    vllm_max_lora_rank: Literal[1, 8, 16, 32, 64, 128, 256, 320, 512] = Field(
        32, description="Largest rank of an adapter that the engine makes room for.",
        json_schema_extra=only_with(infer_backend="vllm"))
    vllm_config: dict[str, Any] | None = Field(
        None, description="Further arguments of vllm.LLM, as a map.", json_schema_extra=only_with(infer_backend="vllm"))
