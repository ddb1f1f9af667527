"""Simulations that are never silently wrong: pulses, clocks, stiffness, settling, events, continued runs."""

from __future__ import annotations

import itertools
import json
import math
import warnings
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
from array_api_compat import array_namespace
from scipy.integrate import solve_ivp
from support import Library, numpy_tree, small_circuit, to_numpy

import organics_core as oc
from organics_core.model import Parameter
from organics_core.trajectory import STIFF, SUCCESS


def one_neuron(tau: float = 0.002) -> oc.Circuit:
    return oc.Circuit(None, np.full((2, 2), 0.5), 0.5, 0.5, 0.1, tau, tau)


def exact(circuit: oc.Circuit, drive: Any, times: np.ndarray, jumps: tuple[float, ...] = ()) -> oc.State:
    """scipy's eighth-order method, from jump to jump."""
    n = circuit.w.shape[-1]
    x = np.concatenate(oc.resting_state(circuit, np.zeros(n)))
    edges = [times[0], *[t for t in jumps if times[0] < t < times[-1]], times[-1]]
    out = np.empty((len(times), 2 * n))
    out[0] = x
    for low, high in itertools.pairwise(edges):

        def field(t: float, x: np.ndarray, low: float = low, high: float = high) -> np.ndarray:
            inside = min(max(t, low + 1e-12), high - 1e-12)
            return np.concatenate(oc.vector_field(circuit, oc.State(x[:n], x[n:]), np.asarray(drive(inside))))

        at = np.array([t for t in times if low < t <= high])
        run = solve_ivp(field, (low, high), x, "DOP853", sorted({*at, high}), rtol=1e-11, atol=1e-13)
        for t, column in zip(run.t, run.y.T, strict=True):
            out[times == t] = column
        x = run.y[:, -1]
    return oc.State(out[:, :n], out[:, n:])


PULSES = ((0.1, 0.05), (0.4, 0.01))


def pulses(t: Any, amplitude: Any) -> Any:
    return sum(amplitude * ((t >= onset) & (t < onset + length)) for onset, length in PULSES)


def test_pulses_are_not_stepped_over(xp64: Library) -> None:
    """A circuit at rest with two pulses, and outputs every millisecond: steps do not exceed the output spacing."""
    z = np.array([1.0, 0.5])
    times = np.linspace(0, 0.6, 601)
    made = xp64.array(z)
    one, zero = xp64.array(1.0), xp64.array(0.0)
    where = xp64.namespace.where
    run = oc.simulate(
        xp64.tree(one_neuron()),
        lambda t: made * sum(where((t >= a) & (t < a + b), one, zero) for a, b in PULSES),
        xp64.array(times),
    )
    assert run.success
    jumps = tuple(edge for onset, length in PULSES for edge in (onset, onset + length))
    want = exact(one_neuron(), lambda t: pulses(t, z), times, jumps)
    # without jumps= an edge lies within a step, which is accepted where its estimate is small; states are of order two
    xp64.assert_close(run.state.y, want.y, rtol=0.0, atol=5e-3)
    assert float(xp64.namespace.max(run.state.y)) > 0.5


def test_pulse_trains_know_their_jumps(xp64: Library) -> None:
    """A pulse of 3 ms and one of 30 us with outputs every 10 ms: exact, because steps end where pulses do."""
    z, times = np.array([1.0, 0.5]), np.linspace(0, 0.1, 11)
    onsets, durations = [0.0123, 0.0512], [0.003, 3e-5]
    drive = oc.pulse_train(xp64.array(z), onsets, durations, amplitudes=[1.0, 20.0])
    run = oc.simulate(xp64.tree(one_neuron()), drive, xp64.array(times), rtol=1e-9, atol=1e-12)

    def numpy_drive(t: float) -> np.ndarray:
        return z * (1.0 * (0.0123 <= t < 0.0123 + 0.003) + 20.0 * (0.0512 <= t < 0.0512 + 3e-5))

    want = exact(one_neuron(), numpy_drive, times, drive.jumps)
    xp64.assert_close(run.state.y, want.y, rtol=1e-6, atol=1e-8)
    xp64.assert_close(run.state.a, want.a, rtol=1e-6, atol=1e-8)


def test_jumps_of_a_function(xp64: Library) -> None:
    """``jumps=`` does for a function of one's own what a pulse train does by itself."""
    z, times = xp64.array([1.0, 0.5]), xp64.array(np.linspace(0, 0.1, 3))
    train = oc.pulse_train(z, [0.012], 0.003)
    options = {"rtol": 1e-9, "atol": 1e-12}
    known = oc.simulate(xp64.tree(one_neuron()), train, times, **options)
    told = oc.simulate(
        xp64.tree(one_neuron()), lambda t: train(t), times, jumps=list(train.jumps), max_step=math.inf, **options
    )
    xp64.assert_close(told.state.y, numpy_tree(known.state.y), rtol=1e-7, atol=1e-10)
    assert int(told.steps) < 400


@pytest.mark.parametrize("method", ["dopri5", "rodas5p", "rk4"])
def test_drives_are_asked_for_times_within_the_run_only(method: str) -> None:
    """An interpolator that raises outside its interval works; NaN outside is never met."""
    asked: list[float] = []

    def drive(t: Any) -> np.ndarray:
        asked.append(float(t))
        return np.array([1.0, 0.5]) if 0.005 <= t <= 0.01 else np.array([np.nan, np.nan])

    run = oc.simulate(one_neuron(), drive, np.linspace(0.005, 0.01, 6), method=method, substeps=4)
    assert run.success
    assert min(asked) >= 0.005
    assert max(asked) <= 0.01


