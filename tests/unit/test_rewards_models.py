"""Rewards by networks against plain transformers and peft, one answer at a time; and models that do not fit."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from danlu.cli.main import main
from danlu.core.errors import UserError
from danlu.core.records import Message
from danlu.models.config import AdapterConfig, ModelConfig, QuantizationConfig
from danlu.models.load import load_model
from danlu.models.packed_lm import PackedLM
from danlu.models.reward_lm import VALUE_HEAD, RewardLM
from danlu.models.save import ModelSaver
from danlu.models.stream_tensors import StreamTensors
from danlu.rewards.base import Answer, RewardContext, RewardError
from danlu.rewards.classifier import label_index
from danlu.rewards.config import RewardKeys
from danlu.rewards.mixture import Rewards, build_rewards
from danlu.rewards.token_scores import example_of
from tests.tiny import CHATML, FAMILIES, save_tiny, tiny_model, tiny_tokenizer

LORA, FULL = AdapterConfig(lora_rank=4), AdapterConfig(finetuning_type="full")
TOKENIZER = tiny_tokenizer(chat_template=CHATML)


def ids_of(text: str) -> tuple[int, ...]:
    return tuple(TOKENIZER(text, add_special_tokens=False)["input_ids"])


def answer(question: str, text: str) -> Answer:
    return Answer(ids_of(f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"),
                  ids_of(f"{text}<|im_end|>"), text, (Message("user", question),), origin=f"ask.jsonl:{len(text)}")


ANSWERS = [answer("what colour is the sky", "blue"), answer("你好", "你好 请"), answer("what is rain", "wet and warm"),
           answer("the cat sat on", "a mat"), answer("the sun is", "warm " * 9)]


def load(base: Path, adapter: AdapterConfig = LORA, seed: int = 0, **keys: Any) -> Any:
    """Return a model to train, its trainable weights moved a little."""
    torch.manual_seed(seed)
    model = load_model(ModelConfig(model_name_or_path=str(base), **keys), QuantizationConfig(), adapter,
                       tokenizer=TOKENIZER, trainable=True, compute_dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    return model


def save_reward_model(base: Path, folder: Path, adapter: AdapterConfig = LORA, **keys: Any) -> Path:
    """Write what stage rm writes."""
    scorer = RewardLM(PackedLM(load(base, adapter, seed=3, **keys)))
    scorer.value_head.bias.data.fill_(0.3)
    ModelSaver(tiny_tokenizer(chat_template=CHATML), None, str(base)).save(scorer, folder, dtype=torch.float32)
    return folder


@pytest.fixture(scope="module")
def reward_adapter(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_reward_model(tiny_base, tmp_path_factory.mktemp("rm") / "adapter")


def context(base: Path, policy: nn.Module, adapter: AdapterConfig = LORA, micro_batch: int = 2) -> RewardContext:
    return RewardContext(TOKENIZER, None, policy, ModelConfig(model_name_or_path=str(base)), QuantizationConfig(),
                         adapter, micro_batch=micro_batch)


def rewards(source: Path | str, kind: str, where: RewardContext, **keys: Any) -> Rewards:
    return build_rewards(RewardKeys(reward_model=str(source), reward_model_type=kind, **keys), where)


def by_hand(model: Any, folder: Path) -> list[float]:
    """Return w . h(last token) + b of each answer alone, the hidden state taken from the model's own outputs."""
    head = load_file(folder / VALUE_HEAD)
    found = []
    for one in ANSWERS:
        with torch.no_grad():
            out = model.eval()(input_ids=torch.tensor([[*one.prompt_ids, *one.ids]]), output_hidden_states=True)
        last = out.hidden_states[-1][0, -1].double()
        found.append(float(head["v_head.summary.weight"][0].double() @ last + head["v_head.summary.bias"][0]))
    return found


def told(call: Callable[[], Any], *parts: str, kind: type[UserError] = UserError) -> None:
    with pytest.raises(kind) as caught:
        call()
    for part in parts:
        assert part in str(caught.value), f"{part!r} is not in {caught.value}"


# lora

