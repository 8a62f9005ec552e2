"""Merge adapters into their base and write one model that any tool of the ecosystem reads."""

from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import PreTrainedTokenizerBase

from danlu.core.console import notice, say
from danlu.core.errors import ConfigError
from danlu.export.card import write_card, write_classifier_card
from danlu.export.certificate import (
    LogitCheck,
    compare_logits,
    compare_template,
    logits_of,
    probe_ids,
    saved_logits,
)
from danlu.export.classifier import ADAPTER, as_classifier, saved_rewards, value_head_folder, write_adapter
from danlu.export.config import ExportConfig
from danlu.export.folder import REPORT, check_space, check_target, whole_folder
from danlu.export.modelfile import write_modelfile
from danlu.export.report import ExportReport, refuse_or_say, write_report
from danlu.generation.load import with_base_of_adapter
from danlu.generation.transformers_backend import all_stop_ids, context_length
from danlu.models.adapters import load_adapter
from danlu.models.architecture import load_config
from danlu.models.config import AdapterConfig, ModelConfig, QuantizationConfig
from danlu.models.load import load_model
from danlu.models.quantization import stored_quantization
from danlu.models.quiet import quiet_loading
from danlu.models.source import check_model_source
from danlu.models.tokenizer import adapter_paths, load_tokenizer
from danlu.templates import resolve
from danlu.templates.base import ChatTemplate


def export_model(
    model: ModelConfig, quantization: QuantizationConfig, adapter: AdapterConfig, export: ExportConfig, *,
    template: str | None = None, tool_format: str | None = None,
) -> ExportReport:
    """Write base plus adapters as one model to `export_dir`; without adapters the model is saved anew, in new shards.

    A reward model, known by its value head, becomes a sequence classifier.

    Weights keep the base's number format unless infer_dtype names another.
    Raises UserError for a quantised base, a target in use, a disk too small, or a merge that changes the logits.
    """
    source, target = _checked(model, quantization, export)
    _mention_quantised_training(adapter_paths(source))
    tokenizer = load_tokenizer(source)
    chosen = _prepared_template(template, tokenizer, tool_format)
    network, dtype, probe, checks = _merged(source, quantization, adapter, export, tokenizer, chosen)
    check_space(target, sum(p.numel() * p.element_size() for p in network.parameters()))
    head = value_head_folder(source)
    bases = (source.model_name_or_path or "", adapter_paths(source), str(dtype).removeprefix("torch."))
    with quiet_loading(), whole_folder(target) as partial:
        if head is None:
            kind, constant = "causal-lm", 0.0
            has_modelfile = _write_language_model(partial, network, tokenizer, chosen, export)
            expected = logits_of(network, probe)
            del network
            checks.append(compare_logits("saved = merged", expected, saved_logits(partial, probe, dtype), dtype))
            write_card(partial, base=bases[0], adapters=bases[1], dtype=bases[2], has_template=chosen is not None)
        else:
            kind, has_modelfile = "sequence-classification", False
            check, constant = _write_classifier(partial, network, tokenizer, chosen, export, head, bases)
            checks.append(check)
        same_ids = compare_template(chosen, tokenizer, partial) if chosen else None
        files = tuple(sorted({child.name for child in partial.iterdir()} | {REPORT}))
        report = ExportReport(target, *bases, files, tuple(checks), same_ids, has_modelfile, kind, constant)
        refuse_or_say(report)
        write_report(report, partial)
    return report


def _write_language_model(
    partial: Path, network: Any, tokenizer: PreTrainedTokenizerBase, template: ChatTemplate | None,
    export: ExportConfig,
) -> bool:
    """Write model and tokenizer, and a Modelfile where the template allows one; say whether it does."""
    network.generation_config = _generation_settings(network, tokenizer, template)
    network.save_pretrained(partial, max_shard_size=f"{export.export_size}GB")
    tokenizer.save_pretrained(partial)
    stops, context = _stop_ids(network, tokenizer, template), context_length(network.config)
    return template is not None and write_modelfile(partial, tokenizer, stops, context)


def _write_classifier(
    partial: Path, network: Any, tokenizer: PreTrainedTokenizerBase, template: ChatTemplate | None,
    export: ExportConfig, head: Path, bases: tuple[str, tuple[str, ...], str],
) -> tuple[LogitCheck, float]:
    """Write the reward model as a sequence classifier; return the check of its rewards and the constant left out."""
    found = as_classifier(network, head, tokenizer, template)
    say(f"{head} holds a value head: a reward model is written, as {type(found.model).__name__}")
    found.model.save_pretrained(partial, max_shard_size=f"{export.export_size}GB")
    tokenizer.save_pretrained(partial)
    has_adapter = bases[1] == (str(head),) and write_adapter(partial / ADAPTER, head, found)
    write_classifier_card(partial, base=bases[0], adapters=bases[1], dtype=bases[2], has_template=template is not None,
                          ends=found.ends, has_adapter=has_adapter)
    dtype = found.model.dtype
    check = compare_logits("saved = trained", found.rewards, saved_rewards(partial, found, dtype), dtype, "rewards")
    return check, found.constant


