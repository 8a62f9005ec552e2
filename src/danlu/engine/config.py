"""Keys of the training loop: steps, optimiser, precision, logging, evaluation, checkpoints, trackers."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from danlu.core.config import StrictConfig
from danlu.core.errors import did_you_mean
from danlu.core.key_types import CommaList, only_with

Optimizer = Literal[
    "adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop", "ademamix",
    "adamw_bnb_8bit", "adamw_8bit", "ademamix_8bit", "lion_8bit", "lion_32bit", "paged_adamw_32bit",
    "paged_adamw_8bit", "paged_ademamix_32bit", "paged_ademamix_8bit", "paged_lion_32bit", "paged_lion_8bit",
    "rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit",
]
Schedule = Literal[
    "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt",
    "reduce_lr_on_plateau", "cosine_with_min_lr", "cosine_warmup_with_min_lr", "warmup_stable_decay", "greedy",
]
Interval = Literal["no", "steps", "epoch"]
TRACKERS = ("tensorboard", "wandb", "swanlab", "mlflow", "trackio")


class EngineConfig(StrictConfig):
    """How long, how fast and in which precision the one loop runs, and what it writes."""

    output_dir: str | None = Field(None, description="Folder for everything the run writes.")
    overwrite_output_dir: bool = Field(False, description="Start anew in a folder that holds a run; false resumes it.")
    resume_from_checkpoint: str | bool | None = Field(
        None, description="Checkpoint folder to go on from; true takes the newest of output_dir, false none.")
    # length of the run
    per_device_train_batch_size: int = Field(8, ge=1, description="Examples per device and accumulated batch.")
    gradient_accumulation_steps: int = Field(
        1, ge=1, description="Optimiser steps take this many times per_device_train_batch_size examples per device.")
    micro_batch_tokens: int | None = Field(
        None, ge=1, description="Tokens of one forward pass, unless a single example is longer; unset: at most those "
        "of per_device_train_batch_size examples of the step's longest. Never changes which examples a step takes.")
    num_train_epochs: float = Field(3.0, gt=0, description="Passes over the training set; parts of a pass count.")
    max_steps: int = Field(-1, ge=-1, description="Optimiser steps of the whole run; -1 leaves it to num_train_epochs.")
    seed: int = Field(42, ge=0, description="Seed of everything random.")
    data_seed: int | None = Field(None, ge=0, description="Seed of the order of the examples; unset: seed.")
    full_determinism: bool = Field(False, description="Allow deterministic kernels only; slower.")
    disable_shuffling: bool = Field(False, description="Take the examples in the order of the file.")
    group_by_length: bool = Field(False, description="Put examples of similar length into one batch.")
    dataloader_drop_last: bool = Field(False, description="Leave out the last batch of a pass when it is not full.")
    # optimiser
    learning_rate: float = Field(5e-5, ge=0, description="Largest step size.")
    optim: Optimizer = Field("adamw_torch_fused", description="Optimiser, in the names of transformers.")
    optim_args: str | None = Field(None, description="Further optimiser settings: `name=value`, comma separated.")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled decay of weights; biases and norms are exempt.")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="Decay of the first moment.")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="Decay of the second moment.")
    adam_epsilon: float = Field(1e-8, gt=0, description="Added to the root of the second moment.")
    max_grad_norm: float = Field(1.0, ge=0, description="Gradients are scaled down to this norm; 0 leaves them.")
    loraplus_lr_ratio: float | None = Field(
        None, gt=0, description="Learning rate of LoRA's B over that of A (LoRA+).",
        json_schema_extra=only_with(finetuning_type="lora"))
    loraplus_lr_embedding: float = Field(
        1e-6, ge=0, description="Learning rate of embedding adapters with LoRA+.",
        json_schema_extra=only_with(loraplus_lr_ratio=True))
    neftune_noise_alpha: float | None = Field(
        None, ge=0, description="Uniform noise on embeddings while training, scaled by alpha / sqrt(L d) (NEFTune).")
    label_smoothing_factor: float = Field(0.0, ge=0, lt=1, description="Share of the target spread over all tokens.")
    lr_scheduler_type: Schedule = Field("linear", description="Shape of the learning rate over the run.")
    lr_scheduler_kwargs: dict[str, Any] | None = Field(None, description="Further settings of the schedule, as a map.")
    warmup_steps: float = Field(0.0, ge=0, description="Steps of rising learning rate; below 1: a share of all steps.")
    warmup_ratio: float = Field(0.0, ge=0, le=1, description="Share of all steps with rising rate; warmup_steps wins.")
    # precision and device
    bf16: bool | Literal["auto"] = Field(
        False, description="Compute in bfloat16, keep trained weights in float32; auto: where it is fast and serves.")
    fp16: bool = Field(False, description="Compute in float16 with loss scaling; needs a GPU.")
    tf32: bool | None = Field(None, description="Allow TF32 matrix products on GPUs; unset: torch's default.")
    use_cpu: bool = Field(False, description="Stay on the CPU although there is a GPU.")
    torch_compile: bool = Field(False, description="Compile the model's layers with torch.compile.")
    torch_compile_backend: str | None = Field(
        None, description="Backend of torch.compile; unset: inductor.",
        json_schema_extra=only_with(torch_compile=True))
    torch_compile_mode: str | None = Field(
        None, description="Mode of torch.compile, such as reduce-overhead.",
        json_schema_extra=only_with(torch_compile=True))
    ddp_timeout: int = Field(1800, ge=1, description="Seconds that processes wait for each other.")
    ddp_backend: str | None = Field(None, description="How processes talk: nccl or gloo; unset: by device.")
    ddp_find_unused_parameters: bool | None = Field(None, description="Let DDP look for weights without gradient.")
    ddp_bucket_cap_mb: int | None = Field(None, ge=1, description="Gradients reduced at a time, in MiB.")
    ddp_broadcast_buffers: bool | None = Field(None, description="Send buffers of the first process to all others.")
    # logging
    logging_strategy: Interval = Field("steps", description="When the loss is logged.")
    logging_steps: float = Field(
        500, gt=0, description="Steps between two log lines; below 1: a share of all steps.",
        json_schema_extra=only_with(logging_strategy="steps"))
    logging_first_step: bool = Field(False, description="Log the first step as well.")
    logging_dir: str | None = Field(
        None, description="Folder of TensorBoard files; unset: output_dir/runs.",
        json_schema_extra=only_with(report_to=True))
    disable_tqdm: bool | None = Field(None, description="Show no progress bar; unset: shown in a terminal.")
    plot_loss: bool = Field(False, description=(
        "Draw the curves to training_*.png: losses, reward, KL, length, entropy, accuracy, margin."))
    include_num_input_tokens_seen: Literal["no", "all", "non_padding"] = Field(
        "no", description="Write the tokens read so far into every log line.")
    include_effective_tokens_per_second: bool = Field(False, description="Write the throughput without padding.")
    report_to: CommaList = Field(
        (), description="Trackers: tensorboard, wandb, swanlab, mlflow, trackio; or none, all.")
    run_name: str | None = Field(None, description="Name of the run in the trackers; unset: output_dir.")
    project: str = Field("danlu", description="Name of the project in the trackers.")
    swanlab_workspace: str | None = Field(
        None, description="SwanLab: workspace.",
        json_schema_extra=only_with(report_to=True))
    swanlab_run_name: str | None = Field(
        None, description="SwanLab: name of the run; unset: run_name.",
        json_schema_extra=only_with(report_to=True))
    swanlab_mode: Literal["cloud", "local"] = Field(
        "cloud", description="SwanLab: on its servers or on this machine.",
        json_schema_extra=only_with(report_to=True))
    swanlab_api_key: str | None = Field(
        None, description="SwanLab: API key.",
        json_schema_extra=only_with(report_to=True))
    swanlab_logdir: str | None = Field(
        None, description="SwanLab: folder of local logs.",
        json_schema_extra=only_with(report_to=True))
    # evaluation
    eval_strategy: Interval = Field("no", description="When to evaluate while training.")
    eval_steps: float | None = Field(
        None, gt=0, description="Steps between evaluations; below 1: a share; unset: logging_steps.",
        json_schema_extra=only_with(eval_strategy="steps"))
    eval_delay: float = Field(
        0, ge=0, description="Steps (or epochs) before the first evaluation.",
        json_schema_extra=only_with(eval_strategy=("steps", "epoch")))
    eval_on_start: bool = Field(False, description="Evaluate before the first step.")
    per_device_eval_batch_size: int = Field(8, ge=1, description="Examples per device in one evaluation pass.")
    early_stopping_steps: int | None = Field(None, ge=1, description="Stop after this many evaluations without gain.")
    load_best_model_at_end: bool = Field(False, description="Finish with the weights of the best evaluation.")
    metric_for_best_model: str | None = Field(None, description="What is best: a metric's name; unset: loss.")
    greater_is_better: bool | None = Field(None, description="Whether more is better; unset: not for losses and ece.")
    # checkpoints
    save_strategy: Literal["no", "steps", "epoch", "best"] = Field("steps", description="When checkpoints are written.")
    save_steps: float = Field(
        500, gt=0, description="Steps between checkpoints; below 1: a share of all steps.",
        json_schema_extra=only_with(save_strategy="steps"))
    save_total_limit: int | None = Field(None, ge=1, description="Checkpoints kept; the oldest go first.")
    async_save: bool | None = Field(
        None, description="Write checkpoints while training goes on; unset: when there is one process.")
    save_only_model: bool = Field(False, description="Leave optimiser and random state out; such a run cannot resume.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in self.report_to:
            if name not in (*TRACKERS, "all", "none"):
                hint = did_you_mean(name, (*TRACKERS, "all", "none"))
                raise ValueError(f'report_to: unknown tracker "{name}"; {hint}')
        if self.fp16 and self.bf16:
            raise ValueError(f"bf16: {str(self.bf16).lower()} and fp16: true exclude each other: keep one")
        if self.group_by_length and self.disable_shuffling:
            raise ValueError("group_by_length and disable_shuffling exclude each other")
        if self.warmup_steps >= 1 and self.warmup_steps != int(self.warmup_steps):
            raise ValueError(f"warmup_steps is a share below 1 or a whole number of steps, found {self.warmup_steps}")
        if self.load_best_model_at_end:
            self._check_best()
        if self.early_stopping_steps is not None and self.eval_strategy == "no":
            raise ValueError("early_stopping_steps needs evaluations: set eval_strategy to steps or epoch")
        if self.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy") and self.eval_strategy == "no":
            raise ValueError(f"lr_scheduler_type {self.lr_scheduler_type} follows evaluations: set eval_strategy to "
                             "steps or epoch")
        return self

    def _check_best(self) -> None:
        if self.eval_strategy == "no":
            raise ValueError("load_best_model_at_end needs evaluations: set eval_strategy to steps or epoch")
        if self.save_strategy not in (self.eval_strategy, "best"):
            raise ValueError(
                f"load_best_model_at_end needs a checkpoint at every evaluation: eval_strategy is "
                f"{self.eval_strategy}, save_strategy is {self.save_strategy}")
