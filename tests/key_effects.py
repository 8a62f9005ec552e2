"""For every key that acts: how a test shows that it changes a run. Checked for completeness by test_key_matrix.py.

`EFFECTS`     a small run with the key is compared with one without, in one aspect: tests/e2e/test_key_effects.py
`PROVEN_BY`   a test of its own shows it: the file's path
`RESOURCES`   the key changes time or memory only, never a result; why it cannot be seen on a tiny model
`BEYOND`      needs what a test machine does not have: a GPU, several machines, the network
"""

from dataclasses import dataclass, field
from typing import Any

Values = dict[str, Any]


@dataclass(frozen=True)
class Effect:
    """A run under `base` and `both`, and the same with `given`; they differ in the aspect `seen`.

    Values may name folders of the test world: {world}, {bases}, {adapters}, {hub}, {run} (the folder of the run
    itself). A value None takes the key out. `prior` starts from a copy of the output folder of a finished run.
    """

    given: Values
    seen: str
    base: str = "sft"
    both: Values = field(default_factory=dict)
    prior: Values | None = None
    slow: bool = False


def key(name: str, value: Any, seen: str = "losses", base: str = "sft", **both: Any) -> tuple[str, Effect]:
    """Return the entry of a key whose effect shows when it alone is given."""
    return name, Effect({name: value}, seen, base, both)


REWARD: Values = {"reward_model_type": "function", "reward_model": "{world}/reward.py:letters", "max_new_tokens": 4}
BASES: dict[str, Values] = {
    "sft": {"stage": "sft", "dataset": "chat", "finetuning_type": "lora"},
    "full": {"stage": "sft", "dataset": "chat", "finetuning_type": "full", "learning_rate": 1e-3},
    "freeze": {"stage": "sft", "dataset": "chat", "finetuning_type": "freeze", "freeze_trainable_layers": 1},
    "pt": {"stage": "pt", "dataset": "prose", "finetuning_type": "lora", "cutoff_len": 16},
    "evaluated": {"stage": "sft", "dataset": "chat", "finetuning_type": "lora", "eval_dataset": "more",
                  "eval_strategy": "steps", "eval_steps": 2},
    "epochs": {"stage": "sft", "dataset": "chat", "finetuning_type": "lora", "max_steps": None,
               "num_train_epochs": 1},
    "answers": {"stage": "sft", "dataset": "more", "do_predict": True, "max_new_tokens": 8, "seed": 1},
    "long": {"stage": "sft", "dataset": "long", "finetuning_type": "lora", "cutoff_len": 40},
    "tested": {"task": "perplexity", "dataset": "more"},
    "merged": {"adapter_name_or_path": "{adapters}/one", "export_dir": "{run}/first"},
    "rm": {"stage": "rm", "dataset": "pairs", "finetuning_type": "lora"},
    "dpo": {"stage": "dpo", "dataset": "pairs", "finetuning_type": "lora"},
    "kto": {"stage": "kto", "dataset": "verdicts", "finetuning_type": "lora"},
    "qlora": {"stage": "sft", "dataset": "chat", "finetuning_type": "lora", "quantization_bit": 4},
    "ppo": {"stage": "ppo", "dataset": "chat", "finetuning_type": "lora", **REWARD},
    "grpo": {"stage": "grpo", "dataset": "chat", "finetuning_type": "lora", "num_generations": 4, **REWARD},
}

COMPILED: Values = {"torch_compile": True, "torch_compile_backend": "eager", "max_steps": 1}