def test_the_clock_may_start_anywhere(xp: Library) -> None:
    """A run from 100 s is the run from 0 s, in both precisions, with the drive constant or sampled."""
    case = small_circuit(3)
    circuit, z = xp.tree(case.circuit), xp.array(case.z)
    times = np.arange(9) / 512.0  # numbers that float32 holds beside 100 exactly
    here = oc.simulate(circuit, z, xp.array(times))
    there = oc.simulate(circuit, z, xp.array(100.0 + times))
    xp.assert_close(there.state.y, numpy_tree(here.state.y), rtol=1e-9, atol=1e-12)
    ramp = xp.array(times[:, None] * case.z)
    here = oc.simulate(circuit, ramp, xp.array(times), drive="sampled")
    there = oc.simulate(circuit, ramp, xp.array(100.0 + times), drive="sampled")
    xp.assert_close(there.state.y, numpy_tree(here.state.y), rtol=1e-9, atol=1e-12)


def test_long_runs_in_single_precision(xp: Library) -> None:
    """600 s at time constants of some ms: hundreds of thousands of tau, one output time, no false singularity."""
    run = oc.simulate(xp.tree(one_neuron(0.5)), xp.array([1.0, 0.5]), xp.array([0.0, 600.0]), rtol=1e-4, atol=1e-6)
    assert run.message == "reached the last time"
    want = oc.steady_state(one_neuron(0.5), np.array([1.0, 0.5])).state.y
    xp.assert_close(run.state.y[-1, ...], want, rtol=1e-3)


@pytest.mark.library("jax")
def test_the_clock_in_single_precision_keeps_its_phase() -> None:
    """An oscillation over 20,000 steps ends in the phase of double precision: the clock does not drift."""
    xp = pytest.importorskip("jax.numpy")

    def run(dtype: Any) -> Any:
        def field(t: Any, x: Any) -> Any:
            return (xp.cos(t) + 0.0 * x[0],)

        return oc.integrate(
            field,
            (xp.zeros(1, dtype=dtype),),
            xp.asarray([0.0, 200.0], dtype=dtype),
            rtol=1e-3,
            atol=1e-3,
            max_step=0.01,
        )

    single = run(xp.float32)
    assert int(single.steps) >= 20_000
    # each of 20,000 additions rounds by up to eps / 2 of a sum of order one
    assert abs(float(single.state[0][-1, 0]) - math.sin(200.0)) < 20_000 * 6e-8


def stiff() -> tuple[oc.Circuit, np.ndarray]:
    """Ten neurons whose time constants span six decades."""
    rng = np.random.default_rng(0)
    w_r = rng.standard_normal((10, 10))
    tau = np.geomspace(1e-6, 1.0, 10)
    circuit = oc.Circuit(
        0.5 * w_r / np.linalg.norm(w_r, 2), rng.random((10, 10)) / 10, 1.0, 1.0, 0.5, tau, tau[::-1].copy()
    )
    return circuit, rng.standard_normal(10)


def test_stiff_circuits(xp64: Library) -> None:
    """Time constants 1e6 apart: the stiff method agrees with scipy's Radau; dopri5 stops early and names it."""
    circuit, z = stiff()
    times = np.array([0.0, 0.01, 1.0, 5.0])
    run = oc.simulate(xp64.tree(circuit), xp64.array(z), xp64.array(times), method="rodas5p", rtol=1e-7, atol=1e-10)
    assert run.success
    assert int(run.steps) < 1000

    def field(t: float, x: np.ndarray) -> np.ndarray:
        return np.concatenate(oc.vector_field(circuit, oc.State(x[:10], x[10:]), z))

    def jac(t: float, x: np.ndarray) -> np.ndarray:
        return oc.jacobian(circuit, oc.State(x[:10], x[10:]))

    start = np.concatenate(oc.resting_state(circuit, z))
    want = solve_ivp(field, (0, 5), start, "Radau", times, jac=jac, rtol=1e-9, atol=1e-12).y
    xp64.assert_close(run.state.y, want[:10].T, rtol=1e-5, atol=1e-7)
    xp64.assert_close(run.state.a, want[10:].T, rtol=1e-5, atol=1e-7)
    slow = oc.simulate(xp64.tree(circuit), xp64.array(z), xp64.array(times), max_steps=500)
    assert int(slow.status) == STIFF
    assert "rodas5p" in slow.message


def test_a_stiff_method_follows_a_ramp(xp64: Library) -> None:
    """Samples are joined by straight lines, on which y lags by its time constant: 18 steps or so, not hundreds."""
    circuit = oc.Circuit(None, np.zeros((1, 1)), 1.0, 1.0, 0.5, 1e-3, 1e-3)
    times = np.linspace(0.0, 2.0, 3)
    run = oc.simulate(
        xp64.tree(circuit), xp64.array(times[:, None]), xp64.array(times), method="rodas5p", rtol=1e-8, atol=1e-10,
        drive="sampled",
    )  # fmt: skip
    assert run.success
    # tau y' = z - y + (1 - sqrt(a)) y, sqrt(a) = 1/2 from the start: the time constant is 2 tau
    lag = 2.0 * (times - 2e-3 * -np.expm1(-times / 2e-3))
    xp64.assert_close(run.state.y[:, 0], lag, rtol=1e-7, atol=1e-9)
    assert int(run.steps) < 60


def test_a_stiff_batch_is_said_to_be_stiff(xp64: Library) -> None:
    """As one circuit is: 400 steps of 1e-5 s do not reach the second, in either member."""
    circuit = oc.Circuit(None, np.ones((3, 3)), 1.0, 1.0, 1.0, 1e-5, 1.0)
    z = xp64.array([[1.0, 0.5, 0.2], [0.3, 2.0, 0.1]])
    for drive in (z[0, :], z):
        run = oc.simulate(xp64.tree(circuit), drive, xp64.array([0.0, 1.0]), drive="constant", max_steps=400)
        assert (numpy_tree(run.status) == STIFF).all()
        assert run.status.shape == drive.shape[:-1]


