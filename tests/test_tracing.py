"""The library under transformations: compiled, differentiated and mapped, it says what it says eagerly."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from array_api_compat import array_namespace
from support import NEEDS_RECENT_TORCH, Library, central_difference, gradient, numpy_tree, small_circuit

import organics_core as oc
from organics_core.backend import get_backend

TIMES = np.array([0.0, 0.001, 0.004])


def steady(method: str) -> Callable[..., Any]:
    def run(circuit: oc.Circuit, z: Any) -> tuple:
        return tuple(oc.steady_state(circuit, z, method=method, tol=1e-14).state)

    return run


def simulated(method: str, ramp: bool = False) -> Callable[..., Any]:
    def run(circuit: oc.Circuit, z: Any) -> tuple:
        times = like(TIMES, z)
        drive = (times[:, None] * 100.0) * z if ramp else z
        options = {"method": method, "substeps": 8, "rtol": 1e-9, "atol": 1e-11}
        return tuple(oc.simulate(circuit, drive, times, drive="sampled" if ramp else "constant", **options).state)

    return run


def like(values: np.ndarray, array: Any) -> Any:
    """A constant of the library of ``array``, made while tracing."""
    return array_namespace(array).asarray(values, dtype=array.dtype)


def analysis(circuit: oc.Circuit, z: Any) -> tuple:
    """All that needs no loop: the field, its Jacobian and spectrum; for W_r = I fixed point, certificate, energy."""
    state = oc.State(z + 0.1, z * z + 0.2)
    unit = circuit._replace(w_r=None)
    certificate = oc.certify(unit, z)
    return (
        *oc.vector_field(circuit, state, z),
        *(oc.jacobian(circuit, state), oc.spectral_abscissa(circuit, state)),
        *oc.steady_state(unit, z, method="closed_form").state,
        *(certificate.margin, certificate.p, certificate.q, oc.energy(unit, state, z)),
    )


FUNCTIONS: dict[str, Callable[..., tuple]] = {
    "newton": steady("newton"),
    "rk4": simulated("rk4"),
    "dopri5": simulated("dopri5"),
    "ramp": simulated("dopri5", ramp=True),
    "analysis": analysis,
}
"""What is transformed: functions of a whole circuit and a drive that return arrays."""


def total(function: Callable[..., tuple]) -> Callable[[Any], Any]:
    """A scalar of all results that lets none of them drown the others."""

    def scalar(tree: Any) -> Any:
        parts = function(oc.Circuit._make(tree[0]), tree[1][0])
        return sum((1.0 + 0.5 * i) * (part * part / (1.0 + part * part)).sum() for i, part in enumerate(parts))

    return scalar


@pytest.mark.library("torch", "jax")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_with_respect_to_a_circuit_and_its_drive(xp64: Library, name: str) -> None:
    """Reverse mode through a whole Circuit equals finite differences, field by field; implicit for fixed points."""
    case = small_circuit(3, seed=1)
    scalar = total(FUNCTIONS[name])
    arguments = (case.circuit, (case.z,))
    got_circuit, (got_z,) = gradient(xp64, scalar, arguments)
    assert isinstance(got_circuit, oc.Circuit)
    rng = np.random.default_rng(0)
    for field, value in {**case.circuit._asdict(), "z": case.z}.items():
        direction = value * rng.uniform(0.5, 1.5, value.shape)

        def along(h: float, field: str = field, value: Any = value, direction: Any = direction) -> float:
            moved = value + h * direction
            if field == "z":
                return float(scalar((case.circuit, (moved,))))
            return float(scalar((case.circuit._replace(**{field: moved}), (case.z,))))

        slope = got_z if field == "z" else getattr(got_circuit, field)
        want = central_difference(along, 1e-3)
        np.testing.assert_allclose(np.sum(slope * direction), want, rtol=2e-6, atol=1e-8, err_msg=field)


@pytest.mark.library("jax")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_jit_is_eager(xp64: Library, name: str) -> None:
    """Compiled with the circuit and the times as constants of the program."""
    import jax

    case = small_circuit(3, seed=1)
    circuit, z = xp64.tree(case.circuit), xp64.array(case.z)
    function = FUNCTIONS[name]
    want = numpy_tree(function(case.circuit, case.z))
    result = jax.jit(lambda z: function(circuit, z))(z)
    for one, other in zip(result, want, strict=True):
        xp64.assert_close(one, other, rtol=1e-7, atol=1e-9 * np.max(np.abs(other)))


@pytest.mark.library("jax")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_vmap_is_a_batch(xp64: Library, name: str) -> None:
    """Mapped over the drive and one field of the circuit, under jit with the whole circuit traced."""
    import jax

    case = small_circuit(3, seed=1)
    function = FUNCTIONS[name]
    factors = np.array([1.0, 0.7])
    b, z = factors[:, None] * case.circuit.b, factors[::-1, None] * case.z
    want = [numpy_tree(function(case.circuit._replace(b=b[i]), z[i])) for i in range(2)]
    axes = oc.Circuit(None, None, 0, None, None, None, None)
    mapped = jax.jit(jax.vmap(function, in_axes=(axes, 0)))
    result = mapped(xp64.tree(case.circuit._replace(b=b)), xp64.array(z))
    for k, part in enumerate(result):
        for i in range(2):
            xp64.assert_close(part[i, ...], want[i][k], rtol=1e-7, atol=1e-9 * np.max(np.abs(want[i][k])))


@pytest.mark.library("jax")
def test_forward_mode_and_second_derivatives(xp64: Library) -> None:
    """jvp of Newton's fixed point is the closed form's; so is the derivative of a derivative for rk4."""
    import jax

    case = small_circuit(3, identity=True)
    circuit, z = xp64.tree(case.circuit), xp64.array(case.z)
    matrix = circuit._replace(w_r=xp64.array(np.eye(3)))
    tangent = xp64.array(np.array([0.3, -0.2, 0.5]))
    by_newton = jax.jvp(lambda z: oc.steady_state(matrix, z, method="newton").state, (z,), (tangent,))[1]
    closed = jax.jvp(lambda z: oc.steady_state(circuit, z).state, (z,), (tangent,))[1]
    for one, other in zip(by_newton, closed, strict=True):
        xp64.assert_close(one, numpy_tree(other), rtol=1e-9)

    def end(scale: Any) -> Any:
        return oc.simulate(circuit, scale * z, xp64.array(TIMES), method="rk4").state.y[-1, 0]

    second = jax.grad(jax.grad(end))(xp64.array(1.0))
    first = central_difference(lambda h: float(jax.grad(end)(xp64.array(1.0 + h))), 1e-3)
    np.testing.assert_allclose(float(second), first, rtol=1e-7)


@pytest.mark.library("jax")
def test_cell_under_jit_grad_and_vmap(xp64: Library) -> None:
    """A mapped cell is a batched cell; a compiled one an eager one."""
    import jax

    parameters, start = (xp64.tree(part) for part in oc.init_cell(0, 2, 4))
    xs = xp64.array(np.random.default_rng(0).standard_normal((5, 3, 2)))
    batched, ys = oc.cell_sequence(parameters, start, xs)

    def one(xs: Any) -> Any:
        return oc.cell_sequence(parameters, start, xs)

    mapped, mapped_ys = jax.jit(jax.vmap(one, in_axes=1, out_axes=(0, 1)))(xs)
    xp64.assert_close(mapped_ys, numpy_tree(ys), rtol=1e-12)
    xp64.assert_close(mapped.a, numpy_tree(batched.a), rtol=1e-12)


@pytest.mark.library("jax")
def test_what_cannot_be_traced_says_so(xp64: Library) -> None:
    """Dense output has as many pieces as there are steps."""
    import jax

    case = small_circuit(2)
    circuit, z = xp64.tree(case.circuit), xp64.array(case.z)
    with pytest.raises(ValueError, match="dense=True cannot be traced"):
        jax.jit(lambda z: oc.simulate(circuit, z, xp64.array(TIMES), dense=True).state)(z)


@pytest.mark.library("jax", "torch")
@pytest.mark.parametrize("name", ["classify", "prove", "continue_fixed_points", "limit_cycle"])
@pytest.mark.parametrize("traced", ["drive", "weights"])
def test_what_looks_at_values_says_so_when_traced(xp64: Library, name: str, traced: str) -> None:
    """Whether the drive or a parameter is what cannot be seen."""
    case = small_circuit(2)
    circuit, z = xp64.tree(case.circuit), xp64.array(case.z)
    more = ("z", (0.5, 1.0)) if name == "continue_fixed_points" else ()

    def call(value: Any) -> Any:
        given = (circuit, value) if traced == "drive" else (circuit._replace(w=value), z)
        getattr(oc, name)(*given, *more)
        return value

    value = z if traced == "drive" else circuit.w
    if xp64.name == "jax":
        import jax

        transforms = [(jax.jit(call), value), (jax.vmap(call), value[None])]
    else:
        import torch

        transforms = [(torch.func.vmap(call), value[None])]
    for transformed, argument in transforms:
        with pytest.raises(ValueError, match=f"{name} looks at values and cannot be traced"):
            transformed(argument)


def covariances(circuit: oc.Circuit, z: Any) -> tuple:
    """What is summed from products of matrices alone."""
    state = oc.State(z + 0.1, z * z + 0.2)
    frequencies = like(np.array([1.0, 2.0]), z)
    return (
        oc.noise_covariance(circuit, state, 0.1, z=z),
        oc.power_spectrum(circuit, state, 0.1, frequencies, z=z).real,
    )


def sequence(circuit: oc.Circuit, z: Any) -> tuple:
    """The trained cell, with its sizes alone from the circuit."""
    parameters, start = (
        type(part)._make([like(value, z) for value in part]) for part in oc.init_cell(0, z.shape[0], z.shape[0])
    )
    return (oc.cell_sequence(parameters, start, z[None, :])[1],)


def products(jaxpr: Any) -> list[Any]:
    """The precisions of all products in a program of jax, those of its loops and branches included."""
    import jax

    found = [equation.params["precision"] for equation in jaxpr.eqns if equation.primitive.name == "dot_general"]
    for equation in jaxpr.eqns:
        for value in jax.tree.leaves(tuple(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                found += products(inner)
    return found


@pytest.mark.library("jax")
@pytest.mark.one_dtype
@pytest.mark.parametrize("name", [*FUNCTIONS, "rodas5p", "covariances", "sequence"])
def test_products_are_exact_unless_the_user_wants_less(xp: Library, name: str) -> None:
    """jax's own default on a GPU is tf32: three digits of float32. Derivatives included; the user's choice counts."""
    import jax

    others = {"rodas5p": simulated("rodas5p"), "covariances": covariances, "sequence": sequence}
    function = (FUNCTIONS | others)[name]
    case = small_circuit(40)  # smaller matrices are multiplied entry by entry
    tree = (*xp.tree(case.circuit),), (xp.array(case.z),)
    highest = jax.lax.Precision.HIGHEST
    reverse = name not in ("newton", "dopri5", "ramp", "rodas5p") or importlib.util.find_spec("equinox") is not None
    program = jax.grad(total(function)) if reverse else total(function)
    found = products(jax.make_jaxpr(program)(tree).jaxpr)
    assert found
    assert set(found) == {(highest, highest)}
    if name in ("rk4", "sequence"):  # others solve linear equations, in which jax itself asks for the highest
        with jax.default_matmul_precision("tensorfloat32"):
            again = products(jax.make_jaxpr(program)(tree).jaxpr)
        assert len(again) == len(found)
        assert set(again) == {(jax.lax.Precision.HIGH,) * 2}


@pytest.mark.library("jax")
@pytest.mark.parametrize("batch", [(), (3,)])
def test_eigenvalues_from_the_host_have_derivatives(
    xp: Library, batch: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on an accelerator, where jax has none: compiled, differentiated both ways and mapped, they are jax's own."""
    import jax

    namespace, backend = xp.namespace, get_backend(xp.namespace)
    matrix = xp.array(np.random.default_rng(0).standard_normal((*batch, 5, 5)))

    def scalar(matrix: Any) -> Any:
        values = backend.eigvals(matrix)
        assert values.dtype == xp.complex_dtype
        return namespace.sum(namespace.max(namespace.real(values), axis=-1)) + namespace.sum(namespace.abs(values) ** 2)

    want = numpy_tree(jax.grad(scalar)(matrix))
    wanted = np.sort_complex(np.linalg.eigvals(np.asarray(matrix, dtype=float)))
    monkeypatch.setattr(type(backend), "platform", lambda self, array: "gpu")
    found = np.sort_complex(np.asarray(jax.jit(backend.eigvals)(matrix)))
    np.testing.assert_allclose(found, wanted, rtol=100 * xp.eps, atol=100 * xp.eps)
    close = {"rtol": 1e-10, "atol": 1e-10}  # terms up to 10, and the condition of the eigenvectors
    xp.assert_close(jax.jit(jax.grad(scalar))(matrix), want, **close)
    xp.assert_close(jax.jacfwd(scalar)(matrix), want, **close)
    xp.assert_close(jax.jit(jax.vmap(jax.grad(scalar)))(namespace.stack([matrix, matrix]))[1], want, **close)
    broken = np.where(np.arange(5) == 2, np.nan, np.asarray(matrix))
    assert np.isnan(np.asarray(jax.jit(backend.eigvals)(xp.array(broken)))).all()
    if not xp.single:
        direction = np.random.default_rng(1).standard_normal(matrix.shape)
        slope = central_difference(lambda h: float(scalar(xp.array(np.asarray(matrix) + h * direction))), 1e-3)
        assert np.sum(want * direction) == pytest.approx(slope, rel=1e-8)


