"""Methods, one step at a time: order, stability, interpolation, kernels, and what compilers and batches need."""

from __future__ import annotations

import math
from collections.abc import Iterable
from fractions import Fraction
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from support import NEEDS_RECENT_TORCH, Library, gradient, numpy_tree

import organics_core as oc
from organics_core.backend import kernel_for, tree_leaves
from organics_core.methods import METHODS, RODAS5P, Method, Rosenbrock, RungeKutta, Step, get_method, time_derivative

RATES = np.array([1.0, 2.5])


class Bernoulli:
    """x' = r x (cos t - x / 2), with x = e**(r sin t) / (1 / x0 + r / 2 integral of e**(r sin s) ds)."""

    autonomous = False

    def __init__(self, xp: Library) -> None:
        self.xp, self.rates = xp.namespace, xp.array(RATES)
        self.tau = xp.array([1.0, 0.7])

    def cosine(self, t: Any) -> Any:
        return math.cos(t) if isinstance(t, float) else self.xp.cos(t)

    def __call__(self, t: Any, x: Any) -> Any:
        return self.rates * x * (self.cosine(t) - 0.5 * x)

    def jacobian(self, t: Any, x: Any) -> Any:
        eye = self.xp.eye(2, dtype=x.dtype)
        return eye * (self.rates * (self.cosine(t) - x))[..., None]


START = np.array([0.5, 1.5])


@cache
def bernoulli(end: float) -> np.ndarray:
    """The solution, with Gauss-Legendre quadrature of the integral (entire integrand: to rounding)."""
    nodes, weights = np.polynomial.legendre.leggauss(60)
    s = 0.5 * end * (nodes + 1.0)
    integral = 0.5 * end * np.exp(RATES[:, None] * np.sin(s)) @ weights
    return np.exp(RATES * np.sin(end)) / (1.0 / START + 0.5 * RATES * integral)


class ProtheroRobinson:
    """x' = rate (x - sin t) + cos t, whose solution is sin t at any rate."""

    autonomous = False
    tau = None

    def __init__(self, xp: Library, rates: np.ndarray) -> None:
        self.xp, self.rates = xp.namespace, xp.array(rates)

    def __call__(self, t: Any, x: Any) -> Any:
        sine, cosine = (math.sin(t), math.cos(t)) if isinstance(t, float) else (self.xp.sin(t), self.xp.cos(t))
        return self.rates * (x - sine) + cosine

    def jacobian(self, t: Any, x: Any) -> Any:
        return self.xp.eye(x.shape[-1], dtype=x.dtype) * self.rates


class Linear:
    """x' = A (x - c); A (..., N, N), or c, may have batch axes."""

    autonomous = True

    def __init__(self, xp: Library, matrix: Any, center: Any = 0.0) -> None:
        self.xp, self.matrix, self.center = xp.namespace, xp.array(matrix), xp.array(center)
        self.tau = xp.array(-1.0 / np.diagonal(matrix, axis1=-2, axis2=-1))

    def __call__(self, t: Any, x: Any) -> Any:
        return self.xp.matmul(self.matrix, (x - self.center)[..., None])[..., 0]

    def jacobian(self, t: Any, x: Any) -> Any:
        return self.matrix


def stepper(xp: Library, method: Method, slope: Any) -> Any:
    """``method.step`` with times as numbers; under jax compiled, where it gets 0-d arrays."""
    if xp.name != "jax":
        return lambda t, h, x, memory: method.step(slope, t, h, x, memory)
    import jax

    compiled = jax.jit(lambda t, h, x, memory: method.step(slope, t, h, x, memory))
    return lambda t, h, x, memory: compiled(xp.array(t), xp.array(h), x, memory)


def march(step: Any, method: Method, slope: Any, x: Any, end: float, count: int) -> Any:
    """The state after ``count`` equal steps from 0."""
    memory = method.init(slope, 0.0, x)
    for k in range(count):
        x, _, _, memory = step(k * (end / count), end / count, x, memory)
    return x


def orders(errors: Iterable[float]) -> list[float]:
    """log2 of the factors between successive errors."""
    return [math.log2(one / other) for one, other in pairwise(errors)]


# Order.


