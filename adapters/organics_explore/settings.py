"""What the sliders mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

import organics_core as oc
from organics_plot import Population

KINDS = {
    "identity": "np.eye(n)",
    "random": "np.random.default_rng({seed}).standard_normal((n, n))",
    "ring": "np.cos(2 * (population.orientations[:, None] - population.orientations))",
}
"""Of the recurrent weights: as Python, before they are scaled."""


class Settings(NamedTuple):
    """A population that looks at a grating, as the sliders say it.

    Attributes
    ----------
    neurons : int
        Preferred orientations are evenly spaced; the grating has that of the middle one.
    kind : {"identity", "random", "ring"}
        Of the recurrent weights: I; independent normal entries; the cosine of twice
        the difference of preferred orientations.
    w_r : float
        W_r is a matrix of this kind of spectral norm one, times this.
    seed : int
        Of random recurrent weights.
    pool : float
        Concentration of the normalization pool, as of :func:`organics_plot.tuned_population`;
        0 is a uniform pool.
    sigma, b, b0 : float
        As of :class:`organics_core.Circuit`.
    tau_y, tau_a : float
        Time constants in milliseconds.
    contrast : float
        Of the grating, from 0 to 1.
    """

    neurons: int = 12
    kind: str = "identity"
    w_r: float = 1.0
    seed: int = 0
    pool: float = 0.5
    sigma: float = 0.15
    b: float = 0.5
    b0: float = 0.5
    tau_y: float = 2.0
    tau_a: float = 2.0
    contrast: float = 0.5


RANGES: dict[str, tuple[float, float, float]] = {
    "neurons": (1, 36, 1),
    "w_r": (-2.0, 4.0, 0.05),
    "seed": (0, 99, 1),
    "pool": (0.0, 8.0, 0.25),
    "sigma": (0.01, 1.0, 0.01),
    "b": (0.05, 1.0, 0.05),
    "b0": (0.05, 1.0, 0.05),
    "tau_y": (0.5, 40.0, 0.5),
    "tau_a": (0.5, 40.0, 0.5),
    "contrast": (0.01, 1.0, 0.01),
}
"""Of every setting that is a number: least, largest, step."""


def settings_from(link: Mapping[str, Any]) -> Settings:
    """Settings from the words of a link.

    Parameters
    ----------
    link : mapping
        Names of settings to values, as text or as they are.

    Returns
    -------
    Settings
        What the link does not say, or says wrongly, is as by default; numbers
        outside of their range are moved to its end.

    Examples
    --------
    >>> settings_from({"neurons": "3", "sigma": "7", "b": "much", "unknown": "1"})[:6]
    (3, 'identity', 1.0, 0, 0.5, 1.0)
    """
    found: dict[str, Any] = {}
    if link.get("kind") in list(KINDS):  # a key that stands twice brings a list
        found["kind"] = link["kind"]
    for name, (low, high, step) in RANGES.items():
        try:
            value = float(link[name])
        except (KeyError, TypeError, ValueError, OverflowError):
            continue
        if value == value:  # not NaN
            nearest = round(round(min(max(value, low), high) / step) * step, 6)
            found[name] = int(nearest) if isinstance(step, int) else nearest
    return Settings(**found)


def circuit_code(settings: Settings) -> str:
    """The circuit and its input drive as Python.

    Parameters
    ----------
    settings : Settings

    Returns
    -------
    str
        It defines ``population``, ``circuit``, ``z``, and is what the page computes with.
    """
    s = settings
    if s.kind == "identity" and s.w_r == 1.0:
        recurrence = ["w_r = None  # the identity"]
    else:
        recurrence = [
            f"w_r = {KINDS[s.kind].format(seed=s.seed)}",
            f"w_r *= {s.w_r} / np.linalg.norm(w_r, 2)",
        ]
    lines = [
        "import numpy as np",
        "",
        "import organics_core as oc",
        "from organics_plot import tuned_population",
        "",
        f"n = {s.neurons}",
        f"population = tuned_population(n, sigma={s.sigma}, pool={s.pool})",
        *recurrence,
        "circuit = population.circuit._replace(",
        f"    w_r=w_r, b=np.full(n, {s.b}), b0=np.full(n, {s.b0}),",
        f"    tau_y=np.full(n, {s.tau_y} / 1000), tau_a=np.full(n, {s.tau_a} / 1000),",
        ")",
        f"z = population.drive({s.contrast}, population.orientations[n // 2])",
    ]
    return "\n".join(lines) + "\n"


def population_of(settings: Settings) -> tuple[Population, oc.Circuit, np.ndarray[Any, Any]]:
    """What the code of :func:`circuit_code` makes, made by running it.

    Parameters
    ----------
    settings : Settings

    Returns
    -------
    population : organics_plot.Population
    circuit : organics_core.Circuit
    z : array (n,)
    """
    names: dict[str, Any] = {}
    exec(circuit_code(settings), names)
    return names["population"]._replace(circuit=names["circuit"]), names["circuit"], names["z"]
