"""The reward model against naive loops over plain transformers, its calibration, and the data it reads."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from danlu.core.errors import DataError
from danlu.core.records import Graded, Preference, Record
from danlu.core.stream import Example
from danlu.data.config import DataConfig
from danlu.data.loader import load_records
from danlu.losses.calibration import gaps
from danlu.models.packed_lm import PackedLM
from danlu.models.reward_lm import RewardLM
from danlu.stages.base import Models
from danlu.stages.rm import RM, RMConfig
from tests.reading import metrics, read_json
from tests.tiny import tiny_model
from tests.unit.test_alignment_stages import log_sigmoid, make_examples, sigmoid, total_of


def naive_rewards(scorer: RewardLM, body: nn.Module, one: Example) -> list[float]:
    """Return w . h + b of the last token of each segment, from the model's own hidden states."""
    found, start = [], 0
    for length in one.lengths:
        ids = torch.tensor(one.input_ids[start:start + length])[None]
        with torch.no_grad():
            hidden = body(ids, output_hidden_states=True).hidden_states[-1][0, -1]
            found.append(float(hidden.double() @ scorer.value_head.weight[0].double()))
        start += length
    return found


@pytest.mark.parametrize("kind", ["ranking", "pointwise"])
def test_rm_is_the_naive_loop(kind: str) -> None:
    """Groups of 2, 4 and 3 answers: all pairs averaged, with the row's margin; pointwise: 1, 1 and 2 are good."""
    model = tiny_model("llama", seed=1)
    scorer = RewardLM(PackedLM(model))
    facts = [(0.5, 1.0), (0.0, 1.0), (0.0, 2.0 if kind == "pointwise" else 1.0)]
    examples = make_examples([[(5, 7), (5, 3)], [(12, 4), (12, 9), (12, 1), (12, 5)], [(8, 1), (8, 6), (8, 2)]], facts)
    expected = 0.0
    for one in examples:
        r = naive_rewards(scorer, model, one)
        if kind == "ranking":
            pairs = [(r[i], r[j]) for i in range(len(r)) for j in range(i + 1, len(r))]
            margin = 0.2 + one.facts[0]
            expected += sum(-log_sigmoid(w - lo - margin) + 0.1 * (w + lo) ** 2 for w, lo in pairs) / len(pairs)
        else:
            good = int(one.facts[1])
            expected -= (sum(map(log_sigmoid, r[:good])) + sum(log_sigmoid(-bad) for bad in r[good:])) / len(r)
    keys = RMConfig(rm_loss=kind, rm_margin=0.2, rm_centre=0.1)
    for micro_batch in (1, 2, 3):
        assert total_of(RM(keys, Models(scorer)), examples, micro_batch) == pytest.approx(expected, rel=1e-4)


def test_rm_tells_accuracy_and_margin() -> None:
    """Counted by hand from the rewards of a group of three; the vocabulary head gets no gradient."""
    scorer = RewardLM(PackedLM(model := tiny_model("llama", seed=1)))
    one = make_examples([[(5, 7), (5, 3), (5, 5)]], [(0.0, 1.0)])[0]
    r = naive_rewards(scorer, model, one)
    leads = [r[0] - r[1], r[0] - r[2], r[1] - r[2]]
    stage = RM(RMConfig(), Models(scorer))
    told = stage.loss(stage.collate([one]))
    told.total.backward()
    assert told.metrics["accuracy"].item() == pytest.approx(sum(lead > 0 for lead in leads) / 3)
    assert told.metrics["margin"].item() == pytest.approx(sum(leads) / 3, abs=1e-5)
    assert told.metrics["rewards/rejected"].item() == pytest.approx((r[1] + r[2]) / 2, abs=1e-5)
    told_ece = stage.report({name: value.item() for name, value in told.metrics.items()})["ece"]
    assert told_ece == pytest.approx(naive_ece(leads), abs=1e-6)
    assert model.lm_head.weight.grad is None and not model.lm_head.weight.requires_grad
    assert scorer.value_head.weight.grad is not None


