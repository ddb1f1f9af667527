"""The Backend protocol: only what the array API standard lacks.

The core is written against the Python array API. A few things it needs are not
in the standard: loops a compiler can see, random numbers, derivatives of a
user's own function, eigenvalues of a general matrix. A *backend* supplies
them for one array library and nothing else; elementwise operations are never
wrapped. Backends are found through the entry-point group
``organics_core.backends`` (the entry's name is the top-level module of the
array library, its value an instance of a :class:`Backend`), so any package can
add one. Every other conforming library is served by :class:`GenericBackend`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib.metadata import entry_points
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

import numpy as np
from array_api_compat import array_namespace, device, to_device

Array = Any
Tree = Any
T = TypeVar("T")

ENTRY_POINT_GROUP = "organics_core.backends"


def tree_map(function: Callable[..., Any], tree: Tree, *rest: Tree) -> Tree:
    """Apply ``function`` to every array of nested (named) tuples; ``None`` stays ``None``."""
    if tree is None:
        return None
    if isinstance(tree, tuple):
        children = [tree_map(function, *parts) for parts in zip(tree, *rest, strict=True)]
        return type(tree)._make(children) if hasattr(tree, "_make") else tuple(children)
    return function(tree, *rest)


def tree_leaves(tree: Tree) -> list[Array]:
    """The arrays of nested (named) tuples, in order."""
    if tree is None:
        return []
    if isinstance(tree, tuple):
        return [leaf for part in tree for leaf in tree_leaves(part)]
    return [tree]


@runtime_checkable
class Backend(Protocol):
    """What an array library must offer beyond the array API standard.

    Attributes
    ----------
    name : str
        Of the library.
    traces_loops : bool
        Whether ``scan`` and ``while_loop`` are primitives that trace; else they
        are Python loops on the host.
    """

    name: str
    traces_loops: bool

    def is_concrete(self, array: Array) -> bool:
        """Whether the values of ``array`` can be looked at now (false while tracing)."""
        ...

    def stop_gradient(self, array: Array) -> Array:
        """The same values, through which no derivative flows."""
        ...

    def scan(self, step: Callable[[Tree, Tree], tuple[Tree, Tree]], carry: Tree, xs: Tree) -> tuple[Tree, Tree]:
        """``carry, y_k = step(carry, x_k)`` along the leading axis of ``xs``; the ``y_k`` stacked."""
        ...

    def while_loop(
        self,
        condition: Callable[[Tree], Array],
        body: Callable[[Tree], Tree],
        carry: Tree,
        *,
        max_steps: int,
        differentiable: bool = False,
    ) -> Tree:
        """Apply ``body`` while ``condition`` holds, at most ``max_steps`` times.

        ``differentiable`` asks for reverse derivatives, which some loops must prepare for.
        """
        ...

    def compile(
        self, function: Callable[..., T], *, static: Sequence[int] = (), loops: bool = False
    ) -> Callable[..., T]:
        """Compile ``function``; arguments ``static`` are hashable constants.

        ``loops`` says that the function contains whole loops, which only
        libraries with loop primitives can compile; the others return it as is.
        """
        ...

    def jvp(self, function: Callable[[Array], Array], x: Array, tangent: Array) -> Array:
        """Directional derivative at ``x`` (..., n) along ``tangent`` of a function of every member (n,) by itself."""
        ...

    def jacobian(self, function: Callable[[Array], Array], x: Array) -> Array:
        """Jacobian of ``function``: (n,) -> (m,) at ``x``; shape (m, n)."""
        ...

    def root(self, equations: Any, search: Callable[[Tree], Tree], theta: Tree) -> Tree:
        """``x, sound, report = search(theta)``, where x has the derivatives in theta that the equations imply.

        ``equations`` is an :class:`organics_core.implicit.Equations`. Where the
        library has no derivatives the search is all.
        """
        ...

    def normal(self, seed: int, shape: tuple[int, ...], like: Array) -> Array:
        """Independent standard normal numbers of the dtype and device of ``like``."""
        ...

    def eigvals(self, matrix: Array) -> Array:
        """Eigenvalues of general square matrices (..., n, n), complex, shape (..., n)."""
        ...

    def sparse(self, matrix: Any, like: Array) -> Any:
        """A sparse matrix, of this library or of scipy, as an Operator on vectors of the kind of ``like``."""
        ...


def quiet(backend: Any) -> AbstractContextManager[Any]:
    """No warnings of what is looked out for, where the library gives any."""
    return cast("AbstractContextManager[Any]", getattr(backend, "quiet", nullcontext)())


# Central differences of order eight, and of order six on the same points, whose
# difference bounds the error. The error of the first is O(h^8), so a step as large
# as a hundredth of x leaves round-off of only about 100 eps.
_STENCIL = ((1, 4 / 5, 3 / 4), (2, -1 / 5, -3 / 20), (3, 4 / 105, 1 / 60), (4, -1 / 280, 0.0))


class GenericBackend:
    """Python loops, central differences and host eigenvalues: any conforming library."""

    name = "generic"
    traces_loops = False
    step = 0.01
    """Step of the central differences, relative to the size of what is moved."""
    enough = 0.65
    """A difference whose relative error is estimated below eps to this power is not repeated with other steps."""

    def is_concrete(self, array: Array) -> bool:
        return True

    def stop_gradient(self, array: Array) -> Array:
        return array

    def scan(self, step: Callable[[Tree, Tree], tuple[Tree, Tree]], carry: Tree, xs: Tree) -> tuple[Tree, Tree]:
        leaves = tree_leaves(xs)
        xp = array_namespace(*leaves)
        length = int(leaves[0].shape[0])
        if length == 0:
            raise ValueError("scan needs at least one step; the leading axis of xs has length 0")
        outputs = []
        for k in range(length):
            carry, y = step(carry, tree_map(lambda leaf, k=k: leaf[k, ...], xs))
            outputs.append(y)
        return carry, tree_map(lambda *parts: xp.stack(list(parts)), *outputs)

    def while_loop(
        self,
        condition: Callable[[Tree], Array],
        body: Callable[[Tree], Tree],
        carry: Tree,
        *,
        max_steps: int,
        differentiable: bool = False,
    ) -> Tree:
        for _ in range(max_steps):
            if not bool(condition(carry)):
                break
            carry = body(carry)
        return carry

    def compile(
        self, function: Callable[..., T], *, static: Sequence[int] = (), loops: bool = False
    ) -> Callable[..., T]:
        return function

    def jvp(self, function: Callable[[Array], Array], x: Array, tangent: Array) -> Array:
        xp = array_namespace(x, tangent)
        # dtypes of 4 bytes have too little room for a small step
        base = self.step * (10.0 if xp.finfo(x.dtype).bits <= 32 else 1.0)
        enough = float(xp.finfo(x.dtype).eps) ** self.enough
        size, moved = xp.abs(x), xp.abs(tangent)
        top, reach = xp.max(size, axis=-1), xp.max(moved, axis=-1)
        reach = xp.where(reach > 0, reach, 1.0)
        unit = xp.where(top > 1, top, 1.0) / reach
        wide = xp.where(top > 0, top / reach, unit)
        live = (moved > 0) & (size > 0)
        own = xp.min(xp.where(live, size / xp.where(live, moved, 1.0), xp.inf), axis=-1)
        own = xp.where(xp.isfinite(own), own, wide)
        heavy = xp.max(xp.where(moved > 0, size, 0.0), axis=-1) / reach
        # From the size of what is moved to that of all, to one; a zero tells no size, so then further down and up.
        lengths = {3: own, 4: wide, 5: unit, 2: 1e-3 * own, 1: 1e-6 * own, 0: 1e-9 * own, 6: 1e3 * unit, 7: 1e6 * unit}
        tried: dict[int, tuple[Array, Array]] = {}
        for rank, length in lengths.items():
            if any(bool(xp.all((length <= 10 * lengths[k]) & (lengths[k] <= 10 * length))) for k in tried):
                continue
            with quiet(self):  # a step may leave where the function is defined
                value, doubt = self._difference(xp, function, x, tangent, base * length, heavy)
            tried[rank] = value, doubt
            span = wide[..., None] if value.ndim > wide.ndim else wide
            change = span * xp.abs(value)
            if change.ndim > 1:  # of many directions at once the largest counts
                change = xp.max(change, axis=0, keepdims=True)
            if bool(xp.all((span * doubt <= enough * change) & xp.isfinite(doubt))):
                break
        # The longer step where it is in less doubt, and does not contradict the shorter.
        (best, bar), *longer = (tried[rank] for rank in sorted(tried))
        for value, doubt in longer:
            agrees = ~xp.isfinite(bar) | (xp.abs(xp.where(xp.isfinite(bar), value - best, 0.0)) <= doubt + bar)
            better = (doubt < bar) & agrees
            best, bar = xp.where(better, value, best), xp.where(better, doubt, bar)
        return best

    def _difference(
        self, xp: Any, function: Callable[[Array], Array], x: Array, tangent: Array, h: Array, size: Array
    ) -> tuple[Array, Array]:
        """The derivative by steps ``h`` (...), and how far it may be off."""
        step = h[..., None] * tangent
        eighth: Array = None
        sixth: Array = None
        spread: Array = None
        for k, weight, other in _STENCIL:
            up, down = function(x + k * step), function(x - k * step)
            change, largest = up - down, xp.where(xp.abs(up) > xp.abs(down), xp.abs(up), xp.abs(down))
            eighth = weight * change if eighth is None else eighth + weight * change
            sixth = other * change if sixth is None else sixth + other * change
            spread = largest if spread is None else xp.where(largest > spread, largest, spread)
        over = h[..., None] if eighth.ndim > h.ndim else h
        size = size[..., None] if eighth.ndim > size.ndim else size
        eps = float(xp.finfo(x.dtype).eps)
        value = eighth / over
        doubt = (30.0 * xp.abs(eighth - sixth) + eps * (4.0 * spread + size * xp.abs(value))) / over
        return value, xp.where(xp.isfinite(doubt), doubt, xp.inf)

    def jacobian(self, function: Callable[[Array], Array], x: Array) -> Array:
        xp = array_namespace(x)
        n = x.shape[0]
        eye = xp.eye(n, dtype=x.dtype, device=device(x))
        return xp.stack([self.jvp(function, x, eye[i, :]) for i in range(n)], axis=-1)

    def root(self, equations: Any, search: Callable[[Tree], Tree], theta: Tree) -> Tree:
        return search(theta)

    def normal(self, seed: int, shape: tuple[int, ...], like: Array) -> Array:
        xp = array_namespace(like)
        numbers = np.random.default_rng(seed).standard_normal(shape)
        return xp.asarray(numbers.tolist(), dtype=like.dtype, device=device(like))

    def eigvals(self, matrix: Array) -> Array:
        xp = array_namespace(matrix)
        on_host = to_numpy(matrix)
        values = host_eigvals(on_host)
        dtype = xp.complex64 if xp.finfo(matrix.dtype).bits == 32 else xp.complex128
        # an object the library itself can read: sequences are in the standard, and empty ones have no other axes
        return xp.reshape(xp.asarray(values.reshape(-1).tolist(), dtype=dtype, device=device(matrix)), values.shape)

    def sparse(self, matrix: Any, like: Array) -> Any:
        from .weights import padded_rows

        return padded_rows(matrix, like)


def host_eigvals(matrix: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """``numpy.linalg.eigvals``, always complex; matrices with NaN or inf give NaN."""
    finite = np.isfinite(matrix).all(axis=(-2, -1))
    safe = np.where(finite[..., None, None], matrix, 0)
    values = np.linalg.eigvals(safe)
    values = values.astype(np.result_type(values.dtype, np.complex64))
    return np.where(finite[..., None], values, np.asarray(complex(math.nan, 0.0), dtype=values.dtype))


def to_numpy(array: Array) -> np.ndarray[Any, Any]:
    """A numpy copy of ``array`` from any library and device; gradients are left behind."""
    if isinstance(array, np.ndarray):
        return array
    if hasattr(array, "detach"):  # torch tensors that require a gradient refuse to convert
        array = array.detach()
    if hasattr(array, "get") and hasattr(array, "data") and not hasattr(array, "to_device"):  # cupy
        return np.asarray(array.get())
    try:
        return np.asarray(to_device(array, "cpu"))
    except (ValueError, TypeError, AttributeError, RuntimeError):
        pass
    try:
        return np.asarray(array)
    except RuntimeError:  # of torch.func: a tensor that has values but no memory of its own
        return np.asarray(array.tolist(), dtype=str(array.dtype).rpartition(".")[2])


def from_numpy(xp: Any, values: Any, like: Array) -> Array:
    """Numbers, in the library, dtype and device of ``like``; nested sequences are what every library reads."""
    return xp.asarray(np.asarray(values).tolist(), dtype=like.dtype, device=device(like))


@cache
def compiled(backend: Any, function: Callable[..., Any], static: tuple[int, ...] = (0,)) -> Callable[..., Any]:
    """A function with loops, compiled once per static arguments and shapes, where the library compiles loops."""
    return backend.compile(function, static=static, loops=True)  # type: ignore[no-any-return]


def as_one(function: Callable[..., T], *trees: Tree, settings: tuple[Any, ...] = ()) -> T:
    """``function(*settings, *trees)``, as one program where the library compiles and the arrays have values."""
    leaves = tree_leaves(trees)
    backend = get_backend(array_namespace(leaves[0]))
    if backend.traces_loops and all(backend.is_concrete(leaf) for leaf in leaves):
        function = compiled(cast(Any, backend), function, tuple(range(len(settings))))
    return function(*settings, *trees)


_GENERIC = GenericBackend()


# Plain dictionaries, not functools.cache: torch.compile traces through a cached
# function into its body, here the import machinery, but reads a dictionary.
_ENTRY_POINTS = {entry.name: entry for entry in entry_points(group=ENTRY_POINT_GROUP)}
_LOADED: dict[str, Backend] = {}


def _load(library: str) -> None:
    """Put the backend of ``library`` into ``_LOADED``, unless it is there."""
    if library in _LOADED:
        return
    entry = _ENTRY_POINTS.get(library)
    if entry is None:
        _LOADED[library] = _GENERIC
        return
    backend: Backend = entry.load()
    missing = [
        name
        for name in (
            "is_concrete",
            "stop_gradient",
            "scan",
            "while_loop",
            "compile",
            "jvp",
            "jacobian",
            "root",
            "normal",
            "eigvals",
            "sparse",
        )
        if not callable(getattr(backend, name, None))
    ]
    missing += [] if hasattr(backend, "traces_loops") else ["traces_loops"]
    if missing:
        raise TypeError(f"the backend {entry.value!r} registered for {library!r} lacks {', '.join(missing)}")
    _LOADED[library] = backend


# A first use may lie inside torch.compile, which is to run the function, not to trace
# it; it must come before the first look at _LOADED, whose content is then recorded.
_load._dynamo_marked_constant = True  # type: ignore[attr-defined]


def library_of(xp: Any) -> str:
    """Top-level name of the library behind a namespace: ``"numpy"``, ``"torch"``, ``"jax"``, ..."""
    name: str = xp.__name__
    if name.startswith("array_api_compat."):
        name = name.removeprefix("array_api_compat.")
    return name.split(".")[0]


def get_backend(xp: Any) -> Backend:
    """The backend of an array namespace, or the generic one.

    Parameters
    ----------
    xp : module
        An array namespace, as ``array_api_compat.array_namespace`` returns it.

    Returns
    -------
    Backend

    Examples
    --------
    >>> import numpy as np
    >>> import organics_core as oc
    >>> oc.get_backend(np).name
    'numpy'
    """
    library = library_of(xp)
    _load(library)
    return _LOADED[library]


# By library first: torch.compile reads a dictionary whose keys are strings or types.
_KERNELS: dict[str, dict[type[Any], Callable[..., Any]]] = {}


def register_kernel(kind: type[Any], library: str, kernel: Callable[..., Any]) -> None:
    """Register the fast kernel of a kind of computation for one array library.

    Parameters
    ----------
    kind : type
        What is computed: the class whose instances the kernel serves, such as
        a class of methods. It says what its kernels take and return; where one
        returns None the general code goes on.
    library : str
        Top-level name of the array library.
    kernel : callable
        In the place of one that is registered already.
    """
    _KERNELS.setdefault(library, {})[kind] = kernel


def kernel_for(kind: type[Any], xp: Any) -> Callable[..., Any] | None:
    """The kernel registered for a kind of computation and the library of a namespace, or None.

    Parameters
    ----------
    kind : type
    xp : module
        An array namespace. The backend of its library is loaded first: it
        registers its kernels as it loads.

    Returns
    -------
    callable or None
    """
    library = library_of(xp)
    _load(library)
    known = _KERNELS.get(library, {})
    for base in kind.__mro__:
        if base in known:
            return known[base]
    return None


def registered_backends() -> tuple[str, ...]:
    """Names of the array libraries for which a backend is registered.

    Returns
    -------
    tuple of str

    Examples
    --------
    >>> import organics_core as oc
    >>> 'numpy' in oc.registered_backends()
    True
    """
    return tuple(sorted(_ENTRY_POINTS))
