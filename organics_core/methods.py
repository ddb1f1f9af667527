"""Methods: what makes one step of x' = f(t, x), as data and a rule to step with.

A state is one packed array (..., N); leading axes are batch axes. The loop of
:mod:`integration` hands a :class:`Slope` to a :class:`Method` and gets a
:class:`Step` back; it knows no more about methods than that. Times and lengths
of steps are Python numbers on the host, 0-d arrays while tracing, or arrays
(..., 1) with one step per member of the batch.

A method more is one entry of ``METHODS``: for an explicit Runge-Kutta method or
a linearly implicit (Rosenbrock) method that is its tableau, nothing else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, Protocol, cast

from array_api_compat import device

from . import checks
from .backend import Array, get_backend, kernel_for
from .linalg import inverse, vecdot
from .weights import matvec


class Slope(Protocol):
    """The vector field of packed states, as the loop hands it to a method.

    Attributes
    ----------
    xp : module
        The array namespace of the states.
    autonomous : bool
        Whether the field does not depend on the time itself.
    tau : array (..., N) or None
        Time constants of the linear decay.
    """

    @property
    def xp(self) -> Any: ...

    @property
    def autonomous(self) -> bool: ...

    @property
    def tau(self) -> Array | None: ...

    def __call__(self, t: Any, x: Array) -> Array:
        """The slope (..., N) at time t and state x (..., N)."""
        ...

    def jacobian(self, t: Any, x: Array) -> Array:
        """The derivative (..., N, N) of the slope with respect to the state."""
        ...


class Step(NamedTuple):
    """One step.

    Attributes
    ----------
    x : array (..., N)
        The state at its end.
    error : array (..., N) or None
        Estimate of its error, through which no derivative flows.
    dense : tuple of arrays, or None
        What :meth:`Method.interpolate` needs.
    memory : tuple of arrays, an array, or None
        What the next step needs.
    """

    x: Array
    error: Array | None
    dense: Any
    memory: Any


class Method(ABC):
    """What makes a step. Instances are hashable constants, on which a compiler specializes."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What the method is called."""

    @property
    @abstractmethod
    def order(self) -> int:
        """Order of convergence, without noise."""

    @property
    def adaptive(self) -> bool:
        """Whether steps come with an estimate of their error."""
        return False

    @property
    def stochastic(self) -> bool:
        """Whether noise is added."""
        return False

    @property
    def interpolates(self) -> bool:
        """Whether there are states between the ends of a step."""
        return False

    @property
    def stiff(self) -> bool:
        """Whether steps use the Jacobian, and may be long against the shortest time constant."""
        return False

    @property
    def decays(self) -> bool:
        """Whether steps use the time constants of the linear decay."""
        return False

    def init(self, slope: Slope, t: Any, x: Array) -> Any:
        """The memory for the first step, from state ``x`` at time ``t``, of the structure of ``Step.memory``."""
        return None

    def step(self, slope: Slope, t: Any, h: Any, x: Array, memory: Any, noise: Array | None = None) -> Step:
        """One step of length ``h`` from state ``x`` at time ``t``; ``noise`` (..., N) is its kick L dB.

        Where a fast kernel is registered for the method and the library, and
        nothing is traced, the kernel makes the step.
        """
        if checks.is_number(h) and get_backend(slope.xp).is_concrete(x):
            kernel = kernel_for(type(self), slope.xp)
            made: Step | None = None if kernel is None else kernel(self, slope, t, h, x, memory, noise)
            if made is not None:
                return made
        return self.plain_step(slope, t, h, x, memory, noise)

    @abstractmethod
    def plain_step(self, slope: Slope, t: Any, h: Any, x: Array, memory: Any, noise: Array | None = None) -> Step:
        """:meth:`step` in terms of the array API alone."""

    def interpolate(self, dense: Any, theta: Any, h: Any) -> Array:
        """The state at the fraction ``theta`` of the step of length ``h``."""
        raise NotImplementedError(f"method {self.name!r} has no states between the ends of a step")

    def stiffness(self, dense: Any, h: Any) -> Array | None:
        """h |lambda| (...) of each member, lambda the eigenvalue that leads; None where the method cannot tell."""
        return None

    @property
    def reach(self) -> float | None:
        """The largest h |lambda| of a decay at which steps stay bounded; None where there is no bound or none known."""
        return None


