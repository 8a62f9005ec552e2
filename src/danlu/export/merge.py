"""Merge adapters into their base and write one model that any tool of the ecosystem reads."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import PreTrainedTokenizerBase

from danlu.core.console import notice, say, warn
from danlu.core.errors import ConfigError, UserError
from danlu.export.card import write_card
from danlu.export.certificate import (
    LogitCheck,
    TemplateCheck,
    compare_logits,
    compare_template,
    logits_of,
    probe_ids,
    saved_logits,
)
from danlu.export.config import ExportConfig
from danlu.export.folder import REPORT, check_space, check_target, whole_folder
from danlu.export.modelfile import write_modelfile
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


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written and which checks it passed."""

    folder: Path
    base: str
    adapters: tuple[str, ...]
    dtype: str
    files: tuple[str, ...]
    logits: tuple[LogitCheck, ...]
    template: TemplateCheck | None
    modelfile: bool


def export_model(
    model: ModelConfig, quantization: QuantizationConfig, adapter: AdapterConfig, export: ExportConfig, *,
    template: str | None = None, tool_format: str | None = None,
) -> ExportReport:
    """Write base plus adapters as one model to `export_dir`; without adapters the model is saved anew, in new shards.

    Weights keep the base's number format unless infer_dtype names another.
    Raises UserError for a quantised base, a target in use, a disk too small, or a merge that changes the logits.
    """
    source, target = _checked(model, quantization, export)
    _mention_quantised_training(adapter_paths(source))
    tokenizer = load_tokenizer(source)
    chosen = _prepared_template(template, tokenizer, tool_format)
    network, dtype, probe, checks = _merged(source, quantization, adapter, export, tokenizer, chosen)
    check_space(target, sum(p.numel() * p.element_size() for p in network.parameters()))
    network.generation_config = _generation_settings(network, tokenizer, chosen)
    with quiet_loading(), whole_folder(target) as partial:
        network.save_pretrained(partial, max_shard_size=f"{export.export_size}GB")
        tokenizer.save_pretrained(partial)
        stops, context = _stop_ids(network, tokenizer, chosen), context_length(network.config)
        has_modelfile = chosen is not None and write_modelfile(partial, tokenizer, stops, context)
        expected = logits_of(network, probe)
        del network
        checks.append(compare_logits("saved = merged", expected, saved_logits(partial, probe, dtype), dtype))
        same_ids = compare_template(chosen, tokenizer, partial) if chosen else None
        bases = (source.model_name_or_path or "", adapter_paths(source), str(dtype).removeprefix("torch."))
        write_card(partial, base=bases[0], adapters=bases[1], dtype=bases[2], has_template=chosen is not None)
        files = tuple(sorted({child.name for child in partial.iterdir()} | {REPORT}))
        report = ExportReport(target, *bases, files, tuple(checks), same_ids, has_modelfile)
        _refuse_or_say(report)
        _write(report, partial)
    return report


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


def _refuse_or_say(report: ExportReport) -> None:
    """Say what was proven. Raises UserError when float32 logits differ: such a model is not the trained one."""
    for check in report.logits:
        line = f"{check.what}: logits differ by at most {check.difference:.2e} (allowed {check.allowed:.2e})"
        if check.passed:
            say(line)
        elif report.dtype == "float32":
            raise UserError(f"the exported model is not the trained one: {line}", where=report.base,
                            fix="report this with the adapter_config.json; nothing was written")
        else:
            warn(f"{line}; {report.dtype} rounds the merged weights, infer_dtype: float32 keeps them exact")
    if report.template is None:
        say("no chat template: neither the tokenizer nor `template` names one")
        return
    if not report.modelfile:
        say("no Modelfile: the chat template has parts that Ollama's template language cannot express")
    if report.template.passed:
        say(f"chat template: {report.template.compared} dialogues have the same ids in danlu and in plain transformers")
    else:
        warn(f"chat template: {len(report.template.differing)} of {report.template.compared} dialogues have other ids "
             f"in plain transformers than in danlu, which splits words at turns; see {REPORT}")


def _write(report: ExportReport, folder: Path) -> None:
    content = asdict(report) | {"folder": str(report.folder)}
    content["logits"] = [asdict(check) | {"passed": check.passed} for check in report.logits]
    if report.template is not None:
        content["template"] = asdict(report.template) | {"passed": report.template.passed}
    (folder / REPORT).write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
