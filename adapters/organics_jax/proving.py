"""Whether a trained layer's fixed point at a constant input is stable: proven, not estimated."""

from __future__ import annotations

from typing import Any

from organics_core import checks
from organics_core.cell_proof import CellProof, prove_stack

from .recurrent import ORGaNICs, ORGaNICsCell


def prove_stable(layer: ORGaNICs | ORGaNICsCell, x: Any) -> tuple[CellProof, ...]:
    """Prove that a layer under a constant input has a stable fixed point, as a circuit and as the map it is.

    Parameters
    ----------
    layer : ORGaNICs or ORGaNICsCell
        Of one direction.
        Of a stack every cell gets the proven range of the potentials of the one below.
    x : array (k,)
        The input, the same at every step.

    Returns
    -------
    tuple of CellProof
        One for each cell, of numpy arrays, see :func:`organics_core.prove_cell`, up to
        the first that is undecided. The stack is proven where every cell has one and
        all their ``discrete`` are True.

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong.

    Examples
    --------
    >>> import jax, organics_jax
    >>> layer = organics_jax.ORGaNICs(2, 6, key=jax.random.key(0))
    >>> [proof.discrete for proof in organics_jax.prove_stable(layer, jax.numpy.array([0.5, 0.2]))]
    [True]
    """
    if not isinstance(layer, (ORGaNICs, ORGaNICsCell)):
        raise TypeError(f"layer must be an ORGaNICs layer or an ORGaNICsCell, got {checks.describe(layer)}")
    if isinstance(layer, ORGaNICs) and layer.bidirectional:
        raise ValueError("layer must have one direction: prove its cells one by one")
    cells = (layer,) if isinstance(layer, ORGaNICsCell) else layer.cells
    return prove_stack([(one.effective(), one.start, one.max_rates, one.variant) for one in cells], x)
