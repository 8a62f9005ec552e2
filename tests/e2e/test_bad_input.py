"""Bad input as a new user brings it: each mistake gets one clear message, exit code 2, and nothing half-written."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from danlu.cli.main import main
from tests.tiny import CHATML, save_tiny


@pytest.fixture
def good(tiny_base: Path, world: Path, tmp_path: Path) -> dict[str, Any]:
    """A configuration that would run."""
    return {"model_name_or_path": str(tiny_base), "stage": "sft", "do_train": True, "finetuning_type": "lora",
            "dataset": "chat", "dataset_dir": str(world), "output_dir": str(tmp_path / "out"), "max_steps": 1}


def refused(capsys: pytest.CaptureFixture[str], code: int, *parts: str) -> None:
    """Assert exit code 2 and a message that holds every part and no traceback."""
    said = capsys.readouterr().err
    assert code == 2, said
    assert "Traceback" not in said
    for part in parts:
        assert part in said, f"{part!r} not in: {said}"


def test_misspelt_key(good: dict[str, Any], danlu: Callable[..., int], capsys: pytest.CaptureFixture[str],
                      tmp_path: Path) -> None:
    code = danlu("train", {**good, "learning_rte": 1e-4})
    refused(capsys, code, "learning_rte", "learning_rate", "train.yaml:9")


def test_wrong_value(good: dict[str, Any], danlu: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    code = danlu("train", {**good, "lora_rank": "eight", "lr_scheduler_type": "cosin"})
    refused(capsys, code, "lora_rank", "eight", "lr_scheduler_type", "cosine")


def test_missing_config_file(capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, main(["train", "nowhere.yaml"]), "nowhere.yaml")


def test_missing_data_file(good: dict[str, Any], danlu: Callable[..., int],
                           capsys: pytest.CaptureFixture[str]) -> None:
    code = danlu("train", {**good, "dataset": "missing.jsonl"})
    refused(capsys, code, "missing.jsonl")


def test_unknown_data_set(good: dict[str, Any], danlu: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, danlu("train", {**good, "dataset": "chatt"}), "chatt", "did you mean chat?")


def test_broken_json_line(good: dict[str, Any], danlu: Callable[..., int], capsys: pytest.CaptureFixture[str],
                          tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"instruction": "a", "output": "b"}\n{"instruction": "a", "output: "b"}\n', encoding="utf-8")
    refused(capsys, danlu("train", {**good, "dataset": str(rows)}), "rows.jsonl:2")


def test_wrong_row(good: dict[str, Any], danlu: Callable[..., int], capsys: pytest.CaptureFixture[str],
                   tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"instruction": "a", "output": "b"}\n{"instruction": "a", "output": 7}\n', encoding="utf-8")
    refused(capsys, danlu("train", {**good, "dataset": str(rows)}), "rows.jsonl:2", "output", "7")


@pytest.mark.parametrize("streaming", [False, True])
def test_two_kinds_of_data_mixed(streaming: bool, good: dict[str, Any], danlu: Callable[..., int], tmp_path: Path,
                                 capsys: pytest.CaptureFixture[str]) -> None:
    """A set of preferences beside dialogue is named, even where single bad rows may be skipped."""
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n' * 4, encoding="utf-8")
    code = danlu("train", {**good, "dataset": f"chat,{pairs}", "on_bad_row": "skip", "streaming": streaming})
    refused(capsys, code, "pairs.jsonl", "no usable row")


def test_half_of_a_character(good: dict[str, Any], danlu: Callable[..., int], capsys: pytest.CaptureFixture[str],
                             tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"instruction": "a", "output": "b \\ud83d"}\n', encoding="utf-8")
    refused(capsys, danlu("train", {**good, "dataset": str(rows)}), "rows.jsonl:1", "ud83d")


def test_empty_data_set(good: dict[str, Any], danlu: Callable[..., int], capsys: pytest.CaptureFixture[str],
                        tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("", encoding="utf-8")
    refused(capsys, danlu("train", {**good, "dataset": str(tmp_path / "rows.jsonl")}), "rows.jsonl", "empty")


def test_unknown_template(good: dict[str, Any], danlu: Callable[..., int],
                          capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, danlu("train", {**good, "template": "chatlm"}), "chatlm", '"chatml"')


def test_wrong_model_folder(good: dict[str, Any], danlu: Callable[..., int], capsys: pytest.CaptureFixture[str],
                            tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(capsys, danlu("train", {**good, "model_name_or_path": str(empty)}), str(empty), "config.json")
    refused(capsys, danlu("train", {**good, "model_name_or_path": str(tmp_path / "none")}), str(tmp_path / "none"))


def test_adapter_on_the_wrong_base(good: dict[str, Any], danlu: Callable[..., int], tmp_path: Path,
                                   capsys: pytest.CaptureFixture[str]) -> None:
    adapter = tmp_path / "adapter"
    assert danlu("train", {**good, "output_dir": str(adapter)}) == 0
    other = save_tiny(tmp_path / "other", "llama", CHATML, hidden_size=48, num_attention_heads=6, head_dim=8)
    code = danlu("train", {**good, "model_name_or_path": str(other), "adapter_name_or_path": str(adapter)})
    refused(capsys, code, "adapter", "base")
    code = main(["export", "--model_name_or_path", str(other), "--adapter_name_or_path", str(adapter),
                 "--export_dir", str(tmp_path / "merged")])
    refused(capsys, code, "adapter", "base")
    assert not (tmp_path / "merged").exists()


def test_export_refuses_a_quantised_base(good: dict[str, Any], danlu: Callable[..., int], tmp_path: Path,
                                         capsys: pytest.CaptureFixture[str]) -> None:
    adapter = tmp_path / "adapter"
    assert danlu("train", {**good, "output_dir": str(adapter)}) == 0
    code = main(["export", "--model_name_or_path", good["model_name_or_path"], "--adapter_name_or_path", str(adapter),
                 "--quantization_bit", "4", "--export_dir", str(tmp_path / "merged")])
    refused(capsys, code, "quantization_bit")
    assert not (tmp_path / "merged").exists()


def test_out_of_scope_key(good: dict[str, Any], danlu: Callable[..., int],
                          capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, danlu("train", {**good, "use_galore": True}), "use_galore")


def test_loss_that_is_not_a_number(good: dict[str, Any], danlu: Callable[..., int], tmp_path: Path,
                                   capsys: pytest.CaptureFixture[str]) -> None:
    """A base with a NaN weight stops at step 1 and names the rows; no model is written."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(good["model_name_or_path"])
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] = float("nan")
    model.save_pretrained(tmp_path / "nan")
    AutoTokenizer.from_pretrained(good["model_name_or_path"]).save_pretrained(tmp_path / "nan")
    code = danlu("train", {**good, "model_name_or_path": str(tmp_path / "nan")})
    refused(capsys, code, "chat.json", "step 1")
    assert not (tmp_path / "out" / "adapter_model.safetensors").exists()


