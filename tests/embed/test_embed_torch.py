"""ORGaNICs inside torchdiffeq, torchode, norse, ncps and Lightning."""

import numpy as np
import pytest
from embedding import IDENTITY, PROBLEM, T_FIXED, T_TRANSIENT, error, framework, record, rectified_transient

framework("torch", "torch", "torchdiffeq", "torchode", "norse", "ncps", "lightning")

import lightning  # noqa: E402
import norse.torch as norse  # noqa: E402
import torch  # noqa: E402
import torchdiffeq  # noqa: E402
import torchode  # noqa: E402
from ncps.torch import CfC  # noqa: E402

import organics_core as oc  # noqa: E402
from organics_simulators.lightning import LightningClassifier  # noqa: E402
from organics_simulators.torch import CircuitCell, Dynamics, FlatRNN, TrainedCell, flat_field, pack, unpack  # noqa: E402
from organics_torch import ORGaNICs, ORGaNICsCell  # noqa: E402

TIGHT = {"rtol": 1e-10, "atol": 1e-12}


def to_torch(circuit):
    return oc.Circuit(*(None if v is None else torch.as_tensor(v) for v in circuit))


CIRCUIT = to_torch(PROBLEM.circuit)
Z = torch.as_tensor(PROBLEM.z)


def diffeq(dynamics, t1, **options):
    y, a = torchdiffeq.odeint(
        dynamics, dynamics.start(), torch.tensor([0.0, t1], dtype=torch.float64), **{**TIGHT, **options}
    )
    return oc.State(y[-1].detach(), a[-1].detach())


def test_torchdiffeq():
    transient = error(diffeq(Dynamics(CIRCUIT, Z), T_TRANSIENT), PROBLEM.transient)
    fixed = error(diffeq(Dynamics(CIRCUIT, Z), T_FIXED), PROBLEM.fixed)
    record("torchdiffeq", transient, fixed, note="dopri5")
    assert transient < 1e-10
    assert fixed < 1e-9
    closed = Dynamics(to_torch(IDENTITY.circuit), torch.as_tensor(IDENTITY.z))
    assert error(diffeq(closed, T_FIXED), IDENTITY.fixed) < 1e-8


@pytest.mark.parametrize("variant", ["rectified", "rectified_recurrence"])
def test_torchdiffeq_variants(variant):
    found = diffeq(Dynamics(CIRCUIT, Z, variant=variant), T_TRANSIENT)
    assert error(found, rectified_transient(variant)) < 1e-8


def test_torchdiffeq_drive_of_time():
    ours = oc.simulate(
        PROBLEM.circuit, lambda t: PROBLEM.z * (1 + 200 * t), np.array([0.0, T_TRANSIENT]), rtol=1e-10, atol=1e-12
    )
    found = diffeq(Dynamics(CIRCUIT, lambda t: Z * (1 + 200 * t)), T_TRANSIENT)
    assert error(found, oc.State(*(part[-1] for part in ours.state))) < 1e-6


def test_torchdiffeq_learns_named_fields():
    dynamics = Dynamics(CIRCUIT, Z, learn=["w", "w_r"])
    times = torch.tensor([0.0, T_TRANSIENT], dtype=torch.float64)

    def loss():
        return torchdiffeq.odeint(dynamics, dynamics.start(), times, rtol=1e-9, atol=1e-11)[0][-1].sum()

    loss().backward()
    assert {name for name, p in dynamics.named_parameters() if p.grad is not None} == {"w", "w_r"}
    h = 1e-5
    with torch.no_grad():
        dynamics.w_r[1, 5] += h
        up = loss()
        dynamics.w_r[1, 5] -= 2 * h
        down = loss()
    np.testing.assert_allclose(dynamics.w_r.grad[1, 5], (up - down) / (2 * h), rtol=1e-5)


def test_backsolve_fails_late_and_the_stored_run_does_not():
    """Why the documentation steers users away from odeint_adjoint for long runs."""
    circuit = to_torch(IDENTITY.circuit)._replace(
        tau_y=torch.tensor(0.002, dtype=torch.float64), tau_a=torch.tensor(0.002, dtype=torch.float64)
    )

    def gradient(solve, taus):
        z = torch.as_tensor(IDENTITY.z).clone().requires_grad_()
        dynamics = Dynamics(circuit, Z)
        del dynamics._buffers["z"]
        dynamics.z = torch.nn.Parameter(z.detach().clone())
        times = torch.tensor([0.0, taus * 0.002], dtype=torch.float64)
        y, _ = solve(dynamics, dynamics.start(), times, rtol=1e-7, atol=1e-9)
        y[-1].sum().backward()
        return dynamics.z.grad

    z = torch.as_tensor(IDENTITY.z).clone().requires_grad_()
    oc.steady_state(circuit, z, method="closed_form").state.y.sum().backward()
    stored = gradient(torchdiffeq.odeint, 60.0)
    assert float((stored - z.grad).abs().max()) < 1e-5
    try:
        late = gradient(torchdiffeq.odeint_adjoint, 60.0)
    except AssertionError:  # torchdiffeq: "underflow in dt"
        return
    assert not float((late - z.grad).abs().max()) < 1e-2


