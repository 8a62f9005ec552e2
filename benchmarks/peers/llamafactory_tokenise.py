"""Time how long LLaMA-Factory takes to tokenise and pack a data set; imports nothing of danlu.

    python llamafactory_tokenise.py asked.json answered.json

`asked` is that of trl_tokenise.py; `data` lies beside a dataset_info.json that calls it `talk`.
"""

import json
import sys
import time
from pathlib import Path

from clock import versions
from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
from llamafactory.hparams import get_train_args
from llamafactory.model import load_tokenizer


def main() -> None:
    """Answer what is asked."""
    asked = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    model_args, data_args, training_args, _, _ = get_train_args({
        "stage": "sft", "do_train": True, "model_name_or_path": asked["model"], "dataset": "talk",
        "dataset_dir": str(Path(asked["data"]).parent), "finetuning_type": "full", "output_dir": asked["output"],
        "overwrite_output_dir": True, "overwrite_cache": True, "cutoff_len": asked["length"], "packing": True,
        "preprocessing_num_workers": asked["workers"], "report_to": "none"})
    loaded = load_tokenizer(model_args)
    template = get_template_and_fix_tokenizer(loaded["tokenizer"], data_args)
    began = time.perf_counter()
    get_dataset(template, model_args, data_args, training_args, stage="sft", **loaded)
    found = time.perf_counter() - began
    Path(sys.argv[2]).write_text(json.dumps({"seconds": found, "versions": versions()}), encoding="utf-8")


if __name__ == "__main__":
    main()
