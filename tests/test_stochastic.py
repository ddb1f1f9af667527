"""Stochastic simulation: convergence orders, seeds that reproduce, agreement with plain steps and closed forms."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import pytest
from support import Library, numpy_tree, small_circuit

import organics_core as oc
from organics_core.model import Parameter

METHODS = ("euler_maruyama", "stochastic_heun")
RATE, NOISE, LENGTH = 3.0, 0.8, 1.0


def decay(t: object, state: tuple) -> tuple:
    return tuple(-RATE * part for part in state)


def ornstein_uhlenbeck(db: np.ndarray, h: float, x0: float) -> np.ndarray:
    """The exact end of dx = -k x dt + s dB to leading order in the fine step: the integral of exp(-k (T - u)) s dB."""
    late = LENGTH - h * (np.arange(db.shape[0]) + 0.5)
    return x0 * math.exp(-RATE * LENGTH) + NOISE * np.einsum("k,km->m", np.exp(-RATE * late), db[..., 0])


@pytest.mark.parametrize("method", METHODS)
def test_strong_order_on_an_ornstein_uhlenbeck_process(xp64: Library, method: str) -> None:
    """With additive noise both methods converge path by path with order one: half the step, half the error."""
    fine, members = 256, 200
    grid = xp64.array(np.linspace(0.0, LENGTH, fine + 1))
    db = oc.wiener_increments(grid, 1, seed=5, batch=(members,))
    exact = ornstein_uhlenbeck(numpy_tree(db), LENGTH / fine, 1.0)
    errors = []
    for every in (32, 16, 8):
        coarse = np.sum(np.reshape(numpy_tree(db), (fine // every, every, members, 1)), axis=1)
        times = xp64.array(np.linspace(0.0, LENGTH, fine // every + 1))
        start = (xp64.array(np.ones((members, 1))),)
        run = oc.integrate_sde(decay, start, times, noise=NOISE, increments=xp64.array(coarse), method=method)
        end = numpy_tree(run.state[0])[-1, :, 0]
        errors.append(math.sqrt(np.mean((end - exact) ** 2)))
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert np.all(orders > 0.8), orders


@pytest.mark.parametrize(("method", "order"), [("euler_maruyama", 1), ("stochastic_heun", 2)])
def test_weak_order_on_an_ornstein_uhlenbeck_process(method: str, order: int) -> None:
    """Mean and variance come from the linear recursion x <- A x + B dB, whose A and B one step of the code reveals."""
    mean = math.exp(-RATE * LENGTH)
    variance = NOISE**2 * (1 - math.exp(-2 * RATE * LENGTH)) / (2 * RATE)
    errors = []
    for count in (16, 32, 64):
        times = np.array([0.0, LENGTH / count])

        def one(x: float, db: float, times: np.ndarray = times) -> float:
            kick = np.array([[db]])
            run = oc.integrate_sde(decay, (np.array([x]),), times, noise=NOISE, increments=kick, method=method)
            return float(run.state[0][-1, 0])

        a, b = one(1.0, 0.0), one(0.0, 1.0)
        h = LENGTH / count
        errors.append((abs(a**count - mean), abs(b * b * h * (1 - a ** (2 * count)) / (1 - a * a) - variance)))
    ratios = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    np.testing.assert_allclose(ratios, order, atol=0.25)


@pytest.mark.one_dtype
def test_sampled_moments_of_an_ornstein_uhlenbeck_process(xp: Library) -> None:
    """Mean and variance of 4000 members, each within five standard errors."""
    members = 4000
    start = (xp.array(np.ones((members, 1))),)
    times = xp.array(np.linspace(0.0, LENGTH, 101))
    run = oc.integrate_sde(decay, start, times, noise=NOISE, seed=11, method="stochastic_heun")
    end = numpy_tree(run.state[0])[-1, :, 0]
    variance = NOISE**2 * (1 - math.exp(-2 * RATE * LENGTH)) / (2 * RATE)
    assert abs(end.mean() - math.exp(-RATE * LENGTH)) < 5 * math.sqrt(variance / members)
    assert abs(end.var() - variance) < 5 * variance * math.sqrt(2 / members)


def test_seeds_reproduce(xp: Library) -> None:
    """The same seed gives the same numbers, bit by bit; another seed others; the increments can be had beforehand."""
    case = small_circuit(3)
    circuit, z = xp.tree(case.circuit), xp.array(case.z)
    times = xp.array(np.linspace(0.0, 0.01, 21))

    def run(**options: object) -> np.ndarray:
        return numpy_tree(oc.simulate_sde(circuit, z, times, noise=0.1, substeps=3, **options).state.y)

    first = run(seed=4)
    assert np.array_equal(first, run(seed=4))
    assert np.max(np.abs(first - run(seed=5))) > 1e-3
    given = oc.wiener_increments(times, 6, seed=4, substeps=3)
    assert tuple(given.shape) == (60, 6)
    np.testing.assert_allclose(run(increments=given), first, rtol=50 * xp.eps, atol=50 * xp.eps)


@pytest.mark.one_dtype
@pytest.mark.parametrize("method", METHODS)
def test_simulation_is_the_scheme_written_out(xp: Library, method: str) -> None:
    """A batch under a sampled drive, against a plain loop over the vector field."""
    case = small_circuit(3)
    rng = np.random.default_rng(2)
    times = np.cumsum(rng.uniform(1e-4, 2e-4, 12))
    z = rng.standard_normal((12, 2, 3))
    db = rng.standard_normal((11, 2, 6)) * np.sqrt(np.diff(times))[:, None, None]
    amplitude = rng.uniform(0.1, 1.0, 6)
    x = oc.State(*(np.broadcast_to(part, (2, 3)) for part in case.state))
    want = [x]

    def step(x: oc.State, slopes: list[oc.State], h: float, kick: np.ndarray) -> oc.State:
        mean = [sum(parts) / len(slopes) for parts in zip(*slopes, strict=True)]
        return oc.State(x.y + h * mean[0] + kick[:, :3], x.a + h * mean[1] + kick[:, 3:])

    for k in range(11):
        h, kick = times[k + 1] - times[k], amplitude * db[k]
        first = oc.vector_field(case.circuit, x, z[k])
        moved = step(x, [first], h, kick)
        if method == "stochastic_heun":
            moved = step(x, [first, oc.vector_field(case.circuit, moved, z[k + 1])], h, kick)
        x = moved
        want.append(x)
    run = oc.simulate_sde(
        xp.tree(case.circuit),
        xp.array(z),
        xp.array(times),
        drive="sampled",
        noise=xp.array(amplitude),
        increments=xp.array(db),
        method=method,
        state0=xp.tree(case.state),
    )
    xp.assert_close(run.state.y, np.stack([s.y for s in want]), rtol=1e-10, atol=1e-10)
    xp.assert_close(run.state.a, np.stack([s.a for s in want]), rtol=1e-10, atol=1e-10)


@pytest.mark.one_dtype
def test_drives_agree(xp: Library) -> None:
    """A constant drive, the same sampled, and the same as a function of time."""
    case = small_circuit(2)
    circuit, z = xp.tree(case.circuit), xp.array(case.z)
    times = xp.array(np.linspace(0.0, 0.005, 26))
    sampled = xp.array(np.broadcast_to(case.z, (26, 2)))
    runs = [
        oc.simulate_sde(circuit, drive, times, noise=0.05, seed=9, drive="sampled" if drive is sampled else "auto")
        for drive in (z, sampled, lambda t: z)
    ]
    for other in runs[1:]:
        xp.assert_close(other.state.y, numpy_tree(runs[0].state.y), rtol=1e-11, atol=1e-13)


def test_correlated_noise(xp: Library) -> None:
    """One source for all components: the matrix L multiplies the increments."""
    start = (xp.array([0.0]), xp.array([0.0, 0.0]))
    times = xp.array([0.0, 0.5])
    run = oc.integrate_sde(
        lambda t, s: tuple(0.0 * part for part in s),
        start,
        times,
        noise=xp.array([[1.0], [2.0], [-3.0]]),
        increments=xp.array([[0.25]]),
    )
    xp.assert_close(run.state[0][-1, :], np.array([0.25]))
    xp.assert_close(run.state[1][-1, :], np.array([0.5, -0.75]))


@pytest.mark.one_dtype
def test_divergence_is_a_status_not_a_crash(xp: Library) -> None:
    """One member of a batch blows up; the other goes on."""

    def field(t: object, state: tuple) -> tuple:
        return (state[0] ** 3,)

    start = (xp.array([[0.0], [10.0]]),)
    run = oc.integrate_sde(field, start, xp.array(np.linspace(0.0, 2.0, 41)), noise=0.01, seed=0)
    assert not run.success
    assert [int(code) for code in run.status] == [0, 3]
    states = numpy_tree(run.state[0])
    assert np.all(np.isfinite(states[:, 0]))
    assert np.isnan(states[-1, 1, 0])


def test_long_runs_draw_their_noise_in_parts(xp64: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same run as with all increments at once, told after every part; a member lost in one part stays lost."""
    monkeypatch.setattr("organics_core.integration._CHUNK", 2 * 3 * 2 * 2)  # two intervals of 3 steps of (2, 2)
    times = xp64.array([0.0, 0.1, 0.3, 0.35, 0.5, 0.6])
    ticks = np.linspace(1.0, 2.0, 6)[:, None, None] * np.array([[1.0], [-2.0]])

    class Level(NamedTuple):
        v: Any
        w: Any

    class Leak(NamedTuple):
        tau: Any
        spec = {"tau": Parameter("> 0")}  # noqa: RUF012
        state = Level

        def field(self, xp: Any, t: Any, x: Level, z: Any) -> Level:
            return Level((z - x.v) / self.tau, x.v - x.w)

    given = oc.wiener_increments(times, 2, seed=7, substeps=3, batch=(2,))
    assert tuple(given.shape) == (15, 2, 2)
    parts = np.split(numpy_tree(given), [6, 12])
    assert (parts[0] != parts[1]).all()  # every part has a seed of its own
    assert (parts[1][:3] != parts[2]).all()
    options: dict[str, Any] = {"noise": 0.3, "seed": 7, "substeps": 3, "drive": "sampled"}
    heard: list[float] = []
    run = oc.simulate_sde(Leak(0.2), xp64.array(ticks), times, progress=heard.append, **options)
    np.testing.assert_allclose(heard, [2 / 5, 4 / 5, 1.0], rtol=1e-15)
    whole = oc.simulate_sde(Leak(0.2), xp64.array(ticks), times, increments=given, **options)
    for part, want in zip(run.state, numpy_tree(whole.state), strict=True):
        xp64.assert_close(part, want, rtol=1e-12, atol=1e-14)
    assert (int(run.steps), int(run.rejected), run.success) == (15, 0, True)
    assert all(count.dtype == xp64.namespace.int32 for count in (run.steps, run.rejected, run.status))

    def exploding(t: Any, state: tuple) -> tuple:
        return (state[0] ** 3,)

    for first, last in ((1e90, 0), (1.4, 2)):  # in the first part, and in a later one
        start = (xp64.array([[0.1, 0.1], [first, 0.1]]),)
        with np.errstate(over="ignore", invalid="ignore"):
            lost = oc.integrate_sde(exploding, start, times, noise=1e-3, substeps=3)
        assert [int(code) for code in lost.status] == [0, 3]
        states = numpy_tree(lost.state[0])
        assert np.isfinite(states[:, 0]).all()
        assert np.isfinite(states[: last + 1, 1]).all()
        assert np.isnan(states[-1, 1, 0])


