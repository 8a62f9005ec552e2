"""`danlu eval`: test a model on a task. Parses and prints; no logic of its own."""

import sys
from collections.abc import Sequence
from pathlib import Path

from danlu.cli.key_help import key_table
from danlu.cli.run_keys import read_run_config

USAGE = """usage: danlu eval [FILE.yaml] task=TASK [key=value ...] [--key value ...]

Test a base model, an adapter, a merged model or a reward model.
    danlu eval task=exact model_name_or_path=runs/sft dataset=held_out.jsonl save_dir=runs/sft/eval
    danlu eval task=perplexity model_name_or_path=base dataset=prose.txt
    danlu eval task=reward reward_model_type=rules reward_model=rules.yaml model_name_or_path=runs/ppo dataset=p.jsonl
    danlu eval task=pairs model_name_or_path=runs/rm dataset=preferences.jsonl save_dir=runs/rm/eval
exact       the share of last answers reproduced word for word, greedily; per `lang` column or data set as well
perplexity  exp of the mean loss per supervised token
reward      the mean reward of sampled answers, from the sources of reward_model, and the KL to kl_reference
pairs       how often a reward model ranks answers as people did, its mean margin and calibration; per data set as well
save_dir receives eval_results.json and generated_predictions.jsonl; of pairs calibration.json and its picture too."""
OWNERS = ("evaluation", "model", "quantization", "data", "generation")
BATCH_SIZE = 32  # when batch_size is not given: generation gains most up to here, on a CPU too


def main(argv: Sequence[str]) -> int:
    """Check the keys without torch, then run the task and print its numbers."""
    if not argv or {"-h", "--help"} & set(argv):
        print(USAGE, key_table(OWNERS), sep="\n", file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    config = read_run_config(argv, "eval")
    from danlu.evaluation.base import TASKS, EvalJob, run_task

    given = config.origins.get("batch_size", "default") != "default"
    batch_size = config.evaluation.batch_size if given else BATCH_SIZE
    folder = Path(config.evaluation.save_dir).expanduser() if config.evaluation.save_dir else None
    if config.evaluation.task:
        TASKS[config.evaluation.task]
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    job = EvalJob(config.model, config.quantization, config.adapter, config.data, config.evaluation, config.generation,
                  config.stage, config.stage_config_values, config.engine.seed, batch_size, folder)
    results = run_task(config.evaluation.task, job)
    for name, value in results.items():
        print(f"{name}: {value:.6g}")
    return 0
