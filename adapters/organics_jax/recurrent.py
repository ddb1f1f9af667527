"""The recurrent layers: one cell, a sequence layer in the manner of torch.nn.LSTM, a classifier."""

from __future__ import annotations

import warnings
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from organics_core import checks
from organics_core.cell import (
    CELL_VARIANTS,
    CellParameters,
    CellState,
    MaxRates,
    cell_jacobian_abscissa,
    cell_step,
    check_max_rates,
    init_cell,
)
from organics_core.static import spectral_ball

from .modules import Part, float_dtype, floating, from_host, split
from .sequence import IMPLEMENTATIONS, masked_sequence, sequence

Array = Any

RECURRENT = ("orthogonal", "identity", "spectral")


class _NotFlax(Part):
    """What answers those who take a module for a cell of Flax, which is called as (carry, x)."""

    def _advice(self, call: str) -> str:
        return (
            f"an {type(self).__name__} of organics_jax is called as {call}, and cells of Flax as cell(carry, x); in "
            "Flax take organics_jax.flax.ORGaNICsCell with flax.nnx.RNN (there is none for flax.linen)"
        )

    @property
    def num_feature_axes(self) -> int:
        """For ``flax.linen.RNN``, which asks for it first: TypeError."""
        raise TypeError(self._advice("layer(inputs, state)"))

    def initialize_carry(self, *_: Any, **__: Any) -> CellState:
        """For those who know it from Flax: TypeError."""
        raise TypeError(self._advice("layer(inputs, state)"))