def test_bad_arguments_are_named() -> None:
    circuit, z = small_circuit(2)[:2]
    times = np.linspace(0.0, 0.01, 5)
    for options, message in (
        ({"method": "milstein"}, "unknown method 'milstein'"),
        ({"seed": -1}, "seed must not be negative"),
        ({"substeps": 0}, "substeps must be at least 1"),
        ({"increments": np.ones((3, 4))}, r"increments must have shape \(4, ..., 4\)"),
    ):
        with pytest.raises(ValueError, match=message):
            oc.simulate_sde(circuit, z, times, noise=0.1, **options)
    with pytest.raises(ValueError, match=r"the batch must not be empty, got batch axes of shape \(0,\)"):
        oc.simulate_sde(circuit, np.zeros((0, 2)), times, noise=0.1)
    with pytest.raises(TypeError, match="seed must be an integer"):
        oc.simulate_sde(circuit, z, times, noise=0.1, seed=0.5)
    for tau in (np.array([0.01, 0.02, -0.01, 0.01]), np.asarray(0.0), -1.0):
        with pytest.raises(ValueError, match="tau must be positive"):
            oc.simulate_sde(circuit, z, times, noise=oc.ColouredNoise(0.1, tau))
        with pytest.raises(ValueError, match="tau must be positive"):
            oc.noise_covariance(circuit, oc.steady_state(circuit, z).state, oc.ColouredNoise(0.1, tau))


