"""torch.compile, decoder layer by decoder layer: one compilation serves them all, whatever the lengths of a batch.

What lies between the layers, and attention itself, follows the segments of each batch in Python and stays as it is.
"""

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from danlu.core.console import notice


def compile_layers(policy: nn.Module, *, backend: str | None, mode: str | None) -> int:
    """Compile each decoder layer for any number of tokens; return how many layers there are.

    A layer that is checkpointed is compiled in its parts: torch does not compile the checkpoint around them.
    backend, mode  as torch.compile takes them; None for its own
    """
    layers = [module for module in policy.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        notice("the model's layers are none that transformers knows: torch_compile compiles the model as a whole")
    parts = [part for layer in layers for part in (layer.children() if layer.gradient_checkpointing else [layer])]
    for module in parts or [policy]:
        module.compile(backend=backend or "inductor", mode=mode, dynamic=True)
    return len(layers)
