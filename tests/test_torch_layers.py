"""The recurrent layers: every implementation gives the core's numbers, and what nn.LSTM's users expect works."""

from __future__ import annotations

import copy
import itertools
import pickle
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from support import ELSEWHERE, NEEDS_RECENT_TORCH, PATIENCE, numpy_tree, to_numpy

torch = pytest.importorskip("torch", reason="torch is not installed")

import organics_torch as ot  # noqa: E402
from organics_core.cell import CellParameters, CellState, cell_sequence, cell_step, init_cell  # noqa: E402
from organics_torch import native, plain  # noqa: E402
from organics_torch.sequence import choose_implementation  # noqa: E402

T, N, K, H = 11, 5, 3, 6
RATES = (0.6, 0.4, 0.5)  # large, so that a wrong term shows
IMPLEMENTATIONS = ("function", "fused", "reference")


def skip_without(implementation):
    if implementation == "fused" and torch.get_default_device().type != "cpu":
        pytest.skip(f"{ELSEWHERE}native code runs on the CPU")
    if implementation == "fused" and native.load() is None:
        pytest.skip(f"the native library is {native.status()}")


def make(**options):
    options = {"dtype": torch.float64, "seed": 3, "max_rates": RATES} | options
    return ot.ORGaNICs(K, H, **options)


def numbers(seed, *shape, dtype=torch.float64):
    return torch.as_tensor(np.random.default_rng(seed).standard_normal(shape)).to(dtype)


def start(layers=1, batch=N, dtype=torch.float64, seed=5):
    rng = np.random.default_rng(seed)
    return CellState(
        *(torch.as_tensor(rng.uniform(-0.2, 1, (layers, batch, H))).to(dtype).requires_grad_() for _ in range(4))
    )


def loss_of(output, hn):
    """Touches every entry of the output and of the last state differently."""
    total = sum((index + 1) * (part * part).sum() for index, part in enumerate(hn))
    if output is not None:
        total = total + (output * numbers(9, *output.shape, dtype=output.dtype)).sum()
    return total


def run(layer, x, hx, **options):
    x = x.detach().clone().requires_grad_()
    hx = CellState(*(part.detach().clone().requires_grad_() for part in hx))
    output, hn = layer(x, hx, **options)
    gradients = torch.autograd.grad(loss_of(output, hn), [x, *hx, *layer.parameters()])
    return ([] if output is None else [output]) + [*hn], gradients


def core(layer, x, hx, outputs=True):
    """The same by organics_core alone, differentiated by autograd."""
    x = x.detach().clone().requires_grad_()
    hx = CellState(*(part.detach().clone().requires_grad_() for part in hx))
    xs, last = x, []
    for index, cell in enumerate(layer.cells):
        state = CellState(*(part[index] for part in hx))
        options = {"max_rates": cell.max_rates, "variant": cell.variant}
        state, xs = cell_sequence(cell.fields(), state, xs, **options)
        last.append(state)
    hn = CellState(*(torch.stack(parts) for parts in zip(*last, strict=True)))
    output = xs if outputs else None
    gradients = torch.autograd.grad(loss_of(output, hn), [x, *hx, *layer.parameters()])
    return ([xs] if outputs else []) + [*hn], gradients


def assert_same(found, wanted, rtol):
    __tracebackhide__ = True
    for parts, others in zip(found, wanted, strict=True):
        for one, other in zip(parts, others, strict=True):
            assert one.dtype == other.dtype
            scale = float(other.detach().abs().max()) + 1e-30
            assert float((one - other).detach().abs().max()) <= rtol * scale


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("recurrent", ["orthogonal", "identity", "spectral"])
@pytest.mark.parametrize("variant", ["rectified_recurrence", "main"])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_values_and_gradients_are_the_cores(implementation, variant, recurrent, precision):
    skip_without(implementation)
    dtype = getattr(torch, precision)
    rtol = 1e-12 if precision == "float64" else 2e-5
    x, hx = numbers(1, T, N, K, dtype=dtype), start(2, dtype=dtype)
    settings = [(True, None, True), (False, 4, False), (True, 1, True), (False, 50, True), (False, None, False)]
    for learn, every, outputs in settings[: 1 if implementation == "reference" else None]:
        layer = make(
            num_layers=2, implementation=implementation, variant=variant, recurrent=recurrent, learn_rates=learn,
            dtype=dtype, checkpoint_every=every,
        )  # fmt: skip
        assert_same(run(layer, x, hx, outputs=outputs), core(layer, x, hx, outputs), rtol)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("steps", "batch", "inputs", "hidden"), [(1, 1, 1, 1), (40, 67, 20, 33), (3, 130, 2, 17)])
