"""Tensors that are more than their memory, derivatives of derivatives, and numbers that are none."""

from __future__ import annotations

import copy
import subprocess
import sys

import numpy as np
import pytest
from support import NEEDS_RECENT_TORCH, PATIENCE

torch = pytest.importorskip("torch", reason="torch is not installed")

import organics_torch as ot  # noqa: E402
from organics_core.cell import CellState  # noqa: E402
from organics_torch import native  # noqa: E402
from organics_torch.sequence import choose_implementation  # noqa: E402

pytestmark = pytest.mark.cpu
T, N, K, H = 5, 4, 3, 6
RATES = (0.6, 0.4, 0.5)
IMPLEMENTATIONS = ("auto", "function", "fused", "reference")


def make(implementation="auto", **options):
    if implementation == "fused" and native.load() is None:
        pytest.skip(f"the native library is {native.status()}")
    options = {"dtype": torch.float64, "seed": 3, "max_rates": RATES} | options
    return ot.ORGaNICs(K, H, implementation=implementation, **options)


def numbers(seed, *shape, dtype=torch.float64):
    return torch.as_tensor(np.random.default_rng(seed).standard_normal(shape)).to(dtype)


def close(one, other, rtol=1e-11):
    __tracebackhide__ = True
    assert one.shape == other.shape
    assert float((one - other).detach().abs().max()) <= rtol * (float(other.detach().abs().max()) + 1e-30)


def gradients(layer, x):
    layer.zero_grad()
    output, hn = layer(x)
    (output.square().sum() + sum(part.sum() for part in hn)).backward()
    return {name: parameter.grad for name, parameter in layer.named_parameters()}


def test_hooks_of_the_cells_fire():
    layer, seen = make(num_layers=2), []
    for cell in layer.cells:
        cell.register_forward_pre_hook(lambda cell, given: seen.append(given[0].shape))
        cell.register_full_backward_hook(lambda cell, inputs, outputs: seen.append("back"))
    layer(numbers(1, T, N, K).requires_grad_())[0].sum().backward()
    assert seen == [(T, N, K), (T, N, H), "back", "back"]


@pytest.fixture
def mesh():
    distributed = pytest.importorskip("torch.distributed", reason="torch was built without torch.distributed")
    distributed.init_process_group("gloo", rank=0, world_size=1, store=distributed.HashStore())
    yield distributed.device_mesh.init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


@NEEDS_RECENT_TORCH
@pytest.mark.parametrize("whole", [False, True])
def test_sharded_cell_by_cell(mesh, whole):
    """FSDP2 with one process: the gradients of one process."""
    from torch.distributed.fsdp import fully_shard

    layer, x = make(num_layers=2), numbers(1, T, N, K)
    wanted = gradients(copy.deepcopy(layer), x)
    for cell in layer.cells:
        fully_shard(cell, mesh=mesh)
    if whole:
        fully_shard(layer, mesh=mesh)
    for name, gradient in gradients(layer, x).items():
        close(gradient.full_tensor(), wanted[name])


@NEEDS_RECENT_TORCH
@pytest.mark.parametrize("options", [{"recurrent": "spectral"}, {"bidirectional": True, "bias": True, "proj_size": 2}])
def test_sharded_before_there_are_numbers(mesh, options):
    """FSDP2 of a layer on meta: its numbers are drawn into the shards, and are those of a new layer."""
    from torch.distributed.fsdp import fully_shard

    layer, wanted = make(device="meta", **options), make(seed=7, **options)
    for cell in [part for part in layer.modules() if isinstance(part, ot.ORGaNICsCell)]:
        fully_shard(cell, mesh=mesh)
    fully_shard(layer, mesh=mesh)
    layer.to_empty(device="cpu").reset_parameters(seed=7)
    x = numbers(1, T, N, K)
    close(layer(x)[0], wanted(x)[0])
    expected = gradients(wanted, x)
    for name, gradient in gradients(layer, x).items():
        close(gradient.full_tensor(), expected[name])


