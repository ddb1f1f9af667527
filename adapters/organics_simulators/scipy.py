"""ORGaNICs for ``scipy.integrate``: ``solve_ivp`` with every method, and ``odeint``."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from organics_core import VARIANTS, Circuit, State, checks, jacobian
from organics_core.circuit import field, size

from ._common import drive_at, host_circuit, host_drive, require, start_state

require("scipy", "scipy")


class Field:
    """x' = f(t, x) for x = (y, a) in one array, with its analytic Jacobian.

    Calling it takes ``x`` of shape (2n,), or (2n, k) as ``solve_ivp`` passes it
    with ``vectorized=True``. ``jac(t, x)`` is for ``solve_ivp(..., jac=fun.jac)``
    and ``odeint(..., Dfun=fun.jac, tfirst=True)``. Made by :func:`to_ivp`.

    Parameters
    ----------
    circuit : Circuit
        Of float64 numpy arrays.
    z : array (n,) or callable
    variant : {"main", "rectified", "rectified_recurrence"}

    Examples
    --------
    >>> circuit = Circuit(None, np.ones((2, 2)), 1.0, 1.0, 1.0, 0.002, 0.002)
    >>> fun = to_ivp(circuit, np.zeros(2)).fun
    >>> fun(0.0, np.ones((4, 3))).shape, fun.jac(0.0, np.ones(4)).shape
    ((4, 3), (4, 4))
    """

    def __init__(self, circuit: Circuit, z: Any, variant: str) -> None:
        self.circuit, self.z, self.variant = circuit, z, variant

    def __call__(self, t: float, x: np.ndarray) -> np.ndarray:
        n = size(self.circuit)
        columns = np.moveaxis(np.asarray(x), 0, -1)  # neurons last, as the core has them
        z = drive_at(self.z, np.asarray(t, dtype=np.float64))
        slope = field(np, self.circuit, State(columns[..., :n], columns[..., n:]), z, self.variant)
        return np.moveaxis(np.concatenate(slope, axis=-1), -1, 0)

    def jac(self, t: float, x: np.ndarray) -> np.ndarray:
        """The Jacobian (2n, 2n) at ``x``, per second."""
        return jacobian(self.circuit, _unpack(np.asarray(x), size(self.circuit)), variant=self.variant)


class IVP(NamedTuple):
    """An initial value problem.

    Attributes
    ----------
    fun : Field
        ``fun(t, x)``, and ``fun.jac(t, x)``.
    x0 : array (2n,)
        The start, y then a.
    unpack : callable
        ``unpack(x)`` is the :class:`~organics_core.State` of a solution (2n, T),
        as ``solve_ivp`` returns it, or of one x (2n,); leaves (T, n) or (n,).
        For ``odeint``'s (T, 2n), pass its transpose.
    """

    fun: Field
    x0: np.ndarray
    unpack: Any


def _unpack(x: np.ndarray, n: int) -> State:
    rows = np.moveaxis(np.asarray(x), 0, -1)
    if rows.shape[-1] != 2 * n:
        raise ValueError(f"x must have {2 * n} rows, y then a, got shape {np.shape(x)}")
    return State(rows[..., :n], rows[..., n:])


def to_ivp(circuit: Circuit, z: Any, *, state0: State | None = None, variant: str = "main") -> IVP:
    """The circuit as an initial value problem for ``scipy.integrate``.

    Parameters
    ----------
    circuit : Circuit
        Without batch axes, of any library; computed in float64 numpy.
    z : array (n,) or callable
        Input drive; a function gets the time (a 0-d array) and returns (n,).
    state0 : State, optional
        The start; at rest by default.
    variant : {"main", "rectified", "rectified_recurrence"}

    Returns
    -------
    IVP
        A named tuple ``(fun, x0, unpack)``.

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong.
    ImportError
        Where scipy is missing.

    Examples
    --------
    >>> from scipy.integrate import solve_ivp
    >>> circuit = Circuit(None, np.ones((2, 2)), 1.0, 1.0, 1.0, 0.002, 0.002)
    >>> fun, x0, unpack = to_ivp(circuit, np.array([1.0, 0.0]))
    >>> run = solve_ivp(fun, (0.0, 0.1), x0, method="BDF", jac=fun.jac, vectorized=True)
    >>> unpack(run.y).a[-1].round(2)
    array([2., 2.])
    """
    checks.one_of("variant", variant, VARIANTS)
    host = host_circuit(circuit, "scipy")
    n = size(host)
    if callable(z):
        first = host_drive(z(np.asarray(0.0)), n, name="z(t)")
    else:
        z = first = host_drive(z, n)
    start = start_state(host, first, state0)
    x0 = np.concatenate(start).astype(np.float64)
    return IVP(Field(host, z, variant), x0, lambda x: _unpack(x, n))