@pytest.mark.parametrize("name", METHODS)
def test_order_of_convergence(xp64: Library, name: str) -> None:
    """Halving the steps divides the error by 2**order, on a nonlinear problem that depends on the time."""
    method, slope, x = METHODS[name], Bernoulli(xp64), xp64.array(START)
    step = stepper(xp64, method, slope)
    errors = [
        np.max(np.abs(numpy_tree(march(step, method, slope, x, 1.0, count)) - bernoulli(1.0))) for count in (32, 64)
    ]
    assert abs(orders(errors)[0] - method.order) < 0.25


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.stiff])
def test_order_on_a_stiff_problem(xp64: Library, name: str) -> None:
    """Rates a million apart: the steps follow the slow one at their order, where an explicit method explodes."""
    method, slope = METHODS[name], ProtheroRobinson(xp64, np.array([-1e6, -1.0]))
    step, x = stepper(xp64, method, slope), xp64.array([0.0, 0.0])
    errors = [np.max(np.abs(numpy_tree(march(step, method, slope, x, 2.0, n)) - math.sin(2.0))) for n in (4, 8, 16)]
    assert min(orders(errors)) > method.order - 0.25


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.reach is not None])
def test_reach(name: str) -> None:
    """On x' = -x longer steps than the reach grow, shorter ones do not."""
    method, slope, reach = METHODS[name], Linear(Library("numpy", "float64"), [[-1.0]]), METHODS[name].reach
    step = stepper(Library("numpy", "float64"), method, slope)
    for factor in (0.5, 0.99, 1.01):
        end = march(step, method, slope, np.ones(1), 1000 * factor * reach, 1000)
        assert (abs(end[0]) > 2.0) == (factor > 1.0)


class HeunEuler(Method):
    """Two stages, the second of which estimates the error of the first: no more than a method has to say."""

    name = "heun_euler"
    order = 2
    adaptive = True

    def plain_step(self, slope: Any, t: Any, h: Any, x: Any, memory: Any, noise: Any = None) -> Step:
        first = slope(t, x)
        second = slope(t + h, x + h * first)
        return Step(x + 0.5 * h * (first + second), 0.5 * h * (second - first), None, None)


def test_a_method_of_ones_own_says_little() -> None:
    """Without states between the ends of a step, steps end at the times of the output; and no more is promised."""
    method = HeunEuler()
    assert [method.stochastic, method.interpolates, method.stiff, method.decays] == [False] * 4
    assert method.reach is None
    assert method.stiffness(None, 0.1) is None
    times = np.array([0.0, 0.3, 0.31, 1.0])
    run = oc.integrate(lambda t, x: (-x[0],), (np.ones(1),), times, method=method, rtol=1e-6, atol=1e-9)
    assert run.success
    np.testing.assert_allclose(run.state[0][:, 0], np.exp(-times), rtol=1e-5)
    with pytest.raises(ValueError, match="heun_euler"):
        oc.integrate(lambda t, x: (-x[0],), (np.ones(1),), times, method=method, dense=True)
    with pytest.raises(NotImplementedError, match="no states between the ends of a step"):
        method.interpolate(None, 0.5, 0.1)


def test_how_often_a_step_asks_for_the_slope() -> None:
    """Once a stage; of a method that ends with a slope the last is the first of the next step."""

    class Counted(Bernoulli):
        count = 0

        def __call__(self, t: Any, x: Any) -> Any:
            self.count += 1
            return super().__call__(t, x)

    asked = {"euler": 1, "exponential_euler": 1, "heun": 2, "rk4": 4, "dopri5": 6, "euler_maruyama": 1}
    asked |= {"stochastic_heun": 2, "rodas5p": 10}  # 8 stages, and 2 for the derivative by the time
    assert set(asked) == set(METHODS)
    for name, count in asked.items():
        slope = Counted(Library("numpy", "float64"))
        memory = METHODS[name].init(slope, 0.0, START)
        assert slope.count == (name == "dopri5")
        x = START
        for k in range(3):
            slope.count = 0
            x, _, _, memory = METHODS[name].plain_step(slope, 0.1 * k, 0.1, x, memory)
            assert slope.count == count, name


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.interpolates])
def test_dense_output(xp64: Library, name: str) -> None:
    """Between its ends the order is one less than at them; there it is the states; theta may be an array."""
    method, slope, x = METHODS[name], Bernoulli(xp64), xp64.array(START)
    step = stepper(xp64, method, slope)
    theta, errors = np.array([0.2, 0.5, 0.8]), []
    for h in (0.2, 0.1):
        made = step(0.0, h, x, method.init(slope, 0.0, x))
        between = method.interpolate(made.dense, xp64.array(theta[:, None]), h)
        exact = np.stack([bernoulli(h * part) for part in theta])
        errors.append(np.max(np.abs(numpy_tree(between) - exact)))
    assert orders(errors)[0] > method.order - 0.4  # of one step from the solution: one more than the order
    size = 10 * xp64.eps * sum(np.max(np.abs(numpy_tree(part))) for part in made.dense)
    xp64.assert_close(method.interpolate(made.dense, 0.0, h), START, rtol=0.0, atol=size)
    xp64.assert_close(method.interpolate(made.dense, 1.0, h), numpy_tree(made.x), rtol=0.0, atol=size)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.adaptive])
