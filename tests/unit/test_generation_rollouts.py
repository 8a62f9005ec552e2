"""The rollout engine: equal to the batch generator token for token, to a packed forward, to itself alone."""

from contextlib import nullcontext

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import one_hot
from transformers import PreTrainedModel

from danlu.core.errors import CapabilityError
from danlu.core.stream import Example, flatten
from danlu.generation import rollouts
from danlu.generation.config import GenerationConfig
from danlu.generation.rollouts import RolloutGenerator, inner_model
from danlu.generation.sampling import invert_cdf
from danlu.generation.slot_proof import why_not_slots
from danlu.generation.transformers_backend import TransformersGenerator
from danlu.models import lean_body
from danlu.models.packed_lm import PackedLM
from danlu.models.stream_tensors import StreamTensors
from tests.tiny import FAMILIES, tiny_model, tiny_tokenizer

POLICY = GenerationConfig(do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=24)
GREEDY = GenerationConfig(do_sample=False, max_new_tokens=24)
SHAPED = GenerationConfig(
    do_sample=True, temperature=1.4, top_k=40, top_p=0.95, repetition_penalty=1.3, max_new_tokens=24)
PROMPTS = ["the cat sat", "天空 是 什么 颜色", "a", "what colour is the sky and the sun 你好 请 回答", "rain wet mat"]
STOPS = tuple(range(5, 30))  # a tenth of the vocabulary, so that answers end anywhere
SLOT_FAMILIES = sorted(set(FAMILIES) - {"bloom"})


def sharp_model(family: str, **overrides: object) -> PreTrainedModel:
    """A random model that has opinions: what it says next depends on all that it read.

    float64, but for the two whose stock attention takes its softmax in float32, where float64's padding is NaN.
    """
    single = family in ("gemma2", "bloom")
    model = tiny_model(family, seed=3, **overrides).to(torch.float32 if single else torch.float64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0 if parameter.dim() > 1 else 1.0)
    return model


def encoded() -> list[list[int]]:
    return [tiny_tokenizer().encode(text, add_special_tokens=False) for text in PROMPTS]


def draw(generator: object, settings: GenerationConfig, samples: int = 3) -> list[list[tuple[int, ...]]]:
    keys = [(7, row) for row in range(len(PROMPTS))]
    groups = generator.sample(encoded(), settings, keys=keys, samples=samples)
    return [[answer.ids for answer in group] for group in groups]


