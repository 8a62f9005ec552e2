"""Reference log-probabilities kept on disk: the file survives what befalls it, and no forward is run twice."""

import json
import os
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch.nn.modules.module import register_module_forward_pre_hook

from danlu.cli.main import main
from danlu.core.stream import Example
from danlu.models.packed_lm import PackedLM
from danlu.models.weights_digest import digest_of
from danlu.stages.base import Models, Surroundings, by_number
from danlu.stages.dpo import DPO, DPOConfig
from danlu.stages.kto import KTO, KTOConfig
from danlu.stages.reference_scores import ReferenceScores
from danlu.stages.reference_store import HEADER, ReferenceStore
from tests.reading import losses, metrics
from tests.tiny import tiny_model
from tests.unit.test_alignment_stages import make_examples

A, B, C = (bytes([number]) * 16 for number in (1, 2, 3))
ONE, TWO = np.array([-1.5, -0.25], np.float32), np.array([], np.float32)
PAIRS = [[(5, 7), (5, 3)], [(2, 4), (2, 9)], [(8, 1), (8, 6)]]


def same(found: Any, expected: Any) -> bool:
    """Return whether two lists hold equal arrays, None for None."""
    return [None if one is None else one.tolist() for one in found] == [
        None if one is None else one.tolist() for one in expected]


def test_what_was_added_is_found_by_everyone(tmp_path: Path) -> None:
    """A second handle sees it when it opens, and a first one when it adds; each record is 28 bytes and its values."""
    first = ReferenceStore(tmp_path / "x")
    first.add([A, B], [ONE, TWO])
    second = ReferenceStore(tmp_path / "x")
    assert same(second.find([B, C, A]), [TWO, None, ONE])
    assert second.num_bytes == 2 * HEADER.size + 8 and len(second) == 2 and HEADER.size == 28


def test_the_first_value_of_a_key_holds(tmp_path: Path) -> None:
    """Two processes that computed the same answer, last bits apart, go on with one value; so does one batch."""
    first, second = ReferenceStore(tmp_path / "x"), ReferenceStore(tmp_path / "x")
    assert same(first.add([A, A], [ONE, ONE + 1]), [ONE, ONE])
    assert same(second.add([A, B], [ONE + 2, ONE + 3]), [ONE, ONE + 3])
    assert same(first.add([B], [ONE]), [ONE + 3])


@pytest.mark.parametrize("lost", [1, 7, 8, 20, 35])
def test_a_torn_tail_is_cut_off(tmp_path: Path, lost: int) -> None:
    """A writer killed in its second record leaves the first whole; the next one writes over the rest."""
    store = ReferenceStore(tmp_path / "x")
    store.add([A, B], [ONE, ONE])
    file = tmp_path / "x" / "logps.bin"
    os.truncate(file, file.stat().st_size - lost)
    again = ReferenceStore(tmp_path / "x")
    assert same(again.find([A, B]), [ONE, None])
    again.add([C], [TWO])
    assert same(ReferenceStore(tmp_path / "x").find([A, B, C]), [ONE, None, TWO])
    assert file.stat().st_size == 2 * HEADER.size + 8


def test_a_damaged_record_counts_as_absent(tmp_path: Path) -> None:
    """One flipped bit in the values, then a new value for the key: the later record holds."""
    ReferenceStore(tmp_path / "x").add([A, B], [ONE, ONE])
    file = tmp_path / "x" / "logps.bin"
    content = bytearray(file.read_bytes())
    content[HEADER.size] ^= 1
    file.write_bytes(content)
    store = ReferenceStore(tmp_path / "x")
    assert same(store.find([A, B]), [None, ONE])
    assert same(store.add([A], [ONE + 1]), [ONE + 1])
    assert same(ReferenceStore(tmp_path / "x").find([A, B]), [ONE + 1, ONE])
    content[:4] = struct.pack("<I", 0)
    file.write_bytes(content)
    assert len(ReferenceStore(tmp_path / "x")) == 0


