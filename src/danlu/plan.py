"""What a training run would do and need, worked out without loading a weight; refuses what cannot work."""

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from danlu.core.console import launched_processes
from danlu.core.errors import CapabilityError
from danlu.core.run_dir import RunDir
from danlu.engine import trackers
from danlu.engine.checkpoint import find_resume
from danlu.engine.plan import Plan
from danlu.engine.schedules import warmup_steps
from danlu.losses.vocabulary_sweep import live_logit_bytes
from danlu.models.architecture import load_config
from danlu.models.base_identity import check_same_base
from danlu.models.check import check_positions, check_token_ids
from danlu.models.memory import MemoryEstimate, ModelCounts, count_model, estimate_memory, frozen_weights
from danlu.models.reference import own_reference
from danlu.models.source import check_model_source
from danlu.models.tokenizer import adapter_paths
from danlu.models.vocabulary import highest_id
from danlu.recipe import ROLLOUT_SLOTS, Prepared, inputs_of, output_dir, prepare, run_precision
from danlu.run_config import RunConfig
from danlu.stages.reference import ReferenceModelKeys
from danlu.stages.rollouts import RolloutKeys

GIB = 2**30
STATE_BYTES = {"adafactor": 0.1, "sgd": 0.0, "adagrad": 4.0, "rmsprop": 4.0, "rmsprop_bnb": 4.0, "ademamix": 12.0,
               "paged_ademamix_32bit": 12.0, "ademamix_8bit": 3.0, "paged_ademamix_8bit": 3.0, "lion_32bit": 4.0,
               "paged_lion_32bit": 4.0, "lion_8bit": 1.0, "paged_lion_8bit": 1.0, "adamw_bnb_8bit": 2.0,
               "adamw_8bit": 2.0, "paged_adamw_8bit": 2.0, "rmsprop_bnb_8bit": 1.0, "rmsprop_bnb_32bit": 4.0}
"""Bytes of optimiser state per trained parameter; AdamW keeps two float32 moments, 8 bytes."""

BESIDE = ("reference", "value", "reward", "answers")
"""Parts of the memory that only some stages need."""


class Section(NamedTuple):
    """One block of the plan: a title and `name, value` rows."""

    title: str
    rows: list[tuple[str, str]]


def plan(config: RunConfig) -> list[Section]:
    """Return the plan of a run: data, steps, parameters, memory, disk.

    Encodes the data (the cached result is what the run will use). Raises UserError for what cannot work: token ids
    outside the embedding, an output folder that would be refused, more memory or disk than there is.
    """
    starts_anew = config.engine.overwrite_output_dir and not config.engine.resume_from_checkpoint
    folder = RunDir(Path(output_dir(config)).expanduser(), overwrite=starts_anew)
    folder.check(inputs_of(config))
    trackers.chosen(config.engine)
    _check_adapters(config)
    resumes = find_resume(folder, config.engine.resume_from_checkpoint, overwrite=config.engine.overwrite_output_dir)
    prepared = prepare(config)
    _check_ids(config, prepared)
    counts = count_model(config.model, config.adapter)
    for dataset in prepared.sets():
        check_positions(dataset.longest(), counts.positions, None if config.model.rope_scaling else counts.context)
    sections = [Section("data", _data_rows(prepared))]
    saves = 0
    if prepared.train is not None:
        steps = Plan.of(config.engine, len(prepared.train), launched_processes(),
                        batches=prepared.stage.batches_of(prepared.settings))
        saves = _num_saves(config, steps)
        sections.append(Section("steps", _step_rows(config, steps, resumes, saves)))
    sections.append(Section("parameters", _parameter_rows(counts)))
    need = _memory(config, prepared, counts)
    sections += [Section("memory, estimated", _memory_rows(need)),
                 Section("disk, estimated", _disk_rows(need, saves, folder.path))]
    _refuse_too_large(config, need, saves, folder.path)
    return sections