class Named(torch.Tensor):
    """A subclass."""


def fake(layer, x):
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True):
        output, _ = layer(x)
        output.sum().backward()
    return output


def fake_backward(layer, x):
    from torch._subclasses import FakeTensorMode

    output = layer(x)[0]
    with FakeTensorMode(allow_non_fake_inputs=True):
        output.sum().backward()
    return output


@pytest.mark.parametrize(
    "compute",
    [
        fake,
        fake_backward,
        lambda layer, x: layer.to("meta")(x.to("meta"))[0],
        lambda layer, x: layer(x.as_subclass(Named))[0],
        lambda layer, x: torch.func.vmap(lambda row: layer(row)[0], 1, 1)(x),
        lambda layer, x: torch.func.jvp(lambda x: layer(x)[0], (x,), (x,))[1],
        lambda layer, x: layer(torch.complex(x, -x).conj().imag)[0],
        lambda layer, x: layer(torch._efficientzerotensor(x.shape, dtype=x.dtype))[0],
    ],
    ids=["fake", "fake in the backward pass", "meta", "subclass", "vmap", "jvp", "negated", "zeros"],
)
def test_tensors_that_are_more_than_their_memory(compute):
    assert compute(make(), numbers(1, T, N, K)).shape == (T, N, H)


def test_negated_and_subclassed_numbers_are_read_as_they_are():
    layer, x = make(), numbers(1, T, N, K)
    wanted = layer(x)[0]
    assert torch.equal(layer(torch.complex(x, -x).conj().imag)[0], make("reference")(x)[0])
    close(layer(x.as_subclass(Named))[0].as_subclass(torch.Tensor), wanted)
    with pytest.raises(RuntimeError, match="xs is no ordinary tensor but Named on cpu"):
        make("function")(x.as_subclass(Named))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_many_cotangents_at_once(implementation):
    layer, x = make(implementation), numbers(1, T, N, K).requires_grad_()
    output, inputs = layer(x)[0], [x, *layer.parameters()]
    cotangents = numbers(2, 3, *output.shape)
    found = torch.autograd.grad(output, inputs, cotangents, is_grads_batched=True, retain_graph=True)
    for index, cotangent in enumerate(cotangents):
        for all_of_them, one in zip(
            found, torch.autograd.grad(output, inputs, cotangent, retain_graph=True), strict=True
        ):
            close(all_of_them[index], one)


def test_parameters_that_are_not_as_they_were():
    """Native code reads what the shapes promise: others go by the core, which broadcasts or says what is wrong."""
    layer, x = make(), numbers(1, T, N, K)
    cell = layer.cells[0]
    wanted = layer(x)[0]
    cell.theta_y = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    assert choose_implementation("auto", cell.fields(), x) == "reference"
    close(layer(x)[0], wanted)
    cell.w_by0 = torch.nn.Parameter(torch.zeros(2, 2, dtype=torch.float64))
    with pytest.raises(RuntimeError, match=r"size|shape"):
        layer(x)
    mixed = make()
    mixed.cells[0].w_r = torch.nn.Parameter(mixed.cells[0].w_r.detach().float())
    promoted = copy.deepcopy(mixed)
    promoted.cells[0].double()
    close(mixed(x)[0], promoted(x)[0])
    gone = make("fused")
    gone.cells[0].w_by0 = torch.nn.Parameter(gone.cells[0].w_by0.detach().clone())
    loss = gone(x)[0].sum()
    gone.cells[0].w_by0.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="w_by0 has no memory"):
        loss.backward()
    changed = make("fused")
    loss = changed(x)[0].sum()
    changed.cells[0].w_by0.data = torch.zeros(1, 1, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"w_by0 has shape \(1, 1\), not \(6, 6\)"):
        loss.backward()


