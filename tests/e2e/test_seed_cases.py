"""The cases of the source documents, run as printed there: only paths and sizes differ. See docs/seeds.md."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from danlu.cli.main import main
from tests.reading import losses, metrics, read_json
from tests.tiny import tiny_model

pytestmark = pytest.mark.shared


@pytest.fixture(scope="module")
def gpt2_tokenizer(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    """The real GPT-2 tokenizer, which reads Chinese and English alike."""
    from transformers import GPT2TokenizerFast

    source = shared / "data" / "tokenizers" / "gpt2"
    folder = tmp_path_factory.mktemp("gpt2")
    (folder / "vocab.json").write_bytes((source / "encoder.json").read_bytes())
    (folder / "merges.txt").write_bytes((source / "vocab.bpe").read_bytes())
    return GPT2TokenizerFast.from_pretrained(folder)


def base(folder: Path, family: str, tokenizer: PreTrainedTokenizerFast, **overrides: Any) -> Path:
    """Write a small random model of `family` with the GPT-2 tokenizer."""
    settings = {"vocab_size": 50304, "bos_token_id": 50256, "eos_token_id": 50256, "pad_token_id": None, **overrides}
    tiny_model(family, max_position_embeddings=1024, **settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory, gpt2_tokenizer: PreTrainedTokenizerFast) -> Path:
    """Stands for Meta-Llama-3-8B-Instruct and Baichuan: a small Llama."""
    return base(tmp_path_factory.mktemp("llama"), "llama", gpt2_tokenizer)


@pytest.fixture(scope="module")
def neox(tmp_path_factory: pytest.TempPathFactory, gpt2_tokenizer: PreTrainedTokenizerFast) -> Path:
    """Stands for ChatGLM2-6B: a small model whose attention projection is called query_key_value."""
    return base(tmp_path_factory.mktemp("neox"), "gpt_neox", gpt2_tokenizer)


def falls(output_dir: Path) -> None:
    """Assert that the loss falls: the mean of the last third is below that of the first third."""
    trail = losses(output_dir)
    third = max(1, len(trail) // 3)
    assert len(trail) >= 3 and sum(trail[-third:]) < sum(trail[:third]), trail


DOCUMENT_001 = """\
### model
model_name_or_path: {model}
### method
stage: {stage}
do_train: true
finetuning_type: lora
lora_target: all
{keys}### dataset
dataset: {dataset}
dataset_dir: {dataset_dir}
{template}cutoff_len: {cutoff_len}
max_samples: {samples}
overwrite_cache: true
preprocessing_num_workers: 16
### output
output_dir: {output}
logging_steps: 1
save_steps: 500
plot_loss: true
overwrite_output_dir: true
### train
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-2
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
ddp_timeout: 180000000
"""


def document_001(shared: Path, out: Path, **parts: Any) -> None:
    """Run the YAML of document 001 with the parts that differ from stage to stage."""
    file = out.with_suffix(".yaml")
    file.write_text(DOCUMENT_001.format(
        dataset_dir=shared / "data" / "LLaMA-Factory" / "data", output=out, **parts), encoding="utf-8")
    assert main(["train", str(file)]) == 0


@pytest.mark.parametrize(("stage", "dataset", "samples", "template", "keys"), [
    pytest.param("pt", "c4_demo", 20, "", "", id="S1a"),
    pytest.param("sft", "alpaca_zh_demo", 40, "template: llama3\n", "", id="S1b"),
    pytest.param("rm", "dpo_en_demo", 12, "template: llama3\n", "", id="S1c"),
    *(pytest.param("dpo", "dpo_en_demo", 12, "template: llama3\n", f"pref_beta: 0.1\npref_loss: {kind}\n",
                   id=f"S1e-{kind}") for kind in ("sigmoid", "orpo", "simpo")),
    pytest.param("kto", "kto_en_demo", 12, "template: llama3\n", "pref_beta: 0.1\n", id="S1f"),
])
def test_document_001(stage: str, dataset: str, samples: int, template: str, keys: str, llama: Path, shared: Path,
                      tmp_path: Path) -> None:
    """S1a-c, S1e, S1f: the YAML of document 001 trains, writes its adapter and draws its curve."""
    out = tmp_path / "saves"
    document_001(shared, out, model=llama, stage=stage, dataset=dataset, samples=samples, template=template, keys=keys,
                 cutoff_len=128 if stage in ("pt", "sft") else 256)
    falls(out)
    assert stage != "rm" or (out / "value_head.safetensors").stat().st_size > 0
    for name in ("adapter_model.safetensors", "adapter_config.json", "training_loss.png", "train_results.json"):
        assert (out / name).stat().st_size > 0, name


def test_document_001_ppo(llama: Path, shared: Path, tmp_path: Path) -> None:
    """S1d: the reward adapter that the rm YAML wrote rewards the answers of the ppo YAML."""
    common = {"model": llama, "template": "template: llama3\n", "cutoff_len": 192}
    reward, out = tmp_path / "reward", tmp_path / "ppo"
    document_001(shared, reward, stage="rm", dataset="dpo_en_demo", samples=8, keys="", **common)
    document_001(shared, out, stage="ppo", dataset="identity,alpaca_zh_demo", samples=8,
                 keys=f"reward_model: {reward}\nmax_new_tokens: 8\ntop_k: 0\ntop_p: 0.9\n", **common)
    rows = metrics(out)
    assert len(rows) == read_json(out / "trainer_state.json")["global_step"] >= 3
    assert all(math.isfinite(row[name]) for row in rows for name in ("loss", "reward", "kl", "policy_loss"))
    assert len({row["reward"] for row in rows}) > 1 and rows[0]["kl"] == pytest.approx(0, abs=1e-4)
    for name in ("adapter_model.safetensors", "adapter_config.json", "training_loss.png", "train_results.json",
                 "rollouts.jsonl"):
        assert (out / name).stat().st_size > 0, name


def test_document_002_pretraining(llama: Path, shared: Path, tmp_path: Path, danlu: Callable[..., int]) -> None:
    """S2a: continued pre-training on wiki text in blocks, evaluated every epoch, with the perplexity in the results."""
    out = tmp_path / "wiki"
    assert danlu("train", {
        "model_name_or_path": str(llama), "stage": "pt", "do_train": True, "finetuning_type": "full",
        "dataset": "wiki_demo", "dataset_dir": str(shared / "data" / "LLaMA-Factory" / "data"), "cutoff_len": 128,
        "max_samples": 4, "val_size": 0.1, "eval_strategy": "epoch", "learning_rate": 2e-3, "weight_decay": 0.01,
        "num_train_epochs": 2, "per_device_train_batch_size": 8, "logging_steps": 2, "output_dir": str(out)}) == 0
    falls(out)
    results = read_json(out / "eval_results.json")
    assert results["eval_perplexity"] == pytest.approx(math.exp(results["eval_loss"]), rel=1e-6)
    evaluations = [row for row in map(json.loads, (out / "trainer_log.jsonl").read_text().splitlines())
                   if row.get("eval_loss") is not None]
    assert len(evaluations) >= 2 and evaluations[-1]["eval_loss"] < evaluations[0]["eval_loss"]


def test_document_002_text_column(llama: Path, shared: Path, tmp_path: Path, danlu: Callable[..., int]) -> None:
    """S2b: SFT on a plain text field with LoRA r=16, alpha=32, dropout=0.05."""
    out = tmp_path / "text"
    assert danlu("train", {
        "model_name_or_path": str(llama), "stage": "sft", "do_train": True, "finetuning_type": "lora",
        "lora_rank": 16, "lora_alpha": 32, "lora_dropout": 0.05, "max_seq_length": 128, "learning_rate": 1e-2,
        "train_file": str(shared / "data" / "LLaMA-Factory" / "data" / "c4_demo.jsonl"), "max_samples": 24,
        "num_train_epochs": 3, "per_device_train_batch_size": 4, "logging_steps": 1, "output_dir": str(out)}) == 0
    falls(out)
    adapter = read_json(out / "adapter_config.json")
    assert (adapter["r"], adapter["lora_alpha"], adapter["lora_dropout"]) == (16, 32, 0.05)


def test_document_002_reward_classifier(llama: Path, shared: Path, tmp_path: Path, danlu: Callable[..., int]) -> None:
    """S2c: a reward model by LoRA trains, saves, scores pairs, and loads in transformers as a sequence classifier."""
    data, run, judge = shared / "data" / "LLaMA-Factory" / "data", tmp_path / "rm", tmp_path / "judge"
    assert danlu("train", {
        "model_name_or_path": str(llama), "stage": "rm", "do_train": True, "finetuning_type": "lora", "lora_rank": 8,
        "lora_alpha": 32, "lora_dropout": 0.1, "dataset": "dpo_en_demo", "dataset_dir": str(data), "max_samples": 24,
        "cutoff_len": 192, "template": "llama3", "learning_rate": 1e-2, "num_train_epochs": 3,
        "per_device_train_batch_size": 8, "logging_steps": 1, "output_dir": str(run)}) == 0
    falls(run)
    keys = ["dataset=dpo_en_demo", f"dataset_dir={data}", "max_samples=24", "cutoff_len=192", "template=llama3"]
    assert main(["export", f"model_name_or_path={run}", f"export_dir={judge}", "template=llama3"]) == 0
    found = {}
    for model in (run, judge):
        scores = tmp_path / "scores"
        assert main(["eval", "task=pairs", f"model_name_or_path={model}", f"save_dir={scores}", *keys]) == 0
        found[model] = read_json(scores / "eval_results.json")
        rows = (scores / "generated_predictions.jsonl").read_text("utf-8").splitlines()
        assert len(rows) == found[model]["prompts"] >= 16 and set(json.loads(rows[0])) == {
            "chosen", "rejected", "origin"}
    assert found[run]["accuracy"] > 0.5 and 0 <= found[run]["ece"] <= 1
    assert found[judge]["accuracy"] == found[run]["accuracy"]
    assert found[judge]["margin"] == pytest.approx(found[run]["margin"], abs=1e-3)
    settings = AutoModelForSequenceClassification.from_pretrained(judge).config
    assert (settings.num_labels, settings.pad_token_id) == (1, AutoTokenizer.from_pretrained(judge).pad_token_id)


def test_document_003_firefly(llama: Path, shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                              monkeypatch: pytest.MonkeyPatch) -> None:
    """S3a: the Firefly JSON on MOSS dialogues: QLoRA, paged optimiser, wandb offline, loss on every assistant turn."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes absent (extra qlora)")
    has_wandb = bool(__import__("importlib.util").util.find_spec("wandb"))
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    folder = shared / "data" / "MOSS" / "SFT_data" / "conversations" / "conversation_without_plugins"
    rows = [json.loads(path.read_text("utf-8")) for path in sorted(folder.rglob("*.json"))][:16]
    train_file = tmp_path / "moss-003-sft-data.jsonl"
    train_file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    out = tmp_path / "output" / "firefly-baichuan-7b"
    config = {
        "output_dir": str(out), "model_name_or_path": str(llama), "cache_dir": str(tmp_path / "cache_model"),
        "train_file": str(train_file), "num_train_epochs": 1, "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2, "learning_rate": 2e-2, "max_seq_length": 512, "logging_steps": 1,
        "save_steps": 100, "save_total_limit": 1, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 1,
        "lora_rank": 64, "lora_alpha": 16, "lora_dropout": 0.05, "bits": 4, "gradient_checkpointing": True,
        "disable_tqdm": False, "optim": "paged_adamw_32bit", "seed": 42, "fp16": True,
        "report_to": "wandb" if has_wandb else "none", "dataloader_num_workers": 0, "save_strategy": "steps",
        "weight_decay": 0, "max_grad_norm": 0.3, "remove_unused_columns": False, "do_eval": False,
        "evaluation_strategy": "no"}
    file = tmp_path / "baichuan-7b-sft-qlora.json"
    file.write_text(json.dumps(config, indent=2), encoding="utf-8")
    assert main(["train", str(file)]) == 0
    falls(out)
    said = capsys.readouterr().err
    assert "fp16" in said and "bits" in said, said
    assert read_json(out / "adapter_config.json")["r"] == 64
    if has_wandb:
        assert "offline" in said and list(tmp_path.rglob("offline-run-*"))