def test_what_cannot_be_kept_is_told_once_and_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """NaN is never kept; a folder that cannot be written, here a file in its place, stops nothing."""
    store = ReferenceStore(tmp_path / "x")
    assert np.isnan(store.add([A], [np.array([np.nan], np.float32)])[0]).all() and len(store) == 0
    (tmp_path / "y").write_text("")
    blocked = ReferenceStore(tmp_path / "y" / "x")
    for _ in range(2):
        assert same(blocked.add([A], [ONE]), [ONE])
    assert capsys.readouterr().err.count("not kept") == 1


def test_the_digest_follows_what_decides_the_numbers(tmp_path: Path) -> None:
    """Same weights, same hash, with an adapter switched off too; one changed value, dtype or setting: another."""
    plain = tiny_model("llama", seed=1)
    adapted = get_peft_model(tiny_model("llama", seed=1), LoraConfig(
        r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]))
    own = digest_of(plain)
    assert digest_of(adapted, without_adapter=True) == own != digest_of(adapted)
    other = tiny_model("llama", seed=1)
    other.model.layers[1].mlp.up_proj.weight.data[3, 3] += 1e-6
    others = [digest_of(other), digest_of(tiny_model("llama", seed=2)),
              digest_of(tiny_model("llama", seed=1).bfloat16()),
              digest_of(tiny_model("llama", seed=1, rope_parameters={"rope_type": "default", "rope_theta": 5e5}))]
    assert len({own, *others}) == 5


@pytest.mark.parametrize("micro_batch", [1, 2, 3])
def test_only_what_is_missing_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, micro_batch: int) -> None:
    """Two pairs, then three: the third alone runs; KTO finds the same segments; the numbers equal those uncached."""
    monkeypatch.setenv("DANLU_CACHE", str(tmp_path))
    model, policy = tiny_model("llama", seed=2), tiny_model("llama", seed=1)
    examples = make_examples(PAIRS, [(1.0,), (0.0,), (1.0,)])

    def facts(kind: Any, keys: Any, number: int, *, kept: bool) -> tuple[list[Any], int]:
        seen: list[int] = []
        reference = PackedLM(model)
        reference.register_forward_pre_hook(lambda module, args: seen.append(len(args[0].indices)))
        stage = kind(keys, Models(PackedLM(policy), reference=reference))
        stage.surroundings = Surroundings(deal=by_number(micro_batch), folder=tmp_path if kept else None)
        return [one.facts for batch in stage.prepare(examples[:number]) for one in batch], sum(seen)

    assert facts(DPO, DPOConfig(), 2, kept=True)[1] == 2
    for kind, keys, new in ((DPO, DPOConfig(), 1), (DPO, DPOConfig(pref_loss="ipo"), 0), (KTO, KTOConfig(), 0),
                            (DPO, DPOConfig(ld_alpha=0.5), 0)):
        found, seen = facts(kind, keys, 3, kept=True)
        assert seen == new
        expected, seen = facts(kind, keys, 3, kept=False)
        assert seen == 3
        for one, other in zip(found, expected, strict=True):
            assert one == pytest.approx(other, rel=1e-5)


