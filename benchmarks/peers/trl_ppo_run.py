"""Train with TRL 0.24's PPOTrainer, the last release that has one, and time the steps; imports nothing of danlu.

    python trl_ppo_run.py asked.json answered.json

`asked` is that of trl_run.py; `scoring` is the folder of the reward model, which the value model starts from. A step
samples `batch` x `accumulation` answers and trains on them.
"""

import json
import sys
from pathlib import Path

from clock import Clock
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedTokenizerFast
from trl import PPOConfig, PPOTrainer


def main() -> None:
    """Run what is asked."""
    asked = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    clock, scoring = Clock(Path(sys.argv[2])), asked["scoring"]
    # Built from the bare file: the settings beside it are of a later transformers than this trainer runs with.
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(Path(asked["model"]) / "tokenizer.json"), padding_side="left", unk_token="<unk>",
        pad_token="<pad>", eos_token="</s>",
        chat_template=(Path(asked["model"]) / "chat_template.jinja").read_text("utf-8"))
    rows = json.loads((Path(asked["data"]) / "prompts.json").read_text("utf-8"))
    prompts = [tokenizer.apply_chat_template([{"role": "user", "content": row["instruction"]}], tokenize=False,
                                             add_generation_prompt=True) for row in rows]
    dataset = Dataset.from_list([{"input_ids": tokenizer(text, add_special_tokens=False)["input_ids"]}
                                 for text in prompts])
    policy, reference = (AutoModelForCausalLM.from_pretrained(asked["model"], dtype="float32") for _ in range(2))
    reward, value = (AutoModelForSequenceClassification.from_pretrained(scoring, num_labels=1, dtype="float32")
                     for _ in range(2))
    size = asked["batch"] * asked["accumulation"]
    config = PPOConfig(**{
        "output_dir": asked["output"], "total_episodes": asked["steps"] * size, "num_mini_batches": 1,
        "per_device_train_batch_size": asked["batch"], "gradient_accumulation_steps": asked["accumulation"],
        "learning_rate": asked["learning_rate"], "lr_scheduler_type": "constant", "logging_steps": 1,
        "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "num_sample_generations": 0, "bf16": False,
        "gradient_checkpointing": False, "temperature": 1.0, "seed": 42, "use_cpu": True} | asked["settings"])
    trainer = PPOTrainer(args=config, processing_class=tokenizer, model=policy, ref_model=reference,
                         reward_model=reward, value_model=value, train_dataset=dataset, callbacks=[clock])
    trainer.train()


if __name__ == "__main__":
    main()