@pytest.mark.parametrize("family", SLOT_FAMILIES)
def test_slots_say_what_the_batch_generator_says(family: str) -> None:
    """Oracle: stock generate on padded batches with the same streams; 15 rows of mixed lengths through 4 slots."""
    model, tokenizer = sharp_model(family), tiny_tokenizer()
    slots = RolloutGenerator(model, tokenizer, STOPS, batch_size=4)
    batches = TransformersGenerator(model, tokenizer, STOPS, batch_size=15)
    for settings in (GREEDY, POLICY, SHAPED):
        expected = batches.sample(encoded(), settings, keys=[(7, row) for row in range(5)], samples=3)
        actual = slots.sample(encoded(), settings, keys=[(7, row) for row in range(5)], samples=3)
        assert [[(a.ids, a.text, a.finish_reason) for a in group] for group in actual] == [
            [(a.ids, a.text, a.finish_reason) for a in group] for group in expected]
        for ours, theirs in zip(sum(actual, []), sum(expected, []), strict=True):
            torch.testing.assert_close(torch.tensor(ours.logps), torch.tensor(theirs.logps), atol=1e-5, rtol=0)
    assert why_not_slots(model, encoded()[3]) == ""
    assert len({len(answer.ids) for group in actual for answer in group}) > 3


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "gemma2"])
def test_known_families_answer_from_their_parts(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every forward of the slots goes through the lean body, none through the model; other families as they are."""
    model, is_known = sharp_model(family), family not in ("gpt2", "gemma2")
    generator = RolloutGenerator(model, tiny_tokenizer(), STOPS, batch_size=4)
    expected = draw(generator, GREEDY, samples=1)
    monkeypatch.setattr(type(model), "forward", lambda *_, **__: pytest.fail("the whole model was called"))
    if is_known:
        assert draw(generator, GREEDY, samples=1) == expected
    else:
        with pytest.raises(pytest.fail.Exception, match="whole model"):
            draw(generator, GREEDY, samples=1)


def test_a_body_that_somebody_listens_to_is_called_as_a_whole() -> None:
    """A hook put on a layer, or on the model, after the first answers hears every later forward."""
    model = sharp_model("llama")
    generator = RolloutGenerator(model, tiny_tokenizer(), STOPS, batch_size=4)
    expected = draw(generator, GREEDY, samples=1)
    for module in (model.model.layers[1], model.model.layers[0].self_attn.q_proj, model):
        heard = []
        handle = module.register_forward_hook(lambda *_, heard=heard: heard.append(1))
        assert draw(generator, GREEDY, samples=1) == expected
        handle.remove()
        assert heard


def test_parts_that_compute_something_else_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong norm in the lean body is found out before the first answer, which comes from slots and the whole model.
    """
    model = sharp_model("llama")
    expected = draw(RolloutGenerator(model, tiny_tokenizer(), STOPS, batch_size=4), GREEDY, samples=1)
    notices: list[str] = []
    monkeypatch.setattr(rollouts, "notice", notices.append)
    monkeypatch.setattr(lean_body, "rms_norm", lambda hidden, weight, eps, dtype: (1.1 * hidden * weight).to(dtype))
    generator = RolloutGenerator(model, tiny_tokenizer(), STOPS, batch_size=4)
    monkeypatch.setattr(generator.plain, "sample", lambda *_, **__: pytest.fail("slots were not used"))
    assert draw(generator, GREEDY, samples=1) == expected
    assert notices == ["LlamaForCausalLM computes something else in its parts: slots decode through the whole model, "
                       "which is slower"]


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_float32_answers_follow_the_adapter(family: str) -> None:
    """Few rows multiplied the other way round, with biases and an adapter that is on, off, and on again."""
    bare = sharp_model(family, attention_bias=True).float()
    with torch.no_grad():
        for name, parameter in bare.named_parameters():
            if name.endswith("proj.bias"):
                parameter.normal_(generator=torch.Generator().manual_seed(5))
    torch.manual_seed(6)
    policy = get_peft_model(bare, LoraConfig(target_modules="all-linear", init_lora_weights=False)).eval()
    slots = RolloutGenerator(policy, tiny_tokenizer(), STOPS, batch_size=4)
    found = []
    for uses in (True, False, True):
        with nullcontext() if uses else policy.disable_adapter():
            batches = TransformersGenerator(policy.base_model.model, tiny_tokenizer(), STOPS, batch_size=5)
            answers, expected = (one.sample(encoded(), GREEDY, keys=[(1, row) for row in range(5)], samples=1)
                                 for one in (slots, batches))
        for (ours,), (theirs,) in zip(answers, expected, strict=True):
            assert ours.ids == theirs.ids
            torch.testing.assert_close(torch.tensor(ours.logps), torch.tensor(theirs.logps), atol=1e-4, rtol=0)
        found.append(answers[0][0].logps[0])
    assert slots._lean is not None and found[0] == found[2] != pytest.approx(found[1], abs=1e-3)


def test_layers_compiled_after_the_first_answers_run_compiled() -> None:
    """The whole model is called again, whose layers torch has compiled."""
    model, ran = sharp_model("llama"), []
    generator = RolloutGenerator(model, tiny_tokenizer(), STOPS, batch_size=4)
    expected = draw(generator, GREEDY, samples=1)
    for layer in model.model.layers:
        layer.compile(backend=lambda graph, _: lambda *args: (ran.append(1), graph(*args))[1])
    assert draw(generator, GREEDY, samples=1) == expected
    assert ran


@pytest.mark.parametrize("family", ["gemma2", "qwen3"])
def test_a_sliding_window_is_kept_beyond_its_width(family: str) -> None:
    """A window of 4: answers of 24 tokens equal those of stock generate, not those of a wide window.

    Qwen 3, in its first layer alone, decodes through the lean body.
    """
    more = {"use_sliding_window": True, "layer_types": ["sliding_attention", "full_attention"]}
    keys = more if family == "qwen3" else {}
    models = {window: sharp_model(family, sliding_window=window, **keys) for window in (4, 64)}
    answers = {window: draw(RolloutGenerator(model, tiny_tokenizer()), POLICY) for window, model in models.items()}
    assert answers[4] == draw(TransformersGenerator(models[4], tiny_tokenizer()), POLICY)
    assert answers[4] != answers[64]


def test_an_answer_does_not_depend_on_slots_neighbours_or_order() -> None:
    """The same key gives the same answer in 1, 3 or 40 slots, alone, in reverse order, and as one of fewer samples."""
    model, tokenizer = sharp_model("llama"), tiny_tokenizer()
    together = draw(RolloutGenerator(model, tokenizer, STOPS, batch_size=40), SHAPED)
    for batch_size in (1, 3):
        assert draw(RolloutGenerator(model, tokenizer, STOPS, batch_size=batch_size), SHAPED) == together
    assert draw(RolloutGenerator(model, tokenizer, STOPS), SHAPED, samples=2) == [group[:2] for group in together]
    generator = RolloutGenerator(model, tokenizer, STOPS, batch_size=2)
    for row, prompt in reversed(list(enumerate(encoded()))):
        alone = generator.sample([prompt], SHAPED, keys=[(7, row)], samples=3)
        assert [answer.ids for answer in alone[0]] == together[row]
    flipped = generator.sample(encoded()[::-1], SHAPED, keys=[(7, row) for row in reversed(range(5))], samples=3)
    assert [[a.ids for a in group] for group in flipped[::-1]] == together


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_logps_equal_a_packed_forward_over_prompts_and_answers(family: str) -> None:
    """log pi recorded while sampling = PackedLM's log-probs of the same tokens, float32; the policy stays wrapped."""
    policy = PackedLM(tiny_model(family, seed=3).train())
    generator = RolloutGenerator(policy, tiny_tokenizer(), STOPS, batch_size=4)
    first = generator.sample(encoded(), POLICY, keys=[(1, row) for row in range(5)], samples=2)
    answers = [group[number] for number in (0, 1) for group in first]
    examples = [
        Example(torch.tensor([*prompt, *answer.ids]).numpy(), torch.arange(len(prompt) + len(answer.ids)).numpy()
                >= len(prompt), index=index)
        for index, (prompt, answer) in enumerate(zip(encoded() * 2, answers, strict=True))]
    with torch.no_grad():
        packed = policy.eval()(StreamTensors.from_stream(flatten(examples)), output="logps")
    recorded = torch.tensor([logp for answer in answers for logp in answer.logps])
    torch.testing.assert_close(recorded, packed, atol=1e-5, rtol=0)
    assert policy.model.config._attn_implementation == "danlu_segments"
    assert generator.sample(encoded(), POLICY, keys=[(1, row) for row in range(5)], samples=2) == first
    assert policy.model.config._attn_implementation == "danlu_segments"


def test_generate_and_stream_agree_with_the_batch_generator() -> None:
    model, tokenizer = sharp_model("qwen3"), tiny_tokenizer()
    slots, batches = RolloutGenerator(model, tokenizer, STOPS), TransformersGenerator(model, tokenizer, STOPS)
    answers = slots.generate(encoded(), POLICY, seed=4)
    assert answers == batches.generate(encoded(), POLICY, seed=4)
    assert "".join(slots.stream(encoded()[0], POLICY, seed=4)) == answers[0].text
    assert slots.generate([], POLICY) == [] and slots.context == 256


def test_limits_follow_each_prompt_and_the_context() -> None:
    """With a context of 256 a prompt of 250 leaves 6 tokens while a short one gets its 24."""
    generator = RolloutGenerator(sharp_model("llama"), tiny_tokenizer())
    long, short = generator.sample([(encoded()[0] * 90)[:250], encoded()[0]], POLICY, keys=[(0,), (1,)])
    assert len(long[0].ids) == 6 and long[0].finish_reason == "length" and len(short[0].ids) == 24


def test_the_active_adapter_answers_and_the_model_is_left_as_it_was() -> None:
    """A LoRA adapter with weights changes the answers, switched off it does not; modes are those of before."""
    from peft import LoraConfig, get_peft_model

    tokenizer, base = tiny_tokenizer(), sharp_model("llama")
    bare = draw(RolloutGenerator(base, tokenizer), POLICY)
    model = get_peft_model(base, LoraConfig(target_modules=["q_proj", "v_proj"], lora_dropout=0.5)).double().train()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0))
    base.lm_head.eval()
    modes = [module.training for module in model.modules()]
    generator = RolloutGenerator(model, tokenizer)
    adapted = draw(generator, POLICY)
    assert adapted != bare and adapted == draw(generator, POLICY)
    assert adapted == draw(TransformersGenerator(model, tokenizer), POLICY)
    with model.disable_adapter():
        assert draw(generator, POLICY) == bare
    assert [module.training for module in model.modules()] == modes and inner_model(model) is base


