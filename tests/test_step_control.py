"""How long the steps of the adaptive methods are: against the theory, on problems whose error estimate is known.

On a linear problem x' = lambda x a step of length h multiplies the state by a
number and estimates its error as another, E(h lambda), which follows from the
tableau alone. What the control should do can so be said in closed form, and
bands need no more room than other constants of the same control would take.

The loop for libraries that trace is the same code with another clock. Here it
runs with numpy, too, which executes what it would otherwise record.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
from scipy.integrate import solve_ivp
from support import small_circuit

import organics_core as oc
from organics_core.backend import get_backend
from organics_core.loops import TracedLoop
from organics_core.methods import Method
from organics_core.model import Parameter
from organics_core.trajectory import STEP_TOO_SMALL, STIFF, SUCCESS, TOO_MANY_STEPS

TINY = 1e-300
"""A tolerance that never counts."""
DOPRI5 = oc.INTEGRATORS["dopri5"]


@pytest.fixture(params=["host", "traced"])
def loop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Both loops; the one that is traced elsewhere runs here step by step."""
    if request.param == "traced":
        monkeypatch.setattr(get_backend(np), "traces_loops", True)
    with np.errstate(all="ignore"):
        yield request.param


def rotation(t: Any, state: tuple) -> tuple:
    """The first two neurons turn by one radian per second, others rest."""
    x = state[0]
    out = np.zeros_like(x)
    out[..., 0], out[..., 1] = -x[..., 1], x[..., 0]
    return (out,)


def decay(t: Any, state: tuple) -> tuple:
    """x' = -x."""
    return (-state[0],)


def growth(t: Any, state: tuple) -> tuple:
    """x' = x."""
    return (state[0],)


def estimate(z: complex) -> tuple[complex, complex]:
    """E(z) and R(z): the estimated error of a step of dopri5 from one, and its end; x' = lambda x, z = h lambda."""
    stages: list[complex] = []
    for row in (*DOPRI5.stages, DOPRI5.weights):
        stages.append(1.0 + z * sum(a * g for a, g in zip(row, stages, strict=True)))
    return z * sum(e * g for e, g in zip(DOPRI5.error, stages, strict=True)), stages[-1]


def longest(tolerance: float, neurons: int = 2) -> float:
    """The step on a rotation from radius one whose error estimate is the tolerance, by bisection."""
    low, high = 0.0, 3.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if abs(estimate(1j * middle)[0]) < tolerance * math.sqrt(neurons) else (low, middle)
    return low


def turn(span: float, tolerance: float = 1e-6, step: float | None = None, neurons: int = 2, **options: Any) -> Any:
    """A rotation from radius one under an absolute tolerance, from a first step of ``step`` if given."""
    x = np.zeros(neurons)
    x[0] = 1.0
    start: Any = (x,)
    if step is not None:
        start = oc.integrate(rotation, start, np.array([-0.1, 0.0]), rtol=1e-12, atol=1e-12)
        start = start._replace(step=np.asarray(step))
    options = {"dense": True, **options}
    return oc.integrate(rotation, start, np.array([0.0, span]), rtol=TINY, atol=tolerance, **options)


class Watched(Method):
    """dopri5 that writes down where steps are tried, and how long they are."""

    name = "watched"
    order = 5
    adaptive = True
    interpolates = True

    def __init__(self) -> None:
        self.tried: list[tuple[float, float]] = []
        self.own = oc.METHODS["dopri5"]
        self.init, self.interpolate = self.own.init, self.own.interpolate  # type: ignore[method-assign]

    def plain_step(self, slope: Any, t: Any, h: Any, x: Any, memory: Any, noise: Any = None) -> Any:
        self.tried.append((float(t), float(h)))
        return self.own.plain_step(slope, t, h, x, memory, noise)


# The control.


@pytest.mark.parametrize("neurons", [2, 32])
@pytest.mark.parametrize("tolerance", [1e-4, 1e-8])
def test_steps_spend_the_tolerance_with_a_small_margin(tolerance: float, neurons: int) -> None:
    """Root mean square of the estimate over the neurons between 0.8**5 and 0.95**5 of the tolerance; none is rejected.

    In theory 0.9**5, at which the next step is as long as the last: of order
    five is the estimate.
    """
    run = turn(20.0, tolerance, neurons=neurons)
    share = run.interpolant.steps[2:-1] / longest(tolerance, neurons)
    assert len(share) > 10
    assert ((share > 0.8) & (share < 0.95)).all()
    assert int(run.rejected) == 0