def test_a_batch_like_a_time_course_is_said_to_be_read_as_one() -> None:
    """``drive="auto"`` does not silently take a batch of T constant drives for T samples."""
    z, times = np.ones((3, 2)), np.array([0.0, 0.001, 0.002])
    with pytest.warns(oc.AmbiguousDriveWarning, match=r"drive='constant' for a batch of 3 constant drives"):
        oc.simulate(one_neuron(), z, times)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        oc.simulate(one_neuron(), z, times, drive="sampled")
        oc.simulate(one_neuron(), z, times, drive="constant")
        oc.simulate(one_neuron(), np.ones((4, 2)), times)


def test_until_steady(xp64: Library) -> None:
    """The run stops where nothing moves any more, says when, and repeats the state."""
    z, times = np.array([1.0, 0.5]), np.linspace(0, 2.0, 21)
    run = oc.simulate(xp64.tree(one_neuron()), xp64.array(z), xp64.array(times), until="steady")
    whole = oc.simulate(xp64.tree(one_neuron()), xp64.array(z), xp64.array(times))
    want = oc.steady_state(one_neuron(), z).state.y
    xp64.assert_close(run.state.y[-1, ...], want, rtol=1e-5)
    assert int(run.steps) < int(whole.steps) / 3
    assert 0.005 < float(run.settled) < 0.4
    assert run.success
    assert run.message.startswith("settled at 0.")
    late = oc.simulate(xp64.tree(one_neuron()), xp64.array(z), xp64.array(times + 1e7), until="steady")
    assert 0.005 < float(late.message.split()[2]) - 1e7 < 0.4
    with pytest.raises(ValueError, match="until='steady' needs a constant drive"):
        oc.simulate(xp64.tree(one_neuron()), lambda t: xp64.array(z), xp64.array(times), until="steady")


class _Pair(NamedTuple):
    x: Any


class _Decays(NamedTuple):
    """x' = (z - x) / tau, which says no time constants."""

    tau: Any
    spec = {"tau": Parameter("> 0")}  # noqa: RUF012
    state = _Pair
    autonomous = True

    def field(self, xp: Any, t: Any, x: _Pair, z: Any) -> _Pair:
        return _Pair((z - x.x) / self.tau)


def test_a_slow_motion_is_not_settled(xp64: Library) -> None:
    """Not after a fast mode a million times as fast, nor where y relaxes 1000 times slower than its time constant.

    With W_r = I and a weak input y tends to z / sigma in tau / sigma. The last states are right to ten tolerances, in
    root mean square over two numbers, and to as much again for the error of the run itself.
    """
    ends = np.array([0.0, 100.0])
    model, start = _Decays(np.array([1e-6, 1.0])), _Pair(np.array([0.0, 2.0]))
    options = {"until": "steady", "method": "rodas5p"}
    run = oc.simulate(xp64.tree(model), xp64.array(np.ones(2)), xp64.array(ends), state0=xp64.tree(start), **options)
    assert 10.0 < float(run.settled) < 25.0  # exp(-t) = 10 sqrt(2) 1e-6 at t = 11.2
    xp64.assert_close(run.state.x[-1, ...], np.ones(2), rtol=2 * 10 * math.sqrt(2) * 1e-6)
    weak = oc.Circuit(None, np.ones((1, 1)), 1.0, 1.0, 1e-3, 0.002, 0.002)
    run = oc.simulate(xp64.tree(weak), xp64.array(np.array([1e-8])), xp64.array(ends), until="steady")
    assert 10.0 < float(run.settled) < 25.0  # 1e-5 exp(-t / 2) = 10 sqrt(2) (1e-9 + 1e-11) at t = 13.1
    xp64.assert_close(run.state.y[-1, ...], np.array([1e-5]), rtol=0.0, atol=2 * 10 * math.sqrt(2) * 1.01e-9)


def test_events(xp64: Library) -> None:
    """Where y of the first neuron passes 0.5, for every member of a batch; none is an empty record."""
    times = np.linspace(0, 0.05, 3)
    z = np.array([[1.0, 0.2], [2.0, 0.2], [0.01, 0.0]])
    run = oc.simulate(
        xp64.tree(one_neuron()),
        xp64.array(z),
        xp64.array(times),
        drive="constant",
        rtol=1e-9,
        atol=1e-11,
        events=[lambda t, state: state.y[..., 0] - 0.5, lambda t, state: state.y[..., 0] - 99.0],
    )
    crossed, never = run.events
    assert run.interpolant is None
    assert never.times.shape == (0,)
    members = numpy_tree(crossed.members)[:, 0].astype(int)
    assert {0, 1} <= set(members)
    for k, member in enumerate(members):
        fine = oc.simulate(one_neuron(), z[member], np.array([0.0, float(crossed.times[k])]), rtol=1e-10, atol=1e-12)
        assert abs(fine.state.y[-1, 0] - 0.5) < 1e-6
        assert abs(float(crossed.state.y[k, 0]) - 0.5) < 1e-6


def test_continued_runs(xp64: Library) -> None:
    """A run goes on from its last state with the step it had, and joins to the one run."""
    case = small_circuit(3)
    circuit, z = xp64.tree(case.circuit), xp64.array(case.z)
    times = np.linspace(0, 0.03, 7)
    first = oc.simulate(circuit, z, xp64.array(times[:4]))
    second = oc.simulate(circuit, z, xp64.array(times[3:]), state0=first)
    joined = first.then(second)
    whole = oc.simulate(circuit, z, xp64.array(times))
    assert joined.times.shape == (7,)
    xp64.assert_close(joined.state.y, numpy_tree(whole.state.y), rtol=1e-5, atol=1e-8)
    assert abs(int(joined.steps) - int(whole.steps)) <= 4
    with pytest.raises(ValueError, match="times must begin where the run state0 ends"):
        oc.simulate(circuit, z, xp64.array(times), state0=first)


