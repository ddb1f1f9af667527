"""Layers proven stable: jax."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import organics_jax


def test_a_stack_of_cells() -> None:
    """Every cell at a fixed point where the layer itself settles, each proven for the range of the one below."""
    layer = organics_jax.ORGaNICs(3, 6, 2, key=jax.random.key(1), recurrent="spectral", dtype=jnp.float64)
    x = jnp.array([0.5, 0.2, 0.7])
    proofs = organics_jax.prove_stable(layer, x)
    assert [(proof.continuous, proof.discrete) for proof in proofs] == [(True, True)] * 2
    _, last = layer(jnp.broadcast_to(x, (6000, 3)))
    for index, proof in enumerate(proofs):
        for part, wanted in zip(last, proof.state, strict=True):
            np.testing.assert_allclose(part[index], wanted, atol=1e-9)
    assert organics_jax.prove_stable(layer.cells[0], x)[0].discrete is True
    with pytest.raises(TypeError, match="layer must be an ORGaNICs layer"):
        organics_jax.prove_stable(jnp.tanh, x)
