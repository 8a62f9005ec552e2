"""`bf16: auto`: which devices may, what the first batch must show, and what a run makes of it."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from danlu.core.console import forget_notices
from danlu.core.errors import UserError
from danlu.core.stream import Example
from danlu.models.bf16_choice import bf16_hint, choose_bf16, loss_gap
from danlu.models.packed_lm import PackedLM
from danlu.recipe import chooses_bf16, prepare, run_precision
from danlu.run_config import load_run_config
from tests.tiny import tiny_model

CPU = torch.device("cpu")


@pytest.mark.parametrize(("gap", "is_on"), [(0.0, True), (0.01, True), (0.0101, False), (math.nan, False)])
def test_the_trial_decides_where_products_are_fast(gap: float, is_on: bool) -> None:
    choice = choose_bf16(CPU, lambda: gap, is_fast=True, is_alone=True)
    assert choice.is_on is is_on
    assert ("bf16:" in choice.why.split("in ")[1]) is is_on


def test_without_fast_products_or_a_trial_it_is_fp32() -> None:
    def never() -> float:
        raise AssertionError("tried for nothing")

    choices = [choose_bf16(CPU, never, is_fast=False, is_alone=True),
               choose_bf16(CPU, None, is_fast=True, is_alone=True),
               choose_bf16(CPU, never, is_fast=True, is_alone=False)]
    assert not any(choice.is_on for choice in choices) and len({choice.why for choice in choices}) == 3
    assert choose_bf16(torch.device("cuda"), never, is_fast=True, is_alone=False).is_on


def test_the_gap_by_plain_transformers() -> None:
    """Summed -log p of every next token, once in float32 and once under autocast, by the stock model's logits."""
    model = tiny_model()
    rows = [Example(np.arange(5, 5 + n), np.arange(n) > 2) for n in (9, 14)]
    losses = []
    for is_rough in (False, True):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=is_rough):
            logits = [model(input_ids=torch.as_tensor(one.input_ids)[None]).logits[0, :-1].float() for one in rows]
        losses.append(sum(cross_entropy(some, torch.as_tensor(one.input_ids[1:]), reduction="sum").item()
                          for some, one in zip(logits, rows, strict=True)))
    found = loss_gap(PackedLM(model), rows)
    assert 0 < found < 1e-3
    assert found == pytest.approx(abs(losses[1] - losses[0]) / losses[0], abs=1e-4)


def test_a_run_tries_it_on_its_first_batch(
    tiny_base: Path, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:
    config = load_run_config(None, [
        "stage=sft", "do_train=true", f"model_name_or_path={tiny_base}", f"dataset_dir={world}", "dataset=chat",
        "bf16=auto", f"output_dir={tmp_path / 'out'}"], "train")
    prepared = prepare(config)
    assert chooses_bf16(config, prepared, CPU, is_fast=True)
    assert "bf16: auto computes in bf16: the loss of the first batch differs by 0." in capsys.readouterr().err
    assert not chooses_bf16(config, prepared, CPU, is_fast=False)
    assert "does not multiply bfloat16 itself" in capsys.readouterr().err
    assert run_precision(config).compute_dtype == torch.float32


def test_only_a_run_that_could_try_it_and_names_no_format_is_told_of_it(
    tiny_base: Path, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("danlu.recipe.has_fast_bf16", lambda device: True)
    monkeypatch.delenv("WORLD_SIZE", raising=False)

    def told(*words: str, prepares: bool = True) -> bool:
        config = load_run_config(None, [
            "stage=sft", "do_train=true", f"model_name_or_path={tiny_base}", f"dataset_dir={world}", "dataset=chat",
            f"output_dir={tmp_path / 'out'}", "max_steps=1", *words], "train")
        prepared = prepare(config) if prepares else None
        forget_notices()
        capsys.readouterr()
        run_precision(config, prepared)
        return "bf16: auto, often faster" in capsys.readouterr().err

    assert told()
    assert not told(prepares=False)
    for words in (["bf16=false"], ["bf16=true"], ["bf16=auto"], ["fp16=true"], ["pure_bf16=true"], ["streaming=true"],
                  ["do_train=false", "do_eval=true", "val_size=0.2"]):
        assert not told(*words), words
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not told()
    assert not bf16_hint(CPU, is_fast=False, is_alone=True)
    assert not bf16_hint(torch.device("cuda"), is_fast=True, is_alone=True)


def test_the_key_is_a_switch_with_a_third_word() -> None:
    keys = ["stage=sft", "model_name_or_path=m", "dataset=d", "output_dir=o"]
    for words, value in ((["--bf16", "auto"], "auto"), (["bf16=auto"], "auto"), (["--bf16"], True),
                         (["--bf16", "false"], False), (["--no-bf16"], False), ([], False)):
        assert load_run_config(None, [*keys, *words], "train").engine.bf16 == value
    for wrong, said in ((["bf16=maybe"], "expected one of true, false, auto, found maybe"),
                        (["bf16=auto", "fp16=true"], "bf16: auto and fp16: true exclude each other")):
        with pytest.raises(UserError, match=said):
            load_run_config(None, [*keys, *wrong], "train")
