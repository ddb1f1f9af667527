"""The models of the comparison against their published equations, written again in numpy."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from organics_baselines import MODELS, count_parameters, make_model  # noqa: E402

pytestmark = pytest.mark.library("torch")

N, T, K, H, C = 3, 6, 2, 5, 4
OWN = [name for name in MODELS if not name.startswith("organics")]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def relu(x):
    return np.maximum(x, 0)


def numbers(model):
    return {name: value.detach().numpy() for name, value in model.state_dict().items()}


def lstm(p, x, model):
    h = c = np.zeros(H)
    for step in x:
        gates = p["layer.weight_ih_l0"] @ step + p["layer.weight_hh_l0"] @ h
        gates = gates + p["layer.bias_ih_l0"] + p["layer.bias_hh_l0"]
        i, f, g, o = np.split(gates, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
    return h


def gru(p, x, model):
    h = np.zeros(H)
    for step in x:
        r, u, new = np.split(p["layer.weight_ih_l0"] @ step + p["layer.bias_ih_l0"], 3)
        rh, uh, nh = np.split(p["layer.weight_hh_l0"] @ h + p["layer.bias_hh_l0"], 3)
        u = sigmoid(u + uh)
        h = (1 - u) * np.tanh(new + sigmoid(r + rh) * nh) + u * h
    return h


def irnn(p, x, model):
    h = np.zeros(H)
    for step in x:
        h = relu(p["w"] @ h + p["v"] @ step + p["b"])
    return h


def antisymmetric(p, x, model):
    h = np.zeros(H)
    m = p["w"] - p["w"].T - 0.01 * np.eye(H)
    for step in x:
        inner = m @ h
        if model.gated:
            gate = sigmoid(inner + p["v"][H:] @ step + p["b"][H:])
        else:
            gate = 1.0
        h = h + 0.1 * gate * np.tanh(inner + p["v"][:H] @ step + p["b"][:H])
    return h


def cornn(p, x, model):
    y = z = np.zeros(H)
    u, w = p["recurrent.weight"][:, :H], p["recurrent.weight"][:, H:]
    for step in x:
        force = np.tanh(w @ y + u @ z + p["input.weight"] @ step + p["input.bias"])
        z = z + 0.042 * force - 0.042 * 2.7 * y - 0.042 * 4.7 * z
        y = y + 0.042 * z
    return y


def unicornn(p, x, model):
    ys, zs = np.zeros((3, H)), np.zeros((3, H))
    for step in x:
        below = step
        for layer in range(3):
            rate = 0.2 * (0.5 + 0.5 * np.tanh(p["c"][layer] / 2))
            inner = p["w"][layer] * ys[layer] + p[f"inputs.{layer}.weight"] @ below + p[f"inputs.{layer}.bias"]
            zs[layer] = zs[layer] - rate * (np.tanh(inner) + 1.0 * ys[layer])
            ys[layer] = ys[layer] + rate * zs[layer]
            below = ys[layer]
    return ys[-1]


def lipschitz(p, x, model):
    def made(m):
        return 0.25 * (m + m.T) + 0.75 * (m - m.T) - 0.001 * np.eye(H)

    a, w = made(p["m_a"]), made(p["m_w"])
    h = np.zeros(H)
    for step in x:
        h = h + 0.03 * (a @ h) + 0.03 * np.tanh(w @ h + p["input.weight"] @ step + p["input.bias"])
    return h


def unitary_matrix(p):
    """D3 R2 F^-1 D2 P R1 F D1 by dense matrices."""
    n = len(p["b"])
    fourier = np.exp(-2j * np.pi * np.outer(np.arange(n), np.arange(n)) / n) / np.sqrt(n)
    d1, d2, d3 = (np.diag(np.exp(1j * phase)) for phase in p["phases"])
    r1, r2 = (
        np.eye(n) - 2 * np.outer(v, v.conj()) / np.vdot(v, v).real
        for v in p["reflections"][:, 0] + 1j * p["reflections"][:, 1]
    )
    permute = np.eye(n)[p["permutation"]]
    return d3 @ r2 @ fourier.conj().T @ d2 @ permute @ r1 @ fourier @ d1


def urnn(p, x, model):
    w, v = unitary_matrix(p), p["v"][0] + 1j * p["v"][1]
    h = p["h0"][0] + 1j * p["h0"][1]
    for step in x:
        z = w @ h + v @ step
        h = np.where(np.abs(z) + p["b"] >= 0, (np.abs(z) + p["b"]) * z / np.abs(z), 0)
    return np.concatenate([h.real, h.imag])


def ssn(p, x, model):
    excitatory = int((p["signs"] > 0).sum())
    sign = np.r_[np.ones(excitatory), -np.ones(H - excitatory)]
    rate = np.where(sign > 0, 0.1, 0.2)
    w = np.abs(p["v"]) * sign[None, :]
    r = np.zeros(H)
    for step in x:
        h = p["input.weight"] @ step + p["input.bias"]
        for _ in range(model.substeps):
            r = r + rate * (-r + 1.0 * relu(w @ r + h) ** 2)
    return r


def wilsoncowan(p, x, model):
    e = 4
    a, theta = np.array([1.2] * e + [1.0]), np.array([2.8] * e + [4.0])

    def s(x):
        return 1 / (1 + np.exp(-a * (x - theta))) - 1 / (1 + np.exp(a * theta))

    w = np.abs(p["v"]) * np.array([1, 1, 1, 1, -1.0])
    k = s(1e3)  # the largest value of S
    r = np.zeros(H)
    for step in x:
        r = r + 0.1 * (-r + (k - r) * s(w @ r + p["w_in"] @ step + p["c"]))
    return r


def mlp(p, x, model):
    return relu(p["layers.0.weight"] @ x.ravel() + p["layers.0.bias"])


def deq(p, x, model):
    w = p["v"] * 0.9 / max(0.9, np.linalg.norm(p["v"], 2))
    z = np.zeros(H)
    for _ in range(1000):
        z = np.tanh(w @ z + p["input.weight"] @ x.ravel() + p["input.bias"])
    return z


EQUATIONS = {
    "lstm": lstm,
    "gru": gru,
    "irnn": irnn,
    "antisymmetric": antisymmetric,
    "cornn": cornn,
    "unicornn": unicornn,
    "lipschitz": lipschitz,
    "urnn": urnn,
    "ssn": ssn,
    "ssn5050": ssn,
    "wilsoncowan": wilsoncowan,
    "mlp": mlp,
    "deq": deq,
}


def build(name, **options):
    torch.manual_seed(7)
    model = make_model(name, K, H, C, steps=T, **options).double()
    x = torch.randn(N, T, K, dtype=torch.float64)
    return model, x


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in OWN),
        ("antisymmetric", {"gated": True}),
        ("ssn", {"substeps": 3}),
    ],
)
def test_published_equations(name, options):
    model, x = build(name, **options)
    with torch.no_grad():  # away from the special start: zero biases, the identity
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    p = numbers(model)
    expected = [p["readout.weight"] @ EQUATIONS[name](p, row, model) + p["readout.bias"] for row in x.numpy()]
    assert np.allclose(model(x).detach().numpy(), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_torch_has_its_own(kind):
    model, x = build(kind)
    own = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[kind](K, H, batch_first=True).double()
    own.load_state_dict(model.layer.state_dict())
    assert torch.equal(model(x), model.readout(own(x)[0][:, -1]))


def test_torch_has_the_relu_network():
    model, x = build("irnn")
    own = torch.nn.RNN(K, H, nonlinearity="relu", batch_first=True).double()
    biases = {"bias_ih_l0": torch.randn(H).double(), "bias_hh_l0": torch.zeros(H).double()}
    weights = {"weight_ih_l0": torch.randn(H, K).double(), "weight_hh_l0": model.w.detach() + 0.1}
    own.load_state_dict(weights | biases)
    model.load_state_dict(model.state_dict() | {"w": own.weight_hh_l0, "v": own.weight_ih_l0, "b": own.bias_ih_l0})
    assert torch.allclose(model(x), model.readout(own(x)[0][:, -1]), rtol=1e-12)


def test_parameters_are_counted():
    expected = {
        "lstm": 4 * H * (K + H + 2),
        "gru": 3 * H * (K + H + 2),
        "irnn": H * (H + K + 1),
        "antisymmetric": H * (H + K + 1),
        "cornn": H * (2 * H + K + 1),
        "unicornn": H * (K + 1) + 2 * H * (H + 1) + 2 * 3 * H,
        "lipschitz": H * (2 * H + K + 1),
        "urnn": 3 * H + 4 * H + 2 * H * K + H + 2 * H + H * C,  # the readout sees 2 H numbers
        "ssn": H * (H + K + 1),
        "wilsoncowan": H * (H + K + 1),
        "mlp": H * (K * T + 1),
        "deq": H * (H + K * T + 1),
    }
    for name, count in expected.items():
        assert count_parameters(build(name)[0]) == count + H * C + C, name


@pytest.mark.parametrize("name", OWN)
def test_interface(name):
    model, x = build(name)
    logits = model(x)
    assert logits.shape == (N, C)
    logits.square().sum().backward()
    for label, parameter in model.named_parameters():
        assert parameter.grad is not None, label
        assert torch.isfinite(parameter.grad).all(), label
    if MODELS[name].static:
        with pytest.raises(ValueError, match="no output at every step"):
            make_model(name, K, H, C, every_step=True)
    else:
        each = make_model(name, K, H, C, every_step=True).double()
        each.load_state_dict(model.state_dict())
        assert each(x).shape == (N, T, C)
        assert torch.allclose(each(x)[:, -1], model(x))
        assert torch.allclose(each(x)[:, 2], model(x[:, :3]))


@pytest.mark.parametrize("name", ["ssn", "wilsoncowan", "deq", "urnn", "unicornn"])
def test_gradients(name):
    model, x = build(name)
    x = x[:1, :, :]
    parameters = dict(model.named_parameters())
    names = [label for label in parameters if not label.startswith("readout")]

    def logits(*values):
        return torch.func.functional_call(model, dict(zip(names, values, strict=True)), (x,))

    values = [parameters[label].detach().clone().requires_grad_() for label in names]
    assert torch.autograd.gradcheck(logits, values, eps=1e-6, atol=1e-6)


def test_unitary_matrix():
    model, _ = build("urnn")
    dense = unitary_matrix(numbers(model))
    assert np.allclose(dense @ dense.conj().T, np.eye(H), atol=1e-12)
    basis = torch.eye(H, dtype=torch.complex128)
    assert np.allclose(model.rotate(basis, model.constants()).detach().numpy().T, dense, atol=1e-12)


def test_identity_start():
    model, _ = build("irnn")
    assert torch.equal(model.w, torch.eye(H, dtype=torch.float64))


@pytest.mark.parametrize(("name", "count"), [("ssn", 16), ("ssn5050", 10), ("wilsoncowan", 16)])
def test_excitatory_share_and_dales_law(name, count):
    model = make_model(name, K, 20, C)
    assert int((model.signs > 0).sum()) == count
    weights = model.constants()[0].T
    assert (weights[:, :count] >= 0).all()
    assert (weights[:, count:] <= 0).all()


def test_fixed_point_reports():
    model, x = build("deq")
    z = model.equilibrium(x)
    again = torch.tanh(z @ model.weights().T + model.input(x.flatten(1)))
    assert float((z - again).detach().abs().max()) < 1e-13
    assert 1 < model.iterations < 300
    assert model.residual < 1e-13
    short, x = build("deq", max_iterations=2)
    short(x)
    assert short.iterations == 2
    assert short.residual > 1e-6


def test_organics_behind_the_interface():
    x = torch.rand(N, T, K)
    assert make_model("organics", K, H, C)(x).shape == (N, C)
    assert make_model("organics", K, H, C, every_step=True)(x).shape == (N, T, C)


def normalized(p, name, x):
    """The static layer in closed form: squared rates (b z)^2 / ((b0 sigma)^2 + W (b z)^2) where z > 0."""
    z = p[f"{name}.w_zx"] @ x
    gated = sigmoid(p[f"{name}.w_bx"] @ x) * z / np.linalg.norm(z)
    pool = sigmoid(p[f"{name}.beta"]) ** 2 + np.exp(p[f"{name}.log_w"]) @ gated**2
    return relu(gated) ** 2 / pool


def test_static_organics_behind_the_interface():
    model, x = build("organics-static", code=3, reconstruction=2.0)
    p = numbers(model)
    logits, errors = [], []
    for flat in x.flatten(1).numpy():
        code = p["encoder.weight"] @ flat + p["encoder.bias"]
        second = normalized(p, "second", normalized(p, "first", code))
        logits.append(p["readout.weight"] @ second + p["readout.bias"])
        errors.append(sigmoid(p["decoder.weight"] @ code + p["decoder.bias"]) - flat)
    found, extra = model.training_outputs(x, x)
    assert np.allclose(found.detach().numpy(), logits, rtol=1e-10)
    assert torch.equal(found, model(x))
    assert extra.item() == pytest.approx(2 * np.mean(np.square(errors)), rel=1e-10)
    (found.square().sum() + extra).backward()
    for label, parameter in model.named_parameters():
        assert parameter.grad is not None, label
        assert torch.isfinite(parameter.grad).all(), label


def test_wrong_arguments():
    with pytest.raises(ValueError, match="unknown model 'perceptron'"):
        make_model("perceptron", K, H, C)
    with pytest.raises(TypeError, match="gru has no option 'epsilon'"):
        make_model("gru", K, H, C, epsilon=1.0)
    with pytest.raises(ValueError, match="hidden_size must be at least 1"):
        make_model("gru", K, 0, C)
    with pytest.raises(ValueError, match="contraction must be between 0 and 1"):
        make_model("deq", K, H, C, contraction=1.5)
