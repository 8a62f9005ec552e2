"""The transformers backend: equal to plain generate, to itself one by one, and streamed text equal to the whole."""

import pytest
import torch

from danlu.core.errors import UserError
from danlu.generation.config import GenerationConfig
from danlu.generation.transformers_backend import TransformersGenerator, context_length
from tests.tiny import FAMILIES, tiny_model, tiny_tokenizer

GREEDY = GenerationConfig(do_sample=False, max_new_tokens=12)
SAMPLE = GenerationConfig(do_sample=True, temperature=1.3, top_p=0.95, top_k=0, max_new_tokens=12)
PROMPTS = ["the cat sat", "天空 是 什么 颜色", "a", "what colour is the sky and the sun 你好 请 回答", "rain wet mat"]


def sharp_model(family: str):
    """A random model whose head is scaled up, so that no two logits are so close that summation order decides."""
    model = tiny_model(family, seed=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0 if parameter.dim() > 1 else 1.0)
    return model


def encoded() -> list[list[int]]:
    return [tiny_tokenizer().encode(text, add_special_tokens=False) for text in PROMPTS]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_greedy_batch_equals_plain_generate_one_by_one(family: str) -> None:
    """Oracle: transformers' own generate on each prompt alone, without padding."""
    model, tokenizer = sharp_model(family), tiny_tokenizer()
    ours = TransformersGenerator(model, tokenizer, batch_size=4).generate(encoded(), GREEDY)
    for prompt, answer in zip(encoded(), ours, strict=True):
        plain = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=12, pad_token_id=0)
        assert list(answer.ids) == plain[0, len(prompt):].tolist()


@pytest.mark.parametrize("penalty", [1.0, 1.4])
def test_sampled_row_does_not_depend_on_its_neighbours(penalty: float) -> None:
    """Row i of a batch, drawn under (seed, i), equals the same row drawn in batches of one."""
    model, tokenizer = sharp_model("llama"), tiny_tokenizer()
    settings = SAMPLE.model_copy(update={"repetition_penalty": penalty})
    together = TransformersGenerator(model, tokenizer, batch_size=8).generate(encoded(), settings, seed=5)
    alone = TransformersGenerator(model, tokenizer, batch_size=1).generate(encoded(), settings, seed=5)
    other = TransformersGenerator(model, tokenizer, batch_size=8).generate(encoded(), settings, seed=6)
    assert [a.ids for a in together] == [a.ids for a in alone]
    assert [a.ids for a in together] != [a.ids for a in other]


def test_repetition_penalty_equals_transformers() -> None:
    """Oracle: transformers' RepetitionPenaltyLogitsProcessor on an unpadded prompt, greedy."""
    model, prompt = sharp_model("llama"), encoded()[3]
    settings = GREEDY.model_copy(update={"repetition_penalty": 1.7})
    ours = TransformersGenerator(model, tiny_tokenizer()).generate([prompt], settings)[0]
    plain = model.generate(
        torch.tensor([prompt]), do_sample=False, max_new_tokens=12, pad_token_id=0, repetition_penalty=1.7)
    assert list(ours.ids) == plain[0, len(prompt):].tolist()


def test_beam_search_equals_transformers() -> None:
    model, prompt = sharp_model("llama"), encoded()[0]
    ours = TransformersGenerator(model, tiny_tokenizer()).generate([prompt], GREEDY.model_copy(update={"num_beams": 3}))
    plain = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=12, pad_token_id=0, num_beams=3)
    assert list(ours[0].ids) == plain[0, len(prompt):].tolist()


def test_logps_equal_a_forward_over_the_whole_sequence() -> None:
    """log pi(y_t) recorded while sampling = log-softmax of one forward over prompt and answer."""
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    answers = TransformersGenerator(model, tokenizer, with_logps=True).generate(encoded(), SAMPLE, seed=1)
    for prompt, answer in zip(encoded(), answers, strict=True):
        with torch.no_grad():
            logits_TV = model(torch.tensor([prompt + list(answer.ids)])).logits[0, len(prompt) - 1 : -1]
        expected = logits_TV.log_softmax(-1).gather(1, torch.tensor(answer.ids)[:, None]).squeeze(1)
        torch.testing.assert_close(torch.tensor(answer.logps), expected, atol=1e-5, rtol=0)