def test_only_missing_segments_are_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three pairs of one best answer and three others: four segments run, not six; with a fifth answer, that alone."""
    monkeypatch.setenv("DANLU_CACHE", str(tmp_path))
    prompt, answers = [7, 8, 9], [[10, 11], [12], [13, 14, 15], [16, 17], [18, 19, 20, 21]]
    segments = [np.array(prompt + answer) for answer in answers]
    pairs = [Example(np.concatenate([segments[0], other]),
                     np.concatenate([np.arange(len(one)) >= len(prompt) for one in (segments[0], other)]),
                     lengths=(len(segments[0]), len(other))) for other in segments[1:]]
    seen: list[int] = []
    reference, plain = (PackedLM(tiny_model("llama", seed=2)) for _ in range(2))
    reference.register_forward_pre_hook(lambda module, args: seen.append(args[0].input_ids.numel()))

    def scores(network: PackedLM, number: int, folder: Path | None) -> list[list[float]]:
        stage = DPO(DPOConfig(), Models(PackedLM(tiny_model("llama", seed=1)), reference=network))
        stage.surroundings = Surroundings(deal=by_number(2), folder=folder)
        return ReferenceScores(stage).of(pairs[:number], lambda micro, logps_R: torch.stack(
            [part.sum() for part in logps_R.split([2 + len(one.input_ids) - 8 for one in pairs[:number]])])[:, None])

    first = scores(reference, 3, tmp_path)
    assert sum(seen) == sum(len(one) for one in segments[:4])
    seen.clear()
    both = scores(reference, 4, tmp_path)
    assert seen == [len(segments[4])] and both[:3] == first
    np.testing.assert_allclose(both, scores(plain, 4, None), rtol=1e-5)


def dpo(base: Path, world: Path, out: Path, **settings: Any) -> Path:
    """Run two epochs of four pairs, two a step, without shuffling."""
    config = {"model_name_or_path": str(base), "stage": "dpo", "do_train": True, "dataset": "pairs", "max_samples": 4,
              "dataset_dir": str(world), "output_dir": str(out), "finetuning_type": "lora", "learning_rate": 1e-2,
              "num_train_epochs": 2, "per_device_train_batch_size": 2, "logging_steps": 1, "save_strategy": "no",
              **settings}
    file = out.parent / f"{out.name}.json"
    file.write_text(json.dumps(config), encoding="utf-8")
    assert main(["train", str(file)]) == 0
    return out


@pytest.fixture
def forwards() -> Iterator[list[int]]:
    """A list that grows by the examples of each forward without gradient: with these losses, of the reference."""
    seen: list[int] = []

    def count(module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        if isinstance(module, PackedLM) and not torch.is_grad_enabled():
            seen.append(len(args[0].indices))

    handle = register_module_forward_pre_hook(count)
    yield seen
    handle.remove()


@pytest.mark.parametrize("stage", [{}, {"finetuning_type": "full"}, {"pref_loss": "ipo", "bf16": True}])
def test_no_reference_forward_is_run_twice(stage: dict[str, Any], tiny_base: Path, world: Path, tmp_path: Path,
                                           monkeypatch: pytest.MonkeyPatch, forwards: list[int]) -> None:
    """Two epochs run each of four pairs once; a second run none; switched off, each epoch all. Equal bit for bit."""
    monkeypatch.setenv("DANLU_CACHE", str(tmp_path / "cache"))
    first = dpo(tiny_base, world, tmp_path / "first", **stage)
    assert sum(forwards) == 4
    again = dpo(tiny_base, world, tmp_path / "again", **stage)
    assert sum(forwards) == 4
    off = dpo(tiny_base, world, tmp_path / "off", reference_cache=False, **stage)
    assert sum(forwards) == 12
    assert losses(first) == losses(again) and losses(first) == pytest.approx(losses(off), rel=1e-5)
    margins = [[row["rewards/margins"] for row in metrics(out)] for out in (first, again)]
    assert margins[0] == margins[1] and any(margins[0])


def test_a_base_edited_in_place_is_another_reference(tiny_base: Path, world: Path, tmp_path: Path,
                                                     monkeypatch: pytest.MonkeyPatch, forwards: list[int]) -> None:
    """One weight of the file changed, or the bits: all four pairs run again. Another adapter leaves the base alone."""
    monkeypatch.setenv("DANLU_CACHE", str(tmp_path / "cache"))
    base = shutil.copytree(tiny_base, tmp_path / "base")
    dpo(base, world, tmp_path / "first")
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"][0] += 0.5
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    dpo(base, world, tmp_path / "edited")
    assert sum(forwards) == 8
    dpo(base, world, tmp_path / "adapted", lora_rank=2, lora_target="q_proj")
    assert sum(forwards) == 8
    dpo(base, world, tmp_path / "quantised", ref_model_quantization_bit=4)
    assert sum(forwards) == 12
