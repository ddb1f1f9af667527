"""Derivatives of fixed points, of first and higher order, against finite differences of numpy's fixed points."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from array_api_compat import array_namespace
from support import VARIANTS, Library, central_difference, numpy_tree, small_circuit

import organics_core as oc
from organics_core.backend import tree_map
from organics_core.model import Parameter
from organics_core.weights import matvec


def derivatives(xp: Library, function: Callable[[Any], Any]) -> tuple[float, float]:
    """First and second derivative at 0 of a scalar function of one number, by the library."""
    if xp.name == "jax":
        import jax

        first, second = jax.jit(jax.value_and_grad(jax.grad(function)))(xp.array(0.0))
        return float(first), float(second)
    import torch

    zero = xp.array(0.0).requires_grad_()
    (first,) = torch.autograd.grad(function(zero), zero, create_graph=True)
    (second,) = torch.autograd.grad(first, zero)
    return float(first.detach()), float(second)


def second_difference(function: Callable[[float], float], h: float = 0.02) -> float:
    """Second derivative at 0, of eighth order."""
    weights = (8 / 5, -1 / 5, 8 / 315, -1 / 560)
    pairs = (function(k * h) + function(-k * h) for k in range(1, 5))
    middle = function(0.0)
    return sum(weight * (pair - 2 * middle) for weight, pair in zip(weights, pairs, strict=True)) / h**2


def assert_derivatives(xp: Library, scalar: Callable[[Any], Any], tree: Any, seed: int = 0, h: float = 0.02) -> None:
    """Both derivatives of ``scalar`` of a tree of arrays, along a random direction of all of them."""
    __tracebackhide__ = True
    rng = np.random.default_rng(seed)
    direction = tree_map(lambda leaf: leaf * rng.uniform(-0.5, 0.5, np.shape(leaf)), tree)

    def along(there: Any, way: Any) -> Callable[[Any], Any]:
        return lambda s: scalar(tree_map(lambda leaf, step: leaf + s * step, there, way))

    first, second = derivatives(xp, along(xp.tree(tree), xp.tree(direction)))
    on_host = along(tree, direction)
    np.testing.assert_allclose(first, central_difference(lambda s: float(on_host(s)), 1e-2), rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(second, second_difference(lambda s: float(on_host(s)), h), rtol=2e-6, atol=1e-8)


def total(state: Any) -> Any:
    """A scalar in which every number of a state has its own part."""
    xp = array_namespace(*state)
    count = sum(part.shape[-1] for part in state)
    packed = xp.concat(list(state), axis=-1)
    weights = xp.asarray(np.linspace(1.0, 2.0, count).tolist(), dtype=packed.dtype)
    return (packed * weights / (1.0 + packed * packed)).sum()


@pytest.mark.library("torch", "jax")
@pytest.mark.parametrize("method", ["newton", "iteration", "auto"])
def test_one_neuron(xp64: Library, method: str) -> None:
    """The second derivative of y in w, whose sign was wrong: -0.3100."""

    def y(w: Any) -> Any:
        xp = array_namespace(w)
        one = xp.ones((1,), dtype=w.dtype)
        circuit = oc.Circuit(xp.full((1, 1), 0.5, dtype=w.dtype), xp.reshape(w, (1, 1)), 0.5, 0.5, 0.1, 0.002, 0.002)
        return oc.steady_state(circuit, one, method=method, tol=1e-14).state.y[0]

    first, second = derivatives(xp64, lambda s: y(1.0 + s))

    def host(s: float) -> float:
        return float(y(np.asarray(1.0 + s)))

    np.testing.assert_allclose(first, central_difference(host, 1e-2), rtol=1e-9)
    np.testing.assert_allclose(second, second_difference(host), rtol=1e-8)
    np.testing.assert_allclose(second, -0.3100, atol=5e-5)


BOTH, TORCH = pytest.mark.library("torch", "jax"), pytest.mark.library("torch")


@pytest.mark.parametrize(
    ("method", "variant"),
    [pytest.param("newton", variant, marks=BOTH) for variant in VARIANTS]
    + [pytest.param("iteration", VARIANTS[0], marks=BOTH)]  # which steps lead there is no matter to the derivative:
    + [pytest.param("iteration", variant, marks=TORCH) for variant in VARIANTS[1:]],  # jax compiles seconds for each
)
def test_every_variant(xp64: Library, method: str, variant: str) -> None:
    """Along a direction of all parameters and the drive at once, away from the kinks."""
    case = small_circuit(3, seed=1)

    def scalar(tree: Any) -> Any:
        circuit = oc.Circuit._make(tree[0])
        return total(oc.steady_state(circuit, tree[1], method=method, variant=variant, tol=1e-14).state)

    assert_derivatives(xp64, scalar, (tuple(case.circuit), case.z), h=0.01)


@pytest.mark.library("torch", "jax")
@pytest.mark.parametrize("variant", ["main", "rectified"])
def test_closed_form(xp64: Library, variant: str) -> None:
    case = small_circuit(3, seed=2, identity=True)

    def scalar(tree: Any) -> Any:
        circuit = oc.Circuit._make(tree[0])
        return total(oc.steady_state(circuit, tree[1], method="closed_form", variant=variant).state)

    assert_derivatives(xp64, scalar, (tuple(case.circuit), case.z))


@pytest.mark.library("torch", "jax")
@pytest.mark.parametrize("method", ["auto", "closed_form"])
@pytest.mark.parametrize("variant", ["main", "rectified"])
def test_w_r_that_is_the_identity_has_derivatives(xp64: Library, variant: str, method: str) -> None:
    """The formula of that case has no W_r; its derivatives are those of the fixed points beside it, seen or traced."""
    case = small_circuit(3, seed=2)
    change = np.random.default_rng(0).standard_normal((3, 3))
    z = np.abs(case.z)

    def along(circuit: Any, step: Any, drive: Any, method: str) -> Callable[[Any], Any]:
        def scalar(s: Any) -> Any:
            made = circuit._replace(w_r=circuit.w_r + s * step)
            return total(oc.steady_state(made, drive, method=method, variant=variant, tol=1e-14).state)

        return scalar

    circuit = case.circuit._replace(w_r=np.eye(3))
    on_host = along(circuit, change, z, "auto")
    function = along(xp64.tree(circuit), xp64.array(change), xp64.array(z), method)
    if xp64.name == "jax":  # not compiled: there the values are seen
        import jax

        first, second = (float(part) for part in jax.value_and_grad(jax.grad(function))(xp64.array(0.0)))
    else:
        first, second = derivatives(xp64, function)
    np.testing.assert_allclose(first, central_difference(lambda s: float(on_host(s)), 1e-2), rtol=1e-7)
    np.testing.assert_allclose(second, second_difference(lambda s: float(on_host(s))), rtol=2e-6)


@pytest.mark.library("torch", "jax")
@pytest.mark.parametrize("name", ["w_r", "tau_y"])
@pytest.mark.parametrize(("unit", "method"), [(True, "auto"), (True, "newton"), (True, "closed_form"), (False, "auto")])
def test_batch_axes_that_the_point_does_not_depend_on_count_once(
    xp64: Library, unit: bool, method: str, name: str
) -> None:
    """Those of time constants, and of a W_r that is the identity: derivatives are the sum of those of the members."""
    case = small_circuit(3, seed=2)
    one = case.circuit._replace(w_r=np.eye(3)) if unit else case.circuit
    wide = one._replace(**{name: np.broadcast_to(getattr(one, name), (4, *getattr(one, name).shape)).copy()})

    def slope(circuit: Any) -> Any:
        made, z = xp64.tree(circuit), xp64.array(case.z)

        def scalar(z: Any) -> Any:
            return total(oc.steady_state(made, z, method=method).state)

        if xp64.name == "jax":
            import jax

            return np.asarray(jax.grad(scalar)(z))
        import torch

        made.w_r.requires_grad_()
        return torch.autograd.grad(scalar(z.requires_grad_()), z)[0].numpy()

    np.testing.assert_allclose(slope(wide), 4 * slope(one), rtol=1e-9)


class Level(NamedTuple):
    """x alone."""

    x: Any


class Cubic(NamedTuple):
    """A model of one's own: no Jacobian, no rest."""

    w: Any
    spec = {"w": Parameter(axes=2)}  # noqa: RUF012 - an annotated one would be a field
    state = Level

    def field(self, xp: Any, t: Any, x: Level, z: Any) -> Level:
        return Level(z - x.x - x.x**3 + xp.tanh(matvec(xp, self.w, x.x)))