@pytest.mark.parametrize(("family", "overrides", "reason"), [
    ("bloom", {}, "brings its own attention"),
    ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "longest row"),
])
def test_a_model_that_slots_do_not_serve_is_run_plainly_and_says_so(
    family: str, overrides: dict[str, object], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model, tokenizer = sharp_model(family, **overrides), tiny_tokenizer()
    generator = RolloutGenerator(model, tokenizer)
    assert draw(generator, POLICY) == draw(TransformersGenerator(model, tokenizer), POLICY) == draw(generator, POLICY)
    said = capsys.readouterr().err
    assert reason in said and said.count("answers come from plain generation") == 1


def test_beams_go_through_generate_and_give_no_logps() -> None:
    model, beams = sharp_model("llama"), GREEDY.model_copy(update={"num_beams": 3})
    generator = RolloutGenerator(model, tiny_tokenizer())
    plain = TransformersGenerator(model, tiny_tokenizer())
    assert generator.generate(encoded()[:2], beams) == plain.generate(encoded()[:2], beams)
    with pytest.raises(CapabilityError, match="num_beams 1"):
        generator.sample(encoded()[:2], beams, keys=[(0,), (1,)])


def test_broken_logits_stop_the_run() -> None:
    model = tiny_model("llama")
    generator = RolloutGenerator(model, tiny_tokenizer())
    draw(generator, POLICY)
    with torch.no_grad():
        model.lm_head.weight.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="logits are broken"):
        draw(generator, POLICY)


