"""A layer step by step by :meth:`organics_torch.ORGaNICs.stream`: the numbers of the layer, or a sentence."""

from __future__ import annotations

import copy
import itertools
import pickle

import numpy as np
import pytest
from support import ELSEWHERE, NEEDS_RECENT_TORCH

torch = pytest.importorskip("torch", reason="torch is not installed")

import organics_torch as ot  # noqa: E402
from organics_core.cell import CellState  # noqa: E402
from organics_torch import native  # noqa: E402

T, N, K, H = 11, 5, 3, 6
IMPLEMENTATIONS = ("fused", "reference")


def make(implementation="auto", hidden=H, **options):
    if implementation == "fused" and torch.get_default_device().type != "cpu":
        pytest.skip(f"{ELSEWHERE}native code runs on the CPU")
    if implementation == "fused" and native.load() is None:
        pytest.skip(f"the native library is {native.status()}")
    options = {"dtype": torch.float64, "seed": 3, "max_rates": (0.6, 0.4, 0.5)} | options
    return ot.ORGaNICs(K, hidden, implementation=implementation, **options)


def numbers(seed, *shape, dtype=torch.float64):
    return torch.as_tensor(np.random.default_rng(seed).standard_normal(shape)).to(dtype)


def by_the_core(layer, x, hx=None):
    """The layer's step for step, by the core's under autograd."""
    layer = copy.deepcopy(layer)
    layer.implementation = "reference"
    with torch.no_grad():
        return layer(x, hx)


def assert_goes_as(stream, x, wanted, state, rtol):
    """Every output as the sequence's, and the state after the last step as its last."""
    __tracebackhide__ = True
    found = torch.stack([stream(row) for row in x])
    for one, other in zip((found, *stream.state), (wanted, *state), strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        assert float((one - other).abs().max()) <= rtol * float(other.abs().max())


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"recurrent": "identity", "variant": "main", "num_layers": 2},
        {"recurrent": "spectral", "bias": True, "num_layers": 3, "proj_size": 2},
        {"hidden": 33, "learn_rates": False, "num_layers": 2, "dropout": 0.5},  # in a stream nothing is dropped
    ],
    ids=["one", "identity", "biases and projections", "odd"],
)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_steps_are_those_of_the_layer(implementation, options, precision):
    dtype = getattr(torch, precision)
    layer = make(implementation, dtype=dtype, **options)
    for name, value in layer.named_parameters():
        if "bias" in name:
            value.data = numbers(4, *value.shape, dtype=dtype)
    x = numbers(1, T, N, K, dtype=dtype)
    stream = layer.stream(N)
    assert stream.implementation == implementation
    wanted, state = by_the_core(layer.eval(), x)
    rtol = 1e-12 if precision == "float64" else 2e-5
    assert_goes_as(stream, x, wanted, state, rtol)
    stream.reset(state)  # on from there, as the layer does
    wanted, state = by_the_core(layer, -x, state)
    assert_goes_as(stream, -x, wanted, state, rtol)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("batch", [None, 1, 67])