@pytest.fixture(scope="module")
def expected(tiny_base: Path, reward_adapter: Path) -> list[float]:
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base), str(reward_adapter))
    return by_hand(plain, reward_adapter)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_lora_reward(tiny_base: Path, reward_adapter: Path, expected: list[float], size: int) -> None:
    """The same numbers as peft's own model, whatever the micro-batch; asking twice changes nothing."""
    source = rewards(reward_adapter, "lora", context(tiny_base, load(tiny_base), micro_batch=size))
    for _ in range(2):
        assert source.score(ANSWERS).total == pytest.approx(expected, abs=2e-5)
    assert len(set(expected)) == len(expected)


def test_a_lora_reward_leaves_the_policy_alone(tiny_base: Path, reward_adapter: Path) -> None:
    """Its outputs, what trains, which adapter is active, its mode, its attention and the random state."""
    policy = load(tiny_base, LORA.model_copy(update={"additional_target": ("lm_head",)}))

    def seen() -> tuple[Any, ...]:
        flags = {name for name, weight in policy.named_parameters() if weight.requires_grad}
        attention = policy.get_base_model().config._attn_implementation
        return flags, policy.active_adapter, policy.training, attention, torch.get_rng_state().tolist()

    def logits() -> torch.Tensor:
        with torch.no_grad():
            return policy(torch.tensor([ANSWERS[0].prompt_ids])).logits

    before, said = seen(), logits()
    source = rewards(reward_adapter, "lora", context(tiny_base, policy))
    source.score(ANSWERS)
    assert seen() == before and any("lm_head" in name for name in before[0])
    assert torch.equal(logits(), said)
    assert not any("reward" in name for name in before[0])
    assert source.networks and not any(one.requires_grad for net in source.networks for one in net.parameters())
    assert sum(one.numel() for net in source.networks for one in net.parameters()) == 33  # the value head alone


def test_a_lora_reward_between_packed_forwards(tiny_base: Path, reward_adapter: Path, expected: list[float]) -> None:
    """A policy that runs packed already goes on as it did."""
    policy = load(tiny_base)
    lm, stream = PackedLM(policy), StreamTensors.of([example_of(one) for one in ANSWERS])
    before = lm(stream, output="hidden").sum()
    source = rewards(reward_adapter, "lora", context(tiny_base, policy))
    assert source.score(ANSWERS).total == pytest.approx(expected, abs=2e-5)
    assert torch.equal(lm(stream, output="hidden").sum(), before)


def test_two_reward_adapters_on_one_base(tiny_base: Path, reward_adapter: Path, expected: list[float]) -> None:
    keys = RewardKeys(reward_model=f"{reward_adapter},{reward_adapter}", reward_model_type="lora,lora",
                      reward_weights="1,2")
    table = build_rewards(keys, context(tiny_base, load(tiny_base))).score(ANSWERS)
    assert table.total == pytest.approx([3 * one for one in expected], abs=6e-5)
    assert list(table.parts) == ["lora_1", "lora_2"]


def test_a_reward_adapter_fits_only_what_was_merged_below_it(tiny_base: Path, tmp_path: Path) -> None:
    """base + sft merged + new adapter: the policy must hold the same sft; full takes both adapters in order."""
    sft = save_reward_model(tiny_base, tmp_path / "sft")
    onward = LORA.model_copy(update={"create_new_adapter": True})
    stacked = save_reward_model(tiny_base, tmp_path / "rm", onward, adapter_name_or_path=str(sft))
    told(lambda: rewards(stacked, "lora", context(tiny_base, load(tiny_base))),
         f"trained above {sft}, and the policy trains above the bare base",
         f"adapter_name_or_path: {sft} with create_new_adapter: true", f"reward_model_adapters: {sft},{stacked}")
    policy = load(tiny_base, onward, adapter_name_or_path=str(sft))
    same = rewards(stacked, "lora", context(tiny_base, policy)).score(ANSWERS).total
    own = rewards(tiny_base, "full", context(tiny_base, nn.Identity()), reward_model_adapters=f"{sft},{stacked}")
    assert own.score(ANSWERS).total == pytest.approx(same, abs=2e-5)
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base), str(sft)).merge_and_unload()
    assert same == pytest.approx(by_hand(PeftModel.from_pretrained(plain, str(stacked)), stacked), abs=2e-5)
    told(lambda: rewards(sft, "lora", context(tiny_base, policy)), "trained above the bare base",
         "train the reward model")
    told(lambda: load(tiny_base, adapter_name_or_path=str(stacked)), "nothing is merged",
         f"adapter_name_or_path: {sft},{stacked}")


