"""The alignment stages against naive float64 loops over plain transformers models, and what they encode."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from danlu.core.console import forget_notices
from danlu.core.errors import ConfigError
from danlu.core.records import Feedback, Message, Origin, Preference
from danlu.core.stream import Example
from danlu.data.config import DataConfig
from danlu.data.encode import EncodeContext
from danlu.data.encode_answers import (
    encode_feedback,
    encode_preferences,
    keep_answers_together,
    pair_with_best,
    with_mismatched,
)
from danlu.models.packed_lm import PackedLM
from danlu.run_config import load_run_config, stage_settings
from danlu.stages.base import Models, Stage, by_number
from danlu.stages.dpo import DPO, DPOConfig
from danlu.stages.kto import KTO, KTOConfig
from danlu.templates import resolve as resolve_template
from tests.tiny import CHATML, tiny_model, tiny_tokenizer

BETA = 0.3


def make_examples(groups: Sequence[Sequence[tuple[int, int]]],
                  facts: Sequence[tuple[float, ...]] = ()) -> list[Example]:
    """Return examples of random tokens; each segment is (prompt tokens, answer tokens), the prompt shared."""
    rng = np.random.default_rng(4)
    made = []
    for index, group in enumerate(groups):
        prompt = rng.integers(5, 300, 20)
        ids = [np.concatenate([prompt[:p], rng.integers(5, 300, a)]) for p, a in group]
        trained = [np.arange(p + a) >= p for p, a in group]
        made.append(Example(np.concatenate(ids), np.concatenate(trained), lengths=tuple(map(len, ids)), index=index,
                            facts=facts[index] if facts else ()))
    return made


def naive_logps(model: nn.Module, one: Example) -> list[list[float]]:
    """Return the log-probabilities of each segment's answer tokens, token by token, from the model's own logits."""
    found, start = [], 0
    for length in one.lengths:
        ids, trained = one.input_ids[start:start + length], one.trained[start:start + length]
        with torch.no_grad():
            logits = model(torch.tensor(ids)[None]).logits[0].double()
        found.append([float(logits[t - 1].log_softmax(-1)[ids[t]]) for t in range(1, length) if trained[t]])
        start += length
    return found


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def total_of(stage: Stage, examples: list[Example], micro_batch: int) -> float:
    """Return the summed loss of one step, cut into micro-batches as the engine does."""
    stage.surroundings.deal = by_number(micro_batch)
    total = 0.0
    for minibatch in stage.prepare(examples):
        for start in range(0, len(minibatch), micro_batch):
            total += stage.loss(stage.collate(minibatch[start:start + micro_batch])).total.item()
    return total


def doubled(seed: int) -> nn.Module:
    return tiny_model("llama", seed=seed).double()


def naive_pair(kind: str, w: list[float], lo: list[float], rw: list[float], rl: list[float],
               z: tuple[float, ...]) -> float:
    """Return the loss of one pair as its paper writes it."""
    margin = (sum(w) - sum(rw)) - (sum(lo) - sum(rl))
    mean_w, mean_l = sum(w) / len(w), sum(lo) / len(lo)
    if kind == "ipo":
        return (mean_w - sum(rw) / len(rw) - mean_l + sum(rl) / len(rl) - 1 / (2 * BETA)) ** 2
    if kind == "orpo":
        odds = [math.log(math.exp(m) / (1 - math.exp(m))) for m in (mean_w, mean_l)]
        return -mean_w - BETA * log_sigmoid(odds[0] - odds[1])
    if kind == "kto_pair":
        return 2 - sigmoid(BETA * (sum(w) - sum(rw) - z[1])) - sigmoid(BETA * (z[0] - (sum(lo) - sum(rl))))
    return {"sigmoid": -log_sigmoid(BETA * margin), "hinge": max(0.0, 1 - BETA * margin),
            "robust": (-0.8 * log_sigmoid(BETA * margin) + 0.2 * log_sigmoid(-BETA * margin)) / 0.6,
            "simpo": -log_sigmoid(BETA * (mean_w - mean_l) - 0.7)}[kind]


@pytest.mark.parametrize("kind", ["sigmoid", "robust", "hinge", "ipo", "kto_pair", "orpo", "simpo"])
def test_dpo_is_the_naive_loop(kind: str) -> None:
    """Four pairs of unequal lengths, in micro-batches of 3, 1 and 4: the sum of the losses, pair by pair."""
    smoothing = 0.2 if kind == "robust" else 0.0
    keys = DPOConfig(pref_loss=kind, pref_beta=BETA, simpo_gamma=0.7, dpo_label_smoothing=smoothing)
    examples = make_examples([[(5, 7), (5, 3)], [(2, 4), (2, 9)], [(12, 1), (12, 6)], [(14, 4), (14, 4)]])
    policy, reference = doubled(1), doubled(2)
    rows = [(*naive_logps(policy, one), *naive_logps(reference, one)) for one in examples]
    ratios = [[sum(row[side]) - sum(row[side + 2]) for row in rows] for side in (0, 1)]
    z = tuple(max(0.0, sum(side) / len(side)) for side in ratios)
    expected = sum(naive_pair(kind, *row, z) for row in rows)
    for micro_batch in (3, 1, 4):
        stage = DPO(keys, Models(PackedLM(policy), reference=PackedLM(reference)))
        assert total_of(stage, examples, micro_batch) == pytest.approx(expected, rel=2e-5)


def test_additions_to_dpo() -> None:
    """pref_ftx adds the chosen answer's mean NLL; ld_alpha scales what is past the shorter answer; bco as written."""
    examples = make_examples([[(15, 7), (15, 3)], [(2, 4), (2, 9)]])
    policy, reference = doubled(1), doubled(2)

    def run(**keys: float) -> float:
        config = DPOConfig(pref_beta=BETA, **keys)
        return total_of(DPO(config, Models(PackedLM(policy).train(), reference=PackedLM(reference))), examples, 2)

    rows = [(*naive_logps(policy, one), *naive_logps(reference, one)) for one in examples]
    plain = run()
    nll = -sum(sum(w) / len(w) for w, _, _, _ in rows)
    assert run(pref_ftx=0.5) - plain == pytest.approx(0.5 * nll, rel=1e-4)
    scaled = 0.0
    for row in rows:
        shared = min(len(row[0]), len(row[1]))
        w, lo, rw, rl = (sum(part[:shared]) + 0.4 * sum(part[shared:]) for part in row)
        scaled -= log_sigmoid(BETA * ((w - rw) - (lo - rl)))
    assert run(ld_alpha=0.4) == pytest.approx(scaled, rel=2e-5)
    rewards = [(BETA * (sum(w) - sum(rw)), BETA * (sum(lo) - sum(rl))) for w, lo, rw, rl in rows]
    delta = sum(map(sum, rewards)) / 4
    bco = -sum(log_sigmoid(w - delta) + log_sigmoid(delta - lo) for w, lo in rewards)
    assert run(pref_bco_weight=2.0) - plain == pytest.approx(2 * bco, rel=1e-4)