def test_the_error_is_of_the_order_of_the_embedded_method(xp64: Library, name: str) -> None:
    """It falls as h**order, and is larger than what it bounds."""
    method, slope, x = METHODS[name], Bernoulli(xp64), xp64.array(START)
    step, sizes = stepper(xp64, method, slope), []
    for h in (0.05, 0.025):
        made = step(0.0, h, x, method.init(slope, 0.0, x))
        sizes.append(np.max(np.abs(numpy_tree(made.error))))
        assert sizes[-1] > np.max(np.abs(numpy_tree(made.x) - bernoulli(h)))
    assert abs(orders(sizes)[0] - method.order) < 0.35


# The coefficients of the Rosenbrock methods, in the usual notation: alpha, beta = alpha + Gamma, b.

ROSENBROCK = {name: method.tableau for name, method in METHODS.items() if isinstance(method, Rosenbrock)}


def lower(rows: tuple[tuple[float, ...], ...]) -> np.ndarray:
    return np.array([[*row, *[0.0] * (len(rows) - len(row))] for row in rows])


def usual(tableau: Any) -> tuple[np.ndarray, np.ndarray]:
    """alpha and Gamma, with Gamma**-1 = I / gamma - c and alpha = a Gamma."""
    gamma = np.linalg.inv(np.eye(len(tableau.nodes)) / tableau.gamma - lower(tableau.coupling))
    return lower(tableau.stages) @ gamma, gamma


@cache
def trees(size: int) -> frozenset[tuple]:
    """Rooted trees of ``size`` vertices, as sorted tuples of their subtrees."""

    def forests(left: int, largest: int) -> Iterable[tuple]:
        if left == 0:
            yield ()
        for k in range(min(left, largest), 0, -1):
            for tree in trees(k):
                for others in forests(left - k, k):
                    yield (tree, *others)

    return frozenset(tuple(sorted(forest)) for forest in forests(size - 1, size - 1))


def size_and_density(tree: tuple) -> tuple[int, int]:
    parts = [size_and_density(child) for child in tree]
    size = 1 + sum(part for part, _ in parts)
    return size, size * math.prod(density for _, density in parts)


def residual(alpha: np.ndarray, gamma: np.ndarray, b: np.ndarray, order: int, theta: float = 1.0) -> float:
    """Largest residual of the conditions of an order (Hairer & Wanner II, IV.7, theorem 7.3), at theta of the step."""

    def stage(tree: tuple) -> np.ndarray:
        if len(tree) == 1:
            return (alpha + gamma) @ stage(tree[0])
        return np.prod([alpha @ stage(child) for child in tree], axis=0) if tree else np.ones(len(b))

    worst = 0.0
    for tree in trees(order):
        size, density = size_and_density(tree)
        worst = max(worst, abs(float(b @ stage(tree)) - theta**size / density))
    return worst