def test_document_003_token_outside_embedding(llama: Path, tmp_path: Path, danlu: Callable[..., int],
                                              capsys: pytest.CaptureFixture[str]) -> None:
    """S3b: a token that an added-tokens file puts beyond the embedding is found before step 0 and named."""
    model = tmp_path / "model"
    AutoModelForCausalLM.from_pretrained(llama).save_pretrained(model)
    tokenizer = AutoTokenizer.from_pretrained(llama)
    tokenizer.add_tokens([f"<extra_{i}>" for i in range(60)])      # 50257 + 60 > 50304 rows
    tokenizer.save_pretrained(model)
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"text": f"row {i} <extra_55> tail"}) + "\n" for i in range(8)), "utf-8")
    out = tmp_path / "out"
    assert danlu("train", {
        "model_name_or_path": str(model), "stage": "pt", "do_train": True, "finetuning_type": "lora",
        "train_file": str(data), "cutoff_len": 64, "output_dir": str(out)}) == 2
    said = capsys.readouterr().err
    assert "50312" in said and "<extra_55>" in said and "resize_vocab" in said and "50304" in said
    assert not list(out.glob("checkpoint-*")) and not (out / "adapter_model.safetensors").exists()


def shell(command: str) -> list[str]:
    """Split a shell command of the documents into the arguments after the program's name."""
    return command.replace("\\\n", " ").split()


