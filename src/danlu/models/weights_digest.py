"""Know a network by what it computes with: a hash of its weights as loaded, its settings and the code that runs it."""

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

CODE = ("danlu.core", "danlu.losses", "danlu.models")
WITHOUT_EFFECT = {
    "_name_or_path", "base_model_name_or_path", "revision", "transformers_version", "architectures", "use_cache",
    "dtype", "torch_dtype"}
MOST_THREADS = 8


def digest_of(model: PreTrainedModel | PeftModel, *, without_adapter: bool = False) -> str:
    """Return a hash of everything that decides the model's numbers but the device.

    The weights count as they are in memory, so that a base edited in place, other bits, merged adapters or resized
    embeddings all give another hash. `without_adapter` leaves out what switching the adapter off leaves out; the base
    then has the hash that it has by itself.
    """
    adapters = model.peft_config if isinstance(model, PeftModel) else {}
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    own = sorted(_weights(base, set(adapters) if without_adapter else set()), key=lambda item: item[0])
    with ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1)) as pool:
        hashes = list(pool.map(lambda item: _hash(item[1]), own))
    settings = [base.config.to_dict(), *(() if without_adapter else (one.to_dict() for one in adapters.values()))]
    told = [[name for name, _ in own], hashes, [_lasting(one) for one in settings], torch.__version__,
            transformers.__version__, _code()]
    return blake2b(json.dumps(told, sort_keys=True, default=_plain).encode(), digest_size=20).hexdigest()


def _weights(base: PreTrainedModel, adapters: set[str]) -> Iterator[tuple[str, Tensor]]:
    """Yield names and values, quantisation constants included; names are those of the bare base."""
    for name, value in base.state_dict().items():
        parts = name.split(".")
        if isinstance(value, Tensor) and not adapters & set(parts):
            yield ".".join(part for part in parts if part not in ("base_layer", "original_module")), value


def _hash(value: Tensor) -> str:
    plain = value.detach().reshape(-1).contiguous().cpu()
    digest = blake2b(f"{value.dtype} {tuple(value.shape)}".encode(), digest_size=20)
    digest.update(plain.view(torch.uint8).numpy())
    return digest.hexdigest()


def _lasting(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in WITHOUT_EFFECT}


def _plain(value: object) -> object:
    return sorted(map(str, value)) if isinstance(value, set) else str(value)


def _code() -> str:
    digest = blake2b(digest_size=20)
    for name in CODE:
        for root in import_module(name).__path__:
            for path in sorted(Path(root).glob("*.py")):
                digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()
