"""What a run hands back: joined runs, events, interpolants, progress; and arguments that are refused, by name."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import sparse
from support import small_circuit

import organics_core as oc
from organics_core.drive import read_drive, read_jumps
from organics_core.trajectory import SUCCESS, TOO_MANY_STEPS
from organics_core.weights import padded_rows


def turning(t: Any, state: tuple) -> tuple:
    """A rotation by one radian per second."""
    x = state[0]
    return (np.stack([-x[..., 1], x[..., 0]], axis=-1),)


START = (np.array([[1.0, 0.0], [0.0, 1.0]]),)
OPTIONS: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-12}


def first_part(t: Any, state: tuple) -> Any:
    """cos t for the first member, -sin t for the second."""
    return state[0][..., 0]


def after_two(t: Any, state: tuple) -> Any:
    """Crosses zero at t = 2 in both members: an event may look at the clock."""
    return t - 2.0 + 0.0 * state[0][..., 0]


def test_joined_runs_keep_what_happened() -> None:
    """Events of both, steps added up, the first status that is not success; the clock may start anywhere."""
    events = (first_part, after_two)
    one = oc.integrate(turning, START, 1.0 + np.array([0.0, 1.5]), events=events, **OPTIONS)
    two = oc.integrate(turning, one, 1.0 + np.array([1.5, 2.0, 4.0]), events=events, **OPTIONS)
    both = one.then(two)
    whole = oc.integrate(turning, START, 1.0 + np.array([0.0, 1.5, 2.0, 4.0]), events=events, **OPTIONS)
    np.testing.assert_allclose(both.times, whole.times)
    np.testing.assert_allclose(both.state[0], whole.state[0], atol=1e-7)
    assert int(both.steps) == int(one.steps) + int(two.steps)
    assert int(both.rejected) == int(one.rejected) + int(two.rejected)
    assert len(both.events) == 2
    for mine, theirs in zip(both.events, whole.events, strict=True):
        np.testing.assert_allclose(mine.times, theirs.times, atol=1e-7)
        np.testing.assert_array_equal(mine.members, theirs.members)
        np.testing.assert_allclose(mine.state[0], theirs.state[0], atol=1e-7)
    np.testing.assert_allclose(whole.events[0].times, 1.0 + np.array([math.pi / 2, math.pi]), atol=1e-7)
    np.testing.assert_array_equal(whole.events[0].members, [[0], [1]])
    np.testing.assert_allclose(whole.events[1].times, [2.0, 2.0], atol=1e-7)
    np.testing.assert_allclose(whole.events[1].state[0][0], [math.cos(1.0), math.sin(1.0)], atol=1e-7)
    with pytest.raises(ValueError, match=r"^later must begin at the last time of this run, 2\.5, got 1\.0$"):
        one.then(one)
    with pytest.raises(ValueError, match=r"^times must begin where the run state0 ends, at 2\.5, got 3\.0$"):
        oc.integrate(turning, one, np.array([3.0, 4.0]))
    lost = oc.integrate(turning, START, np.array([0.0, 50.0]), max_steps=3)
    later = oc.integrate(turning, START, np.array([50.0, 51.0]))
    assert int(lost.then(later).status[0]) == TOO_MANY_STEPS
    assert int(later.then(later._replace(times=later.times + 1.0)).status[0]) == SUCCESS


def test_runs_that_do_not_belong_together() -> None:
    """Other shapes of the states, other numbers of events, and what is no run."""
    times = np.array([0.0, 1.0])
    one = oc.integrate(turning, START, times, events=[first_part])
    for other, said in (
        (oc.integrate(turning, (START[0][:1],), 1.0 + times, events=[first_part]), "[(1, 2)] and 1"),
        (oc.integrate(turning, START, 1.0 + times), "[(2, 2)] and 0"),
    ):
        wanted = f"later must have states of shapes [(2, 2)] and 1 kinds of events, got {said}"
        with pytest.raises(ValueError, match=re.escape(wanted)):
            one.then(other)
    with pytest.raises(TypeError, match=r"^later must be a Trajectory, got tuple$"):
        one.then(tuple(one))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^later\.times must be an array of numpy"):
        one.then(one._replace(times=[1.0, 2.0]))


def test_an_event_that_reaches_zero_and_stays() -> None:
    """Is one event, at the time where it becomes zero, in every member; one that leaves zero is none."""

    def falls(t: Any, state: tuple) -> Any:
        return np.maximum(0.5 - t, 0.0) + 0.0 * state[0][..., 0]

    def rises(t: Any, state: tuple) -> Any:
        return np.maximum(t - 0.5, 0.0) + 0.0 * state[0][..., 0]

    run = oc.integrate(turning, START, np.array([0.0, 2.0]), events=[falls, rises], max_step=0.1)
    assert [event.times.shape for event in run.events] == [(2,), (0,)]
    np.testing.assert_allclose(run.events[0].times, 0.5, rtol=1e-12)
    np.testing.assert_array_equal(run.events[0].members, [[0], [1]])


def test_an_event_that_is_zero_at_the_start_of_a_step() -> None:
    """Counts where it is reached, not where it is left."""
    run = oc.integrate(
        lambda t, x: (1.0 + 0.0 * x[0],), (np.array([0.0]),), np.array([0.0, 2.0]), events=[lambda t, x: x[0][..., 0]]
    )
    assert run.events[0].times.shape == (0,)
    assert run.events[0].members.shape == (0, 0)
    assert run.events[0].state[0].shape == (0, 1)


@pytest.mark.parametrize("start", [0.0, 1e4])
def test_events_in_single_precision(start: float) -> None:
    """State and time of x' = 1 - 2 x at 1/2, to rounding of the state and of the clock, wherever that starts.

    The event is so small that the product of two values underflows.
    """
    times = (start + np.array([0.0, 4.0])).astype(np.float32)
    run = oc.integrate(
        lambda t, x: (1.0 - 2.0 * x[0],),
        (np.zeros(1, dtype=np.float32),),
        times,
        events=[lambda t, x: np.float32(1e-30) * (x[0][..., 0] - np.float32(0.25))],
        dense=True,
    )
    (event,) = run.events
    np.testing.assert_allclose(event.state[0], [[0.25]], rtol=1e-6)
    np.testing.assert_allclose(event.times, [start + 0.5 * np.log(2.0)], rtol=2e-7, atol=1e-6)
    assert run.interpolant is not None
    assert run.interpolant(times[:0])[0].shape == (0, 1)


def test_interpolants_say_where_they_hold() -> None:
    """Of one axis of times, within the run, wherever its clock starts."""
    run = oc.integrate(turning, START, 1000.0 + np.array([0.0, 2.0]), dense=True, **OPTIONS)
    found = run.interpolant(np.array([1002.0, 1000.0, 1001.0]))[0]
    angles = np.array([2.0, 0.0, 1.0])
    np.testing.assert_allclose(found[:, 0], np.stack([np.cos(angles), np.sin(angles)], axis=-1), atol=1e-7)
    slack = 1000.0 * 2e-16
    run.interpolant(np.array([1000.0 - slack, 1002.0 + slack]))
    with pytest.raises(ValueError, match=r"^times must have shape \(T,\), got shape \(\)$"):
        run.interpolant(np.array(1001.0))
    for wrong, said in ((999.99, "999.99, 1001"), (1002.01, "1001, 1002.01")):
        wanted = f"times must lie in [1000, 1002], got [{said}]"
        with pytest.raises(ValueError, match=re.escape(wanted)):
            run.interpolant(np.array([1001.0, wrong]))
    single = oc.integrate(
        turning, (START[0].astype(np.float32),), np.array([1e4, 1e4 + 2], dtype=np.float32), dense=True
    )
    single.interpolant(np.array([1e4, 1e4 + 2], dtype=np.float32))


def test_progress_is_told_in_fiftieths() -> None:
    """Of a run, and of one with noise at its end; a run of one interval is not cut."""
    case = small_circuit(3)
    times = np.linspace(0.0, 0.02, 101)
    for run in (
        lambda heard: oc.simulate(case.circuit, case.z, times, progress=heard.append),
        lambda heard: oc.simulate(case.circuit, case.z, times, progress=heard.append, method="rk4"),
    ):
        heard: list[float] = []
        assert run(heard).success
        np.testing.assert_allclose(heard, np.arange(1, 51) / 50)
    heard = []
    oc.simulate_sde(case.circuit, case.z, times, noise=0.01, progress=heard.append)
    assert heard[-1] == 1.0
    samples = np.sin(200 * times)[:, None] * case.z
    options: dict[str, Any] = {"drive": "sampled", "rtol": 1e-8, "atol": 1e-11}
    heard = []
    shown = oc.simulate(case.circuit, samples, times, progress=heard.append, **options)
    plain = oc.simulate(case.circuit, samples, times, **options)
    np.testing.assert_allclose(shown.state.y, plain.state.y, rtol=1e-5, atol=1e-8)
    assert abs(int(shown.steps) - int(plain.steps)) <= 5


def test_what_a_run_refuses() -> None:
    """By the name of the argument, with what is wanted instead."""
    case = small_circuit(3)
    times = np.linspace(0.0, 0.01, 3)

    def run(**options: Any) -> Callable[[], Any]:
        return lambda: oc.simulate(case.circuit, case.z, times, **options)

    cases: list[tuple[Callable[[], Any], type[Exception], str]] = [
        (run(method="euler_maruyama"), ValueError, "method 'euler_maruyama' is for noise; call simulate_sde"),
        (run(dense=True, method="rk4"), ValueError, "dense=True needs an adaptive method with interpolation, such as"),
        (run(events=[first_part], method="rk4"), ValueError, "events needs an adaptive method with interpolation"),
        (run(until="steady", method="rk4"), ValueError, "until='steady' needs a constant drive, an adaptive"),
        (run(until="never"), ValueError, "unknown until 'never'; choose one of 'steady'"),
        (
            run(events=None),
            TypeError,
            "events must be a sequence of functions of time and state, such as a list, got None",
        ),
        (run(events=first_part), TypeError, "events must be a sequence of functions of time and state, such as a list"),
        (run(events=[3]), TypeError, "events[0] must be a function of time and state, got"),
        (run(max_step=-1.0), ValueError, "max_step must be positive"),
        (run(rtol=0.0), ValueError, "rtol must be positive"),
        (run(atol=-1.0), ValueError, "atol must be positive"),
        (run(substeps=0), ValueError, "substeps must be"),
        (run(max_steps=0), ValueError, "max_steps must be"),
        (run(jumps=[0.1]), ValueError, "jumps are for a z that is a function of time; an array z has its breaks at"),
        (run(drive="some"), ValueError, "unknown drive 'some'; choose one of 'auto'"),
        (run(drive="sampled"), ValueError, "a sampled z must have shape (3, ..., n), one value per time, got (3,)"),
        (lambda: oc.integrate(3, START, times), TypeError, "field must be a function of time and state, got"),
        (lambda: oc.integrate(turning, START[0], times), TypeError, "state0 must be a (named) tuple of arrays, got"),
        (lambda: oc.integrate(turning, (START,), times), TypeError, "state0 must be a (named) tuple of arrays, got"),
        (lambda: oc.integrate(turning, (np.array(1.0),), times), ValueError, "state0[0] must have shape (..., n), got"),
        (lambda: oc.integrate(turning, START, times[:1]), ValueError, "times must have shape (T,) with T >= 2, got"),
        (
            lambda: oc.integrate(turning, START, times[::-1]),
            ValueError,
            "times must be strictly increasing, got 0.005 ",
        ),
        (lambda: oc.integrate(turning, (np.ones((0, 2)),), times), ValueError, "the batch must not be empty, got"),
        (
            lambda: oc.integrate(turning, START, times, method="exponential_euler"),
            ValueError,
            "method 'exponential_euler' needs tau, the time constants of the linear decay",
        ),
        (lambda: oc.integrate(lambda t, x: x[0], START, times), ValueError, "field must return a tuple of arrays"),
        (
            lambda: oc.integrate(lambda t, x: (1j * x[0],), START, times, method="rk4"),
            TypeError,
            "field must return real numbers, got complex128",
        ),
        (lambda: oc.simulate(case.circuit, 3.0, times), TypeError, "z must be an array or a function of time, got"),
        (lambda: oc.simulate(case.circuit, lambda t: 3.0, times), TypeError, "z(t) must return an array, got"),
        (
            lambda: oc.simulate(case.circuit, lambda t: case.z, times, jumps=[math.nan]),
            ValueError,
            "jumps must be finite times in seconds, got nan among them",
        ),
        (
            lambda: oc.simulate(case.circuit, lambda t: np.full(3, np.nan), times),
            ValueError,
            "z(t) must be finite, got NaN or infinity",
        ),
        (
            lambda: oc.simulate_sde(case.circuit, case.z, times, noise=0.1, increments=np.ones((3, 6))),
            ValueError,
            "increments must have shape (2, ..., 6), one per step, got (3, 6)",
        ),
        (lambda: oc.simulate_sde(case.circuit, case.z, times, noise=0.1, method="rk4"), ValueError, "unknown method"),
        (lambda: oc.wiener_increments(times, 2, batch=[2]), TypeError, "batch must be a tuple of integers, got"),
        (lambda: oc.wiener_increments(times, 2, batch=(0,)), ValueError, "batch must be"),
        (lambda: oc.pulse_train(np.array(1.0), [0.0], 0.1), ValueError, "z must have shape (..., n), got shape ()"),
        (lambda: oc.pulse_train(case.z, [], 0.1), ValueError, "onsets must hold at least one time, got none"),
        (lambda: oc.pulse_train(case.z, ["a"], 0.1), ValueError, "onsets must be finite numbers, got 'a'"),
        (lambda: oc.pulse_train(case.z, [0.0], math.inf), ValueError, "durations must be finite numbers, got inf"),
        (lambda: oc.pulse_train(case.z, [0.0], 0.0), ValueError, "durations must be positive, got 0"),
        (lambda: oc.pulse_train(case.z, [1e6], 1e-12), ValueError, "durations must be more than the rounding of the"),
        (lambda: oc.pulse_train(case.z, [0.0], [0.1, -1.0]), ValueError, "durations must be a number or 1 numbers"),
        (lambda: oc.pulse_train(case.z, [0.0, 1.0], [0.1, -1.0]), ValueError, "durations must be positive, got -1"),
        (
            lambda: oc.pulse_train(case.z, [0.0, 1.0], 0.1, amplitudes=[1.0]),
            ValueError,
            "amplitudes must be a number or 2 numbers, one per onset, got 1",
        ),
        (
            lambda: oc.pulse_train(case.z, [0.0], 0.1, amplitudes=True),
            TypeError,
            "amplitudes must be a number or numbers, got True",
        ),
        (
            lambda: oc.pulse_train(case.z, [0.0], 0.1, baseline=np.array([np.nan])),
            ValueError,
            "baseline must be finite",
        ),
        (
            lambda: oc.pulse_train(case.z, [0.0], 0.1, baseline=np.ones(2)),
            ValueError,
            "baseline must have shape (..., 3) or a scalar, got shape (2,)",
        ),
        (
            lambda: oc.pulse_train(case.z, [0.0], 0.1, baseline=0.0),
            TypeError,
            "baseline must be an array, got the number 0.0",
        ),
        (lambda: oc.pulse_train([1.0], [0.0], 0.1), TypeError, "z must be an array of numpy, torch, jax, cupy or"),
        (lambda: oc.pulse_train(case.z * math.nan, [0.0], 0.1), ValueError, "z must be finite, got NaN or infinity"),
        (lambda: oc.pulse_train(case.z, "a", 0.1), ValueError, "onsets must be finite numbers, got 'a'"),
        (lambda: oc.pulse_train(case.z, None, 0.1), TypeError, "onsets must be a number or numbers, got None"),
        (lambda: oc.pulse_train(case.z, [True], 0.1), ValueError, "onsets must be finite numbers, got True"),
        (
            lambda: oc.simulate(case.circuit, lambda t: case.z, times, jumps=3.0),
            TypeError,
            "jumps must be times in seconds, a list of numbers, got float",
        ),
        (
            lambda: oc.simulate(case.circuit, lambda t: case.z, times, jumps=[True]),
            ValueError,
            "jumps must be finite times in seconds, got True among them",
        ),
        (
            lambda: oc.simulate(case.circuit, lambda t: case.z, times, drive="constant"),
            ValueError,
            "drive='constant' says how to read an array z, and z is a function of time: leave it out",
        ),
    ]
    for call, kind, said in cases:
        with pytest.raises(kind, match=f"^{re.escape(said)}"):
            call()


@pytest.mark.parametrize("form", [sparse.csr_array, sparse.csc_array, sparse.coo_array])
def test_sparse_weights_are_checked_like_dense_ones(form: Any) -> None:
    """Shape, dtype and the sign of what is stored."""
    case = small_circuit(3)
    times = np.array([0.0, 0.001])

    def run(w: Any, b: Any = None) -> Any:
        circuit = case.circuit._replace(w=w) if b is None else case.circuit._replace(w=w, b=b)
        return oc.simulate(circuit, case.z, times)

    assert run(form(case.circuit.w)).success
    np.testing.assert_allclose(run(form(case.circuit.w)).state.y, run(case.circuit.w).state.y, rtol=1e-9)
    for wrong in (np.ones((3, 2)), np.ones((2, 3)), np.ones((2, 2)), np.ones((4, 4))):
        said = f"w must have shape (3, 3), got shape {wrong.shape}"
        with pytest.raises(ValueError, match=re.escape(said)):
            run(form(wrong))
    with pytest.raises(TypeError, match=r"^w must have a real floating dtype, got int64; convert it first"):
        run(form(np.ones((3, 3), dtype=np.int64)))
    with pytest.raises(ValueError, match=r"^w must be non-negative, got -1 as its smallest value"):
        run(form(case.circuit.w - np.diag([0.0, 0.0, 1.0 + case.circuit.w[2, 2]])))
    with pytest.raises(ValueError, match=r"^w must be finite, got NaN or infinity among its values"):
        run(form(case.circuit.w * np.where(np.eye(3), np.nan, 1.0)))
    with pytest.raises(ValueError, match=r"^b must be positive"):
        run(form(case.circuit.w), b=-0.5)
    recurrent = case.circuit._replace(w_r=form(case.circuit.w_r))
    assert oc.simulate(recurrent, case.z, times).success  # of any sign
    with pytest.raises(ValueError, match=r"^w must be square, of shape \(\.\.\., 2, 2\), got shape \(3, 3\)"):
        oc.simulate(case.circuit._replace(w_r=form(np.ones((2, 2)))), case.z, times)


def test_convolutions_on_a_ring_of_any_length() -> None:
    """The circulant matrix of the kernel, for vectors and batches of an odd and an even number of neurons."""
    for n in (1, 4, 5):
        kernel = np.arange(1.0, n + 1)
        matrix = np.stack([np.roll(kernel, k) for k in range(n)], axis=1)
        made = oc.ring_convolution(kernel)
        assert made.shape == (n, n)
        vectors = np.random.default_rng(0).standard_normal((2, 3, n))
        np.testing.assert_allclose(made.product(vectors), vectors @ matrix.T, atol=1e-12)
        np.testing.assert_allclose(made.product(vectors[0, 0]), matrix @ vectors[0, 0], atol=1e-12)
    for wrong in (np.ones((2, 2)), np.ones(0)):
        with pytest.raises(ValueError, match=re.escape(f"kernel must have shape (n,), got shape {wrong.shape}")):
            oc.ring_convolution(wrong)


def test_operators_multiply_batches_member_by_member() -> None:
    """A product of vectors alone serves batches of any shape; one that takes batches is called once."""
    matrix = np.random.default_rng(0).random((3, 3))
    shapes: list[tuple[int, ...]] = []

    def product(given: Any, vector: Any) -> Any:
        shapes.append(vector.shape)
        return vector @ given.T

    vectors = np.random.default_rng(1).random((2, 4, 3))
    alone = oc.Operator(product, (matrix,))
    np.testing.assert_allclose(alone.product(vectors), vectors @ matrix.T, rtol=1e-12)
    assert shapes == [(3,)] * 8
    shapes.clear()
    together = oc.Operator(product, (matrix,), batched=True)
    np.testing.assert_allclose(together.product(vectors), vectors @ matrix.T, rtol=1e-12)
    assert shapes == [(2, 4, 3)]
    assert (alone.batched, together.batched) == (False, True)
    with pytest.raises(TypeError, match=r"^product must be a function of a vector, got"):
        oc.Operator(3)  # type: ignore[arg-type]


def test_jumps_are_read_from_lists_and_arrays() -> None:
    """Of any shape, in any order, twice the same once; those of the function itself come along."""
    z, times = np.ones(2), np.array([0.0, 1.0])
    train = oc.pulse_train(z, [0.25], 0.5)
    own = (0.25, 0.75)
    for jumps, wanted in (
        (None, own),
        ([0.5, 0.1], (0.1, *own[:1], 0.5, own[1])),
        ({0.25}, own),
        ([np.float32(0.5), np.int64(0)], (0.0, 0.25, 0.5, 0.75)),
        (np.array([[0.9, 0.75], [0.1, 0.75]]), (0.1, *own, 0.9)),
        (np.array(0.5), (0.25, 0.5, 0.75)),
    ):
        assert read_drive(np, train, times, "auto", jumps).jumps == wanted
    with pytest.raises(TypeError, match=r"^jumps must have a real floating dtype, got int64; convert it first$"):
        read_jumps(np.array([1]))
    constant = read_drive(np, z, times, "auto", [0.5], timed=True)  # of the model
    assert (constant.jumps, constant.constant is z, constant.function) == ((0.5,), True, None)
    sampled = read_drive(np, np.ones((2, 2)), times, "sampled", [0.5], timed=True)
    assert (sampled.jumps, sampled.constant, sampled.sample.shape) == ((0.5,), None, (2,))
    assert [*sampled.named, *constant.named, *read_drive(np, train, times, "auto").named] == ["z", "z", "z(t)"]


def test_a_pulse_train_is_the_sum_of_its_pulses() -> None:
    """From the onset, the end excluded, over the baseline, scaled and added."""
    z, under = np.array([1.0, -2.0]), np.array([0.5, 0.25])
    train = oc.pulse_train(z, [0.1, 0.15], [0.1, 0.3], amplitudes=[2.0, -0.5], baseline=under)
    assert train.jumps == tuple(sorted({0.1, 0.1 + 0.1, 0.15, 0.15 + 0.3}))
    for t, factor in ((0.0, 0.0), (0.1, 2.0), (0.14, 2.0), (0.15, 1.5), (0.2, -0.5), (0.44, -0.5), (0.45, 0.0)):
        for clock in (t, np.asarray(t)):
            np.testing.assert_allclose(train(clock), under + factor * z, rtol=1e-15)
    assert train(np.asarray(0.3)).dtype == z.dtype
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert oc.pulse_train(z.astype(np.float32), [0.0], 1.0)(np.asarray(0.5)).dtype == np.float32


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_padded_rows_are_the_sparse_matrix(dtype: str) -> None:
    """Rows of no, one and many values, for a vector and for batches, in the dtype of the vectors."""
    rng = np.random.default_rng(0)
    matrix = rng.random((5, 5)) * (rng.random((5, 5)) < 0.5)
    matrix[1], matrix[3] = 0.0, [0.0, 0.0, 2.0, 0.0, 0.0]
    vectors = rng.random((2, 3, 5)).astype(dtype)
    made = padded_rows(sparse.coo_array(matrix), vectors)
    assert (made.shape, made.batched) == ((5, 5), True)
    assert made.product(vectors).dtype == vectors.dtype
    np.testing.assert_allclose(made.product(vectors), vectors @ matrix.T, rtol=1e-5)
    np.testing.assert_allclose(made.product(vectors[0, 1]), matrix @ vectors[0, 1], rtol=1e-5)
    assert (padded_rows(sparse.csr_array((3, 3)), vectors[0, 0, :3]).product(vectors[0, :, :3]) == 0).all()
