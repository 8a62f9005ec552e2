"""Train with TRL's trainers as a user would, and time the steps; imports nothing of danlu.

    python trl_run.py asked.json answered.json

`asked`: stage (sft | rm | dpo | kto), method (full | lora | qlora), model, data (folder of the workload), kind (its
data set), output, steps, batch, accumulation, learning_rate, lora_rank, and `settings`: more fields of TRL's config,
which make a variant.
"""

import json
import sys
from pathlib import Path
from typing import Any

from clock import Clock
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, BitsAndBytesConfig
from trl import (
    DPOConfig,
    DPOTrainer,
    KTOConfig,
    KTOTrainer,
    RewardConfig,
    RewardTrainer,
    SFTConfig,
    SFTTrainer,
)


def said(role: str, words: str) -> list[dict[str, str]]:
    """Return one message."""
    return [{"role": role, "content": words}]


def sft_row(row: dict[str, Any]) -> dict[str, Any]:
    """A prompt and the completion that is trained."""
    return {"prompt": said("user", row["instruction"]), "completion": said("assistant", row["output"])}


def pair_row(row: dict[str, Any]) -> dict[str, Any]:
    """A prompt with two answers."""
    return {"prompt": said("user", row["instruction"]), "chosen": said("assistant", row["chosen"]),
            "rejected": said("assistant", row["rejected"])}


def verdict_row(row: dict[str, Any]) -> dict[str, Any]:
    """An answer with a thumb up or down."""
    return sft_row(row) | {"label": row["kto_tag"]}


STAGES: dict[str, tuple[Any, Any, Any, str]] = {
    "sft": (sft_row, SFTConfig, SFTTrainer, "CAUSAL_LM"),
    "rm": (pair_row, RewardConfig, RewardTrainer, "SEQ_CLS"),
    "dpo": (pair_row, DPOConfig, DPOTrainer, "CAUSAL_LM"),
    "kto": (verdict_row, KTOConfig, KTOTrainer, "CAUSAL_LM"),
}


def main() -> None:
    """Run what is asked."""
    asked = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    clock = Clock(Path(sys.argv[2]))
    make_row, config_class, trainer_class, task = STAGES[asked["stage"]]
    rows = json.loads((Path(asked["data"]) / f"{asked['kind']}.json").read_text("utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(asked["model"])
    if task == "SEQ_CLS":
        model = AutoModelForSequenceClassification.from_pretrained(asked["model"], num_labels=1, dtype="float32")
    else:
        packed = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
        model = AutoModelForCausalLM.from_pretrained(
            asked["model"], dtype="float32", quantization_config=packed if asked["method"] == "qlora" else None)
    config = config_class(**{
        "output_dir": asked["output"], "max_steps": asked["steps"], "per_device_train_batch_size": asked["batch"],
        "gradient_accumulation_steps": asked["accumulation"], "learning_rate": asked["learning_rate"],
        "lr_scheduler_type": "constant", "weight_decay": 0.0, "max_grad_norm": 1.0,
        "logging_steps": 1, "save_strategy": "no", "report_to": "none", "disable_tqdm": True,
        "use_cpu": True, "train_sampling_strategy": "sequential",
        "include_num_input_tokens_seen": "non_padding", "seed": 42} | asked["settings"])
    adapter = LoraConfig(r=asked["lora_rank"], lora_alpha=2 * asked["lora_rank"], lora_dropout=0.0, task_type=task,
                         target_modules="all-linear") if asked["method"] != "full" else None
    trainer = trainer_class(model=model, args=config, train_dataset=Dataset.from_list([make_row(r) for r in rows]),
                            processing_class=tokenizer, peft_config=adapter, callbacks=[clock])
    trainer.train()


if __name__ == "__main__":
    main()
