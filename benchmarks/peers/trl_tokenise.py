"""Time how long TRL's SFTTrainer takes to tokenise and pack a data set; imports nothing of danlu.

    python trl_tokenise.py asked.json answered.json

`asked`: model, data (a JSON file of dialogues), output, length, workers (null: TRL's default). The time is that of
making the trainer, less that of making it for one row.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from clock import versions
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer


def seconds(rows: list[dict[str, Any]], asked: dict[str, Any]) -> float:
    """Return the seconds it takes to make a trainer over these rows."""
    tokenizer = AutoTokenizer.from_pretrained(asked["model"])
    model = AutoModelForCausalLM.from_pretrained(asked["model"])
    dataset = Dataset.from_list(rows)
    config = SFTConfig(output_dir=asked["output"], packing=True, max_length=asked["length"], use_cpu=True, bf16=False,
                       dataset_num_proc=asked["workers"], report_to="none", disable_tqdm=True)
    began = time.perf_counter()
    SFTTrainer(model=model, args=config, train_dataset=dataset, processing_class=tokenizer)
    return time.perf_counter() - began


def main() -> None:
    """Answer what is asked."""
    asked = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    rows = [{"prompt": [{"role": "user", "content": row["instruction"]}],
             "completion": [{"role": "assistant", "content": row["output"]}]}
            for row in json.loads(Path(asked["data"]).read_text("utf-8"))]
    seconds(rows[:1], asked)
    found = max(seconds(rows, asked) - seconds(rows[:1], asked), 1e-9)
    Path(sys.argv[2]).write_text(json.dumps({"seconds": found, "versions": versions()}), encoding="utf-8")


if __name__ == "__main__":
    main()
