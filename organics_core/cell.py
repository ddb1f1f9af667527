"""The trained recurrent cell: its parameters, their initialization, one step and a whole sequence.

Source: Rawat, Heeger & Martiniani (NeurIPS 2024), the explicit Euler cell that
is trained by backpropagation through time without gradient clipping.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from array_api_compat import device

from . import checks
from .backend import Array, get_backend
from .circuit import VARIANTS, pooled_response, recurrent_drive, relu, sqrt_relu
from .linalg import broadcast_shapes
from .weights import matvec

CELL_VARIANTS = ("rectified_recurrence", "main")
INITIALIZATIONS = ("paper", "oscillators")
VECTORS = ("theta_y", "theta_a", "theta_b0", "theta_b1", "sigma")
"""Of the parameters; the others are matrices."""


class CellParameters(NamedTuple):
    """What the cell learns (n hidden units, k inputs), and the constant sigma.

    Attributes
    ----------
    w_zx : array (n, k)
        Input weights; the input drive is z = max(W_zx x, 0).
    w_r : array (n, n) or None
        Recurrent weights; ``None`` is the fixed identity.
    log_w : array (n, n)
        V, from which the normalization weights are W = min(exp(V), 1).
    w_bx0, w_by0, w_ba0 : arrays (n, k), (n, n), (n, n)
        Weights of the target of b0 from the input, y and a.
    w_bx1, w_by1, w_ba1 : arrays (n, k), (n, n), (n, n)
        The same for b1, the input gain.
    theta_y, theta_a, theta_b0, theta_b1 : arrays (n,)
        Rates: dt/tau = (dt/tau)_max * sigmoid(theta).
    sigma : array () or (n,)
        Semi-saturation constant, fixed at 1 in the paper.
    """

    w_zx: Array
    w_r: Array
    log_w: Array
    w_bx0: Array
    w_by0: Array
    w_ba0: Array
    w_bx1: Array
    w_by1: Array
    w_ba1: Array
    theta_y: Array
    theta_a: Array
    theta_b0: Array
    theta_b1: Array
    sigma: Array


class CellState(NamedTuple):
    """State of the cell.

    Attributes
    ----------
    y, a : array (..., n)
        Membrane potentials and modulators.
    b0, b1 : array (..., n)
        The dynamic gains of normalization and of the input.
    """

    y: Array
    a: Array
    b0: Array
    b1: Array


class MaxRates(NamedTuple):
    """Largest values (dt/tau)_max of the rates; the defaults suit sequences of several hundred steps.

    :func:`rates_for` gives those for shorter ones.

    Attributes
    ----------
    y, a, b : float
        Of the potentials, the modulators, and the two gains.
    """

    y: float = 0.05
    a: float = 0.01
    b: float = 0.1


class Rates(NamedTuple):
    """The rates dt/tau of y, a, b0 and b1, each (n,)."""

    y: Array
    a: Array
    b0: Array
    b1: Array


def sigmoid(xp: Any, x: Array) -> Array:
    """1 / (1 + exp(-x)) to the relative precision of the dtype where it is small, too: of closed gates, slow rates."""
    if hasattr(xp, "sigmoid"):  # of torch and keras: exact, and one operation
        return xp.sigmoid(x)
    below = x < 0
    power = xp.exp(xp.where(below, x, -x))
    return xp.where(below, power, xp.ones_like(power)) / (1.0 + power)


def rates_for(steps: int) -> MaxRates:
    """Largest rates that suit sequences of so many steps.

    Parameters
    ----------
    steps : int
        Steps of the sequences.

    Returns
    -------
    MaxRates
        The defaults times 400 / steps, but at most 0.5, 0.2 and 0.5 for y, a
        and b; the defaults from 400 steps on. At the start, where rates are
        half of these, y lives through ten of its time constants, or a quarter
        of the steps where that is fewer.

    Raises
    ------
    TypeError, ValueError
        Unless ``steps`` is an integer of at least 1.

    Examples
    --------
    >>> rates_for(784)
    MaxRates(y=0.05, a=0.01, b=0.1)
    >>> rates_for(8)
    MaxRates(y=0.5, a=0.2, b=0.5)
    """
    scale = max(1.0, 400 / checks.positive_integer("steps", steps))
    at_most = MaxRates(0.5, 0.2, 0.5)
    return MaxRates(*(min(rate * scale, most) for rate, most in zip(MaxRates(), at_most, strict=True)))


def check_max_rates(max_rates: MaxRates | tuple[float, float, float] | str, steps: int | None = None) -> MaxRates:
    """Three positive numbers as :class:`MaxRates`, or those for ``steps`` where "auto"; an error names the culprit."""
    if isinstance(max_rates, str):
        checks.one_of("max_rates", max_rates, ("auto",))
        if steps is None:
            raise ValueError("max_rates='auto' needs steps=, the number of steps of the sequences")
        return rates_for(steps)
    if steps is not None:
        raise ValueError(f"steps is for max_rates='auto', got steps {steps!r} with max_rates {max_rates!r}")
    return MaxRates(
        *(checks.positive_number(f"max_rates.{name}", v) for name, v in three_rates(max_rates)._asdict().items())
    )


def three_rates(max_rates: MaxRates | tuple[float, float, float]) -> MaxRates:
    """Three rates, which may be arrays, as :class:`MaxRates`; numbers are positive."""
    if not isinstance(max_rates, (tuple, list)) or len(max_rates) != 3:
        size = f" of {len(max_rates)}" if isinstance(max_rates, (tuple, list)) else ""
        raise TypeError(f"max_rates must be MaxRates(y, a, b), got {checks.describe(max_rates)}{size}")
    for name, value in zip("yab", max_rates, strict=True):
        if isinstance(value, (int, float, np.number)):
            checks.positive_number(f"max_rates.{name}", value.item() if isinstance(value, np.number) else value)
    return MaxRates(*max_rates)


def normalization_weights(xp: Any, log_w: Array) -> Array:
    """W = min(exp(V), 1); at the tie V = 0, where training starts, the gradient is that of exp."""
    return xp.exp(xp.where(log_w > 0, xp.zeros_like(log_w), log_w))


def cell_rates(xp: Any, parameters: CellParameters, max_rates: MaxRates) -> Rates:
    """dt/tau = (dt/tau)_max * sigmoid(theta)."""
    p = parameters
    return Rates(
        max_rates.y * sigmoid(xp, p.theta_y),
        max_rates.a * sigmoid(xp, p.theta_a),
        max_rates.b * sigmoid(xp, p.theta_b0),
        max_rates.b * sigmoid(xp, p.theta_b1),
    )


def init_cell(
    seed: int | np.random.Generator,
    input_size: int,
    hidden_size: int,
    *,
    recurrent: str = "orthogonal",
    initialization: str = "paper",
    rate_spread: float = 1.0,
    max_rates: MaxRates | tuple[float, float, float] = MaxRates(),
    dtype: Any = np.float64,
) -> tuple[CellParameters, CellState]:
    """Fresh parameters and the start state, as numpy arrays.

    Parameters
    ----------
    seed : int or numpy.random.Generator
    input_size, hidden_size : int
        k and n.
    recurrent : {"orthogonal", "identity"}
        W_r a random orthogonal matrix, or the fixed identity (``w_r=None``).
    initialization : {"paper", "oscillators"}
        The paper's, or W_r = I + K with a K that turns pairs of units, see the
        notes.
    rate_spread : float
        The fastest dt/tau_y over the slowest; 1 is all alike.
    max_rates : MaxRates
        (dt/tau)_max, on which the frequencies of the oscillators depend.
    dtype : numpy dtype
        float32 or float64.

    Returns
    -------
    parameters : CellParameters
        W_zx of spectral norm 1; W_r orthogonal; V with zero diagonal and
        off-diagonal log U(0, 1); the gain matrices Kaiming-uniform (a = sqrt 5),
        that is U(-1/sqrt(fan_in), 1/sqrt(fan_in)); rates in the middle of their
        range (theta = 0), those of y from there to a ``rate_spread``-th of it, evenly
        in the logarithm, in random order; sigma = 1.
    start : CellState of arrays (n,)
        y uniform of unit norm, a and b1 uniform(0, 1), b0 = 1.

    Raises
    ------
    TypeError, ValueError
        For sizes below 1, an unknown ``recurrent`` or ``initialization``, a
        ``rate_spread`` below 1, or oscillators where W_r is the identity.

    Notes
    -----
    Without rectification (the variant "main") and with a and the gains at rest,
    the oscillators' y is a linear memory: K has blocks [[0, -w], [w, 0]], so that
    a pair with the rate r = dt/tau_y decays by the factor 1 - r sqrt(a) per step
    while it turns by r (1 - sqrt(a)) w. The explicit Euler step lets it decay
    where w < sqrt(2 sqrt(a) / r - a) / (1 - sqrt(a)), close to 2 / sqrt(r) at
    sqrt(a) = 1/2, which is sigma b0 with the target of b0 in its middle; w is
    drawn from 0 to 1.4 / sqrt(r). Slow pairs keep long stretches of the input, in
    phases of their own, as the states of orthogonal polynomials and of complex
    diagonal state-space models do. Their input weights are not negative, so that
    inputs that are not negative, such as pixels, reach every unit through the
    rectification; and their normalization weights are divided by n / 2, so that
    those of a pool come to about 1 and not to n / 2, with which potentials of the
    size of 1 already make the steps of a too large.

    Examples
    --------
    >>> import organics_core as oc
    >>> parameters, state = oc.init_cell(0, input_size=3, hidden_size=4)
    >>> parameters.w_zx.shape, parameters.w_r.shape, state.y.shape
    ((4, 3), (4, 4), (4,))
    """
    k = checks.positive_integer("input_size", input_size)
    n = checks.positive_integer("hidden_size", hidden_size)
    checks.one_of("recurrent", recurrent, ("orthogonal", "identity"))
    checks.one_of("initialization", initialization, INITIALIZATIONS)
    rate_spread = checks.positive_number("rate_spread", rate_spread)
    if rate_spread < 1:
        raise ValueError(f"rate_spread must be at least 1, got {rate_spread}")
    max_rates = check_max_rates(max_rates)
    if initialization == "oscillators" and recurrent == "identity":
        raise ValueError("oscillators need recurrent weights, and recurrent is 'identity'")
    rng = seed if isinstance(seed, np.random.Generator) else np.random.default_rng(seed)

    def kaiming(fan_in: int) -> np.ndarray[Any, Any]:
        bound = 1.0 / np.sqrt(fan_in)
        return rng.uniform(-bound, bound, (n, fan_in))

    w_zx = kaiming(k)
    w_zx = w_zx / np.linalg.norm(w_zx, 2)
    q, r = np.linalg.qr(rng.standard_normal((n, n)))
    w_r = q * np.where(np.diag(r) < 0, -1.0, 1.0)
    log_w = np.log(1.0 - rng.random((n, n)))  # 1 - U is in (0, 1]: no log of zero
    np.fill_diagonal(log_w, 0.0)
    parameters = CellParameters(
        w_zx=w_zx,
        w_r=w_r if recurrent == "orthogonal" else None,
        log_w=log_w,
        w_bx0=kaiming(k),
        w_by0=kaiming(n),
        w_ba0=kaiming(n),
        w_bx1=kaiming(k),
        w_by1=kaiming(n),
        w_ba1=kaiming(n),
        theta_y=np.zeros(n),
        theta_a=np.zeros(n),
        theta_b0=np.zeros(n),
        theta_b1=np.zeros(n),
        sigma=np.ones(()),
    )
    y = rng.random(n)
    start = CellState(y / np.linalg.norm(y), rng.random(n), np.ones(n), rng.random(n))
    paired = initialization == "oscillators"
    if paired or rate_spread != 1:  # no further random numbers for the paper's
        alike = 2 if paired else 1  # units with one rate
        shares = rng.permutation(0.5 * rate_spread ** -np.linspace(0.0, 1.0, -(-n // alike)))  # of the largest rate
        share = np.repeat(shares, alike)[:n]
        parameters = parameters._replace(theta_y=np.log(share / (1.0 - share)))
        if paired:
            turn = np.zeros(n - 1)
            turn[::2] = 1.4 * rng.random(n // 2) / np.sqrt(max_rates.y * shares[: n // 2])
            w_r = np.eye(n) - np.diag(turn, 1) + np.diag(turn, -1)
            parameters = parameters._replace(w_r=w_r, w_zx=np.abs(w_zx), log_w=log_w - np.log(max(n / 2, 1.0)))
    cast = [None if value is None else np.asarray(value, dtype=dtype) for value in parameters]
    return CellParameters._make(cast), CellState._make(np.asarray(value, dtype=dtype) for value in start)


def validate_cell(parameters: CellParameters, state: CellState, x: Array) -> Any:
    """Check libraries, devices and shapes of a cell, its state and its input; return the namespace."""
    if not isinstance(parameters, tuple) or getattr(parameters, "_fields", None) != CellParameters._fields:
        raise TypeError(f"parameters must be CellParameters, got {checks.describe(parameters)}")
    if not isinstance(state, tuple) or len(state) != 4:
        raise TypeError(f"state must be a CellState(y, a, b0, b1), got {checks.describe(state)}")
    fields = parameters._asdict()
    states = {f"state.{name}": value for name, value in zip(CellState._fields, state, strict=True)}
    xp = checks.namespace({**fields, **states, "x": x}, numbers=("sigma",), optional=("w_r",), half=True)
    n = checks.matrix_shape("log_w", parameters.log_w, None)
    for name in ("w_r", "w_by0", "w_ba0", "w_by1", "w_ba1"):
        if fields[name] is not None:
            checks.matrix_shape(name, fields[name], n)
    k = int(parameters.w_zx.shape[-1])
    for name in ("w_zx", "w_bx0", "w_bx1"):
        shape = tuple(fields[name].shape)
        if shape[-2:] != (n, k):
            raise ValueError(f"{name} must have shape (..., {n}, {k}), got shape {shape}")
    for name in VECTORS:
        checks.vector_shape(name, fields[name], n, scalar=name == "sigma")
    for name, value in states.items():
        checks.vector_shape(name, value, n)
    checks.vector_shape("x", x, k)
    return xp


def _cores(parameters: CellParameters) -> dict[str, tuple[Any, int]]:
    """The parameters by name, each with the number of its own axes, as :func:`checks.batch_shape` takes them."""
    return {name: (value, 1 if name in VECTORS else 2) for name, value in parameters._asdict().items()}


def _batch(parameters: CellParameters, state: CellState, x: Array) -> tuple[int, ...]:
    """The batch axes of all of them together; ValueError naming what does not fit."""
    states = {f"state.{name}": (value, 1) for name, value in zip(CellState._fields, state, strict=True)}
    return checks.batch_shape({**_cores(parameters), **states, "x": (x, 1)})


def _dtype(xp: Any, parameters: CellParameters, state: CellState, x: Array) -> Any:
    """Of what is computed of them."""
    return xp.result_type(*(value for value in (*parameters, *state, x) if hasattr(value, "dtype")))


def validate_sequence(parameters: CellParameters, state: CellState, xs: Array) -> tuple[Any, CellState, Array]:
    """As :func:`validate_cell`, for a sequence (T, ..., k): the namespace, and the start state and the inputs in all
    batch axes, those of the inputs and of the parameters together; the state in the dtype of what is computed.
    """
    xp = validate_cell(parameters, state, xs)
    if xs.ndim < 2 or xs.shape[0] == 0:
        raise ValueError(f"xs must have shape (T, ..., k) with T >= 1, got shape {tuple(xs.shape)}")
    batch, owners = tuple(xs.shape[1:-1]), "xs"
    cores = _cores(parameters)
    if any(getattr(value, "ndim", 0) > core for value, core in cores.values()):
        batch, owners = checks.batch_shape({"xs": (xs[0, ...], 1)} | cores), "xs and the parameters"
    for name, part in zip(CellState._fields, state, strict=True):
        axes = tuple(part.shape[:-1])
        fits = all(one in (1, size) for one, size in zip(axes[::-1], batch[::-1], strict=False))
        if len(axes) > len(batch) or not fits:
            raise ValueError(
                f"state.{name} has shape {tuple(part.shape)}, whose batch axes {axes} do not fit those of {owners}, "
                f"{batch}"
            )
    dtype = _dtype(xp, parameters, state, xs)
    start = CellState(
        *(xp.astype(xp.broadcast_to(part, (*batch, part.shape[-1])), dtype, copy=False) for part in state)
    )
    if batch != tuple(xs.shape[1:-1]):
        missing = len(batch) + 2 - xs.ndim
        xs = xp.reshape(xs, (xs.shape[0], *(1,) * missing, *xs.shape[1:]))
        xs = xp.broadcast_to(xs, (xs.shape[0], *batch, xs.shape[-1]))
    return xp, start, xs


def step(
    xp: Any,
    parameters: CellParameters,
    w: Array,
    rates: Rates,
    state: CellState,
    x: Array,
    variant: str,
) -> CellState:
    """One Euler step, unchecked, with W and the rates already computed (they are the same at every step)."""
    p = parameters
    y, a, b0, b1 = state
    z = relu(xp, matvec(xp, p.w_zx, x))
    target0 = sigmoid(xp, matvec(xp, p.w_bx0, x) + matvec(xp, p.w_by0, y) + matvec(xp, p.w_ba0, a))
    target1 = sigmoid(xp, matvec(xp, p.w_bx1, x) + matvec(xp, p.w_by1, y) + matvec(xp, p.w_ba1, a))
    response = pooled_response(xp, y, variant)
    pool = matvec(xp, w, relu(xp, a) * response * response)
    dy = -y + b1 * z + (1.0 - sqrt_relu(xp, a)) * recurrent_drive(xp, p.w_r, y, variant)
    da = -a + (p.sigma * b0) ** 2 + pool
    return CellState(
        y + rates.y * dy,
        a + rates.a * da,
        b0 + rates.b0 * (target0 - b0),
        b1 + rates.b1 * (target1 - b1),
    )


def step_diagonal(
    xp: Any, parameters: CellParameters, w: Array, rates: Rates, state: CellState, variant: str
) -> CellState:
    """Derivative of every entry of the new state by the same entry of the old one, unchecked."""
    p = parameters
    y, a = state[0], state[1]
    ones = xp.ones_like(y)
    slope = ones if p.w_r is None else ones * xp.linalg.diagonal(p.w_r)
    if VARIANTS[variant].drive:
        slope = xp.where(recurrent_drive(xp, p.w_r, y, variant) > 0, slope, xp.zeros_like(y))
    response = pooled_response(xp, y, variant)
    pool = xp.linalg.diagonal(w) * xp.where(a > 0, response * response, xp.zeros_like(a))
    return CellState(
        1.0 + rates.y * ((1.0 - sqrt_relu(xp, a)) * slope - 1.0),
        1.0 + rates.a * (pool - 1.0),
        (1.0 - rates.b0) * ones,
        (1.0 - rates.b1) * ones,
    )


def cell_step(
    parameters: CellParameters,
    state: CellState,
    x: Array,
    *,
    max_rates: MaxRates = MaxRates(),
    variant: str = "rectified_recurrence",
) -> CellState:
    """One step of the trained cell; a pure function.

    Parameters
    ----------
    parameters : CellParameters
    state : CellState of arrays (..., n)
    x : array (..., k)
        Input at this step.
    max_rates : MaxRates
        (dt/tau)_max of y, a and of both gains.
    variant : {"rectified_recurrence", "main"}
        ``"rectified_recurrence"``, the paper's trained cell, has the recurrent
        drive max(W_r y, 0) and pools max(y, 0)**2; ``"main"`` has W_r y and y**2.

    Returns
    -------
    CellState of arrays (..., n)

    Raises
    ------
    TypeError, ValueError
        Naming the argument whose library, device, dtype or shape is wrong.

    Notes
    -----
    All right-hand sides are taken at the old state::

        z  = max(W_zx x, 0)
        B0 = sigmoid(W_bx0 x + W_by0 y + W_ba0 a)              B1 likewise
        b0 <- b0 + dt/tau_b0 (-b0 + B0)                        b1 likewise
        y  <- y + dt/tau_y (-y + b1 z + (1 - sqrt(max(a, 0))) max(W_r y, 0))
        a  <- a + dt/tau_a (-a + (sigma b0)**2 + W (max(a, 0) max(y, 0)**2))

    Examples
    --------
    >>> import numpy as np
    >>> import organics_core as oc
    >>> parameters, state = oc.init_cell(0, input_size=3, hidden_size=4)
    >>> oc.cell_step(parameters, state, np.ones((5, 3))).y.shape  # a batch of five
    (5, 4)
    """
    checks.one_of("variant", variant, CELL_VARIANTS)
    xp = validate_cell(parameters, state, x)
    _batch(parameters, state, x)
    rates = cell_rates(xp, parameters, three_rates(max_rates))
    w = normalization_weights(xp, parameters.log_w)
    dtype = _dtype(xp, parameters, state, x)
    new = step(xp, parameters, w, rates, CellState(*(xp.astype(part, dtype, copy=False) for part in state)), x, variant)
    shape = broadcast_shapes(*(tuple(part.shape) for part in new))
    return CellState(*(part if tuple(part.shape) == shape else xp.broadcast_to(part, shape) for part in new))


def cell_sequence(
    parameters: CellParameters,
    state: CellState,
    xs: Array,
    *,
    max_rates: MaxRates = MaxRates(),
    variant: str = "rectified_recurrence",
) -> tuple[CellState, Array]:
    """Run the cell over a sequence.

    Parameters
    ----------
    parameters : CellParameters
    state : CellState of arrays (n,) or (..., n)
        Start state; broadcast over the batch axes of ``xs`` and of the parameters, where these have any.
    xs : array (T, ..., k)
        Inputs, time first.
    max_rates, variant
        As in :func:`cell_step`.

    Returns
    -------
    state : CellState of arrays (..., n)
        The last state.
    y : array (T, ..., n)
        Membrane potentials after every step.

    Raises
    ------
    TypeError, ValueError
        As :func:`cell_step`; ValueError for an empty sequence.

    Examples
    --------
    >>> import numpy as np
    >>> import organics_core as oc
    >>> parameters, state = oc.init_cell(0, input_size=3, hidden_size=4)
    >>> last, ys = oc.cell_sequence(parameters, state, np.ones((7, 5, 3)))  # seven steps of a batch of five
    >>> ys.shape, bool((ys[-1] == last.y).all())
    ((7, 5, 4), True)
    """
    checks.one_of("variant", variant, CELL_VARIANTS)
    xp, start, xs = validate_sequence(parameters, state, xs)
    rates = cell_rates(xp, parameters, three_rates(max_rates))
    w = normalization_weights(xp, parameters.log_w)

    def body(carry: CellState, x: Array) -> tuple[CellState, Array]:
        new = step(xp, parameters, w, rates, CellState(*carry), x, variant)
        return new, new.y

    final, ys = get_backend(xp).scan(body, start, xs)
    return CellState(*final), ys


def _frozen(
    parameters: CellParameters, state: CellState, x: Array, max_rates: MaxRates, variant: str
) -> tuple[Any, Rates, Any, Any]:
    """Checked: ``xp``, the rates, and a circuit (in units of the step) and a state with the Jacobian of (y, a) that
    the cell has at this moment.
    """
    from .circuit import Circuit, State

    checks.one_of("variant", variant, CELL_VARIANTS)
    xp = validate_cell(parameters, state, x)
    rates = cell_rates(xp, parameters, three_rates(max_rates))
    w = normalization_weights(xp, parameters.log_w)
    # the Jacobian hangs neither on the gains, which a cell may have of any sign, nor on sigma
    circuit = Circuit(parameters.w_r, w, 1.0, 1.0, 1.0, 1.0 / rates.y, 1.0 / rates.a)
    return xp, rates, circuit, State(state[0], state[1])


def cell_jacobian_abscissa(
    parameters: CellParameters,
    state: CellState,
    x: Array,
    *,
    max_rates: MaxRates = MaxRates(),
    variant: str = "rectified_recurrence",
) -> Array:
    """Largest real part of the eigenvalues of the (y, a) circuit the cell is at this moment.

    The gains b0, b1 and the drive are frozen at their present values, and the
    dynamics taken in units of the step, so that the time constants are
    1/(dt/tau). Negative means locally stable.

    Parameters
    ----------
    parameters, state, x, max_rates, variant
        As in :func:`cell_step`, state (..., n).

    Returns
    -------
    array (...)
        Per step.
    """
    from .stability import spectral_abscissa

    xp, _, circuit, there = _frozen(parameters, state, x, max_rates, variant)
    return xp.broadcast_to(spectral_abscissa(circuit, there, variant=variant), _batch(parameters, state, x))


def cell_jacobian(
    parameters: CellParameters,
    state: CellState,
    x: Array,
    *,
    max_rates: MaxRates = MaxRates(),
    variant: str = "rectified_recurrence",
) -> Array:
    """Derivative of the step of the cell: of the new state by the old one, all of it, gains included.

    Its spectral radius says whether the discrete map, which is what is trained,
    is locally stable: below one, small differences of the states vanish.

    Parameters
    ----------
    parameters, state, x, max_rates, variant
        As in :func:`cell_step`, state (..., n).

    Returns
    -------
    array (..., 4 n, 4 n)
        In the order (y, a, b0, b1). At a kink it is the derivative of the
        silent side, as in :func:`organics_core.jacobian`.

    Raises
    ------
    TypeError, ValueError
        As :func:`cell_step`.

    Notes
    -----
    With rates r = dt/tau, J of :func:`organics_core.jacobian` in units of the
    step, z = max(W_zx x, 0) and targets t = sigmoid(W_bx x + W_by y + W_ba a)::

        [ I + J                      [0          diag(r_y z)           ] ]
        [                            [diag(2 r_a sigma**2 b0)        0 ] ]
        [ diag(r_b t (1 - t)) (W_by, W_ba)       diag(1 - r_b)           ]

    Examples
    --------
    >>> import numpy as np
    >>> import organics_core as oc
    >>> parameters, state = oc.init_cell(0, 3, 8)
    >>> oc.cell_jacobian(parameters, state, np.ones(3)).shape
    (32, 32)
    """
    from .stability import jacobian

    p, (xp, rates, circuit, there) = parameters, _frozen(parameters, state, x, max_rates, variant)
    y, a = there
    batch = _batch(parameters, state, x)
    ones = xp.broadcast_to(xp.ones_like(y), (*batch, y.shape[-1]))
    eye = xp.eye(y.shape[-1], dtype=y.dtype, device=device(y))

    def whole(matrices: Array) -> Array:
        return xp.broadcast_to(matrices, (*batch, *matrices.shape[-2:]))

    def diagonal(values: Array) -> Array:
        return (ones * values)[..., None] * eye

    def gated(w_bx: Array, w_by: Array, w_ba: Array, rate: Array) -> Array:
        target = sigmoid(xp, matvec(xp, w_bx, x) + matvec(xp, w_by, y) + matvec(xp, w_ba, a))
        return (ones * rate * target * (1.0 - target))[..., None] * xp.concat([whole(w_by), whole(w_ba)], axis=-1)

    z, nothing = relu(xp, matvec(xp, p.w_zx, x)), diagonal(0.0 * ones)
    core = whole(jacobian(circuit, there, variant=variant))
    core = core + xp.eye(core.shape[-1], dtype=y.dtype, device=device(y))
    gains = xp.concat(
        [
            xp.concat([nothing, diagonal(rates.y * z)], axis=-1),
            xp.concat([diagonal(2.0 * rates.a * p.sigma**2 * state[2]), nothing], axis=-1),
        ],
        axis=-2,
    )
    first = xp.concat([gated(p.w_bx0, p.w_by0, p.w_ba0, rates.b0), diagonal(1.0 - rates.b0), nothing], axis=-1)
    second = xp.concat([gated(p.w_bx1, p.w_by1, p.w_ba1, rates.b1), nothing, diagonal(1.0 - rates.b1)], axis=-1)
    return xp.concat([xp.concat([core, gains], axis=-1), first, second], axis=-2)
