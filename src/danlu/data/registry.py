"""From names to files: dataset_info.json, direct paths, hub ids. Opens no data file."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from danlu.core.errors import CapabilityError, ConfigError, DataError, did_you_mean
from danlu.data.config import DataConfig
from danlu.data.layout import Layout
from danlu.data.row_file import PACKED, ROW_FILES, file_type
from danlu.data.row_format import FORMATS

INFO_FILE = "dataset_info.json"
COLUMNS = ("prompt", "query", "response", "history", "messages", "system", "tools", "images", "videos", "audios",
           "chosen", "rejected", "kto_tag", "margin")
TAGS = ("role_tag", "content_tag", "user_tag", "assistant_tag", "observation_tag", "function_tag", "system_tag")
OLD_TAGS = {"role": "role_tag", "content": "content_tag"}
USUAL_TAGS = dict(zip(TAGS, ("from", "value", "human", "gpt", "observation", "function_call", "system"), strict=True))
ENTRY_KEYS = ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name", "file_name", "formatting",
              "ranking", "subset", "split", "folder", "num_samples", "file_sha1", "columns", "tags")
TEXT_KEYS = tuple(key for key in ENTRY_KEYS if key not in ("ranking", "num_samples", "columns", "tags"))
REMOTE = "REMOTE:"
SAVED_BESIDE = ("state.json", "dataset_dict.json")  # what stands beside the Arrow files of a saved data set
UNREADABLE = {"images": "pictures", "videos": "videos", "audios": "sound"}


@dataclass(frozen=True, slots=True)
class HubId:
    """A data set on the Hugging Face hub or ModelScope, or a folder that `datasets.load_dataset` understands."""

    name: str
    subset: str | None = None
    split: str = "train"
    folder: str | None = None
    is_modelscope: bool = False


@dataclass(frozen=True, slots=True)
class Source:
    """One data set as the user named it. `formatting` None means: look at the rows."""

    name: str
    files: tuple[Path, ...] = ()
    hub: HubId | None = None
    formatting: str | None = None
    layout: Layout = field(default_factory=Layout)
    ranking: bool = False
    num_samples: int | None = None
    sha1: str | None = None


def find_sources(config: DataConfig, which: str) -> tuple[Source, ...]:
    """Return the data sets of `which` = train or eval, in the order the user named them."""
    names, file = (config.dataset, config.train_file) if which == "train" else (config.eval_dataset, config.eval_file)
    if file:
        return (_path_source(file, _existing(Path(file), f"{which}_file"), config),)
    return tuple(_named_source(name, config) for name in names)


def _named_source(name: str, config: DataConfig) -> Source:
    if config.dataset_dir == "ONLINE":
        return Source(name, hub=HubId(name, split=config.split or "train", is_modelscope=_wants_modelscope()),
                      layout=Layout(text_column=config.text_column))
    folder = Path(config.dataset_dir)
    info = folder / INFO_FILE
    if config.dataset_dir.startswith(REMOTE):
        from danlu.data.hub import fetch_file

        info = fetch_file(config.dataset_dir.removeprefix(REMOTE), INFO_FILE)
        folder = info.parent
    entries = _read_info(info) if info.is_file() else {}
    if name in entries:
        return _registered(name, entries[name], info, config)
    for path in (Path(name), folder / name):
        if path.exists():
            return _path_source(name, path, config)
    if "/" in name or file_type(Path(name)) in ROW_FILES:
        return _path_source(name, _existing(Path(name), "dataset"), config)
    raise DataError(f'unknown data set "{name}"', where="dataset", fix=_unknown_fix(name, entries, info))


def _unknown_fix(name: str, entries: Mapping[str, Any], info: Path) -> str:
    if entries:
        close = get_close_matches(name, list(entries), n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}? " if close else f"it knows: {', '.join(sorted(entries)[:20])}. "
        return f"{hint}{info} has no such entry, and no file or folder has this name"
    return f"give a path that exists, or write an entry into {info.absolute()} (not found; set dataset_dir)"


def _read_info(info: Path) -> dict[str, Any]:
    text = info.read_text(encoding="utf-8-sig")
    try:
        entries = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"broken JSON, {error.msg}", where=f"{info}:{error.lineno}:{error.colno}") from None
    if not isinstance(entries, dict):
        raise DataError("expected an object of data set names", where=str(info))
    return entries


def _registered(name: str, entry: Any, info: Path, config: DataConfig) -> Source:
    where = f"{info}: {name}"
    if not isinstance(entry, dict):
        raise DataError("expected an object", where=where)
    _known(entry, ENTRY_KEYS, where)
    columns, tags = _columns_and_tags(entry, where)
    is_declared = columns is not None or tags is not None
    _check_values(entry, where)
    formatting: str | None = entry.get("formatting") or ("alpaca" if is_declared else None)
    if formatting is not None and formatting not in FORMATS:
        raise ConfigError(f'unknown formatting "{formatting}"', where=where, fix=did_you_mean(formatting, FORMATS))
    source = Source(
        name, formatting=formatting, layout=Layout(columns, tags, config.text_column),
        ranking=bool(entry.get("ranking")), num_samples=entry.get("num_samples"), sha1=entry.get("file_sha1"))
    split = config.split or entry.get("split") or "train"
    if entry.get("file_name"):
        return replace(source, files=_files(_existing(_data_file(entry["file_name"], info, config), where), split))
    hub, modelscope = entry.get("hf_hub_url"), entry.get("ms_hub_url")
    if hub or modelscope:
        is_modelscope = bool(modelscope) and (not hub or _wants_modelscope())
        hub_id = str(modelscope if is_modelscope else hub)
        return replace(source, hub=HubId(hub_id, entry.get("subset"), split, entry.get("folder"), is_modelscope))
    raise _unsupported(entry, where)


def _data_file(name: str, info: Path, config: DataConfig) -> Path:
    if config.dataset_dir.startswith(REMOTE) and not (info.parent / name).exists():
        from danlu.data.hub import fetch_file

        return fetch_file(config.dataset_dir.removeprefix(REMOTE), name)
    return info.parent / name


def _wants_modelscope() -> bool:
    return os.environ.get("USE_MODELSCOPE_HUB", "").strip().lower() in ("1", "true", "y")


def _check_values(entry: Mapping[str, Any], where: str) -> None:
    if not isinstance(entry.get("ranking", False), bool):
        raise DataError(f"ranking is {entry['ranking']!r}", where=where, fix="write true or false")
    samples = entry.get("num_samples")
    if samples is not None and (isinstance(samples, bool) or not isinstance(samples, int) or samples < 1):
        raise DataError(f"num_samples is {samples!r}", where=where, fix="give a whole number of at least 1")
    for key in TEXT_KEYS:
        if entry.get(key) is not None and not isinstance(entry[key], str):
            raise DataError(f"{key} is {entry[key]!r}", where=where, fix=f"write {key} as a string")


def _unsupported(entry: Mapping[str, Any], where: str) -> CapabilityError | DataError:
    fix = "download the data, and give its path as file_name or as dataset"
    if entry.get("script_url"):
        return CapabilityError("script_url: loading scripts run foreign code and are not supported",
                               where=where, fix="convert the data to jsonl, and give its path as file_name")
    for key in ("om_hub_url", "cloud_file_name"):
        if entry.get(key):
            return CapabilityError(f"{key} {entry[key]}: this source is not supported", where=where, fix=fix)
    return DataError("names no data: file_name, hf_hub_url or ms_hub_url is needed", where=where, fix=fix)


def _columns_and_tags(entry: Mapping[str, Any], where: str) -> tuple[dict[str, str | None] | None, ...]:
    """Return complete mappings, an unlisted name being None; old registries kept two tags among the columns."""
    given = dict(entry.get("columns") or {})
    moved = {OLD_TAGS[key]: given.pop(key) for key in tuple(given) if key in OLD_TAGS}
    # Entries of that age declare no names of roles: the usual ones hold.
    old = {**USUAL_TAGS, **moved} if moved and not entry.get("tags") else moved
    given_tags = {**old, **(entry.get("tags") or {})}
    _known(given, COLUMNS, f"{where}, columns")
    _known(given_tags, TAGS, f"{where}, tags")
    seen = [what for key, what in UNREADABLE.items() if given.get(key)]
    if seen:
        raise CapabilityError(f"columns of {' and '.join(seen)} are not supported: danlu trains on text", where=where)
    columns = {key: given.get(key) or None for key in COLUMNS} if entry.get("columns") is not None else None
    tags = {key: given_tags.get(key) or None for key in TAGS} if given_tags else None
    return columns, tags


def _known(given: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in given:
        if key not in known:
            raise DataError(f'unknown key "{key}"', where=where, fix=did_you_mean(key, known))


def _path_source(name: str, path: Path, config: DataConfig) -> Source:
    return Source(name, files=_files(path, config.split or "train"), layout=Layout(text_column=config.text_column))


def _existing(path: Path, where: str) -> Path:
    if path.exists():
        return path
    beside = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
    close = get_close_matches(path.name, beside, n=1)
    fix = f"did you mean {path.parent / close[0]}?" if close else "give a path that exists"
    raise DataError(f"no file or folder {path}", where=where, fix=fix)


def _files(path: Path, split: str = "train") -> tuple[Path, ...]:
    """Return the data files under `path`: itself, or the visible files of the folder, all of one type.

    Of a folder that `datasets` saved, those are its Arrow files; of one with several splits, those of `split`.
    """
    if path.is_file():
        return (_readable(path),)
    if (path / "dataset_dict.json").is_file():
        path = _existing(path / split, "split")
    files = sorted(item for item in path.rglob("*") if item.is_file() and not _is_hidden(item, path))
    data = [item for item in files if file_type(item) in ROW_FILES and item.name != INFO_FILE]
    if any(file_type(item) == "arrow" for item in data):
        data = [item for item in data if item.name not in SAVED_BESIDE]
    if not data:
        raise DataError("no data file in this folder", where=str(path), fix=_types_read())
    types = sorted({file_type(item) for item in data})
    if len(types) > 1:
        raise DataError(f"files of several types in one folder: {', '.join(types)}", where=str(path),
                        fix="keep one type in a folder, or name the files one by one")
    return tuple(data)


def _readable(path: Path) -> Path:
    if file_type(path) not in ROW_FILES:
        raise DataError(f'cannot read files of type "{path.suffix}"', where=str(path), fix=_types_read())
    return path


def _types_read() -> str:
    return f"types read: {', '.join(ROW_FILES)}, and each of them packed as {' or '.join(PACKED)}"


def _is_hidden(item: Path, root: Path) -> bool:
    return any(part.startswith((".", "_")) for part in item.relative_to(root).parts)