EFFECTS: dict[str, Effect] = dict([
    # run
    ("stage", Effect({"stage": "pt"}, "losses", both={"dataset": "prose", "cutoff_len": 16})),
    key("do_train", False, "files", do_eval=True, do_train=True, eval_dataset="more"),
    key("do_eval", True, "files", do_train=True, eval_dataset="more"),
    key("do_predict", True, "files", do_train=True, eval_dataset="more", max_new_tokens=4),
    key("predict_with_generate", True, "files", do_eval=True, max_new_tokens=4),
    # model
    key("model_name_or_path", "{bases}/other"),
    key("adapter_name_or_path", "{adapters}/one"),
    key("adapter_folder", "{adapters}/group", adapter_name_or_path="one", adapter_folder="{adapters}"),
    key("cache_dir", "{hub}/second", model_name_or_path="tiny/base", cache_dir="{hub}/first"),
    key("model_revision", "other", model_name_or_path="tiny/base", cache_dir="{hub}/first"),
    key("resize_vocab", True, "outcome", "pt", model_name_or_path="{bases}/short"),
    key("split_special_tokens", True, base="pt", dataset="control"),
    key("add_tokens", "the cat,是 什么"),
    key("add_special_tokens", "<new>", "model"),
    key("new_special_tokens_config", "{world}/described.yaml", "model"),
    key("init_special_tokens", "desc_init", "model", new_special_tokens_config="{world}/described.yaml"),
    key("rope_scaling", "linear", cutoff_len=512),
    key("flash_attn", "fa2", "console"),
    ("moe_aux_loss_coef", Effect({"moe_aux_loss_coef": 0.5}, "weights", "full",
                                 {"model_name_or_path": "{bases}/experts"})),
    key("gradient_checkpointing", True, "plan"),
    key("upcast_layernorm", True, bf16=True),
    key("train_from_scratch", True, base="full"),
    key("infer_dtype", "bfloat16", "eval", "tested"),
    key("print_param_status", True, "console"),
    key("trust_remote_code", True, "outcome", model_name_or_path="{bases}/own_code"),
    # quantisation
    key("quantization_bit", 8),
    key("quantization_type", "fp4", base="qlora"),
    key("double_quantization", False, base="qlora"),
    # method
    key("finetuning_type", "full"),
    key("pure_bf16", True),
    key("additional_target", "lm_head", "model"),
    key("create_new_adapter", True, adapter_name_or_path="{adapters}/one"),
    key("freeze_trainable_layers", 2, base="freeze"),
    key("freeze_trainable_modules", "self_attn", base="freeze"),
    key("freeze_extra_modules", "embed_tokens", base="freeze"),
    key("lora_rank", 2),
    key("lora_alpha", 64),
    key("lora_dropout", 0.5),
    key("lora_target", "q_proj", "model"),
    key("use_rslora", True),
    key("use_dora", True),
    key("pissa_init", True),
    key("pissa_iter", -1, pissa_init=True),
    # data
    key("template", "vicuna"),
    key("dataset", "more"),
    key("eval_dataset", "chat", "evaluations", "evaluated"),
    ("train_file", Effect({"train_file": "{world}/more.json", "dataset": None}, "losses")),
    ("eval_file", Effect({"eval_file": "{world}/chat.json", "eval_dataset": None}, "evaluations", "evaluated")),
    key("dataset_dir", "{world}/second"),
    key("text_column", "body", base="pt", dataset="odd"),
    key("on_bad_row", "skip", "outcome", dataset="bad"),
    key("cutoff_len", 30, base="long"),
    key("on_long", "drop", base="long", on_long="right"),
    key("reserved_label_len", 20, base="long"),
    key("train_on_prompt", True),
    key("mask_history", True, dataset="turns", template="vicuna"),
    key("mix_strategy", "interleave_over", base="epochs", dataset="chat,more", disable_shuffling=True),
    key("interleave_probs", "0.9,0.1", base="epochs", dataset="chat,more", mix_strategy="interleave_over",
        disable_shuffling=True),
    ("overwrite_cache", Effect({"overwrite_cache": True}, "cache", both={"overwrite_output_dir": True}, prior={})),
    key("max_samples", 2, base="epochs"),
    key("val_size", 0.5, base="epochs"),
    key("eval_on_each_dataset", True, "results", "evaluated", eval_dataset="more,chat"),
    key("packing", True, base="epochs", cutoff_len=64),
    key("neat_packing", True, base="epochs", cutoff_len=64),
    key("default_system", "the sky is blue"),
    key("enable_thinking", False, template="qwen3"),
    key("preserve_thinking", True, dataset="thoughts", template="qwen3"),
    key("tool_format", "qwen", dataset="tools", template="default"),
    key("tokenized_path", "{run}/tokens", "files"),
    key("streaming", True, "console", base="epochs"),
    key("buffer_size", 1, base="epochs", streaming=True),
    # the length of the run
    key("output_dir", "{run}/elsewhere", "files"),
    ("overwrite_output_dir", Effect({"overwrite_output_dir": True}, "outcome", prior={"save_strategy": "no"})),
    ("resume_from_checkpoint", Effect({"resume_from_checkpoint": "{run}/out/checkpoint-2"}, "console",
                                      both={"save_strategy": "steps", "save_steps": 2},
                                      prior={"save_strategy": "steps", "save_steps": 2})),
    key("per_device_train_batch_size", 4),
    key("gradient_accumulation_steps", 2),
    key("num_train_epochs", 2, base="epochs"),
    key("max_steps", 2),
    key("seed", 7),
    key("data_seed", 7),
    key("full_determinism", True, "flags"),
    key("disable_shuffling", True),
    key("group_by_length", True),
    key("dataloader_drop_last", True, base="epochs", per_device_train_batch_size=3),
    # optimiser
    key("learning_rate", 5e-2),
    key("optim", "sgd"),
    key("optim_args", "momentum=0.9", optim="sgd"),
    key("weight_decay", 0.9),
    key("adam_beta1", 0.1),
    key("adam_beta2", 0.1),
    key("adam_epsilon", 1.0),
    key("max_grad_norm", 1e-6, "losses", optim="sgd", learning_rate=1.0),
    key("loraplus_lr_ratio", 16),
    key("loraplus_lr_embedding", 1e-1, loraplus_lr_ratio=16, lora_target="embed_tokens,q_proj"),
    key("neftune_noise_alpha", 50),
    key("label_smoothing_factor", 0.2),
    key("lr_scheduler_type", "cosine", "rates"),
    key("lr_scheduler_kwargs", '{"min_lr": 0.009}', "rates", lr_scheduler_type="cosine_with_min_lr"),
    key("warmup_steps", 2, "rates"),
    key("warmup_ratio", 0.5, "rates"),
    key("bf16", True),
    key("fp16", True, "console"),
    key("tf32", True, "flags"),
    ("torch_compile", Effect({"torch_compile": True}, "compiled", slow=True,
                             both={"torch_compile_backend": "eager", "max_steps": 1})),
    ("torch_compile_backend", Effect({"torch_compile_backend": "nonsense"}, "outcome", both=COMPILED, slow=True)),
    ("torch_compile_mode", Effect({"torch_compile_mode": "nonsense"}, "outcome", slow=True,
                                  both={"torch_compile": True, "max_steps": 1})),
    # reward model and alignment
    key("rm_loss", "pointwise", base="rm"),
    key("rm_margin", 0.5, base="rm"),
    key("rm_centre", 0.5, base="rm"),
    key("pref_beta", 0.5, base="dpo"),
    key("pref_loss", "hinge", base="dpo"),
    key("dpo_label_smoothing", 0.2, base="dpo"),
    key("pref_ftx", 0.5, base="dpo"),
    key("pref_bco_weight", 0.5, base="dpo"),
    key("simpo_gamma", 0.9, base="dpo", pref_loss="simpo"),
    key("ld_alpha", 0.3, base="dpo"),
    key("ref_model", "{bases}/other", base="dpo"),
    key("ref_model_adapters", "{adapters}/one", base="dpo"),
    key("ref_model_quantization_bit", 4, base="dpo"),
    key("kto_chosen_weight", 2.0, base="kto"),
    key("kto_rejected_weight", 2.0, base="kto"),
    # answers of the policy's own
    key("reward_model", "{world}/reward.py:spaces", base="ppo"),
    ("reward_model_type", Effect(
        {"reward_model_type": "rules", "reward_model": "{world}/rules.yaml"}, "losses", "ppo")),
    key("reward_weights", "1,5", base="ppo", reward_model_type="function,function",
        reward_model="{world}/reward.py:letters,{world}/reward.py:spaces"),
    key("missing_eos_penalty", 3.0, base="grpo", max_new_tokens=40),
    key("rollout_log_samples", 1, "files", base="ppo", rollout_log_samples=0),
    key("ppo_epochs", 2, base="ppo"),
    key("ppo_num_generations", 2, base="ppo"),
    key("ppo_buffer_size", 2, base="ppo"),
    key("ppo_kl_coef", 1.0, base="ppo"),
    key("ppo_kl_controller", "fixed", base="ppo", ppo_kl_horizon=10.0),
    key("ppo_target", 1e-4, base="ppo", ppo_kl_horizon=10.0, learning_rate=0.1),
    key("ppo_kl_horizon", 10.0, base="ppo"),
    key("ppo_clip", 0.01, base="ppo"),
    key("ppo_value_clip", 0.001, base="ppo"),
    key("ppo_value_coef", 2.0, base="ppo"),
    key("ppo_entropy_coef", 0.5, base="ppo"),
    key("ppo_gamma", 0.5, base="ppo"),
    key("ppo_lambda", 0.1, base="ppo"),
    key("ppo_score_norm", True, base="ppo"),
    key("ppo_score_clip", 0.1, base="ppo"),
    key("ppo_whiten_rewards", True, base="ppo"),
    key("ppo_whiten_advantages", False, base="ppo"),
    key("num_generations", 2, base="grpo"),
    key("grpo_epochs", 3, base="grpo"),
    key("grpo_advantage", "rloo", base="grpo"),
    key("grpo_weighting", "constant", base="grpo", max_new_tokens=40),
    key("grpo_clip", 0.01, base="grpo", grpo_epochs=3),
    key("grpo_clip_high", 0.01, base="grpo", grpo_epochs=3),
    key("grpo_beta", 1.0, base="grpo"),
    key("grpo_kl", "k1", base="grpo"),
    key("grpo_kl_in", "reward", base="grpo", grpo_beta=1.0),
    key("mask_truncated", True, base="grpo"),
    # logging
    key("logging_strategy", "no", "log"),
    key("logging_steps", 2, "log"),
    key("logging_first_step", True, "log", logging_steps=3),
    key("logging_dir", "{run}/boards", "files", report_to="tensorboard"),
    key("disable_tqdm", False, "console"),
    key("plot_loss", True, "files"),
    key("include_num_input_tokens_seen", "all", "log"),
    key("include_effective_tokens_per_second", True, "results"),
    key("report_to", "tensorboard", "files"),
    key("project", "another", "trackers"),
    key("run_name", "another", "trackers"),
    key("swanlab_workspace", "another", "trackers"),
    key("swanlab_run_name", "another", "trackers"),
    key("swanlab_mode", "local", "trackers", swanlab_api_key="x"),
    key("swanlab_api_key", "x", "trackers"),
    key("swanlab_logdir", "another", "trackers"),
    # evaluation while training
    key("eval_strategy", "epoch", "evaluations", "evaluated", eval_strategy="no", eval_steps=None),
    key("eval_steps", 1, "evaluations", "evaluated"),
    key("eval_delay", 3, "evaluations", "evaluated"),
    key("eval_on_start", True, "evaluations", "evaluated"),
    key("early_stopping_steps", 1, "log", "evaluated", learning_rate=0.0, eval_steps=1),
    key("load_best_model_at_end", True, "weights", "evaluated", optim="sgd", learning_rate=300.0, max_grad_norm=0.0,
        save_strategy="steps", save_steps=2),
    key("metric_for_best_model", "nonsense", "outcome", "evaluated", load_best_model_at_end=True,
        save_strategy="steps", save_steps=2),
    key("greater_is_better", True, "weights", "evaluated", load_best_model_at_end=True, save_strategy="steps",
        save_steps=2, learning_rate=5e-2),
    # checkpoints
    key("save_strategy", "epoch", "files"),
    key("save_steps", 1, "files", save_strategy="steps"),
    key("save_total_limit", 1, "files", save_strategy="steps", save_steps=2),
    key("save_only_model", True, "files", save_strategy="steps", save_steps=2),
    # generation
    key("do_sample", False, "answers", "answers"),
    key("temperature", 0.05, "answers", "answers", top_k=0, top_p=1.0),
    key("top_p", 0.05, "answers", "answers", top_k=0),
    key("top_k", 1, "answers", "answers"),
    key("num_beams", 3, "answers", "answers", do_sample=False),
    key("max_length", 40, "answers", "answers", max_new_tokens=0, max_length=60),
    key("max_new_tokens", 3, "answers", "answers"),
    key("repetition_penalty", 5.0, "answers", "answers", do_sample=False),
    key("length_penalty", -20.0, "answers", "answers", num_beams=4, do_sample=False),
    key("skip_special_tokens", False, "answers", "answers", max_new_tokens=100, temperature=2.0, top_k=0, top_p=1.0),
    # evaluation tasks and export
    key("task", "exact", "eval", "tested", max_new_tokens=4),
    key("save_dir", "{run}/scores", "eval", "tested"),
    ("kl_reference", Effect({"kl_reference": "{bases}/other"}, "eval", "tested", {"task": "reward", **REWARD})),
    key("export_dir", "{run}/second", "export", "merged"),
])

