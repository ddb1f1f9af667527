"""ORGaNICs for the torch family: torchdiffeq, torchode, norse's ``SequentialState`` and ncps-style sequence layers.

Gradients of long runs: use ``torchdiffeq.odeint`` (it stores the run) or
torchode's ``AutoDiffAdjoint``. ``torchdiffeq.odeint_adjoint`` integrates the
stable circuit backwards, where every mode grows, and the solver's errors with it:
over many time constants its gradients are wrong, without a warning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from organics_core import VARIANTS, Circuit, State, checks, resting_state
from organics_core.circuit import field, prepare, size, validate_circuit

from ._common import dense, drive_at, explicit, require, step

require("torchdiffeq", "torch")

import array_api_compat.torch as xp  # noqa: E402
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402


class CircuitModule(nn.Module):
    """A circuit as a module: its fields are buffers, or parameters where ``learn`` names them.

    Both are copies, but for fields with a gradient that are not named: those stay what they are.

    Parameters
    ----------
    circuit : Circuit
        Of torch tensors.
    learn : iterable of str
        Fields to train. They are trained as they are: keep w >= 0 and the rest
        but w_r positive, by a parametrization for instance.

    Examples
    --------
    >>> circuit = Circuit(None, torch.ones(2, 2), 1.0, 1.0, 1.0, 0.002, 0.002)
    >>> [name for name, _ in CircuitModule(circuit, learn=["w"]).named_parameters()]
    ['w']
    """

    def __init__(self, circuit: Circuit, learn: Iterable[str] = ()) -> None:
        super().__init__()
        if validate_circuit(circuit, values=True) is not xp:
            raise TypeError(f"circuit must have torch tensors, but w is {checks.describe(circuit.w)}")
        dense(circuit, "a torch module")
        (circuit,) = prepare(xp, circuit)
        learn = tuple(learn)
        for name in learn:
            checks.one_of("learn", name, Circuit._fields)
        for name, value in circuit._asdict().items():
            if name in learn and value is not None:
                self.register_parameter(name, nn.Parameter(value.detach().clone()))
            elif name in learn:
                raise ValueError(f"learn names {name!r}, which is None, the fixed identity, in this circuit")
            else:
                self.register_buffer(name, _own(value))

    @property
    def circuit(self) -> Circuit:
        """The circuit of the present buffers and parameters."""
        return Circuit._make(getattr(self, name) for name in Circuit._fields)


def _own(value: Tensor | None) -> Tensor | None:
    """A copy, because load_state_dict writes into buffers; what has a gradient follows its source."""
    return value if value is None or value.requires_grad else value.clone()


class Dynamics(CircuitModule):
    """The vector field as a module ``forward(t, state)``, for torchdiffeq.

    Parameters
    ----------
    circuit : Circuit
        Of torch tensors.
    z : tensor (..., n) or callable
        Input drive, constant or a function of the time.
    variant : {"main", "rectified", "rectified_recurrence"}
    learn : iterable of str
        Fields to train, as for :class:`CircuitModule`.

    Examples
    --------
    >>> from torchdiffeq import odeint
    >>> circuit = Circuit(None, torch.ones(2, 2), 1.0, 1.0, 1.0, 0.002, 0.002)
    >>> dynamics = Dynamics(circuit, torch.tensor([1.0, 0.0]))
    >>> y, a = odeint(dynamics, dynamics.start(), torch.tensor([0.0, 0.1]))
    >>> a[-1]
    tensor([2.0000, 2.0000])
    """

    z: Any

    def __init__(
        self, circuit: Circuit, z: Tensor | Callable[[Tensor], Tensor], *, variant: str = "main", learn: Any = ()
    ) -> None:
        super().__init__(circuit, learn)
        checks.one_of("variant", variant, VARIANTS)
        self.variant = variant
        if callable(z) and not isinstance(z, Tensor):
            self.z = z
        else:
            validate_circuit(circuit, z=z)
            self.register_buffer("z", _own(z.to(self.w.dtype)))

    def start(self) -> State:
        """The state at rest, y = 0 and a = (b0 sigma)**2."""
        drive = self.z if isinstance(self.z, Tensor) else self.z(self.w.new_zeros(()))
        return resting_state(self.circuit, drive)

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> State:
        """y' and a' at the time ``t`` and the state (y, a)."""
        z = self.z if isinstance(self.z, Tensor) else self.z(t)
        return field(xp, self.circuit, State(*state), z, self.variant)


def flat_field(*, variant: str = "main") -> Callable[[Tensor, Tensor, Any], Tensor]:
    """``f(t, x, args)`` of one tensor x (batch, 2n), for ``torchode.ODETerm(f, with_args=True)``.

    Parameters
    ----------
    variant : {"main", "rectified", "rectified_recurrence"}

    Returns
    -------
    callable
        Its ``args`` are (circuit, z); z is a tensor (n,) or (batch, n), or a
        function of the times (batch,) that returns one.

    Raises
    ------
    ValueError
        For an unknown variant; when called, for an x of the wrong shape.

    Examples
    --------
    >>> import torchode
    >>> circuit = Circuit(None, torch.ones(2, 2), 1.0, 1.0, 1.0, 0.002, 0.002)
    >>> z = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    >>> term = torchode.ODETerm(flat_field(), with_args=True)
    >>> controller = torchode.IntegralController(atol=1e-6, rtol=1e-3, term=term)
    >>> solver = torchode.AutoDiffAdjoint(torchode.Dopri5(term=term), controller)
    >>> times = torch.tensor([[0.0, 0.1], [0.0, 0.1]])
    >>> problem = torchode.InitialValueProblem(y0=pack(resting_state(circuit, z)), t_eval=times)
    >>> run = solver.solve(problem, args=(circuit, z))
    >>> unpack(run.ys).a[0, -1].round(decimals=2)
    tensor([2., 2.])
    """
    checks.one_of("variant", variant, VARIANTS)

    def flat(t: Tensor, x: Tensor, args: tuple[Circuit, Any]) -> Tensor:
        circuit, z = args
        n = size(circuit)
        if x.shape[-1] != 2 * n:
            raise ValueError(f"x must have shape (batch, {2 * n}), y then a, got shape {tuple(x.shape)}")
        drive = z if isinstance(z, Tensor) else drive_at(z, t)
        return torch.cat(field(xp, circuit, State(x[..., :n], x[..., n:]), drive, variant), dim=-1)

    return flat


def pack(state: State) -> Tensor:
    """A state as one tensor.

    Parameters
    ----------
    state : State of tensors (..., n)

    Returns
    -------
    tensor (..., 2n)
        y, then a.
    """
    return torch.cat(torch.broadcast_tensors(*state), dim=-1)


def unpack(x: Tensor) -> State:
    """One tensor as a state.

    Parameters
    ----------
    x : tensor (..., 2n)
        y, then a.

    Returns
    -------
    State of tensors (..., n)

    Raises
    ------
    ValueError
        Where the last axis is odd.
    """
    if x.shape[-1] % 2:
        raise ValueError(f"x must have an even last axis, y then a, got shape {tuple(x.shape)}")
    n = x.shape[-1] // 2
    return State(x[..., :n], x[..., n:])


class CircuitCell(CircuitModule):
    """One time step, ``forward(input, state=None) -> (y, state)``: norse's convention for stateful modules.

    Parameters
    ----------
    circuit : Circuit
        Of torch tensors.
    dt : float
        Time between two inputs, in seconds.
    substeps : int
        Integration steps within dt.
    method : str or Tableau
        An explicit method of :data:`organics_core.INTEGRATORS`.
    variant : {"main", "rectified", "rectified_recurrence"}
    learn : iterable of str
        Fields to train, as for :class:`CircuitModule`.

    Examples
    --------
    >>> circuit = Circuit(None, torch.ones(2, 2), 1.0, 1.0, 1.0, 0.002, 0.002)
    >>> cell = CircuitCell(circuit, dt=1e-3)
    >>> y, state = cell(torch.ones(5, 2))
    >>> y, state = cell(torch.ones(5, 2), state)
    >>> y.shape
    torch.Size([5, 2])
    """

    def __init__(
        self,
        circuit: Circuit,
        dt: float,
        *,
        substeps: int = 1,
        method: Any = "rk4",
        variant: str = "main",
        learn: Iterable[str] = (),
    ) -> None:
        super().__init__(circuit, learn)
        checks.one_of("variant", variant, VARIANTS)
        self.dt = checks.positive_number("dt", dt)
        self.substeps = checks.positive_integer("substeps", substeps)
        self.method = explicit(method)
        self.variant = variant
        self.input_size = self.output_size = size(circuit)
        self.state_size = 2 * self.input_size

    def initial_state(self, input: Tensor) -> State:
        """The state at rest, in the batch shape of ``input`` (..., n)."""
        return resting_state(self.circuit, input)

    def forward(self, input: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """y after ``dt`` of the input drive ``input`` (..., n), and the state (y, a)."""
        circuit = self.circuit
        state = self.initial_state(input) if state is None else State(*state)
        for _ in range(self.substeps):
            state = step(
                lambda t, s: field(xp, circuit, s, input, self.variant),
                0.0,
                state,
                self.dt / self.substeps,
                self.method,
            )
        return state.y, state


class TrainedCell(nn.Module):
    """An ``organics_torch.ORGaNICsCell`` by norse's convention, ``forward(input, state=None) -> (y, state)``.

    Parameters
    ----------
    cell : organics_torch.ORGaNICsCell

    Examples
    --------
    >>> from organics_torch import ORGaNICsCell
    >>> y, state = TrainedCell(ORGaNICsCell(3, 8))(torch.zeros(5, 3))
    >>> y.shape
    torch.Size([5, 8])
    """

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell
        self.input_size = cell.input_size
        self.output_size = cell.hidden_size
        self.state_size = 4 * self.output_size

    def forward(self, input: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """One step: y (..., n) and the state."""
        state = self.cell(input) if state is None else self.cell(input, state)
        return state.y, state


class FlatRNN(nn.Module):
    """A sequence layer by ncps's convention, ``(out, hx) = rnn(x, hx)`` with hx one tensor.

    Parameters
    ----------
    cell : CircuitCell or TrainedCell
    batch_first : bool
        x and out are (B, T, ...), as in ``ncps.torch.CfC`` and ``LTC``; otherwise (T, B, ...).
    return_sequences : bool
        Whether out has every step, or only the last.

    Attributes
    ----------
    input_size, output_size, state_size : int
        ``state_size`` is the length of hx: y and a of the circuit, or y, a, b0 and b1 of the trained cell.

    Examples
    --------
    >>> from organics_torch import ORGaNICsCell
    >>> rnn = FlatRNN(TrainedCell(ORGaNICsCell(20, 50)))
    >>> out, hx = rnn(torch.randn(2, 3, 20))
    >>> out.shape, hx.shape
    (torch.Size([2, 3, 50]), torch.Size([2, 200]))
    """

    def __init__(self, cell: nn.Module, *, batch_first: bool = True, return_sequences: bool = True) -> None:
        super().__init__()
        self.cell = cell
        self.batch_first = batch_first
        self.return_sequences = return_sequences
        self.input_size, self.output_size, self.state_size = cell.input_size, cell.output_size, cell.state_size

    def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run over a sequence (B, T, k), or (T, k) without a batch."""
        if input.ndim not in (2, 3) or input.shape[-1] != self.input_size:
            raise ValueError(f"input must have shape (B, T, {self.input_size}), got shape {tuple(input.shape)}")
        axis = 1 if self.batch_first and input.ndim == 3 else 0
        state: Any = None
        if hx is not None:
            wanted = (self.state_size,) if input.ndim == 2 else (input.shape[1 - axis], self.state_size)
            if tuple(hx.shape) not in (wanted, (*(1 for _ in wanted[1:]), self.state_size)):
                raise ValueError(f"hx must have shape {wanted}, got shape {tuple(hx.shape)}")
            state = self._split(hx)
        outputs = []
        for x in input.unbind(axis):
            y, state = self.cell(x, state)
            outputs.append(y)
        out = torch.stack(outputs, dim=axis) if self.return_sequences else outputs[-1]
        return out, torch.cat(tuple(state), dim=-1)

    def _split(self, hx: Tensor) -> Any:
        from organics_core import CellState

        parts = hx.split(self.output_size, dim=-1)
        return State(*parts) if len(parts) == 2 else CellState(*parts)