@pytest.mark.parametrize("name", ROSENBROCK)
def test_conditions_of_order(name: str) -> None:
    """All rooted trees, for the step, the embedded method and the dense output; published nodes and drifts."""
    tableau = ROSENBROCK[name]
    alpha, gamma = usual(tableau)
    # products of rows that add up to at most 300 in size, of numbers given to eps
    rounding = 10 * 300 * np.finfo(float).eps
    assert [len(trees(k)) for k in range(1, 7)] == [1, 1, 2, 4, 9, 20]
    weights = np.array(tableau.weights)
    for k in range(1, tableau.order + 1):
        assert residual(alpha, gamma, weights @ gamma, k) < rounding
    assert residual(alpha, gamma, weights @ gamma, tableau.order + 1) > 1e-3
    embedded = (weights - np.array(tableau.error)) @ gamma
    for k in range(1, tableau.order):
        assert residual(alpha, gamma, embedded, k) < rounding
    assert residual(alpha, gamma, embedded, tableau.order) > 1e-3
    for theta in (0.2, 0.7) if METHODS[name].interpolates else ():
        bend = sum(theta**k * np.array(row) for k, row in enumerate(tableau.dense))
        between = theta * weights + theta * (1 - theta) * bend
        for k in range(1, tableau.order):
            assert residual(alpha, gamma, between @ gamma, k, theta) < rounding
    np.testing.assert_allclose(np.sum(alpha, axis=1), tableau.nodes, rtol=0, atol=rounding)
    np.testing.assert_allclose(np.sum(gamma, axis=1), tableau.drift, rtol=0, atol=rounding)


def stability(tableau: Any, z: complex, embedded: bool = False) -> complex:
    """R(z) = 1 + z b (I - z beta)**-1 1."""
    alpha, gamma = usual(tableau)
    b = (np.array(tableau.weights) - (np.array(tableau.error) if embedded else 0.0)) @ gamma
    return complex(1.0 + z * b @ np.linalg.solve(np.eye(len(b)) - z * (alpha + gamma), np.ones(len(b))))


@pytest.mark.parametrize("name", ROSENBROCK)
@pytest.mark.parametrize("embedded", [False, True])
def test_l_stability(name: str, embedded: bool) -> None:
    """A-stable: the only pole is 1 / gamma > 0, and |R| <= 1 on the imaginary axis; stiffly accurate, so R(inf) = 0."""
    tableau = ROSENBROCK[name]
    assert tableau.gamma > 0
    for y in np.logspace(-2, 5, 500):
        assert abs(stability(tableau, 1j * y, embedded)) <= 1.0 + 1e-11
    assert abs(stability(tableau, -1e9, embedded)) < 1e-6
    alpha, gamma = usual(tableau)
    weights = np.array(tableau.weights) - (np.array(tableau.error) if embedded else 0.0)
    np.testing.assert_allclose(weights @ gamma, (alpha + gamma)[-2 if embedded else -1], rtol=0, atol=1e-12)


# Rounding.


def exact_step(tableau: Any, matrix: np.ndarray, h: float, x: np.ndarray) -> list[Fraction]:
    """The step for x' = A x in rational numbers."""
    n = len(x)
    a = [[Fraction(v) for v in row] for row in matrix.tolist()]
    w = [[(1 / (Fraction(tableau.gamma) * Fraction(h)) if i == j else 0) - a[i][j] for j in range(n)] for i in range(n)]
    start = [Fraction(v) for v in x.tolist()]
    stages: list[list[Fraction]] = []

    def mix(weights: tuple[float, ...], i: int) -> Fraction:
        return sum((Fraction(c) * u[i] for c, u in zip(weights, stages, strict=True)), Fraction(0))

    for row, coupling in zip(tableau.stages, tableau.coupling, strict=True):
        at = [start[i] + mix(row, i) for i in range(n)]
        right = [sum(a[i][j] * at[j] for j in range(n)) + mix(coupling, i) / Fraction(h) for i in range(n)]
        system = [[*w[i], right[i]] for i in range(n)]
        for i in range(n):
            system[i] = [v / system[i][i] for v in system[i]]
            for k in range(n):
                if k != i:
                    system[k] = [p - system[k][i] * q for p, q in zip(system[k], system[i], strict=True)]
        stages.append([line[-1] for line in system])
    return [start[i] + mix(tableau.weights, i) for i in range(n)]


