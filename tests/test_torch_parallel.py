"""implementation="parallel" in torch: the sequential numbers and gradients, its fallback, its reports, advice."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from support import NEEDS_RECENT_TORCH  # noqa: E402
from test_torch_layers import assert_same, core, numbers, run, start  # noqa: E402

import organics_core as oc  # noqa: E402
import organics_torch as ot  # noqa: E402
from organics_torch import parallel  # noqa: E402

T, N, K, H = 90, 3, 3, 6


def make(**options):
    return ot.ORGaNICs(K, H, **{"dtype": torch.float64, "seed": 3, "implementation": "parallel"} | options)


def unstable():
    """A net whose largest Lyapunov exponent is positive."""
    options = {"variant": "main", "max_rates": (0.5, 0.5, 0.5), "initialization": "oscillators"}
    layer = make(**options)
    with torch.no_grad():
        layer.cells[0].w_r.mul_(2.0)
    return layer


@pytest.fixture
def no_fallback(monkeypatch):
    def fail(*_):
        raise AssertionError("fell back to the sequential implementation")

    monkeypatch.setattr(parallel, "_sequential", fail)


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("recurrent", ["orthogonal", "identity", "spectral"])
@pytest.mark.parametrize("variant", ["rectified_recurrence", "main"])
def test_values_and_gradients_are_the_cores(variant, recurrent, precision, no_fallback):
    """Two layers over 90 steps; every gradient, that of the start state among them."""
    dtype = getattr(torch, precision)
    value, derivative = (1e-10, 1e-10) if precision == "float64" else (1e-5, 5e-5)
    layer = make(num_layers=2, variant=variant, recurrent=recurrent, dtype=dtype)
    x, hx = numbers(1, T, N, K, dtype=dtype), start(2, batch=N, dtype=dtype)
    for outputs in (True, False):
        found, wanted = run(layer, x, hx, outputs=outputs), core(layer, x, hx, outputs)
        assert_same(found[:1], wanted[:1], value)
        assert_same(found[1:], wanted[1:], derivative)
    assert all(report.converged and report.iterations < 40 for report in ot.parallel_report(layer, x))


def test_a_backward_pass_within_hooks_on_saved_tensors():
    """torch.func refuses them; the gradients are those of the sequential implementation."""
    layer, x, gradients = make(), numbers(1, T, N, K).requires_grad_(), []
    for implementation, hooks in (("function", nullcontext), ("parallel", torch.autograd.graph.save_on_cpu)):
        layer.implementation = implementation
        with hooks():
            found = torch.autograd.grad(layer(x)[0].square().sum(), [x, *layer.parameters()])
        gradients.append(found)
    assert_same(*gradients, 1e-10)


def test_the_float32_gradients_are_as_exact_as_the_sequential_ones(no_fallback):
    layer, x, hx = (
        make(dtype=torch.float32),
        numbers(1, T, N, K, dtype=torch.float32),
        start(batch=N, dtype=torch.float32),
    )
    _, found = run(layer, x, hx)
    _, wanted = core(layer.double(), x.double(), ot.CellState(*(part.double() for part in hx)))
    for one, other in zip(found, wanted, strict=True):
        assert float((one - other).abs().max()) < 5e-5 * float(other.abs().max())


@pytest.mark.parametrize("implementation", ["parallel", "reference"])
def test_closed_gates_are_as_exact_as_others(implementation):
    """Gates at sigmoid(-12.3), in float32: their values and gradients by float64's."""

    def of(kind, dtype):
        layer = make(implementation=kind, dtype=dtype)
        cell = layer.cells[0]
        with torch.no_grad():
            cell.w_bx0.fill_(-4.1)
            cell.w_bx1.fill_(-4.1)
        _, hn = layer(torch.ones(400, 1, K, dtype=dtype), core_start(dtype))
        return [
            *(part.detach() for part in hn),
            *torch.autograd.grad(hn.b0.sum() + hn.b1.sum(), [cell.w_bx0, cell.w_bx1]),
        ]

    def core_start(dtype):
        return ot.CellState(*(torch.full((1, 1, H), value, dtype=dtype) for value in (0.1, 0.1, 6e-6, 6e-6)))

    for one, other in zip(of(implementation, torch.float32), of("function", torch.float64), strict=True):
        assert float((one - other).abs().max()) < 1e-5 * float(other.abs().max())


def test_where_the_states_do_not_converge_the_steps_are_run_one_by_one():
    layer, x, hx = unstable(), numbers(1, 300, N, K), start(batch=N)
    (report,) = ot.parallel_report(layer, x)
    assert not report.converged
    found = run(layer, x, hx)
    layer.implementation = "auto"
    assert_same(found, run(layer, x, hx), 1e-14)


def test_where_the_adjoints_do_not_converge_neither(monkeypatch):
    layer, x, hx = make(), numbers(1, T, N, K), start(batch=N)
    wanted = core(layer, x, hx)
    solve, calls = parallel.solve_adjoint, []

    def in_one(*arguments):
        calls.append(1)
        return solve(*arguments, max_iterations=1)

    monkeypatch.setattr(parallel, "solve_adjoint", in_one)
    assert_same(run(layer, x, hx), wanted, 1e-10)
    assert calls


def test_the_seams_of_a_layer(no_fallback):
    """No batch, an empty one, packed sequences, checkpoints asked for, autocast: as of the other implementations."""
    layer = make(num_layers=2, checkpoint_every=4)
    other = make(num_layers=2, implementation="reference")
    x = numbers(1, 20, N, K)
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, [20, 13, 5])
    for inputs in (x, x[:, 0], packed):
        (one, last), (two, end) = layer(inputs), other(inputs)
        pairs = [(one.data, two.data), *zip(last, end, strict=True)]
        assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-11) for a, b in pairs)
    assert len(ot.parallel_report(layer, packed)) == 6  # three stretches of each layer
    with torch.autocast("cpu"):
        assert layer(x)[0].dtype == torch.float64