def test_sample_draws_answer_j_of_prompt_i_from_the_stream_of_its_key_and_j() -> None:
    """Row i of `generate` draws from (seed, i), so sample j of the key (5,) is row j of five equal prompts."""
    generator, prompts = TransformersGenerator(tiny_model("llama"), tiny_tokenizer(), batch_size=4), encoded()[:2]
    groups = generator.sample(prompts, SAMPLE, keys=[(5,), (6,)], samples=5)
    for prompt, seed, group in zip(prompts, (5, 6), groups, strict=True):
        assert [a.ids for a in group] == [a.ids for a in generator.generate([prompt] * 5, SAMPLE, seed=seed)]
        assert all(a.logps is not None and len(a.logps) == len(a.ids) for a in group)
    assert len({a.ids for group in groups for a in group}) > 5
    alone = generator.sample(prompts[1:], SAMPLE, keys=[(6,)], samples=2)
    assert [a.ids for a in alone[0]] == [a.ids for a in groups[1][:2]]


@pytest.mark.parametrize("settings", [GREEDY, SAMPLE])
@pytest.mark.parametrize("prompt", [0, 1, 3])
def test_streamed_pieces_join_to_the_text_of_generate(settings: GenerationConfig, prompt: int) -> None:
    generator = TransformersGenerator(sharp_model("qwen3"), tiny_tokenizer())
    pieces = list(generator.stream(encoded()[prompt], settings, seed=2))
    assert "".join(pieces) == generator.generate([encoded()[prompt]], settings, seed=2)[0].text
    assert len(pieces) > 1


def test_stop_token_ends_the_answer_and_leaves_the_text() -> None:
    """The third greedy token is declared a stop token: two tokens of text remain, the third closes ids."""
    model, tokenizer, prompt = sharp_model("llama"), tiny_tokenizer(), encoded()[0]
    free = TransformersGenerator(model, tokenizer).generate([prompt], GREEDY)[0]
    assert free.finish_reason == "length" and len(free.ids) == 12
    third = free.ids[2]
    assert third not in free.ids[:2]
    generator = TransformersGenerator(model, tokenizer, [third])
    stopped = generator.generate([prompt], GREEDY)[0]
    assert stopped.ids == free.ids[:3] and stopped.finish_reason == "stop"
    assert stopped.text == tokenizer.decode(free.ids[:2]) == "".join(generator.stream(prompt, GREEDY))


def test_limits_count_prompt_or_answer_and_stay_inside_the_context() -> None:
    """max_length 20 leaves 20 - len(prompt); with a context of 256 a prompt of 250 leaves 6."""
    generator, prompt = TransformersGenerator(sharp_model("llama"), tiny_tokenizer()), encoded()[0]
    by_length = generator.generate([prompt], GREEDY.model_copy(update={"max_new_tokens": 0, "max_length": 20}))[0]
    assert len(by_length.ids) == 20 - len(prompt)
    assert len(generator.generate([(prompt * 90)[:250]], GREEDY)[0].ids) == 6
    with pytest.raises(UserError, match="256 tokens; the model's context is 256"):
        generator.generate([(prompt * 90)[:256]], GREEDY)
    with pytest.raises(UserError, match="no room to answer"):
        generator.generate([prompt], GREEDY.model_copy(update={"max_new_tokens": 0, "max_length": 2}))


def test_generation_leaves_mode_and_attention_as_they_were() -> None:
    model = tiny_model("llama").train()
    model.set_attn_implementation("eager")
    TransformersGenerator(model, tiny_tokenizer()).generate(encoded()[:1], GREEDY)
    assert model.training and model.config._attn_implementation == "eager"


def test_the_runs_settings_count_and_not_those_recommended_with_the_model() -> None:
    """A checkpoint that recommends sampling with a penalty answers greedily when told so, and keeps its words."""
    model, prompt = sharp_model("llama"), encoded()[0]
    plain = TransformersGenerator(model, tiny_tokenizer()).generate([prompt], GREEDY)
    model.generation_config.update(do_sample=True, temperature=0.6, top_k=20, repetition_penalty=9.0, max_length=5)
    assert TransformersGenerator(model, tiny_tokenizer()).generate([prompt], GREEDY) == plain
    assert model.generation_config.repetition_penalty == 9.0


def test_closing_a_stream_stops_the_computation() -> None:
    """After close() the worker has left: a second stream on the same model gives the full answer again."""
    generator, prompt = TransformersGenerator(sharp_model("llama"), tiny_tokenizer()), encoded()[0]
    long = GREEDY.model_copy(update={"max_new_tokens": 200})
    first = generator.stream(prompt, long)
    next(first)
    first.close()
    assert "".join(generator.stream(prompt, GREEDY)) == generator.generate([prompt], GREEDY)[0].text


def test_errors_of_the_worker_reach_the_reader() -> None:
    generator = TransformersGenerator(sharp_model("llama"), tiny_tokenizer())
    with pytest.raises(IndexError):
        list(generator.stream([10**6], GREEDY))


def test_context_length_of_families() -> None:
    assert context_length(tiny_model("gpt2").config) == context_length(tiny_model("llama").config) == 256
    assert context_length(tiny_model("bloom").config) is None
