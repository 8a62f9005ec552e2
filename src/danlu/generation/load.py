"""From a run's configuration to a model that answers: base, adapter, merged or quantised. Trains nothing."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from danlu.core.errors import UserError
from danlu.generation.base import BACKENDS, Generator
from danlu.generation.config import GenerationConfig
from danlu.models.config import AdapterConfig, ModelConfig, QuantizationConfig
from danlu.models.load import load_model
from danlu.models.precision import resolve_inference_dtype
from danlu.models.quantization import is_quantized
from danlu.models.tokenizer import load_tokenizer
from danlu.templates import resolve
from danlu.templates.base import ChatTemplate

ADAPTER_FILE = "adapter_config.json"


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model ready to answer, with the template its prompts are written in. `name` is what a reader calls it."""

    name: str
    model: Any
    tokenizer: PreTrainedTokenizerBase
    template: ChatTemplate
    generator: Generator


def load_for_inference(
    model: ModelConfig, quantization: QuantizationConfig, adapter: AdapterConfig, generation: GenerationConfig, *,
    template: str | None = None, batch_size: int = 16,
) -> Loaded:
    """Load what `model` names, adapters on top, and resolve the template its prompts need.

    Raises UserError when the folder is neither a model nor an adapter, or an adapter's base is gone.
    """
    source = with_base_of_adapter(model)
    tokenizer = load_tokenizer(source)
    chosen = resolve(template, tokenizer)
    chosen.prepare_tokenizer(tokenizer)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = load_model(
        source, quantization, adapter, tokenizer=tokenizer, trainable=False,
        compute_dtype=resolve_inference_dtype(source.infer_dtype, device))
    if not is_quantized(network):
        network.to(device)
    backend = BACKENDS[generation.infer_backend]
    generator = backend(network.eval(), tokenizer, chosen.stop_token_ids(tokenizer), batch_size=batch_size)
    return Loaded(model_name(model), network, tokenizer, chosen, generator)


def with_base_of_adapter(config: ModelConfig) -> ModelConfig:
    """Return the configuration with the base named in adapter_config.json when the model folder is an adapter."""
    name = config.model_name_or_path
    given = Path(name).expanduser() if name else _only_adapter(config)
    if given is None or not (given / ADAPTER_FILE).is_file() or (name and (given / "config.json").is_file()):
        return config
    base = json.loads((given / ADAPTER_FILE).read_text(encoding="utf-8")).get("base_model_name_or_path")
    found = next((path for path in (Path(base), given / base, given.parent / base) if path.is_dir()), None) \
        if base else None
    if not base or (found is None and Path(base).is_absolute()):
        raise UserError(
            f"the base {base or '(none recorded)'} of this adapter is not there", where=str(given / ADAPTER_FILE),
            fix=f"name it: --model_name_or_path BASE --adapter_name_or_path {given}")
    adapters = (str(given), *config.adapter_name_or_path) if name else config.adapter_name_or_path
    return config.model_copy(update={
        "model_name_or_path": str(found) if found else base, "adapter_name_or_path": adapters})


def model_name(config: ModelConfig) -> str:
    """Return what a reader calls the model: its last adapter or folder, shortened to the last part."""
    full = (*config.adapter_name_or_path, config.model_name_or_path or "")[max(0, len(config.adapter_name_or_path) - 1)]
    return Path(full).name or full


def _only_adapter(config: ModelConfig) -> Path | None:
    return Path(config.adapter_name_or_path[-1]).expanduser() if config.adapter_name_or_path else None