@pytest.mark.parametrize("field", [decay, growth])
@pytest.mark.parametrize("batch", [(), (2,)])
def test_the_relative_tolerance_is_of_the_larger_end(field: Callable[..., tuple], batch: tuple[int, ...]) -> None:
    """Long steps, between whose ends the state changes by a factor of about three."""
    rtol = 1e-3
    run = oc.integrate(field, (np.ones((*batch, 1)),), np.array([0.0, 30.0]), rtol=rtol, atol=TINY, dense=True)
    for h in run.interpolant.steps[3:-1]:
        error, end = estimate(-h if field is decay else h)
        share = abs(error) / (rtol * max(1.0, abs(end)))
        assert 0.8**5 < share < 0.96**5
    assert float(np.mean(run.interpolant.steps[3:-1])) > 0.6


def test_tolerances_add_up() -> None:
    """Of a state of one, rtol and atol of the same size are a tolerance of twice that size."""
    start = (np.array([1.0]),)
    runs = [
        oc.integrate(growth, start, np.array([0.0, 1.0]), rtol=r, atol=a, dense=True)
        for r, a in ((1e-9, TINY), (TINY, 1e-9), (1e-9, 1e-9), (2e-9, TINY))
    ]
    for k in (0, 2):  # the first is chosen before any error is known
        steps = [float(run.interpolant.steps[k]) for run in runs]
        np.testing.assert_allclose(steps[2], steps[3], rtol=0.05)
        np.testing.assert_allclose(steps[2] / steps[0], 2**0.2, rtol=0.05)
        np.testing.assert_allclose(steps[2] / steps[1], 2**0.2, rtol=0.05)


def test_one_step_corrects_the_length(loop: str) -> None:
    """After a step of a third of what the tolerance allows comes one of the right length: the exponent is 1 / order."""
    best = longest(1e-6)
    run = turn(best / 3 + 1e-9, step=best / 3, dense=False)
    assert int(run.steps) == 2
    assert int(run.rejected) == 0
    run = turn(20.0, step=best / 3)
    share = run.interpolant.steps[:2] / best
    np.testing.assert_allclose(share, [1 / 3, 0.9], rtol=0.03)


def test_a_step_grows_at_most_tenfold() -> None:
    """From a hundredth of the right length."""
    best = longest(1e-6)
    steps = turn(20.0, step=best / 300).interpolant.steps / best
    np.testing.assert_allclose(steps[:2], [1 / 300, 10 / 300], rtol=0.03)
    assert steps[3] > 0.8


def test_a_step_shrinks_to_a_fifth_at_most() -> None:
    """Two rejected steps from 24 times the length at which the estimate is the tolerance, to a 25th of that."""
    best = longest(1e-6)
    run = turn(20.0, step=24 * best)
    assert int(run.rejected) == 2
    np.testing.assert_allclose(run.interpolant.steps[0] / best, 0.96, rtol=0.03)