def models() -> dict[str, tuple[Any, np.ndarray]]:
    rng = np.random.default_rng(3)
    w_r, w = small_circuit(2, seed=3).circuit[:2]
    z = np.array([0.5, 0.3])
    v1 = oc.V1Circuit(w_r, w, *(np.full(2, value) for value in (0.2, 0.2, 0.1, 0.002, 0.002, 0.002)))
    tau = np.array([0.02, 0.01])
    ssn = oc.SSN(np.array([[1.25, -0.65], [1.2, -0.5]]), np.full(2, 0.04), np.full(2, 2.0), tau, np.ones(2))
    weights = np.array([[3.0, -2.0], [2.0, -1.0]])
    populations = oc.WilsonCowan(weights, np.array([1.3, 2.0]), np.array([4.0, 3.7]), tau, np.ones(2))
    return {
        "v1": (v1, 0.3 * z),
        "ssn": (ssn, np.array([2.0, 3.0])),
        "wilson-cowan": (populations, np.array([1.25, 0.5])),
        "own": (Cubic(rng.standard_normal((2, 2))), z),
    }


@pytest.mark.library("torch", "jax")
@pytest.mark.parametrize("name", ["v1", "ssn", "wilson-cowan", "own"])
def test_other_models(xp64: Library, name: str) -> None:
    model, z = models()[name]

    def scalar(tree: Any) -> Any:
        return total(oc.steady_state(type(model)._make(tree[0]), tree[1], tol=1e-14).state)

    assert_derivatives(xp64, scalar, (tuple(model), z), h=0.01)