class ORGaNICsCell(_NotFlax):
    """One step of the trained ORGaNICs cell.

    Parameters
    ----------
    input_size, hidden_size : int
        k and n.
    key : jax random key
        Of the initialization; the same key gives the same parameters.
    recurrent : {"orthogonal", "identity", "spectral"}
        W_r learned, from a random orthogonal matrix; the fixed identity; or
        learned within the ball of spectral norm 1, from an orthogonal matrix.
    variant : {"rectified_recurrence", "main"}
        Of the dynamics, see :func:`organics_core.cell_step`.
    initialization : {"paper", "oscillators"}
        The paper's, or W_r = I + K with a K that turns pairs of units, a long
        memory for the variant "main"; see :func:`organics_core.init_cell`.
    rate_spread : float
        The fastest dt/tau_y over the slowest at the start.
    max_rates : MaxRates, or "auto"
        (dt/tau)_max of y, of a, and of both gains. The default suits sequences
        of several hundred steps; "auto" is what :func:`organics_core.rates_for`
        gives for sequences of ``steps`` steps.
    steps : int, optional
        With ``max_rates="auto"``.
    learn_rates : bool
        Whether the rates are trained.
    dtype : floating dtype, optional
        jax's default (float32, unless x64 is enabled).

    Attributes
    ----------
    parameters : CellParameters
        The core's parameters; ``sigma`` is not trained.
    start : CellState of arrays (n,)
        Start state, not trained.

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong.

    Notes
    -----
    Rawat, Heeger & Martiniani (NeurIPS 2024), the explicit Euler cell.

    Examples
    --------
    >>> cell = ORGaNICsCell(3, 8, key=jax.random.key(0))
    >>> state = cell(jnp.ones(3))
    >>> state = cell(jnp.ones(3), state)
    >>> state.y.shape
    (8,)
    """

    parameters: CellParameters
    start: CellState
    input_size: int = eqx.field(static=True)
    hidden_size: int = eqx.field(static=True)
    recurrent: str = eqx.field(static=True)
    variant: str = eqx.field(static=True)
    max_rates: MaxRates = eqx.field(static=True)
    learn_rates: bool = eqx.field(static=True)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        key: Array,
        recurrent: str = "orthogonal",
        variant: str = "rectified_recurrence",
        initialization: str = "paper",
        rate_spread: float = 1.0,
        max_rates: MaxRates | tuple[float, float, float] | str = MaxRates(),
        steps: int | None = None,
        learn_rates: bool = True,
        dtype: Any = None,
    ) -> None:
        self.input_size = checks.positive_integer("input_size", input_size)
        self.hidden_size = checks.positive_integer("hidden_size", hidden_size)
        checks.one_of("recurrent", recurrent, RECURRENT)
        checks.one_of("variant", variant, CELL_VARIANTS)
        if initialization == "oscillators" and recurrent == "spectral":
            raise ValueError("oscillators are outside of the ball of spectral norm 1, and recurrent is 'spectral'")
        self.recurrent = recurrent
        self.variant = variant
        self.max_rates = check_max_rates(max_rates, steps)
        self.learn_rates = checks.flag("learn_rates", learn_rates)

        def make(generator: Any) -> tuple[CellParameters, CellState]:
            kind = "identity" if recurrent == "identity" else "orthogonal"
            return init_cell(
                generator,
                self.input_size,
                self.hidden_size,
                recurrent=kind,
                initialization=initialization,
                rate_spread=rate_spread,
                max_rates=self.max_rates,
            )

        self.parameters, self.start = from_host(key, make, float_dtype(dtype))

    def trained(self) -> Any:
        everything = jax.tree.map(eqx.is_inexact_array, self)
        parameters = everything.parameters._replace(sigma=False)
        if not self.learn_rates:
            parameters = parameters._replace(theta_y=False, theta_a=False, theta_b0=False, theta_b1=False)
        start = CellState(False, False, False, False)
        return eqx.tree_at(lambda m: (m.parameters, m.start), everything, (parameters, start))

    def effective(self) -> CellParameters:
        """The parameters as the step uses them: W_r within its ball, no gradient to what is not trained."""
        p = self.parameters
        if self.recurrent == "spectral":
            p = p._replace(w_r=spectral_ball(jnp, p.w_r))
        fixed = ("sigma",) if self.learn_rates else ("sigma", "theta_y", "theta_a", "theta_b0", "theta_b1")
        return p._replace(**{name: jax.lax.stop_gradient(getattr(p, name)) for name in fixed})

    def initial_state(self, batch: tuple[int, ...] = ()) -> CellState:
        """A copy of the start state, for arrays ``(*batch, n)``; no gradient flows to it."""
        shape = (*batch, self.hidden_size)
        return CellState(*(jnp.array(jnp.broadcast_to(jax.lax.stop_gradient(p), shape)) for p in self.start))

    def __call__(self, x: Array, state: CellState | None = None) -> CellState:
        """One step.

        Parameters
        ----------
        x : array (..., k)
        state : CellState of arrays (..., n), optional
            The start state by default.

        Returns
        -------
        CellState of arrays (..., n)

        Raises
        ------
        TypeError, ValueError
            Naming the argument whose dtype or shape is wrong.
        """
        if isinstance(x, tuple):
            raise TypeError(f"x must be an array, got {checks.describe(x)}: " + self._advice("cell(x, state)"))
        x = self.cast("x", x)
        if state is None:
            state = self.initial_state(x.shape[:-1])
        check_state("state", state)
        return cell_step(self.effective(), CellState(*state), x, max_rates=self.max_rates, variant=self.variant)

    def cast(self, name: str, x: Array) -> Array:
        """A floating array of the parameters' dtype; TypeError or ValueError naming it otherwise."""
        x = floating(name, x)
        if x.ndim == 0 or x.shape[-1] != self.input_size:
            raise ValueError(f"{name} must have shape (..., {self.input_size}), got shape {x.shape}")
        return x.astype(self.parameters.log_w.dtype)

    def spectral_abscissa(self, state: CellState, x: Array) -> Array:
        """Largest real eigenvalue part of the (y, a) circuit that the cell is at ``state``, per step; shape (...)."""
        return cell_jacobian_abscissa(
            self.effective(), state, self.cast("x", x), max_rates=self.max_rates, variant=self.variant
        )