def naive_ece(leads: Sequence[float]) -> float:
    """Guo et al. 2017, Eq. 3: ten bins of equal width from 0.5 to 1, |accuracy - confidence| weighed by their size."""
    bins: dict[int, list[tuple[float, float]]] = {}
    for lead in leads:
        sure = sigmoid(abs(lead))
        bins.setdefault(min(9, int((sure - 0.5) * 20)), []).append((sure, float(lead > 0)))
    means = [(len(b), sum(s for s, _ in b) / len(b), sum(r for _, r in b) / len(b)) for b in bins.values()]
    return sum(n * abs(right - sure) for n, sure, right in means) / len(leads)


def test_calibration_by_hand() -> None:
    """Leads of +-ln 3.1 claim 3.1 / 4.1 = 75.6 %, and two of three are right; ln 19.5 claims 95.1 %, and is right.

    ECE = |2 - 3 * 0.7561| / 4 + |1 - 0.9512| / 4 = 0.0671 + 0.0122
    """
    leads = torch.tensor([math.log(3.1), math.log(3.1), -math.log(3.1), math.log(19.5)], dtype=torch.float64)
    sure, last = 3.1 / 4.1, 19.5 / 20.5
    gap = gaps(leads, torch.ones(4))
    assert gap[5] == pytest.approx(2 - 3 * sure) and gap[9] == pytest.approx(1 - last)
    expected = (abs(2 - 3 * sure) + abs(1 - last)) / 4
    assert float(gap.abs().sum()) / 4 == pytest.approx(expected) == pytest.approx(0.0793, abs=1e-4)
    assert naive_ece(leads.tolist()) == pytest.approx(expected)


def test_pointwise_tells_the_side_of_zero() -> None:
    """Two single answers, one good and one bad: right is a reward of the label's sign; margin is good minus bad."""
    scorer = RewardLM(PackedLM(model := tiny_model("llama", seed=1)))
    examples = make_examples([[(5, 7)], [(2, 4)]], [(0.0, 1.0), (0.0, 0.0)])
    good, bad = (naive_rewards(scorer, model, one)[0] for one in examples)
    stage = RM(RMConfig(rm_loss="pointwise"), Models(scorer))
    output = stage.loss(stage.collate(examples))
    assert float(output.total) == pytest.approx(-log_sigmoid(good) - log_sigmoid(-bad), rel=1e-5)
    told = stage.report({name: float(value) / 2 for name, value in output.metrics.items()})
    assert set(told) == set(RM.metrics)
    assert told["accuracy"] == ((good > 0) + (bad < 0)) / 2
    assert told["rewards/chosen"] == pytest.approx(good, abs=1e-5)
    assert told["margin"] == pytest.approx(good - bad, abs=1e-5)
    assert told["ece"] == pytest.approx(naive_ece([good, -bad]), abs=1e-6)