class _Tabulated(Method):
    """A method whose numbers stand in a tableau."""

    tableau: Any

    @property
    def name(self) -> str:
        return str(self.tableau.name)

    @property
    def order(self) -> int:
        return int(self.tableau.order)


class _Embedded(_Tabulated):
    """A method whose tableau says whether steps come with an error estimate and with states in between."""

    @property
    def adaptive(self) -> bool:
        return self.tableau.error is not None

    @property
    def interpolates(self) -> bool:
        return self.tableau.dense is not None


# Explicit Runge-Kutta methods.


class Tableau(NamedTuple):
    """A Runge-Kutta method (or exponential Euler) as data.

    Attributes
    ----------
    name : str
    order : int
        Order of convergence.
    nodes : tuple of float
        Stage times c.
    stages : tuple of tuples of float
        Rows of the strictly lower triangle of the matrix A.
    weights : tuple of float
        b.
    error : tuple of float or None
        b minus the embedded method's weights, one more than the stages where
        the last stage of a step is the first of the next; None for fixed steps.
    dense : tuple of tuples of float or None
        Coefficients of theta, theta**2, ... per stage for interpolation.
    exponential : bool
        Multiply the increment by phi_1(-h/tau) = (1 - exp(-h/tau)) tau/h: exact
        for the linear decay.
    """

    name: str
    order: int
    nodes: tuple[float, ...]
    stages: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]
    error: tuple[float, ...] | None = None
    dense: tuple[tuple[float, ...], ...] | None = None
    exponential: bool = False


