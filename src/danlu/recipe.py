"""The composition root: the only place that wires configuration, data, models, stage and engine together."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate.utils import set_seed
from torch import nn
from transformers import PreTrainedTokenizerBase

from danlu.core.config import StrictConfig
from danlu.core.console import launched_processes, notice, say
from danlu.core.errors import ConfigError, UserError
from danlu.core.records import Record
from danlu.core.run_dir import TEMPORARY_PREFIX, RunDir
from danlu.data.dataset import TokenDataset, build_dataset
from danlu.data.encode import EncodeContext
from danlu.data.loader import Records, load_records, split_validation
from danlu.data.microscope.rollout_page import write_rollout_page
from danlu.data.preview import describe_first
from danlu.data.streaming.open_stream import Order, open_stream
from danlu.data.streaming.token_stream import TokenStream
from danlu.engine import trackers
from danlu.engine.distributed import on_main
from danlu.engine.evaluate import check_metric
from danlu.engine.loop import Engine, TrainResult
from danlu.evaluation.predict import predict
from danlu.generation.base import BACKENDS, Source
from danlu.generation.config import GenerationConfig
from danlu.models.actor_critic import ActorCritic
from danlu.models.architecture import context_length, learned_positions
from danlu.models.bf16_choice import bf16_hint, choose_bf16, has_fast_bf16, loss_gap
from danlu.models.card import CardFacts
from danlu.models.check import check_positions, check_token_ids
from danlu.models.checkpointing import set_checkpointing
from danlu.models.groups import optimizer_groups
from danlu.models.load import load_model
from danlu.models.neftune import add_embedding_noise
from danlu.models.packed_lm import PackedLM
from danlu.models.precision import Precision, bound_kernel_cache, keep_freed_memory, resolve_precision
from danlu.models.proof import base_of
from danlu.models.reference import load_reference
from danlu.models.save import ModelSaver, load_scoring_head, stock_model
from danlu.models.tokenizer import load_tokenizer
from danlu.models.vocabulary import embedding_rows
from danlu.rewards.base import RewardContext
from danlu.rewards.mixture import build_rewards
from danlu.run_config import RunConfig, stage_settings
from danlu.stages.base import STAGES, Models, Stage
from danlu.stages.reference import ReferenceModelKeys
from danlu.stages.rollouts import RolloutKeys, Rollouts
from danlu.templates import resolve as resolve_template

CARD_KEYS = (
    "cutoff_len", "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate", "num_train_epochs",
    "max_steps", "lr_scheduler_type", "optim", "seed", "lora_rank", "lora_alpha", "quantization_bit")
"""The hyper-parameters a model card shows when they were given."""
ROLLOUT_SLOTS = 64
"""Answers that are sampled side by side."""
EvalSets = dict[str, TokenDataset]


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a run needs before a model is loaded."""

    stage: type[Stage]
    settings: StrictConfig
    tokenizer: PreTrainedTokenizerBase
    context: EncodeContext
    train: TokenDataset | TokenStream | None
    evaluation: EvalSets

    def sets(self) -> list[TokenDataset | TokenStream]:
        """Return all sets there are."""
        return [one for one in (self.train, *self.evaluation.values()) if one is not None]


def train(config: RunConfig) -> dict[str, float]:
    """Train, evaluate and predict as the configuration says; return the numbers of all_results.json.

    Raises UserError for what the user can mend, Interrupted after Ctrl-C (a checkpoint is written).
    """
    trackers.chosen(config.engine)
    prepared = prepare(config)
    starts_anew = config.engine.overwrite_output_dir and not config.engine.resume_from_checkpoint
    run = RunDir.create(output_dir(config), overwrite=starts_anew, config=config.given(), inputs=inputs_of(config),
                        at_start=prepared.train.ledger.write if prepared.train is not None else None)
    saver = ModelSaver(prepared.tokenizer, prepared.context.template, str(config.model.model_name_or_path),
                       facts=card_facts(config, {}))
    precision = run_precision(config, prepared)
    settings = config.engine.model_copy(update={
        "bf16": precision.autocast and not precision.scaler, "fp16": precision.scaler})
    engine = Engine(settings, run, saver, record=config.given())
    stage = build_stage(config, prepared, precision)
    numbers: dict[str, float] = {}
    if config.do_train and prepared.train is not None:
        result = fit(config, engine, stage, prepared)
        numbers |= result.metrics
        save_result(config, engine, saver, stage, run, result)
    evaluates = config.do_eval or (config.do_train and config.engine.eval_strategy != "no")
    if evaluates and prepared.evaluation and not config.predict_with_generate:
        numbers |= engine.evaluate(stage, prepared.evaluation)
    if config.do_predict or (config.do_eval and config.predict_with_generate):
        run.begin()
        numbers |= predict(config, stage.models.policy, prepared.context, run, prepared.evaluation,
                           record_type(config, prepared.stage))
    say("results: " + ", ".join(f"{name} {value:.6g}" for name, value in numbers.items()))
    return numbers


