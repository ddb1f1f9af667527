"""Poisson spikes drawn from rates: counts, times, seeds."""

from __future__ import annotations

import numpy as np
import pytest
from support import Library, numpy_tree

import organics_core as oc


@pytest.mark.one_dtype
def test_counts_follow_the_rates(xp: Library) -> None:
    """Of bins over which the rate rises from 0: mean and variance the integral, to five standard errors; all apart."""
    times = np.array([0.0, 0.5, 2.0])
    members = 4000
    rates = np.broadcast_to(np.array([[0.0, 8.0], [6.0, 8.0], [2.0, 0.0]])[:, None, :], (3, members, 2))
    found = oc.spike_trains(xp.array(rates), xp.array(times), seed=1)
    xp.assert_kind(found.counts, (2, members, 2))
    counts = numpy_tree((found.counts,))[0]
    want = np.array([[1.5, 4.0], [6.0, 6.0]])
    np.testing.assert_array_less(np.abs(counts.mean(axis=1) - want), 5 * np.sqrt(want / members))
    # the variance of a Poisson count's variance: (2 m**2 + m) / members
    np.testing.assert_array_less(np.abs(counts.var(axis=1) - want), 5 * np.sqrt((2 * want**2 + want) / members))
    pairs = np.corrcoef(np.moveaxis(counts, 1, 0).reshape(members, 4).T)
    assert np.max(np.abs(pairs - np.eye(4))) < 5 / np.sqrt(members)


def test_spikes_within_a_bin_follow_the_rate() -> None:
    """A rate that rises linearly from 0: the distribution of the times is t**2; sorted, as many as counted."""
    found = oc.spike_trains(np.array([[0.0], [2e4]]), np.array([1.0, 2.0]), seed=3)
    (spikes,) = found.spikes
    assert len(spikes) == found.counts.sum()
    assert (np.diff(spikes) >= 0).all()
    empirical = (np.arange(len(spikes)) + 0.5) / len(spikes)
    assert np.max(np.abs(empirical - (spikes - 1.0) ** 2)) < 2.0 / np.sqrt(len(spikes))  # Kolmogorov-Smirnov, p < 1e-3


@pytest.mark.one_dtype
def test_seeds_reproduce_in_every_library(xp: Library) -> None:
    times, rates = np.linspace(0.0, 1.0, 11), np.linspace(0.0, 50.0, 33).reshape(11, 3)
    mine = oc.spike_trains(xp.array(rates), xp.array(times), seed=7)
    same = oc.spike_trains(xp.array(rates), xp.array(times), seed=7)
    other = oc.spike_trains(xp.array(rates), xp.array(times), seed=8)
    xp.assert_close(mine.counts, numpy_tree((same.counts,))[0], rtol=1e-12)
    assert np.any(numpy_tree((mine.counts,))[0] != numpy_tree((other.counts,))[0])
    if not xp.single:
        np.testing.assert_array_equal(numpy_tree((mine.counts,))[0], oc.spike_trains(rates, times, seed=7).counts)


def test_no_neuron_has_no_spikes() -> None:
    trains = oc.spike_trains(np.ones((4, 2, 0)), np.linspace(0.0, 1.0, 4))
    assert trains.counts.shape == (3, 2, 0)
    assert trains.spikes == ()


def test_bad_rates_are_named() -> None:
    times = np.array([0.0, 1.0])
    with pytest.raises(ValueError, match=r"rates must have shape \(2, ..., n\)"):
        oc.spike_trains(np.ones((3, 1)), times)
    with pytest.raises(ValueError, match="rates must be non-negative"):
        oc.spike_trains(-np.ones((2, 1)), times)
    with pytest.raises(ValueError, match="times must be strictly increasing"):
        oc.spike_trains(np.ones((2, 1)), times[::-1].copy())
    with pytest.raises(ValueError, match="seed must not be negative"):
        oc.spike_trains(np.ones((2, 1)), times, seed=-1)
    with pytest.raises(ValueError, match=r"rates must give at most 1e\+09 spikes, got about 1.0e\+19"):
        oc.spike_trains(np.full((2, 1), 1e19), times)
