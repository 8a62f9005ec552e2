"""Keys that other tools have and danlu knows but does not act on: each with one sentence that says why.

`NO_EFFECT`: accepted with a notice, because the run is what its author wants without the key.
`OUT_OF_SCOPE`: refused, because ignoring the key would give another run than the one its author wants.
"""


def _table(groups: dict[str, str]) -> dict[str, str]:
    return {key: sentence for sentence, keys in groups.items() for key in keys.split()}


NO_EFFECT: dict[str, str] = _table({
    "attention, loss and memory layout are danlu's own, no kernel package is needed":
        "use_unsloth use_unsloth_gc enable_liger_kernel use_liger_kernel liger_kernel_config use_v1_kernels",
    "weights are always loaded without a second copy in memory": "low_cpu_mem_usage",
    "losses and log-probabilities are always computed in float32": "upcast_lmhead_output",
    "batches hold no padding": "ignore_pad_token_for_loss padding_side",
    "the number of layers is read from the model": "num_hidden_layers",
    "package versions are checked when danlu is installed": "disable_version_checking",
    "a quantised model goes to the device that trains it": "quantization_device_map",
    "every process reads the cache by itself": "data_shared_file_system",
    "the columns of a data set are named in dataset_info.json": "remove_unused_columns label_names length_column_name",
    "losses are always divided by the count of all devices": "average_tokens_across_devices",
    "a loss that is not finite stops the run and names the rows": "logging_nan_inf_filter",
    "danlu says what matters and leaves the rest out": "log_level log_level_replica log_on_each_node debug",
    "evaluation keeps sums only, never logits":
        "prediction_loss_only eval_do_concat_batches eval_use_gather_object eval_accumulation_steps "
        "include_for_metrics include_inputs_for_metrics batch_eval_metrics compute_accuracy",
    "evaluation computes in the format of training": "bf16_full_eval fp16_full_eval",
    "weights are held in memory whole": "offload_folder",
    "cutoff_len bounds a prompt with its answer; only whole rounds of the prompt are left out": "max_prompt_length",
    "a PiSSA adapter is always saved as a plain LoRA of the original base": "pissa_convert",
    "transformers 5 has one implementation of each tokenizer": "use_fast_tokenizer",
    "gradient checkpointing always takes the form without re-entry":
        "use_reentrant_gc gradient_checkpointing_kwargs activation_checkpointing_kwargs",
    "only the first process writes": "save_on_each_node",
    "SIGTERM and Ctrl-C always write a checkpoint": "enable_jit_checkpoint",
    "weights are always saved as safetensors": "save_safetensors export_legacy_format",
    "a resumed run always goes on at the exact example": "ignore_data_skip restore_callback_states_from_checkpoint",
    "the launcher tells each process its rank": "local_rank use_mps_device xpu_backend tpu_num_cores tpu_metrics_debug",
    "batches are laid out from memory-mapped token arrays":
        "dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor "
        "dataloader_multiprocessing_context dataloader_in_order",
    "memory use does not grow from step to step": "torch_empty_cache_steps",
    "the run keeps no memory statistics": "skip_memory_metrics",
    "precision follows bf16 and fp16": "half_precision_backend fp16_backend fp16_opt_level",
    "the switch is gone from torch and transformers":
        "jit_mode_eval use_ipex past_index mp_parameters use_legacy_prediction_loop torchdynamo visual_inputs",
    "danlu starts no Ray; `torchrun` or `accelerate launch` starts its processes":
        "ray_run_name ray_storage_path ray_storage_filesystem resources_per_worker placement_strategy",
    "the trackers' own web sites are never asked for messages": "swanlab_lark_webhook_url swanlab_lark_secret",
})

_LATER = "is not in this version"
_OTHER = "belongs to another engine, which danlu does not drive"
_UPLOAD = "danlu uploads nothing; push the folder with the hub's own client"
_PLAN = "batch sizes are the user's choice; `danlu plan` says what fits"