@pytest.mark.one_dtype
@pytest.mark.parametrize("method", METHODS)
def test_noise_that_depends_on_the_state_is_taken_at_the_start_of_a_step(xp: Library, method: str) -> None:
    """dx = -k x dt + s x dB: the recursion of the method, path by path, in every form; and the mean square of Ito."""
    s, members, count = 0.8, 2000, 64
    times = xp.array(np.linspace(0.0, LENGTH, count + 1))
    start = (xp.array(np.ones((members, 1))),)
    db = oc.wiener_increments(times, 1, seed=3, batch=(members,))
    h, kicks = LENGTH / count, s * numpy_tree((db,))[0][..., 0]
    drift = (
        1 - RATE * h if method == "euler_maruyama" else 1 - RATE * h + 0.5 * (RATE * h) ** 2 - 0.5 * RATE * h * kicks
    )
    want = np.prod(drift + kicks, axis=0)
    for noise in (oc.MultiplicativeNoise(s), lambda x: (s * abs(x[0]),), oc.MultiplicativeNoise(xp.array([s]))):
        run = oc.integrate_sde(decay, start, times, noise=noise, increments=db, method=method)
        end = numpy_tree(run.state[0])[-1, :, 0]
        positive = np.all(np.cumprod(drift + kicks, axis=0) > 0, axis=0)  # abs(x) is x there
        assert positive.mean() > 0.9
        np.testing.assert_allclose(end[positive], want[positive], rtol=1e3 * xp.eps, atol=1e3 * xp.eps)
    square = math.exp((s**2 - 2 * RATE) * LENGTH)
    spread = math.sqrt((math.exp((6 * s**2 - 4 * RATE) * LENGTH) - square**2) / members)
    # five standard errors, and the bias of 64 steps: about (k h)**2 count / 2 of the exponent
    assert abs(np.mean(end**2) - square) < 5 * spread + 0.15 * square