def test_bco_mean_runs_over_steps() -> None:
    """After two steps the shift is the mean of all eight rewards; it is stage state, and evaluation leaves it alone."""
    stage = DPO(DPOConfig(pref_bco_weight=1.0), Models(PackedLM(doubled(1)).train(), reference=PackedLM(doubled(2))))
    examples = make_examples([[(5, 7), (5, 3)], [(2, 4), (2, 9)]])
    total_of(stage, examples, 2)
    once = stage.state()
    total_of(stage, examples, 1)
    assert stage.state()["reward_count"] == 8 and stage.state()["reward_sum"] == pytest.approx(2 * once["reward_sum"])
    stage.models.policy.eval()
    total_of(stage, examples, 1)
    assert stage.state()["reward_count"] == 8


@pytest.mark.parametrize("adapter", [False, True])
def test_adapter_off_is_the_reference(adapter: bool) -> None:
    """A fresh adapter changes nothing, so the loss is log 2 a pair; a trained one is measured against the bare base."""
    from peft import LoraConfig, get_peft_model

    base = tiny_model("llama", seed=1)
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], lora_dropout=0.5))
    if adapter:
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.5)
    policy = PackedLM(model)
    examples = make_examples([[(5, 7), (5, 3)], [(2, 4), (2, 9)]])
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    total = total_of(DPO(DPOConfig(pref_beta=BETA), Models(policy.eval())), examples, 2)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == trainable
    own = DPO(DPOConfig(pref_beta=BETA), Models(policy, reference=PackedLM(tiny_model("llama", seed=1))))
    assert total == pytest.approx(total_of(own, examples, 2), rel=1e-5)
    assert (abs(total - 2 * math.log(2)) > 1e-3) == adapter