def test_progress_reaches_the_end(xp64: Library, capsys: pytest.CaptureFixture[str]) -> None:
    """A callable hears rising fractions up to one; the answer is the same to the tolerance; True shows no junk."""
    case = small_circuit(3)
    circuit, z, times = xp64.tree(case.circuit), xp64.array(case.z), xp64.array(np.linspace(0, 0.03, 31))
    heard: list[float] = []
    run = oc.simulate(circuit, z, times, progress=heard.append)
    plain = oc.simulate(circuit, z, times)
    assert heard == sorted(heard)
    assert heard[-1] == 1.0
    xp64.assert_close(run.state.y, numpy_tree(plain.state.y), rtol=1e-5, atol=1e-8)
    whole: list[float] = []  # what cannot be run in parts is told at its end
    oc.simulate(circuit, z, times, until="steady", progress=whole.append)
    assert whole == [1.0]
    assert capsys.readouterr() == ("", "")


def test_the_bar_of_progress(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing in the first half second; then the share done and the time left, ten times a second at most."""
    clock = iter([0.0, 0.45, 0.56, 0.65, 3.0, 4.0])
    monkeypatch.setattr("organics_core.progress.time", SimpleNamespace(monotonic=lambda: next(clock)))
    case = small_circuit(3)
    oc.simulate(case.circuit, case.z, np.linspace(0, 0.01, 6), progress=True)
    lines = [(12, 18, 40, 1), (24, 6, 80, 1), (30, 0, 100, 0)]
    want = "".join(f"\rsimulate [{'#' * a}{'.' * b}] {p:3.0f} %  {left:5.0f} s left " for a, b, p, left in lines)
    assert capsys.readouterr() == ("", want + "\n")
    with pytest.raises(TypeError, match=r"^progress must be True, False or a function of the fraction done, got int$"):
        oc.simulate(case.circuit, case.z, np.linspace(0, 0.01, 6), progress=3)  # type: ignore[arg-type]


@pytest.mark.parametrize("ending", ["npz", "zarr"])
def test_saved_runs(xp: Library, tmp_path: Any, ending: str) -> None:
    """What was saved comes back, in this library, and continues."""
    if ending == "zarr":
        pytest.importorskip("zarr", reason="stores need zarr")
    case = small_circuit(3)
    circuit, z = xp.tree(case.circuit), xp.array(case.z)
    run = oc.simulate(circuit, z, xp.array([0.0, 0.01, 0.02]))
    path = tmp_path / f"run.{ending}"
    run.save(path)
    again = oc.load_trajectory(path, like=run.times)
    xp.assert_close(again.state.y, numpy_tree(run.state.y), rtol=0.0)
    assert again.message == run.message
    assert isinstance(again.state, oc.State)
    longer = oc.simulate(circuit, z, xp.array([0.02, 0.03]), state0=again)
    assert int(longer.status) == SUCCESS
    with pytest.raises(ValueError, match="path must end in"):
        run.save(tmp_path / "run.txt")
    broken = tmp_path / "broken.npz"
    broken.write_bytes(b"no file")
    with pytest.raises(ValueError, match="holds no trajectory"):
        oc.load_trajectory(broken)


def test_a_saved_run_of_another_machine(xp: Library, tmp_path: Any) -> None:
    """Numbers whose bytes stand the other way round are turned."""
    case = small_circuit(3)
    run = oc.simulate(case.circuit, case.z, np.array([0.0, 0.01]))
    run.save(tmp_path / "run.npz")
    with np.load(tmp_path / "run.npz") as file:
        turned = {k: v if v.dtype.kind == "U" else v.astype(v.dtype.newbyteorder()) for k, v in file.items()}
    np.savez(tmp_path / "turned.npz", **turned)
    again = oc.load_trajectory(tmp_path / "turned.npz", like=xp.array([0.0]))
    np.testing.assert_allclose(numpy_tree(again.state.y), run.state.y, rtol=1e-6)
    assert oc.load_trajectory(tmp_path / "turned.npz").state.y.dtype.isnative
    np.savez(tmp_path / "list.npz", about=np.asarray("[1]"))
    with pytest.raises(ValueError, match="holds no trajectory: its text about itself is no JSON object"):
        oc.load_trajectory(tmp_path / "list.npz")


@pytest.mark.library("numpy")
def test_a_file_whose_arrays_are_not_of_one_run(tmp_path: Any) -> None:
    """States and times of different lengths, or what is no state, were read as a run."""
    case = small_circuit(3)
    run = oc.simulate(case.circuit, np.stack([case.z, case.z]), np.array([0.0, 0.01, 0.02]), drive="constant")
    path, other = tmp_path / "run.npz", tmp_path / "other.npz"
    run.save(path)
    with np.load(path) as file:
        whole = dict(file.items())
    assert oc.load_trajectory(path).state.y.shape == (3, 2, 3)
    y, about = whole["state.y"], json.loads(str(whole["about"]))

    def told(**changes: Any) -> str:
        np.savez(other, **(whole | changes))
        with pytest.raises(ValueError, match=r"'.*other.npz' holds no trajectory: ") as caught:
            oc.load_trajectory(other)
        return str(caught.value).split("trajectory: ")[1]

    def named(**changes: Any) -> np.ndarray:
        return np.asarray(json.dumps(about | changes))

    shape = "y must have shape (3, 2, n), one state per time, got "
    assert told(**{"state.y": y[:2]}) == shape + "(2, 2, 3)"
    assert told(**{"state.y": y[:, 0]}) == shape + "(3, 3)"
    assert told(times=run.times[:2]).startswith("y must have shape (2, 2, n)")
    assert told(**{"state.y": y.astype(str)}).startswith("y must be floating-point, got <U")
    assert told(times=run.times[:, None]).startswith("times must have shape (T,)")
    assert told(status=0.5 * run.status).startswith("status must be integers")
    assert told(about=named(parts=[])) == "its state has no parts"
    assert "duplicate" in told(about=named(parts=["y", "y"]))
    np.savez(other, **(whole | {"about": named(state="class")}))
    assert type(oc.load_trajectory(other).state).__name__ == "Loaded"
    with pytest.raises(TypeError, match="like must be an array"):
        oc.load_trajectory(path, like=[1.0])


@pytest.mark.library("numpy")
def test_a_store_is_whole_or_not_there(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was not written of a store would be read as zeros."""
    zarr = pytest.importorskip("zarr", reason="stores need zarr")
    case = small_circuit(3)
    run = oc.simulate(case.circuit, case.z, np.array([0.0, 0.01]))
    create = zarr.Group.create_array

    def full(self: Any, name: str, **options: Any) -> Any:
        if name == "state.a":
            raise OSError("no space left on device")
        return create(self, name, **options)

    monkeypatch.setattr(zarr.Group, "create_array", full)
    with pytest.raises(OSError, match="no space left"):
        run.save(tmp_path / "new" / "run.zarr")
    assert list((tmp_path / "new").iterdir()) == []
    monkeypatch.undo()
    run.save(tmp_path / "new" / "run.zarr")
    assert [entry.name for entry in (tmp_path / "new").iterdir()] == ["run.zarr"]
    np.testing.assert_array_equal(oc.load_trajectory(tmp_path / "new" / "run.zarr").state.a, run.state.a)


def test_max_step(xp64: Library) -> None:
    """Steps of the adaptive methods are bounded."""
    run = oc.simulate(
        xp64.tree(one_neuron()), xp64.array([1.0, 0.5]), xp64.array([0.0, 0.1]), max_step=1e-3, dense=True
    )
    assert float(xp64.namespace.max(run.interpolant.steps)) <= 1e-3 * (1 + 1e-12)
    assert int(run.steps) >= 100
    with pytest.raises(ValueError, match="max_step must be positive"):
        oc.simulate(xp64.tree(one_neuron()), xp64.array([1.0, 0.5]), xp64.array([0.0, 0.1]), max_step=0.0)


@pytest.mark.library("numpy", "torch")
def test_members_with_other_time_constants_take_their_own_steps(xp64: Library) -> None:
    """A large batch whose time constants span three decades: every member is what it is alone."""
    rng = np.random.default_rng(0)
    count, n = 130, 40
    tau = np.geomspace(1e-3, 1.0, count)[rng.permutation(count), None] * np.ones(n)
    numbers = (rng.uniform(0.5, 1.0, (count, n)), 1.0, 0.5, tau, 2.0 * tau)
    w_r = rng.standard_normal((n, n))
    circuit = oc.Circuit(0.5 * w_r / np.linalg.norm(w_r, 2), rng.random((n, n)) / n, *numbers)
    z = rng.standard_normal((count, n)) / np.sqrt(n)
    times = np.array([0.0, 0.1, 0.5])
    for drive in (z, np.stack([z, 0.5 * z, z])):
        how = "constant" if drive.ndim == 2 else "sampled"
        options = {"drive": how, "rtol": 1e-8, "atol": 1e-11}
        run = oc.simulate(xp64.tree(circuit), xp64.array(drive), xp64.array(times), **options)
        assert run.success
        assert int(run.steps) > int(run.rejected) >= 0
        xp64.assert_kind(run.state.y, (3, count, n))
        for k in (0, 17, 129):
            one = circuit._replace(b=circuit.b[k], tau_y=tau[k], tau_a=2.0 * tau[k])
            want = oc.simulate(one, drive[..., k, :], times, **options)
            xp64.assert_close(run.state.y[:, k, :], want.state.y, rtol=1e-5, atol=1e-7)
            xp64.assert_close(run.state.a[:, k, :], want.state.a, rtol=1e-5, atol=1e-7)


# Models of one's own, and what they may do wrong.


class Pair(NamedTuple):
    v: Any
    w: Any


def model_of(field: Any, **more: Any) -> Any:
    """A model with the state Pair, one parameter, and this field."""

    class Own(NamedTuple):
        k: Any

    body = {"spec": {"k": oc.Parameter()}, "state": Pair, "field": field, **more}
    return type("Own", (Own,), body)(1.0)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        (lambda self, xp, t, x, z: (z - x.v,), r"field of Own must return arrays \(v, w\) of shapes"),
        (lambda self, xp, t, x, z: Pair(z - x.v, x.w[..., :1]), r"field of Own must return arrays \(v, w\) of shapes"),
        (lambda self, xp, t, x, z: z - x.v, "field of Own must return a tuple of 2 arrays"),
        (lambda self, xp, t, x, z: Pair(0.0, 1.0), "field of Own must return a tuple of 2 arrays"),
    ],
)
@pytest.mark.parametrize("method", ["dopri5", "rodas5p", "rk4"])
def test_a_field_of_other_shapes_is_named(field: Any, message: str, method: str) -> None:
    """Not broadcast without a word."""
    with pytest.raises(ValueError, match=message):
        oc.simulate(model_of(field), np.ones(2), np.array([0.0, 1.0]), method=method)