def ode(t1, args, *, variant="main"):
    z = args[1]
    term = torchode.ODETerm(flat_field(variant=variant), with_args=True)
    solver = torchode.AutoDiffAdjoint(
        torchode.Dopri5(term=term), torchode.IntegralController(atol=1e-12, rtol=1e-10, term=term)
    )
    times = torch.tensor([0.0, t1], dtype=torch.float64).repeat(z.shape[0], 1)
    problem = torchode.InitialValueProblem(y0=pack(oc.resting_state(CIRCUIT, z)), t_eval=times)
    run = solver.solve(problem, args=args)
    assert bool((run.status == 0).all())
    return unpack(run.ys[:, -1])


def test_torchode():
    batch = torch.stack([Z, 0.5 * Z, -Z])
    found = ode(T_TRANSIENT, (CIRCUIT, batch))
    transient = error((found.y[0], found.a[0]), PROBLEM.transient)
    mirrored = error((-found.y[2], found.a[2]), PROBLEM.transient)
    settled = ode(T_FIXED, (CIRCUIT, batch))
    fixed = error((settled.y[0], settled.a[0]), PROBLEM.fixed)
    record("torchode", transient, fixed, note="Dopri5")
    assert transient < 1e-10
    assert mirrored < 1e-10
    assert fixed < 1e-9
    assert float((found.y[1] - found.y[0]).abs().max()) > 1e-3


def test_torchode_variants():
    found = ode(T_TRANSIENT, (CIRCUIT, Z[None]), variant="rectified")
    assert error((found.y[0], found.a[0]), rectified_transient("rectified")) < 1e-8


def test_norse_sequential_state():
    model = norse.SequentialState(torch.nn.Identity(), CircuitCell(CIRCUIT, dt=5e-5), torch.nn.Identity())

    def run(duration):
        state = None
        for _ in range(round(duration / 5e-5)):
            y, state = model(Z, state)
        return state[1], y

    state, y = run(T_TRANSIENT)
    transient = error(state, PROBLEM.transient)
    np.testing.assert_array_equal(y, state.y)
    fixed = error(run(0.15)[0], PROBLEM.fixed)
    record("norse", transient, fixed, note="SequentialState, rk4 of 0.05 ms")
    assert transient < 1e-7
    assert fixed < 1e-8


def test_norse_trained_cell_beside_spiking_neurons():
    torch.manual_seed(0)
    cell = ORGaNICsCell(6, 5, seed=0)
    model = norse.SequentialState(norse.LIFRecurrentCell(4, 6), TrainedCell(cell), torch.nn.Linear(5, 2))
    state = None
    for _ in range(8):
        out, state = model(50 * torch.randn(3, 4).abs(), state)  # enough for spikes, without which no gradient flows
    assert out.shape == (3, 2)
    out.sum().backward()
    assert all(p.grad is not None for p in model[2].parameters())
    assert float(cell.w_zx.grad.abs().sum()) > 0.01


def test_ncps_convention():
    rnn = FlatRNN(CircuitCell(CIRCUIT, dt=5e-4, substeps=20))
    x = Z.expand(2, 10, 8)
    out, hx = rnn(x)
    transient = error((hx[0, :8], hx[0, 8:]), PROBLEM.transient)
    _, late = rnn(Z.expand(2, 290, 8), hx)
    fixed = error((late[0, :8], late[0, 8:]), PROBLEM.fixed)
    record("ncps", transient, fixed, note="(out, hx) convention, rk4 of 0.025 ms")
    assert transient < 1e-7
    assert fixed < 1e-8
    first, hx1 = rnn(x[:, :4])
    second, hx2 = rnn(x[:, 4:], hx1)
    torch.testing.assert_close(torch.cat([first, second], 1), out)
    torch.testing.assert_close(hx2, hx)


