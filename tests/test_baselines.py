"""The models of the comparison against their published equations, which each module has in numpy, too."""

from __future__ import annotations

import numpy as np
import pytest
from support import to_numpy

torch = pytest.importorskip("torch", reason="torch is not installed")

from organics_baselines import MODELS, count_parameters, make_model, urnn  # noqa: E402

pytestmark = pytest.mark.library("torch")

N, T, K, H, C = 3, 6, 2, 5, 4
OWN = [name for name in MODELS if not name.startswith("organics")]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def relu(x):
    return np.maximum(x, 0)


def numbers(model):
    return {name: to_numpy(value) for name, value in model.state_dict().items()}


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
    p, equations = numbers(model), MODELS[name].equations
    assert equations is not None, f"{name} has no published equations to be held to"
    expected = [p["readout.weight"] @ equations(p, row, model) + p["readout.bias"] for row in to_numpy(x)]
    assert np.allclose(to_numpy(model(x)), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_torch_has_its_own(kind):
    model, x = build(kind)
    own = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[kind](K, H, batch_first=True).double()
    own.load_state_dict(model.layer.state_dict())
    assert torch.equal(model(x), model.readout(own(x)[0][:, -1]))


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_gates_start_with_delays_up_to_the_longest(kind):
    n, longest = 4000, 100
    torch.manual_seed(0)
    layer = make_model(kind, 1, n, 2, num_layers=2, longest_delay=longest).layer
    for k in range(2):
        first, second = (getattr(layer, f"bias_{of}_l{k}").detach().reshape(-1, n).double() for of in ("ih", "hh"))
        keeps = first[1]  # f of the LSTM, u of the GRU
        delays = 1 + keeps.exp()  # 1 / (1 - sigmoid(b)) steps
        assert not second[1].any()
        assert 2 <= float(delays.min()) < 3
        assert longest - 1 < float(delays.max()) <= longest
        assert abs(float(delays.mean()) - (longest + 2) / 2) < 5 * (longest - 2) / (12 * n) ** 0.5
        if kind == "lstm":
            assert torch.equal(first[0], -keeps)
            assert not second[0].any()
        assert float(first[2].abs().max()) <= n**-0.5
        assert first[2].any()
        assert second[2].any()


@pytest.mark.parametrize(("wrong", "error"), [(2, ValueError), (0, ValueError), (10.5, TypeError), (True, TypeError)])
def test_bad_longest_delays_are_named(wrong, error):
    with pytest.raises(error, match="longest_delay must be"):
        make_model("lstm", 1, 4, 2, longest_delay=wrong)


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
        "october": 3 * H * (2 * H + K) + 4 * H,
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
    dense = urnn.matrix(numbers(model))
    assert np.allclose(dense @ dense.conj().T, np.eye(H), atol=1e-12)
    basis = torch.eye(H, dtype=torch.complex128)
    assert np.allclose(to_numpy(model.rotate(basis, model.constants())).T, dense, atol=1e-12)


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


def test_an_excitatory_share_that_is_no_number():
    with pytest.raises(ValueError, match="excitatory must be between 0 and 1, got 'a'"):
        make_model("ssn", K, 20, C, excitatory="a")


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


def test_higher_derivatives_of_the_fixed_point():
    """By differences: the gradient's own derivatives, forward ones, and both in turn; and no samples have none."""
    model, x = build("deq")
    x = x.requires_grad_()
    names, values = zip(*model.named_parameters(), strict=True)
    values = [value.detach().requires_grad_() for value in values]

    def logits(x, *values):
        return torch.func.functional_call(model, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradgradcheck(logits, (x, *values), atol=1e-6)
    assert torch.autograd.gradcheck(model, (x,), check_forward_ad=True)
    ahead, x = torch.ones_like(x), x.detach()
    gradient = torch.func.grad(lambda x: (model(x) ** 3).sum())
    _, found = torch.func.jvp(gradient, (x,), (ahead,))
    differences = (gradient(x + 1e-5 * ahead) - gradient(x - 1e-5 * ahead)) / 2e-5
    torch.testing.assert_close(found, differences, rtol=1e-6, atol=1e-8)
    empty = x[:0].requires_grad_()
    model(empty).sum().backward()
    assert empty.grad.shape == empty.shape


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
    for flat in to_numpy(x.flatten(1)):
        code = p["encoder.weight"] @ flat + p["encoder.bias"]
        second = normalized(p, "second", normalized(p, "first", code))
        logits.append(p["readout.weight"] @ second + p["readout.bias"])
        errors.append(sigmoid(p["decoder.weight"] @ code + p["decoder.bias"]) - flat)
    found, extra = model.training_outputs(x, x)
    assert np.allclose(to_numpy(found), logits, rtol=1e-10)
    assert torch.equal(found, model(x))
    assert extra.item() == pytest.approx(2 * np.mean(np.square(errors)), rel=1e-10)
    (found.square().sum() + extra).backward()
    for label, parameter in model.named_parameters():
        assert parameter.grad is not None, label
        assert torch.isfinite(parameter.grad).all(), label


def test_wrong_arguments():
    with pytest.raises(ValueError, match="unknown model 'perceptron'"):
        make_model("perceptron", K, H, C)
    with pytest.raises(TypeError, match="gated must be True or False, got 'no'"):
        make_model("antisymmetric", K, H, C, gated="no")
    with pytest.raises(TypeError, match="gru has no option 'epsilon'"):
        make_model("gru", K, H, C, epsilon=1.0)
    with pytest.raises(ValueError, match="hidden_size must be at least 1"):
        make_model("gru", K, 0, C)
    for name, option in (("ssn", "substeps"), ("mlp", "num_layers"), ("unicornn", "num_layers")):
        with pytest.raises(ValueError, match=f"{option} must be at least 1, got 0"):
            make_model(name, 1, 4, 2, **{option: 0})
    with pytest.raises(ValueError, match="contraction must be between 0 and 1"):
        make_model("deq", K, H, C, contraction=1.5)
    for name, option, value in (
        ("ssn", "rate", -0.1),
        ("ssn", "rate", 0.8),  # inhibitory rates would turn negative
        ("ssn", "power", float("nan")),
        ("ssn", "gain", -1.0),
        ("ssn", "strength", -1.0),
        ("wilsoncowan", "rate", 5.0),
        ("cornn", "dt", -1.0),
        ("unicornn", "dt", float("inf")),
        ("antisymmetric", "epsilon", float("nan")),
        ("lipschitz", "beta", 3.0),
        ("irnn", "input_std", -1.0),
        ("deq", "tol", -1.0),
        ("deq", "contraction", -1.0),
        ("deq", "max_iterations", 0),
        ("organics-static", "code", 0),
        ("organics-static", "reconstruction", -1.0),
    ):
        with pytest.raises(ValueError, match=f"^{option} must be"):
            make_model(name, K, H, C, **{option: value})


@pytest.mark.parametrize("name", ["ssn", "ssn5050"])
def test_rates_of_the_supralinear_network_are_not_negative(name):
    """At the largest rate of its Euler steps, which is that of inhibitory neurons that follow their input at once."""
    torch.manual_seed(0)
    model = make_model(name, K, 10, C, rate=0.5)
    constants, drive = model.constants(), model.drive(2 * torch.randn(8, 10, K))
    state = model.start(drive[:, 0])
    for step in drive.unbind(1):
        state = model.advance(step, state, constants)
        assert float(state.detach().min()) >= 0