def test_one_and_many_sequences(implementation, batch, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    layer = make(implementation, num_layers=2)
    x = numbers(2, T, *(() if batch is None else (batch,)), K)
    hx = CellState(*(0.5 + 0.1 * part for part in by_the_core(layer, x)[1]))
    assert_goes_as(layer.stream(batch, hx), x, *by_the_core(layer, x, hx), 1e-12)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_what_a_stream_gave_stays_and_its_start_comes_back(implementation):
    layer, x = make(implementation), numbers(1, T, N, K)
    stream = layer.stream(N)
    first, state = stream(x[0]), stream.state
    kept = [value.clone() for value in (first, *state)]
    later = stream(x[1])
    assert all(torch.equal(one, other) for one, other in zip((first, *state), kept, strict=True))
    stream.reset()
    assert torch.equal(stream(x[0]), first)
    assert torch.equal(stream(x[1]), later)
    for part in stream.state:
        part.fill_(1e3)  # a copy
    stream.reset(state)
    for part in state:
        part.fill_(1e3)  # copied
    assert torch.equal(stream(x[1]), later)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_it_keeps_the_parameters_it_was_made_from(implementation):
    """However they are changed, in whole: also the weights that are not derived from others."""
    layer, x = make(implementation, num_layers=2, bias=True, proj_size=2), numbers(1, T, N, K)
    stream, before = layer.stream(N), by_the_core(layer, x)
    for value in (*layer.parameters(), *layer.buffers()):
        value.data.mul_(0.5)
    assert_goes_as(stream, x, *before, 1e-12)
    assert_goes_as(layer.stream(N), x, *by_the_core(layer, x), 1e-12)
    stream.reset()
    assert_goes_as(stream, x, *before, 1e-12)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_hooks_that_make_parameters_are_called(implementation):
    """A mask of torch's pruning, applied by a hook, after the parameters behind it were trained."""
    from torch.nn.utils import prune

    layer, x = make(implementation, num_layers=2, proj_size=2), numbers(1, T, N, K)
    for part, name in ((layer.cells[0], "w_zx"), (layer.cells[1], "log_w"), (layer.projections[1], "weight")):
        prune.random_unstructured(part, name, amount=0.5)
        with torch.no_grad():
            getattr(part, f"{name}_orig").mul_(0.5)
    with torch.no_grad():
        stream, (wanted, state) = layer.stream(N), layer(x)
    assert_goes_as(stream, x, wanted, state, 1e-12)


@NEEDS_RECENT_TORCH
@pytest.mark.cpu
def test_sharded_cell_by_cell():
    distributed = pytest.importorskip("torch.distributed", reason="torch was built without torch.distributed")
    from torch.distributed.fsdp import fully_shard

    layer, x = make(num_layers=2), numbers(1, T, N, K)
    wanted = by_the_core(layer, x)
    distributed.init_process_group("gloo", rank=0, world_size=1, store=distributed.HashStore())
    try:
        mesh = distributed.device_mesh.init_device_mesh("cpu", (1,))
        for cell in layer.cells:
            fully_shard(cell, mesh=mesh)
        assert_goes_as(layer.stream(N), x, *wanted, 1e-12)
    finally:
        distributed.destroy_process_group()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_inputs_of_any_strides_and_no_numbers(implementation):
    layer, x = make(implementation), numbers(1, T, N, K)
    wanted = [layer.stream(N)(row) for row in x]
    turned = x.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert torch.equal(layer.stream(N)(turned[0]), wanted[0])
    assert torch.equal(layer.stream(N)(x[0, :1].expand(N, K))[2], layer.stream()(x[0, :1])[0])
    stream, row = layer.stream(N), x[0].clone()
    row[2, 1] = torch.nan
    found = stream(row).isnan().all(1).tolist()
    assert found == [False, False, True, False, False]  # as in the layer: in its own sequence
    stream.reset()
    assert torch.equal(stream(x[0]), wanted[0])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_within_autocast_and_inference_mode(implementation):
    layer, x = make(implementation, dtype=torch.float32, proj_size=2), numbers(1, T, N, K, dtype=torch.float32)
    device = x.device.type
    with torch.autocast(device, dtype=torch.bfloat16), torch.inference_mode():
        stream = layer.stream(N)
        found = stream(x[0].bfloat16())
        assert found.dtype == torch.bfloat16
        assert torch.equal(found, layer(x[:1].bfloat16())[0][0])
    stream.reset()
    assert torch.equal(stream(x[0]), layer.stream(N)(x[0]))
    assert not stream(x[1]).is_inference()


@pytest.mark.cpu
def test_the_default_device_is_not_where_the_layer_is():
    for implementation, projected in itertools.product(("auto", "reference"), (0, 2)):
        layer, x = make(implementation, proj_size=projected), numbers(1, T, N, K)
        with torch.device("meta"):
            stream = layer.stream(N)
            found = [stream(row) for row in x]
            state = stream.state
        wanted, last = by_the_core(layer, x)
        assert torch.allclose(torch.stack(found), wanted, rtol=1e-12)
        assert torch.allclose(state.b1, last.b1, rtol=1e-12)


def test_half_precision():
    layer, x = make(dtype=torch.bfloat16), numbers(1, T, N, K, dtype=torch.bfloat16)
    stream = layer.stream(N)
    assert stream.implementation == "reference"
    assert torch.equal(torch.stack([stream(row) for row in x]), layer(x)[0])


@pytest.mark.parametrize(
    ("x", "error", "words"),
    [
        ([[0.0] * K] * N, TypeError, "x must be a torch tensor, got list"),
        (torch.zeros(N, K, device="cpu"), TypeError, "x has dtype torch.float32 but the parameters have torch.float64"),
        (numbers(1, N, K).to("meta"), ValueError, "x is on meta but the parameters are on"),
        (numbers(1, K), ValueError, r"x must have shape \(5, 3\), got shape \(3,\)"),
        (numbers(1, 1, N, K), ValueError, r"x must have shape \(5, 3\), got shape \(1, 5, 3\)"),
        (numbers(1, 1, K), ValueError, r"x must have shape \(5, 3\), got shape \(1, 3\)"),
        (numbers(1, N, K).requires_grad_(), RuntimeError, "a stream gives no gradients, and x requires one"),
        (numbers(1, N, K).to_sparse(), RuntimeError, "x is no ordinary tensor but Tensor on"),
    ],
)
def test_wrong_inputs(x, error, words):
    """Refused, and without a trace in the state."""
    stream = make().stream(N)
    before = stream.state
    with pytest.raises(error, match=words):
        stream(x)
    assert all(torch.equal(one, other) for one, other in zip(stream.state, before, strict=True))


def test_wrong_states():
    layer = make(num_layers=2)
    stream, state = layer.stream(N), layer.start_state(N)
    for hx, error, words in (
        (state[:2], TypeError, "in place of an LSTM's"),
        (layer.start_state(), ValueError, r"hx.y must have shape \(2, 5, 6\), got shape \(2, 6\)"),
        (CellState(*(part.float() for part in state)), TypeError, "hx.y has dtype torch.float32"),
        (state._replace(b0=state.b0.requires_grad_()), RuntimeError, "no gradients, and hx.b0 requires one"),
    ):
        with pytest.raises(error, match=words):
            stream.reset(hx)
        with pytest.raises(error, match=words):
            layer.stream(N, hx)
    with torch.no_grad():
        stream.reset(state)  # nobody asks for gradients here


@pytest.mark.parametrize(
    ("options", "batch", "error", "words"),
    [
        ({"bidirectional": True}, 1, ValueError, "the layer is bidirectional: its second direction begins at the end"),
        ({}, 0, ValueError, "batch_size must be at least 1"),
        ({}, 1.5, TypeError, "batch_size must be an integer"),
        ({"device": "meta"}, 1, RuntimeError, "the start state is no ordinary tensor but Tensor on meta"),
        ({"implementation": "fused", "dtype": torch.bfloat16}, 1, RuntimeError, "'fused' needs float32 or float64"),
    ],
)
def test_what_no_stream_can_be_made_of(options, batch, error, words):
    with pytest.raises(error, match=words):
        make(**options).stream(batch)


def test_copies_transforms_and_graphs():
    """None can hold a stream, which says so; in compiled code it is called as it is."""
    layer, x = make(), numbers(1, T, N, K)
    stream = layer.stream(N)
    for copied in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match=r"make another by layer.stream\(hx=stream.state\)"):
            copied(stream)
    with pytest.raises(RuntimeError, match="a graph is being recorded"):
        torch.jit.trace(stream.__call__, x[0])
    with pytest.raises(RuntimeError, match=r"a torch.func transform is around it"):
        torch.func.vmap(stream)(x)
    with torch.autograd.forward_ad.dual_level(), pytest.raises(RuntimeError, match="forward derivatives are being"):
        stream(torch.autograd.forward_ad.make_dual(x[0], x[1]))
    wanted = torch.stack([2 * layer.stream(N)(x[0])] * 2)
    compiled = torch.compile(lambda x: 2 * stream(x), backend="eager")
    stream.reset()
    first = compiled(x[0])
    stream.reset()
    assert torch.equal(torch.stack([first, compiled(x[0])]), wanted)


def test_switched_off(monkeypatch):
    """Without native code the core's step is taken, and says so."""
    monkeypatch.setenv(native.VARIABLE, "0")
    layer, x = make(), numbers(1, T, N, K)
    stream = layer.stream(N)
    assert stream.implementation == "reference"
    assert_goes_as(stream, x, *by_the_core(layer, x), 1e-12)