def test_document_004(neox: Path, shared: Path, tmp_path: Path) -> None:
    """S4a, S4b: the pt command, export with the flags of export_model.py, then the sft command on the export."""
    data = shared / "data" / "LLaMA-Factory" / "data"
    checkpoint, exported, sft = tmp_path / "checkpoint" / "pretrain", tmp_path / "exported", tmp_path / "sft"
    common = """ --do_train --finetuning_type lora --lora_target query_key_value --overwrite_cache
        --per_device_train_batch_size 4 --gradient_accumulation_steps 4 --lr_scheduler_type cosine --logging_steps 1
        --save_steps 1000 --learning_rate 1e-2 --num_train_epochs 3.0 --plot_loss --fp16 --cutoff_len 64 """
    assert main(["train", *shell(f"--stage pt --model_name_or_path {neox} --dataset wiki_demo --dataset_dir {data} "
                                 f"--output_dir {checkpoint} --max_samples 2 {common}")]) == 0
    falls(checkpoint)
    assert main(["export", *shell(f"--model_name_or_path {neox} --template default --finetuning_type lora "
                                  f"--checkpoint_dir {checkpoint} --output_dir {exported}")]) == 0
    merged, plain = (AutoModelForCausalLM.from_pretrained(path) for path in (exported, neox))
    name = "gpt_neox.layers.0.attention.query_key_value.weight"
    assert (merged.state_dict()[name] - plain.state_dict()[name]).abs().max() > 1e-4
    assert main(["train", *shell(f"--stage sft --model_name_or_path {exported} --dataset alpaca_zh_demo "
                                 f"--dataset_dir {data} --template default --output_dir {sft} --max_samples 40 {common}"
                                 )]) == 0
    falls(sft)
    assert yaml.safe_load((sft / "adapter_config.json").read_text())["base_model_name_or_path"] == str(exported)