def test_odd_sizes(implementation, steps, batch, inputs, hidden):
    """Sizes that fill neither a vector register nor a block of sequences."""
    skip_without(implementation)
    layer = ot.ORGaNICs(inputs, hidden, implementation=implementation, dtype=torch.float64, seed=0, max_rates=RATES)
    reference = copy.deepcopy(layer)
    reference.implementation = "reference"
    x = numbers(2, steps, batch, inputs)
    assert_same(run(layer, x, layer.start_state(batch)), run(reference, x, layer.start_state(batch)), 1e-12)


@pytest.mark.parametrize("every", [None, 7])
@pytest.mark.parametrize("onednn", [False, True])
def test_chunks_that_do_not_fill_the_sequence_and_both_kinds_of_product(monkeypatch, onednn, every):
    """The plain implementation takes some steps at once, and large products from oneDNN where that is."""
    monkeypatch.setattr(plain, "_CHUNK_NUMBERS", 4 * N * H)
    monkeypatch.setattr(plain, "_CHUNK_NUMBERS_ELSEWHERE", 4 * N * H)
    monkeypatch.setattr(plain, "_LARGE", 0 if onednn else 1 << 60)
    if onednn and plain._linear is None:
        assert not torch.backends.mkldnn.is_available()
        pytest.skip(f"{ELSEWHERE}torch was built without oneDNN")
    if onednn and torch.get_default_device().type != "cpu":
        pytest.skip(f"{ELSEWHERE}oneDNN multiplies on the CPU")
    dtype = torch.float32 if onednn else torch.float64
    layer = make(implementation="function", checkpoint_every=every, dtype=dtype)
    x, hx = numbers(1, T, N, K, dtype=dtype), start(dtype=dtype)
    assert_same(run(layer, x, hx), core(layer, x, hx), 2e-5 if onednn else 1e-12)


@pytest.mark.cpu
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("steps", "batch"), [(T, N), (80, 100)])  # with buffers that are lent again, too
def test_the_default_device_is_not_where_the_layer_is(implementation, steps, batch):
    """``torch.set_default_device`` says where new tensors go, not where those of a layer on the CPU are."""
    skip_without(implementation)
    layer, x = make(implementation=implementation), numbers(1, steps, batch, K)

    def gradients():
        return torch.autograd.grad(layer(x)[0].square().sum(), list(layer.parameters()))

    wanted = gradients()
    with torch.device("meta"):
        found = gradients()
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("implementation", ["function", "fused"])
@pytest.mark.parametrize("shape", [(), (H,)])
def test_sigma_of_every_neuron(implementation, shape):
    skip_without(implementation)
    layer = make(implementation=implementation)
    layer.cells[0].sigma = numbers(7, *shape).abs() + 0.5
    x, hx = numbers(1, T, N, K), start()
    assert_same(run(layer, x, hx), core(layer, x, hx), 1e-12)


@pytest.mark.parametrize("implementation", ["function", "fused"])
def test_modulators_at_zero_and_silent_inputs(implementation):
    """Where a <= 0 its root has no derivative, and nothing may become NaN."""
    skip_without(implementation)
    layer = make(implementation=implementation)
    x, hx = torch.zeros(T, N, K, dtype=torch.float64), start()
    hx = hx._replace(a=torch.zeros_like(hx.a) - 0.1 * (torch.arange(H) % 2))
    assert_same(run(layer, x, hx), core(layer, x, hx), 1e-12)


