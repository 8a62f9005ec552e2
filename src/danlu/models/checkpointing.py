"""Gradient checkpointing: keep each layer's input only and compute the rest again in backward (Chen et al. 2016)."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from peft import PeftModel
from transformers import PreTrainedModel

from danlu.core.console import notice
from danlu.models.adapter_switch import recomputation_contexts


def set_checkpointing(model: PreTrainedModel | PeftModel, enabled: bool) -> bool:
    """Switch gradient checkpointing on or off; return whether it is on.

    Always the non-reentrant form: it needs no gradient on the embeddings, so a frozen base stays frozen below its
    lowest adapter, and it works under DDP and FSDP2. `use_reentrant_gc` therefore has no effect.
    """
    base = model if isinstance(model, PreTrainedModel) else model.get_base_model()
    with _no_rename_warnings():
        if not enabled:
            if base.is_gradient_checkpointing:
                base.gradient_checkpointing_disable()
            return False
        if not base.supports_gradient_checkpointing:
            notice(f"{type(base).__name__} has no gradient checkpointing; all activations are kept")
            return False
        base.gradient_checkpointing_enable({
            "use_reentrant": False, "preserve_rng_state": True, "context_fn": recomputation_contexts(model)})
    return True


@contextmanager
def _no_rename_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield
