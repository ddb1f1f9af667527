"""torch: solutions of equations with all their derivatives, in autograd and under the transforms of torch.func."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import array_api_compat.torch as xp
import torch
from torch import Tensor
from torch.autograd import forward_ad

from organics_core.backend import Tree, tree_leaves, tree_map
from organics_core.implicit import Equations, flatten, solve_by_products
from organics_core.linalg import solve_vector
from organics_core.model import Parameter
from organics_core.weights import Operator


class _Problem:
    """What a :class:`_Root` solves: everything but the tensors."""

    def __init__(self, equations: Any, search: Callable[[Tree], Tree], theta: Tree) -> None:
        self.equations, self.search = equations, search
        self.leaves, self.axes, self._rebuild = flatten(theta)
        self.report: Tree = None

    def theta(self, leaves: Any) -> Tree:
        return self._rebuild(iter(leaves))

    def lifted(self, leaves: tuple[Tensor, ...], at: tuple[int | None, ...], size: int) -> list[Tensor]:
        """The leaves with the mapped axis as the first of the batch axes that all have."""
        batch = max(
            leaf.ndim - axes - (where is not None)
            for leaf, where, axes in zip(leaves, at, self.axes, strict=True)
            if axes is not None
        )
        made = []
        for leaf, where, axes in zip(leaves, at, self.axes, strict=True):
            if where is None:
                made.append(leaf)
            elif axes is None:
                raise ValueError(
                    "the arrays of an Operator cannot be mapped by torch.func.vmap here; map a dense matrix, or loop"
                )
            else:
                first = leaf.movedim(where, 0)
                missing = 1 + max(batch, 0) + axes - first.ndim
                made.append(first.reshape(size, *(1,) * missing, *first.shape[1:]))
        return made


class _Root(torch.autograd.Function):
    """x, sound and the report of a search; the derivatives of x are those of the equations, of every order."""

    @staticmethod
    def forward(problem: _Problem, *leaves: Tensor) -> tuple[Tensor, ...]:
        x, sound, report = problem.search(problem.theta(leaves))
        problem.report = report
        return x.clone(), sound, *(leaf.clone() for leaf in tree_leaves(report))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.problem, *leaves = inputs
        x, sound, *report = output
        ctx.mark_non_differentiable(sound, *report)
        ctx.save_for_backward(x, sound, *leaves)
        ctx.save_for_forward(x, sound, *leaves)

    @staticmethod
    def backward(ctx: Any, slope: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        equations, (x, sound, *leaves) = ctx.problem.equations, ctx.saved_tensors
        theta = ctx.problem.theta
        at = equations.at(x, sound, theta(leaves))
        pulled = -_solve(equations, at, sound, theta(leaves), torch.where(sound, slope, 0.0), transposed=True)
        wanted = [k for k, needed in enumerate(ctx.needs_input_grad[1:]) if needed]

        def field(*chosen: Tensor) -> Tensor:
            given = list(leaves)
            for k, leaf in zip(wanted, chosen, strict=True):
                given[k] = leaf
            return equations.field(at, sound, theta(given))

        chosen = [leaves[k] for k in wanted]
        if _once():
            chosen = [leaf.detach().requires_grad_() for leaf in chosen]
            with torch.enable_grad():
                moved = field(*chosen)
            pulls = torch.autograd.grad(moved, chosen, pulled, allow_unused=True)
        else:
            pulls = torch.func.vjp(field, *chosen)[1](pulled)
        slopes: list[Tensor | None] = [None] * (1 + len(leaves))
        for k, made in zip(wanted, pulls, strict=True):
            slopes[1 + k] = made
        return tuple(slopes)

    @staticmethod
    def jvp(ctx: Any, _: Any, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        equations, theta = ctx.problem.equations, ctx.problem.theta
        # torch turns forward derivatives off here, and those of this derivative would be zero;
        # the leaves carry their tangents, so that no transform is needed, which might not nest
        with forward_ad._set_fwd_grad_enabled(True):  # noqa: SLF001 - no public name
            x, sound, *leaves = (forward_ad.unpack_dual(tensor).primal for tensor in ctx.saved_tensors)
            at = equations.at(x, sound, theta(leaves))
            moving = equations.field(at, sound, theta(ctx.saved_tensors[2:]))
            change = forward_ad.unpack_dual(moving).tangent
            moved = -_solve(equations, at, sound, theta(leaves), change)
        return moved, *(None,) * (1 + len(tree_leaves(ctx.problem.report)))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], problem: _Problem, *leaves: Tensor) -> tuple[Any, Any]:
        made = _Root.apply(problem, *problem.lifted(leaves, in_dims[1:], info.batch_size))
        return made, (0,) * len(made)


def _solve(equations: Any, at: Tensor, sound: Tensor, theta: Tree, right: Tensor, transposed: bool = False) -> Tensor:
    """Solve df/dx u = right, or the transposed system: by equations again, whose derivatives are these very rules.

    (In torch 2.13 third derivatives of torch.linalg.solve are wrong where forward mode takes part.)
    """
    if equations.by_products:
        linear: Any = _Products(equations, transposed)  # type: ignore[call-arg]
        given: Tree = _Given(at, sound, theta, right)
    else:
        linear, matrix = _Dense(), equations.matrix(at, sound, theta)
        given = _System(matrix.mT if transposed else matrix, right)  # type: ignore[call-arg]
        if _once():
            return solve_vector(xp, *given)
    return solve_root(linear, linear.search, given)[0]  # type: ignore[no-any-return]


def _once() -> bool:
    """Whether what is computed now is not differentiated further: a plain backward pass, which has a shorter way."""
    level = forward_ad._current_level  # noqa: SLF001 - no public name
    return not torch.is_grad_enabled() and level < 0 and torch._C._functorch.peek_interpreter_stack() is None  # noqa: SLF001


def _all_sound(u: Tensor) -> Tensor:
    return torch.ones_like(u[..., :1], dtype=torch.bool)


class _System(NamedTuple):
    """matrix u = right."""

    matrix: Tensor
    right: Tensor
    spec = {"matrix": Parameter(axes=2), "right": Parameter()}  # type: ignore[misc]  # noqa: RUF012 - no field


class _Dense:
    """Linear equations as :class:`Equations`, with a :class:`_System` for theta."""

    by_products = False

    def search(self, system: _System) -> Tree:
        u = solve_vector(xp, system.matrix, system.right)
        return u, _all_sound(u), ()

    def at(self, u: Tensor, sound: Tensor, system: _System) -> Tensor:
        return u

    def field(self, u: Tensor, sound: Tensor, system: _System) -> Tensor:
        return torch.matmul(system.matrix, u[..., None])[..., 0] - system.right

    def matrix(self, u: Tensor, sound: Tensor, system: _System) -> Tensor:
        return system.matrix


class _Given(NamedTuple):
    """df/dx(x, theta) u = right."""

    x: Tensor
    sound: Tensor
    theta: Tree
    right: Tensor


class _Products(NamedTuple):
    """As :class:`_Dense`, by products with the derivative of other equations or its transpose: :class:`_Given`."""

    equations: Any
    transposed: bool
    by_products = True  # type: ignore[misc]

    def search(self, given: _Given) -> Tree:
        def product(u: Tensor) -> Tensor:
            return self.product(u, given.sound, given, u)

        u = solve_by_products(xp, product, given.right)
        return u, _all_sound(u), ()

    def at(self, u: Tensor, sound: Tensor, given: _Given) -> Tensor:
        return u

    def field(self, u: Tensor, sound: Tensor, given: _Given) -> Tensor:
        return self.product(u, sound, given, u) - given.right

    def product(self, u: Tensor, sound: Tensor, given: _Given, direction: Tensor) -> Tensor:
        def product(v: Tensor) -> Tensor:
            return self.equations.product(given.x, given.sound, given.theta, v)  # type: ignore[no-any-return]

        if self.transposed:
            return torch.func.vjp(product, torch.zeros_like(direction))[1](direction)[0]
        return product(direction)


def solve_root(equations: Any, search: Callable[[Tree], Tree], theta: Tree) -> Tree:
    """What :meth:`organics_core.backend.Backend.root` says."""
    problem = _Problem(equations, search, theta)
    x, sound, *report = _Root.apply(problem, *problem.leaves)
    leaves: Iterator[Tensor] = iter(report)
    return x, sound, tree_map(lambda _: next(leaves), problem.report)


def check_closed(equations: Equations, found: Tree, theta: Tree) -> None:
    """ValueError where a function of the model holds tensors of its own that need a gradient: it would be lost."""
    model = theta[0]
    if hasattr(model, "additive") and not any(isinstance(part, Operator) for part in model):
        return  # of the families here, which are functions of their fields
    leaves, _, rebuild = flatten(theta)
    x, *bare = (forward_ad.unpack_dual(tensor).primal.detach() for tensor in (found[0], *leaves))
    value = equations.field(x, found[1], rebuild(iter(bare)))
    if value.requires_grad or forward_ad.unpack_dual(value).tangent is not None:
        raise ValueError(
            "a function of the model holds tensors that need a gradient, which a fixed point cannot pass on to them; "
            "make them fields of the model, or name them in Operator(product, arrays)"
        )