def test_a_complex_field_is_refused(xp64: Library) -> None:
    """A cast would keep its real part."""
    made = model_of(lambda self, xp, t, x, z: Pair(1j * (z - x.v), -x.w))
    with pytest.raises(TypeError, match=r"field of Own must return real numbers, got .*complex128"):
        oc.simulate(made, xp64.array([1.0, 1.0]), xp64.array([0.0, 1.0]), method="rk4")


def test_a_rest_of_other_shapes_is_named() -> None:
    """It would make other neurons than the drive has."""
    made = model_of(lambda self, xp, t, x, z: Pair(-x.v, -x.w), rest=lambda self, xp, z: Pair(xp.ones(3), xp.ones(3)))
    with pytest.raises(ValueError, match=r"rest of Own must return arrays \(v, w\) of shapes"):
        oc.simulate(made, np.ones(2), np.array([0.0, 1.0]))


def test_a_field_that_hangs_on_the_time_is_not_stepped_over(xp64: Library) -> None:
    """A pulse inside the field of a model: bounded steps, jumps that are taken, and no end for want of motion."""

    def field(self: Any, xp: Any, t: Any, x: Any, z: Any) -> Pair:
        on = xp.where((t > 0.5) & (t < 0.52), xp.ones_like(z), xp.zeros_like(z))
        return Pair((z * on - x.v) / 0.01, -x.w)

    made, z = model_of(field), xp64.array([1.0])
    times = np.linspace(0, 1, 101)
    run = oc.simulate(made, z, xp64.array(times), jumps=[0.5, 0.52], rtol=1e-9, atol=1e-12)
    rising = 1 - np.exp(-(times - 0.5) / 0.01)
    falling = (1 - np.exp(-2.0)) * np.exp(-(times - 0.52) / 0.01)
    want = np.where(times <= 0.5, 0.0, np.where(times <= 0.52, rising, falling))
    xp64.assert_close(run.state.v[:, 0], want, rtol=0.0, atol=1e-6)
    plain = oc.simulate(made, z, xp64.array(times))
    assert float(xp64.namespace.max(plain.state.v)) > 0.8
    with pytest.raises(ValueError, match="until='steady' needs"):
        oc.simulate(made, z, xp64.array(times), until="steady")