@pytest.mark.library("torch", "jax")
def test_operators_are_their_matrices(xp64: Library) -> None:
    """Convolutions on a ring, differentiated in their kernels: both derivatives as with the matrices."""
    rng = np.random.default_rng(4)
    kernels, z = (0.3 * rng.standard_normal(3), rng.random(3)), rng.standard_normal(3)
    index = (np.arange(3)[:, None] - np.arange(3)) % 3

    def fixed(make: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def at(s: Any) -> Any:
            w_r, w = (make(kernel * (1.0 + s)) for kernel in xp64.tree(kernels))
            circuit = oc.Circuit(w_r, w, 0.5, 0.5, 0.1, 0.002, 0.002)
            return total(oc.steady_state(circuit, xp64.array(z) * (1.0 + s), tol=1e-14).state)

        return at

    operators, dense = fixed(oc.ring_convolution), fixed(lambda kernel: kernel[index])
    want = derivatives(xp64, dense)
    if xp64.name == "jax":  # the search looks at values: not under jit
        import jax

        np.testing.assert_allclose(float(jax.grad(operators)(xp64.array(0.0))), want[0], rtol=1e-9)
    else:
        np.testing.assert_allclose(derivatives(xp64, operators), want, rtol=1e-9)


@pytest.mark.library("torch", "jax")
def test_a_member_without_a_fixed_point_has_no_derivatives_and_spoils_none(xp64: Library) -> None:
    """One iteration is enough for the member that starts at its fixed point only."""
    case = small_circuit(3, seed=1)
    found = oc.steady_state(case.circuit, case.z, tol=1e-14).state
    start = oc.State(*(np.stack([part, 1e150 + 0 * part]) for part in found))
    circuit = xp64.tree(case.circuit)

    def both(s: Any) -> oc.SteadyState:
        z = xp64.array(np.stack([case.z, case.z])) * (1.0 + s)
        return oc.steady_state(circuit, z, state0=xp64.tree(start), max_iterations=1)

    alone = derivatives(xp64, lambda s: oc.steady_state(circuit, xp64.array(case.z) * (1.0 + s)).state.y[0])
    np.testing.assert_allclose(derivatives(xp64, lambda s: both(s).state.y[:, 0].sum()), alone, rtol=1e-8)
    assert numpy_tree(both(0.0).converged).tolist() == [1.0, 0.0]


# torch.


@pytest.mark.library("torch")
def test_transforms_of_torch_nest(xp64: Library) -> None:
    """Forward and reverse mode in any order, up to the third, and mapped."""
    import torch

    case = small_circuit(3, seed=1)
    circuit, z = xp64.tree(case.circuit), xp64.array(case.z)

    def function(s: Any) -> Any:
        return total(oc.steady_state(circuit._replace(w=circuit.w * (1.0 + s)), z, tol=1e-14).state)

    two = xp64.array([0.0, 0.1])
    reverse = [torch.func.grad]
    for _ in range(2):
        reverse.append(lambda f, inner=reverse[-1]: torch.func.grad(inner(f)))
    modes = (torch.func.jacfwd, torch.func.jacrev)
    host = [central_difference(lambda h: float(function(xp64.array(h))), 1e-2)]
    for order in (1, 2, 3):
        want = [float(reverse[order - 1](function)(s)) for s in two]
        np.testing.assert_allclose(want[0], host[-1], rtol=1e-8)
        for combination in itertools.product(modes, repeat=order):
            nested = function
            for mode in combination:
                nested = mode(nested)
            np.testing.assert_allclose(numpy_tree(torch.func.vmap(nested)(two)), want, rtol=1e-8)
        host.append(central_difference(lambda h, n=order: float(reverse[n - 1](function)(xp64.array(h))), 1e-2))


@pytest.mark.library("torch")
def test_vmap_of_torch_is_a_batch(xp64: Library) -> None:
    """Over a matrix, a number, the drive and the start, each along another axis; so is the report, but stability."""
    import torch

    case = small_circuit(3, seed=1)
    circuit, z = xp64.tree(case.circuit), xp64.array(np.stack([case.z, 0.5 * case.z, -case.z]))
    w = torch.stack([circuit.w, 2.0 * circuit.w], dim=1)
    sigma = xp64.array([0.1, 0.3])
    start = oc.State(xp64.array(np.ones((3, 2))), xp64.array(np.ones((3, 2))))

    def solve(w: Any, sigma: Any, start: Any) -> Any:
        return oc.steady_state(circuit._replace(w=w, sigma=sigma), z, state0=oc.State(*start))

    mapped = torch.func.vmap(solve, in_dims=(1, 0, 1))(w, sigma, start)
    for i in range(2):
        want = solve(w[:, i], sigma[i], tree_map(lambda part, i=i: part[:, i], start))
        assert bool(want.converged.all())
        for one, other in zip((*mapped.state, *mapped[1:4]), (*want.state, *want[1:4]), strict=True):
            torch.testing.assert_close(one[i], other, rtol=1e-11, atol=1e-13)
    assert not bool((mapped.stable | mapped.unstable).any())  # not known: no loop can be followed there


@pytest.mark.library("torch")
@pytest.mark.parametrize("mode", ["grad", "jacfwd"])
def test_what_a_function_holds_must_be_named(xp64: Library, mode: str) -> None:
    """A product that closes over a tensor: its derivative would be lost, and is refused."""
    import torch

    z, matrix = xp64.array([1.0, 0.5]), xp64.array([[0.1, 0.2], [0.0, 0.1]])

    def held(s: Any) -> Any:
        return oc.steady_state(
            oc.Circuit(lambda v: s * (matrix @ v), torch.ones_like(matrix), *(5 * (0.5,))), z
        ).state.y[0]

    def named(s: Any) -> Any:
        w_r = oc.Operator(lambda s, v: s * (matrix @ v), (s,))
        return oc.steady_state(oc.Circuit(w_r, torch.ones_like(matrix), *(5 * (0.5,))), z).state.y[0]

    one = xp64.array(1.0)
    with pytest.raises(ValueError, match=r"name them in Operator\(product, arrays\)"):
        getattr(torch.func, mode)(held)(one)
    want = central_difference(lambda h: float(held(one + h)), 1e-2)
    np.testing.assert_allclose(float(getattr(torch.func, mode)(named)(one)), want, rtol=1e-8)


@pytest.mark.library("torch")
def test_layers_of_torch_twice(xp64: Library) -> None:
    import torch

    from organics_torch import DivisiveNorm, DivisiveNorm2d

    x = xp64.array(np.random.default_rng(5).standard_normal((2, 3))).requires_grad_()
    for recurrent in ("identity", "spectral"):
        layer = DivisiveNorm(3, 3, recurrent=recurrent, sigma=0.3, seed=0, dtype=torch.float64)
        names, values = zip(*layer.named_parameters(), strict=True)

        def output(x: Any, *given: Any, layer: Any = layer, names: Any = names) -> Any:
            return torch.func.functional_call(layer, dict(zip(names, given, strict=True)), (x,))

        assert torch.autograd.gradcheck(output, (x, *values))
        assert torch.autograd.gradgradcheck(output, (x, *values), fast_mode=True)
    images = xp64.array(np.random.default_rng(5).standard_normal((1, 1, 4, 4))).requires_grad_()
    layer = DivisiveNorm2d(1, 2, 3, seed=0, dtype=torch.float64)
    assert torch.autograd.gradgradcheck(layer, (images,), fast_mode=True)


# jax.


@pytest.mark.library("jax")
@pytest.mark.parametrize("recurrent", ["identity", "spectral"])
def test_layers_of_jax_twice(xp64: Library, recurrent: str) -> None:
    import jax
    from jax.test_util import check_grads

    from organics_jax import DivisiveNorm

    layer = DivisiveNorm(3, 3, recurrent=recurrent, sigma=0.3, key=jax.random.key(0), dtype=xp64.dtype)
    x = xp64.array(np.random.default_rng(5).standard_normal((2, 3)))
    check_grads(jax.jit(lambda x: layer(x)), (x,), order=2, modes=["fwd", "rev"], atol=1e-5, rtol=1e-5)


@pytest.mark.library("jax")
def test_transforms_of_jax_nest(xp64: Library) -> None:
    """A mapped Hessian is the Hessian of every member."""
    import jax

    case = small_circuit(3, seed=1)
    circuit, z = xp64.tree(case.circuit), xp64.array(np.stack([case.z, 0.5 * case.z]))

    def function(z: Any) -> Any:
        return total(oc.steady_state(circuit, z, tol=1e-14).state)

    mapped = jax.jit(jax.vmap(jax.hessian(function)))(z)
    twice = jax.jit(jax.jacrev(jax.jacrev(function)))
    for i in range(2):
        xp64.assert_close(mapped[i], numpy_tree(twice(z[i])), rtol=1e-9, atol=1e-12)
