"""A causal LM that scores whole answers: its body, and a float32 linear value head on the last token of each segment.

The vocabulary head is never computed. `value_head.safetensors` names its tensors as trl's value-head models do.
"""

from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from danlu.core.errors import CapabilityError, UserError
from danlu.models.packed_lm import PackedLM
from danlu.models.proof import base_of, body_of
from danlu.models.stream_tensors import StreamTensors

VALUE_HEAD = "value_head.safetensors"
NAMES = {"weight": "v_head.summary.weight", "bias": "v_head.summary.bias"}


class RewardLM(nn.Module):
    """One scalar per segment of a stream: r = w . h(last token) + b."""

    def __init__(self, lm: PackedLM) -> None:
        super().__init__()
        base = base_of(lm.model)
        if body_of(base) in (base, None):
            raise CapabilityError(f"{type(base).__name__} does not part body and head: no value head fits it",
                                  where="model_name_or_path", fix="take another model for stage rm")
        self.lm = lm
        self.value_head = new_value_head(base)
        _freeze_vocabulary_head(lm.model)

    def forward(self, stream: StreamTensors) -> Tensor:
        """Return the reward of each segment, (S,) float32."""
        ends = stream.cu_seqlens[1:].long() - 1
        hidden_SH = self.lm(replace(stream, loss_rows=ends), output="hidden")
        with torch.autocast(hidden_SH.device.type, enabled=False):
            rewards: Tensor = self.value_head(hidden_SH.float())
        return rewards.squeeze(-1)


class WithValueHead(Protocol):
    """A network that ends in one number: RewardLM, or a policy with a value network."""

    value_head: nn.Linear


def new_value_head(base: PreTrainedModel) -> nn.Linear:
    """Return a float32 head, weights drawn from N(0, 1 / (d + 1)) (Stiennon et al. 2020, appendix B)."""
    size = int(base.config.get_text_config().hidden_size)
    head = nn.Linear(size, 1, dtype=torch.float32)
    nn.init.normal_(head.weight, std=(size + 1) ** -0.5)
    nn.init.zeros_(head.bias)
    return head


def save_value_head(model: WithValueHead, folder: Path) -> None:
    """Write the head beside the model or adapter. Raises SafetensorError when the disk is full."""
    state = model.value_head.state_dict()
    save_file({name: state[own].detach().cpu().contiguous().clone() for own, name in NAMES.items()},
              folder / VALUE_HEAD, metadata={"format": "pt"})


def load_value_head(model: WithValueHead, folder: Path) -> None:
    """Read the head that `save_value_head` wrote. Raises UserError when it is absent or of another size."""
    _read_into(model.value_head, folder)


def read_value_head(base: PreTrainedModel, folder: Path) -> nn.Linear:
    """Return the head that `save_value_head` wrote for this model. Errors as of `load_value_head`."""
    head = new_value_head(base)
    _read_into(head, folder)
    return head


def _read_into(head: nn.Linear, folder: Path) -> None:
    try:
        state = load_file(folder / VALUE_HEAD)
        head.load_state_dict({own: state[name] for own, name in NAMES.items()})
    except (OSError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(f"no value head that fits the model: {str(error).strip().splitlines()[0]}",
                        where=str(folder / VALUE_HEAD), fix="name the folder that stage rm wrote") from error


def _freeze_vocabulary_head(model: nn.Module) -> None:
    """Keep an untied vocabulary head out of training: no reward depends on it."""
    base = base_of(model)
    head, table = base.get_output_embeddings(), base.get_input_embeddings()
    tied = {id(parameter) for parameter in table.parameters()}
    for parameter in head.parameters() if head is not None else ():
        if id(parameter) not in tied:
            parameter.requires_grad_(False)
