"""jax: loops as lax.scan and lax.while_loop, derivatives and compilation from jax itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from organics_core.backend import Array, Tree, host_eigvals
from organics_core.implicit import Equations, solve_by_products
from organics_core.linalg import solve_vector
from organics_core.weights import Operator, padded_rows

T = TypeVar("T")


class JaxBackend:
    """jax: loops, compilation and derivatives by its own primitives."""

    name = "jax"
    traces_loops = True

    def is_concrete(self, array: Array) -> bool:
        # under jit, operations trace even on constants
        return not isinstance(self.stop_gradient(array), jax.core.Tracer)

    def stop_gradient(self, array: Array) -> Array:
        return jax.lax.stop_gradient(array)

    def scan(self, step: Callable[[Tree, Tree], tuple[Tree, Tree]], carry: Tree, xs: Tree) -> tuple[Tree, Tree]:
        return jax.lax.scan(step, carry, xs)

    def while_loop(
        self,
        condition: Callable[[Tree], Array],
        body: Callable[[Tree], Tree],
        carry: Tree,
        *,
        max_steps: int,
        differentiable: bool = False,
    ) -> Tree:
        if differentiable:
            try:
                import equinox.internal as eqxi
            except ImportError:  # forward only: equinox brings the loop with a reverse derivative
                pass
            else:
                return eqxi.while_loop(condition, body, carry, max_steps=max_steps, kind="checkpointed")

        def going(counted: Tree) -> Array:
            return condition(counted[1]) & (counted[0] < max_steps)

        return jax.lax.while_loop(going, lambda c: (c[0] + 1, body(c[1])), (0, carry))[1]

    def compile(
        self, function: Callable[..., T], *, static: Sequence[int] = (), loops: bool = False
    ) -> Callable[..., T]:
        return jax.jit(function, static_argnums=tuple(static))

    def jvp(self, function: Callable[[Array], Array], x: Array, tangent: Array) -> Array:
        return jax.jvp(function, (x,), (tangent,))[1]

    def jacobian(self, function: Callable[[Array], Array], x: Array) -> Array:
        return jax.jacrev(function)(x)

    def normal(self, seed: int, shape: tuple[int, ...], like: Array) -> Array:
        return jax.random.normal(jax.random.key(seed), shape, dtype=like.dtype)

    def eigvals(self, matrix: Array) -> Any:
        platform = (
            jax.default_backend() if isinstance(matrix, jax.core.Tracer) else next(iter(matrix.devices())).platform
        )
        if platform == "cpu":
            return jnp.linalg.eigvals(matrix)
        # no nonsymmetric eigenvalues on accelerators: on the host
        dtype = jnp.complex64 if matrix.dtype == jnp.float32 else jnp.complex128
        shape = jax.ShapeDtypeStruct(matrix.shape[:-1], dtype)
        return jax.pure_callback(
            lambda m: host_eigvals(np.asarray(m)).astype(dtype), shape, matrix, vmap_method="broadcast_all"
        )

    def root(self, equations: Equations, search: Callable[[Tree], Tree], theta: Tree) -> Tree:
        x, sound, report = search(jax.tree.map(self.stop_gradient, theta))
        return _root(equations, x, sound, theta), sound, report

    def sparse(self, matrix: Any, like: Array) -> Operator:
        if hasattr(matrix, "tocsr"):  # of scipy
            rows = matrix.tocsr()
            longest = int(np.diff(rows.indptr).max(initial=1))
            if longest * rows.shape[0] <= _MOST_PADDING * rows.nnz:
                return padded_rows(rows, like)
            from jax.experimental.sparse import BCOO

            matrix = BCOO.from_scipy_sparse(rows)
        matrix = jax.tree_util.tree_map(lambda leaf: leaf if _whole(leaf) else leaf.astype(like.dtype), matrix)
        return Operator(_sparse_product, (matrix,), shape=tuple(matrix.shape), batched=True)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _root(equations: Equations, x: Array, sound: Array, theta: Tree) -> Array:
    """x itself, which solves the equations, and moves with theta as they say."""
    return x


@_root.defjvp
def _move(equations: Equations, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    x, sound, theta = primals
    found = _root(equations, x, sound, theta)  # the rule again: it has all derivatives
    at = equations.at(found, sound, theta)
    _, change = jax.jvp(lambda theta: equations.field(at, sound, theta), (theta,), (tangents[2],))
    if equations.by_products:

        def product(direction: Array) -> Array:
            return equations.product(at, sound, theta, direction)

        def solve(product: Callable[[Array], Array], right: Array) -> Array:
            return solve_by_products(jnp, product, right)

        moved = jax.lax.custom_linear_solve(product, change, solve, transpose_solve=solve)
    else:
        moved = solve_vector(jnp, equations.matrix(at, sound, theta), change)
    return found, -moved


_MOST_PADDING = 4


def _whole(leaf: Array) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jnp.integer))


def _sparse_product(matrix: Any, vector: Array) -> Array:
    return (matrix @ vector.reshape(-1, vector.shape[-1]).T).T.reshape(vector.shape)


# An Operator's arrays may be traced; its function is a constant of the program.
jax.tree_util.register_pytree_node(
    Operator,
    lambda operator: (operator.arrays, (operator.function, operator.shape, operator.batched)),
    lambda fixed, arrays: Operator(fixed[0], arrays, shape=fixed[1], batched=fixed[2]),
)

backend = JaxBackend()
