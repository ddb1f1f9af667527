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
    untraceable = (jax.errors.JAXTypeError,)
    """Errors of a function that looks at values that are traced."""

    def is_concrete(self, array: Array) -> bool:
        # under jit, operations trace even on constants
        return not isinstance(self.stop_gradient(array), jax.core.Tracer)

    def differentiates(self, array: Array) -> bool:
        """Whether derivatives by ``array`` may be asked for."""
        return isinstance(array, jax.core.Tracer)

    def stop_gradient(self, array: Array) -> Array:
        return jax.lax.stop_gradient(array)

    def scan(self, step: Callable[[Tree, Tree], tuple[Tree, Tree]], carry: Tree, xs: Tree) -> tuple[Tree, Tree]:
        def one(carry: Tree) -> Tree:
            return step(carry, jax.tree.map(lambda leaf: leaf[0], xs))[0]

        return jax.lax.scan(step, _varying(one, carry), xs)

    def while_loop(
        self,
        condition: Callable[[Tree], Array],
        body: Callable[[Tree], Tree],
        carry: Tree,
        *,
        max_steps: int,
        differentiable: bool = False,
    ) -> Tree:
        carry = _varying(body, carry)
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

    def matmul(self, left: Array, right: Array) -> Array:
        """In the full precision of the dtype: jax's own products of float32 are tf32 on a GPU and bfloat16 on a TPU.

        Whoever has set ``jax_default_matmul_precision``, or is in its context, gets that one.
        """
        return jnp.matmul(left, right, precision=_precision())

    def vecdot(self, left: Array, right: Array, axis: int) -> Array:
        """Rounded as by :meth:`matmul`."""
        return jnp.vecdot(left, right, axis=axis, precision=_precision())

    def linear_recurrence(self, factor: Array, term: Array) -> Array:
        """s_t = factor_t s_{t-1} + term_t along axis 0, as an associative scan."""
        return jax.lax.associative_scan(lambda s, t: (t[0] * s[0], t[0] * s[1] + t[1]), (factor, term))[1]

    def platform(self, array: Array) -> str:
        """Where ``array`` is, or while tracing will probably be."""
        if isinstance(array, jax.core.Tracer):
            return str(jax.default_backend())
        return str(next(iter(array.devices())).platform)

    def eigvals(self, matrix: Array) -> Any:
        # no nonsymmetric eigenvalues on accelerators: on the host
        return jnp.linalg.eigvals(matrix) if self.platform(matrix) == "cpu" else _host_eigvals(matrix)

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


def varying_axes(leaf: Array) -> frozenset[str]:
    """The axes of the mesh along which an array, or what has its type, differs within ``shard_map``."""
    if not hasattr(jax.lax, "pcast"):  # an older jax, which does not ask
        return frozenset()
    kind = leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jax.typeof(leaf)
    found = getattr(kind, "manual_axis_type", None)  # vma before jax 0.10
    return frozenset(getattr(kind, "vma", None) or ()) if found is None else frozenset(found.varying)


def vary(leaf: Array, axes: frozenset[str]) -> Array:
    """The array as one that differs along these axes, too."""
    missing = tuple(sorted(axes - varying_axes(leaf)))
    return jax.lax.pcast(leaf, missing, to="varying") if missing else leaf


def _varying(body: Callable[[Tree], Tree], carry: Tree) -> Tree:
    """A loop's start, within ``shard_map`` as one that differs along the axes along which what the body gives does."""
    if not hasattr(jax.lax, "pcast") or not jax.sharding.get_abstract_mesh().manual_axes:
        return carry
    leaves, structure = jax.tree.flatten(jax.tree.map(jnp.asarray, carry))
    while True:  # ends: there are only so many axes
        given = jax.tree.leaves(jax.eval_shape(body, jax.tree.unflatten(structure, leaves)))
        axes = [varying_axes(leaf) for leaf in leaves]
        wanted = [one | varying_axes(other) for one, other in zip(axes, given, strict=True)]
        if wanted == axes:
            return jax.tree.unflatten(structure, leaves)
        leaves = [vary(leaf, more) for leaf, more in zip(leaves, wanted, strict=True)]


def _precision() -> jax.lax.Precision | None:
    """Of products: in full, unless the user has chosen."""
    return jax.lax.Precision.HIGHEST if jax.config.jax_default_matmul_precision is None else None


@jax.custom_jvp
def _host_eigvals(matrix: Array) -> Array:
    values = jax.ShapeDtypeStruct(matrix.shape[:-1], _complex(matrix))
    return jax.pure_callback(
        lambda m: host_eigvals(np.asarray(m)).astype(values.dtype), values, matrix, vmap_method="broadcast_all"
    )


@_host_eigvals.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """The diagonal of V^-1 dA V, with the eigenvectors V of the host, too."""
    (matrix,), (tangent,) = primals, tangents
    values = jax.ShapeDtypeStruct(matrix.shape[:-1], _complex(matrix))
    vectors = jax.ShapeDtypeStruct(matrix.shape, values.dtype)

    def eig(m: Array) -> tuple[Any, Any]:
        found, v = _eig(np.asarray(m))
        return found.astype(values.dtype), v.astype(values.dtype)

    found, v = jax.pure_callback(eig, (values, vectors), matrix, vmap_method="broadcast_all")
    change = jnp.linalg.solve(v, backend.matmul(tangent.astype(v.dtype), v))
    return found, jnp.diagonal(change, axis1=-2, axis2=-1)


def _eig(matrix: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Eigenvalues and right eigenvectors by numpy; matrices with NaN or inf give NaN."""
    finite = np.isfinite(matrix).all(axis=(-2, -1))
    values, vectors = np.linalg.eig(np.where(finite[..., None, None], matrix, 0))
    return np.where(finite[..., None], values, np.nan), np.where(finite[..., None, None], vectors, np.nan)


def _complex(matrix: Array) -> Any:
    return jnp.complex64 if matrix.dtype == jnp.float32 else jnp.complex128


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