def test_all_mistakes_are_told_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.json"
    file.write_text(json.dumps({"stge": "sft", "cutoff_len": -4}), encoding="utf-8")
    refused(capsys, main(["train", str(file)]), "stge", "cutoff_len")


def test_a_run_that_cannot_start_leaves_the_earlier_one_whole(
    good: dict[str, Any], danlu: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path,
) -> None:
    """overwrite_output_dir clears the folder only when model, targets, trackers and data are checked."""
    assert danlu("train", good) == 0

    def files() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}

    before = files()
    for wrong, part in (({"report_to": "tensorboad"}, '"tensorboard"'), ({"report_to": "mlflow"}, "mlflow"),
                        ({"additional_target": "lm_haed"}, '"lm_head"'), ({"optim_args": "nonsense=1"}, "nonsense"),
                        ({"adapter_name_or_path": "nowhere"}, "nowhere"), ({"dataset": "chatt"}, "chat")):
        capsys.readouterr()
        refused(capsys, danlu("train", {**good, **wrong, "overwrite_output_dir": True}), part)
        assert files() == before, wrong
    assert danlu("train", {**good, "overwrite_output_dir": True, "resume_from_checkpoint": False}) == 0
    assert files() != before


def test_a_name_that_is_no_folder_is_refused_at_once_without_network(
    good: dict[str, Any], danlu: Callable[..., int], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing listens on port 9 of this machine; the libraries alone would try for 46 seconds, and say so."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    for proxy in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    for key, name in (("model_name_or_path", "nothere"), ("adapter_name_or_path", "some/adapter")):
        began = time.monotonic()
        code = danlu("train", {**good, key: name})
        assert time.monotonic() - began < 10
        said = capsys.readouterr()
        assert code == 2 and "Retrying" not in said.err + said.out
        assert f"{key}: folder {name} does not exist" in said.err and "127.0.0.1:9" in said.err, said.err


def test_a_metric_that_no_evaluation_gives_is_refused_before_the_data_is_read(
    good: dict[str, Any], danlu: Callable[..., int], capsys: pytest.CaptureFixture[str],
) -> None:
    keys = {"eval_dataset": "chat", "eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "perplexty"}
    code = danlu("train", {**good, **keys})
    said = capsys.readouterr().err
    assert code == 2 and 'did you mean "perplexity"' in said and "8 read" not in said, said


def test_libraries_do_not_talk_over_danlu(good: dict[str, Any], danlu: Callable[..., int],
                                          capfd: pytest.CaptureFixture[str]) -> None:
    """Growing the vocabulary and paged optimisers are told in notices of danlu alone."""
    code = danlu("train", {**good, "add_tokens": "<new>", "resize_vocab": True, "optim": "paged_adamw_32bit"})
    said = capfd.readouterr().err
    assert code == 0, said
    assert "The new embeddings will be" not in said and "Paged optimizers" not in said
    assert "nothing is paged" in said and "embedding and head grow" in said