def test_an_empty_batch_and_frozen_parameters():
    layer = make()
    output, _ = layer(torch.zeros(T, 0, K, dtype=torch.float64))
    assert output.shape == (T, 0, H)
    for parameter in layer.parameters():
        parameter.requires_grad_(False)
    assert not layer(numbers(1, T, N, K))[0].requires_grad


@NEEDS_RECENT_TORCH
@pytest.mark.slow
def test_compiled(no_fallback):
    layer, x = make(), numbers(1, 20, N, K)
    wanted = layer(x)[0]
    gradients = torch.autograd.grad(wanted.square().sum(), list(layer.parameters()))
    output = torch.compile(layer, fullgraph=True, backend="aot_eager")(x)[0]
    assert_same([[output]], [[wanted]], 1e-12)
    assert_same([torch.autograd.grad(output.square().sum(), list(layer.parameters()))], [gradients], 1e-10)


def test_reports_leave_the_model_as_it_was():
    model = ot.ORGaNICsClassifier(K, H, 4, num_layers=2, seed=0, dropout=0.5)
    x = torch.rand(2, 50, K)
    reports = ot.parallel_report(model, x)
    assert [type(value) for value in reports[1]] == [bool, int, float, float]
    assert len(reports) == 2
    assert all(report.converged and report.change <= 1e-6 for report in reports)
    assert model.training
    assert model.layer.implementation == "auto"
    assert not parallel.observers


def test_advice_is_what_was_measured():
    x = numbers(1, 100, N, K)
    advice = ot.parallel_advice(make(num_layers=2), x)
    assert advice.exponent < 0
    assert advice.iterations > 1
    assert advice.pays == (advice.seconds_parallel < advice.seconds_sequential)
    assert f"{advice.iterations} iterations" in advice.reason
    advice = ot.parallel_advice(unstable(), numbers(1, 300, N, K))
    assert not advice.pays
    assert advice.exponent > 0
    assert "did not converge" in advice.reason


@pytest.mark.parametrize("function", [ot.parallel_report, ot.parallel_advice])
def test_bad_arguments(function):
    with pytest.raises(TypeError, match="model must be a torch module, got"):
        function(3, torch.zeros(4, 1, K))
    with pytest.raises(ValueError, match="model has no ORGaNICs layers"):
        function(torch.nn.Linear(2, 2), torch.zeros(4, 2))
    with pytest.raises(ValueError, match="input must have shape"):
        function(make(), torch.zeros(4, 1, K + 1, dtype=torch.float64))
    with pytest.raises(ValueError, match="steps must be"):
        ot.parallel_advice(make(), numbers(1, T, N, K), steps=0)
    with pytest.raises(RuntimeError, match="'parallel' needs float32 or float64"):
        make(dtype=torch.float16)(torch.zeros(4, 1, K, dtype=torch.float16))
    assert np.isfinite(float(make()(numbers(1, T, N, K))[0].sum().detach()))


@pytest.mark.parametrize(("precision", "scale"), [("float64", 1e-200), ("float32", 1e-28), ("float32", 1e25)])
def test_gradients_of_any_size(precision, scale, no_fallback):
    """The adjoints are linear in the gradients of the loss: sizes near the ends of the dtype change no digit."""
    dtype = getattr(torch, precision)
    x, found = numbers(1, T, N, K, dtype=dtype), []
    for implementation in ("parallel", "function"):
        layer = make(implementation=implementation, dtype=dtype)
        loss = (layer(x)[0][-1] * scale).sum()
        found.append([g.double() / scale for g in torch.autograd.grad(loss, list(layer.parameters()))])
    for one, other in zip(*found, strict=True):
        assert float((one - other).abs().max()) < 1e3 * torch.finfo(dtype).eps * float(other.abs().max())


@pytest.mark.parametrize("shared", [True, False])
def test_reports_from_several_threads(shared):
    """Each is of its own model, which is left as it was."""
    models = [ot.ORGaNICs(K, H, num_layers=1 + index, seed=index) for index in range(2)]
    if shared:
        models[1] = models[0]
    xs = [torch.rand(60 + 20 * index, 2, K) for index in range(2)]
    wanted = [ot.parallel_report(*pair) for pair in zip(models, xs, strict=True)]
    with ThreadPoolExecutor(2) as pool:
        rounds = [pool.submit(ot.parallel_report, models[i % 2], xs[i % 2]) for i in range(40)]
        found = [future.result() for future in rounds]
    assert found == wanted * 20
    assert {(model.implementation, model.training) for model in models} == {("auto", True)}


def test_nothing_to_advise_on():
    layer, x = ot.ORGaNICs(K, H), torch.zeros(4, 0, K)
    assert ot.parallel_report(layer, x) == ()
    advice = ot.parallel_advice(layer, x)
    assert not advice.pays
    assert np.isnan(advice.exponent)
    assert advice.reason == "there was nothing to compute"


def test_derivatives_do_not_pass_through_the_cores_iterations():
    """Which from a state at rest stop at once, and would give wrong ones."""
    parameters, start = oc.init_cell(0, K, H)
    fields = type(parameters)(
        *(None if value is None else torch.tensor(value, requires_grad=True) for value in parameters)
    )
    state = oc.CellState(*(torch.tensor(part) for part in start))
    last, ys, report = oc.parallel_cell_sequence(fields, state, numbers(1, 9, N, K))
    assert report.converged
    assert not ys.requires_grad
    assert not last.a.requires_grad
