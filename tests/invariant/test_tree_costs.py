"""What a step over shared prompts may cost: tokens equal the tree, floating-point operations the formula."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from danlu.core.stream import Example
from danlu.models.packed_lm import PackedLM
from danlu.models.reward_lm import RewardLM
from danlu.models.stream_tensors import StreamTensors
from danlu.stages.base import Models, Stage
from danlu.stages.dpo import DPO, DPOConfig
from danlu.stages.kto import KTO, KTOConfig
from danlu.stages.rm import RM, RMConfig
from tests.parity.test_tree_families import Width
from tests.tiny import tiny_model

aten = torch.ops.aten
SHAPE = {"hidden_size": 128, "intermediate_size": 344, "num_key_value_heads": 4, "tie_word_embeddings": False}


def group(prompt: int, *answers: int, facts: tuple[float, ...] = ()) -> Example:
    """Return one example of random answers behind a random prompt."""
    rng = np.random.default_rng(prompt)
    shared = rng.integers(3, 300, prompt)
    ids = [np.concatenate([shared, rng.integers(3, 300, n)]) for n in answers]
    trained = np.concatenate([np.arange(prompt + n) >= prompt for n in answers])
    return Example(np.concatenate(ids), trained, lengths=tuple(map(len, ids)), facts=facts)


def attention_flops(query: Any, key: Any, value: Any, dropout: float = 0.0, is_causal: bool = False,
                    *args: Any, attn_mask: Any = None, out_val: Any = None, **kwargs: Any) -> int:
    """Two products of queries x keys x width; a causal call does half of them, a masked one all."""
    batch, heads, length, width = query
    pairs = length * (length + 1) // 2 if is_causal else length * key[2]
    return 4 * batch * heads * pairs * width


def attention_backward_flops(gradient: Any, query: Any, key: Any, value: Any, out: Any, lse: Any, dropout: float,
                             is_causal: bool, **kwargs: Any) -> int:
    """Twice the forward, as for every product; the scores computed anew are the kernel's own affair."""
    return 2 * attention_flops(query, key, value, is_causal=is_causal)


COUNTED = {
    aten._scaled_dot_product_flash_attention_for_cpu: attention_flops,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward_flops,
}


def dpo_step(stage: DPO, examples: list[Example]) -> None:
    (batch,) = stage.prepare(examples)
    stage.loss(stage.collate(batch)).total.backward()


def test_a_dpo_step_costs_what_the_formula_says() -> None:
    """3 passes of the policy and 1 of the reference over P + Rc + Rr tokens and Rc + Rr rows of the head.

    Fb = 2 Nb + A a token, A = 2 L (H hd) s with s the mean context of a full causal square; Fh = 2 Nh a row.
    The last layer's MLP serves the rows alone. Prompts as long as answers: at most 1.05 of it, for masks that are
    rectangles and for logits that are made again where a loss knows the weights of its rows late. Pairs apart would
    cost about 1.3.
    """
    policy, frozen = (PackedLM(tiny_model(**SHAPE)) for _ in "ab")
    frozen.model.requires_grad_(False)
    sizes = ((64, 64, 64), (96, 80, 112), (40, 48, 32))
    examples = [group(*size) for size in sizes]
    stage = DPO(DPOConfig(), Models(policy, reference=frozen))
    dpo_step(stage, examples)
    with FlopCounterMode(display=False, custom_mapping=COUNTED) as counter:
        dpo_step(stage, examples)
    layers = policy.model.model.layers
    body = sum(p.numel() for p in layers.parameters() if p.ndim == 2)
    mlp, head = sum(p.numel() for p in layers[-1].mlp.parameters()), policy.model.lm_head.weight.numel()
    expected = 0.0
    for prompt, chosen, rejected in sizes:
        tokens, rows = prompt + chosen + rejected, chosen + rejected
        contexts = prompt * prompt + chosen * (2 * prompt + chosen) + rejected * (2 * prompt + rejected)
        forward = 2 * body * tokens - 2 * mlp * (tokens - rows) + 2 * 2 * 128 * contexts + 2 * head * rows
        expected += (3 + 1) * forward
    assert expected <= counter.get_total_flops() <= 1.05 * expected


def watched(stage: Stage, examples: list[Example], width: Width) -> list[int]:
    """Return the tokens that the model's body was given in the loss of all minibatches."""
    seen = []
    for batch in stage.prepare(examples):
        stage.loss(stage.collate(batch))
        seen.append(width.tokens)
    return seen


def test_tokens_of_a_pair_equal_its_tree() -> None:
    """Prompt 20, answers 7 and 5: 32 tokens, where two rows side by side hold 52 and a padded batch 54."""
    examples = [group(20, 7, 5), group(20, 7, 5)]
    policy = PackedLM(tiny_model())
    width = Width(policy.model)
    stage = DPO(DPOConfig(), Models(policy, reference=PackedLM(tiny_model())))
    assert watched(stage, examples, width) == [64]
    assert stage.collate(examples).num_tokens == 104  # what the data holds is what is reported as seen


def test_tokens_of_ranked_answers_equal_their_tree() -> None:
    """Prompt 30, answers 4, 6, 8, 10: 58 tokens, where four rows hold 148."""
    scorer = RewardLM(PackedLM(tiny_model()))
    width = Width(scorer.lm.model)
    examples = [group(30, 4, 6, 8, 10, facts=(0.0, 1.0))]
    assert watched(RM(RMConfig(), Models(scorer)), examples, width) == [58]


def test_the_reference_scores_a_mismatched_answer_behind_the_same_prompt() -> None:
    """Prompt 20, own answer 7, another's 5: the reference is given 32 tokens for both."""
    reference = PackedLM(tiny_model())
    width = Width(reference.model)
    stage = KTO(KTOConfig(), Models(PackedLM(tiny_model()), reference=reference))
    watched(stage, [group(20, 7, 5, facts=(1.0,))], width)
    assert width.tokens == 32


@pytest.mark.parametrize("answers", [2, 8])
def test_samples_of_one_prompt_are_one_tree(answers: int) -> None:
    """n samples cost P + n R tokens, and per-token numbers stay with their rows."""
    one = group(24, *([6] * answers))
    rng = np.random.default_rng(0)
    tracks = rng.random((2, len(one.input_ids))).astype(np.float32)
    stream = StreamTensors.of([Example(one.input_ids, one.trained, lengths=one.lengths, tracks=tracks)])
    assert stream.tree is not None and stream.tree.num_tokens == 24 + 6 * answers
    assert torch.equal(stream.tracks, torch.as_tensor(tracks[:, one.trained]))
