"""A whole sequence with all its steps at once (:mod:`organics_core.parallel`).

Where the iterations for the states, or those for their adjoints, do not converge in a bounded number, the
sequential implementation takes over.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from organics_core.cell import (
    CellParameters,
    CellState,
    MaxRates,
    cell_rates,
    normalization_weights,
    step,
    step_diagonal,
)
from organics_core.parallel import shifted, solve_adjoint, solve_states

Array = Any


def _step(variant: str, max_rates: MaxRates, parameters: CellParameters, before: CellState, xs: Array) -> CellState:
    return step(jnp, *_derived(max_rates, parameters), before, xs, variant)


def _derived(max_rates: MaxRates, parameters: CellParameters) -> tuple[CellParameters, Array, Any]:
    return parameters, normalization_weights(jnp, parameters.log_w), cell_rates(jnp, parameters, max_rates)


def _sequential(variant: str, max_rates: MaxRates, *given: Any) -> tuple[CellState, Array]:
    from .sequence import sequence

    return sequence(*given, max_rates=max_rates, variant=variant)


@jax.custom_jvp
def _once(tree: Any) -> Any:
    """The same, of which nobody takes the derivative: iterations that stop where values have converged, as they do
    at once from a state at rest, say nothing of their derivatives."""
    return tree


@_once.defjvp
def _refuse(*_: Any) -> Any:
    raise TypeError(
        "implementation 'parallel' has first derivatives in reverse mode (grad, jacrev) only; "
        "choose 'auto' or 'reference'"
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def parallel_sequence(
    variant: str, max_rates: MaxRates, parameters: CellParameters, start: CellState, xs: Array
) -> tuple[CellState, Array]:
    """The last state (..., n), and y after every step (T, ..., n), from ``start`` (..., n)."""
    return _forward(variant, max_rates, parameters, start, xs)[0]


def _forward(
    variant: str, max_rates: MaxRates, parameters: CellParameters, start: CellState, xs: Array
) -> tuple[tuple[CellState, Array], Any]:
    parameters, start, xs = _once((parameters, start, xs))
    found = solve_states(jnp, *_derived(max_rates, parameters), start, xs, variant)

    def parallel(*_: Any) -> tuple[CellState, Array]:
        return CellState(*(part[-1] for part in found.states)), found.states.y

    sequential = functools.partial(_sequential, variant, max_rates)
    result = jax.lax.cond(found.report.converged, parallel, sequential, parameters, start, xs)
    return result, (parameters, start, xs, found.states, found.report.converged)


def _backward(variant: str, max_rates: MaxRates, saved: Any, bars: tuple[CellState, Array]) -> Any:
    parameters, start, xs, states, converged = saved
    last_bar, ys_bar = bars = _once(bars)
    before = CellState(*(shifted(jnp, first, rest) for first, rest in zip(start, states, strict=True)))
    gradient = CellState(*(jnp.zeros_like(part).at[-1].set(bar) for part, bar in zip(states, last_bar, strict=True)))
    gradient = gradient._replace(y=gradient.y + ys_bar)
    given = _derived(max_rates, parameters)
    _, pull = jax.vjp(lambda state: step(jnp, *given, state, xs, variant), before)
    diagonal = step_diagonal(jnp, *given, before, variant)
    # what did not converge is not worth iterations
    zero = jax.tree.map(lambda g: jnp.where(converged, g, jnp.zeros_like(g)), gradient)
    found = solve_adjoint(jnp, lambda adjoint: pull(adjoint)[0], diagonal, zero)

    def parallel(*_: Any) -> Any:
        _, pull_all = jax.vjp(functools.partial(_step, variant, max_rates), parameters, before, xs)
        parameters_bar, before_bar, xs_bar = pull_all(found.states)
        return parameters_bar, CellState(*(part[0] for part in before_bar)), xs_bar

    def sequential(*given: Any) -> Any:
        return jax.vjp(functools.partial(_sequential, variant, max_rates), *given)[1](bars)

    return jax.lax.cond(converged & found.report.converged, parallel, sequential, parameters, start, xs)


parallel_sequence.defvjp(_forward, _backward)