INTEGRATORS: dict[str, Tableau] = {
    tableau.name: tableau
    for tableau in (
        Tableau("euler", 1, (0.0,), ((),), (1.0,)),
        Tableau("exponential_euler", 1, (0.0,), ((),), (1.0,), exponential=True),
        Tableau("heun", 2, (0.0, 1.0), ((), (1.0,)), (0.5, 0.5)),
        Tableau(
            "rk4", 4, (0.0, 0.5, 0.5, 1.0), ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)
        ),
        # Dormand & Prince 1980; interpolation of Shampine 1986.
        Tableau(
            "dopri5",
            5,
            (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0),
            (
                (),
                (1 / 5,),
                (3 / 40, 9 / 40),
                (44 / 45, -56 / 15, 32 / 9),
                (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
                (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
            ),
            (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
            (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
            (
                (1.0, -8048581381 / 2820520608, 8663915743 / 2820520608, -12715105075 / 11282082432),
                (0.0, 0.0, 0.0, 0.0),
                (0.0, 131558114200 / 32700410799, -68118460800 / 10900136933, 87487479700 / 32700410799),
                (0.0, -1754552775 / 470086768, 14199869525 / 1410260304, -10690763975 / 1880347072),
                (0.0, 127303824393 / 49829197408, -318862633887 / 49829197408, 701980252875 / 199316789632),
                (0.0, -282668133 / 205662961, 2019193451 / 616988883, -1453857185 / 822651844),
                (0.0, 40617522 / 29380423, -110615467 / 29380423, 69997945 / 29380423),
            ),
        ),
    )
}
"""The integrators by name. A :class:`Tableau` of your own may be passed as ``method`` as well."""


@dataclass(frozen=True)
class RungeKutta(_Embedded):
    """An explicit Runge-Kutta method.

    Attributes
    ----------
    tableau : Tableau
    """

    tableau: Tableau

    @property
    def ends_with_slope(self) -> bool:
        """Whether the last stage of a step is the slope at its end, the first stage of the next."""
        return self.tableau.error is not None or self.tableau.dense is not None

    def init(self, slope: Slope, t: Any, x: Array) -> Any:
        return slope(t, x) if self.ends_with_slope else None

    def plain_step(self, slope: Slope, t: Any, h: Any, x: Array, memory: Any, noise: Array | None = None) -> Step:
        tableau = self.tableau
        stages = [slope(t, x) if memory is None else memory]
        for node, row in zip(tableau.nodes[1:], tableau.stages[1:], strict=True):
            stages.append(slope(t + node * h, add_stages(x, h, row, stages)))
        new = add_stages(x, h, tableau.weights, stages)
        if not self.ends_with_slope:
            return Step(new, None, None, None)
        stages.append(slope(t + h, new))
        error = None
        if tableau.error is not None:
            free = [get_backend(slope.xp).stop_gradient(stage) for stage in stages]
            error = h * _sum(tableau.error, free)
        return Step(new, error, (x, *stages), stages[-1])

    def interpolate(self, dense: Any, theta: Any, h: Any) -> Array:
        x, *stages = dense
        for row, stage in zip(cast(tuple[tuple[float, ...], ...], self.tableau.dense), stages, strict=True):
            if any(row):
                x = x + (h * _polynomial(row, theta)) * stage
        return x

    def stiffness(self, dense: Any, h: Any) -> Array | None:
        """As in :meth:`Method.stiffness`: h |f(x) - f(x*)| / |x - x*| for two states at the end of the step.

        The last two stages are at the same time, and their states differ by
        what the leading eigenvalue makes of the error (Hairer & Wanner, Solving
        Ordinary Differential Equations II, IV.2).
        """
        tableau = self.tableau
        if not self.ends_with_slope or len(tableau.nodes) < 2 or tableau.nodes[-1] != 1.0:
            return None
        _, *stages = dense
        last = (*tableau.stages[-1], 0.0)
        apart = _sum([b - a for b, a in zip(tableau.weights, last, strict=True)], stages[:-1])  # times h
        change = stages[-1] - stages[-2]
        # the array API has no hypot of an axis: |change|**2 may overflow, and then says nothing
        xp = checks.namespace({"x": change})
        up, down = vecdot(xp, change, change), vecdot(xp, apart, apart)
        fine = (down > 0) & xp.isfinite(up)
        return xp.where(fine, xp.sqrt(up / xp.where(fine, down, 1.0)), 0.0)

    @property
    def reach(self) -> float | None:
        return _reach(self.tableau)


@cache
def _reach(tableau: Tableau) -> float:
    """Where the stability function of the weights leaves [-1, 1] on the negative real axis, to 1e-3."""

    def bounded(z: float) -> bool:
        stages: list[float] = []
        for row in tableau.stages:
            stages.append(1.0 - z * sum(a * k for a, k in zip(row, stages, strict=True)))
        return abs(1.0 - z * sum(b * k for b, k in zip(tableau.weights, stages, strict=True))) <= 1.0

    z = 0.0
    while z < 1e3 and bounded(z + 1e-3):
        z += 1e-3
    return z


@dataclass(frozen=True)
class StochasticRungeKutta(_Tabulated):
    """An explicit Runge-Kutta method for dx = f(t, x) dt + L dB, with additive noise.

    The kick L dB of the step is added to the state at its end, and in parts
    proportional to their times to the states of the stages: with the tableau of
    Euler's method this is Euler-Maruyama, with that of Heun's stochastic Heun.

    Attributes
    ----------
    tableau : Tableau
    """

    tableau: Tableau

    @property
    def stochastic(self) -> bool:
        return True

    def plain_step(self, slope: Slope, t: Any, h: Any, x: Array, memory: Any, noise: Array | None = None) -> Step:
        tableau = self.tableau
        stages = [slope(t, x)]
        for node, row in zip(tableau.nodes[1:], tableau.stages[1:], strict=True):
            at = add_stages(x, h, row, stages)
            stages.append(slope(t + node * h, at if noise is None else at + node * noise))
        new = add_stages(x, h, tableau.weights, stages)
        return Step(new if noise is None else new + noise, None, None, None)


@dataclass(frozen=True)
class ExponentialEuler(_Tabulated):
    """Euler's method with the linear decay solved exactly: x + tau (1 - exp(-h / tau)) f(t, x).

    Attributes
    ----------
    tableau : Tableau
        Of Euler's method.
    """

    tableau: Tableau

    @property
    def decays(self) -> bool:
        return True

    def plain_step(self, slope: Slope, t: Any, h: Any, x: Array, memory: Any, noise: Array | None = None) -> Step:
        tau = slope.tau
        return Step(x - tau * slope.xp.expm1(-h / tau) * slope(t, x), None, None, None)


# Linearly implicit methods.


class RosenbrockTableau(NamedTuple):
    """A Rosenbrock method as data, in the variables that spare products with the Jacobian J.

    With W = I / (gamma h) - J, the increments u_i solve::

        W u_i = f(t + c_i h, x + sum_j a_ij u_j) + sum_j c_ij u_j / h + d_i h df/dt

    and the state at the end of the step is x + sum_i m_i u_i (Hairer & Wanner,
    Solving Ordinary Differential Equations II, IV.7).

    Attributes
    ----------
    name : str
    order : int
        Order of convergence.
    gamma : float
        The diagonal of the method.
    nodes : tuple of float
        Stage times c.
    stages : tuple of tuples of float
        Rows of the strictly lower triangle of the matrix a.
    coupling : tuple of tuples of float
        Rows of the strictly lower triangle of the matrix c.
    drift : tuple of float
        d, the factors of the time derivative of the slope.
    weights : tuple of float
        m.
    error : tuple of float or None
        m minus the embedded method's weights; None for fixed steps.
    dense : tuple of tuples of float or None
        Rows k of coefficients with which, K_k = sum_i dense_ki u_i, the state at
        the fraction theta of the step from x_0 to x_1 is
        x_0 + theta (x_1 - x_0) + theta (1 - theta) (K_1 + theta K_2 + theta**2 K_3 + ...).
    """

    name: str
    order: int
    gamma: float
    nodes: tuple[float, ...]
    stages: tuple[tuple[float, ...], ...]
    coupling: tuple[tuple[float, ...], ...]
    drift: tuple[float, ...]
    weights: tuple[float, ...]
    error: tuple[float, ...] | None = None
    dense: tuple[tuple[float, ...], ...] | None = None


_LAST = (-7.502846399306121, 2.561846144803919, -11.627539656261098, -0.18268767659942256, 0.030198172008377946)

# Steinebach, BIT Numerical Mathematics 63:27 (2023): L-stable and stiffly accurate, the embedded
# method too; order 5(4), continuous output of order 4.
RODAS5P = RosenbrockTableau(
    "rodas5p",
    5,
    0.21193756319429014,
    (0.0, 0.6358126895828704, 0.4095798393397535, 0.9769306725060716, 0.4288403609558664, 1.0, 1.0, 1.0),
    (
        (),
        (3.0,),
        (2.849394379747939, 0.45842242204463923),
        (-6.954028509809101, 2.489845061869568, -10.358996098473584),
        (2.8029986275628964, 0.5072464736228206, -0.3988312541770524, -0.04721187230404641),
        _LAST,
        (*_LAST, 1.0),
        (*_LAST, 1.0, 1.0),
    ),
    (
        (),
        (-14.155112264123755,),
        (-17.97296035885952, -2.859693295451294),
        (147.12150275711716, -1.41221402718213, 71.68940251302358),
        (165.43517024871676, -0.4592823456491126, 42.90938336958603, -5.961986721573306),
        (24.854864614690072, -3.0009227002832186, 47.4931110020768, 5.5814197821558125, -0.6610691825249471),
        (
            *(30.91273214028599, -3.1208243349937974, 77.79954646070892),
            *(34.28646028294783, -19.097331116725623, -28.087943162872662),
        ),
        (
            *(37.80277123390563, -3.2571969029072276, 112.26918849496327, 66.9347231244047),
            *(-40.06618937091002, -54.66780262877968, -9.48861652309627),
        ),
    ),
    (
        *(0.21193756319429014, -0.42387512638858027, -0.3384627126235924),
        *(1.8046452872882734, 2.325825639765069, 0.0, 0.0, 0.0),
    ),
    (*_LAST, 1.0, 1.0, 1.0),
    (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0),
    (
        (
            *(25.948786856663858, -2.5579724845846235, 10.433815404888879, -2.3679251022685204),
            *(0.524948541321073, 1.1241088310450404, 0.4272876194431874, -0.17202221070155493),
        ),
        (
            *(-9.91568850695171, -0.9689944594115154, 3.0438037242978453, -24.495224566215796),
            *(20.176138334709044, 15.98066361424651, -6.789040303419874, -6.710236069923372),
        ),
        (
            *(11.419903575922262, 2.8879645146136994, 72.92137995996029, 80.12511834622643),
            *(-52.072871366152654, -59.78993625266729, -0.15582684282751913, 4.883087185713722),
        ),
    ),
)
"""Rodas5P as data."""


@dataclass(frozen=True)
class Rosenbrock(_Embedded):
    """A Rosenbrock method: linear systems in place of nonlinear ones, all of a step with the same matrix.

    A step computes one Jacobian and one inverse. The time derivative of a slope
    that depends on the time costs two slopes more.

    Attributes
    ----------
    tableau : RosenbrockTableau
    """

    tableau: RosenbrockTableau

    @property
    def stiff(self) -> bool:
        return True

    def plain_step(self, slope: Slope, t: Any, h: Any, x: Array, memory: Any, noise: Array | None = None) -> Step:
        tableau, xp = self.tableau, slope.xp
        eye = xp.eye(x.shape[-1], dtype=x.dtype, device=device(x))
        solution = inverse(xp, eye / (tableau.gamma * _column(h)) - slope.jacobian(t, x))
        first = slope(t, x)
        drift = None if slope.autonomous else h * time_derivative(slope, t, h, x, first)
        stages: list[Array] = []
        rows = zip(tableau.nodes, tableau.stages, tableau.coupling, tableau.drift, strict=True)
        for k, (node, row, coupling, part) in enumerate(rows):
            right = slope(t + node * h, x + _sum(row, stages)) if k else first
            if any(coupling):
                right = right + _sum(coupling, stages) / h
            if drift is not None and part:
                right = right + part * drift
            stages.append(matvec(xp, solution, right))
        new = x + _sum(tableau.weights, stages)
        error = dense = None
        if tableau.error is not None:
            error = get_backend(xp).stop_gradient(_sum(tableau.error, stages))
        if tableau.dense is not None:
            dense = (x, new, *(_sum(row, stages) for row in tableau.dense))
        return Step(new, error, dense, None)

    def interpolate(self, dense: Any, theta: Any, h: Any) -> Array:
        old, new, *bends = dense
        bend = bends[-1]
        for lower in reversed(bends[:-1]):
            bend = lower + theta * bend
        return (1.0 - theta) * old + theta * (new + (1.0 - theta) * bend)


def time_derivative(slope: Slope, t: Any, h: Any, x: Array, first: Array) -> Array:
    """df/dt at (t, x), where f is ``first``, by a difference of second order inside [t, t + h].

    Its points are delta apart, with (delta / h)**3 = eps (1 + clock / h), where
    clock is the time that the field is asked for, or t: of the size at which the
    error of the formula, as delta**2, is that of rounding the slope and the clock,
    as 1 / delta; but at most h / 2.
    """
    eps = float(slope.xp.finfo(x.dtype).eps)
    clock = getattr(slope, "clock_size", abs)(t)
    part = (eps * (1.0 + clock / h)) ** (1.0 / 3.0)
    delta = h * (min(part, 0.5) if checks.is_number(part) else slope.xp.where(part < 0.5, part, 0.5))
    near, far = slope(t + delta, x), slope(t + 2.0 * delta, x)
    return (4.0 * (near - first) - (far - first)) / (2.0 * delta)


# What they share.


def _sum(weights: Sequence[float], stages: Sequence[Array]) -> Any:
    """sum_i weights_i stages_i, without the zeros; the number 0 where all are."""
    total: Any = None
    for weight, stage in zip(weights, stages, strict=True):
        if weight != 0.0:
            term = stage if weight == 1.0 else weight * stage
            total = term if total is None else total + term
    return 0.0 if total is None else total


def add_stages(x: Array, h: Any, weights: Sequence[float], stages: Sequence[Array]) -> Array:
    """x + h sum_i weights_i stages_i."""
    for weight, stage in zip(weights, stages, strict=True):
        if weight != 0.0:
            x = x + (h * weight) * stage
    return x


def _polynomial(coefficients: Sequence[float], theta: Any) -> Any:
    """coefficients_0 theta + coefficients_1 theta**2 + ..."""
    value: Any = 0.0
    for c in reversed(coefficients):
        value = (value + c) * theta
    return value


def _column(h: Any) -> Any:
    """A length, or one per member (..., 1), such that it multiplies matrices."""
    return h if checks.is_number(h) or h.ndim == 0 else h[..., None]


METHODS: dict[str, Method] = {
    **{
        name: ExponentialEuler(tableau) if tableau.exponential else RungeKutta(tableau)
        for name, tableau in INTEGRATORS.items()
    },
    "rodas5p": Rosenbrock(RODAS5P),
    "euler_maruyama": StochasticRungeKutta(INTEGRATORS["euler"]._replace(name="euler_maruyama")),
    "stochastic_heun": StochasticRungeKutta(INTEGRATORS["heun"]._replace(name="stochastic_heun")),
}
"""The methods by name."""


def get_method(method: str | Tableau | RosenbrockTableau | Method) -> Method:
    """The method of a name or a tableau.

    Parameters
    ----------
    method : str, Tableau, RosenbrockTableau or Method
        A name of ``METHODS``, a method as data, or a method, which is returned as it is.

    Returns
    -------
    Method

    Raises
    ------
    ValueError
        For an unknown name, or a tableau whose parts do not fit together.
    """
    if isinstance(method, Method):
        return method
    if isinstance(method, Tableau):
        _check_tableau(method)
        return ExponentialEuler(method) if method.exponential else RungeKutta(method)
    if isinstance(method, RosenbrockTableau):
        return Rosenbrock(_check_rosenbrock(method))
    checks.one_of("method", method, METHODS)
    return METHODS[method]


def _check_tableau(tableau: Tableau) -> Tableau:
    """ValueError where its parts do not fit together, or the weights do not add up to one."""
    count = len(tableau.nodes)
    rows = tuple(len(row) for row in tableau.stages)
    for part, fits, wanted in (
        ("stages", rows == tuple(range(count)), f"{count} rows of 0, 1, ... numbers"),
        ("weights", len(tableau.weights) == count, f"{count} numbers"),
        ("error", tableau.error is None or len(tableau.error) == count + 1, f"{count + 1} numbers"),
        ("dense", tableau.dense is None or len(tableau.dense) == count + 1, f"{count + 1} rows"),
    ):
        if not fits:
            raise ValueError(f"{part} of the tableau {tableau.name!r} must have {wanted} for its {count} nodes")
    if tableau.exponential and count != 1:
        raise ValueError(f"nodes of the tableau {tableau.name!r} must be 1 number, as it is exponential, not {count}")
    if abs(sum(tableau.weights) - 1.0) > 1e-9:
        raise ValueError(f"weights of the tableau {tableau.name!r} must add up to 1, got {sum(tableau.weights):g}")
    return tableau


def _check_rosenbrock(tableau: RosenbrockTableau) -> RosenbrockTableau:
    """ValueError where its parts do not fit together."""
    count = len(tableau.nodes)
    triangle = tuple(range(count))
    for part, fits, wanted in (
        ("stages", tuple(map(len, tableau.stages)) == triangle, f"{count} rows of 0, 1, ... numbers"),
        ("coupling", tuple(map(len, tableau.coupling)) == triangle, f"{count} rows of 0, 1, ... numbers"),
        ("drift", len(tableau.drift) == count, f"{count} numbers"),
        ("weights", len(tableau.weights) == count, f"{count} numbers"),
        ("error", tableau.error is None or len(tableau.error) == count, f"{count} numbers"),
        ("dense", tableau.dense is None or {*map(len, tableau.dense)} == {count}, f"rows of {count} numbers"),
    ):
        if not fits:
            raise ValueError(f"{part} of the tableau {tableau.name!r} must have {wanted} for its {count} nodes")
    return tableau