@pytest.mark.parametrize("implementation", ["function", "fused"])
def test_gradcheck(implementation):
    skip_without(implementation)
    layer = make(implementation=implementation)
    with torch.no_grad():  # away from the kink of min(exp(V), 1), where training starts
        layer.cells[0].log_w -= 0.1
    names = [name for name, _ in layer.named_parameters()]
    hx = start(seed=8)

    def function(x, y, a, b0, b1, *parameters):
        named = dict(zip(names, parameters, strict=True))
        output, hn = torch.func.functional_call(layer, named, (x, CellState(y, a, b0, b1)))
        return output, *hn

    x = numbers(4, 3, 2, K).requires_grad_()
    parts = [part.detach()[:, :2].clone().requires_grad_() for part in hx]
    assert torch.autograd.gradcheck(function, (x, *parts, *layer.parameters()), fast_mode=True)


def test_transforms_of_torch_func():
    layer = make()
    x = numbers(4, 4, T, N, K)
    assert torch.allclose(torch.func.vmap(lambda x: layer(x)[0])(x), torch.stack([layer(part)[0] for part in x]))
    gradient = torch.func.grad(lambda x: layer(x)[0].square().sum())(x[0])
    leaf = x[0].clone().requires_grad_()
    layer(leaf)[0].square().sum().backward()
    assert torch.allclose(gradient, leaf.grad, rtol=1e-12)


def test_retained_graphs_and_interleaved_passes_keep_their_own_buffers():
    layer = ot.ORGaNICs(1, 64, implementation="auto", seed=0)
    first, second = numbers(1, 60, 32, 1, dtype=torch.float32), numbers(2, 60, 32, 1, dtype=torch.float32)

    def gradients(loss, retain):
        return torch.autograd.grad(loss, list(layer.parameters()), retain_graph=retain)

    alone = [gradients(layer(x)[0].square().sum(), False) for x in (first, second)]
    one = layer(first)[0].square().sum()
    two = layer(second)[0].square().sum()
    found = [gradients(one, True), gradients(two, False), gradients(one, False)]
    for got, wanted in zip(found, (alone[0], alone[1], alone[0]), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


def test_cell_is_one_step_of_the_core():
    cell = ot.ORGaNICsCell(K, H, dtype=torch.float64, seed=1, max_rates=RATES)
    x, state = numbers(1, N, K), CellState(*(part[0] for part in start()))
    found = cell(x, state)
    wanted = cell_step(cell.fields(), state, x, max_rates=cell.max_rates)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    layer = make(seed=1)
    layer.cells[0].load_state_dict(cell.state_dict())
    _, hn = layer(x[None])
    assert all(torch.allclose(a[0], b, rtol=1e-12) for a, b in zip(hn, cell(x), strict=True))
    assert cell(x[0]).y.shape == (H,)


def test_numpy_gives_the_same():
    layer = make()
    x = numbers(1, T, N, K)
    cell = layer.cells[0]
    fields, state = CellParameters(*numpy_tree(tuple(p.detach() for p in cell.fields()))), cell.start_state()
    last, ys = cell_sequence(fields, CellState(*numpy_tree(tuple(state))), to_numpy(x), max_rates=cell.max_rates)
    output, hn = layer(x)
    np.testing.assert_allclose(to_numpy(output), ys, rtol=1e-11)
    np.testing.assert_allclose(to_numpy(hn.a[0]), last.a, rtol=1e-11)


# ---- nn.LSTM's calling convention


def test_shapes_are_those_of_lstm():
    x = numbers(1, T, N, K)
    for layers, batch_first in itertools.product((1, 2), (False, True)):
        ours = make(num_layers=layers, batch_first=batch_first)
        lstm = torch.nn.LSTM(K, H, layers, batch_first=batch_first, dtype=torch.float64)
        for given in (x.transpose(0, 1) if batch_first else x, x[:, 0]):
            output, hn = ours(given)
            wanted, (h, _) = lstm(given)
            assert output.shape == wanted.shape
            assert all(part.shape == h.shape for part in hn)


def test_batch_first_unbatched_and_expanded_inputs():
    layer, first = make(num_layers=2), make(num_layers=2, batch_first=True)
    first.load_state_dict(layer.state_dict())
    x = numbers(1, T, N, K)
    output, hn = layer(x)
    turned, turned_hn = first(x.transpose(0, 1))
    assert torch.equal(turned.transpose(0, 1), output)
    assert all(torch.equal(a, b) for a, b in zip(hn, turned_hn, strict=True))
    alone, alone_hn = layer(x[:, 2])
    assert torch.allclose(alone, output[:, 2], rtol=1e-12)
    assert torch.allclose(alone_hn.b1, hn.b1[:, 2], rtol=1e-12)
    same = x[:, :1].expand(T, N, K)
    assert torch.allclose(layer(same)[0], layer(same.contiguous())[0], rtol=1e-12)


def test_a_sequence_in_two_parts():
    layer = make(num_layers=2)
    x = numbers(1, T, N, K)
    output, hn = layer(x)
    left, middle = layer(x[:4])
    right, end = layer(x[4:], middle)
    assert torch.allclose(torch.cat([left, right]), output, rtol=1e-12)
    assert all(torch.allclose(a, b, rtol=1e-12) for a, b in zip(end, hn, strict=True))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_packed_sequences(implementation):
    skip_without(implementation)
    layer = make(num_layers=2, implementation=implementation)
    lengths = [4, T, 1, 7, 7]
    x = numbers(1, T, N, K).requires_grad_()
    hx = start(2)
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
    output, hn = layer(packed, hx)
    padded, found = torch.nn.utils.rnn.pad_packed_sequence(output)
    assert found.tolist() == lengths
    alone = []
    for row, length in enumerate(lengths):
        one, last = layer(x[:length, row], CellState(*(part[:, row] for part in hx)))
        assert torch.allclose(padded[:length, row], one, rtol=1e-12)
        assert (padded[length:, row] == 0).all()
        assert all(torch.allclose(a[:, row], b, rtol=1e-12) for a, b in zip(hn, last, strict=True))
        alone.append(one.square().sum() + last.a.sum())
    leaves = [x, *hx, *layer.parameters()]
    found = torch.autograd.grad(padded.square().sum() + hn.a.sum(), leaves)
    wanted = torch.autograd.grad(sum(alone), leaves, allow_unused=True, materialize_grads=True)
    assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-12) for a, b in zip(found, wanted, strict=True))