class ORGaNICs(_NotFlax):
    """A sequence layer of ORGaNICs cells, called as ``torch.nn.LSTM`` is.

    Parameters
    ----------
    input_size, hidden_size : int
    num_layers : int
        Layers; each takes the membrane potentials y of the one below.
    key : jax random key
    batch_first : bool
        Inputs and outputs are (B, T, ...) instead of (T, B, ...).
    dropout : float
        Probability of dropping an output between layers, where the call gets a
        ``key``; ``eqx.nn.inference_mode(model)`` drops nothing and needs none.
    bidirectional : bool
        Whether every layer has a second cell, which takes the sequence from its
        end. Outputs are those of both, (..., 2 n), and the states
        (2 num_layers, B, n), of the cells of a layer one after another.
    implementation : {"auto", "fused", "chunked", "parallel", "reference"}
        How a sequence is computed; all give the same numbers. ``"fused"`` is
        native code, compiled at first use, for float32 and float64 on one CPU
        device; ``"chunked"`` keeps only the state of every 28th step or so, has a
        reverse derivative written by hand and no other; ``"parallel"`` computes all
        steps at once by iterations, where they converge (:func:`parallel_advice` says
        whether it pays), with a first reverse derivative only; ``"reference"`` is the core's scan, which has
        derivatives of all kinds (``jvp``, Hessians) everywhere. ``"auto"`` is ``"fused"`` where that can be
        had, and ``"chunked"`` elsewhere; the environment variable ``ORGANICS_JAX_FUSED=0``
        keeps it from compiling native code. With ``lengths`` all are a scan.
    recurrent, variant, initialization, rate_spread, max_rates, steps, learn_rates, dtype
        As for :class:`ORGaNICsCell`.

    Attributes
    ----------
    cells : tuple of ORGaNICsCell
    reverse_cells : tuple of ORGaNICsCell
        One per layer, where ``bidirectional``.

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong.

    Examples
    --------
    >>> layer = ORGaNICs(1, 16, key=jax.random.key(0), batch_first=True)
    >>> output, hn = layer(jnp.ones((5, 100, 1)))
    >>> output.shape, hn.y.shape
    ((5, 100, 16), (1, 5, 16))
    """

    cells: tuple[ORGaNICsCell, ...]
    reverse_cells: tuple[ORGaNICsCell, ...]
    drop: eqx.nn.Dropout | None
    batch_first: bool = eqx.field(static=True)
    implementation: str = eqx.field(static=True)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        key: Array,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        recurrent: str = "orthogonal",
        variant: str = "rectified_recurrence",
        initialization: str = "paper",
        rate_spread: float = 1.0,
        max_rates: MaxRates | tuple[float, float, float] | str = MaxRates(),
        steps: int | None = None,
        learn_rates: bool = True,
        implementation: str = "auto",
        dtype: Any = None,
    ) -> None:
        checks.one_of("implementation", implementation, IMPLEMENTATIONS)
        num_layers = checks.positive_integer("num_layers", num_layers)
        if not (checks.is_number(dropout) and 0 <= dropout <= 1):
            raise ValueError(f"dropout must be a number in [0, 1], got {dropout!r}")
        if dropout and num_layers == 1:
            warnings.warn(
                f"dropout {dropout} does nothing: it is between layers, and num_layers is 1", UserWarning, stacklevel=2
            )
        self.drop = eqx.nn.Dropout(dropout) if dropout and num_layers > 1 else None

        bidirectional = checks.flag("bidirectional", bidirectional)

        def cells(key: Array) -> tuple[ORGaNICsCell, ...]:
            return tuple(
                ORGaNICsCell(
                    input_size if index == 0 else hidden_size * (1 + bidirectional),
                    hidden_size,
                    key=part,
                    recurrent=recurrent,
                    variant=variant,
                    initialization=initialization,
                    rate_spread=rate_spread,
                    max_rates=max_rates,
                    steps=steps,
                    learn_rates=learn_rates,
                    dtype=dtype,
                )
                for index, part in enumerate(split(key, num_layers))
            )

        self.cells = cells(key)
        self.reverse_cells = cells(jax.random.fold_in(key, 1)) if bidirectional else ()
        self.batch_first = checks.flag("batch_first", batch_first)
        self.implementation = implementation

    @property
    def num_layers(self) -> int:
        """How many layers are stacked."""
        return len(self.cells)

    @property
    def input_size(self) -> int:
        """Features of the input."""
        return self.cells[0].input_size

    @property
    def hidden_size(self) -> int:
        """Units of a layer."""
        return self.cells[0].hidden_size

    @property
    def bidirectional(self) -> bool:
        """Whether every layer has a cell that takes the sequence from its end."""
        return bool(self.reverse_cells)

    def in_order_of_states(self) -> tuple[ORGaNICsCell, ...]:
        """All cells, both of a layer one after another."""
        if not self.reverse_cells:
            return self.cells
        return tuple(cell for pair in zip(self.cells, self.reverse_cells, strict=True) for cell in pair)

    def trained(self) -> Any:
        everything = jax.tree.map(eqx.is_inexact_array, self)
        names = ("cells", "reverse_cells") if self.reverse_cells else ("cells",)
        trained = [tuple(cell.trained() for cell in getattr(self, name)) for name in names]
        return eqx.tree_at(lambda m: [getattr(m, name) for name in names], everything, trained)

    def __call__(
        self,
        inputs: Array,
        hx: CellState | None = None,
        *,
        lengths: Array | None = None,
        key: Array | None = None,
    ) -> tuple[Array, CellState]:
        """Run over a sequence.

        Parameters
        ----------
        inputs : array (T, B, k), or (B, T, k) with ``batch_first``, or (T, k)
        hx : CellState of arrays (num_layers, B, n), or (num_layers, n) unbatched; optional
            Start state of every layer; that of the cells by default.
            (2 num_layers, ...) where bidirectional.
        lengths : integer array (B,), or () unbatched; optional
            Lengths of the sequences, where they differ.
        key : jax random key, optional
            Of the dropout, which needs one.

        Returns
        -------
        output : array (T, B, n), (B, T, n) or (T, n)
            Membrane potentials y of the last layer after every step; 0 beyond
            a sequence's length. Of both directions side by side, (..., 2 n),
            where bidirectional.
        hn : CellState of arrays (num_layers, B, n) or (num_layers, n)
            The state of every layer after each sequence's last step.

        Raises
        ------
        TypeError, ValueError
            Naming the argument whose dtype or shape is wrong.
        """
        xs, starts = self.time_first(inputs, hx)
        swap = self.batch_first and xs.ndim == 3
        if lengths is not None:
            lengths = self._lengths(lengths, xs.shape[:-1])
        if self.drop is not None and key is None and not self.drop.inference:
            raise ValueError("dropout needs a random key: layer(inputs, key=...), or eqx.nn.inference_mode(model)")
        finals = []
        for layer, cell in enumerate(self.cells):
            if layer and self.drop is not None:
                xs = self.drop(xs, key=None if key is None else jax.random.fold_in(key, layer))
            pair = (cell, self.reverse_cells[layer]) if self.reverse_cells else (cell,)
            outputs = []
            for back, one in enumerate(pair):
                start = starts[layer * len(pair) + back]
                final, ys = self._run(one, start, _turned(xs, lengths) if back else xs, lengths)
                outputs.append(_turned(ys, lengths) if back else ys)
                finals.append(final)
            xs = outputs[0] if len(pair) == 1 else jnp.concatenate(outputs, -1)
        hn = CellState(*(jnp.stack(parts) for parts in zip(*finals, strict=True)))
        return (jnp.swapaxes(xs, 0, 1) if swap else xs), hn

    def _run(self, cell: ORGaNICsCell, start: CellState, xs: Array, lengths: Array | None) -> tuple[CellState, Array]:
        options: dict[str, Any] = {"max_rates": cell.max_rates, "variant": cell.variant}
        if lengths is None:
            return sequence(cell.effective(), start, xs, implementation=self.implementation, **options)
        return masked_sequence(cell.effective(), start, xs, lengths, **options)

    def time_first(self, inputs: Array, hx: CellState | None = None) -> tuple[Array, list[CellState]]:
        """The inputs, checked, (T, B, k) or (T, k), and the start state of every cell."""
        if isinstance(inputs, tuple):
            what = checks.describe(inputs)
            raise TypeError(f"inputs must be an array, got {what}: " + self._advice("layer(inputs, state)"))
        xs = self.cells[0].cast("inputs", inputs)
        if xs.ndim not in (2, 3):
            raise ValueError(f"inputs must have 3 axes, or 2 without a batch, got shape {xs.shape}")
        if self.batch_first and xs.ndim == 3:
            xs = jnp.swapaxes(xs, 0, 1)
        if xs.shape[0] == 0:
            raise ValueError(f"inputs must have at least one step, got shape {jnp.shape(inputs)}")
        return xs, self._starts(hx, xs.shape[1:-1])

    def _lengths(self, lengths: Array, shape: tuple[int, ...]) -> Array:
        seen = None if isinstance(lengths, jax.core.Tracer) else np.asarray(lengths)
        lengths = jnp.asarray(lengths)
        if not jnp.issubdtype(lengths.dtype, jnp.integer):
            raise TypeError(f"lengths must be integers, got {lengths.dtype}")
        if lengths.shape != shape[1:]:
            raise ValueError(f"lengths must have shape {shape[1:]}, got shape {lengths.shape}")
        if seen is not None and np.any((seen < 1) | (seen > shape[0])):
            raise ValueError(f"lengths must lie between 1 and the {shape[0]} steps of inputs, got {seen}")
        return lengths

    def _starts(self, hx: CellState | None, batch: tuple[int, ...]) -> list[CellState]:
        if hx is None:
            return [cell.initial_state(batch) for cell in self.in_order_of_states()]
        check_state("hx", hx)
        cells = len(self.cells) + len(self.reverse_cells)
        shape = (cells, *batch, self.hidden_size)
        dtype = self.cells[0].parameters.log_w.dtype
        parts = []
        for name, part in zip(CellState._fields, hx, strict=True):
            part = floating(f"hx.{name}", part)
            if part.shape != shape:
                raise ValueError(f"hx.{name} must have shape {shape}, got shape {part.shape}")
            parts.append(part.astype(dtype))
        return [CellState(*(part[index] for part in parts)) for index in range(cells)]