@pytest.mark.parametrize("h", [1e-5, 1e-2, 10.0])
def test_time_constants_a_million_apart(xp: Library, h: float) -> None:
    """Coupled both ways, a step loses few digits of either; against rational arithmetic."""
    matrix = np.array([1e3, 1e-3, 1.0])[:, None] * np.array([[-1.0, 0.5, 0.25], [0.5, -1.0, 0.5], [-0.25, 0.5, -1.0]])
    x = np.array([1.0, -0.5, 0.75])
    matrix, x = (numpy_tree(xp.array(part)) for part in (matrix, x))
    method, slope = METHODS["rodas5p"], Linear(xp, matrix)
    made = stepper(xp, method, slope)(0.0, h, xp.array(x), None)
    exact = np.array([float(v) for v in exact_step(RODAS5P, matrix, float(np.asarray(h, xp.precision)), x)])
    # increments of size x, combined with coefficients that add up to 230 gamma at most
    assert np.max(np.abs(numpy_tree(made.x) - exact)) < 10 * xp.eps * 230 * RODAS5P.gamma


@pytest.mark.parametrize("name", METHODS)
def test_single_precision(xp: Library, name: str) -> None:
    """A step in either precision is that of numpy in double precision, to rounding; the dtype stays."""
    double = Library("numpy", "float64")
    method, t, h = METHODS[name], 0.25, 0.125
    x = numpy_tree(xp.array(START))
    slope, wanted = Bernoulli(xp), Bernoulli(double)
    made = stepper(xp, method, slope)(t, h, xp.array(x), method.init(slope, t, xp.array(x)))
    want = method.plain_step(wanted, t, h, x, method.init(wanted, t, x))
    assert all(leaf.dtype == xp.dtype for leaf in tree_leaves(tuple(made)))
    # slopes of size 2, 230 gamma as above; the time derivative is known to eps**(2/3), in both
    size = h * 2.0 * (230 * RODAS5P.gamma if method.stiff else 10.0)
    drift = h * 2.0 * xp.eps ** (2 / 3) if method.stiff else 0.0
    assert np.max(np.abs(numpy_tree(made.x) - want.x)) < 10 * (xp.eps * (2.0 + size) + drift)


@pytest.mark.parametrize("t", [0.0, 1.0, 100.0])
@pytest.mark.parametrize("length", [16.0, 1e4])
def test_the_time_derivative_looks_inside_the_step(xp: Library, t: float, length: float) -> None:
    """Times in [t, t + h] for the shortest steps of a loop and longer ones; right to what rounding of f allows."""
    h, seen = length * xp.eps * max(t, 1.0), []
    scale, x = 1.0 / h, xp.array([1.0, 2.0])

    class Recorded(Linear):
        def __call__(self, t: Any, x: Any) -> Any:
            seen.append(t)
            return x * math.exp(scale * (t - start))

    start, slope = t, Recorded(xp, -np.eye(2))
    found = numpy_tree(time_derivative(slope, t, h, x, slope(t, x)))
    assert t < seen[1] < seen[2] <= t + h
    # (delta / h)**2 / 3 of the third derivative; eps / delta of the slope, and of the clock in double precision
    part = (seen[1] - t) / h
    bound = 10 * (part**2 / 3 + (xp.eps + np.finfo(float).eps * t / h) / part)
    assert np.max(np.abs(found / (scale * np.array([1.0, 2.0])) - 1.0)) < bound


# Batches, kernels, tracing, derivatives.


@pytest.mark.parametrize("name", METHODS)
def test_every_member_may_have_its_own_step(xp64: Library, name: str) -> None:
    """Times and lengths (..., 1) make the steps that the members make alone."""
    method, slope = METHODS[name], Bernoulli(xp64)
    starts, times, lengths = np.stack([START, 2 * START, 0.1 * START]), [0.0, 0.5, 0.25], [0.1, 0.02, 0.3]
    x, t, h = xp64.array(starts), xp64.array(times)[:, None], xp64.array(lengths)[:, None]
    made = method.step(slope, t, h, x, method.init(slope, t, x))
    for i, (start, one, length) in enumerate(zip(starts, times, lengths, strict=True)):
        x = xp64.array(start)
        alone = method.plain_step(slope, one, length, x, method.init(slope, one, x))
        for got, want in zip(tree_leaves(tuple(made)), tree_leaves(tuple(alone)), strict=True):
            # the time derivative of a slope is known to eps**(2/3)
            tolerance = 100 * xp64.eps ** (2 / 3) if method.stiff else 100 * xp64.eps
            xp64.assert_close(got[i, ...], numpy_tree(want), rtol=0.0, atol=tolerance)
        if method.interpolates:
            got, want = (method.interpolate(step.dense, 0.3, by) for step, by in ((made, h), (alone, length)))
            xp64.assert_close(got[i, ...], numpy_tree(want), rtol=0.0, atol=tolerance)