# torch.


@NEEDS_RECENT_TORCH
@pytest.mark.library("torch")
@pytest.mark.parametrize("name", ["vector_field", "jacobian", "cell_step"])
@pytest.mark.filterwarnings("ignore:Dynamo detected")
def test_full_graph(xp64: Library, name: str) -> None:
    """``torch.compile(fullgraph=True)`` captures the step in one graph, forward and backward."""
    import torch

    case = small_circuit(3, seed=1)
    circuit, state = xp64.tree(case.circuit), xp64.tree(case.state)
    parameters, start = (xp64.tree(part) for part in oc.init_cell(0, 2, 4))
    step, arguments, traced = {
        "vector_field": (oc.vector_field, (circuit, state), xp64.array(case.z)),
        "jacobian": (lambda circuit, y: (oc.jacobian(circuit, oc.State(y, y * y)),), (circuit,), state.y),
        "cell_step": (oc.cell_step, (parameters, start), xp64.array([[0.5, -1.0], [2.0, 0.1]])),
    }[name]
    x = traced.clone().requires_grad_()
    eager = step(*arguments, x)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")(*arguments, x)
    for one, other in zip(compiled, eager, strict=True):
        xp64.assert_close(one, numpy_tree(other), rtol=1e-12, atol=1e-13)
    got, want = (torch.autograd.grad(sum((part * part).sum() for part in parts), x)[0] for parts in (compiled, eager))
    assert float(want.abs().max()) > 0
    xp64.assert_close(got, numpy_tree(want), rtol=1e-10, atol=1e-13)


