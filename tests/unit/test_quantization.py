"""4-bit weights stay what was stored, whatever is forwarded through them."""

from pathlib import Path

import pytest
import torch

from tests.unit.test_models_load import load, save_tiny


@pytest.mark.parametrize("hidden", [32, 64])
def test_an_evaluation_leaves_packed_weights_alone(tmp_path: Path, hidden: int) -> None:
    """Scales keep their float32 bits; a width of 32 is less than a block of 64 values."""
    pytest.importorskip("bitsandbytes")
    base = save_tiny(tmp_path / "base", hidden_size=hidden, intermediate_size=2 * hidden)
    model = load(base, trainable=False, bits=4).eval()
    packed = {name: weight for name, weight in model.named_parameters() if type(weight).__name__ == "Params4bit"}
    before = {name: (weight.data.clone(), weight.quant_state.absmax.clone()) for name, weight in packed.items()}
    with torch.no_grad():
        model(torch.tensor([[5, 6, 7, 8]]))
    assert packed
    for name, (data, scales) in before.items():
        after = packed[name].quant_state.absmax
        assert torch.equal(packed[name].data, data) and after.dtype == scales.dtype and torch.equal(after, scales), name
