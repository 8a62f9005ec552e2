"""Seed case S2d: PPO whose reward is a text-classification pipeline's score for the positive class."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, GPT2Config, pipeline

from danlu.cli.main import main
from tests.tiny import FAMILIES, tiny_tokenizer


@pytest.fixture
def sentiment(tmp_path: Path) -> Path:
    """A classifier with a tokenizer of its own, smaller than the policy's and without a pad token."""
    torch.manual_seed(0)
    folder, tokenizer = tmp_path / "sentiment", tiny_tokenizer(300)
    tokenizer.pad_token = None
    config = GPT2Config(**FAMILIES["gpt2"], vocab_size=300, bos_token_id=1, eos_token_id=2, num_labels=2,
                        id2label={0: "NEGATIVE", 1: "POSITIVE"})
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_rewards_are_the_pipelines_scores(sentiment: Path, tiny_base: Path, world: Path, tmp_path: Path) -> None:
    """Query and response as one text, softmax, second label: what the document's pipeline gives."""
    assert main(["train", "stage=ppo", f"model_name_or_path={tiny_base}", f"dataset_dir={world}", "dataset=chat",
                 "max_steps=2", "per_device_train_batch_size=4", "max_new_tokens=6", "temperature=0.7", "top_k=50",
                 "reward_model_type=classifier", f"reward_model={sentiment}", "rollout_log_samples=-1",
                 "save_strategy=no", "disable_tqdm=true", f"output_dir={tmp_path / 'out'}"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "rollouts.jsonl").read_text("utf-8").splitlines()]
    score = pipeline("text-classification", model=str(sentiment), top_k=None)
    assert len(rows) == 8
    for row in rows:
        labels = score([f"{row['prompt'][0]['content']}\n{row['answer']}"])[0]
        found = {one["label"]: one["score"] for one in labels}
        assert row["reward"] == pytest.approx(found["POSITIVE"], abs=1e-5)