def rows_of(path: Path, rows: Sequence[dict[str, object]], kind: type[Record], **keys: object) -> list[Record]:
    """Write rows and read them as records of one kind."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return list(load_records(DataConfig(train_file=str(path), **keys), kind))


PAIR = {"prompt": "the sky", "chosen": "blue", "rejected": "wet"}


def test_good_and_bad_are_read_from_verdicts_and_from_preferences(tmp_path: Path) -> None:
    """A thumb is one answer; of a pair or a ranking the best is good. A row with a pair is a pair, whatever its label.
    """
    verdicts = [{"instruction": "the sky", "output": "blue", "kto_tag": good} for good in (True, False)]
    ranked = {"prompt": "the sky", "responses": ["wet", "blue", "warm"], "ranks": [3, 1, 2]}
    found = [rows_of(tmp_path / f"{name}.jsonl", rows, Graded) for name, rows in (
        ("verdicts", verdicts), ("pairs", [{**PAIR, "label": 1}]), ("ranked", [ranked]))]
    assert [[([a.content for a in one.answers], one.num_good) for one in part] for part in found] == [
        [(["blue"], 1), (["blue"], 0)], [(["blue", "wet"], 1)], [(["blue", "warm", "wet"], 1)]]
    assert all(one.prompt[-1].content == "the sky" for part in found for one in part)
    with pytest.raises(DataError, match=r"expected a verdict \(kto_tag or label\), or a better and a worse answer"):
        rows_of(tmp_path / "chat.jsonl", [{"instruction": "a", "output": "b"}], Graded)


def test_margins_are_read_where_the_data_have_them(tmp_path: Path) -> None:
    """A number of 0 or more; absent and null say nothing; anything else is a bad row that names its place."""
    rows = [{**PAIR, "margin": 2}, {**PAIR, "margin": None}, PAIR]
    found = rows_of(tmp_path / "pairs.jsonl", rows, Preference)
    assert [one.margin for one in found] == [2.0, None, None]
    for wrong in (-1, "much", True):
        with pytest.raises(DataError, match="/margin: found .* expected a number of 0 or more"):
            rows_of(tmp_path / "wrong.jsonl", [{**PAIR, "margin": wrong}], Preference)


def test_a_margin_column_changes_the_run_and_is_told(tiny_base: Path, tmp_path: Path, danlu: Callable[..., int],
                                                     capsys: pytest.CaptureFixture[str]) -> None:
    """A margin of m on every row is rm_margin: m, to the bit; the ledger counts the rows that have one."""
    def run(name: str, rows: list[dict[str, object]], **keys: object) -> list[dict[str, float]]:
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        out = tmp_path / name
        assert danlu("train", {
            "model_name_or_path": str(tiny_base), "stage": "rm", "dataset": str(tmp_path / f"{name}.jsonl"),
            "output_dir": str(out), "max_steps": 2, "logging_steps": 1, "learning_rate": 1e-2, **keys}) == 0
        return metrics(out)

    pairs = [PAIR, {**PAIR, "prompt": "rain"}]
    with_column = run("column", [{**row, "margin": 1.5} for row in pairs])
    assert "2 with a margin" in capsys.readouterr().err
    with_key, plain = run("key", pairs, rm_margin=1.5), run("plain", pairs)
    assert [row["margin"] for row in with_column] == [row["margin"] for row in with_key]
    assert [row["margin"] for row in with_column] != [row["margin"] for row in plain]


@pytest.mark.parametrize("streaming", [False, True])
def test_pointwise_learns_from_verdicts(streaming: bool, tiny_base: Path, world: Path, tmp_path: Path,
                                        danlu: Callable[..., int]) -> None:
    """Sixteen answers with thumbs end on the side of zero that their thumb says, also as a stream; ece is told."""
    out = tmp_path / "out"
    assert danlu("train", {
        "model_name_or_path": str(tiny_base), "stage": "rm", "rm_loss": "pointwise", "dataset": "verdicts",
        "dataset_dir": str(world), "output_dir": str(out), "finetuning_type": "full", "learning_rate": 5e-3,
        "max_steps": 80, "per_device_train_batch_size": 16, "logging_steps": 1, "lr_scheduler_type": "constant",
        "save_strategy": "no", "streaming": streaming,
        **({} if streaming else {"eval_dataset": "verdicts", "do_train": True, "do_eval": True})}) == 0
    told = metrics(out)[-1]
    assert told["accuracy"] == 1.0 and told["rewards/chosen"] > 0 > told["rewards/rejected"]
    if not streaming:
        results = read_json(out / "all_results.json")
        assert results["eval_accuracy"] == 1.0 and 0 <= results["eval_ece"] < 0.5


def test_real_rankings_with_equal_answers(shared: Path) -> None:
    """Three of 388 rows of oaast_rm_zh repeat an answer: an error that names the row, or left out and listed."""
    file = shared / "data" / "LLaMA-Factory" / "data_2023" / "oaast_rm_zh.json"
    with pytest.raises(DataError, match=r"oaast_rm_zh.json.*the same answer as in /output/\d"):
        list(load_records(DataConfig(train_file=str(file)), Preference))
    records = load_records(DataConfig(train_file=str(file), on_bad_row="skip"), Preference)
    assert len(records) == 385 and max(len(one.answers) for one in records) > 2
    dropped = [entry for entry in records.ledger.entries if entry.action == "dropped"]
    assert len(dropped) == 3 and all("the same answer as in" in entry.detail for entry in dropped)