def inputs_of(config: RunConfig) -> list[str]:
    """Return the folders of models and adapters that the run reads."""
    return [*filter(None, [config.model.model_name_or_path]), *config.model.adapter_name_or_path]


def prepare(config: RunConfig) -> Prepared:
    """Load the tokenizer and encode the data; no model is loaded."""
    stage = STAGES[config.stage]
    settings = stage_settings(config, stage.Config)
    if config.do_train and config.engine.eval_strategy != "no":
        check_metric(config.engine.metric_for_best_model, stage, [Path(one).stem for one in config.data.eval_dataset])
    tokenizer = load_tokenizer(config.model)
    template = resolve_template(config.data.template, tokenizer, needs_dialogue=stage.needs_template,
                                tool_format=config.data.tool_format)
    template.prepare_tokenizer(tokenizer)
    context = EncodeContext(tokenizer, template, config.data)
    train_set, eval_sets = load_data(config, stage, context)
    if isinstance(train_set, TokenDataset):
        stage.tell_of(settings, train_set.facts)
    return Prepared(stage, settings, tokenizer, context, train_set, eval_sets)


def load_data(
    config: RunConfig, stage: type[Stage], context: EncodeContext,
) -> tuple[TokenDataset | TokenStream | None, EvalSets]:
    """Return the encoded training set, or the stream of it, and the evaluation sets by name."""
    data, record = config.data, record_type(config, stage)
    records: Records | None = None
    held_out: Records | None = None
    train_set: TokenDataset | TokenStream | None = None
    if data.streaming and (config.do_train or data.val_size):
        train_set, held_out = open_stream(data, stage, context, _order(config), record)
    elif config.do_train or data.val_size:
        records = load_records(data, record, seed=config.engine.seed)
        if data.val_size:
            records, held_out = split_validation(records, data.val_size, config.engine.seed)
    if records is not None and config.do_train:
        train_set = build_dataset(records, stage, context)
    eval_sets: EvalSets = {}
    if held_out is not None:
        eval_sets[""] = build_dataset(held_out, stage, context)
    elif data.eval_dataset or data.eval_file:
        for name, part in eval_records(config, stage).items():
            eval_sets[name] = build_dataset(part, stage, context)
    return train_set, eval_sets


def record_type(config: RunConfig, stage: type[Stage]) -> type[Record]:
    """Return the kind of record that the run reads."""
    return stage.record_of(stage_settings(config, stage.Config))


def _order(config: RunConfig) -> Order:
    keys = config.engine
    shuffling_seed = keys.data_seed if keys.data_seed is not None else keys.seed
    return Order(keys.seed, shuffling_seed, not keys.disable_shuffling)


def eval_records(config: RunConfig, stage: type[Stage]) -> Mapping[str, Records]:
    """Return the records of each evaluation set, or of all together under the empty name."""
    data, seed, record = config.data, config.engine.seed, record_type(config, stage)
    if not data.eval_on_each_dataset or len(data.eval_dataset) < 2:
        return {"": load_records(data, record, which="eval", seed=seed)}
    return {Path(name).stem: load_records(
        data.model_copy(update={"eval_dataset": (name,)}), record, which="eval", seed=seed)
        for name in data.eval_dataset}


def build_stage(config: RunConfig, prepared: Prepared, precision: Precision) -> Stage:
    """Load the networks of the stage; refuse data with token ids that their embeddings lack."""
    set_seed(config.engine.seed)
    model = load_model(
        config.model, config.quantization, config.adapter, tokenizer=prepared.tokenizer, trainable=config.do_train,
        compute_dtype=precision.compute_dtype, max_length=config.data.cutoff_len)
    check_fits(model, prepared)
    set_checkpointing(model, config.do_train and config.model.wants_checkpointing(torch.cuda.is_available()))
    lm = PackedLM(model, label_smoothing=config.engine.label_smoothing_factor)
    if config.do_train:
        add_embedding_noise(lm, config.engine.neftune_noise_alpha)
    policy = prepared.stage.make_policy(lm)
    load_scoring_head(policy, config.model, needed=not config.do_train)
    models = Models(policy, reference=build_reference(config, prepared, precision))
    if "rollouts" in prepared.stage.roles_of(prepared.settings):
        models.rollouts, models.rewards = build_rollouts(config, prepared, precision, policy)
    return prepared.stage(prepared.settings, models)