def test_dropout_between_layers_while_training_only():
    layer = make(num_layers=2, dropout=0.5)
    x = numbers(1, T, N, K)
    assert not torch.equal(layer(x)[0], layer(x)[0])
    layer.eval()
    assert torch.equal(layer(x)[0], layer(x)[0])


# ---- what modules must survive


@pytest.mark.parametrize("recurrent", ["orthogonal", "identity", "spectral"])
def test_state_dict_pickle_and_deepcopy(recurrent):
    layer, other = make(recurrent=recurrent), make(recurrent=recurrent, seed=99)
    x = numbers(1, T, N, K)
    wanted = layer(x)[0]
    assert not torch.allclose(other(x)[0], wanted)
    other.load_state_dict(layer.state_dict(), strict=True)
    assert torch.equal(other(x)[0], wanted)
    assert torch.equal(copy.deepcopy(layer)(x)[0], wanted)
    for again in (pickle.loads(pickle.dumps(layer)), copy.copy(layer)):
        assert repr(again) == repr(layer)
        assert torch.equal(again(x)[0], wanted)
        assert [name for name, _ in again.named_parameters()] == [name for name, _ in layer.named_parameters()]


def test_seeds():
    a, b = (make(seed=None, generator=torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(a.cells[0].w_zx, b.cells[0].w_zx)
    torch.manual_seed(1)
    c = ot.ORGaNICs(K, H)
    torch.manual_seed(1)
    d = ot.ORGaNICs(K, H)
    assert torch.equal(c.cells[0].w_r, d.cells[0].w_r)
    assert not torch.equal(c.cells[0].w_r, ot.ORGaNICs(K, H).cells[0].w_r)


def test_spectral_norm_stays_within_one():
    layer = make(recurrent="spectral")
    optimizer = torch.optim.SGD(layer.parameters(), lr=5.0)
    for _ in range(3):
        optimizer.zero_grad()
        (-layer(numbers(1, T, N, K))[0].square().sum()).backward()
        optimizer.step()
    raw = layer.cells[0].parametrizations.w_r.original
    assert torch.linalg.matrix_norm(raw, 2) > 1.01
    assert torch.linalg.matrix_norm(layer.cells[0].w_r, 2) <= 1 + 1e-12


@pytest.mark.parametrize("implementation", ["auto", *IMPLEMENTATIONS])
def test_autocast_computes_in_the_parameters_dtype(implementation):
    skip_without(implementation)
    layer = make(implementation=implementation, dtype=torch.float32)
    below = torch.nn.Linear(K, K)
    x = numbers(1, T, N, K, dtype=torch.float32)
    with torch.autocast(x.device.type, dtype=torch.bfloat16):
        middle = below(x)
        assert middle.dtype == torch.bfloat16
        output, hn = layer(middle)
        output.square().sum().backward()
    assert output.dtype == torch.bfloat16
    wanted, wanted_hn = layer(middle.detach().float())
    assert torch.equal(output, wanted.bfloat16())
    assert all(torch.equal(a, b) for a, b in zip(hn, wanted_hn, strict=True))
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in below.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("recurrent", ["orthogonal", "spectral"])
def test_half_precision_parameters(recurrent, dtype):
    layer = make(recurrent=recurrent, dtype=torch.float32)
    x = numbers(1, T, N, K, dtype=torch.float32)
    wanted = layer(x)[0]
    output, _ = copy.deepcopy(layer).to(dtype)(x.to(dtype))
    assert output.dtype == dtype
    unit = torch.finfo(dtype).eps  # a rounding in every step, of numbers around 1
    assert float((output.float() - wanted).detach().abs().max()) < T * unit


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_an_empty_batch_and_frozen_parameters(implementation):
    skip_without(implementation)
    layer = make(implementation=implementation)
    output, hn = layer(torch.zeros(T, 0, K, dtype=torch.float64))
    output.sum().backward()
    assert output.shape == (T, 0, H)
    assert hn.y.shape == (1, 0, H)
    assert all((p.grad == 0).all() for p in layer.parameters())
    layer.zero_grad()
    cell = layer.cells[0]
    cell.w_r.requires_grad_(False)
    cell.theta_a.requires_grad_(False)
    layer(numbers(1, T, N, K))[0].sum().backward()
    assert cell.w_r.grad is None
    assert cell.theta_a.grad is None
    assert cell.w_by0.grad.abs().sum() > 0


@pytest.mark.parametrize("implementation", ["auto", "function", "reference"])
def test_exported(implementation):
    layer, x = make(implementation=implementation, num_layers=2), numbers(1, T, N, K)
    program = torch.export.export(layer, (x,))
    assert torch.allclose(program.module()(x)[0], layer(x)[0], rtol=1e-12)


@NEEDS_RECENT_TORCH
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "options",
    [{"recurrent": "spectral"}, {"implementation": "function", "checkpoint_every": 3, "recurrent": "identity"}],
)
def test_compiled_in_one_graph(options):
    layer = make(**options)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert_same(run(compiled, numbers(1, T, N, K), start()), run(layer, numbers(1, T, N, K), start()), 1e-12)
    with torch.no_grad():
        assert torch.equal(compiled(numbers(2, T, N, K), outputs=True)[0], layer(numbers(2, T, N, K))[0])


def test_the_operation_obeys_torchs_rules():
    cell = make().cells[0]
    fields = cell.fields()
    w, rates = (p.detach() for p in cell.derived(fields)[:1]), cell.derived(fields)[1]
    weights = [fields.w_zx, fields.w_r, *w, fields.w_bx0, fields.w_by0, fields.w_ba0, fields.w_bx1]
    weights += [fields.w_by1, fields.w_ba1, *(rate.detach() for rate in rates)]
    begin = torch.stack(list(cell.start_state(N)))
    for implementation, every in (("function", 0), ("function", 4), ("auto", 0)):
        arguments = (implementation, False, True, True, every, 1, numbers(1, T, N, K), begin, fields.sigma, *weights)
        tests = ("test_schema", "test_faketensor", "test_autograd_registration")
        torch.library.opcheck(torch.ops.organics_torch.sequence.default, arguments, test_utils=tests)


@pytest.mark.cpu
def test_two_processes_give_the_gradients_of_one(tmp_path):
    program = tmp_path / "worker.py"
    program.write_text(
        textwrap.dedent(
            """
            import os, sys, time, torch
            import torch.distributed as dist
            from organics_torch import ORGaNICsClassifier
            from torch.nn.parallel import DistributedDataParallel

            torch.set_num_threads(1)
            rank, where = int(sys.argv[1]), sys.argv[2]
            dist.init_process_group("gloo", init_method=f"file://{where}/meet", rank=rank, world_size=2)
            model = ORGaNICsClassifier(2, 5, 3, seed=rank, dtype=torch.float64)  # rank 1 gets rank 0's numbers
            x, y = torch.load(f"{where}/data.pt")
            wrapped = DistributedDataParallel(model)
            part = slice(4 * rank, 4 * rank + 4)
            torch.nn.functional.cross_entropy(wrapped(x[part]), y[part]).backward()
            torch.save([p.grad for p in model.parameters()], f"{where}/unfinished{rank}")
            os.replace(f"{where}/unfinished{rank}", f"{where}/gradients{rank}.pt")
            for _ in range(60_000):
                if os.path.exists(f"{where}/gradients{1 - rank}.pt"):
                    break
                time.sleep(0.01)
            os._exit(0)  # at once: torch sometimes aborts when it takes down its group
            """
        )
    )
    x, y = numbers(1, 8, 6, 2), torch.arange(8) % 3
    torch.save((x, y), tmp_path / "data.pt")
    commands = [[sys.executable, str(program), str(rank), str(tmp_path)] for rank in range(2)]
    workers = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    for worker in workers:
        _, errors = worker.communicate(timeout=PATIENCE)
        assert worker.returncode == 0, errors
    model = ot.ORGaNICsClassifier(2, 5, 3, seed=0, dtype=torch.float64)
    torch.nn.functional.cross_entropy(model(x), y).backward()
    for rank in range(2):
        found = torch.load(tmp_path / f"gradients{rank}.pt")
        for parameter, gradient in zip(model.parameters(), found, strict=True):
            torch.testing.assert_close(gradient, parameter.grad, rtol=1e-10, atol=1e-14)


def test_layers_of_oscillators_start_as_the_core_has_it():
    options = {"initialization": "oscillators", "rate_spread": 9.0, "max_rates": (0.4, 0.2, 0.3)}
    layer = ot.ORGaNICs(K, H, 2, variant="main", dtype=torch.float64, seed=3, **options)
    rng = np.random.default_rng(3)
    for cell, size in zip(layer.cells, (K, H), strict=True):
        for name, value in init_cell(rng, size, H, **options)[0]._asdict().items():
            np.testing.assert_array_equal(to_numpy(getattr(cell, name)), value)
    same = ot.ORGaNICsClassifier(K, H, 4, variant="main", dtype=torch.float64, seed=3, **options).layer.cells[0]
    assert torch.equal(same.w_r, layer.cells[0].w_r)
    assert torch.equal(same.theta_y, layer.cells[0].theta_y)


# ---- bad input


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"recurrent": "diagonal"}, ValueError, "recurrent"),
        ({"variant": "rectified"}, ValueError, "variant"),
        ({"max_rates": (0.1, 0.1)}, TypeError, "max_rates"),
        ({"max_rates": (0.1, -0.1, 0.1)}, ValueError, "max_rates.a"),
        ({"initialization": "zeros"}, ValueError, "initialization"),
        ({"initialization": "oscillators", "recurrent": "spectral"}, ValueError, "oscillators are outside of the ball"),
        ({"num_layers": 0}, ValueError, "num_layers"),
        ({"dropout": 1.5}, ValueError, "dropout"),
        ({"implementation": "fast"}, ValueError, "implementation"),
        ({"checkpoint_every": 0}, ValueError, "checkpoint_every"),
        ({"dtype": torch.int64}, TypeError, "dtype"),
        ({"seed": 1, "generator": torch.Generator()}, ValueError, "seed or generator"),
    ],
)
def test_bad_options(options, error, words):
    with pytest.raises(error, match=words):
        make(**options)