def _turned(xs: Array, lengths: Array | None) -> Array:
    """Sequences (T, ..., n) from end to start, each within its own length."""
    if lengths is None:
        return jnp.flip(xs, 0)
    steps = jnp.arange(xs.shape[0]).reshape(-1, *(1,) * lengths.ndim)
    places = jnp.where(steps < lengths, lengths - 1 - steps, steps)
    return jnp.take_along_axis(xs, places[..., None], 0)


def check_state(name: str, state: Any) -> None:
    """TypeError naming what is no CellState."""
    if not isinstance(state, tuple) or len(state) != 4:
        raise TypeError(f"{name} must be a CellState(y, a, b0, b1), got {checks.describe(state)}")


class ORGaNICsClassifier(Part):
    """ORGaNICs and a linear readout of y at the last step.

    Of a bidirectional layer y at the last step of either direction is read, which are both ends of the sequence.

    Parameters
    ----------
    input_size, hidden_size, classes : int
    num_layers : int
    key : jax random key
    dropout, bidirectional
        As for :class:`ORGaNICs`.
    recurrent, variant, initialization, rate_spread, max_rates, steps, learn_rates, implementation, dtype
        As for :class:`ORGaNICs`.

    Attributes
    ----------
    layer : ORGaNICs
    readout : equinox.nn.Linear

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong.

    Examples
    --------
    >>> model = ORGaNICsClassifier(8, 16, 10, key=jax.random.key(0))
    >>> model(jnp.ones((5, 8, 8))).shape
    (5, 10)
    """

    layer: ORGaNICs
    readout: eqx.nn.Linear

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        classes: int,
        *,
        key: Array,
        num_layers: int = 1,
        dropout: float = 0.0,
        bidirectional: bool = False,
        recurrent: str = "orthogonal",
        variant: str = "rectified_recurrence",
        initialization: str = "paper",
        rate_spread: float = 1.0,
        max_rates: MaxRates | tuple[float, float, float] | str = MaxRates(),
        steps: int | None = None,
        learn_rates: bool = True,
        implementation: str = "auto",
        dtype: Any = None,
    ) -> None:
        classes = checks.positive_integer("classes", classes)
        key_layer, key_readout = split(key, 2)
        self.layer = ORGaNICs(
            input_size,
            hidden_size,
            num_layers,
            key=key_layer,
            batch_first=True,
            dropout=dropout,
            bidirectional=bidirectional,
            recurrent=recurrent,
            variant=variant,
            initialization=initialization,
            rate_spread=rate_spread,
            max_rates=max_rates,
            steps=steps,
            learn_rates=learn_rates,
            implementation=implementation,
            dtype=dtype,
        )
        self.readout = eqx.nn.Linear(
            self.layer.hidden_size * (1 + self.layer.bidirectional), classes, key=key_readout, dtype=float_dtype(dtype)
        )

    def trained(self) -> Any:
        everything = jax.tree.map(eqx.is_inexact_array, self)
        return eqx.tree_at(lambda m: m.layer, everything, self.layer.trained())

    def __call__(self, inputs: Array, *, key: Array | None = None) -> Array:
        """Logits of every class.

        Parameters
        ----------
        inputs : array (N, T, k), or (T, k)
        key : jax random key, optional
            Of the dropout, which needs one.

        Returns
        -------
        array (N, classes), or (classes,)

        Raises
        ------
        TypeError, ValueError
            Naming the argument whose dtype or shape is wrong.
        """
        _, hn = self.layer(inputs, key=key)
        y = jnp.concatenate([*hn.y[-2:]], -1) if self.layer.bidirectional else hn.y[-1]
        return y @ self.readout.weight.T + self.readout.bias
