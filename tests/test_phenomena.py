"""The phenomena of normalization: each function's numbers show what it is named after."""

from __future__ import annotations

import numpy as np
import pytest
from support import Library, numpy_tree

import organics_core as oc
from organics_core import phenomena

pytestmark = pytest.mark.one_dtype
QUICK = pytest.mark.library("numpy", "torch")  # others take seconds for what differs in its numbers alone


def values(array: object) -> np.ndarray:
    return numpy_tree((array,))[0]


def test_contrast_saturation(xp: Library) -> None:
    """c**2 / (sigma**2 + c**2) up to one factor, with a tuning curve of one shape at all contrasts."""
    contrasts = np.array([0.01, 0.05, 0.1, 0.3, 1.0])
    found = phenomena.contrast_saturation(xp.array(contrasts), sigma=0.1)
    rates = values(found.rates)
    best = rates[:, 0]
    np.testing.assert_allclose(best / best[-1], contrasts**2 / (0.01 + contrasts**2) * 1.01, rtol=1e-4)
    assert best[2] / best[-1] == pytest.approx(0.505, rel=1e-3)
    np.testing.assert_allclose(rates / rates[:, :1], np.broadcast_to(rates[-1] / rates[-1, 0], rates.shape), rtol=1e-4)
    assert np.argmax(rates[-1]) == 0
    assert rates[-1, 16] < 0.01 * best[-1]


def test_a_simulation_ends_there(xp64: Library) -> None:
    """The ready circuit itself, simulated, comes to the rates that were returned."""
    found = phenomena.contrast_saturation(xp64.array([0.2, 1.0]), n=8)
    run = oc.simulate(found.circuit, found.drive, xp64.array([0.0, 0.3]), drive="constant", rtol=1e-9)
    y = values(run.state.y)[-1]
    np.testing.assert_allclose(np.where(y > 0, y, 0.0) ** 2, values(found.rates), rtol=1e-5, atol=1e-9)


def test_cross_orientation_suppression(xp: Library) -> None:
    """The mask alone drives the neuron hardly; over the grating it suppresses, and shifts the contrast response."""
    contrasts, masks = np.geomspace(0.01, 1.0, 9), np.array([0.0, 0.1, 0.3, 1.0])
    rates = values(phenomena.cross_orientation_suppression(xp.array(contrasts), xp.array(masks)).rates)[..., 0]
    alone = values(phenomena.cross_orientation_suppression(xp.array([0.0]), xp.array([1.0])).rates)[0, 0, 0]
    assert alone < 0.01 * rates[0, -1]
    assert np.all(np.diff(rates[:, 2:], axis=0) < 0)
    assert np.all(rates[-1, :3] < 0.2 * rates[0, :3] + alone)
    half = [np.interp(0.5 * rates[0, -1], row, contrasts) for row in rates[:3]]
    assert np.all(np.diff(half) > 0.01)


def test_surround_suppression(xp: Library) -> None:
    """The response rises to a preferred size, then falls by a good part; at low contrast the size is larger."""
    diameters = np.linspace(0.5, 30.0, 60)
    found = phenomena.surround_suppression(xp.array(diameters), xp.array([0.05, 1.0]))
    rates = values(found.rates)[..., 40]
    best = np.argmax(rates, axis=-1)
    assert np.all(best > 0)
    assert np.all(diameters[best] < 8.0)
    assert diameters[best[0]] > diameters[best[1]]
    assert rates[1, -1] < 0.7 * rates[1].max()
    assert np.all(np.diff(rates[1, best[1] :]) < 1e-6)


def test_attention_as_contrast_gain(xp: Library) -> None:
    """A small stimulus in a wide focus: twice the contrast, the same maximum."""
    contrasts = np.geomspace(0.005, 8.0, 30)
    found = phenomena.attention(xp.array(contrasts), stimulus=1.0, attended=20.0)
    attended, neutral = values(found.attended), values(found.neutral)
    ratio = attended / neutral
    assert np.all(np.diff(ratio) < 1e-6)
    assert ratio[0] > 3.0
    assert ratio[-1] == pytest.approx(1.0, abs=0.03)
    half = [np.interp(0.5 * neutral[-1], rates, contrasts) for rates in (attended, neutral)]
    assert half[1] / half[0] == pytest.approx(2.0, rel=0.1)