def test_what_settled_does_not_hide_what_failed() -> None:
    """The message names both."""
    circuit = oc.Circuit(np.array([[-40.0, 0.0], [0.0, 1.0]]), np.eye(2), 0.5, 2.0, 1.0, 0.01, 0.02)
    z = np.array([[1.0, 0.2], [0.0, 0.1]])
    run = oc.simulate(circuit, z, np.linspace(0, 3, 4), until="steady", drive="constant")
    assert run.status.tolist() == [1, 0]
    assert "settled at" in run.message
    assert "1 of 2 stopped" in run.message


def test_a_run_without_a_step_has_no_events_of_every_kind(xp64: Library) -> None:
    start = (xp64.array(np.ones((3, 2))), xp64.array(np.ones((3, 1))))
    run = oc.integrate(
        lambda t, x: (math.nan * x[0], x[1]),
        start,
        xp64.array([0.0, 1.0]),
        events=[lambda t, x: x[1][..., 0], lambda t, x: x[0][..., 0]],
    )
    assert not run.success
    assert len(run.events) == 2
    for event in run.events:
        assert tuple(event.times.shape) == (0,)
        assert tuple(event.members.shape) == (0, 1)
        assert [tuple(part.shape) for part in event.state] == [(0, 2), (0, 1)]


def test_events_are_numbers_one_per_member() -> None:
    """A flag, or one number per neuron, is no event; and runs without a crossing join."""
    options: dict[str, Any] = {"drive": "constant", "rtol": 1e-8}
    z, times = np.array([1.0, 0.5]), np.linspace(0, 0.02, 5)
    for event in (lambda t, s: s.y[..., 0] > 0.3, lambda t, s: s.y - 0.3):
        with pytest.raises(ValueError, match="an event must return a real array of the batch's shape"):
            oc.simulate(one_neuron(), z, times, events=[event], **options)
    with pytest.raises(TypeError, match="events must be a sequence"):
        oc.simulate(one_neuron(), z, times, events=lambda t, s: s.y[..., 0], **options)
    crossing = [lambda t, s: s.y[..., 0] - 0.5]
    first = oc.simulate(one_neuron(), z, times, events=crossing, **options)
    second = oc.simulate(one_neuron(), z, times + times[-1], state0=first, events=crossing, **options)
    joined = first.then(second)
    assert joined.events[0].times.shape[0] == first.events[0].times.shape[0] + second.events[0].times.shape[0]
    with pytest.raises(ValueError, match="later must have states of shapes"):
        first.then(second._replace(events=()))
    with pytest.raises(TypeError, match="later must be a Trajectory"):
        first.then(3)  # type: ignore[arg-type]


def test_progress_takes_the_same_jumps() -> None:
    """A pulse that begins or ends where a part of the run does is no other pulse."""
    z = np.array([1.0, 0.5])
    drive, times = oc.pulse_train(z, [0.1, 0.4], 0.1), np.linspace(0, 0.6, 61)
    options: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-12}
    plain = oc.simulate(one_neuron(), drive, times, **options)
    shown = oc.simulate(one_neuron(), drive, times, progress=lambda fraction: None, **options)
    np.testing.assert_allclose(shown.state.y, plain.state.y, rtol=0, atol=1e-7)


def test_a_stiff_beginning_is_no_reason_to_stop() -> None:
    """1e4 per second for a second, then 1e-3: the steps of the beginning say nothing about the rest."""

    def field(t: Any, x: Any) -> Any:
        return (-(1e4 if t < 1 else 1e-3) * (x[0] - 1.0),)

    run = oc.integrate(field, (np.zeros(1),), np.array([0.0, 1e4]))
    assert run.message == "reached the last time"
    np.testing.assert_allclose(run.state[0][-1], 1.0, rtol=1e-4)