def build_rollouts(
    config: RunConfig, prepared: Prepared, precision: Precision, policy: nn.Module,
) -> tuple[Rollouts, Sequence[nn.Module]]:
    """Return what samples answers and rewards them, and the networks that score; refuse rewards that do not fit."""
    keys, template = prepared.settings, prepared.context.template
    assert isinstance(keys, RolloutKeys) and template is not None
    settings = sampling_settings(config)
    model = stock_model(policy)
    longest = config.data.cutoff_len + settings.max_new_tokens
    rewards = build_rewards(keys, RewardContext(
        prepared.tokenizer, template, model, config.model, config.quantization, config.adapter,
        compute_dtype=precision.compute_dtype, max_length=longest,
        micro_batch=config.engine.per_device_train_batch_size,
        device=lambda: next(iter(model.parameters())).device))
    source = keys.value_source()
    if isinstance(policy, ActorCritic) and config.do_train and source is not None:
        policy.begin_value_at(Path(source).expanduser())
    generator = BACKENDS[settings.infer_backend].build(Source(
        config.model, config.quantization, config.adapter, prepared.tokenizer,
        template.stop_token_ids(prepared.tokenizer), settings, precision.compute_dtype, ROLLOUT_SLOTS), model)
    return Rollouts(generator, settings, rewards), rewards.networks


def sampling_settings(config: RunConfig) -> GenerationConfig:
    """Return how answers are sampled for training: by the policy itself, unless the keys say otherwise."""
    plain = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "do_sample": True}
    unset = {key: value for key, value in {**plain, "infer_backend": "danlu"}.items()
             if config.origins.get(key, "default") == "default"}
    settings = config.generation.model_copy(update=unset)
    bent = [f"{key} {getattr(settings, key):g}" for key, value in plain.items() if getattr(settings, key) != value]
    if bent or settings.repetition_penalty != 1.0:
        notice(f"answers are sampled with {', '.join(bent) or 'repetition_penalty'}: the losses take them as the "
               "policy's own, so that what sampling leaves out is learnt less exactly")
    return settings


def check_fits(model: nn.Module, prepared: Prepared) -> None:
    """Refuse data with token ids or lengths that the model has no place for."""
    base = base_of(model)
    for dataset in prepared.sets():
        outside = dict(dataset.find_ids(embedding_rows(base)))
        check_token_ids(outside, prepared.tokenizer, base, where=next(iter(outside.values()), ""))
        check_positions(dataset.longest(), learned_positions(base), context_length(base.config.get_text_config()))


def build_reference(config: RunConfig, prepared: Prepared, precision: Precision) -> nn.Module | None:
    """Load the frozen reference where the stage needs one and switching the policy's adapter off does not serve."""
    keys = prepared.settings
    if "reference" not in prepared.stage.roles_of(keys):
        return None
    assert isinstance(keys, ReferenceModelKeys)
    set_seed(config.engine.seed)  # new rows of a resized vocabulary are drawn as the policy's were
    reference = load_reference(
        config.model, config.quantization, config.adapter, name=keys.ref_model, adapters=keys.ref_model_adapters,
        bits=keys.ref_model_quantization_bit, trainable=config.do_train, tokenizer=prepared.tokenizer,
        compute_dtype=precision.compute_dtype, max_length=config.data.cutoff_len)
    if reference is not None:
        check_fits(reference.model, prepared)
    return reference


def fit(config: RunConfig, engine: Engine, stage: Stage, prepared: Prepared) -> TrainResult:
    """Run the one loop over the training set."""
    assert prepared.train is not None
    say(describe_first(prepared.train, prepared.tokenizer))
    keys = config.engine
    groups = optimizer_groups(
        stage.models.policy, learning_rate=keys.learning_rate, weight_decay=keys.weight_decay,
        loraplus_lr_ratio=keys.loraplus_lr_ratio, loraplus_lr_embedding=keys.loraplus_lr_embedding)
    result = engine.fit(stage, prepared.train, prepared.evaluation, groups=groups)
    if isinstance(prepared.train, TokenStream):
        prepared.train.finish()
    return result