def test_policies_without_place_for_a_reward_adapter(tiny_base: Path, reward_adapter: Path) -> None:
    told(lambda: rewards(reward_adapter, "lora", context(tiny_base, load(tiny_base, FULL), FULL)),
         "this policy trains full weights", "reward_model_type: full", f"reward_model_adapters: {reward_adapter}")
    pissa = LORA.model_copy(update={"pissa_init": True})
    told(lambda: rewards(reward_adapter, "lora", context(tiny_base, load(tiny_base, pissa), pissa)), "pissa_init")


def test_reward_adapters_that_do_not_fit(tiny_base: Path, reward_adapter: Path, tmp_path: Path) -> None:
    where = context(tiny_base, load(tiny_base))
    other = save_tiny(tmp_path / "other", "llama", CHATML, seed=5)
    told(lambda: rewards(reward_adapter, "lora", context(other, load(other))), "another base", str(tiny_base))
    told(lambda: rewards(tmp_path / "nowhere", "lora", where), "reward_model: folder", "does not exist")
    told(lambda: rewards(tiny_base, "lora", where), "is a whole model, not an adapter")
    ModelSaver(tiny_tokenizer(), None, str(tiny_base)).save(load(tiny_base), tmp_path / "sft")
    told(lambda: rewards(tmp_path / "sft", "lora", where), VALUE_HEAD, "not trained as a reward model")


def with_swapped_tokens(folder: Path) -> Path:
    """Give a saved model a tokenizer in which two tokens have changed places."""
    text = (folder / "tokenizer.json").read_text("utf-8")
    first, second = (next(token for token, index in TOKENIZER.get_vocab().items() if index == number)
                     for number in (300, 301))
    for name, mark in ((first, "@@"), (second, f'"{first}": 301'), ("@@", f'"{second}": 300')):
        text = text.replace(f'"{name}": 300' if name == first else f'"{second}": 301' if name == second else name, mark)
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    return folder


def test_another_tokenizer_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    adapter = with_swapped_tokens(save_reward_model(tiny_base, tmp_path / "rm"))
    parts = ("another tokenizer than the policy: 2 of", "is 300 here and 301 there", "classifier or api")
    told(lambda: rewards(adapter, "lora", context(tiny_base, load(tiny_base))), *parts)
    whole = with_swapped_tokens(save_reward_model(tiny_base, tmp_path / "full", FULL))
    told(lambda: rewards(whole, "full", context(tiny_base, nn.Identity())), *parts)
    small = save_reward_model(tiny_base, tmp_path / "small", FULL)
    tiny_tokenizer(280).save_pretrained(small)
    told(lambda: rewards(small, "full", context(tiny_base, nn.Identity())), "unknown there")


# full

def test_full_reward(tiny_base: Path, reward_adapter: Path, expected: list[float], tmp_path: Path) -> None:
    """A whole model of stage rm; and the adapter on a base of its own, equal to the adapter on the policy's."""
    whole = save_reward_model(tiny_base, tmp_path / "rm", FULL)
    made = rewards(whole, "full", context(tiny_base, nn.Identity()))
    assert made.score(ANSWERS).total == pytest.approx(
        by_hand(AutoModelForCausalLM.from_pretrained(whole), whole), abs=2e-5)
    assert not any(weight.requires_grad for net in made.networks for weight in net.parameters())
    own = rewards(tiny_base, "full", context(tiny_base, nn.Identity()), reward_model_adapters=str(reward_adapter))
    assert own.score(ANSWERS).total == pytest.approx(expected, abs=2e-5)


def test_full_reward_in_few_bits(tiny_base: Path, tmp_path: Path) -> None:
    """4 bits round the weights: near the exact rewards, not equal."""
    pytest.importorskip("bitsandbytes")
    whole = save_reward_model(tiny_base, tmp_path / "rm", FULL)
    where = context(tiny_base, nn.Identity())
    exact, rounded = (rewards(whole, "full", where, reward_model_quantization_bit=bits).score(ANSWERS).total
                      for bits in (None, 4))
    assert rounded != exact and rounded == pytest.approx(exact, abs=1.0)


