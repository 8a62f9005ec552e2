"""What a stage is told of where it runs, and its frozen networks put there."""

from pathlib import Path

from accelerate import Accelerator

from danlu.engine.distributed import sum_over_ranks
from danlu.stages.base import Deal, Stage, Surroundings


def surroundings(accelerator: Accelerator, deal: Deal, *, seed: int, folder: Path) -> Surroundings:
    """Return device, cut of passes, reductions, seed and run directory for the work a stage does without gradients."""
    return Surroundings(accelerator.device, deal, lambda values: sum_over_ranks(accelerator, values),
                        seed=seed, folder=folder, is_main=accelerator.is_main_process,
                        precision=str(accelerator.mixed_precision))


def place_frozen(stage: Stage, accelerator: Accelerator) -> None:
    """Put reference and reward networks on the device, in the precision of the policy's forward pass."""
    models = stage.models
    if models.reference is not None:
        models.reference.eval().requires_grad_(False)
        models.reference = accelerator.prepare_model(models.reference, evaluation_mode=True)
    for network in models.rewards:
        network.eval().requires_grad_(False).to(accelerator.device)
