"""What a run needs of memory and disk, by part, from the config alone: no weight is loaded.

L layers, d hidden size, f width of the feed-forward part, H and K heads of queries and keys, h their size, V tokens of
the vocabulary, b bytes of the compute dtype. Activations that one token keeps for backward:
    b L (6 d + 2 H h + 2 K h + 4 f)          without gradient checkpointing
    b L d + the above for one layer          with it
"""

from dataclasses import dataclass, replace

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from danlu.models.adapters import new_adapter
from danlu.models.architecture import context_length, learned_positions, load_config
from danlu.models.config import AdapterConfig, ModelConfig, QuantizationConfig
from danlu.models.freeze import train_all, train_some_layers
from danlu.models.load import count_parameters
from danlu.models.quiet import quiet_loading
from danlu.models.source import check_model_source, unreachable
from danlu.models.tokenizer import adapter_paths

FLOAT32 = 4
# A 4-bit weight: half a byte, and a scale for each block of 64: float32, or 8 bits with a float32 for each 256 of them.
NF4_BYTES = {False: 0.5 + 4 / 64, True: 0.5 + 1 / 64 + 4 / (64 * 256)}
INT8_BYTES = 1.0


@dataclass(frozen=True, slots=True)
class ModelCounts:
    """Sizes of a model and of what trains; parameters are numbers of values, not bytes.

    quantizable  weights of linear layers but the head
    widths       values that one layer keeps of each token for backward: 6 d + 2 H h + 2 K h + 4 f
    positions    rows of a learned table of positions
    context      positions the model was built for
    trains_head  whether the head or an adapter on it trains
    """

    total: int
    trainable: int
    quantizable: int
    layers: int
    hidden: int
    widths: int
    vocabulary: int
    positions: int | None = None
    context: int | None = None
    trains_head: bool = True

    @property
    def frozen(self) -> int:
        """Parameters that do not train."""
        return self.total - self.trainable


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes by part; `checkpoint` and `final` are on disk.

    reference  a second, frozen network
    value      a network that trains beside the policy: weights, gradients and optimiser state
    reward     frozen networks that score answers
    answers    keys and values of the answers that are sampled side by side
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    checkpoint: int
    final: int
    reference: int = 0
    value: int = 0
    reward: int = 0
    answers: int = 0

    @property
    def total(self) -> int:
        """Bytes of memory while training."""
        training = self.weights + self.gradients + self.optimizer + self.activations + self.logits
        return training + self.reference + self.value + self.reward + self.answers


def count_model(model_cfg: ModelConfig, adapter_cfg: AdapterConfig) -> ModelCounts:
    """Build model and adapter without memory and count them. Raises UserError as loading them would."""
    name = check_model_source(model_cfg.model_name_or_path, weights=False, cache_dir=model_cfg.cache_dir)
    config = load_config(name, model_cfg)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=model_cfg.trust_remote_code)
    paths = adapter_paths(model_cfg)
    goes_on = paths[-1] if paths and not adapter_cfg.create_new_adapter else None
    return counts_of(model, adapter_cfg, adapter=goes_on)


def counts_of(model: PreTrainedModel, adapter_cfg: AdapterConfig, *, adapter: str | None = None) -> ModelCounts:
    """Return the counts of a model without weights, after putting on it what trains: new, or the saved `adapter`."""
    head, positions = model.get_output_embeddings(), learned_positions(model)
    quantizable = sum(module.weight.numel() for module in model.modules()
                      if isinstance(module, (nn.Linear, Conv1D)) and module is not head)
    trainable, total = count_parameters(_with_trainable(model, adapter_cfg, adapter))
    head_as_trained = model.get_output_embeddings()  # an adapter may have taken its place
    text = model.config.get_text_config()
    return ModelCounts(
        total=total, trainable=trainable, quantizable=quantizable, layers=text.num_hidden_layers,
        hidden=text.hidden_size, widths=_widths(text), vocabulary=text.vocab_size,
        positions=positions, context=context_length(text),
        trains_head=head_as_trained is None or any(p.requires_grad for p in head_as_trained.parameters()))


def estimate_memory(
    counts: ModelCounts, quant_cfg: QuantizationConfig, adapter_cfg: AdapterConfig, *, compute_dtype: torch.dtype,
    tokens: int, logit_bytes: int, optimizer_bytes: float = 8.0, checkpointing: bool = False,
    stored_bytes: int | None = None,
) -> MemoryEstimate:
    """Return what one micro-batch of `tokens` tokens takes.

    logit_bytes      of logits that are alive at once
    optimizer_bytes  of state for each trainable parameter: 8 for AdamW, 2 for its 8-bit form, 0 for SGD
    stored_bytes     of each value of the final model; None: as it trains
    """
    width = compute_dtype.itemsize
    master = 2 if adapter_cfg.pure_bf16 else FLOAT32
    weights = counts.trainable * master + _frozen_bytes(counts, quant_cfg, width)
    if width < master:
        weights += counts.trainable * width  # autocast's copies for the forward pass
    layer = width * counts.widths
    per_token = layer + width * counts.layers * counts.hidden if checkpointing else layer * counts.layers
    saved = counts.trainable if adapter_cfg.finetuning_type == "lora" else counts.total
    optimizer = int(counts.trainable * optimizer_bytes)
    return MemoryEstimate(
        weights=int(weights), gradients=counts.trainable * master, optimizer=optimizer,
        activations=tokens * per_token, logits=logit_bytes,
        checkpoint=saved * master + optimizer, final=saved * (stored_bytes or master))


def frozen_weights(counts: ModelCounts, quant_cfg: QuantizationConfig, compute_dtype: torch.dtype) -> int:
    """Return the bytes of a network of which nothing trains."""
    return int(_frozen_bytes(replace(counts, trainable=0), quant_cfg, compute_dtype.itemsize))


def _frozen_bytes(counts: ModelCounts, quant_cfg: QuantizationConfig, width: int) -> float:
    if quant_cfg.quantization_bit is None:
        return counts.frozen * width
    packed = NF4_BYTES[quant_cfg.double_quantization] if quant_cfg.quantization_bit == 4 else INT8_BYTES
    return counts.quantizable * packed + (counts.frozen - counts.quantizable) * width


def _with_trainable(
    model: PreTrainedModel, adapter_cfg: AdapterConfig, adapter: str | None,
) -> PreTrainedModel | PeftModel:
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    if adapter_cfg.finetuning_type == "lora":
        plain = adapter_cfg.model_copy(update={"pissa_init": False})
        with torch.device("meta"), quiet_loading():
            if adapter is None:
                return new_adapter(model, plain, "")
            saved = _adapter_config(adapter)
            saved.inference_mode = False
            return get_peft_model(model, saved, low_cpu_mem_usage=True)
    if adapter_cfg.finetuning_type == "full":
        train_all(model)
    else:
        train_some_layers(model, adapter_cfg)
    return model


def _adapter_config(adapter: str) -> PeftConfig:
    try:
        return PeftConfig.from_pretrained(adapter)
    except (OSError, ValueError) as error:
        raise unreachable(adapter, error, "adapter_name_or_path") from error


def _widths(text: PreTrainedConfig) -> int:
    hidden, heads = text.hidden_size, text.num_attention_heads
    size = getattr(text, "head_dim", None) or hidden // heads
    key_heads = getattr(text, "num_key_value_heads", None) or heads
    inner = next((value for key in ("intermediate_size", "ffn_dim", "n_inner")
                  if isinstance(value := getattr(text, key, None), int)), 4 * hidden)
    return int(6 * hidden + 2 * heads * size + 2 * key_heads * size + 4 * inner)