def test_bfloat16_and_autocast_answer_and_record_what_they_drew() -> None:
    """Under autocast the recorded log-probs stay within bf16 rounding (2^-8 of a logit) of a forward under autocast."""
    model, prompt = tiny_model("llama", seed=3), encoded()[3]
    for dtype in (torch.bfloat16, torch.float32):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
            network = model.to(dtype)
            answer = RolloutGenerator(network, tiny_tokenizer()).sample([prompt], POLICY, keys=[(3,)])[0][0]
            with torch.no_grad():
                logits = network(torch.tensor([prompt + list(answer.ids)])).logits[0, len(prompt) - 1 : -1]
        expected = logits.float().log_softmax(-1).gather(1, torch.tensor(answer.ids)[:, None]).squeeze(1)
        torch.testing.assert_close(torch.tensor(answer.logps), expected, atol=0.02, rtol=0)


@pytest.mark.parametrize("vocab", [3, 128, 320])
def test_inverse_cdf_by_blocks_equals_the_running_sum(vocab: int) -> None:
    """Oracle: min { v : cdf(v) > u } over the whole vocabulary; half the tokens have probability 0."""
    torch.manual_seed(0)
    probabilities = (torch.rand(200, vocab, dtype=torch.float64) - 0.5).clamp(min=0)
    probabilities[:, vocab // 2] += 0.1
    uniforms = torch.cat([torch.rand(198, dtype=torch.float64), torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)])
    cdf = (probabilities / probabilities.sum(-1, keepdim=True)).cumsum(-1)
    expected = (cdf > uniforms[:, None]).double().argmax(-1)
    chosen = invert_cdf(probabilities, uniforms)
    assert torch.equal(chosen[:-1], expected[:-1])
    assert (probabilities.gather(1, chosen[:, None]) > 0).all()


def test_draws_follow_the_probabilities() -> None:
    """Evenly spread u give token counts within 1 of n p: (1/2, 0, 1/3, 1/6) over 6,000 draws."""
    p = torch.tensor([1 / 2, 0.0, 1 / 3, 1 / 6]).expand(6000, 4)
    counts = one_hot(invert_cdf(p, (torch.arange(6000) + 0.5) / 6000), 4).sum(0)
    assert (counts - torch.tensor([3000, 0, 2000, 1000])).abs().max() <= 1