@pytest.mark.library("numpy", "torch")
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_kernels_make_the_same_steps(xp: Library, name: str, batch: tuple[int, ...]) -> None:
    """With buffers and without: the same step, dense output and memory, and the arguments are left alone."""
    method, rng = METHODS[name], np.random.default_rng(0)
    kernel = kernel_for(type(method), xp.namespace)
    if kernel is None:
        assert not isinstance(method, RungeKutta)
        return
    x = rng.standard_normal((*batch, 3))
    shared, own = (rng.standard_normal(shape) - 2 * np.eye(3) for shape in ((3, 3), (*batch, 3, 3)))
    for matrix in (shared, own):
        slope, start = Linear(xp, matrix, [0.5, 0.0, 0.0]), xp.array(x)
        memory = method.init(slope, 0.0, start)
        made, want = kernel(method, slope, 0.3, 0.2, start, memory, None), None
        want = method.plain_step(slope, 0.3, 0.2, start, memory)
        assert isinstance(made, Step)
        # increments of size h |A| |x| = 2 at most, and what the dense output (75 in sum) makes of them
        for got, wanted in zip(tree_leaves(tuple(made)), tree_leaves(tuple(want)), strict=True):
            assert got.dtype == wanted.dtype
            np.testing.assert_allclose(numpy_tree(got), numpy_tree(wanted), rtol=0.0, atol=10 * xp.eps * 2 * 75)
        xp.assert_close(start, x, rtol=0.0)


@pytest.mark.library("torch", "jax")
@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.adaptive])
def test_derivatives_pass_through_a_step(xp64: Library, name: str) -> None:
    """On x' = -3 x the derivative of the end with respect to the start is that ratio; the error has none."""
    method, slope = METHODS[name], Linear(xp64, [[-3.0]])
    one = np.ones(1)
    ratio = numpy_tree(method.plain_step(slope, 0.0, 0.2, xp64.array(one), method.init(slope, 0.0, xp64.array(one))).x)

    def part(which: str) -> Any:
        def function(x: Any) -> Any:
            made = method.step(slope, 0.0, 0.2, x, method.init(slope, 0.0, x))
            return getattr(made, which).sum() + 0.0 * x.sum()

        return function

    np.testing.assert_allclose(gradient(xp64, part("x"), 2 * one), ratio, rtol=1e-12)
    np.testing.assert_array_equal(gradient(xp64, part("error"), 2 * one), 0.0)


@NEEDS_RECENT_TORCH
@pytest.mark.library("torch")
@pytest.mark.parametrize("name", METHODS)
def test_steps_compile_without_a_break(xp64: Library, name: str) -> None:
    """Under torch.compile(fullgraph=True), with times as 0-d tensors."""
    import torch

    method, slope = METHODS[name], Linear(xp64, -np.eye(2))
    x, t, h = xp64.array(START), xp64.array(0.0), xp64.array(0.1)

    def step(x: Any) -> Any:
        return method.step(slope, t, h, x, method.init(slope, t, x)).x

    xp64.assert_close(torch.compile(step, fullgraph=True, backend="eager")(x), numpy_tree(step(x)), rtol=1e-14)


# Single methods.


def test_noise_is_added(xp: Library) -> None:
    """Euler-Maruyama and stochastic Heun, as their formulas."""
    slope, x, kick = Bernoulli(xp), xp.array(START), np.array([0.3, -0.2])
    first = numpy_tree(slope(0.5, x))
    predicted = START + 0.1 * first + kick
    made = METHODS["euler_maruyama"].step(slope, 0.5, 0.1, x, None, xp.array(kick))
    xp.assert_close(made.x, predicted, rtol=1e-13)
    second = numpy_tree(slope(0.6, xp.array(predicted)))
    made = METHODS["stochastic_heun"].step(slope, 0.5, 0.1, x, None, xp.array(kick))
    xp.assert_close(made.x, START + 0.05 * (first + second) + kick, rtol=1e-13)