FUZZ = """
import random, sys, torch, organics_torch as ot
from torch._subclasses import FakeTensorMode
rng = random.Random(int(sys.argv[1]))
class Named(torch.Tensor): pass
sizes = (0, 1, 2, 3, 4, 6)
def tensor(*shape):
    shape = shape if rng.random() < 0.97 else tuple(rng.choice(sizes) for _ in range(rng.randrange(5)))
    value = torch.rand(shape, dtype=rng.choice((torch.float32,) * 80 + (torch.float64, torch.float16, torch.int64)))
    kinds = [lambda v: v] * 150 + [
        lambda v: v.expand(3, *v.shape), lambda v: v.to("meta"), lambda v: v.as_subclass(Named),
        lambda v: v.to_sparse(), lambda v: v.T if v.ndim == 2 else v, lambda v: v.requires_grad_(),
        lambda v: torch.complex(v, v).conj().imag, lambda v: FakeTensorMode().from_tensor(v),
        lambda v: None, lambda v: v * float("nan"),
        lambda v: v.as_strided((3, 2), (1, 1)), lambda v: torch.nested.nested_tensor([v, v]), lambda v: "text",
    ]
    try:
        return rng.choice(kinds)(value)
    except (RuntimeError, TypeError, NotImplementedError):
        return value
T, N, K, H = 4, 3, 2, 6
done = raised = 0
for trial in range(int(sys.argv[2])):
    layer = ot.ORGaNICs(K, H, seed=0, implementation=rng.choice(("auto", "auto", "fused", "function")))
    cell = layer.cells[0]
    try:
        if rng.random() < 0.4:
            name = rng.choice(["w_zx", "w_r", "log_w", "w_by0", "theta_y", "sigma", "start_y"])
            value = tensor(*getattr(cell, name).shape)
            getattr(cell, name).data = value
        hx = None if rng.random() < 0.5 else tuple(tensor(1, N, H) for _ in range(4))
        if rng.random() < 0.7:
            output, hn = layer(tensor(T, N, K), hx)
            if rng.random() < 0.3:
                cell.w_by0.data = tensor(H, H)
            output.backward(tensor(*output.shape))
        else:
            w = [tensor(*s) for s in ((H, K), (H, H), (H, H), (H, K), (H, H), (H, H), (H, K), (H, H), (H, H))]
            rates = [tensor(H) for _ in range(4)]
            flags = [rng.random() < 0.5 for _ in range(3)]
            setup = ("auto", *flags, rng.choice((0, 1, -3, 100)), rng.choice((1, 2, -1)))
            xs, start, sigma = tensor(T, N, K), tensor(4, N, H), tensor()
            if rng.random() < 0.5:
                torch.ops.organics_torch.sequence(*setup, xs, start, sigma, *w, *rates)
            else:
                kept = [tensor(rng.choice((10, 1000, 5000)))]
                more = (kept, tensor(T, N, H), tensor(4, N, H), rng.random() < 0.5)
                torch.ops.organics_torch.sequence_backward(*setup, xs, sigma, *w, *rates, *more)
        done += 1
    except (Exception, MemoryError) as error:
        raised += 1
print(done, raised)
"""


