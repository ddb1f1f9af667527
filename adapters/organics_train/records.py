"""What every training loop shares: the record of an epoch and the order of the batches. No framework here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from organics_core import checks


class EpochRecord(NamedTuple):
    """What a training loop reports after every epoch.

    Attributes
    ----------
    epoch : int
        Counted from 1.
    loss : float
        Mean training loss (cross entropy, nats).
    train_accuracy, test_accuracy : float
        In [0, 1]; NaN where not measured.
    gradient_norm, gradient_norm_max : float
        Mean and largest norm of the gradient over the epoch's steps, never clipped.
    spectral_abscissa : float
        Largest real part of the eigenvalues of the Jacobian of the (y, a)
        circuit, over the test sequences looked at, in units of 1/step; NaN
        where not measured.
    seconds : float
        Wall time of the epoch, evaluation excluded.
    """

    epoch: int
    loss: float
    train_accuracy: float
    test_accuracy: float
    gradient_norm: float
    gradient_norm_max: float
    spectral_abscissa: float
    seconds: float


def batch_indices(seed: int, epoch: int, count: int, batch_size: int) -> Iterator[np.ndarray[Any, Any]]:
    """Shuffled index arrays of one epoch; the same for the same seed and epoch in every framework.

    Parameters
    ----------
    seed, epoch : int
    count : int
        Number of samples.
    batch_size : int

    Yields
    ------
    array of int
        The remainder of the last batch is left out where there is at least one
        full batch, so that every step has the same shape.

    Raises
    ------
    TypeError, ValueError
        Unless ``count`` and ``batch_size`` are integers of at least 1.

    Examples
    --------
    >>> [len(batch) for batch in batch_indices(seed=0, epoch=1, count=10, batch_size=4)]
    [4, 4]
    """
    count = checks.positive_integer("count", count)
    batch_size = min(checks.positive_integer("batch_size", batch_size), count)
    order = np.random.default_rng((seed, epoch)).permutation(count)
    for start in range(0, count - batch_size + 1, batch_size):
        yield order[start : start + batch_size]