def test_attention_as_response_gain(xp: Library) -> None:
    """A large stimulus in a narrow focus: a larger response even at the highest contrast."""
    contrasts = np.geomspace(0.005, 8.0, 30)
    found = phenomena.attention(xp.array(contrasts), stimulus=10.0, attended=1.0)
    attended, neutral = values(found.attended), values(found.neutral)
    assert attended[-1] > 2.0 * neutral[-1]
    half = [np.interp(0.5 * rates[-1], rates, contrasts) for rates in (attended, neutral)]
    assert half[0] == pytest.approx(half[1], rel=0.35)
    without = phenomena.attention(xp.array(contrasts), gain=1.0)
    np.testing.assert_allclose(values(without.attended), values(without.neutral), rtol=1e-6)


@pytest.mark.library("numpy", "torch")
def test_temporal_pair(xp: Library) -> None:
    """The second response is the smaller one, the less so the longer the pause; after a long one both are equal."""
    gaps = np.array([0.0, 0.05, 0.1, 0.3, 1.0])
    found = phenomena.temporal_pair(xp.array(gaps))
    ratio = values(found.second) / values(found.first)
    assert ratio[0] < 0.85
    assert np.all(np.diff(ratio) > 0)
    assert ratio[-1] == pytest.approx(1.0, abs=0.01)
    assert tuple(found.rates.shape) == (found.times.shape[0], 5)
    longer = phenomena.temporal_pair(xp.array([0.1]), tau_a=0.2)
    assert float(longer.second[0] / longer.first[0]) < ratio[2]


@pytest.mark.parametrize(
    ("options", "first", "second"),
    [
        ({}, 0.788551, (0.302470, 0.372816)),
        pytest.param({"duration": 0.5}, 0.365145, (0.235554, 0.256517), marks=QUICK),
        pytest.param({"tau_y": 0.001}, 0.798729, (0.303105, 0.381081), marks=QUICK),
        pytest.param({"contrast": 5.0}, 1.626992, (0.323495, 0.417385), marks=QUICK),
        ({"tau_y": 1e-5, "contrast": 20.0}, None, None),
    ],
)
def test_temporal_pair_whatever_the_rates(xp: Library, options: dict[str, float], first: float, second: tuple) -> None:
    """Mean rates by scipy at 1e-10, of pulses without a pause and with one of 50 ms."""
    if first is None:  # too stiff for explicit steps
        first, second = exact_means(0.0, **options)[0], tuple(exact_means(gap, **options)[1] for gap in (0.0, 0.05))
    found = phenomena.temporal_pair(xp.array([0.0, 0.05]), **options)
    tolerance = 2e-3 if xp.single else 5e-6
    np.testing.assert_allclose(values(found.first), first, rtol=tolerance)
    np.testing.assert_allclose(values(found.second), second, rtol=tolerance)
    assert values(found.rates).max() < 4 * options.get("contrast", 1.0) ** 2  # y <= z over the root of the floor
    clock, length = values(found.times), options.get("duration", 0.1)
    for edge in (0.5 * length, 1.5 * length, 1.5 * length + 0.05, 2.5 * length + 0.05):
        assert np.min(np.abs(clock - edge)) < 1e-5 * length


@pytest.mark.parametrize("duration", [1e-3, 1e-5, 1e-7, 1e-9])
def test_short_pulses_are_those_of_the_linear_circuit(duration: float) -> None:
    """a stays at its floor, so that 2 tau_y is the time constant of y; few points lie in the long pause."""
    found = phenomena.temporal_pair(np.array([0.05]), duration=duration)
    s, weight = np.polynomial.legendre.leggauss(20)
    t = 0.5 * duration * (1.0 + s)
    rise, left = -2.0 * np.expm1(-t / 0.01), -2.0 * np.expm1(-duration / 0.01) * np.exp(-(0.05 + t) / 0.01)
    rtol = 1e-2 * duration / 1e-3 + 1e-5
    np.testing.assert_allclose(found.first, [0.5 * weight @ rise**2], rtol=rtol)
    np.testing.assert_allclose(found.second, [0.5 * weight @ (rise + left) ** 2], rtol=rtol)
    assert len(found.times) <= 5 * 250 + 1  # between any two edges at most 250