def _data_rows(prepared: Prepared) -> list[tuple[str, str]]:
    rows = []
    sets = {"training": prepared.train, **{f"evaluation {name}".strip(): one for name, one in
                                           prepared.evaluation.items()}}
    for name, dataset in sets.items():
        if dataset is not None:
            rows.append((name, f"{len(dataset):,} examples, {dataset.num_tokens:,} tokens, {dataset.num_trained:,} "
                               f"with loss, longest {int(dataset.lengths.max()):,}"))
            rows += [(f"  {reason}", f"{count:,} rows") for reason, count in dataset.ledger.reasons().items()]
    return rows


def _step_rows(config: RunConfig, steps: Plan, resumes: Path | None, saves: int) -> list[tuple[str, str]]:
    engine = config.engine
    return [
        ("examples per step", f"{steps.global_batch} = {engine.per_device_train_batch_size} x "
                              f"{engine.gradient_accumulation_steps} accumulated x {launched_processes()} processes"),
        ("steps", f"{steps.total_steps:,}, {steps.steps_per_epoch:,} per epoch"),
        ("warm-up", f"{warmup_steps(engine, steps.total_steps):,} steps"),
        ("log lines", _every(steps.log_every)), ("evaluations", _every(steps.eval_every)),
        ("checkpoints", f"{_every(steps.save_every)}, {saves} kept"),
        ("starts from", str(resumes) if resumes else "step 0"),
    ]


def _every(steps: int) -> str:
    return f"every {steps:,} steps" if steps else "none"


