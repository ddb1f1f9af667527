"""Old names: thin aliases that say what to call instead, to be removed in 0.3."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

from .circuit import Circuit, State, vector_field
from .equilibria import SteadyState, steady_state
from .integration import simulate, simulate_sde
from .noise import Noise, power_spectrum
from .stability import Certificate, certify, jacobian
from .trajectory import Trajectory

F = TypeVar("F", bound=Callable[..., Any])


def _old(instead: str) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        @functools.wraps(function)
        def alias(*arguments: Any, **options: Any) -> Any:
            warnings.warn(
                f"{function.__name__} is deprecated and goes in 0.3: call {instead}", DeprecationWarning, stacklevel=2
            )
            return function(*arguments, **options)

        return alias  # type: ignore[return-value]

    return decorate


@_old("Circuit, which takes sparse weights and operators")
def LargeCircuit(w_r: Any, w: Any, b: Any, b0: Any, sigma: Any, tau_y: Any, tau_a: Any) -> Circuit:
    """Deprecated: call :class:`Circuit`."""
    return Circuit(w_r, w, b, b0, sigma, tau_y, tau_a)


@_old("vector_field")
def large_vector_field(circuit: Circuit, state: State, z: Any) -> State:
    """Deprecated: call :func:`vector_field`."""
    return vector_field(circuit, state, z)


@_old("certify")
def large_certify(circuit: Circuit, z: Any) -> Certificate:
    """Deprecated: call :func:`certify`."""
    return certify(circuit, z, lyapunov=False)


@_old("steady_state")
def large_steady_state(circuit: Circuit, z: Any, *, tol: float | None = None, max_iterations: int = 500) -> SteadyState:
    """Deprecated: call :func:`steady_state`."""
    return steady_state(circuit, z, tol=tol, max_iterations=max_iterations)


@_old("vector_field")
def v1_vector_field(circuit: Any, state: Any, z: Any) -> Any:
    """Deprecated: call :func:`vector_field`."""
    return vector_field(circuit, state, z)


@_old("jacobian")
def v1_jacobian(circuit: Any, state: Any) -> Any:
    """Deprecated: call :func:`jacobian`."""
    return jacobian(circuit, state)


@_old("steady_state")
def v1_steady_state(circuit: Any, z: Any, **options: Any) -> SteadyState:
    """Deprecated: call :func:`steady_state`."""
    return steady_state(circuit, z, **options)


@_old("power_spectrum")
def v1_power_spectrum(circuit: Any, z: Any, noise: Noise, frequencies: Any) -> Any:
    """Deprecated: call :func:`power_spectrum` at the state of :func:`steady_state`."""
    return power_spectrum(circuit, steady_state(circuit, z).state, noise, frequencies)


@_old("simulate or simulate_sde")
def simulate_v1(circuit: Any, z: Any, times: Any, *, noise: Noise = None, **options: Any) -> Trajectory:
    """Deprecated: call :func:`simulate`, or with noise :func:`simulate_sde`."""
    other = ("seed", "increments") if noise is None else ("rtol", "atol", "max_steps")  # it took, and left unread
    given = {name: value for name, value in options.items() if value is not None and name not in other}
    if noise is None:
        return simulate(circuit, z, times, **given)
    return simulate_sde(circuit, z, times, noise=noise, **{"method": "stochastic_heun", **given})
