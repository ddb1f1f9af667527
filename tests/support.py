"""What the tests share: one array library with its assertion, and random circuits as hypothesis strategies."""

from __future__ import annotations

import functools
import inspect
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import array_api_extra.testing as xpt
import numpy as np
import pytest
from array_api_compat import array_namespace, device
from hypothesis import given, settings
from hypothesis import strategies as st

import organics_core as oc
from organics_core.backend import to_numpy as to_numpy
from organics_core.backend import tree_leaves, tree_map

ROOT = Path(__file__).parents[1]
DESCRIBED = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["organics-core"]["libraries"]
"""The array libraries, as pyproject.toml describes them."""

LIBRARIES: dict[str, str] = {name: about.get("module", name) for name, about in DESCRIBED.items()}
"""What a library is called on the command line, and the module that must import for it."""

PRECISIONS: dict[str, list[str]] = {
    name: about.get("precisions", ["float64", "float32"]) for name, about in DESCRIBED.items()
}

ELSEWHERE = "only elsewhere: "
"""Begins the reason of a skip that no installation could avoid: another machine is needed."""


def _torch_version() -> tuple[int, ...]:
    """Major and minor; (0,) without torch."""
    try:
        return tuple(map(int, version("torch").split(".")[:2]))
    except PackageNotFoundError:
        return (0,)


RECENT_TORCH = _torch_version() >= (2, 11)
"""Whether torch compiles the core and the layers, and shards on CPUs; 2.6 does not, those between were not tried."""
NEEDS_RECENT_TORCH = pytest.mark.skipif(not RECENT_TORCH, reason=f"{ELSEWHERE}torch since 2.11 can")

PATIENCE = 900
"""Seconds after which a process counts as hung, however busy the machine is. No result depends on it."""

VARIANTS = tuple(oc.VARIANTS)


class Membrane(NamedTuple):
    v: Any
    w: Any


class FitzHughNagumo(NamedTuple):
    """A user's own model: no Jacobian, no rest, no time constants."""

    a: Any
    b: Any
    epsilon: Any
    tau: Any
    spec = {name: oc.Parameter("> 0") for name in ("a", "b", "epsilon", "tau")}  # noqa: RUF012
    state = Membrane

    def field(self, xp: Any, t: Any, x: Membrane, z: Any) -> Membrane:
        v = x.v - x.v**3 / 3 - x.w + z
        w = self.epsilon * (x.v + self.a - self.b * x.w)
        return Membrane(v / self.tau, w / self.tau)


