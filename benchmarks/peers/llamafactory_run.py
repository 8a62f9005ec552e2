"""Train with LLaMA-Factory as a user would, and time the steps; imports nothing of danlu.

    python llamafactory_run.py asked.json answered.json

`asked` is that of trl_run.py; `settings` are more keys of a LLaMA-Factory configuration. Its chat template is the
tokenizer's own.
"""

import json
import sys
from pathlib import Path

from clock import Clock
from llamafactory.train.tuner import run_exp


def main() -> None:
    """Run what is asked."""
    asked = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    clock = Clock(Path(sys.argv[2]))
    config = {
        "stage": asked["stage"], "do_train": True, "model_name_or_path": asked["model"], "dataset_dir": asked["data"],
        "dataset": asked["kind"], "finetuning_type": asked["method"].removeprefix("q"), "output_dir": asked["output"],
        "overwrite_output_dir": True, "overwrite_cache": True, "cutoff_len": 1024, "max_steps": asked["steps"],
        "per_device_train_batch_size": asked["batch"], "gradient_accumulation_steps": asked["accumulation"],
        "learning_rate": asked["learning_rate"], "lr_scheduler_type": "constant", "weight_decay": 0.0,
        "max_grad_norm": 1.0, "logging_steps": 1, "save_strategy": "no", "report_to": "none", "disable_tqdm": True,
        "disable_shuffling": True, "seed": 42, "lora_rank": asked["lora_rank"], "lora_alpha": 2 * asked["lora_rank"],
        "lora_target": "all", "lora_dropout": 0.0, "dataloader_num_workers": 0,
        "include_num_input_tokens_seen": "non_padding"} | asked["settings"]
    run_exp(config, callbacks=[clock])


if __name__ == "__main__":
    main()
