"""Derivatives of a fixed point with respect to all that its equations hold, at every order.

A search finds x with f(x, theta) = 0 and knows nothing of derivatives. These follow from the
equations alone, by the implicit function theorem::

    dx = -(df/dx)^-1 (df/dtheta) dtheta

The rule holds the solution x itself. A backend with derivatives gives it to its library as the rule of
:meth:`Backend.root`, in terms of :meth:`Backend.root`: so it differentiates itself, as often as asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from array_api_compat import device

from .backend import Array, Tree, get_backend
from .circuit import identity
from .linalg import bicgstab
from .model import Layout, field_jacobian, full, rest
from .weights import Operator


class Equations(NamedTuple):
    """The fixed-point equations of a model, as ``theta = (model, z, start)`` changes (``start`` has no part in them).

    Members that have no solution, where ``sound`` (..., 1) is false, get
    derivatives that are zero, whatever number stands in their place.

    Attributes
    ----------
    xp : module
    layout : Layout
        How x (..., N) holds the state.
    by_products : bool
        Solve by products with the derivative, without its matrix.
    """

    xp: Any
    layout: Layout
    by_products: bool = False

    def at(self, x: Array, sound: Array, theta: Tree) -> Array:
        """``x``, and for members without a solution where their model rests: the field is finite there."""
        model, z, _ = theta
        stop = get_backend(self.xp).stop_gradient
        resting = self.layout.pack(self.xp, rest(self.xp, model, full(self.xp, model, z)))
        return self.xp.where(sound, x, stop(resting))

    def field(self, x: Array, sound: Array, theta: Tree) -> Array:
        """f(x, theta), (..., N)."""
        model, z, _ = theta
        made = model.field(self.xp, self._time(z), self.layout.unpack(x), full(self.xp, model, z))
        made = self.layout.pack(self.xp, made)
        return self.xp.where(sound, made, self.xp.zeros_like(made))

    def matrix(self, x: Array, sound: Array, theta: Tree) -> Array:
        """df/dx, (..., N, N)."""
        model, z, _ = theta
        made = field_jacobian(self.xp, model, self._time(z), self.layout.unpack(x), full(self.xp, model, z))
        return self.xp.where(sound[..., None], made, identity(self.xp, x))

    def product(self, x: Array, sound: Array, theta: Tree, direction: Array) -> Array:
        """df/dx times a direction (..., N)."""
        model, z, _ = theta
        made = model.product(self.xp, self._time(z), self.layout.unpack(x), z, self.layout.unpack(direction))
        return self.xp.where(sound, self.layout.pack(self.xp, made), direction)

    def _time(self, z: Array) -> Array:
        return self.xp.zeros((), dtype=z.dtype, device=device(z))


def differentiable(
    xp: Any, search: Callable[..., Any], model: Any, z: Array, start: Any, *, by_products: bool = False
) -> Any:
    """The fixed point that ``search`` finds, with its derivatives in the model and z.

    Parameters
    ----------
    xp : module
    search : callable
        ``search(model, z, start) -> SteadyState``; it may be called with the members of
        more batch axes than here, and its own derivatives do not count.
    model : Model
        Prepared.
    z : array (..., n)
    start : tuple of arrays (..., n) or None
    by_products : bool
        For a Circuit with operators: solve linear systems by BiCGSTAB.

    Returns
    -------
    SteadyState
        Derivatives of members that did not converge are zero.
    """

    def packed(theta: Tree) -> tuple[Array, Array, Tree]:
        found = search(*theta)
        return Layout.of(found.state).pack(xp, found.state), found.converged[..., None], found._replace(state=None)

    n, kind = int(z.shape[-1]), model.state
    layout = Layout((n,) * len(kind._fields), kind)
    x, _, report = get_backend(xp).root(Equations(xp, layout, by_products), packed, (model, z, start))
    return type(report)._make(report)._replace(state=layout.unpack(x))


def solve_by_products(xp: Any, product: Callable[[Array], Array], right: Array) -> Array:
    """Solve ``product(x) = right`` for (..., n); NaN for members whose solution was not found."""
    eps = float(xp.finfo(right.dtype).eps)
    size = xp.max(xp.abs(right), axis=-1, keepdims=True)
    x = bicgstab(xp, product, right, xp.zeros_like(right), 10 * eps * size)
    off = xp.max(xp.abs(right - product(x)), axis=-1, keepdims=True)
    return xp.where(off <= eps**0.75 * size, x, xp.nan)


def flatten(tree: Tree) -> tuple[list[Array], list[int | None], Callable[[Iterator[Array]], Tree]]:
    """The arrays of a tree, those of operators too; how many axes of each belong to one member; and the way back.

    Weights are (..., n, n), all other arrays (..., n); the arrays of an operator have no batch axes (None).
    """
    if tree is None:
        return [], [], lambda leaves: None
    if isinstance(tree, Operator):
        operator = tree

        def restored(leaves: Iterator[Array]) -> Operator:
            arrays = [next(leaves) for _ in operator.arrays]
            return Operator(operator.function, arrays, shape=operator.shape, batched=operator.batched)

        return list(operator.arrays), [None] * len(operator.arrays), restored
    if not isinstance(tree, tuple):
        return [tree], [1], next
    made = [flatten(part) for part in tree]
    spec = getattr(tree, "spec", None)
    leaves = [leaf for part in made for leaf in part[0]]
    axes = [count for part in made for count in part[1]]
    if spec is not None:
        axes = [
            spec[name].axes if count == 1 else count
            for name, part in zip(tree._fields, made, strict=True)  # type: ignore[attr-defined]
            for count in part[1]
        ]

    def rebuilt(leaves: Iterator[Array]) -> Tree:
        parts = [part[2](leaves) for part in made]
        return type(tree)._make(parts) if hasattr(tree, "_make") else tuple(parts)

    return leaves, axes, rebuilt