OUT_OF_SCOPE: dict[str, str] = _table({
    "images, video and audio are out of scope":
        "image_max_pixels image_min_pixels image_do_pan_and_scan crop_to_patches video_max_pixels video_min_pixels "
        "video_fps video_maxlen use_audio_in_video audio_sampling_rate media_dir freeze_vision_tower "
        "freeze_multi_modal_projector freeze_language_model",
    "orthogonal fine-tuning (OFT) is out of scope; use finetuning_type lora":
        "oft_rank oft_block_size oft_target module_dropout",
    "GaLore is out of scope": "use_galore galore_target galore_rank galore_update_interval galore_scale "
        "galore_proj_type galore_layerwise optim_target_modules",
    "APOLLO is out of scope": "use_apollo apollo_target apollo_rank apollo_update_interval apollo_scale apollo_proj "
        "apollo_proj_type apollo_scale_type apollo_layerwise apollo_scale_front",
    "BAdam is out of scope": "use_badam badam_mode badam_start_block badam_switch_mode badam_switch_interval "
        "badam_update_ratio badam_mask_mode badam_verbose",
    "LLaMA-Pro is out of scope; use finetuning_type freeze": "use_llama_pro",
    "Adam-mini is out of scope": "use_adam_mini",
    "Muon is out of scope": "use_muon",
    "the DFT, ASFT and EAFT losses are out of scope": "use_dft_loss use_asft_loss asft_alpha use_eaft_loss eaft_alpha",
    "mixture-of-depths is out of scope": "mixture_of_depths",
    "shifted sparse attention is out of scope": "shift_attn",
    "fp8 training is out of scope": "fp8 fp8_backend fp8_enable_fsdp_float8_all_gather",
    f"the key {_OTHER} (Megatron)":
        "use_mca use_megatron_bridge tensor_model_parallel_size pipeline_model_parallel_size "
        "expert_model_parallel_size context_parallel_size virtual_pipeline_model_parallel_size sequence_parallel "
        "recompute_granularity recompute_method recompute_num_layers account_for_embedding_in_pipeline_split "
        "account_for_loss_in_pipeline_split bias_activation_fusion apply_rope_fusion masked_softmax_fusion "
        "cross_entropy_loss_fusion moe_grouped_gemm moe_token_dispatcher_type calculate_per_token_loss "
        "use_distributed_optimizer overlap_param_gather overlap_grad_reduce use_packed_sequences mixed_precision "
        "megatron_pretrained_checkpoint export_hf_on_finish extra_config",
    f"the key {_OTHER} (HyperParallel)": "use_hyper_parallel hyper_parallel_args hyper_parallel_cp_size",
    f"the key {_OTHER} (SGLang)":
        "sglang_maxlen sglang_mem_fraction sglang_tp_size sglang_config sglang_lora_backend",
    f"the key {_OTHER} (KTransformers)":
        "use_kt kt_cpu_activation kt_weight_path kt_non_expert_weight_path kt_expert_checkpoint_path "
        "kt_use_lora_experts kt_lora_expert_num kt_lora_expert_intermediate_size",
    f"the key {_OTHER} (Ray)":
        "ray_num_workers ray_init_kwargs ray_scope master_addr master_port",
    f"training over FSDP or DeepSpeed {_LATER}": "deepspeed fsdp fsdp_config parallelism_config ddp_static_graph",
    f"exporting quantised weights {_LATER}":
        "export_quantization_bit export_quantization_dataset export_quantization_nsamples export_quantization_maxlen",
    f"the profiler {_LATER}":
        "enable_torch_profiler profiler_output_dir profiler_wait_steps profiler_warmup_steps profiler_active_steps "
        "profiler_repeat profiler_record_shapes profiler_profile_memory profiler_with_stack profile_modules",
    "the benchmarks with worked examples in the prompt (MMLU, C-Eval, CMMLU) are not in this version":
        "task_dir lang n_shot",
    "models and data come from folders or the Hugging Face hub":
        "ms_hub_token om_hub_token download_mode trackio_space_id trackio_bucket_id trackio_static_space_id",
    _UPLOAD: "export_hub_model_id push_to_hub hub_model_id hub_token hub_strategy hub_private_repo hub_always_push "
        "hub_revision push_to_hub_model_id push_to_hub_organization push_to_hub_token",
    _PLAN: "auto_find_batch_size",
    "set the single keys instead":
        "accelerator_config generation_config "
        "dispatch_batches split_batches sortish_sampler train_sampling_strategy",
    "danlu derives it; remove the key":
        "compute_dtype device_map model_max_length block_diag_attn megatron_bridge_args _kt_inference_config "
        "_kt_config_handle _kt_adapter_artifact_path",
})