@pytest.mark.parametrize("seed", range(2))
def test_no_input_crashes_the_process(seed):
    """Tensors of wrong shapes, dtypes, layouts, devices and kinds, wherever one goes in: an answer or an error.

    Not tensors without storage: torch's own operations crash on them.
    """
    command = [sys.executable, "-c", FUZZ, str(seed), "300"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr[-2000:]
    answered, raised = map(int, done.stdout.split())
    assert min(answered, raised) > 20


@pytest.mark.parametrize("variant", ["rectified_recurrence", "main"])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_second_derivatives(implementation, variant):
    """By gradgradcheck, in everything that has a gradient; the Hessian is not silently zero."""
    make(implementation)  # or skip
    options = {"variant": variant, "dtype": torch.float64, "seed": 1, "max_rates": RATES}
    layer = ot.ORGaNICs(1, 2, implementation=implementation, **options)
    x, hx = numbers(1, 2, 1, 1), [numbers(2 + i, 1, 1, 2).abs() + 0.1 for i in range(4)]
    inputs = [value.requires_grad_() for value in (x, *hx)]
    names = [name for name, _ in layer.named_parameters()]

    def compute(x, y, a, b0, b1, *parameters):
        for name, value in zip(names, parameters, strict=True):
            setattr(layer.cells[0], name.rpartition(".")[2], value)
        output, hn = layer(x, CellState(y, a, b0, b1))
        return output, *hn

    parameters = [parameter.detach().clone().requires_grad_() for parameter in layer.parameters()]
    parameters[names.index("cells.0.log_w")].data -= 0.5  # away from the kink of W = min(exp(V), 1)
    for name in names:
        delattr(layer.cells[0], name.rpartition(".")[2])
    assert torch.autograd.gradgradcheck(compute, (*inputs, *parameters), fast_mode=True, atol=1e-6)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_hessian(implementation):
    layer, x = make(implementation), numbers(1, 3, 2, K)

    def loss(x):
        return layer(x)[0].square().sum()

    step = 1e-5
    flat = x.flatten()
    columns = []
    for index in range(flat.numel()):
        moved = []
        for sign in (1, -1):
            at = flat.clone()
            at[index] += sign * step
            at = at.view_as(x).requires_grad_()
            moved.append(torch.autograd.grad(loss(at), at)[0].flatten())
        columns.append((moved[0] - moved[1]) / (2 * step))
    hessian = torch.autograd.functional.hessian(loss, x).reshape(flat.numel(), -1)
    assert float(hessian.abs().max()) > 1e-3
    close(hessian, torch.stack(columns), 1e-7)


def test_one_tensor_in_two_places_counts_in_both():
    found = []
    for implementation in ("function", "reference"):
        layer, x = make(implementation), numbers(1, T, N, K).requires_grad_()
        cell = layer.cells[0]
        cell.w_ba0 = cell.w_by0
        [first] = torch.autograd.grad(layer(x)[0].square().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), [x, *layer.parameters()], allow_unused=True))
    for one, other in zip(*found, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            close(one, other)


@pytest.mark.parametrize("variant", ["rectified_recurrence", "main"])
@pytest.mark.parametrize("recurrent", ["orthogonal", "identity"])
@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_nan_comes_through(implementation, precision, recurrent, variant):
    """In the outputs of its sequence from its step on, in the states, and in the gradients, as in nn.LSTM."""
    dtype = getattr(torch, precision)
    layer = make(implementation, dtype=dtype, recurrent=recurrent, variant=variant)
    x = numbers(1, T, N, K, dtype=dtype)
    x[2, 1, 0] = torch.nan
    output, hn = layer(x)
    wanted = torch.zeros(T, N, H, dtype=torch.bool)
    wanted[2:, 1] = True
    assert torch.equal(output.isnan(), wanted)
    for part in (hn.y, hn.b0, hn.b1):
        assert part[0, 1].isnan().all()
        assert part[0, [0, 2, 3]].isfinite().all()
    output.sum().backward()
    assert layer.cells[0].w_by0.grad.isnan().any()
    hx = layer.start_state(N)
    for name in CellState._fields:
        bad = {name: getattr(hx, name).clone()}
        bad[name][0, 0, 0] = torch.nan
        output, _ = layer(numbers(1, T, N, K, dtype=dtype), hx._replace(**bad))
        assert output[-1, 0].isnan().any()
        assert output[:, 1:].isfinite().all()


def test_start_states_are_ones_own():
    layer = make()
    for source in (layer.cells[0], layer):
        before = {name: value.clone() for name, value in layer.state_dict().items()}
        for batch in ((), (3,)):
            state = source.start_state(*batch)
            for part in state:
                part[0] = 7.0
            if source is not layer and batch:
                assert (state.y[1:] != 7.0).any()
        assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


class WithoutGradient(torch.autograd.Function):
    """The identity, whose backward pass says nothing."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, _):
        return None


@pytest.mark.parametrize("implementation", ["auto", "function", "parallel", "reference"])
@pytest.mark.parametrize("create_graph", [False, True])
def test_what_follows_has_no_gradient(implementation, create_graph):
    layer = make(implementation=implementation)
    output, _ = layer(numbers(1, T, N, K))
    loss = WithoutGradient.apply(output).sum()
    found = torch.autograd.grad(loss, list(layer.parameters()), allow_unused=True, create_graph=create_graph)
    assert not any(slope is not None and slope.any() for slope in found)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_rates": (1, 0.5, 0.1)}, r"max_rates \[1.0, 0.5, 0.1\], and this one has max_rates \[0.05"),
        ({"variant": "main"}, "variant 'main', and this one has variant 'rectified_recurrence'"),
        ({"recurrent": "spectral"}, "recurrent 'spectral', and this one has recurrent 'orthogonal'"),
        ({"recurrent": "identity"}, "recurrent 'identity', and this one has recurrent 'orthogonal'"),
    ],
)
@pytest.mark.parametrize("strict", [True, False])
def test_a_state_dict_of_other_settings(settings, words, strict):
    """Is refused, and changes nothing."""
    layer = ot.ORGaNICs(K, H, num_layers=2)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    with pytest.raises(ValueError, match=words):
        layer.load_state_dict(ot.ORGaNICs(K, H, num_layers=2, **settings).state_dict(), strict)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        (lambda: ot.DivisiveNorm(3, 4, sigma=0.5), lambda: ot.DivisiveNorm(3, 4), "sigma 0.5, and this one"),
        (lambda: ot.DivisiveNorm2d(1, 2, 3, stride=2), lambda: ot.DivisiveNorm2d(1, 2, 3), "stride 2"),
        (lambda: ot.DivisiveNorm2d(1, 2, 3, padding=1), lambda: ot.DivisiveNorm2d(1, 2, 3), "padding 1"),
        (lambda: ot.DivisiveNormalization(2, sigma=0.5), lambda: ot.DivisiveNormalization(2), "sigma 0.5"),
    ],
)
def test_a_state_dict_of_another_static_layer(one, other, words):
    same = one()
    assert same.load_state_dict(one().state_dict()).missing_keys == []
    without = {name: value for name, value in one().state_dict().items() if name != "_extra_state"}
    assert same.load_state_dict(without).missing_keys == []
    layer = other()
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    with pytest.raises(ValueError, match=words):
        layer.load_state_dict(one().state_dict())
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_settings_in_a_state_dict(tmp_path):
    """They pass through every format; a state_dict without them, or one of halves, loads; a damaged one does not."""
    layer, other = make(num_layers=2, dtype=torch.float32), make(num_layers=2, seed=4, dtype=torch.float32)
    state, x = layer.state_dict(), numbers(1, T, N, K, dtype=torch.float32)
    torch.save(state, tmp_path / "state.pt")
    safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    safetensors.save_file(state, tmp_path / "state.safetensors")
    old = {name: value for name, value in state.items() if not name.endswith("_extra_state")}
    assert len(old) == len(state) - 2
    read = torch.load(tmp_path / "state.pt", weights_only=True), safetensors.load_file(tmp_path / "state.safetensors")
    for given in (*read, old, {name: value.half() for name, value in state.items()}):
        for parameter in other.parameters():
            torch.nn.init.zeros_(parameter)
        other.load_state_dict(given)
        close(other(x)[0], layer(x)[0], 1e-2)
    wanted = layer(x)[0]
    assert torch.equal(torch.func.functional_call(other, state, (x,))[0], wanted)
    with pytest.raises(RuntimeError, match=r"Missing key.*w_r"):
        other.load_state_dict({name: value for name, value in old.items() if not name.endswith("w_r")})
    with pytest.raises(ValueError, match="damaged"):
        other.load_state_dict(state | {"cells.1._extra_state": torch.ones(5, dtype=torch.uint8)})