@pytest.mark.parametrize("sequences", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_ncps_stands_in_for_cfc(batch_first, sequences):
    theirs = CfC(6, 5, batch_first=batch_first, return_sequences=sequences)
    ours = FlatRNN(TrainedCell(ORGaNICsCell(6, 5, seed=0)), batch_first=batch_first, return_sequences=sequences)
    for shape in ((3, 7, 6), (7, 6)) if batch_first else ((7, 3, 6),):
        x = torch.randn(shape)
        (out, hx), (like, like_hx) = ours(x), theirs(x)
        assert out.shape == like.shape
        assert hx.shape[:-1] == like_hx.shape[:-1]
        assert hx.shape[-1] == ours.state_size
    assert (ours.input_size, ours.output_size) == (theirs.input_size, theirs.output_size)


def test_ncps_trained_cell_is_the_layer():
    layer = ORGaNICs(6, 5, batch_first=True, seed=0)
    cell = ORGaNICsCell(6, 5, seed=0)
    own = dict(layer.named_parameters())
    for name, value in cell.named_parameters():
        match = next(v for k, v in own.items() if k.split(".")[-1] == name)
        value.data.copy_(match.data)
    x = torch.randn(3, 7, 6)
    torch.testing.assert_close(FlatRNN(TrainedCell(cell))(x)[0], layer(x)[0])


def test_lightning(tmp_path):
    torch.manual_seed(0)
    labels = torch.randint(2, (256,))
    x = torch.randn(256, 12, 3) * 0.3 + (2.0 * labels - 1)[:, None, None]
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, labels), batch_size=64)
    model = LightningClassifier(3, 8, 2, lr=0.02, max_rates=(0.5, 0.2, 0.5), seed=0)
    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(max_epochs=5, default_root_dir=tmp_path, **options)
    before = trainer.validate(model, loader, verbose=False)[0]
    trainer.fit(model, loader)
    after = trainer.validate(model, loader, verbose=False)[0]
    assert after["val_loss"] < 0.5 * before["val_loss"]
    assert after["val_accuracy"] > 0.95
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    again = LightningClassifier.load_from_checkpoint(tmp_path / "model.ckpt")
    torch.testing.assert_close(again(x), model(x))
    record("lightning", float("nan"), float("nan"), note="training, checkpoint; no simulator of its own")


def test_modules_do_not_share_the_circuit():
    """A state that one loads is not written into the circuit, nor into another module of it."""
    own = [part.clone() for part in CIRCUIT]
    one, other = Dynamics(CIRCUIT, Z), Dynamics(CIRCUIT, Z)
    doubled = Dynamics(CIRCUIT._replace(w=2 * CIRCUIT.w, sigma=2 * CIRCUIT.sigma), 2 * Z)
    one.load_state_dict(doubled.state_dict())
    for kept in (CIRCUIT, other.circuit):
        for part, before in zip(kept, own, strict=True):
            torch.testing.assert_close(part, before, rtol=0, atol=0)
    torch.testing.assert_close(one.w, 2 * CIRCUIT.w)
    torch.testing.assert_close(one.z, 2 * other.z)
    leaf = torch.ones(8, dtype=torch.float64, requires_grad=True)
    assert Dynamics(CIRCUIT._replace(sigma=leaf), Z).sigma is leaf


def test_errors_name_the_culprit():
    with pytest.raises(TypeError, match="torch"):
        Dynamics(PROBLEM.circuit, PROBLEM.z)
    with pytest.raises(ValueError, match="learn"):
        Dynamics(CIRCUIT, Z, learn=["weights"])
    with pytest.raises(ValueError, match="w_r"):
        Dynamics(CIRCUIT._replace(w_r=None), Z, learn=["w_r"])
    with pytest.raises(ValueError, match="hx must have shape"):
        FlatRNN(CircuitCell(CIRCUIT, dt=1e-4))(Z.expand(2, 3, 8), torch.zeros(2, 3).double())
    with pytest.raises(ValueError, match=r"hx must have shape \(2, 16\), got shape \(1, 2, 16\)"):  # as of nn.LSTM
        FlatRNN(CircuitCell(CIRCUIT, dt=1e-4))(Z.expand(2, 3, 8), torch.zeros(1, 2, 16).double())
    with pytest.raises(ValueError, match="exponential"):
        CircuitCell(CIRCUIT, dt=1e-4, method=oc.INTEGRATORS["exponential_euler"])
    with pytest.raises(TypeError, match="a torch module takes weights as dense arrays, but w is torch"):
        Dynamics(CIRCUIT._replace(w=CIRCUIT.w.to_sparse()), Z)