FOREIGN_DEFAULTS: dict[str, bool | int | float | str] = {
    "image_max_pixels": 768 * 768, "image_min_pixels": 32 * 32, "video_max_pixels": 256 * 256,
    "video_min_pixels": 16 * 16, "video_fps": 2.0, "video_maxlen": 128, "audio_sampling_rate": 16000,
    "freeze_vision_tower": True, "freeze_multi_modal_projector": True,
    "module_dropout": 0.0, "oft_rank": 0, "oft_block_size": 32, "oft_target": "all",
    "galore_target": "all", "galore_rank": 16, "galore_update_interval": 200, "galore_scale": 2.0,
    "galore_proj_type": "std",
    "apollo_target": "all", "apollo_rank": 16, "apollo_update_interval": 200, "apollo_scale": 32.0,
    "apollo_proj": "random", "apollo_proj_type": "std", "apollo_scale_type": "channel",
    "badam_mode": "layer", "badam_switch_mode": "ascending", "badam_switch_interval": 50, "badam_update_ratio": 0.05,
    "badam_mask_mode": "adjacent", "badam_verbose": 0,
    "asft_alpha": 0.1, "eaft_alpha": 1.0, "fp8_backend": "auto", "hyper_parallel_cp_size": 1,
    "tensor_model_parallel_size": 1, "pipeline_model_parallel_size": 1, "expert_model_parallel_size": 1,
    "context_parallel_size": 1, "use_distributed_optimizer": True, "overlap_param_gather": True,
    "overlap_grad_reduce": True, "mixed_precision": "bf16_mixed",
    "sglang_maxlen": 4096, "sglang_mem_fraction": 0.7, "sglang_tp_size": -1, "sglang_lora_backend": "triton",
    "ray_num_workers": 1, "ray_scope": "last", "export_quantization_nsamples": 128, "export_quantization_maxlen": 1024,
    "profiler_wait_steps": 1, "profiler_warmup_steps": 1, "profiler_active_steps": 1, "profiler_repeat": 1,
    "profiler_record_shapes": True, "profiler_profile_memory": True, "profiler_with_stack": True,
    "task_dir": "evaluation", "lang": "en", "n_shot": 5, "download_mode": "reuse_dataset_if_exists",
    "trackio_space_id": "trackio", "hub_strategy": "every_save",
}
"""What an out-of-scope key holds where its tool is left as it is, unless false or nothing: asking for no change."""

REFUSED_VALUES: dict[str, dict[str, str]] = {
    "finetuning_type": {"oft": "orthogonal fine-tuning (OFT) is out of scope; use lora"},
    "quantization_method": {
        "hqq": "HQQ is out of scope; use bnb", "eetq": "EETQ is out of scope; use bnb",
        **{name: f"quantising with {name.upper()} {_LATER}; use bnb" for name in ("gptq", "awq", "aqlm", "quanto")},
        **{name: f"{name} weights are out of scope; use bnb" for name in ("mxfp4", "fp8")}},
    "infer_backend": {name: f"the {label} back end {_LATER}; use huggingface" for name, label in
                      (("sglang", "SGLang"), ("ktransformers", "KTransformers"))},
    "optim": {
        **dict.fromkeys(("adamw_torch_xla", "adamw_torch_npu_fused"), "XLA and NPU devices are out of scope"),
        **dict.fromkeys((
            "adamw_anyprecision", "adamw_torch_4bit", "adamw_torch_8bit", "lomo", "adalomo", "grokadamw",
            "schedule_free_radam", "schedule_free_adamw", "schedule_free_sgd", "apollo_adamw",
            "apollo_adamw_layerwise", "stable_adamw", "galore_adamw", "galore_adamw_8bit", "galore_adafactor",
            "galore_adamw_layerwise", "galore_adamw_8bit_layerwise", "galore_adafactor_layerwise", "adamw_apex_fused",
        ), "only the optimisers of torch and bitsandbytes are in scope"),
    },
}