FIRST = """
import organics_core as oc
import torch

def field(w, drive):
    circuit = oc.Circuit(None, w, drive, drive, drive, drive, drive)
    return oc.vector_field(circuit, oc.State(drive, drive), drive).y

w, drive = torch.eye(2), torch.tensor([0.5, 0.25])
compiled = torch.compile(field, fullgraph=True, backend="eager")(w, drive)
assert torch.allclose(compiled, field(w, drive))
"""


@NEEDS_RECENT_TORCH
@pytest.mark.library("torch")
def test_full_graph_as_the_first_call(xp64: Library) -> None:
    """The backend is found even where nothing but the compiler has asked for it."""
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", FIRST], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


@NEEDS_RECENT_TORCH
@pytest.mark.library("torch")
@pytest.mark.parametrize("name", ["rk4", "analysis"])
def test_torch_func(xp64: Library, name: str) -> None:
    """torch.func.grad with respect to a whole circuit is autograd's; torch.func.vmap is a batch."""
    import torch

    case = small_circuit(3, seed=1)
    scalar = total(FUNCTIONS[name])
    circuit, z = xp64.tree(case.circuit), xp64.array(case.z)
    want, (want_z,) = gradient(xp64, scalar, (case.circuit, (case.z,)))
    got, got_z = torch.func.grad(lambda circuit, z: scalar((circuit, (z,))), argnums=(0, 1))(circuit, z)
    assert isinstance(got, oc.Circuit)
    for one, other in zip((*got, got_z), (*want, want_z), strict=True):
        xp64.assert_close(one, other, rtol=1e-8, atol=1e-12)
    factors = np.array([1.0, 0.7])[:, None]
    batch = xp64.array(factors * case.z)
    mapped = torch.func.vmap(lambda z: FUNCTIONS[name](circuit, z))(batch)
    for i in range(2):
        for part, other in zip(mapped, FUNCTIONS[name](circuit, batch[i]), strict=True):
            xp64.assert_close(part[i], numpy_tree(other), rtol=1e-9, atol=1e-9)


@pytest.mark.library("torch")
def test_adaptive_steps_cannot_be_mapped_and_say_so(xp64: Library) -> None:
    """The message names the way out."""
    import torch

    case = small_circuit(3)
    circuit, batch = xp64.tree(case.circuit), xp64.array(np.stack([case.z, case.z]))
    with pytest.raises(ValueError, match="use a fixed-step method"):
        torch.func.vmap(lambda z: oc.simulate(circuit, z, xp64.array(TIMES)).state)(batch)