def test_no_growth_right_after_a_rejection(loop: str) -> None:
    """A pulse between long steps: the step that was found by rejections is not followed by a longer one."""

    def field(t: Any, state: tuple) -> tuple:
        return (np.exp(-(((t - 5.0) / 0.05) ** 2)) + 0.0 * state[0],)

    watched = Watched()
    times = np.array([0.0, 10.0])
    run = oc.integrate(field, (np.array([0.0]),), times, method=watched, max_step=0.15, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(run.state[0][-1], [0.05 * math.sqrt(math.pi)], rtol=1e-3)
    assert int(run.rejected) >= 3
    found, tried = 0, watched.tried
    for (t0, _), (t1, h1), (t2, h2) in zip(tried, tried[1:], tried[2:], strict=False):
        if t0 == t1 > 0 and t2 > t1:  # the second of these was accepted after a rejection
            found += 1
            assert h2 <= h1 * (1 + 1e-12)
    assert found >= 2


# Batches.


def test_every_member_has_its_own_norm(loop: str) -> None:
    """Sixteen members of which fifteen rest: as many steps as for the one that turns."""
    x = np.zeros((16, 2))
    x[3, 0] = 1.0
    options = {"rtol": TINY, "atol": 1e-8}
    times = np.array([0.0, 6.0])
    many = oc.integrate(rotation, (x,), times, **options)
    one = oc.integrate(rotation, (x[3],), times, **options)
    np.testing.assert_allclose(many.step, one.step, rtol=0.02)
    assert abs(int(many.steps) - int(one.steps)) <= 5  # at rest begins a run with a short step
    assert int(one.steps) >= 50
    np.testing.assert_allclose(many.state[0][-1, 3], one.state[0][-1], rtol=1e-9)
    assert int(one.rejected) == int(many.rejected) == 0


def test_who_failed_does_not_shorten_the_steps_of_the_others(loop: str) -> None:
    """x' = x**2 from 1 ends at t = 1, from -1 never: from then on steps are as long as without the first."""

    def field(t: Any, state: tuple) -> tuple:
        return (state[0] * state[0],)

    times = np.array([0.0, 2.0, 50.0])
    run = oc.integrate(field, (np.array([[1.0], [-1.0]]),), times, rtol=1e-4, atol=1e-7)
    alone = oc.integrate(field, (np.array([-1.0]),), times, rtol=1e-4, atol=1e-7)
    broken = oc.integrate(field, (np.array([1.0]),), times, rtol=1e-4, atol=1e-7)
    np.testing.assert_array_equal(run.status, [STEP_TOO_SMALL, SUCCESS])
    assert int(run.steps) < int(broken.steps) + 2 * int(alone.steps) + 25
    np.testing.assert_allclose(run.state[0][:, 1, 0], -1 / (1 + times), rtol=1e-3)
    assert np.isnan(run.state[0][1:, 0]).all()


# The first step.


def first(field: Callable[..., tuple], x: Any, span: float = 10.0, **options: Any) -> float:
    options = {"rtol": TINY, "atol": 1e-6, **options}
    run = oc.integrate(field, (np.asarray(x),), np.array([0.0, span]), dense=True, **options)
    assert int(run.rejected) == 0
    return float(run.interpolant.steps[0])


def test_the_first_step() -> None:
    """Hairer, Norsett & Wanner II.4: a hundredth of the tolerance is what slope and curvature would make of it."""
    guess = (0.01 * math.sqrt(2) * 1e-6) ** 0.2  # both of size 1 / sqrt(2) / tolerance
    np.testing.assert_allclose(first(rotation, [1.0, 0.0]), guess, rtol=0.02)
    # eight times the curvature under the same slope and state
    turned = 8.0

    def quick(t: Any, state: tuple) -> tuple:
        x = state[0]
        return (np.stack([np.full_like(x[..., 0], 1.0), turned * x[..., 0]], axis=-1),)

    guess = (0.01 * math.sqrt(2) * 1e-6 / turned) ** 0.2
    np.testing.assert_allclose(first(quick, [1e-7, 1.0]), guess, rtol=0.05)
    # the worst of the batch
    x = np.array([[1.0, 0.0], [100.0, 0.0], [1e-3, 0.0]])
    np.testing.assert_allclose(first(rotation, x), first(rotation, x[1]), rtol=1e-12)
    assert first(rotation, x[0]) > 2 * first(rotation, x[1])


def test_the_first_step_from_rest() -> None:
    """Without state or slope a thousandth of the run is the trial; without either a millionth is the step."""
    np.testing.assert_allclose(first(lambda t, x: (0.0 * x[0],), [0.0], 10.0), 1e-6 * 10.0, rtol=1e-9)
    np.testing.assert_allclose(
        first(lambda t, x: (t + 0.0 * x[0],), [0.0], 1.0), (0.01 * 1e-6) ** 0.2, rtol=0.02
    )  # below a hundred trials, 0.1
    np.testing.assert_allclose(first(lambda t, x: (1.0 + 0.0 * x[0],), [0.0], 0.1), 0.01, rtol=1e-9)  # a hundred trials
    np.testing.assert_allclose(first(rotation, [1.0, 0.0], 0.01), 0.01, rtol=1e-12)  # the run is shorter
    # a hundred times the trial, which is a hundredth of the time in which the slope would make the state
    np.testing.assert_allclose(first(lambda t, x: (1.0 + 0.0 * x[0],), [1e-8], 10.0), 1e-8, rtol=1e-6)


def test_the_trial_of_the_first_step_stays_within_the_run(loop: str) -> None:
    """However slow the field, it is asked for times of the run only."""
    asked: list[float] = []

    def slow(t: Any, state: tuple) -> tuple:
        asked.append(float(t))
        return (1e-4 * state[0],)

    assert oc.integrate(slow, (np.array([1.0]),), np.array([2.0, 2.5])).success
    assert (min(asked), max(asked)) == (2.0, 2.5)


def test_a_tolerance_that_overflows_does_not_stop_the_clock(loop: str) -> None:
    """Where slope / tolerance is too large for its square: rejected steps, or long enough ones, none of no length."""
    x = np.array([1.0, 0.0], dtype=np.float32)
    times = np.array([0.0, 1.0], dtype=np.float32)
    run = oc.integrate(rotation, (x,), times, rtol=1e-4, atol=1e-30, max_steps=500)
    assert int(run.status) == STEP_TOO_SMALL or float(np.max(np.abs(run.state[0][-1] - [0.5403, 0.8415]))) < 1e-2


def test_the_first_step_is_no_bottleneck(loop: str) -> None:
    """A run of a few steps takes a few: a start that is far too short would cost some more."""
    run = turn(4 * longest(1e-6), dense=False)
    assert int(run.steps) <= 6
    assert int(run.rejected) == 0


def test_a_run_goes_on_with_the_step_it_had(loop: str) -> None:
    """The step is part of the run, not what was left to its end; one that is no length is chosen anew."""
    best = longest(1e-6)
    run = turn(10.0, dense=False)
    assert 0.8 < float(run.step) / best < 0.95
    later = turn(10.0, step=float(run.step), dense=False)
    assert int(later.steps) <= math.ceil(10.0 / (0.89 * best)) + 1
    fresh = turn(10.0, dense=False)
    for nothing in (0.0, math.nan, math.inf, -1.0):
        again = turn(10.0, step=nothing, dense=False)
        assert abs(int(again.steps) - int(fresh.steps)) <= 1
        assert int(again.rejected) == 0


# Ends of intervals, bounds, jumps.


def test_a_cut_step_does_not_shorten_the_next() -> None:
    """Between samples 1e-9 apart steps are short; the next is as long as the last before."""
    case = small_circuit(3)
    times = np.array([0.0, 0.02, 0.0200000001, 0.04, 0.04000001, 0.06])
    z = np.broadcast_to(case.z, (6, 3))
    run = oc.simulate(case.circuit, z, times, drive="sampled", dense=True)
    starts, steps = run.interpolant.starts, run.interpolant.steps
    for k in (2, 4):
        at = int(np.argmin(abs(starts - times[k])))
        before = float(np.max(steps[at - 4 : at]))
        assert steps[at - 1] == pytest.approx(times[k] - times[k - 1], rel=1e-6)
        assert steps[at] > 0.6 * before
    assert run.success


def test_a_bound_does_not_shorten_the_steps_behind_it() -> None:
    """Outputs that lie dense and then wide: the bound of a function of time goes, and the steps are long at once."""
    circuit = oc.Circuit(None, np.full((1, 1), 0.0), 2.0, 1.0, 0.5, 10.0, 20.0)
    times = np.concatenate([[0.0, 1.0, 2.0, 3.0], 3.0 + 0.01 * np.arange(1, 6), [4.0, 5.0, 6.0]])
    run = oc.simulate(circuit, lambda t: np.ones(1), times, rtol=1e-6, atol=1e-9, dense=True)
    starts, steps = run.interpolant.starts, run.interpolant.steps
    behind = steps[starts > 3.0499]
    assert behind[0] > 0.3


def test_the_bound_of_a_function_of_time_is_the_spacing_around() -> None:
    """No step that begins between two outputs is longer than that interval, or than the next, nor much shorter."""
    circuit = oc.Circuit(None, np.full((1, 1), 0.0), 2.0, 1.0, 0.5, 10.0, 20.0)
    spacing = np.array([0.1, 0.1, 0.01, 0.01, 0.01, 0.1, 0.03, 0.1, 0.1])
    times = np.concatenate([[0.0], np.cumsum(spacing)])
    run = oc.simulate(circuit, lambda t: np.ones(1), times, rtol=1e-4, atol=1e-4, dense=True)
    starts, steps = run.interpolant.starts, run.interpolant.steps
    bound = np.minimum(spacing, [*spacing[1:], spacing[-1]])
    where = np.searchsorted(times, starts + 1e-12, side="right") - 1
    assert (steps <= bound[where] * (1 + 1e-9)).all()
    assert len(steps) < 45
    free = oc.simulate(circuit, lambda t: np.ones(1), times, rtol=1e-4, atol=1e-4, max_step=math.inf)
    assert int(free.steps) < 20


def leaky() -> oc.Circuit:
    """y' = 50 (4 z - y), while a rests at 0.25."""
    return oc.Circuit(None, np.zeros((2, 2)), np.full(2, 2.0), np.full(2, 1.0), 0.5, 0.01, 0.02)


def leaky_steps(times: np.ndarray, jumps: tuple[float, ...], levels: tuple[float, ...]) -> np.ndarray:
    """Its y where z is ``levels``, changing at ``jumps``."""
    y, out, edges = 0.0, np.empty(len(times)), (times[0], *jumps, times[-1])
    for (low, high), level in zip(itertools.pairwise(edges), levels, strict=True):
        inside = (times >= low) & (times <= high)
        out[inside] = 4 * level + (y - 4 * level) * np.exp(-50 * (times[inside] - low))
        y = 4 * level + (y - 4 * level) * math.exp(-50 * (high - low))
    return out


@pytest.mark.parametrize("origin", [0.0, 3.0])
def test_jumps_cost_nothing(loop: str, origin: float) -> None:
    """The drive is asked on the side of the step only, and the first slope behind a jump is made anew.

    No step is rejected at a jump, and the solution is exact to the tolerance.
    """
    jumps, levels = (0.0123, 0.0131, 0.05), (1.0, -20.0, 0.0, 1.5)
    asked: list[float] = []

    def drive(t: Any) -> np.ndarray:
        asked.append(float(t))
        return np.full(2, levels[sum(float(t) >= jump for jump in told)])

    times = np.linspace(0.0, 0.1, 4)
    told = [origin + jump for jump in jumps]
    options = {"rtol": 1e-8, "atol": 1e-11, "max_step": math.inf}
    run = oc.simulate(leaky(), drive, origin + times, jumps=told, **options)
    want = leaky_steps(times, jumps, levels)
    np.testing.assert_allclose(run.state.y[:, 0], want, rtol=0, atol=1e-6)
    assert int(run.rejected) <= 2
    assert int(run.steps) < 150
    for jump in told:
        assert 0.0 < min(abs(t - jump) for t in asked) < 1e-12


def test_jumps_outside_the_run_and_at_its_ends_do_nothing(loop: str) -> None:
    """The drive is asked on the inner side of its ends: for a train that is silent in between, never for a pulse."""
    train = oc.pulse_train(np.ones(2), [-0.01, 0.02], [0.01, 0.01])
    asked: list[float] = []

    def drive(t: Any) -> np.ndarray:
        asked.append(float(t))
        return train(t)

    times = np.array([0.0, 0.01, 0.02])
    run = oc.simulate(leaky(), drive, times, jumps=train.jumps)
    assert run.success
    assert min(asked) >= 0.0
    assert 0.02 - 1e-12 < max(asked) <= 0.02
    assert float(np.max(np.abs(run.state.y))) == 0.0
    quiet = oc.simulate(leaky(), drive, np.array([0.0, 0.01, 0.0199]), jumps=train.jumps)
    assert float(np.max(np.abs(quiet.state.y))) == 0.0


def test_a_short_stretch_between_jumps_is_seen(loop: str) -> None:
    """A pulse 1e-15 of the clock long is asked for inside of it."""
    width = 8e-16
    asked: list[float] = []

    def drive(t: Any) -> np.ndarray:
        asked.append(float(t))
        return np.zeros(2)

    run = oc.simulate(leaky(), drive, np.array([0.0, 0.5, 1.0]), jumps=[0.5, 0.5 + width], max_step=math.inf)
    assert run.success
    assert any(0.5 < t < 0.5 + width for t in asked)


# Where runs end.


def test_steps_shrink_to_the_resolution_of_the_clock(loop: str) -> None:
    """1 / (1 - t) is followed to within 1e-12 of its end, and then given up; a slope that is no number at once."""

    def field(t: Any, state: tuple) -> tuple:
        return (state[0] * state[0],)

    options: dict[str, Any] = {"rtol": 1e-6, "atol": 1e-6}
    run = oc.integrate(field, (np.array([1.0]),), np.array([0.0, 2.0]), dense=True, **options)
    assert int(run.status) == STEP_TOO_SMALL
    steps = run.interpolant.steps
    assert 1e-16 < float(steps[-1]) < 1e-13
    run = oc.integrate(field, (np.array([1.0]),), np.array([0.0, 1.0 - 1e-10, 2.0]), **options)
    assert run.reached == 2
    assert int(run.status) == STEP_TOO_SMALL
    nothing = lambda t, x: (np.where(t > 0, np.nan, x[0]),)  # noqa: E731
    lost = oc.integrate(nothing, (np.array([1.0]),), np.array([0.0, 1.0]), **options)
    assert int(lost.status) == STEP_TOO_SMALL
    assert int(lost.steps) == 0
    # factors of a fifth from at most the run to the square of the resolution: 45 where that is 2e-16
    assert 30 < int(lost.rejected) < 60


def test_a_slope_may_be_steep_at_the_start(loop: str) -> None:
    """x' = -1e12 (x - cos t) in 1 s: steps of 1e-13 at the start are no failure."""
    run = oc.integrate(
        lambda t, x: (-1e12 * (x[0] - 1.0),), (np.array([0.0]),), np.array([0.0, 1e-11]), rtol=1e-6, atol=1e-9
    )
    assert run.success
    far = oc.integrate(
        lambda t, x: (-1e12 * (x[0] - 1.0),), (np.array([0.0]),), np.array([0.0, 1e-12, 1.0]), max_steps=50
    )
    assert int(far.status) in (TOO_MANY_STEPS, STIFF)
    assert far.reached == 2


def test_max_steps_are_counted_per_interval(loop: str) -> None:
    """What an interval needs is enough for each of twenty, and one less is not; what is rejected counts."""
    times = np.linspace(0.0, 20.0, 21)
    start = (np.array([1.0, 0.0]),)
    options: dict[str, Any] = {"rtol": TINY, "atol": 1e-6}
    whole = oc.integrate(rotation, start, times, **options)
    needed = int(whole.steps)
    assert int(whole.rejected) == 0
    assert oc.integrate(rotation, start, times, max_steps=math.ceil(needed / 20) + 2, **options).success
    ends = times[[0, -1]]
    assert oc.integrate(rotation, start, ends, max_steps=needed, **options).success
    short = oc.integrate(rotation, start, ends, max_steps=needed - 1, **options)
    assert int(short.status) == TOO_MANY_STEPS
    assert int(short.steps) == needed - 1
    best = longest(1e-6)
    tried = turn(100 * best, step=24 * best, max_steps=2, dense=False)
    assert (int(tried.steps), int(tried.rejected)) == (0, 2)
    assert int(tried.status) == TOO_MANY_STEPS


def forced(rate: float) -> Callable[..., tuple]:
    """x' = -rate (x - cos t), which follows the cosine."""
    return lambda t, state: (-rate * (state[0] - np.cos(t)),)


def test_stiffness_is_where_stability_limits_the_steps(loop: str) -> None:
    """Not where accuracy does, even with steps of a third of the bound of stability."""
    start, times = (np.array([1.0]),), np.array([0.0, 100.0])
    stiff = oc.integrate(forced(1e3), start, times, rtol=1e-3, atol=1e-3, max_steps=300)
    assert int(stiff.status) == STIFF
    assert "rodas5p" in stiff.message
    tolerance = 3e-3
    assert 0.3 < longest(tolerance) / oc.METHODS["dopri5"].reach < 0.6
    busy = oc.integrate(
        rotation, (np.array([1.0, 0.0]),), np.array([0.0, 500.0]), rtol=TINY, atol=tolerance, max_steps=60
    )
    assert int(busy.status) == TOO_MANY_STEPS
    assert "raise max_steps" in busy.message


def test_stiff_runs_end_early_only_where_they_would_not_end() -> None:
    """After a quarter of max_steps, if those would be reached; otherwise they go on to the last time."""
    start = (np.array([1.0]),)
    lost = oc.integrate(forced(1e3), start, np.array([0.0, 100.0]), rtol=1e-3, atol=1e-3, max_steps=20_000)
    assert int(lost.status) == STIFF
    assert int(lost.steps) + int(lost.rejected) == 5000
    slow = oc.integrate(forced(1e3), start, np.array([0.0, 5.0]), rtol=1e-3, atol=1e-3, max_steps=4000)
    assert slow.success
    assert int(slow.steps) > 1100  # it was asked
    # accuracy, not stability, asks for many steps
    many = oc.integrate(rotation, (np.array([1.0, 0.0]),), np.array([0.0, 500.0]), rtol=TINY, atol=1e-9, max_steps=1500)
    assert int(many.status) == TOO_MANY_STEPS
    assert int(many.steps) == 1500


@pytest.mark.parametrize("rtol", [1e-3, 1e-6])
def test_settled_is_where_the_state_moves_by_the_tolerance(loop: str, rtol: float) -> None:
    """Ten tolerances in the longest time constant, 20 ms; y = 4 (1 - exp(-50 t)) moves by 4 exp(-50 t), a rests."""
    times = np.linspace(0.0, 1.0, 6)
    run = oc.simulate(leaky(), np.ones(2), times, until="steady", rtol=rtol, atol=1e-12, max_step=5e-4)
    # root mean square over y and a, the half of which rests
    expected = -math.log(10 * math.sqrt(2) * rtol) / 50
    assert expected - 1e-5 <= float(run.settled) <= expected + 5e-4 + 1e-5
    assert float(np.max(np.abs(run.state.y[-1] - 4.0))) < 4 * 20 * rtol
    assert int(run.steps) < 1.2 * (expected / 5e-4) + 10
    shifted = oc.simulate(leaky(), np.ones(2), 7.0 + times, until="steady", rtol=rtol, atol=1e-12, max_step=5e-4)
    assert float(shifted.settled) == pytest.approx(7.0 + float(run.settled), abs=5.1e-4)
    early = oc.simulate(leaky(), np.ones(2), np.array([0.0, 0.01]), until="steady", rtol=rtol)
    assert math.isnan(float(early.settled))
    assert early.message == "reached the last time"


def test_settled_without_time_constants(loop: str) -> None:
    """Ten tolerances in the time since the start: of y = 4 (1 - exp(-50 t)), t y' = 10 rtol y."""

    class Level(NamedTuple):
        y: Any

    class Leak(NamedTuple):
        rate: Any
        spec = {"rate": Parameter("> 0")}  # noqa: RUF012
        state = Level
        autonomous = True

        def field(self, xp: Any, t: Any, x: Level, z: Any) -> Level:
            return Level(self.rate * (4.0 * z - x.y))

    rtol, times = 1e-4, np.linspace(0.0, 1.0, 6)
    low, high = 0.05, 1.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        moves = 200.0 * middle * math.exp(-50.0 * middle) > 10.0 * rtol * 4.0 * -math.expm1(-50.0 * middle)
        low, high = (middle, high) if moves else (low, middle)
    options: dict[str, Any] = {"until": "steady", "rtol": rtol, "atol": 1e-12, "max_step": 5e-4}
    run = oc.simulate(Leak(50.0), np.ones(2), times, **options)
    assert high - 1e-5 <= float(run.settled) <= high + 5e-4 + 1e-5


# The clock.


def test_a_pair_of_numbers_has_twice_the_digits() -> None:
    """Ten thousand steps of many lengths in single precision: to 1e-12, where their sum alone is off by 1e-5."""
    clock = object.__new__(TracedLoop)
    clock.xp, clock.double = np, True
    steps = np.random.default_rng(0).uniform(1e-4, 1e-1, 10_000).astype(np.float32)
    t, end = (np.float32(0.0), np.float32(0.0)), np.float32(1e6)
    for h in steps:
        t = clock.move(t, h, end, np.asarray(False))
    exact = math.fsum(map(float, steps))
    assert {part.dtype for part in t} == {np.dtype(np.float32)}
    assert abs(float(t[0]) + float(t[1]) - exact) < 1e-12 * exact
    assert float(clock.left(end, t)) == pytest.approx(1e6 - exact, rel=1e-7)
    assert float(clock.time(t)) == pytest.approx(exact, rel=1e-7)
    assert [float(part) for part in clock.move(t, steps[0], end, np.asarray(True))] == [1e6, 0.0]


@pytest.mark.library("jax")
def test_the_clock_in_single_precision_is_a_pair() -> None:
    """A rotation by 250 radians in steps of 0.04 ends in its phase: what additions round off comes back."""
    xp = pytest.importorskip("jax.numpy")

    def field(t: Any, state: tuple) -> tuple:
        x = state[0]
        return (xp.stack([-x[..., 1], x[..., 0]], axis=-1),)

    span, step = 250.0, np.float32(0.04)
    clock, steps = np.float32(0.0), 0
    while clock < span:
        clock, steps = clock + step, steps + 1
    drift = abs(steps * float(step) - float(clock))  # of a clock of one number
    run = oc.integrate(
        field,
        (xp.asarray([1.0, 0.0], dtype=xp.float32),),
        xp.asarray([0.0, span], dtype=xp.float32),
        rtol=1e-3,
        atol=1e-3,
        max_step=float(step),
    )
    x, y = (float(part) for part in run.state[0][-1])
    lag = (math.atan2(y, x) - span + math.pi) % (2 * math.pi) - math.pi
    assert drift > 0.015
    assert abs(lag) < 3e-3  # 6,000 steps round by up to eps / 2 each, 4e-4 together


# Layouts and loops agree.


def test_the_loops_agree(loop: str) -> None:
    """Same steps, same states, whichever loop; with neurons or members first; with and without dense output."""
    case = small_circuit(3)
    times = np.linspace(0.0, 0.02, 5)
    z = np.stack([case.z, -0.5 * case.z, 2.0 * case.z, 0.0 * case.z])
    batch = oc.simulate(case.circuit, z, times, drive="constant")
    dense = oc.simulate(case.circuit, z, times, drive="constant", dense=True)
    assert (int(batch.steps), int(batch.rejected)) == (int(dense.steps), int(dense.rejected))
    for one, other in zip(batch.state, dense.state, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(batch.step, dense.step, rtol=1e-6)
    deep = oc.simulate(case.circuit, z[None], times, drive="constant")
    np.testing.assert_allclose(deep.state.y[:, 0], batch.state.y, rtol=1e-9, atol=1e-12)


def test_a_member_that_diverges_in_a_batch_of_circuits(loop: str) -> None:
    """Is marked, in its own place; the others are as they are alone."""
    w_r = np.array([[[0.5]], [[-4.0]], [[0.2]]])
    circuit = oc.Circuit(w_r, np.ones((1, 1)), np.ones(1), np.ones(1), np.array([[0.1], [3.0], [0.1]]), 0.001, 0.001)
    flat = oc.Circuit(np.array([[-4.0]]), np.ones((1, 1)), np.ones(1), np.ones(1), 3.0, 0.001, 0.001)
    times = np.linspace(0.0, 0.2, 5)
    run = oc.simulate(circuit, np.ones(1), times)
    np.testing.assert_array_equal(run.status != SUCCESS, [False, True, False])
    assert np.isnan(run.state.y[-1, 1]).all()
    for k in (0, 2):
        alone = oc.simulate(circuit._replace(w_r=w_r[k], sigma=0.1), np.ones(1), times)
        np.testing.assert_allclose(run.state.y[:, k], alone.state.y, rtol=1e-4, atol=1e-7)
    z = np.array([[1.0], [0.0]])
    some = oc.simulate(flat, z, times)  # neurons before members
    np.testing.assert_array_equal(some.status != SUCCESS, [True, False])
    np.testing.assert_array_equal(some.state.y[:, 1], np.zeros((5, 1)))
    assert np.isnan(some.state.y[-1, 0]).all()


def test_the_traced_loop_follows_every_kind_of_drive(loop: str) -> None:
    """Constant, sampled, a function of time, with each adaptive method: scipy's answer."""
    case = small_circuit(3, seed=2)
    times = np.linspace(0.0, 0.02, 6)
    samples = np.sin(200 * times)[:, None] * case.z
    rest = oc.resting_state(case.circuit, case.z)
    drives: dict[str, tuple[Any, Callable[[float], np.ndarray]]] = {
        "constant": (case.z, lambda t: case.z),
        "sampled": (samples, lambda t: np.array([np.interp(t, times, column) for column in samples.T])),
        "auto": (lambda t: np.sin(200 * t) * case.z, lambda t: np.sin(200 * t) * case.z),
    }
    for how, (given, drive) in drives.items():

        def packed(t: float, x: np.ndarray, drive: Any = drive) -> np.ndarray:
            return np.concatenate(oc.vector_field(case.circuit, oc.State(x[:3], x[3:]), drive(t)))

        want = solve_ivp(
            packed, (0, 0.02), np.concatenate(rest), "DOP853", times, rtol=1e-10, atol=1e-12, max_step=0.002
        ).y
        for method in ("dopri5", "rodas5p"):
            run = oc.simulate(case.circuit, given, times, drive=how, method=method, rtol=1e-7, atol=1e-10)
            np.testing.assert_allclose(run.state.y, want[:3].T, rtol=1e-4, atol=1e-6)
            assert int(run.rejected) < 0.3 * int(run.steps)
