"""Whether a given model may answer in slots, decided by trying.

A dozen tokens in three prompts and two more tokens each go through the slots, and through the model alone, one
sequence at a time. Slots are used only if all layers attended through them and the logits agree; then the same is tried
with the layers run in their parts.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from danlu.generation.slots import SlotModel, serving
from danlu.models.attention import accepts
from danlu.models.lean_body import LeanBody
from danlu.models.proof import FIT_FOR_SEGMENTS, PROBE_LENGTHS, agree, body_of, evaluating

NEW_TOKENS = 2
NEIGHBOUR_BOUND = ("dynamic", "longrope")  # rotary frequencies that follow the longest row of the batch


def lean_in_slots(base: PreTrainedModel, tokens: Sequence[int]) -> tuple[LeanBody | None, str]:
    """Return the body run in its parts if slots then give the model's own logits; or why not.

    Families that have none, and devices where it saves nothing, need no reason. For models that slots serve.
    """
    lean = LeanBody.of(base, body_of(base))
    if lean is None or not lean.is_lean(base):
        return None, ""
    is_wrong = bool(why_not_slots(base, tokens, lean))
    return (None, f"{type(base).__name__} computes something else in its parts") if is_wrong else (lean, "")


def why_not_slots(base: PreTrainedModel, tokens: Sequence[int], lean: LeanBody | None = None) -> str:
    """Return why slots do not serve this model; empty when they do. `tokens` are any ids it knows."""
    name, text = type(base).__name__, base.config.get_text_config()
    if unfit := sorted(set(getattr(text, "layer_types", None) or ()) - FIT_FOR_SEGMENTS):
        return f"{name} has layers of type {', '.join(unfit)}"
    if any(kind in str(getattr(text, "rope_parameters", None)) for kind in NEIGHBOUR_BOUND):
        return f"{name} has positions that depend on the longest row of a batch"
    if not accepts(base):
        return f"{name} brings its own attention"
    probes = _probes(tokens)
    with evaluating(base), torch.no_grad():
        expected = torch.cat([_alone(base, probe) for probe in probes])
    try:
        with serving(base):
            actual, windows = _through_slots(base, probes, lean)
    except (AttributeError, TypeError, IndexError, NotImplementedError, RuntimeError) as error:
        return f"{name} does not run in slots ({type(error).__name__})"
    if objection := _miscounted(base, windows):
        return f"{name} {objection}"
    return "" if agree(base, actual, expected) else f"{name} computes something else in slots"


def _probes(tokens: Sequence[int]) -> list[list[int]]:
    """Return three sequences, each a probe length and the new tokens long."""
    lengths = [length + NEW_TOKENS for length in PROBE_LENGTHS]
    supply = (list(tokens) * sum(lengths))[: sum(lengths)]
    return [supply[sum(lengths[:n]) : sum(lengths[: n + 1])] for n in range(len(lengths))]


def _alone(base: PreTrainedModel, probe: list[int]) -> Tensor:
    """Return the logits after the prompt and after each new token, (1 + NEW_TOKENS, V)."""
    ids = torch.tensor([probe], device=base.get_input_embeddings().weight.device)
    logits: Tensor = base(input_ids=ids, use_cache=False).logits[0]
    return logits[-1 - NEW_TOKENS :]


def _through_slots(
    base: PreTrainedModel, probes: list[list[int]], lean: LeanBody | None
) -> tuple[Tensor, tuple[int | None, ...]]:
    """Return the same logits from slots, prompts seated in reverse order, and the windows that layers reported."""
    slots = SlotModel(base, len(probes), max(map(len, probes)), lean=lean)
    order = list(reversed(range(len(probes))))
    read = slots.read([probe[:-NEW_TOKENS] for probe in probes])
    slots.seat(read, order, range(len(probes)))
    logits = [read.logits[order]]
    for new in range(-NEW_TOKENS, 0):
        logits.append(slots.step([probes[at][new] for at in order], [len(probes[at]) + new for at in order]))
    by_row = torch.stack(logits, 1)
    return by_row[order].flatten(0, 1), read.windows


def _miscounted(base: PreTrainedModel, windows: Sequence[int | None]) -> str:
    """Return what is wrong with the attention calls that were seen; empty when nothing is."""
    text = base.config.get_text_config()
    if len(windows) != text.num_hidden_layers:
        return f"has {text.num_hidden_layers} layers, {len(windows)} of them attend in slots"
    declared = (getattr(text, "layer_types", None) or ()).count("sliding_attention")
    windowed = sum(window is not None for window in windows)
    if windowed < declared or (getattr(text, "sliding_window", None) and not windowed and not text.layer_types):
        return "keeps its sliding window in the mask alone"
    return ""