def save_classifier(folder: Path, config: Any, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def test_full_reward_from_a_sequence_classifier(tiny_base: Path, tmp_path: Path) -> None:
    """One label: transformers' own logit of each answer, padding or not, as the last token is not the pad token."""
    config = LlamaConfig(**FAMILIES["llama"], vocab_size=320, pad_token_id=0, num_labels=1)
    model = save_classifier(tmp_path / "one", config, TOKENIZER)
    with torch.no_grad():
        wanted = [float(model(input_ids=torch.tensor([[*one.prompt_ids, *one.ids]])).logits) for one in ANSWERS]
    assert rewards(tmp_path / "one", "full", context(tiny_base, nn.Identity())).score(ANSWERS).total == pytest.approx(
        wanted, abs=2e-5)
    save_classifier(tmp_path / "two", LlamaConfig(**FAMILIES["llama"], vocab_size=320, num_labels=2), TOKENIZER)
    told(lambda: rewards(tmp_path / "two", "full", context(tiny_base, nn.Identity())), "of 2 labels",
         "reward_model_type: classifier")


def test_models_that_are_no_full_reward(tiny_base: Path, reward_adapter: Path, tmp_path: Path) -> None:
    where = context(tiny_base, nn.Identity())
    told(lambda: rewards(tiny_base, "full", where), VALUE_HEAD, "not trained as a reward model")
    told(lambda: rewards(reward_adapter, "full", where), "is an adapter", f"reward_model_adapters: {reward_adapter}")
    told(lambda: rewards(tmp_path / "nowhere", "full", where), "reward_model", "does not exist")
    whole = save_reward_model(tiny_base, tmp_path / "rm", FULL)
    save_file({"v_head.summary.weight": torch.full((1, 32), float("nan")), "v_head.summary.bias": torch.zeros(1)},
              whole / VALUE_HEAD)
    told(lambda: rewards(whole, "full", where).score(ANSWERS), "reward full", "is nan", "ask.jsonl:4", kind=RewardError)


# classifier

def logits_alone(model: PreTrainedModel, ids: Sequence[Sequence[int]]) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([model(input_ids=torch.tensor([one])).logits for one in ids])


def without_pad(**keys: Any) -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer(**keys)
    tokenizer.pad_token = None
    return tokenizer


GPT2 = {**FAMILIES["gpt2"], "vocab_size": 320, "bos_token_id": 1, "eos_token_id": 2}
TEXTS = [one.text for one in ANSWERS]
DIALOGUES = [f"{one.messages[0].content}\n{one.text}" for one in ANSWERS]


def scored(folder: Path, base: Path, **keys: Any) -> list[float]:
    return rewards(folder, "classifier", context(base, nn.Identity(), micro_batch=3), **keys).score(ANSWERS).total


def test_classifier_without_pad_token(tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each text alone through transformers: softmax over two labels, or the logit; label by name and index."""
    tokenizer = without_pad()
    names = {0: "NEGATIVE", 1: "POSITIVE"}
    model = save_classifier(tmp_path / "c", GPT2Config(**GPT2, num_labels=2, id2label=names), tokenizer)
    logits = logits_alone(model, [tokenizer(text)["input_ids"] for text in DIALOGUES])
    chances = logits.softmax(-1)
    assert scored(tmp_path / "c", tiny_base) == pytest.approx(chances[:, 1].tolist(), abs=1e-5)
    assert "the probability of label POSITIVE" in capsys.readouterr().err
    assert scored(tmp_path / "c", tiny_base, reward_label="negative") == pytest.approx(chances[:, 0].tolist(), abs=1e-5)
    assert scored(tmp_path / "c", tiny_base, reward_label="0", reward_score="logit") == pytest.approx(
        logits[:, 0].tolist(), abs=1e-5)
    alone = logits_alone(model, [tokenizer(text)["input_ids"] for text in TEXTS]).softmax(-1)[:, 1]
    assert scored(tmp_path / "c", tiny_base, reward_text="answer") == pytest.approx(alone.tolist(), abs=1e-5)


def test_padding_is_never_part_of_a_text(tiny_base: Path, tmp_path: Path) -> None:
    """Where the pad token also ends texts, decoders would read the score one token early."""
    tokenizer = without_pad(chat_template="{% for m in messages %}{{ m['content'] }}</s>{% endfor %}")
    tokenizer.pad_token = "</s>"
    model = save_classifier(tmp_path / "c", GPT2Config(**GPT2, num_labels=2), tokenizer)
    texts = [f"{one.messages[0].content}</s>{one.text}</s>" for one in ANSWERS]
    wanted = logits_alone(model, [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts])
    assert scored(tmp_path / "c", tiny_base, reward_score="logit", reward_label="1") == pytest.approx(
        wanted[:, 1].tolist(), abs=1e-5)


def test_classifier_with_one_label_and_pairs(tiny_base: Path, tmp_path: Path) -> None:
    """An encoder that reads in both directions; one label gives its logit, or a sigmoid; pairs are two texts."""
    tokenizer = tiny_tokenizer()
    model = save_classifier(tmp_path / "c", BertConfig(
        vocab_size=320, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=128, pad_token_id=0, num_labels=1), tokenizer)
    logits = logits_alone(model, [tokenizer(text)["input_ids"] for text in DIALOGUES])[:, 0]
    assert scored(tmp_path / "c", tiny_base) == pytest.approx(logits.tolist(), abs=1e-5)
    assert scored(tmp_path / "c", tiny_base, reward_score="probability") == pytest.approx(
        logits.sigmoid().tolist(), abs=1e-5)
    pairs = [tokenizer(one.messages[0].content, one.text)["input_ids"] for one in ANSWERS]
    assert scored(tmp_path / "c", tiny_base, reward_text="pair") == pytest.approx(
        logits_alone(model, pairs)[:, 0].tolist(), abs=1e-5)


def test_classifier_cuts_long_texts_and_says_so(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:
    """8 positions: an answer keeps its start, a dialogue its end."""
    tokenizer = without_pad()
    model = save_classifier(tmp_path / "c", GPT2Config(**{**GPT2, "n_positions": 8}, num_labels=2), tokenizer)
    for kind, texts, kept in (("answer", TEXTS, slice(0, 8)), ("dialogue", DIALOGUES, slice(-8, None))):
        capsys.readouterr()
        wanted = logits_alone(model, [tokenizer(text)["input_ids"][kept] for text in texts]).softmax(-1)[:, 1]
        assert scored(tmp_path / "c", tiny_base, reward_text=kind) == pytest.approx(wanted.tolist(), abs=1e-5)
        assert capsys.readouterr().err.count("longer than the 8 tokens") == 1


def test_an_exported_reward_model_is_read_alike_by_all_kinds(tiny_base: Path, tmp_path: Path) -> None:
    """Stage rm's folder, its export as `full`, its export as `classifier`: equal but for the head's constant."""
    whole = save_reward_model(tiny_base, tmp_path / "rm", FULL)
    assert main(["export", f"model_name_or_path={whole}", f"export_dir={tmp_path / 'out'}"]) == 0
    where = context(tiny_base, nn.Identity())
    constant = float(load_file(whole / VALUE_HEAD)["v_head.summary.bias"])
    wanted = [one - constant for one in rewards(whole, "full", where).score(ANSWERS).total]
    assert rewards(tmp_path / "out", "full", where).score(ANSWERS).total == pytest.approx(wanted, abs=2e-5)
    assert scored(tmp_path / "out", tiny_base) == pytest.approx(wanted, abs=2e-5)


def test_labels() -> None:
    """Unset: the positive one, wherever it stands, else the last."""
    def labelled(*names: str) -> Any:
        return BertConfig(num_labels=len(names), id2label=dict(enumerate(names)))

    assert label_index(labelled("Positive", "negative", "neutral"), None) == 0
    assert label_index(labelled("bad", "good"), None) == 1
    assert label_index(labelled("1", "0"), "1") == 0  # a name goes before an index
    two = labelled("bad", "good")
    told(lambda: label_index(two, "god"), 'did you mean "good"', "index from 0 to 1", "reward_label")
    told(lambda: label_index(two, "2"), 'no label "2"')


def test_models_that_are_no_classifier(tiny_base: Path, tmp_path: Path) -> None:
    told(lambda: scored(tiny_base, tiny_base), "is no sequence classifier")
    config = AutoConfig.from_pretrained(tiny_base)
    config.architectures = ["LlamaForSequenceClassification"]
    tiny_model("llama").save_pretrained(tmp_path / "headless")
    config.save_pretrained(tmp_path / "headless")
    told(lambda: scored(tmp_path / "headless", tiny_base), "it lacks score.weight", "trained as a sequence classifier")
