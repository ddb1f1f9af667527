"""A whole sequence with all its steps at once (:mod:`organics_core.parallel`), on any device.

Where the iterations for the states, or those for their adjoints, do not converge in a bounded number, the
fastest sequential implementation takes over; and so it does in a backward pass within hooks on saved tensors
(``torch.autograd.graph.save_on_cpu``), which torch.func refuses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import array_api_compat.torch as xp
import torch
from torch import Tensor

from organics_core.cell import CellParameters, CellState, Rates, step, step_diagonal
from organics_core.parallel import solve_adjoint, solve_states

from .implementation import WEIGHTS, Setup

observers: list[Callable[..., Any]] = []
"""Each is called after every solution, with it and, in forward passes, the arguments of the core's step."""


def kept_shapes(setup: Setup, xs: Tensor, n: int, identity: bool) -> list[tuple[int, ...]]:
    """Shapes of the tensors that wait for the backward pass: the states before and after every step, and a flag."""
    steps, batch, _ = xs.shape
    return [(4, steps + 1, batch, n), ()] if setup.gradient else []


def forward(
    setup: Setup, xs: Tensor, start: Tensor, sigma: Tensor, weights: Sequence[Tensor | None]
) -> tuple[Tensor | None, Tensor, list[Tensor]]:
    """ys (T, N, n) if wanted, the last state (4, N, n), and what waits for the backward pass."""
    found = None
    if xs.shape[1]:
        with torch.no_grad():
            arguments = (xp, *_core(sigma, weights), CellState(*start.unbind(0)), xs, _variant(setup))
            found = solve_states(*arguments)
            for observe in observers:
                observe(found, *arguments)
    converged = found is not None and bool(found.report.converged)
    if found is not None and converged:
        states = torch.stack([torch.cat([first[None], rest]) for first, rest in zip(start, found.states, strict=True)])
        ys, last = states[0, 1:].clone(), states[:, -1].clone()
    else:
        states = start[:, None].expand(4, len(xs) + 1, *start.shape[1:]).contiguous()
        setup_once = setup._replace(gradient=False, checkpoint_every=0)
        ys, last, _ = _sequential(xs, start.shape[-1]).forward(setup_once, xs, start, sigma, weights)
    return (ys if setup.outputs else None), last, ([states, xs.new_tensor(float(converged))] if setup.gradient else [])


def backward(
    setup: Setup,
    xs: Tensor,
    sigma: Tensor,
    weights: Sequence[Tensor | None],
    kept: Sequence[Tensor],
    g_ys: Tensor | None,
    g_last: Tensor | None,
    wants_x: bool,
) -> tuple[Tensor | None, Tensor, list[Tensor | None]]:
    """Gradients of xs (where wanted), of the start state (4, N, n), and of the weights."""
    states, flag = kept
    found = _adjoint(setup, xs, sigma, weights, states[:, :-1], g_ys, g_last, wants_x) if flag else None
    if found is not None:
        return found
    module, start = _sequential(xs, states.shape[-1]), states[:, 0]
    setup = setup._replace(gradient=True, checkpoint_every=0)
    again = module.forward(setup, xs, start, sigma, weights)[2]
    return module.backward(setup, xs, sigma, weights, again, g_ys, g_last, wants_x)  # type: ignore[no-any-return]


def _adjoint(
    setup: Setup,
    xs: Tensor,
    sigma: Tensor,
    weights: Sequence[Tensor | None],
    before: Tensor,
    g_ys: Tensor | None,
    g_last: Tensor | None,
    wants_x: bool,
) -> tuple[Tensor | None, Tensor, list[Tensor | None]] | None:
    """The same where the adjoints converge, else None, and where torch.func does not work."""
    gradient = torch.zeros_like(before)
    if g_ys is not None:
        gradient[0] += g_ys
    if g_last is not None:
        gradient[:, -1] += g_last
    weights = [None if value is None else value.detach() for value in weights]
    xs, before = xs.detach(), before.detach()
    diagonal = step_diagonal(xp, *_core(sigma, weights), CellState(*before), _variant(setup))

    def moved(parts: tuple[Tensor, ...], x: Tensor, some: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        return tuple(step(xp, *_core(sigma, some), CellState(*parts), x, _variant(setup)))

    # torch.func works inside of an operation of one's own, too, where autograd does not record
    try:
        _, pull = torch.func.vjp(lambda *parts: moved(parts, xs, weights), *before)
    except RuntimeError as error:
        if "saved tensor hooks" not in str(error):
            raise
        return None
    found = solve_adjoint(xp, lambda adjoint: CellState(*pull(tuple(adjoint))), diagonal, CellState(*gradient))
    for observe in observers:
        observe(found)
    if not found.report.converged:
        return None
    given = [value for value in weights if value is not None]

    def of_all(parts: tuple[Tensor, ...], x: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
        rest = iter(given)
        return moved(parts, x, [None if value is None else next(rest) for value in weights])

    _, pull_all = torch.func.vjp(of_all, tuple(before), xs, *given)
    g_parts, g_x, *g_given = pull_all(tuple(found.states))
    every = iter(g_given)
    start = torch.stack([part[0] for part in g_parts])
    return (g_x if wants_x else None), start, [None if value is None else next(every) for value in weights]


def _variant(setup: Setup) -> str:
    return "main" if setup.main else "rectified_recurrence"


def _core(sigma: Tensor, weights: Sequence[Tensor | None]) -> tuple[CellParameters, Tensor, Rates]:
    """The arguments of the core's step."""
    named: dict[str, Any] = dict(zip(WEIGHTS, weights, strict=True))
    fields = CellParameters(*(named.get(name) for name in CellParameters._fields))._replace(sigma=sigma)
    return fields, named["w"], Rates(*(named[f"r_{name}"] for name in Rates._fields))


def _sequential(xs: Tensor, units: int) -> Any:
    from .sequence import module_for

    return module_for("auto", xs, units)
