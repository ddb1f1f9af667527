"""Spikes drawn from firing rates."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from . import checks
from .backend import Array, from_numpy, to_numpy
from .integration import check_times

_MOST = 1e9
"""Spikes that fit into a memory."""


class SpikeTrains(NamedTuple):
    """Poisson spike trains.

    Attributes
    ----------
    times : array (T,)
        Edges of the bins, in seconds.
    counts : array (T-1, ..., n)
        Number of spikes of each neuron in each bin, in the dtype of the rates.
    spikes : tuple of numpy arrays
        The times of the spikes, in seconds, increasing, of each neuron (of each
        member of the batch, neurons last).
    """

    times: Array
    counts: Array
    spikes: tuple[np.ndarray[Any, Any], ...]


def spike_trains(rates: Array, times: Array, *, seed: int = 0) -> SpikeTrains:
    """Spikes of inhomogeneous Poisson processes with given rates, drawn on the host.

    Parameters
    ----------
    rates : array (T, ..., n)
        Spikes per second at the times, linear in between; non-negative. Of a
        simulated circuit they are proportional to ``max(y, 0)**2``.
    times : array (T,)
        In seconds, increasing.
    seed : int
        The same seed gives the same spikes in every library.

    Returns
    -------
    SpikeTrains
        Counts in the rates' library and on their device. Counts of different bins
        and neurons are independent, Poisson with the integral of the rate as mean.

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong.

    Notes
    -----
    A process of the larger of the two rates at the ends of each bin, thinned to
    the rate in between (Lewis & Shedler 1979): exact, with no bias of the bins.

    Examples
    --------
    >>> import numpy as np
    >>> times = np.linspace(0.0, 10.0, 101)
    >>> trains = spike_trains(np.full((101, 1), 20.0), times, seed=1)
    >>> trains.counts.shape, 150 < trains.counts.sum() < 250, len(trains.spikes[0]) == trains.counts.sum()
    ((100, 1), np.True_, np.True_)
    """
    xp = checks.namespace({"rates": rates, "times": times})
    times = check_times(xp, times)
    if rates.ndim < 2 or rates.shape[0] != times.shape[0]:
        raise ValueError(
            f"rates must have shape ({times.shape[0]}, ..., n), one per time, got shape {tuple(rates.shape)}"
        )
    checks.values(xp, "rates", rates, ">= 0")
    clock = to_numpy(times).astype(np.float64)
    level = to_numpy(rates).astype(np.float64).reshape(len(clock), -1)
    rng = np.random.default_rng(checks.seed(seed))
    low, high = level[:-1], level[1:]
    tops = np.maximum(low, high)
    means = tops * np.diff(clock)[:, None]
    if means.sum() > _MOST:
        raise ValueError(f"rates must give at most {_MOST:.0e} spikes, got about {means.sum():.1e}")
    tried = rng.poisson(means)
    bins, neurons = (np.repeat(index.ravel(), tried.ravel()) for index in np.indices(tried.shape))
    share = rng.random(len(bins))
    at = low[bins, neurons] + share * (high - low)[bins, neurons]
    kept = rng.random(len(bins)) * tops[bins, neurons] < at
    bins, neurons, share = bins[kept], neurons[kept], share[kept]
    counts = np.zeros(tried.shape)
    np.add.at(counts, (bins, neurons), 1.0)
    spikes = clock[bins] + share * np.diff(clock)[bins]
    order = np.lexsort((spikes, neurons))
    edges = np.cumsum(counts.sum(axis=0)).astype(int)[:-1]
    shaped = counts.reshape(len(clock) - 1, *rates.shape[1:])
    return SpikeTrains(
        times,
        from_numpy(xp, shaped, rates),
        tuple(np.split(spikes[order], edges))[: level.shape[1]],  # of no neuron none
    )