@pytest.mark.one_dtype
def test_noise_of_a_state_is_not_taken_for_a_matrix(xp: Library) -> None:
    """A batch as large as the state: one array may be either; a tuple are amplitudes, a matrix has batch axes."""
    start = xp.array(np.array([[1.0, 2.0], [3.0, 4.0]]))
    times, db = xp.array([0.0, 0.1]), xp.array(np.array([[[0.5, -0.5], [0.25, 1.0]]]))

    def still(t: Any, x: Any) -> Any:
        return (0.0 * x[0],)

    def end(noise: Any) -> np.ndarray[Any, Any]:
        return numpy_tree(oc.integrate_sde(still, (start,), times, noise=noise, increments=db).state)[0][-1]

    before, kick = numpy_tree((start, db[0, ...]))
    np.testing.assert_allclose(end(lambda x: (2.0 * x[0],)), before + 2.0 * before * kick, rtol=4 * xp.eps)
    mixing = np.array([[0.0, 1.0], [2.0, 0.0]])
    np.testing.assert_allclose(end(lambda x: xp.array(mixing)[None, ...]), before + kick @ mixing.T, rtol=4 * xp.eps)
    with pytest.raises(ValueError, match=r"noise\(state\) of shape \(2, 2\) may be amplitudes .* or a matrix L"):
        end(lambda x: 2.0 * x[0])


@pytest.mark.one_dtype
def test_simulated_noise_of_a_circuit_follows_its_state(xp: Library) -> None:
    """One step from a state: the kick is the amplitude there times dB."""
    circuit, z, state = small_circuit(2)
    times = xp.array([0.0, 1e-4])
    kick = np.array([[0.3, -0.2, 0.1, 0.5]])
    mine = {"state0": xp.tree(state), "increments": xp.array(kick), "drive": "constant"}
    amplitudes = {
        oc.FiringRateNoise((0.2, 0.1)): np.concatenate([0.2 * np.abs(state.y), 0.1 * state.a**0.25]),
        oc.MultiplicativeNoise((0.2, 0.0)): np.concatenate([0.2 * np.abs(state.y), 0 * state.a]),
    }
    plain = oc.simulate_sde(xp.tree(circuit), xp.array(z), times, noise=0.0, **mine)
    for noise, amplitude in amplitudes.items():
        run = oc.simulate_sde(xp.tree(circuit), xp.array(z), times, noise=noise, **mine)
        moved = [one[-1] - two[-1] for one, two in zip(numpy_tree(run.state), numpy_tree(plain.state), strict=True)]
        np.testing.assert_allclose(np.concatenate(moved), amplitude * kick[0], atol=100 * xp.eps)