@pytest.mark.parametrize(
    ("x", "error", "words"),
    [
        (np.zeros((T, N, K)), TypeError, "input must be a torch tensor"),
        (torch.zeros(T, N, K), TypeError, "input has dtype"),
        (torch.zeros(T, N, K + 1, dtype=torch.float64), ValueError, r"input must have shape \(T, N, 3\)"),
        (torch.zeros(K, dtype=torch.float64), ValueError, "input must have shape"),
        (torch.zeros(0, N, K, dtype=torch.float64), ValueError, "at least one"),
        (torch.zeros(T, N, K, dtype=torch.float64, device="meta"), ValueError, "is on meta"),
    ],
)
def test_bad_inputs(x, error, words):
    with pytest.raises(error, match=words):
        make()(x)


def test_bad_states():
    layer, x = make(), numbers(1, T, N, K)
    good = start()
    with pytest.raises(TypeError, match="hx must be a CellState"):
        layer(x, good.y)
    with pytest.raises(TypeError, match=r"hx must be a CellState\(y, a, b0, b1\) of tensors, got tuple of 2"):
        layer(x, (good.y, good.a))
    with pytest.raises(ValueError, match=r"hx.a must have shape \(1, 5, 6\)"):
        layer(x, good._replace(a=good.a[:, :2]))
    with pytest.raises(TypeError, match=r"hx.b0 has dtype"):
        layer(x, good._replace(b0=good.b0.float()))
    with pytest.raises(ValueError, match="x must have shape"):
        layer.cells[0](x)