def _checked(
    model: ModelConfig, quantization: QuantizationConfig, export: ExportConfig,
) -> tuple[ModelConfig, Path]:
    if not export.export_dir:
        raise ConfigError("no folder is named for the result", where="export_dir", fix="set export_dir: FOLDER")
    if quantization.quantization_bit is not None:
        raise ConfigError(
            "adapters cannot be merged into a quantised base without loss", where="quantization_bit",
            fix="remove quantization_bit: the adapter is merged into the base in full precision")
    source = with_base_of_adapter(model)
    name = check_model_source(source.model_name_or_path, cache_dir=source.cache_dir)
    target = Path(export.export_dir).expanduser()
    stored = stored_quantization(load_config(name, source))
    if stored is not None and source.adapter_name_or_path:
        raise ConfigError(
            f"{name} is stored quantised ({stored}); adapters cannot be merged into it without loss",
            where="model_name_or_path", fix="name the full-precision model that it was made from")
    check_target(target, (name, *adapter_paths(source)))
    return source, target


def _mention_quantised_training(adapters: tuple[str, ...]) -> None:
    """Say that an adapter learned to correct a rounded base, and now meets the exact one."""
    for path in adapters:
        keys = Path(path) / "training_args.yaml"
        bits = yaml.safe_load(keys.read_text(encoding="utf-8")).get("quantization_bit") if keys.is_file() else None
        if bits:
            notice(f"{path} was trained on the base in {bits} bits and is merged into it in full precision: answers "
                   "may differ slightly from those of the run")


def _prepared_template(
    name: str | None, tokenizer: PreTrainedTokenizerBase, tool_format: str | None,
) -> ChatTemplate | None:
    """Return the template to save with the model; None for a base model that has none and is asked for none."""
    if name is None and not tokenizer.chat_template:
        return None
    template = resolve(name, tokenizer, tool_format=tool_format)
    template.prepare_tokenizer(tokenizer)
    return template


def _merged(
    source: ModelConfig, quantization: QuantizationConfig, adapter: AdapterConfig, export: ExportConfig,
    tokenizer: PreTrainedTokenizerBase, template: ChatTemplate | None,
) -> tuple[Any, torch.dtype, list[int], list[LogitCheck]]:
    """Return the merged model, its dtype, the ids it was probed with, and one check for each adapter."""
    paths, name = adapter_paths(source), check_model_source(source.model_name_or_path, cache_dir=source.cache_dir)
    dtype = _weight_dtype(source, name)
    first = source.model_copy(update={"adapter_name_or_path": paths[:1], "adapter_folder": None})
    network: Any = load_model(
        first, quantization, adapter, tokenizer=tokenizer, trainable=False, compute_dtype=dtype)
    if export.export_device == "auto" and torch.cuda.is_available():
        network.to("cuda")
    probe = probe_ids(template, tokenizer, network.get_input_embeddings().weight.shape[0])
    checks: list[LogitCheck] = []
    for position, path in enumerate(paths):
        adapted = network if position == 0 else load_adapter(network, path, name, trainable=False)
        expected_TV = logits_of(adapted.eval(), probe)
        network = adapted.merge_and_unload().eval()
        checks.append(compare_logits(f"merged = {Path(path).name}", expected_TV, logits_of(network, probe), dtype))
    return network.eval(), dtype, probe, checks


def _weight_dtype(source: ModelConfig, name: str) -> torch.dtype:
    known = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
    if source.infer_dtype != "auto":
        return known[source.infer_dtype]
    stored = getattr(load_config(name, source), "dtype", None)
    return known.get(str(stored).removeprefix("torch."), torch.float32)


def _generation_settings(network: Any, tokenizer: PreTrainedTokenizerBase, template: ChatTemplate | None) -> Any:
    """Return the model's generation settings with every stop id, so that servers end where training ended."""
    settings, stops = network.generation_config, list(_stop_ids(network, tokenizer, template))
    settings.eos_token_id = stops if len(stops) > 1 else next(iter(stops), None)
    settings.pad_token_id = tokenizer.pad_token_id if settings.pad_token_id is None else settings.pad_token_id
    return settings


def _stop_ids(network: Any, tokenizer: PreTrainedTokenizerBase, template: ChatTemplate | None) -> tuple[int, ...]:
    return tuple(sorted(all_stop_ids(network, tokenizer, template.stop_token_ids(tokenizer) if template else ())))
