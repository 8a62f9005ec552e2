"""From a run's configuration to a model that answers: base, adapter, merged or quantised. Trains nothing."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from danlu.core.errors import CapabilityError, UserError
from danlu.generation.base import BACKENDS, Generator, Source
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
    """A model ready to answer, with the template its prompts are written in.

    name     what a reader calls it
    network  the model in this process; None where an engine of its own answers
    """

    name: str
    network: Any
    tokenizer: PreTrainedTokenizerBase
    template: ChatTemplate
    generator: Generator

    @property
    def model(self) -> Any:
        """Return the model in this process, for what reads more than answers. Raises CapabilityError without one."""
        if self.network is None:
            raise CapabilityError("this task reads the model's own numbers, and no model is in this process",
                                  where="infer_backend", fix="set infer_backend: huggingface or danlu")
        return self.network


def load_for_inference(
    model: ModelConfig, quantization: QuantizationConfig, adapter: AdapterConfig, generation: GenerationConfig, *,
    template: str | None = None, tool_format: str | None = None, batch_size: int = 16,
) -> Loaded:
    """Load what `model` names, adapters on top, and resolve the template its prompts need.

    Raises UserError when the folder is neither a model nor an adapter, or an adapter's base is gone.
    """
    source = with_base_of_adapter(model)
    tokenizer = load_tokenizer(source)
    chosen = resolve(template, tokenizer, tool_format=tool_format)
    chosen.prepare_tokenizer(tokenizer)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype, backend = resolve_inference_dtype(source.infer_dtype, device), BACKENDS[generation.infer_backend]
    network = None
    if backend.needs_model:
        network = load_model(
            source, quantization, adapter, tokenizer=tokenizer, trainable=False, compute_dtype=dtype).eval()
        if not is_quantized(network):
            network.to(device)
    generator = backend.build(Source(
        source, quantization, adapter, tokenizer, chosen.stop_token_ids(tokenizer), generation, dtype, batch_size,
    ), network)
    return Loaded(model_name(model), network, tokenizer, chosen, generator)


def with_base_of_adapter(config: ModelConfig) -> ModelConfig:
    """Return the configuration with the base that adapter_config.json records, where only an adapter is named.

    Raises UserError when that base is not there.
    """
    named, adapters = config.model_name_or_path, config.adapter_name_or_path
    if not named and not adapters:
        return config
    folder = Path(named or adapters[-1]).expanduser()
    is_adapter = (folder / ADAPTER_FILE).is_file() and not (folder / "config.json").is_file()
    if not is_adapter:
        return config
    return config.model_copy(update={
        "model_name_or_path": _recorded_base(folder),
        "adapter_name_or_path": (str(folder), *adapters) if named else adapters})


def _recorded_base(adapter: Path) -> str:
    """Return the base's folder as recorded, or beside the adapter when both moved together; or its hub id."""
    base = json.loads((adapter / ADAPTER_FILE).read_text(encoding="utf-8")).get("base_model_name_or_path")
    places = [Path(base), adapter / base, adapter.parent / base] if base else []
    found = next((str(place) for place in places if place.is_dir()), None)
    if found is None and (not base or Path(base).is_absolute()):
        raise UserError(
            f"the base {base or '(none recorded)'} of this adapter is not there", where=str(adapter / ADAPTER_FILE),
            fix=f"name it: --model_name_or_path BASE --adapter_name_or_path {adapter}")
    return found or str(base)


def model_name(config: ModelConfig) -> str:
    """Return what a reader calls the model: its last adapter or folder, shortened to the last part."""
    full = config.adapter_name_or_path[-1] if config.adapter_name_or_path else str(config.model_name_or_path)
    return Path(full).name or full
