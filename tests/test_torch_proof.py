"""Layers proven stable: torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import organics_torch


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_stack_of_cells(dtype: torch.dtype) -> None:
    """Every cell at a fixed point where the layer itself settles, each proven for the range of the one below."""
    layer = organics_torch.ORGaNICs(3, 6, 2, seed=1, dtype=dtype, recurrent="spectral")
    x = torch.tensor([0.5, 0.2, 0.7], dtype=dtype)
    proofs = organics_torch.prove_stable(layer, x)
    assert [(proof.continuous, proof.discrete) for proof in proofs] == [(True, True)] * 2
    with torch.no_grad():
        _, last = layer(x.expand(6000, 3))
    for index, proof in enumerate(proofs):
        for part, wanted in zip(last, proof.state, strict=True):
            np.testing.assert_allclose(part[index].cpu(), wanted, atol=1e-4 if dtype == torch.float32 else 1e-9)


def test_one_cell_and_refusals() -> None:
    cell = organics_torch.ORGaNICsCell(3, 6, seed=1)
    (proof,) = organics_torch.prove_stable(cell, torch.ones(3))
    assert proof.discrete is True
    exact, x = cell.double(), torch.ones(3, dtype=torch.float64)  # float32 parameters, exactly
    state = tuple(torch.as_tensor(part) for part in proof.state)
    jacobian = torch.autograd.functional.jacobian(lambda *parts: torch.cat(exact(x, parts)), state)
    values = torch.linalg.eigvals(torch.cat(jacobian, dim=1))
    assert float(values.abs().max()) < 1
    assert float((values - 1).real.max()) < -proof.decay_rate
    with pytest.raises(TypeError, match="layer must be an ORGaNICs layer"):
        organics_torch.prove_stable(torch.nn.LSTM(3, 6), torch.ones(3))
    with pytest.raises(ValueError, match="x must have shape"):
        organics_torch.prove_stable(cell, torch.ones(2, 3, dtype=torch.float64))
