"""Know a base model again: its architecture and a few of its numbers, written beside each adapter.

The numbers survive another sharding or half-precision copy of the same base, and differ between two models of one
architecture, where nothing else would tell that an adapter is put on the wrong one.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from danlu.core.console import warn
from danlu.core.errors import UserError
from danlu.models.source import local_folder

FILE = "danlu_base.json"
NUM_TENSORS, NUM_VALUES = 8, 8
# bfloat16 keeps 8 bits: a rounded copy of a weight differs by at most 2**-9 of it, twice that after float16.
TOLERANCE = 2.0**-7
_NOT_ARCHITECTURE = {
    "_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures", "use_cache", "auto_map",
    "quantization_config", "bos_token_id", "eos_token_id", "pad_token_id", "rope_scaling", "rope_parameters",
    "max_position_embeddings", "attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop",
}

Identity = dict[str, Any]


def identify_base(name: str) -> Identity | None:
    """Return path, architecture hash and sampled weights of a local base; None for one that is not a local folder."""
    folder = local_folder(name)
    if folder is None or not (folder / "config.json").is_file():
        return None
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kept = {key: value for key, value in sorted(config.items()) if key not in _NOT_ARCHITECTURE}
    digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()
    return {"base": str(folder.resolve()), "model_type": config.get("model_type"), "architecture_sha256": digest,
            "sample": sample_weights(folder)}


def sample_weights(folder: Path) -> dict[str, list[float]]:
    """Return eight values of each of eight tensors, spread over the model; {} without safetensors files."""
    where = {name: path for path in sorted(folder.glob("*.safetensors")) for name in _names(path)}
    names = sorted(where)
    step = max(1, len(names) // NUM_TENSORS)
    return {name: _values(where[name], name) for name in names[::step][:NUM_TENSORS]}


def write_identity(name: str, folder: Path) -> None:
    """Record in an adapter's folder which base it belongs to."""
    identity = identify_base(name)
    if identity is not None:
        (folder / FILE).write_text(json.dumps(identity, indent=2) + "\n", encoding="utf-8")


def check_same_base(adapter: str, base_name: str) -> None:
    """Refuse an adapter whose record names another base; say nothing of adapters without a record."""
    folder = local_folder(adapter)
    if folder is None or not (folder / FILE).is_file():
        return
    recorded = json.loads((folder / FILE).read_text(encoding="utf-8"))
    found = identify_base(base_name)
    if found is None:
        warn(f"cannot compare {base_name} with the base that {adapter} was trained on: it is no local folder")
        return
    difference = _difference(recorded, found)
    if difference:
        raise UserError(
            f"the adapter {adapter} was trained on another base: {difference}", where="adapter_name_or_path",
            fix=f"set model_name_or_path: {recorded['base']}; to use it here all the same, delete {folder / FILE}")


def _difference(recorded: Identity, found: Identity) -> str:
    if recorded["architecture_sha256"] != found["architecture_sha256"]:
        return (f"its architecture ({recorded['model_type']}, {recorded['base']}) differs from that of "
                f"{found['base']} ({found['model_type']})")
    for name, values in recorded["sample"].items():
        others = found["sample"].get(name)
        if others is not None and not _close(values, others):
            return f"the weights {name} of {found['base']} differ from those of {recorded['base']}"
    return ""


def _close(ours: list[float], theirs: list[float]) -> bool:
    if len(ours) != len(theirs):
        return False
    return all(abs(a - b) <= TOLERANCE * max(abs(a), abs(b)) + 1e-7 for a, b in zip(ours, theirs, strict=True))


def _names(path: Path) -> list[str]:
    with safe_open(path, framework="pt") as file:
        return list(file.keys())


def _values(path: Path, name: str) -> list[float]:
    with safe_open(path, framework="pt") as file:
        tensor = file.get_slice(name)
        shape = tensor.get_shape()
        rows = tensor[: min(4, shape[0])] if shape else file.get_tensor(name)
    flat = rows.reshape(-1).to(torch.float64)
    picked = flat[torch.linspace(0, max(0, len(flat) - 1), NUM_VALUES).long()] if len(flat) else flat
    return [float(value) for value in picked]