@pytest.mark.one_dtype
def test_time_constants_of_noise_may_have_batch_axes(xp: Library) -> None:
    """Of their own, as amplitudes may: eta has the variance 1 / (2 tau), and a field that stands still its integral."""
    taus, members = np.array([0.1, 1.0]), 2000
    times = xp.array(np.linspace(0.0, LENGTH, 41))
    noise = oc.ColouredNoise(1.0, xp.array(np.broadcast_to(taus[:, None, None], (2, members, 1)).copy()))
    run = oc.integrate_sde(
        lambda t, x: tuple(0 * part for part in x), (xp.array(np.zeros(1)),), times, noise=noise, seed=2
    )
    assert tuple(run.state[0].shape) == (41, 2, members, 1)
    want = LENGTH - taus * (1 - np.exp(-LENGTH / taus))
    found = numpy_tree(run.state[0])[-1, :, :, 0].var(axis=1)
    assert np.all(np.abs(found - want) < 5 * want * math.sqrt(2 / members))


@pytest.mark.library("numpy", "torch", "jax")
@pytest.mark.one_dtype
def test_coloured_noise_of_a_simulation(xp: Library) -> None:
    """The integral of eta has the variance T - tau (1 - exp(-T / tau)); through a leak, that of the linear theory."""
    tau, members = 0.3, 4000
    times = xp.array(np.linspace(0.0, LENGTH, 201))
    start = (xp.array(np.zeros((members, 1))),)
    noise = oc.ColouredNoise(1.0, tau)
    still = oc.integrate_sde(lambda t, x: tuple(0 * part for part in x), start, times, noise=noise, seed=2)
    end = numpy_tree(still.state[0])[-1, :, 0]
    want = LENGTH - tau * (1 - math.exp(-LENGTH / tau))
    assert abs(end.mean()) < 5 * math.sqrt(want / members)
    assert abs(end.var() - want) < 5 * want * math.sqrt(2 / members)
    run = oc.integrate_sde(decay, start, xp.array(np.linspace(0.0, 3.0, 601)), noise=noise, seed=4)
    end = numpy_tree(run.state[0])[-1, :, 0]
    want = float(oc.linear_covariance(np.array([[-RATE]]), noise)[0, 0])  # of 9 time constants: e**-9 is left
    assert abs(end.var() - want) < 5 * want * math.sqrt(2 / members) + 0.01 * want


def test_quick_coloured_noise_is_white(xp64: Library) -> None:
    """A filter of a millionth of the step: the same path; one per noise, in a batch, over several chunks."""
    circuit, z, state = small_circuit(2)
    times = xp64.array(np.linspace(0.0, 0.01, 101))
    given = {"state0": xp64.tree(state), "seed": 5, "drive": "constant"}
    white = oc.simulate_sde(xp64.tree(circuit), xp64.array(z), times, noise=0.1, **given)
    taus = xp64.array(1e-10 * np.arange(1.0, 5.0))
    run = oc.simulate_sde(xp64.tree(circuit), xp64.array(z), times, noise=oc.ColouredNoise(0.1, taus), **given)
    for one, two in zip(numpy_tree(run.state), numpy_tree(white.state), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-3)


def test_the_trajectory_says_when_and_in_how_many_steps(xp: Library) -> None:
    """The times that were given, and substeps in every interval, none of which is rejected: integers."""
    times = xp.array([0.5, 0.6, 0.8])
    run = oc.integrate_sde(decay, (xp.array([1.0]),), times, noise=NOISE, seed=1, substeps=5)
    np.testing.assert_array_equal(numpy_tree(run.times), numpy_tree(times))
    assert (int(run.steps), int(run.rejected)) == (10, 0)
    assert "int" in str(run.steps.dtype)
    assert "int" in str(run.rejected.dtype)