def save_result(
    config: RunConfig, engine: Engine, saver: ModelSaver, stage: Stage, run: RunDir, result: TrainResult,
) -> None:
    """Write the trained weights beside the results, in the number format the base is stored in.

    They are written into a folder of their own and moved file by file, so that none is ever half there.
    """
    facts, folder = card_facts(config, result.metrics), run.path / f"{TEMPORARY_PREFIX}result"

    def write() -> None:
        try:
            shutil.rmtree(folder, ignore_errors=True)
            saver.save(stage.models.policy, folder, dtype=saver.stored_dtype, facts=facts)
            for file in sorted(folder.iterdir()):
                file.replace(run.path / file.name)
            folder.rmdir()
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise UserError(f"the result cannot be written: {error.strerror or error}", where=str(run.path),
                            fix="free space on this disk and run the same command: it goes on from the last checkpoint",
                            ) from error

    on_main(engine.accelerator, write)
    on_main(engine.accelerator, lambda: write_rollout_page(run.path))
    say(f"saved to {run.path}")


def run_precision(config: RunConfig, prepared: Prepared | None = None) -> Precision:
    """Return the number formats of the run, and say what the device cannot do; on a processor memory is settled too.

    `bf16: auto` is tried on the first batch of `prepared`; where nothing is prepared it counts as off. A run that could
    try it and names no format is told of it.
    """
    on_gpu = torch.cuda.is_available() and not config.engine.use_cpu
    if not on_gpu:
        bound_kernel_cache()
        keep_freed_memory()
    device, bf16 = torch.device("cuda" if on_gpu else "cpu"), config.engine.bf16
    if bf16 == "auto":
        bf16 = prepared is not None and not config.adapter.pure_bf16 and chooses_bf16(config, prepared, device)
    precision = resolve_precision(bf16=bf16, fp16=config.engine.fp16, pure_bf16=config.adapter.pure_bf16, device=device)
    if precision.notice:
        notice(precision.notice)
    names_a_format = not {"bf16", "fp16", "pure_bf16"}.isdisjoint(config.given())
    if prepared is not None and config.do_train and isinstance(prepared.train, TokenDataset) and not names_a_format:
        offer = bf16_hint(device, is_fast=has_fast_bf16(device), is_alone=launched_processes() == 1)
        if offer:
            notice(offer)
    return precision


def chooses_bf16(config: RunConfig, prepared: Prepared, device: torch.device, *,
                 is_fast: bool | None = None) -> bool:
    """Return what `bf16: auto` comes to, and say it.

    is_fast  whether the device multiplies bfloat16 itself; None asks it
    """
    dataset = next(iter(prepared.sets()), None)

    def gap() -> float:
        assert isinstance(dataset, TokenDataset)
        model = load_model(
            config.model, config.quantization, config.adapter, tokenizer=prepared.tokenizer, trainable=False,
            compute_dtype=torch.float32, max_length=config.data.cutoff_len)
        check_fits(model, prepared)
        return loss_gap(PackedLM(model), dataset[:config.engine.per_device_train_batch_size])

    can_try = isinstance(dataset, TokenDataset) and len(dataset) > 0 and device.type == "cpu"
    choice = choose_bf16(
        device, gap if can_try else None, is_fast=has_fast_bf16(device) if is_fast is None else is_fast,
        is_alone=launched_processes() == 1)
    say(choice.why)
    return choice.is_on


def card_facts(config: RunConfig, metrics: Mapping[str, float]) -> CardFacts:
    """Return what the model card tells of this run."""
    given = config.given()
    data = config.data
    return CardFacts(
        base=str(config.model.model_name_or_path), stage=config.stage, method=config.adapter.finetuning_type,
        datasets=data.dataset or tuple(filter(None, [data.train_file])),
        settings={key: given[key] for key in CARD_KEYS if given.get(key) is not None}, metrics=dict(metrics),
        title=Path(output_dir(config)).expanduser().resolve().name)


def output_dir(config: RunConfig) -> str:
    """Return the folder of the run; refuse a configuration without one."""
    if not config.engine.output_dir:
        raise ConfigError('"output_dir" is missing', fix="give a folder for the results")
    return config.engine.output_dir

