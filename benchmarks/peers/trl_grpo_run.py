"""Train with TRL's GRPOTrainer as a user would, and time the steps; imports nothing of danlu.

    python trl_grpo_run.py asked.json answered.json

`asked` is that of trl_run.py; `scoring` is the folder of the reward model, `group` the answers of each prompt,
`answer_tokens` their length. A step samples `batch` x `accumulation` groups and trains on them once.
"""

import json
import sys
from pathlib import Path

from clock import Clock
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer


def main() -> None:
    """Run what is asked."""
    asked = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    clock = Clock(Path(sys.argv[2]))
    rows = json.loads((Path(asked["data"]) / "prompts.json").read_text("utf-8"))
    dataset = Dataset.from_list([{"prompt": [{"role": "user", "content": row["instruction"]}]} for row in rows])
    reward = AutoModelForSequenceClassification.from_pretrained(asked["scoring"], num_labels=1, dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(asked["model"], padding_side="left")
    config = GRPOConfig(**{
        "output_dir": asked["output"], "max_steps": asked["steps"], "beta": 0.04,
        "per_device_train_batch_size": asked["batch"] * asked["group"],
        "gradient_accumulation_steps": asked["accumulation"], "max_completion_length": asked["answer_tokens"],
        "learning_rate": asked["learning_rate"], "lr_scheduler_type": "constant", "weight_decay": 0.0,
        "max_grad_norm": 1.0, "logging_steps": 1, "save_strategy": "no", "report_to": "none", "disable_tqdm": True,
        "use_cpu": True, "temperature": 1.0, "seed": 42, "model_init_kwargs": {"dtype": "float32"}} | asked["settings"])
    trainer = GRPOTrainer(model=asked["model"], args=config, train_dataset=dataset, processing_class=tokenizer,
                          reward_funcs=reward, reward_processing_classes=AutoTokenizer.from_pretrained(asked["model"]),
                          callbacks=[clock])
    trainer.train()


if __name__ == "__main__":
    main()
