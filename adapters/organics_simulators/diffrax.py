"""ORGaNICs for diffrax, and its steady state through optimistix.

Gradients of long runs: use diffrax's default ``RecursiveCheckpointAdjoint``.
``BacksolveAdjoint`` integrates the stable circuit backwards, where every mode
grows, and the solver's errors with it: over 60 time constants its gradients are
wrong, without a warning. For the gradient of the fixed point itself, :func:`steady_state`
takes one linear solve, and no steps.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from organics_core import VARIANTS, Circuit, State, checks
from organics_core.circuit import field, identity_fixed_point, imbalance, resting_state, validate_state
from organics_core.circuit import size as circuit_size

from ._common import dense, no_batch, require

require("diffrax", "jax", "diffrax", "optimistix")

import diffrax  # noqa: E402
import equinox as eqx  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import optimistix  # noqa: E402

Array = Any


def drive(z: Any, t: Any) -> Array:
    """The input drive at a time.

    Parameters
    ----------
    z : array (..., n), diffrax path or callable
        Constant, an interpolation, say, or a function of time.
    t : array ()
        Time in seconds.

    Returns
    -------
    array (..., n)
    """
    if isinstance(z, diffrax.AbstractPath):
        return z.evaluate(t)
    return z(t) if callable(z) else jnp.asarray(z)


def vector_field(t: Any, state: State, args: tuple[Circuit, Any], *, variant: str = "main") -> State:
    """The circuit's vector field, by diffrax's convention.

    Parameters
    ----------
    t : array ()
        Time in seconds.
    state : State of arrays (..., n)
    args : (Circuit, z)
        z an array (..., n), a diffrax path such as ``LinearInterpolation``, or
        a function of time. All of it is differentiable and may be batched.
    variant : {"main", "rectified", "rectified_recurrence"}

    Returns
    -------
    State of arrays (..., n)
        y' and a', per second.

    Examples
    --------
    >>> circuit = Circuit(None, jnp.ones((2, 2)), 1.0, 1.0, 1.0, 0.002, 0.002)
    >>> vector_field(0.0, State(jnp.zeros(2), jnp.ones(2)), (circuit, jnp.ones(2))).y.shape
    (2,)
    """
    circuit, z = args
    return field(jnp, circuit, State(*state), drive(z, t), variant)


def ode_term(variant: str = "main") -> diffrax.ODETerm:
    """The circuit as a ``diffrax.ODETerm``; the circuit and its drive are the solve's ``args``.

    Parameters
    ----------
    variant : {"main", "rectified", "rectified_recurrence"}

    Returns
    -------
    diffrax.ODETerm

    Raises
    ------
    ValueError
        For an unknown variant.

    Examples
    --------
    >>> circuit = Circuit(None, jnp.ones((2, 2)), 1.0, 1.0, 1.0, 0.002, 0.002)
    >>> z = jnp.asarray([1.0, 0.0])
    >>> run = diffrax.diffeqsolve(
    ...     ode_term(), diffrax.Tsit5(), 0.0, 0.1, None, start(circuit, z), args=(circuit, z),
    ...     stepsize_controller=diffrax.PIDController(rtol=1e-4, atol=1e-6))
    >>> run.ys.a[-1].round(2)
    Array([2., 2.], dtype=float32)
    """
    checks.one_of("variant", variant, VARIANTS)
    return diffrax.ODETerm(partial(vector_field, variant=variant))


def start(circuit: Circuit, z: Any, t: float = 0.0) -> State:
    """The state at rest, y = 0 and a = (b0 sigma)**2, as ``y0`` of a solve.

    Parameters
    ----------
    circuit : Circuit
    z : array (..., n), diffrax path or callable
        For its shape and dtype only.
    t : float
        Where to look at ``z``.

    Returns
    -------
    State of arrays (..., n)

    Examples
    --------
    >>> circuit = Circuit(None, jnp.ones((2, 2)), 1.0, 1.0, 1.0, 0.002, 0.002)
    >>> start(circuit, jnp.ones((5, 2))).a.shape
    (5, 2)
    """
    return resting_state(_as_jax(circuit), jnp.asarray(drive(z, t)))


def _as_jax(circuit: Circuit) -> Circuit:
    dense(circuit, "diffrax")
    return Circuit(*(v if v is None or checks.is_number(v) else jnp.asarray(v) for v in circuit))


def steady_state(
    circuit: Circuit,
    z: Array,
    *,
    solver: Any = None,
    variant: str = "main",
    state0: State | None = None,
    max_steps: int = 256,
    throw: bool = True,
) -> optimistix.Solution:
    """The fixed point through ``optimistix.root_find``, with optimistix's implicit gradient.

    Parameters
    ----------
    circuit : Circuit
        Without batch axes; use ``jax.vmap`` for batches.
    z : array (n,)
        Constant input drive.
    solver : optimistix solver, optional
        ``optimistix.Dogleg`` with tolerances that suit the dtype by default. What it solves
        for is the state in units of the largest y and the largest a of the fixed point for W_r = I.
    variant : {"main", "rectified", "rectified_recurrence"}
    state0 : State, optional
        Where to start; the fixed point for W_r = I by default.
    max_steps : int
    throw : bool
        Whether not to converge is an error; otherwise look at ``.result``.

    Returns
    -------
    optimistix.Solution
        ``.value`` is the :class:`~organics_core.State`, ``.result`` says whether it converged.

    Raises
    ------
    ValueError
        Naming the argument that is wrong.

    Examples
    --------
    >>> import jax
    >>> circuit = Circuit(None, jnp.ones((2, 2)), 1.0, 1.0, 1.0, 0.002, 0.002)
    >>> gradient = jax.grad(lambda z: steady_state(circuit, z).value.y[0])(jnp.asarray([1.0, 0.0]))
    >>> abs(gradient).round(3)  # the sign of the zero is rounding's
    Array([0.354, 0.   ], dtype=float32)
    """
    checks.one_of("variant", variant, VARIANTS)
    z = jnp.asarray(z)
    checks.namespace({"z": z})
    no_batch(circuit, "optimistix.root_find", z=z)
    checks.vector_shape("z", z, circuit_size(circuit))
    closed = State(*map(jnp.asarray, identity_fixed_point(jnp, circuit, z, variant)))
    dtype = closed.a.dtype
    if solver is None:
        tolerance = float(jnp.finfo(dtype).eps) ** 0.75
        solver = optimistix.Dogleg(rtol=tolerance, atol=tolerance)
    # tolerances are numbers, so what is searched for has no unit
    largest = [jax.lax.stop_gradient(jnp.max(jnp.abs(part))) for part in closed]
    units = State(*(jnp.where((size > 0) & jnp.isfinite(size), size, jnp.ones_like(size)) for size in largest))
    start = closed
    if state0 is not None:
        for name, part in validate_state(state0, "state0").items():
            if jnp.shape(part) != z.shape:
                raise ValueError(f"{name} must have shape {z.shape}, got shape {jnp.shape(part)}")
        start = State(*state0)

    def equations(state: State, args: tuple[Circuit, Array, State]) -> State:
        circuit, z, units = args
        there = State(*(part * unit for part, unit in zip(state, units, strict=True)))
        sides = imbalance(jnp, circuit, there, z, variant)
        return State(*(part / unit for part, unit in zip(sides, units, strict=True)))

    begin = State(*(jnp.asarray(part).astype(dtype) / unit for part, unit in zip(start, units, strict=True)))
    found = optimistix.root_find(equations, solver, begin, (circuit, z, units), max_steps=max_steps, throw=throw)
    value = State(*(part * unit for part, unit in zip(found.value, units, strict=True)))
    return eqx.tree_at(lambda solution: solution.value, found, value)