def test_exponential_euler_solves_the_decay(xp: Library) -> None:
    """Exactly, however long the step."""
    slope, x = Linear(xp, np.diag([-1.0, -1e3]), [2.0, -1.0]), xp.array(START)
    made = METHODS["exponential_euler"].step(slope, 0.0, 0.7, x, None)
    center = np.array([2.0, -1.0])
    xp.assert_close(made.x, center + np.exp(-0.7 * np.array([1.0, 1e3])) * (START - center), rtol=1e-13)


def test_stiffness_is_estimated(xp64: Library) -> None:
    """h |lambda| of every member where one eigenvalue leads; nothing to say at rest, or without two stages."""
    matrix = np.array([[[-40.0, 1.0], [0.0, -1.0]], [[-4.0, 1.0], [0.0, -1.0]], [[-4.0, 1.0], [0.0, -1.0]]])
    slope, x = Linear(xp64, matrix), xp64.array([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    method = METHODS["dopri5"]
    made = method.step(slope, 0.0, 0.1, x, method.init(slope, 0.0, x))
    xp64.assert_close(method.stiffness(made.dense, 0.1), np.array([4.0, 0.4, 0.0]), rtol=1e-9)
    assert METHODS["rk4"].stiffness(None, 0.1) is None
    assert METHODS["rodas5p"].stiffness(made.dense, 0.1) is None


@pytest.mark.parametrize("batch", [(), (2,)])
def test_a_singular_step_is_not_a_number(xp64: Library, batch: tuple[int, ...]) -> None:
    """1 / (gamma h) an eigenvalue of the Jacobian: a state that is not finite, which loops reject; no exception."""
    h = 0.25
    matrix = np.broadcast_to(np.eye(2) / (RODAS5P.gamma * h), (*batch, 2, 2)).copy()
    if batch:
        matrix[1] = -np.eye(2)
    slope, x = Linear(xp64, matrix), xp64.array(np.ones((*batch, 2)))
    end = numpy_tree(METHODS["rodas5p"].step(slope, 0.0, h, x, None).x)
    assert not np.isfinite(end[0]).any()
    assert not batch or np.isfinite(end[1]).all()


def test_methods_are_found() -> None:
    """By name, as data, or as they are; instances are constants."""
    for name, method in METHODS.items():
        assert get_method(name) is method
        assert get_method(method) is method
        assert method.name == name
        assert hash(method) == hash(get_method(name))
    for name, tableau in oc.INTEGRATORS.items():
        assert get_method(tableau) == METHODS[name]
    assert get_method(RODAS5P) == METHODS["rodas5p"]
    with pytest.raises(ValueError, match=r"^unknown method 'rk5'; choose one of 'euler', "):
        get_method("rk5")


SPOILT = {
    "stages": {"stages": RODAS5P.stages[1:]},
    "coupling": {"coupling": ((), *RODAS5P.coupling[:-1])},
    "drift": {"drift": (0.1,)},
    "weights": {"weights": (1.0,)},
    "error": {"error": (0.5, -0.5)},
    "dense": {"dense": ((1.0,),)},
}


@pytest.mark.parametrize("part", SPOILT)
def test_a_rosenbrock_tableau_that_does_not_fit_together_is_refused(part: str) -> None:
    """By the name of its part."""
    with pytest.raises(ValueError, match=f"^{part} of the tableau 'rodas5p' must have"):
        get_method(RODAS5P._replace(**SPOILT[part]))


def test_exponential_tableaus_have_one_stage() -> None:
    """Exponential Euler is the only one of its kind."""
    with pytest.raises(ValueError, match=r"^nodes of the tableau 'heun' must be 1 number"):
        get_method(oc.INTEGRATORS["heun"]._replace(exponential=True))


@pytest.mark.parametrize("name", ["euler", "rk4", "dopri5"])
def test_counts_are_integers(xp64: Library, name: str) -> None:
    """Status, steps and rejected steps, of fixed and of adaptive steps alike."""
    run = oc.integrate(lambda t, x: (-x[0],), (xp64.array([[1.0], [2.0]]),), xp64.array([0.0, 0.5, 1.0]), method=name)
    for count in (run.status, run.steps, run.rejected):
        assert "int" in str(count.dtype)
    assert run.success