def test_an_implementation_asked_for_by_name_is_taken_or_refused():
    layer = make()
    fields, x = layer.cells[0].fields(), numbers(1, T, N, K)
    assert choose_implementation("reference", fields, x) == "reference"
    assert choose_implementation("function", fields, x) == "function"
    native_here = not x.is_cuda and native.load() is not None
    assert choose_implementation("auto", fields, x) == ("fused" if native_here else "function")
    half = x.half()
    assert choose_implementation("auto", fields, half) == "reference"
    with pytest.raises(RuntimeError, match="'function' needs float32 or float64"):
        choose_implementation("function", fields, half)


def test_rates_from_the_length():
    """For every cell; the state_dict carries them, and the length need not be known to load it."""
    layer = ot.ORGaNICs(2, 3, 2, max_rates="auto", steps=8, bidirectional=True)
    assert {cell.max_rates for cell in (*layer.cells, *layer.reverse_cells)} == {(0.5, 0.2, 0.5)}
    ot.ORGaNICs(2, 3, 2, max_rates=ot.rates_for(8), bidirectional=True).load_state_dict(layer.state_dict())
    with pytest.raises(ValueError, match="max_rates"):
        ot.ORGaNICs(2, 3, 2, max_rates="auto", steps=80, bidirectional=True).load_state_dict(layer.state_dict())
    assert ot.ORGaNICsClassifier(2, 3, 2, max_rates="auto", steps=100).layer.cells[0].max_rates == (0.2, 0.04, 0.4)
    assert ot.ORGaNICsCell(2, 3, max_rates="auto", steps=1000).max_rates == ot.MaxRates()
    with pytest.raises(ValueError, match="max_rates='auto' needs steps=, the number of steps of the sequences"):
        ot.ORGaNICs(2, 3, max_rates="auto")


def test_short_sequences_learn_with_rates_from_their_length():
    """The sign of the mean of 8 noisy steps, 60 steps of Adam: losses of 0.002 and, at default rates, of 0.05."""
    generator = torch.Generator("cpu").manual_seed(1)
    labels = torch.arange(64) % 2
    x = torch.randn(64, 8, 4, generator=generator, device="cpu").to(labels.device) + (labels - 0.5)[:, None, None]
    losses, norms = [], []
    for options in ({"max_rates": "auto", "steps": 8}, {}):
        model = ot.ORGaNICsClassifier(4, 32, 2, seed=0, **options)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(60):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(x), labels)
            loss.backward()
            norms.append(float(torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])))
            optimizer.step()
        losses.append(loss.item())
    assert losses[0] < 0.01
    assert losses[0] < 0.2 * losses[1]
    assert max(norms) < 2  # 0.3 seen: no clipping at this learning rate