PROVEN_BY: dict[str, str] = {
    "reference_cache": "tests/unit/test_reference_store.py",
    "micro_batch_tokens": "tests/unit/test_micro_batches.py",
    "async_save": "tests/unit/test_engine_writer.py",
    "disable_gradient_checkpointing": "tests/unit/test_config_rules.py",
    **dict.fromkeys(("reward_model_adapters", "reward_model_quantization_bit", "reward_label", "reward_score",
                     "reward_text"), "tests/unit/test_rewards_models.py"),
    **dict.fromkeys(("reward_timeout", "reward_retries", "reward_batch_size"), "tests/unit/test_rewards_api.py"),
}

RESOURCES: dict[str, str] = {
    "preprocessing_batch_size": "records encoded at a time: memory while encoding",
    "preprocessing_num_workers": "processes that encode: time",
    "per_device_eval_batch_size": "examples in one forward pass: sums do not depend on it",
    "batch_size": "questions in one forward pass: answers do not depend on it",
    "use_kv_cache": "time of generation: answers do not depend on it",
    "infer_backend": "time of generation: tests/unit/test_generation_rollouts.py holds the answers to be the same",
    "export_size": "size of the weight files, from 1 GB on: a tiny model has one file",
}

BEYOND: dict[str, str] = {
    "hf_hub_token": "network", "split": "network: splits are a matter of hub data sets",
    "use_cpu": "GPU", "export_device": "GPU",
    "ddp_timeout": "several processes", "ddp_backend": "several processes",
    "ddp_find_unused_parameters": "several processes", "ddp_bucket_cap_mb": "several processes",
    "ddp_broadcast_buffers": "several processes",
    **dict.fromkeys(("vllm_maxlen", "vllm_gpu_util", "vllm_enforce_eager", "vllm_max_lora_rank", "vllm_config"),
                    "GPU and the vllm package; what the engine is told: tests/unit/test_generation_vllm.py"),
}