def test_kto_is_the_naive_loop() -> None:
    """Three answers, two of them good; z is the mean ratio of the second segments over all three, clamped at 0."""
    examples = make_examples([[(12, 7), (12, 3)], [(2, 4), (2, 9)], [(8, 1), (8, 6)]], [(1.0,), (0.0,), (1.0,)])
    for seeds in ((1, 2), (2, 1)):
        policy, reference = map(doubled, seeds)
        rows = [(naive_logps(policy, one), naive_logps(reference, one)) for one in examples]
        z = max(0.0, sum(sum(p[1]) - sum(r[1]) for p, r in rows) / 3)
        expected = 0.0
        for (p, r), one in zip(rows, examples, strict=True):
            lead = BETA * (sum(p[0]) - sum(r[0]) - z)
            expected += 1.5 * (1 - sigmoid(lead)) if one.facts[0] else 0.5 * (1 - sigmoid(-lead))
        keys = KTOConfig(pref_beta=BETA, kto_chosen_weight=1.5, kto_rejected_weight=0.5)
        for micro_batch in (1, 2, 3):
            stage = KTO(keys, Models(PackedLM(policy), reference=PackedLM(reference)))
            assert total_of(stage, examples, micro_batch) == pytest.approx(expected, rel=2e-5)


def test_pref_ftx_of_kto_counts_desirable_answers_only() -> None:
    """It adds pref_ftx times the mean token NLL of the two good answers; the bad one's text is not imitated."""
    examples = make_examples([[(5, 7), (5, 3)], [(2, 4), (2, 9)], [(8, 1), (8, 6)]], [(1.0,), (0.0,), (1.0,)])
    policy, reference = doubled(1), doubled(2)

    def run(**keys: float) -> float:
        return total_of(KTO(KTOConfig(**keys), Models(PackedLM(policy), reference=PackedLM(reference))), examples, 2)

    nll = -sum(sum(p := naive_logps(policy, one)[0]) / len(p) for one in examples if one.facts[0])
    assert run(pref_ftx=0.5) - run() == pytest.approx(0.5 * nll, rel=1e-4)


def test_kto_tells_the_share_of_its_classes(capsys: pytest.CaptureFixture[str]) -> None:
    """One label only is warned of; 8 good to 2 bad at equal weights is 4 to 1: lambda_D 0.25 to 0.333 mends it."""
    def told(good: int, bad: int, **keys: float) -> str:
        forget_notices()
        facts = np.array([[1.0]] * good + [[0.0]] * bad, np.float32)
        KTO.tell_of(KTOConfig(**keys), facts)
        return capsys.readouterr().err

    assert "warning: all answers are desirable" in told(3, 0) and "warning: all answers are undes" in told(0, 3)
    skewed = told(8, 2)
    assert "8 desirable and 2 undesirable answers (80 % desirable)" in skewed
    assert "weigh 4 times" in skewed and "kto_chosen_weight 0.25 to 0.333" in skewed
    for balanced in (told(5, 5), told(8, 2, kto_chosen_weight=0.3), told(8, 2, kto_rejected_weight=3.5)):
        assert "notice" not in balanced and "warning" not in balanced


def test_a_process_without_a_share_leaves_the_baseline_alone() -> None:
    """Its stand-in example is summed with weight 0."""
    examples = make_examples([[(5, 7), (5, 3)]], [(1.0,)])
    stage = KTO(KTOConfig(), Models(PackedLM(doubled(1)), reference=PackedLM(doubled(2))))
    told: list[list[float]] = []
    stage.surroundings.sum_over_ranks = lambda values: told.append(values) or values
    stage.surroundings.counts = False
    list(stage.prepare(examples))
    assert told == [[0.0, 0.0]]


def test_kto_reports_means_of_each_class() -> None:
    """Sums over 4 answers divided by 4, one of them good: 0.5 / 0.25 = 2 and 1.5 / 0.75 = 2; margin 0."""
    stage = KTO(KTOConfig(), Models(nn.Identity()))
    told = stage.report({"kl": 0.1, "rewards/chosen": 0.5, "logps/chosen": 1.0, "share/desirable": 0.25,
                         "rewards/rejected": 1.5, "logps/rejected": 1.5, "share/undesirable": 0.75})
    assert told == {"kl": 0.1, "rewards/chosen": 2.0, "logps/chosen": 4.0, "rewards/rejected": 2.0,
                    "logps/rejected": 2.0, "rewards/margins": 0.0}
    assert "rewards/rejected" not in stage.report({"share/desirable": 1.0, "rewards/chosen": 1.0, "logps/chosen": 1.0})


def context(**keys: object) -> EncodeContext:
    tokenizer = tiny_tokenizer(chat_template=CHATML)
    template = resolve_template(None, tokenizer)
    template.prepare_tokenizer(tokenizer)
    return EncodeContext(tokenizer, template, DataConfig(**keys))


def preference(prompt: Sequence[str], *answers: str) -> Preference:
    turns = tuple(Message(("user", "assistant")[i % 2], text) for i, text in enumerate(prompt))
    return Preference(turns, tuple(Message("assistant", text) for text in answers), Origin("file", 1))


