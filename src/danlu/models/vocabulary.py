"""Fit embedding and head to the tokenizer: new rows when tokens were added, a warning when ids could fall outside."""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from danlu.core.console import notice, warn
from danlu.models.config import ModelConfig
from danlu.models.quiet import quiet_notes
from danlu.models.source import local_folder
from danlu.models.tokenizer import token_descriptions

ROUND_TO = 64  # row counts that are a multiple of this suit matrix kernels


def embedding_rows(model: torch.nn.Module) -> int:
    """Return how many token ids the input embedding knows."""
    return int(model.get_input_embeddings().weight.shape[0])


def fit_vocabulary(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: ModelConfig, adapters: tuple[str, ...] = (),
) -> tuple[str, ...]:
    """Grow embedding and head where asked; return the names of the modules that got new rows.

    An adapter that was trained after a resize brings its own rows: the base grows to that size.
    """
    rows, size = embedding_rows(model), highest_id(tokenizer) + 1
    saved = max((rows_of_adapter(path) for path in adapters), default=0)
    if saved > rows:
        return _grow(model, saved, None)
    if size <= rows:
        return ()
    descriptions = token_descriptions(config)
    asked = config.resize_vocab or config.add_tokens or config.add_special_tokens or descriptions
    if not asked:
        warn(f"the tokenizer knows ids up to {size - 1}, the model's embedding ends at {rows - 1}; this is fine as "
             "long as no data uses them, which is checked before the first step")
        return ()
    names = _grow(model, size, ROUND_TO)
    if config.init_special_tokens != "noise_init":
        _describe_rows(model, tokenizer, descriptions, rows, noisy=config.init_special_tokens == "desc_init_w_noise")
    return names


def highest_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the largest token id that the tokenizer can produce."""
    return int(max(tokenizer.get_vocab().values()))


def rows_of_adapter(path: str) -> int:
    """Return how many rows the embedding has that is saved with an adapter; 0 when none is."""
    folder = local_folder(path)
    file = None if folder is None else folder / "adapter_model.safetensors"
    if folder is None or file is None or not file.is_file():
        return 0
    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    whole = settings.get("modules_to_save") or []
    with safe_open(file, framework="pt") as tensors:
        shapes = [tensors.get_slice(name).get_shape() for name in tensors.keys()  # noqa: SIM118
                  if any(name.endswith(f"{module}.weight") for module in whole) and "embed" in name.lower()
                  or name.endswith("wte.weight")]
    return max((shape[0] for shape in shapes if len(shape) == 2), default=0)


def embedding_names(model: PreTrainedModel) -> tuple[str, ...]:
    """Return the short names of the input embedding and, unless it is the same matrix, the output head."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    names = [name.split(".")[-1] for name, module in model.named_modules() if module is embedding]
    if head is not None and head.weight is not embedding.weight:
        names += [name.split(".")[-1] for name, module in model.named_modules() if module is head]
    return tuple(names)


def tokens_beyond(tokenizer: PreTrainedTokenizerBase, rows: int) -> dict[int, str]:
    """Return the tokens whose ids the embedding does not have, by id."""
    return {index: token for token, index in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
            if index >= rows}


def file_that_adds(folder: Path, token: str) -> str | None:
    """Return which file of a tokenizer folder adds `token`, or None."""
    for name in ("added_tokens.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.json"):
        path = folder / name
        if path.is_file() and json.dumps(token, ensure_ascii=False) in path.read_text(encoding="utf-8"):
            return name
    return None


def _describe_rows(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, descriptions: dict[str, str], old_rows: int, *,
    noisy: bool,
) -> None:
    """Start each described token's rows at the mean of its description's rows, plus a tenth of the rows' spread."""
    head = model.get_output_embeddings()
    weights = [model.get_input_embeddings().weight.data]
    if head is not None and head.weight is not model.get_input_embeddings().weight:
        weights.append(head.weight.data)
    for token, text in descriptions.items():
        index = tokenizer.convert_tokens_to_ids(token)
        ids = [i for i in tokenizer(text, add_special_tokens=False)["input_ids"] if i < old_rows]
        if index < old_rows or not ids:
            continue
        for weight_VH in weights:
            row_H = weight_VH[ids].float().mean(dim=0)
            if noisy:
                row_H += 0.1 * weight_VH[:old_rows].float().std(dim=0) * torch.randn_like(row_H)
            weight_VH[index] = row_H.to(weight_VH.dtype)


def _grow(model: PreTrainedModel, rows: int, multiple: int | None) -> tuple[str, ...]:
    before = embedding_rows(model)
    with quiet_notes():
        model.resize_token_embeddings(rows, pad_to_multiple_of=multiple, mean_resizing=True)
    names = embedding_names(model)
    notice(f"embedding and head grow from {before} to {embedding_rows(model)} rows ({', '.join(names)}); "
           "the new rows start near the mean of the old ones, and train")
    return names
