"""Where a model, tokenizer or adapter is read from: a local folder or a hub id; what a wrong one should have held."""

import os
import re
import socket
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name

from danlu.core.errors import UserError, did_you_mean

CONFIG_FILES = ("config.json",)
WEIGHT_FILES = ("*.safetensors", "pytorch_model*.bin")
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "*.tiktoken", "vocab.json", "tokenizer_config.json", "spiece.model")
ADAPTER_FILES = ("adapter_config.json",)
_HUB_ID = re.compile(r"^[\w.-]+(/[\w.-]+)?$")


def local_folder(name: str) -> Path | None:
    """Return the folder that `name` points to, or None when it is a hub id."""
    folder = Path(name).expanduser()
    return folder if folder.is_dir() else None


def has_any(folder: Path, patterns: Sequence[str]) -> bool:
    """Return True when the folder holds a file that matches one of the patterns."""
    return any(True for pattern in patterns for _ in folder.glob(pattern))


def check_model_source(name: str | None, *, weights: bool = True, cache_dir: str | None = None) -> str:
    """Return the name to load from; refuse a folder that is missing or is no model, and a hub id out of reach."""
    if not name:
        raise UserError("no model is named", where="model_name_or_path",
                        fix="set model_name_or_path to a model folder or hub id")
    folder = _folder_or_hub_id(name, "model_name_or_path")
    if folder is None:
        _check_reach(name, "model_name_or_path", cache_dir)
        return name
    if not has_any(folder, CONFIG_FILES):
        _refuse_adapter(folder)
        raise _wrong_folder(folder, "a model", [*CONFIG_FILES, *WEIGHT_FILES])
    if weights and not has_any(folder, WEIGHT_FILES):
        raise _wrong_folder(folder, "a model with weights", WEIGHT_FILES)
    return str(folder)


def check_tokenizer_source(name: str, *, cache_dir: str | None = None) -> str:
    """Return the name to load from; refuse a folder that holds no tokenizer, and a hub id out of reach."""
    folder = _folder_or_hub_id(name, "model_name_or_path")
    if folder is None:
        _check_reach(name, "model_name_or_path", cache_dir)
        return name
    if not has_any(folder, TOKENIZER_FILES):
        _refuse_adapter(folder)
        if not has_any(folder, CONFIG_FILES):
            raise _wrong_folder(folder, "a model", [*CONFIG_FILES, *WEIGHT_FILES, "tokenizer.json"])
        raise _wrong_folder(folder, "a tokenizer", TOKENIZER_FILES)
    return str(folder)


def check_adapter_source(name: str) -> str:
    """Return the name to load from; refuse a folder that is missing or is no adapter."""
    folder = _folder_or_hub_id(name, "adapter_name_or_path")
    if folder is None:
        _check_reach(name, "adapter_name_or_path", None)
        return name
    if not has_any(folder, ADAPTER_FILES):
        if has_any(folder, CONFIG_FILES):
            raise UserError(
                f"{folder} is a whole model, not an adapter", where="adapter_name_or_path",
                fix=f"set model_name_or_path: {folder} and leave adapter_name_or_path out")
        raise _wrong_folder(folder, "an adapter", ["adapter_config.json", "adapter_model.safetensors"],
                            key="adapter_name_or_path")
    return str(folder)


def _folder_or_hub_id(name: str, key: str) -> Path | None:
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(f"{path} is a file; a folder or a hub id is expected", where=key,
                        fix=f"name the folder that holds it: {path.parent}")
    is_bare_adapter = key == "adapter_name_or_path" and "/" not in name  # the hub has models of one word, no adapters
    if _HUB_ID.match(name) and not name.startswith(".") and not _looks_local(name) and not is_bare_adapter:
        return None
    raise UserError(f"folder {name} does not exist", where=key, fix=_nearest(path))


def _check_reach(name: str, key: str, cache_dir: str | None) -> None:
    """Refuse at once a hub id that is not in the cache while the hub does not answer; libraries ask for a minute."""
    cached = Path(cache_dir or constants.HF_HUB_CACHE).expanduser() / repo_folder_name(repo_id=name, repo_type="model")
    if cached.is_dir() or offline() or _hub_answers():
        return
    raise UserError(
        f'folder {name} does not exist, and the hub at {constants.ENDPOINT}, which may hold "{name}", is not reachable',
        where=key, fix="give the path of a local folder, or download it once with network access")


def _hub_answers() -> bool:
    """Try to connect to the hub, or to the proxy on the way to it, for two seconds."""
    hub = urlsplit(constants.ENDPOINT)
    proxies = getproxies()
    target = urlsplit(proxies.get(hub.scheme) or proxies.get("all") or constants.ENDPOINT)
    if not target.hostname:
        return True
    port = target.port or (80 if target.scheme == "http" else 443)
    try:
        with socket.create_connection((target.hostname, port), timeout=2):
            return True
    except OSError:
        return False


def _looks_local(name: str) -> bool:
    head = name.split("/")[0]
    return "/" in name and Path(head).is_dir()


def _nearest(path: Path) -> str:
    parent = path.parent
    while not parent.is_dir():
        parent = parent.parent
    known = [child.name for child in parent.iterdir() if child.is_dir() and not child.name.startswith(".")]
    missing = path.relative_to(parent).parts[0]
    hint = did_you_mean(missing, known, list_all=len(known) <= 20)
    return f"in {parent.resolve()}: {hint}" if hint else f"{parent.resolve()} holds no such folder; check the path"


def _refuse_adapter(folder: Path) -> None:
    if has_any(folder, ADAPTER_FILES):
        raise UserError(
            f"{folder} is an adapter, not a model", where="model_name_or_path",
            fix=f"set adapter_name_or_path: {folder} and model_name_or_path to the base it was trained on")


def _wrong_folder(folder: Path, what: str, expected: Sequence[str], key: str = "model_name_or_path") -> UserError:
    found = sorted(child.name + ("/" if child.is_dir() else "") for child in folder.iterdir())
    shown = ", ".join(found[:12]) + (f" and {len(found) - 12} more" if len(found) > 12 else "")
    inside = [child.name for child in folder.iterdir()
              if child.is_dir() and has_any(child, CONFIG_FILES + ADAPTER_FILES)]
    fix = f"did you mean {folder / sorted(inside)[-1]}?" if inside else "name the folder that holds these files"
    return UserError(f"{folder} does not hold {what}: expected {' or '.join(expected)}, found {shown or 'nothing'}",
                     where=key, fix=fix)


def offline() -> bool:
    """Return True when the hub may not be asked."""
    return os.environ.get("HF_HUB_OFFLINE", "").lower() in {"1", "true", "yes", "on"}


def unreachable(name: str, error: Exception, key: str = "model_name_or_path") -> UserError:
    """Return the error for a hub id or folder that could not be read."""
    detail = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if local_folder(name) is not None:
        return UserError(f"cannot read {name}: {detail}", where=key,
                         fix="copy the model again: a file in this folder is missing or damaged")
    state = "the network is switched off (HF_HUB_OFFLINE)" if offline() else "the hub did not give it"
    return UserError(f'"{name}" is no folder here, and {state}: {detail}', where=key,
                     fix="give the path of a local model folder, or download the model once with network access")