class Library:
    """One array library at one precision: makes its arrays and checks them."""

    def __init__(self, name: str, precision: str) -> None:
        import importlib

        module = importlib.import_module(LIBRARIES[name])
        self.name = name
        self.precision = precision
        self.single = precision == "float32"
        self.module = module
        self.namespace = array_namespace(module.asarray([0.0]))
        self.dtype = getattr(self.namespace, precision)
        self.eps = float(np.finfo(precision).eps)
        self.device = device(self.array(0.0))
        self._programs: dict[Any, Callable[..., Any]] = {}
        self.examples = {"numpy": 50, "torch": 15}.get(name, 10)

    def __repr__(self) -> str:
        return f"{self.name}-{self.precision}"

    def array(self, values: Any) -> Any:
        """An array of this library, dtype and its default device."""
        return self.namespace.asarray(np.array(values, dtype=self.precision), dtype=self.dtype)

    def compiled(self, function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        """``function`` of arrays with ``options``, compiled under jax: one program per shape, not per operation."""
        if self.name != "jax":
            return functools.partial(function, **options)
        import jax

        key = (function, *options.items())
        if key not in self._programs:
            self._programs[key] = jax.jit(functools.partial(function, **options))
        return self._programs[key]

    def tree(self, tree: Any) -> Any:
        """(Named) tuples of numpy arrays as arrays of this library; numbers and None as they are."""
        return tree_map(lambda leaf: leaf if isinstance(leaf, (float, int)) else self.array(leaf), tree)

    def assert_close(self, actual: Any, desired: Any, *, rtol: float = 1e-9, atol: float = 0.0) -> None:
        """Namespace, dtype, device, shape and values of ``actual`` against ``desired`` (numbers or numpy).

        ``rtol`` and ``atol`` are for float64; float32 allows 1e5 times as much, at least 2e-4 of ``rtol``.
        """
        __tracebackhide__ = True
        if self.single:
            rtol, atol = max(1e5 * rtol, 2e-4), 1e5 * atol
        if hasattr(actual, "detach"):
            actual = actual.detach()
        desired = np.asarray(desired)
        dtype = {"f": self.dtype, "c": self.complex_dtype, "b": self.namespace.bool}.get(
            desired.dtype.kind, actual.dtype
        )
        desired = self.namespace.asarray(np.array(desired), dtype=dtype)
        xpt.assert_close(actual, desired, rtol=rtol, atol=atol, xp=self.namespace)
        assert device(actual) == self.device

    @property
    def complex_dtype(self) -> Any:
        return self.namespace.complex64 if self.single else self.namespace.complex128

    def assert_kind(self, array: Any, shape: tuple[int, ...]) -> None:
        """Namespace, dtype, device and shape of a floating-point result."""
        __tracebackhide__ = True
        assert array_namespace(array) is self.namespace
        assert array.dtype == self.dtype
        assert device(array) == self.device
        assert tuple(array.shape) == tuple(shape)


def numpy_tree(tree: Any) -> Any:
    """(Named) tuples of any library's arrays as float64 numpy arrays."""
    return tree_map(lambda leaf: np.asarray(to_numpy(leaf) if hasattr(leaf, "shape") else leaf, dtype=float), tree)


def largest(tree: Any) -> float:
    """Largest absolute value in a tree of numpy arrays."""
    return max(float(np.max(np.abs(leaf))) for leaf in tree_leaves(tree))


class Case(NamedTuple):
    """A random circuit, a drive and an arbitrary state, in float64 numpy."""

    circuit: oc.Circuit
    z: np.ndarray
    state: oc.State


@st.composite
def cases(
    draw: Any,
    *,
    identity: bool = False,
    decades: float = 2.0,
    norm: float | None = None,
    sizes: Iterable[int] = (1, 2, 5),
    unit_input: bool = False,
    batch: bool = True,
    zeros: bool = True,
    few_shapes: bool = False,
) -> Case:
    """Random circuits.

    Parameters
    ----------
    identity : bool
        W_r = I, given as None or as a matrix.
    decades : float
        Every positive parameter is drawn log-uniformly over this many decades.
    norm : float, optional
        Largest singular value of W_r; by default between 0 and 1.
    unit_input : bool
        z of norm one, b and b0 and sigma and W of order one at most.
    batch : bool
        Also draw batch axes on some of the fields.
    zeros : bool
        Also draw zeros in z and W.
    few_shapes : bool
        One size, and batch axes on every field: for compilers.
    """
    if few_shapes:
        sizes = (3,)
    n = draw(st.sampled_from(tuple(sizes)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    spread = draw(st.floats(0.0, decades / 2))

    def positive(center: float, shape: tuple[int, ...]) -> np.ndarray:
        top = 0.0 if unit_input else spread
        return center * 10.0 ** rng.uniform(-spread, top, shape)

    # Which of the arguments carry a batch axis of length 2: (w_r, w, b, b0, sigma, tau_y, tau_a, z).
    every = tuple(range(8))
    patterns = (every,) if few_shapes else ((), (0,), (1,), (2, 4), (5,), (7,), (0, 1, 7), every)
    batched = draw(st.sampled_from(patterns)) if batch else ()

    def lead(i: int) -> tuple[int, ...]:
        return (2,) if i in batched else ()

    scalar = not few_shapes and draw(st.booleans())
    w = positive(1.0, (*lead(1), n, n)) / (n if not unit_input else 1)
    z = rng.standard_normal((*lead(7), n))
    if unit_input:
        z = z / np.linalg.norm(z, axis=-1, keepdims=True)
    else:
        z = z * positive(1.0, ())
    if zeros and draw(st.booleans()):
        w = w * (rng.random(w.shape) < 0.7)
        z = z * (rng.random(z.shape) < 0.7)
    if identity:
        w_r = None if few_shapes else draw(st.sampled_from((None, np.eye(n))))
    else:
        w_r = rng.standard_normal((*lead(0), n, n))
        scale = rng.uniform(0.0, 1.0) if norm is None else norm
        w_r = scale * w_r / np.linalg.norm(w_r, 2, axis=(-2, -1), keepdims=True)
    circuit = oc.Circuit(
        w_r,
        w,
        positive(0.5, (*lead(2), n)),
        positive(0.5, (n,)),
        0.1 if scalar else positive(0.3, (*lead(4), n)),
        0.002 if scalar and 5 not in batched else positive(0.01, (*lead(5), n)),
        positive(0.01, (n,)),
    )
    state = oc.State(rng.standard_normal(z.shape), rng.uniform(0.05, 2.0, z.shape))
    return Case(circuit, z, state)


def for_cases(*, decades: float = 2.0, **options: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Run ``body(xp, case, ...)``, or with ``xp64`` for ``xp``, for random circuits: more where they are cheap."""

    def decorate(body: Callable[..., None]) -> Callable[..., None]:
        def test(**parameters: Any) -> None:
            xp = parameters.get("xp") or parameters["xp64"]
            spread = min(decades, 1.0) if xp.single else decades
            strategy = cases(decades=spread, few_shapes=xp.name == "jax", **options)
            name = f"{body.__module__}_{body.__name__}"

            def one(case: Case) -> None:
                body(case=case, **parameters)

            one.__qualname__ = one.__name__ = name
            settings(max_examples=xp.examples)(given(case=strategy)(one))()

        test.__name__, test.__doc__, test.__module__ = body.__name__, body.__doc__, body.__module__
        signature = inspect.signature(body)
        names = [p for p in signature.parameters.values() if p.name != "case"]
        test.__signature__ = signature.replace(parameters=names)  # type: ignore[attr-defined]
        return test

    return decorate


def small_circuit(n: int = 3, seed: int = 0, *, identity: bool = False, scale: float = 0.7) -> Case:
    """One ordinary circuit, for tests that need no randomness."""
    rng = np.random.default_rng(seed)
    q = np.linalg.qr(rng.standard_normal((n, n)))[0]
    circuit = oc.Circuit(
        None if identity else scale * q,
        rng.uniform(0.1, 1.0, (n, n)),
        rng.uniform(0.3, 1.0, n),
        rng.uniform(0.3, 1.0, n),
        rng.uniform(0.1, 0.5, n),
        rng.uniform(0.001, 0.003, n),
        rng.uniform(0.001, 0.003, n),
    )
    z = rng.standard_normal(n)
    z = z / np.linalg.norm(z)
    return Case(circuit, z, oc.State(rng.standard_normal(n), rng.uniform(0.1, 1.5, n)))


def assert_same_spectrum(actual: np.ndarray, desired: np.ndarray, rtol: float = 1e-8) -> None:
    """Two unordered lists of eigenvalues agree, relative to the largest."""
    __tracebackhide__ = True
    assert actual.shape == desired.shape
    left = list(desired)
    scale = np.max(np.abs(desired))
    for value in actual:
        nearest = min(range(len(left)), key=lambda i: abs(left[i] - value))
        assert abs(left.pop(nearest) - value) <= rtol * scale


def run_python(code: str, *path: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in a fresh interpreter, with ``path`` before its module path and ``variables`` set."""
    import os

    environment = os.environ | variables
    if path:
        environment["PYTHONPATH"] = os.pathsep.join((*path, environment.get("PYTHONPATH", ""))).rstrip(os.pathsep)
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, env=environment, check=False
    )


def two_devices() -> dict[str, str]:
    """Variables under which jax takes the CPU for two devices."""
    import os

    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    return {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}


def gradient(xp: Library, function: Callable[[Any], Any], tree: Any) -> Any:
    """Gradient of a scalar ``function`` of a tree of arrays by the library's own reverse mode; numpy in, numpy out."""
    tree = xp.tree(tree)
    if xp.name == "jax":
        import jax

        return numpy_tree(jax.jit(jax.grad(function))(tree))
    tree = tree_map(lambda leaf: leaf.requires_grad_(), tree)
    leaves = tree_leaves(tree)
    import torch

    slopes = iter(torch.autograd.grad(function(tree), leaves, allow_unused=True, materialize_grads=True))
    return numpy_tree(tree_map(lambda leaf: next(slopes), tree))


def central_difference(function: Callable[[float], Any], h: float = 1e-4) -> Any:
    """Derivative of ``function`` of one number at 0, of sixth order."""
    total = 0.0
    for k, weight in ((1, 3 / 4), (2, -3 / 20), (3, 1 / 60)):
        total = total + weight / h * (function(k * h) - function(-k * h))
    return total
