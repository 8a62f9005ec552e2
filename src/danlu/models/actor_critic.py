"""The policy and its value network as one module: two adapters on one base, or two whole models.

    logps_R    log pi(a_t | s_t) of every supervised row
    values_R   V(s_t), a float32 linear head on the value network's hidden state at the same row

One module, so that one optimiser, one distributed wrapper and one checkpoint hold both.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from danlu.core.console import notice
from danlu.core.errors import CapabilityError, UserError
from danlu.models.adapter_switch import add_second_adapter, check_same_shapes, copy_adapter_weights, using_adapter
from danlu.models.packed_lm import PackedLM
from danlu.models.proof import base_of, body_of
from danlu.models.quiet import quiet_loading
from danlu.models.reward_lm import load_value_head, new_value_head, read_value_head, save_value_head
from danlu.models.stream_tensors import StreamTensors

VALUE = "value"
ADAPTER = "value_network"  # no layer's name: transformers calls some projections `value`
WEIGHTS = "value.safetensors"
Part = Literal["logps", "entropy", "values"]


class ActorCritic(nn.Module):
    """`lm` is the policy. With adapters the value network is a second adapter on its base, else a model of its own."""

    def __init__(self, lm: PackedLM) -> None:
        super().__init__()
        base = base_of(lm.model)
        if body_of(base) in (base, None):
            raise CapabilityError(f"{type(base).__name__} does not part body and head: no value head fits it",
                                  where="model_name_or_path", fix="take another model for stage ppo")
        self.lm = lm
        self.critic: PackedLM | None = None
        if isinstance(lm.model, PeftModel):
            add_second_adapter(lm.model, ADAPTER)
        else:
            self.critic = PackedLM(copy.deepcopy(lm.model))
        self.value_head = new_value_head(base)
        nn.init.zeros_(self.value_head.weight)
        self._freeze_what_no_value_reads()

    def forward(self, stream: StreamTensors, *, wanted: Sequence[Part]) -> tuple[Tensor, ...]:
        """Return the wanted numbers of each supervised row in their order, each (R,) float32."""
        found: dict[Part, Tensor] = {}
        if "entropy" in wanted:
            found["logps"], found["entropy"] = self.lm(stream, output="entropy").unbind(0)
        elif "logps" in wanted:
            found["logps"] = self.lm(stream, output="logps")
        if "values" in wanted:
            found["values"] = self._values(stream)
        return tuple(found[part] for part in wanted)

    def _values(self, stream: StreamTensors) -> Tensor:
        if self.critic is not None:
            hidden_RH = self.critic(stream, output="hidden")
        else:
            with using_adapter(self.lm.model, ADAPTER):
                hidden_RH = self.lm(stream, output="hidden")
        with torch.autocast(hidden_RH.device.type, enabled=False):
            values: Tensor = self.value_head(hidden_RH.float())
        return values.squeeze(-1)

    def begin_value_at(self, source: Path) -> None:
        """Give the value network the weights of a trained reward model, all of them or none; say why none."""
        try:
            with torch.random.fork_rng(devices=[]):
                head = read_value_head(base_of(self.lm.model), source)
            if self.critic is None:
                copy_adapter_weights(self.lm.model, str(source), ADAPTER)
            else:
                _copy_model_weights(base_of(self.critic.model), source)
        except (RuntimeError, ValueError, KeyError, OSError, SafetensorError, UserError) as error:
            notice(f"the value network starts as the policy, not as the reward model: {str(error).splitlines()[0]}")
            return
        self.value_head.load_state_dict(head.state_dict())

    def value_state(self) -> dict[str, Tensor]:
        """Return the weights of the value network that may train, without its head."""
        if self.critic is not None:
            return {name: value for name, value in self.critic.model.named_parameters() if value.requires_grad}
        return {name: value for name, value in self.lm.model.named_parameters() if f".{ADAPTER}." in name}

    def save_value(self, folder: Path) -> None:
        """Write the value network bit for bit: WEIGHTS and the head. Raises SafetensorError when the disk is full."""
        state = {name: value.detach().cpu().contiguous().clone() for name, value in self.value_state().items()}
        save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
        save_value_head(self, folder)

    def load_value(self, folder: Path) -> None:
        """Read what `save_value` wrote. Raises UserError when it is absent or of another shape."""
        try:
            saved, own = load_file(folder / WEIGHTS), self.value_state()
            if odd := sorted(saved.keys() ^ own.keys()):
                raise KeyError(f"{odd[0]} is in one of them only")
            with torch.no_grad():
                for name, value in own.items():
                    value.copy_(saved[name])
        except (OSError, KeyError, RuntimeError, SafetensorError) as error:
            raise UserError(
                f"no value network that fits the model: {str(error).strip().splitlines()[0]}",
                where=str(folder / WEIGHTS), fix="resume with the model and method keys of that run") from error
        load_value_head(self, folder)

    def _freeze_what_no_value_reads(self) -> None:
        """Keep the value network's own vocabulary head out of training: no value depends on it."""
        model = self.lm.model if self.critic is None else self.critic.model
        base = base_of(model)
        head, table = base.get_output_embeddings(), base.get_input_embeddings()
        tied = {id(parameter) for parameter in table.parameters()}
        for name, parameter in head.named_parameters() if head is not None else ():
            if id(parameter) not in tied and (self.critic is not None or f".{ADAPTER}." in f".{name}"):
                parameter.requires_grad_(False)


def _copy_model_weights(model: PreTrainedModel, source: Path) -> None:
    """Fill the model with the weights saved at `source`. Raises ValueError, and copies none, unless all fit."""
    with quiet_loading():
        saved, info = type(model).from_pretrained(source, dtype=torch.float32, output_loading_info=True)
    if missing := sorted(info["missing_keys"]):
        raise ValueError(f"{source} holds no {missing[0]}")
    state = saved.state_dict()
    check_same_shapes(state, model.state_dict())
    model.load_state_dict(state)