def texts(one: Example, decode: Callable[..., str]) -> list[tuple[str, str]]:
    """Return each segment's text and its trained part."""
    bounds = np.cumsum((0, *one.lengths))
    return [(decode(one.input_ids[a:b]), decode(one.input_ids[a:b][one.trained[a:b]]))
            for a, b in zip(bounds, bounds[1:], strict=False)]


def test_answers_stand_behind_their_prompt() -> None:
    """Only the answer and its end-of-turn token carry loss, also where the prompt holds an earlier answer."""
    here = context()
    encoded = encode_preferences([preference(["what is rain", "wet", "the sun"], "warm", "blue", "a mat")], here)
    (group,) = keep_answers_together(encoded, here.config)
    prompt = ("<|im_start|>user\nwhat is rain<|im_end|>\n<|im_start|>assistant\nwet<|im_end|>\n"
              "<|im_start|>user\nthe sun<|im_end|>\n<|im_start|>assistant\n")
    found = texts(group, here.tokenizer.decode)
    assert found == [(f"{prompt}{a}<|im_end|>", f"{a}<|im_end|>") for a in ("warm", "blue", "a mat")]
    pairs = pair_with_best(encoded, here.config)
    assert len(pairs) == 2 and [texts(p, here.tokenizer.decode)[1][1] for p in pairs] == [
        "blue<|im_end|>", "a mat<|im_end|>"]


def test_long_prompts_lose_their_oldest_rounds_first() -> None:
    """Both answers stay whole; the same rounds go for both, with one entry in the ledger."""
    here = context()
    record = preference(["what is rain", "wet", "what is the sky", "blue", "the sun"], "warm", "the cat sat on a mat")
    whole = encode_preferences([record], here)[0]
    last = encode_preferences([preference(["the sun"], "warm", "the cat sat on a mat")], here)[0]
    limit = max(end - start for start, _, end in last.turns) + 2
    tight = replace(here, config=DataConfig(cutoff_len=limit))
    (cut,) = encode_preferences([record], tight)
    assert np.array_equal(cut.input_ids, last.input_ids) and len(cut.input_ids) < len(whole.input_ids)
    assert list(tight.ledger.reasons()) == ["cut: whole first rounds left out to fit cutoff_len"]


def test_what_cannot_fit_is_told() -> None:
    """A prompt that leaves no room, and answers alike once cut, are dropped with a reason; `drop` drops the long."""
    alike = preference(["rain"], "the cat sat on a mat blue", "the cat sat on a mat warm")
    length = encode_preferences([alike], context())[0].turns[0][1] + 6
    for keys, record, reason in (
            ({"cutoff_len": 8}, preference(["what is rain " * 9], "wet", "blue"),
             "dropped: the prompt alone exceeds cutoff_len"),
            ({"cutoff_len": length - 2}, alike, "dropped: answers are alike once cut at cutoff_len"),
            ({"cutoff_len": length - 2, "on_long": "drop"}, alike, "dropped: longer than cutoff_len")):
        here = context(**keys)
        assert encode_preferences([record], here) == []
        assert reason in here.ledger.reasons()


def test_mismatched_answers_come_from_another_prompt() -> None:
    """Record 0 and 1 share a prompt, so both take the answer of record 2; record 2 takes that of record 0."""
    here = context()
    rows = [("rain", "wet", True), ("rain", "blue", False), ("sun", "warm", True)]
    records = [Feedback((Message("user", q), Message("assistant", a)), good, Origin("file", i))
               for i, (q, a, good) in enumerate(rows)]
    examples = with_mismatched(encode_feedback(records, here), here.config)
    found = [texts(one, here.tokenizer.decode) for one in examples]
    assert [one.facts for one in examples] == [(1.0,), (0.0,), (1.0,)]
    assert [both[1][1] for both in found] == ["warm<|im_end|>", "warm<|im_end|>", "wet<|im_end|>"]
    assert [both[1][0].startswith("<|im_start|>user\n" + q) for both, q in zip(
        found, ("rain", "rain", "sun"), strict=True)] == [True] * 3


@pytest.mark.parametrize("words", [
    ["dpo_label_smoothing=0.1", "pref_loss=hinge"], ["pref_bco_weight=1", "pref_loss=simpo"]])
def test_keys_that_contradict_each_other(words: list[str]) -> None:
    config = load_run_config(None, ["stage=dpo", "model_name_or_path=m", "dataset=d", "output_dir=o", *words], "train")
    with pytest.raises(ConfigError, match=r"command line: pref_"):
        stage_settings(config, DPOConfig)