def test_groups_of_members_with_a_drive_in_time() -> None:
    """Time constants that differ, a function of time with the batch's axis, and a group of one."""
    count = n = 64
    tau = np.where(np.arange(count) == 5, 0.1, 0.001)[:, None] * np.ones(n)
    circuit = oc.Circuit(None, np.eye(n), 0.5, 0.5, 0.1, tau, tau)
    z = np.random.default_rng(0).standard_normal((count, n))
    times = np.linspace(0, 0.02, 3)
    called = oc.simulate(circuit, lambda t: z, times, rtol=1e-9, atol=1e-12)
    constant = oc.simulate(circuit, z, times, drive="constant", rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(called.state.y, constant.state.y, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("method", ["dopri5", "rodas5p"])
def test_a_start_beyond_the_numbers_is_reported(method: str) -> None:
    """A slope that is not finite at the start: a status, not an exception."""
    start = oc.State(np.full(2, 1e200), np.full(2, 0.1))
    run = oc.simulate(one_neuron(), np.ones(2), np.array([0.0, 0.1]), state0=start, method=method)
    assert not run.success


def test_drives_in_single_precision_stay_within_the_times() -> None:
    """Also where the first time and the length of the run round up together."""
    times = np.array([-0.5424756, -0.06929292], dtype="float32")
    asked = []

    def drive(t: Any) -> np.ndarray:
        asked.append(t)
        return np.ones(2, dtype="float32")

    circuit = oc.Circuit(None, np.full((2, 2), 0.5, dtype="float32"), 0.5, 0.5, 0.1, 0.002, 0.002)
    oc.simulate(circuit, drive, times)
    assert times[0] <= min(asked)
    assert max(asked) <= times[-1]


def test_jumps_of_a_field_of_ones_own(xp64: Library) -> None:
    """Steps end at the break, and the field is asked on the side of the step: two exponentials, exactly."""

    def field(t: Any, x: Any) -> Any:
        xp = array_namespace(x[0])
        return (-x[0] + xp.astype(t >= 0.5, x[0].dtype),)

    times = xp64.array(np.array([0.0, 1.0]))
    run = oc.integrate(field, (xp64.array(np.ones(1)),), times, jumps=[0.5], rtol=1e-9, atol=1e-12)
    want = math.exp(-1.0) + 1.0 - math.exp(-0.5)
    xp64.assert_close(run.state[0][-1, ...], [want], rtol=1e-8, atol=0.0)
    assert int(run.rejected) == 0


def test_a_stiff_method_far_from_the_start_of_the_clock(xp: Library) -> None:
    """The derivative by the time heeds the rounding of the clock: as many steps as from 0, and the same answer."""
    begin, rate, length = (1e5 if xp.precision == "float64" else 100.0), 1e4, np.linspace(0.0, 2.0, 5)

    def run(begin: float) -> Any:
        def field(t: Any, x: Any) -> Any:
            ns = array_namespace(x[0])
            return (-rate * (x[0] - ns.sin(t - begin)) + ns.cos(t - begin),)

        start = (xp.array(np.zeros(1)),)
        return oc.integrate(field, start, xp.array(begin + length), method="rodas5p", rtol=1e-4, atol=1e-6)

    near, far = run(0.0), run(begin)
    assert int(far.steps + far.rejected) <= 2 * int(near.steps + near.rejected)
    # 4e-4 at 0 and afar, of the interpolation within steps of half a second; of the end of the run far less
    xp.assert_close(far.state[0][:, 0], np.sin(length), rtol=0.0, atol=4e-3)


def test_a_pulse_of_few_ticks_of_the_clock(xp: Library) -> None:
    """At 2**18 s single precision counts in 1/32 s: the edges of a pulse that lies on two ticks keep their sides."""
    begin, ticks = 2.0**18, np.array([0.0, 0.0625, 0.125, 0.1875, 0.25])
    circuit = oc.Circuit(None, xp.array(np.full((2, 2), 0.5)), 0.5, 0.5, 0.1, 0.002, 0.002)
    z = xp.array(np.array([1.0, 0.5]))
    far = oc.simulate(circuit, oc.pulse_train(z, [begin + 0.0625], 0.125), xp.array(begin + ticks))
    near = oc.simulate(circuit, oc.pulse_train(z, [0.0625], 0.125), xp.array(ticks))
    assert float(far.state.y[1, 0]) == 0.0
    # twice the control of an error of 1e-6 per step, or the rounding of some hundred steps
    xp.assert_close(far.state.y, numpy_tree(near.state.y), rtol=2e-5, atol=2e-6)


@pytest.mark.library("jax")
@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_functions_that_cannot_be_traced_are_named(method: str) -> None:
    """What numpy, math, float or if look at in the time or the state."""
    xp = pytest.importorskip("jax.numpy")
    circuit = oc.Circuit(None, xp.ones((2, 2)), 0.5, 0.5, 0.1, 0.002, 0.002)
    z, times = xp.ones(2), xp.asarray([0.0, 0.01])

    class Wave(NamedTuple):
        rate: Any
        spec = {"rate": Parameter("> 0")}  # noqa: RUF012
        state = _Pair

        def field(self, xp: Any, t: Any, x: Any, z: Any) -> Any:
            return _Pair(z - x.x if t < 0.005 else z)

    for drive in (
        lambda t: z if t < 0.005 else 0.0 * z,
        lambda t: z * np.sin(t),
        lambda t: z * math.sin(t),
        lambda t: z * float(t),
    ):
        with pytest.raises(TypeError, match="z must be a function that jax can trace"):
            oc.simulate(circuit, drive, times, method=method)
    with pytest.raises(TypeError, match="field must be a function that jax can trace"):
        oc.integrate(lambda t, x: (-x[0] * math.sin(t),), (z,), times, method=method)
    with pytest.raises(TypeError, match="field of Wave must be a function that jax can trace"):
        oc.simulate(Wave(1.0), z, times, method=method)


@pytest.mark.library("torch")
def test_settling_with_gradients_warns_of_nothing() -> None:
    torch = pytest.importorskip("torch")
    times = torch.linspace(0.0, 2.0, 3, dtype=torch.float64)
    circuit = oc.Circuit(None, torch.full((2, 2), 0.5, dtype=torch.float64), 0.5, 0.5, 0.1, 0.002, 0.002)
    z = torch.tensor([[1.0, 0.5], [2.0, 1.0]], dtype=torch.float64, requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = oc.simulate(circuit, z, times, until="steady", rtol=1e-9, atol=1e-12)
    (slope,) = torch.autograd.grad(run.state.y[-1].sum(), z)
    (want,) = torch.autograd.grad(oc.steady_state(circuit, z).state.y.sum(), z)
    np.testing.assert_allclose(slope, want, rtol=1e-5, atol=1e-6)  # it stops within ten tolerances of the point


def test_what_contradicts_the_drive_or_the_start_is_said() -> None:
    """How to read an array where there is none; a start from a run that failed."""
    circuit = oc.Circuit(None, np.ones((1, 1)), 1.0, 1.0, 1.0, 0.002, 0.002)
    times, z = np.linspace(0.0, 0.1, 11), np.ones(1)
    with pytest.raises(ValueError, match="drive='sampled' says how to read an array z, and z is a function of time"):
        oc.simulate(circuit, lambda t: z, times, drive="sampled")
    failed = oc.simulate(circuit, lambda t: z * (math.nan if t > 0.05 else 1.0), times)
    assert "or its drive is not finite there" in failed.message
    with pytest.raises(ValueError, match="state0 must be a run that reached its last time, but it stopped"):
        oc.simulate(circuit, z, times + 0.1, state0=failed)


def test_times_that_differ_in_the_last_digit_are_told_apart() -> None:
    """The end of one run and the start of the next: 0.3 is not 0.1 + 0.2."""
    circuit, z = one_neuron(), np.ones(2)
    run = oc.simulate(circuit, z, np.array([0.0, 0.3]))
    with pytest.raises(ValueError, match=r"at 0\.3, got 0\.30000000000000004$"):
        oc.simulate(circuit, z, np.array([0.1 + 0.2, 0.6]), state0=run)
    with pytest.raises(ValueError, match=r"of this run, 0\.3, got 0\.30000000000000004$"):
        run.then(oc.simulate(circuit, z, np.array([0.1 + 0.2, 0.6])))
    with pytest.raises(ValueError, match=r"got 0\.3 after 0\.30000000000000004$"):
        oc.simulate(circuit, z, np.array([0.0, 0.1 + 0.2, 0.3]))


def test_the_jumps_that_a_drive_knows_are_checked() -> None:
    """As those given: times, finite, several."""

    class Drive:
        def __init__(self, jumps: Any) -> None:
            self.jumps = jumps

        def __call__(self, t: Any) -> np.ndarray:
            return np.ones(2) * (t >= 0.05)

    times = np.array([0.0, 0.1])
    assert oc.simulate(one_neuron(), Drive(np.array([0.05])), times).success
    with pytest.raises(ValueError, match="jumps must be finite times"):
        oc.simulate(one_neuron(), Drive([0.05, math.nan]), times)
    for jumps in (0.05, lambda: [0.05]):
        with pytest.raises(TypeError, match="jumps must be times in seconds"):
            oc.simulate(one_neuron(), Drive(jumps), times)


@pytest.mark.library("torch")
@pytest.mark.parametrize("name", [*oc.Circuit._fields, "z", "state0"])
def test_vmap_of_torch_over_any_argument(xp64: Library, name: str) -> None:
    """Mapped over one, with the others shared: the members one by one."""
    import torch

    case = small_circuit(2)
    given = {**case.circuit._asdict(), "z": case.z, "state0": case.state.y}
    given = {field: xp64.array(value) for field, value in given.items()}
    times = xp64.array([0.0, 0.001])

    def last(value: Any) -> Any:
        *fields, z, y = {**given, name: value}.values()
        start = oc.State(y, y * y)
        return oc.simulate(oc.Circuit(*fields), z, times, method="rk4", substeps=2, state0=start).state.y[-1]

    many = torch.stack([given[name], 1.1 * given[name]])
    mapped = torch.func.vmap(last)(many)
    for one, value in zip(mapped, many, strict=True):
        xp64.assert_close(one, to_numpy(last(value)), rtol=1e-12)


@pytest.mark.library("torch")
def test_derivatives_of_events() -> None:
    """x' = -k x, v' = -v: x = c at t = log(x0 / c) / k, and v = exp(-t) there; by k and x0, both members of a batch."""
    import torch

    k, x0 = torch.tensor(2.0, dtype=torch.float64), torch.tensor([1.0, 3.0], dtype=torch.float64)
    times, c = torch.tensor([5.0, 7.0], dtype=torch.float64), 0.25

    def found(k: Any, x0: Any) -> Any:
        start = (torch.stack([x0, torch.ones_like(x0)], dim=-1),)
        factors = torch.stack([k, torch.ones_like(k)])
        run = oc.integrate(
            lambda t, x: (-factors * x[0],), start, times, events=[lambda t, x: x[0][..., 0] - c], rtol=1e-9, atol=1e-12
        )
        return run.events[0].times - times[0], run.events[0].state[0][:, 1]

    def exact(k: Any, x0: Any) -> Any:
        moments = torch.log(x0 / c) / k
        return moments, torch.exp(-moments)

    arguments = (k, x0)
    torch.testing.assert_close(found(*arguments), exact(*arguments), rtol=1e-7, atol=0.0)
    got, want = (torch.autograd.functional.jacobian(f, arguments) for f in (found, exact))
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-9)