def _num_saves(config: RunConfig, steps: Plan) -> int:
    """Return how many checkpoints lie in the folder at the end."""
    written = -(-steps.total_steps // steps.save_every) if steps.save_every else 0
    if config.engine.save_strategy == "best":
        written = 1
    return min(written, config.engine.save_total_limit or written)


def _parameter_rows(counts: ModelCounts) -> list[tuple[str, str]]:
    share = 100 * counts.trainable / counts.total
    return [("trained", f"{counts.trainable:,} of {counts.total:,} ({share:.4g} %)")]


def _memory(config: RunConfig, prepared: Prepared, counts: ModelCounts) -> MemoryEstimate:
    device, engine = _device(config), config.engine
    longest = max((int(one.lengths.max()) for one in prepared.sets()), default=0)
    if isinstance(prepared.settings, RolloutKeys):
        longest = (longest + config.generation.max_new_tokens) * prepared.settings.answers_per_prompt
    tokens = max(longest, engine.micro_batch_tokens or longest * engine.per_device_train_batch_size)
    dtype = run_precision(config).compute_dtype
    need = estimate_memory(
        counts, config.quantization, config.adapter, compute_dtype=dtype, tokens=tokens,
        logit_bytes=live_logit_bytes(tokens, counts.vocabulary, device, is_trained=counts.trains_head),
        optimizer_bytes=STATE_BYTES.get(engine.optim, 8.0),
        checkpointing=config.model.wants_checkpointing(device.type != "cpu"))
    need = replace(need, reference=_reference_bytes(config, prepared, dtype))
    return _with_answers(config, prepared, counts, need, dtype) if isinstance(prepared.settings, RolloutKeys) else need


def _with_answers(config: RunConfig, prepared: Prepared, counts: ModelCounts, need: MemoryEstimate,
                  dtype: torch.dtype) -> MemoryEstimate:
    """Return the estimate with what sampling, rewarding and a value network take."""
    keys = prepared.settings
    assert isinstance(keys, RolloutKeys)
    value = 0
    if "value" in prepared.stage.roles:
        master = need.gradients  # a float32 copy of what trains has the size of its gradients
        frozen = 0 if config.adapter.finetuning_type == "lora" else counts.frozen * dtype.itemsize
        value = frozen + master + need.gradients + need.optimizer
    reward = sum(file.stat().st_size for kind, source in zip(keys.reward_model_type, keys.reward_model, strict=True)
                 if kind in ("full", "classifier") for file in Path(source).expanduser().glob("*.safetensors"))
    text = load_config(_model_name(config), config.model).get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    width = 4 if _device(config).type == "cpu" else dtype.itemsize
    kept = 2 * text.num_hidden_layers * heads * size * width
    prompt = max((int(one.lengths.max()) for one in prepared.sets()), default=0)
    answers = ROLLOUT_SLOTS * (prompt + config.generation.max_new_tokens) * kept
    return replace(need, value=value, reward=reward, answers=answers, checkpoint=need.checkpoint + value // 2)


def _reference_bytes(config: RunConfig, prepared: Prepared, dtype: torch.dtype) -> int:
    """Return the bytes of a reference that is loaded beside the policy; 0 without one."""
    keys = prepared.settings
    if "reference" not in prepared.stage.roles_of(keys):
        return 0
    assert isinstance(keys, ReferenceModelKeys)
    own = own_reference(config.model, config.quantization, config.adapter, name=keys.ref_model,
                        adapters=keys.ref_model_adapters, bits=keys.ref_model_quantization_bit,
                        trainable=config.do_train)
    if own is None:
        return 0
    plain = config.adapter.model_copy(update={"finetuning_type": "full"})
    return frozen_weights(count_model(own[0], plain), own[1], dtype)


def _memory_rows(need: MemoryEstimate) -> list[tuple[str, str]]:
    parts = ("weights", "gradients", "optimizer", "activations", "logits", *BESIDE, "total")
    return [(part, _size(getattr(need, part))) for part in parts if part not in BESIDE or getattr(need, part)]


def _disk_rows(need: MemoryEstimate, saves: int, folder: Path) -> list[tuple[str, str]]:
    return [("checkpoints", f"{saves} x {_size(need.checkpoint)}"), ("result", _size(need.final)),
            ("free", _size(_free_disk(folder)))]


def _refuse_too_large(config: RunConfig, need: MemoryEstimate, saves: int, folder: Path) -> None:
    device = _device(config)
    there = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else _system_memory()
    if need.total > there:
        raise CapabilityError(
            f"training needs about {_size(need.total)} of memory, the {device.type} has {_size(there)}",
            fix="lower per_device_train_batch_size or cutoff_len (raise gradient_accumulation_steps instead), set "
                "gradient_checkpointing: true, finetuning_type: lora or quantization_bit: 4")
    wanted, free = (saves + 1) * need.checkpoint + need.final, _free_disk(folder)
    if wanted > free:
        raise CapabilityError(
            f"the run writes about {_size(wanted)}, the disk has {_size(free)} free", where=f"output_dir {folder}",
            fix="choose another output_dir, set save_total_limit: 1 or save_only_model: true")


def _check_ids(config: RunConfig, prepared: Prepared) -> None:
    """Refuse data with token ids that the embedding will not have (as the run does before its first step)."""
    name = _model_name(config)
    rows = load_config(name, config.model).get_text_config().vocab_size
    grows = config.model.resize_vocab or config.model.add_tokens or config.model.add_special_tokens
    if grows:
        rows = max(rows, highest_id(prepared.tokenizer) + 1)
    stand_in = _Rows(rows)
    for dataset in prepared.sets():
        found = dataset.find_ids(rows)
        check_token_ids([index for index, _ in found], prepared.tokenizer, stand_in,
                        where=found[-1][1] if found else "")


def _check_adapters(config: RunConfig) -> None:
    """Refuse adapters of another base, as the run does when it loads them."""
    name = _model_name(config)
    for path in adapter_paths(config.model):
        check_same_base(path, name)


def _model_name(config: RunConfig) -> str:
    model = config.model
    return check_model_source(model.model_name_or_path, weights=not model.train_from_scratch, cache_dir=model.cache_dir)


class _Rows(nn.Module):
    """A model of which only the number of embedding rows is known."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        with torch.device("meta"):
            self.embedding = nn.Embedding(rows, 1)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embedding


def _device(config: RunConfig) -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() and not config.engine.use_cpu else "cpu")


def _system_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _free_disk(folder: Path) -> int:
    existing = next(one for one in (folder, *folder.parents) if one.exists())
    return shutil.disk_usage(existing).free


def _size(count: float) -> str:
    """Return bytes in words: `1.5 GiB`."""
    for unit, scale in (("GiB", GIB), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count:.0f} B"
