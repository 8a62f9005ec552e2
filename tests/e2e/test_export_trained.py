"""What a run measured in memory is what its export scores: no kind of adapter loses anything on the way to the disk."""

import json
from pathlib import Path

import pytest

from danlu.cli.main import main
from tests.tiny import CHATML, save_tiny

PAIRS = [("what colour is sky", "blue"), ("天空 是 什么 颜色", "蓝色"), ("the cat", "sat on a mat")]
KINDS = {
    "pissa": ("llama", ["pissa_init=true", "pissa_iter=4"]),
    "pissa_converted": ("llama", ["pissa_init=true", "pissa_convert=true"]),
    "dora": ("qwen3", ["use_dora=true"]),
    "tied_embedding": ("gemma", ["additional_target=embed_tokens"]),
    "new_tokens": ("llama", ["add_special_tokens=<a>,<b>", "resize_vocab=true"]),
}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_export_scores_what_the_run_measured(kind: str, tmp_path: Path) -> None:
    """eval_loss of the trained policy in memory = eval_loss of `danlu eval` on the exported folder, to 1e-4."""
    family, keys = KINDS[kind]
    base = save_tiny(tmp_path / "base", family, CHATML)
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps({"instruction": q, "output": a}) + "\n" for q, a in PAIRS), encoding="utf-8")
    run, merged, scores = tmp_path / "run", tmp_path / "merged", tmp_path / "scores"
    assert main(["train", f"model_name_or_path={base}", f"dataset={data}", f"eval_dataset={data}", "do_train=true",
                 "do_eval=true", f"output_dir={run}", "max_steps=6", "learning_rate=0.05", *keys]) == 0
    assert main(["export", f"model_name_or_path={run}", f"export_dir={merged}"]) == 0
    assert main(["eval", "task=perplexity", f"model_name_or_path={merged}", f"dataset={data}",
                 f"save_dir={scores}"]) == 0
    in_memory = json.loads((run / "all_results.json").read_text())["eval_loss"]
    exported = json.loads((scores / "eval_results.json").read_text())["eval_loss"]
    assert in_memory < 5.7, "a random model of 320 tokens is at ln 320 = 5.77: nothing was learned"
    assert exported == pytest.approx(in_memory, abs=1e-4)