def test_pulses_below_the_resolution_of_the_clock_are_refused() -> None:
    with pytest.raises(ValueError, match=r"duration must be at least .* for a clock of float32"):
        phenomena.temporal_pair(np.array([0.05], dtype=np.float32), duration=1e-9)


def exact_means(gap: float, *, tau_y: float, contrast: float) -> tuple[float, float]:
    """Mean rates during two pulses of 0.1 s, from the equations of one neuron."""
    integrate = pytest.importorskip("scipy.integrate")

    def slope(t: float, x: np.ndarray, z: float) -> list[float]:
        y, a, _ = x
        return [
            (-y + z + (1 - np.sqrt(max(a, 0.0))) * y) / tau_y, (-a + 0.25 + 4 * a * y * y) / 0.1, max(y, 0.0) ** 2
        ]  # fmt: skip

    x, found = np.array([0.0, 0.25, 0.0]), []
    for length, z in ((0.1, contrast), (gap, 0.0), (0.1, contrast)):
        if length:
            run = integrate.solve_ivp(slope, (0.0, length), x, args=(z,), method="LSODA", rtol=1e-10, atol=1e-13)
            found.append((run.y[2, -1] - x[2]) / length)
            x = run.y[:, -1]
    return found[0], found[-1]


def test_a_simulation_that_fails_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oc.Trajectory, "success", False)
    with pytest.raises(ArithmeticError, match="did not reach its end"):
        phenomena.temporal_pair(np.array([0.1]))


def test_bad_arguments_are_named() -> None:
    for call, message in (
        (lambda: phenomena.contrast_saturation(np.array([-0.1])), "contrasts must be non-negative"),
        (lambda: phenomena.surround_suppression(np.ones((2, 2)), np.ones(1)), r"diameters must have shape \(K,\)"),
        (lambda: phenomena.attention(np.ones(1), stimulus=-1.0), "stimulus must be positive"),
        (lambda: phenomena.attention(np.ones(1), attended=0.0), "attended must be positive"),
        (lambda: phenomena.attention(np.ones(1), pool=-2.0), "pool must be positive"),
        (lambda: phenomena.temporal_pair(np.ones(1), duration=0.0), "duration must be positive"),
        (lambda: phenomena.temporal_pair(np.ones(1), contrast=-1.0), "contrast must be positive"),
        (lambda: phenomena.attention(np.ones(1), n=80), "n must be odd, so that one neuron is in the centre, got 80"),
        (lambda: phenomena.attention(np.ones(1), n=1), "n must be at least 3"),
        (lambda: phenomena.attention(np.array([-1.0])), "contrasts must be non-negative"),
        (lambda: phenomena.surround_suppression(np.ones(1), np.ones(1), n=80), "n must be odd"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


DEFAULTS = {
    "orientation_circuit": ((4,), {"sigma": 0.1}, {"like": np.ones(1)}),
    "space_circuit": ((np.linspace(-4.0, 4.0, 9),), {"pool": 3.0, "sigma": 0.1, "strength": 1.0}, {}),
    "contrast_saturation": ((np.array([0.1, 1.0]),), {"n": 32, "sigma": 0.1}, {}),
    "cross_orientation_suppression": ((np.array([0.1, 1.0]), np.array([0.5])), {"n": 32, "sigma": 0.1}, {}),
    "surround_suppression": ((np.array([2.0, 9.0]), np.array([0.5])), {"n": 81, "pool": 3.0}, {}),
    "attention": (
        (np.array([0.1, 1.0]),),
        {"stimulus": 1.0, "attended": 8.0, "gain": 2.0, "n": 81, "pool": 4.0},
        {},
    ),
}
"""What is left out, as the signatures in the documentation say."""


def leaves(tree: object) -> list[np.ndarray]:
    """The arrays and numbers of nested tuples."""
    if isinstance(tree, tuple):
        return [leaf for part in tree for leaf in leaves(part)]
    return [] if tree is None else [np.asarray(tree)]


@pytest.mark.parametrize("name", DEFAULTS)
def test_what_is_left_out(name: str) -> None:
    given, defaults, needed = DEFAULTS[name]
    function = getattr(phenomena, name)
    found, said = function(*given, **needed), function(*given, **defaults, **needed)
    for one, other in zip(leaves(found), leaves(said), strict=True):
        np.testing.assert_array_equal(one, other)
