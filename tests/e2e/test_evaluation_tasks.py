"""`danlu eval` and prediction after training, on a model that learned half of the answers by a plain torch loop."""

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from danlu.cli.main import main
from danlu.core.records import Message
from danlu.templates import resolve
from tests.tiny import CHATML, save_tiny

ROWS = [("what colour is sky", "blue", "en"), ("what is the sun", "warm", "en"),
        ("天空 是 什么 颜色", "蓝色", "zh"), ("what is rain", "never taught", "en")]


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that answers the first three questions; their data set lies beside it."""
    root = tmp_path_factory.mktemp("evaluation")
    base = save_tiny(root / "model", "llama", CHATML)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    template = resolve(None, tokenizer)
    examples = []
    for question, answer, _ in ROWS[:3]:
        prompt = template.encode_prompt([Message("user", question)], tokenizer)
        end = template.stop_token_ids(tokenizer)[-1:]
        examples.append((prompt, [*tokenizer.encode(answer, add_special_tokens=False), *end]))
    optimiser = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(60):
        loss = sum(model(torch.tensor([p + a]), labels=torch.tensor([[-100] * len(p) + a])).loss for p, a in examples)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.1
    model.save_pretrained(base)
    rows = [{"instruction": question, "output": answer, "lang": lang} for question, answer, lang in ROWS]
    (root / "held_out.jsonl").write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), "utf-8")
    return root


def test_exact_counts_right_answers_overall_and_by_language(taught: Path, tmp_path: Path) -> None:
    """3 of 4 are right: 2 of 3 in English, 1 of 1 in Chinese. Every answer is written with its reference."""
    assert main(["eval", "task=exact", f"model_name_or_path={taught / 'model'}",
                 f"dataset={taught / 'held_out.jsonl'}", f"save_dir={tmp_path}"]) == 0
    results = json.loads((tmp_path / "eval_results.json").read_text())
    assert results["accuracy"] == 0.75 and results["questions"] == 4
    assert results["accuracy_en"] == pytest.approx(2 / 3) and results["accuracy_zh"] == 1.0
    rows = [json.loads(line) for line in (tmp_path / "generated_predictions.jsonl").read_text("utf-8").splitlines()]
    assert [row["label"] for row in rows] == [answer for _, answer, _ in ROWS]
    assert [row["predict"] for row in rows[:3]] == ["blue", "warm", "蓝色"]
    assert rows[2]["prompt"].endswith("天空 是 什么 颜色<|im_end|>\n<|im_start|>assistant\n")


def test_perplexity_is_the_mean_loss_of_the_answers(taught: Path, tmp_path: Path) -> None:
    """Oracle: the summed loss of plain transformers over the answers' tokens, divided by their number."""
    assert main(["eval", "task=perplexity", f"model_name_or_path={taught / 'model'}",
                 f"dataset={taught / 'held_out.jsonl'}", f"save_dir={tmp_path}"]) == 0
    results = json.loads((tmp_path / "eval_results.json").read_text())
    model, tokenizer = (kind.from_pretrained(taught / "model") for kind in (AutoModelForCausalLM, AutoTokenizer))
    total = count = 0.0
    for question, answer, _ in ROWS:
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        prompt = tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True, return_dict=False)
        taught_ids = tokenizer.encode(answer, add_special_tokens=False) + [4]
        ids = torch.tensor([prompt + taught_ids])
        with torch.no_grad():
            logps = model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        total -= float(logps.gather(1, ids[0, len(prompt):, None]).sum())
        count += len(taught_ids)
    assert results["eval_loss"] == pytest.approx(total / count, abs=1e-5)
    assert results["eval_perplexity"] == pytest.approx(math.exp(total / count), rel=1e-4)


def test_unknown_and_missing_task(taught: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = [f"model_name_or_path={taught / 'model'}", f"dataset={taught / 'held_out.jsonl'}"]
    assert main(["eval", "task=exakt", *keys]) == 2
    assert '"exact"' in capsys.readouterr().err
    assert main(["eval", *keys]) == 2
    assert "perplexity" in capsys.readouterr().err


def test_prediction_of_a_run_that_only_evaluates(taught: Path, tmp_path: Path) -> None:
    """`--do_eval --predict_with_generate` on the training set's name: metrics and the predictions file."""
    out = tmp_path / "out"
    assert main(["train", "--stage", "sft", "--do_eval", "--predict_with_generate",
                 "--model_name_or_path", str(taught / "model"), "--finetuning_type", "full",
                 "--dataset", str(taught / "held_out.jsonl"), "--output_dir", str(out), "--max_samples", "3",
                 "--do_sample", "false", "--max_new_tokens", "12", "--per_device_eval_batch_size", "2"]) == 0
    results = json.loads((out / "all_results.json").read_text())
    assert results["eval_exact"] == 100.0
    assert all(results[f"eval_{name}"] > 0 for name in ("bleu-4", "rouge-1", "rouge-l"))
    rows = [json.loads(line) for line in (out / "generated_predictions.jsonl").read_text("utf-8").splitlines()]
    assert [row["predict"] for row in rows] == ["blue", "warm", "蓝色"]
