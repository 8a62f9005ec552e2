"""Keys of the model, its quantisation and the method that trains it. Knows nothing of data or optimisers."""

from typing import Literal, Self

from pydantic import Field, model_validator

from danlu.core.config import StrictConfig
from danlu.core.key_types import CommaList, only_with


class ModelConfig(StrictConfig):
    """Which base model and tokenizer are loaded, and how."""

    model_name_or_path: str | None = Field(None, description="Base model: a folder or a hub id.")
    adapter_name_or_path: CommaList = Field(
        (), description="Adapters on top of the base, comma separated: all but the last are merged, the last goes on.")
    adapter_folder: str | None = Field(
        None, description="Folder that holds the adapters named in the key above.",
        json_schema_extra=only_with(adapter_name_or_path=True))
    cache_dir: str | None = Field(None, description="Folder for models and data sets fetched from a hub.")
    resize_vocab: bool = Field(False, description="Grow embedding and head when the tokenizer knows more tokens.")
    split_special_tokens: bool = Field(False, description="Let the tokenizer split special tokens found in text.")
    add_tokens: CommaList = Field((), description="Ordinary tokens to add to the tokenizer, comma separated.")
    add_special_tokens: CommaList = Field((), description="Special tokens to add to the tokenizer, comma separated.")
    new_special_tokens_config: str | None = Field(
        None, description="YAML file that maps new special tokens to descriptions; used by init_special_tokens.")
    init_special_tokens: Literal["noise_init", "desc_init", "desc_init_w_noise"] = Field(
        "noise_init",
        description="New embedding rows: mean of all rows plus noise, mean of the description's rows, or both.",
        json_schema_extra=only_with(new_special_tokens_config=True))
    model_revision: str = Field("main", description="Branch, tag or commit of the model on the hub.")
    rope_scaling: Literal["linear", "dynamic", "yarn", "llama3"] | None = Field(
        None, description="Stretch rotary positions so that cutoff_len may exceed the model's context.")
    flash_attn: Literal["auto", "disabled", "sdpa", "fa2", "fa3"] = Field(
        "auto", description="Attention kernel where danlu's own over packed rows does not apply; disabled: plain.")
    moe_aux_loss_coef: float | None = Field(
        None, ge=0, description="Weight of the load-balancing loss of mixture-of-experts models.")
    gradient_checkpointing: bool | None = Field(
        None, description="Recompute activations in backward: less memory, more time; unset: on with a GPU only.")
    disable_gradient_checkpointing: bool = Field(False, description="Keep all activations; wins over the key above.")
    upcast_layernorm: bool = Field(False, description="Keep the weights of normalisation layers in float32.")
    train_from_scratch: bool = Field(False, description="Keep the architecture, start from random weights.")
    infer_dtype: Literal["auto", "float16", "bfloat16", "float32"] = Field(
        "auto", description="Type of the weights when nothing is trained; auto takes the checkpoint's.")
    hf_hub_token: str | None = Field(None, description="Token for private models on the Hugging Face hub.")
    print_param_status: bool = Field(False, description="Print name, type, device and trainability of every weight.")
    trust_remote_code: bool = Field(False, description="Run Python code that comes with the model.")

    def wants_checkpointing(self, on_accelerator: bool) -> bool:
        """Return whether activations are recomputed in backward on this kind of device."""
        if self.disable_gradient_checkpointing:
            return False
        return on_accelerator if self.gradient_checkpointing is None else self.gradient_checkpointing

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.gradient_checkpointing and self.disable_gradient_checkpointing:
            raise ValueError("gradient_checkpointing: true and disable_gradient_checkpointing: true exclude each other")
        return self


class QuantizationConfig(StrictConfig):
    """How the frozen base is stored in few bits."""

    quantization_method: Literal["bnb"] = Field(
        "bnb", description="Library that quantises on loading: bitsandbytes.",
        json_schema_extra=only_with(quantization_bit=True))
    quantization_bit: Literal[4, 8] | None = Field(
        None, description="Bits per weight of the base; unset loads it unquantised.")
    quantization_type: Literal["fp4", "nf4"] = Field(
        "nf4", description="Number format of 4-bit weights.",
        json_schema_extra=only_with(quantization_bit=4))
    double_quantization: bool = Field(
        True, description="Quantise the 4-bit scales too; saves 0.4 bits per weight.",
        json_schema_extra=only_with(quantization_bit=4))


class AdapterConfig(StrictConfig):
    """Which weights are trained: all, the last layers, or low-rank updates."""

    finetuning_type: Literal["lora", "freeze", "full"] = Field(
        "lora", description="Train low-rank adapters, some layers, or all weights.")
    pure_bf16: bool = Field(False, description="Hold all weights in bfloat16 and train without a float32 copy.")
    additional_target: CommaList = Field(
        (), description="Modules that are trained in full beside the adapter, and saved with it.",
        json_schema_extra=only_with(finetuning_type="lora"))
    create_new_adapter: bool = Field(
        False, description="Merge the given adapters into the base and start a new one, instead of going on.",
        json_schema_extra=only_with(finetuning_type="lora"))
    freeze_trainable_layers: int = Field(
        2, description="Layers to train with finetuning_type freeze: the last n, or the first |n| when negative.",
        json_schema_extra=only_with(finetuning_type="freeze"))
    freeze_trainable_modules: CommaList = Field(
        ("all",), description="Modules of those layers to train, comma separated; all takes every one.",
        json_schema_extra=only_with(finetuning_type="freeze"))
    freeze_extra_modules: CommaList = Field(
        (), description="Modules outside the layers to train too, comma separated.",
        json_schema_extra=only_with(finetuning_type="freeze"))
    lora_rank: int = Field(
        8, ge=1, description="Rank r of the update B A.",
        json_schema_extra=only_with(finetuning_type="lora"))
    lora_alpha: int | None = Field(
        None, ge=1, description="Scale of the update is alpha / r; unset: 2 r.",
        json_schema_extra=only_with(finetuning_type="lora"))
    lora_dropout: float = Field(
        0.0, ge=0, lt=1, description="Dropout on the input of A.",
        json_schema_extra=only_with(finetuning_type="lora"))
    lora_target: CommaList = Field(
        ("all",), description="Modules that get an adapter, comma separated; all: every linear layer but the head.",
        json_schema_extra=only_with(finetuning_type="lora"))
    use_rslora: bool = Field(
        False, description="Scale by alpha / sqrt(r) (rank-stabilised LoRA).",
        json_schema_extra=only_with(finetuning_type="lora"))
    use_dora: bool = Field(
        False, description="Learn the norm of each output row beside the update (DoRA).",
        json_schema_extra=only_with(finetuning_type="lora"))
    pissa_init: bool = Field(
        False, description="Start A and B from the largest singular vectors (PiSSA).",
        json_schema_extra=only_with(finetuning_type="lora"))
    pissa_iter: int = Field(
        16, ge=-1, description="Subspace iterations of the fast SVD; -1 takes the exact SVD.",
        json_schema_extra=only_with(pissa_init=True))

    @property
    def alpha(self) -> int:
        """The scale in force: lora_alpha, or twice the rank."""
        return 2 * self.lora_rank if self.lora_alpha is None else self.lora_alpha

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.pissa_init and self.use_dora:
            raise ValueError("pissa_init and use_dora exclude each other: DoRA needs the untouched base weights")
        if self.freeze_trainable_layers == 0 and self.finetuning_type == "freeze":
            raise ValueError("freeze_trainable_layers is 0, so finetuning_type freeze would train no layer")
        return self
