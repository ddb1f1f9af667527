"""What code written for nn.LSTM may do with a layer: the same calls on both; docs/how-to/from-lstm.md is the table."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
import re
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from support import ELSEWHERE, NEEDS_RECENT_TORCH

torch = pytest.importorskip("torch", reason="torch is not installed")

import organics_torch as ot  # noqa: E402
from organics_core.cell import CellState, cell_sequence  # noqa: E402
from organics_torch import sequence  # noqa: E402

pytestmark = pytest.mark.cpu
T, N, K, H = 5, 4, 3, 6
PAGE = Path(__file__).parents[1] / "docs" / "how-to" / "from-lstm.md"
CALLS = {}


def numbers(seed, *shape, dtype=torch.float32):
    return torch.as_tensor(np.random.default_rng(seed).standard_normal(shape), device="cpu").to(dtype)


X = numbers(1, T, N, K)


def form(value):
    """Dtypes and shapes of what a call gave; of a state the first part, which is h in an LSTM and y here."""
    if isinstance(value, torch.Tensor):
        return value.dtype, tuple(value.shape)
    output, state = value
    if isinstance(output, torch.nn.utils.rnn.PackedSequence):
        output = output.data
    return form(output), form(state[0])


def call(row):
    """A call of the table; one for all functions of a row."""

    def add(function):
        CALLS.setdefault(row, []).append(function)
        return function

    return add


def drawn_again(layer):
    before = [value.clone() for value in layer.parameters()]
    torch.manual_seed(0)
    assert layer.reset_parameters() is None
    once = [value.clone() for value in layer.parameters()]
    torch.manual_seed(0)
    layer.reset_parameters()
    moved = any(not torch.equal(a, b) for a, b in zip(before, once, strict=True))
    return moved, all(torch.equal(a, b) for a, b in zip(once, layer.parameters(), strict=True))


def same(one, other):
    return torch.equal(one(X)[0], other(X)[0])


@call("`cls(k, n, num_layers, bias, batch_first, dropout, bidirectional, proj_size, device, dtype)`")
def _(make):
    layer = make(K, H, 2, True, True, 0.5, True, 0, None, torch.float64)
    names = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional", "proj_size")
    return form(layer(X.double())), [getattr(layer, name) for name in names]


@call("`output, state = layer(x)`")
def _(make):
    grid = itertools.product((1, 2), (False, True), (False, True))
    options = [dict(zip(("num_layers", "batch_first", "bidirectional"), values, strict=True)) for values in grid]
    return [form(make(K, H, **one)(x)) for one in options for x in (X, X[:, 0])]


@call("`layer(x, state)`")
def _(make):
    layer, both = make(K, H, 2), make(K, H, 2, bidirectional=True)
    whole, middle = layer(X)[0], layer(X[:2])[1]
    goes_on = torch.allclose(layer(X[2:], middle)[0], whole[2:], atol=1e-6)
    return form(layer(X, middle)), form(both(X, both(X)[1])), goes_on, torch.allclose(layer(X[2:])[0], whole[2:])


@call("`layer(packed)`")
def _(make):
    layer = make(K, H, 2, bidirectional=True)
    lengths = [2, T, 1, 2]
    packed = torch.nn.utils.rnn.pack_padded_sequence(X, lengths, enforce_sorted=False)
    output, state = layer(packed)
    padded, found = torch.nn.utils.rnn.pad_packed_sequence(output)
    alone = [layer(X[:length, row]) for row, length in enumerate(lengths)]
    right = all(torch.allclose(padded[:n, row], alone[row][0], atol=1e-6) for row, n in enumerate(lengths))
    ends = all(torch.allclose(state[0][:, row], alone[row][1][0], atol=1e-6) for row in range(N))
    return form((output, state)), found.tolist(), right, ends


@call("`bidirectional=True`")
def _(make):
    layer = make(K, H, bidirectional=True)
    output, state = layer(X)
    turned = layer(X.flip(0))[0].flip(0)
    # the output at the end of one direction is the state of that direction, and neither is the other
    ends = torch.equal(output[-1, :, :H], state[0][0]), torch.equal(output[0, :, H:], state[0][1])
    return form((output, state)), ends, torch.allclose(turned[..., :H], output[..., H:])


@call("`proj_size=p`")
def _(make):
    return form(make(K, H, 2, bidirectional=True, proj_size=2)(X)[0])


@call("`bias=True`, `bias=False`")
def _(make):
    return [form(make(K, H, bias=bias)(X)) for bias in (True, False)]


@call("`dropout=0.5`")
def _(make):
    layer = make(K, H, 2, dropout=0.5)
    changes = not same(layer, layer)
    layer.eval()
    return changes, same(layer, layer)


@call("`dropout=0.5` with one layer")
def _(make):
    with pytest.warns(UserWarning, match="dropout"):
        layer = make(K, H, dropout=0.5)
    return same(layer, layer)


@call("`layer.reset_parameters()`")
def _(make):
    return drawn_again(make(K, H, 2, bidirectional=True, proj_size=2))


@call('`device="meta"`, `to_empty`, `reset_parameters`')
def _(make):
    with torch.device("meta"):
        inside = make(K, H, 2, bidirectional=True, proj_size=2)
    found = []
    for layer in (inside, make(K, H, 2, bidirectional=True, device="meta")):
        assert all(value.is_meta for value in layer.state_dict().values() if value.is_floating_point())
        layer.to_empty(device="cpu").reset_parameters()
        found.append((form(layer(X)[0]), bool(layer(X)[0].isfinite().all()), drawn_again(layer)))
    return found


@call("`load_state_dict(torch.load(file, weights_only=True))`, also with `assign=True` on meta")
def _(make):
    layer, other, empty = make(K, H, 2), make(K, H, 2), make(K, H, 2, device="meta")
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    empty.load_state_dict(state, assign=True)
    return str(other.load_state_dict(state)), same(other, layer), same(empty, layer)


@call("`pickle`, `copy.deepcopy`, `torch.save(layer)`")
def _(make):
    layer, file = make(K, H, 2, bidirectional=True), io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    copies = pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer), torch.load(file, weights_only=False)
    return [same(one, layer) for one in copies]


@call("`layer.flatten_parameters()`")
def _(make):
    layer = make(K, H)
    before = layer(X)[0]
    return layer.flatten_parameters(), torch.equal(layer(X)[0], before)


@call("`torch.autocast`: dtype of the output")
def _(make):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer = make(K, H, 2, bidirectional=True, proj_size=2)
        found = [layer(X)[0].dtype, layer(X.bfloat16())[0].dtype]
        return *found, make(K, H, dtype=torch.float64)(X.double())[0].dtype


@call("`layer.bfloat16()`, `layer.half()`, `layer.double()`")
def _(make):
    dtypes = (torch.bfloat16, torch.float16, torch.float64)
    return [form(make(K, H, 2, bidirectional=True).to(dtype)(X.to(dtype))) for dtype in dtypes]


@call("a gradient of a gradient")
def _(make):
    layer, x = make(2, 2, 2, bidirectional=True, dtype=torch.float64), numbers(1, 2, 1, 2, dtype=torch.float64)
    return torch.autograd.gradgradcheck(lambda x: layer(x)[0], x.requires_grad_(), atol=1e-6)


@call("`torch.autograd.grad(..., is_grads_batched=True)`")
def _(make):
    layer, x = make(K, H, 2, bidirectional=True), X.clone().requires_grad_()
    output, cotangents = layer(x)[0], numbers(2, 3, T, N, 2 * H)
    [many] = torch.autograd.grad(output, x, cotangents, is_grads_batched=True, retain_graph=True)
    one = [torch.autograd.grad(output, x, cotangent, retain_graph=True)[0] for cotangent in cotangents]
    return torch.allclose(many, torch.stack(one), atol=1e-6)


@call("`torch.jit.trace`, then other lengths and batches, also trained, saved and loaded")
def _(make):
    found = []
    for recording in (True, False):
        layer, longer, file = make(K, H, 2, bidirectional=True), numbers(2, T + 3, N + 2, K), io.BytesIO()
        with torch.set_grad_enabled(recording):
            traced = torch.jit.trace(layer, (X,))
        output = traced(longer)[0]
        output.sum().backward()
        gradients = [value.grad.clone() for value in layer.parameters()]
        layer.zero_grad()
        layer(longer)[0].sum().backward()
        pairs = zip(gradients, layer.parameters(), strict=True)
        torch.jit.save(traced, file)
        file.seek(0)
        loaded = torch.jit.load(file)(longer)[0]
        found.append(torch.allclose(output, layer(longer)[0], atol=1e-6) and torch.equal(loaded, output))
        found.append(all(torch.allclose(one, value.grad, atol=1e-5) for one, value in pairs))
    return found


@call("`torch.fx.symbolic_trace` of a model that holds it")
def _(make):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = make(K, H, 2, bidirectional=True)

        def forward(self, x):
            output, state = self.layer(x)
            return self.layer(x, state)[0] + output

    model = Model()
    traced = torch.fx.symbolic_trace(model)
    output = traced(X)
    output.sum().backward()
    kinds = [node.op for node in traced.graph.nodes]
    return torch.equal(output, model(X)), kinds, all(value.grad is not None for value in model.parameters())


@call("`torch.load(file, weights_only=True)` of a state")
def _(make):
    layer, file = make(K, H, 2), io.BytesIO()
    with torch.no_grad():
        state = layer(X)[1]
        torch.save(state, file)
        file.seek(0)
        loaded = torch.load(file, weights_only=True)
        return torch.equal(layer(X, loaded)[0], layer(X, state)[0]), type(loaded) is type(state)


@call("a NaN in the input")
def _(make):
    x = X.clone()
    x[2, 1, 0] = torch.nan
    return make(K, H)(x)[0].isnan().all(-1).tolist()


@pytest.mark.filterwarnings("ignore:LSTM with projections", "ignore:`torch.jit", "ignore:dropout")
@pytest.mark.parametrize("row", CALLS)
def test_both_do_the_same(row):
    for function in CALLS[row]:
        assert function(ot.ORGaNICs) == function(torch.nn.LSTM)


def test_the_page_has_a_row_for_every_call():
    table = PAGE.read_text().split("\n## ")[0]
    rows = re.findall(r"^\| (.*?) \| (.*?) \| (.*?) \|$", table, re.MULTILINE)
    assert [row for row, *_ in rows[1:]] == list(CALLS)


# ---- recorded for other sizes; nn.LSTM itself cannot be exported for any number of steps


def trained(layer, compute, x):
    layer.zero_grad()
    output, state = compute(x)
    (output.square().sum() + state[1].sum()).backward()
    return [output.detach(), *(value.grad.clone() for value in layer.parameters())]


def agree(found, wanted, tolerance=1e-10):
    return all(torch.allclose(a, b, rtol=tolerance, atol=tolerance) for a, b in zip(found, wanted, strict=True))


@NEEDS_RECENT_TORCH
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("implementation", ["auto", "function"])
def test_compiled_once_for_all_lengths(implementation):
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    graphs = []

    def compiler(graph, _):
        graphs.append(graph)
        return make_boxed_func(graph)

    layer = ot.ORGaNICs(K, H, implementation=implementation, seed=0, dtype=torch.float64)
    backend = aot_autograd(fw_compiler=compiler, bw_compiler=lambda graph, _: make_boxed_func(graph))
    compiled = torch.compile(layer, dynamic=True, fullgraph=True, backend=backend)
    for steps in range(3, 15):
        x = numbers(steps, steps, N, K, dtype=torch.float64)
        assert agree(trained(layer, compiled, x), trained(layer, layer, x))
    assert len(graphs) <= 2


@pytest.mark.parametrize("axes", [(0,), (1,), (0, 1)])
@pytest.mark.parametrize("implementation", ["auto", "function", pytest.param("reference", marks=pytest.mark.slow)])
def test_exported_for_any_batch_and_number_of_steps(axes, implementation):
    layer = ot.ORGaNICs(K, H, implementation=implementation, seed=0, dtype=torch.float64)
    shapes = (dict.fromkeys(axes, torch.export.Dim.DYNAMIC),)
    if implementation == "reference" and 0 in axes and not sequence.SCAN_HAS_DERIVATIVE:
        pytest.skip(f"{ELSEWHERE}torch {torch.__version__} has no derivative of a scan")
    program, file = torch.export.export(layer, (X.double(),), dynamic_shapes=shapes), io.BytesIO()
    if implementation != "reference":  # torch 2.13 cannot write a scan
        torch.export.save(program, file)
        file.seek(0)
        program = torch.export.load(file)
    module = program.module()
    x = numbers(2, 8 if 0 in axes else T, 7 if 1 in axes else N, K, dtype=torch.float64)
    assert agree(trained(module, module, x), trained(layer, layer, x))


@pytest.mark.filterwarnings("ignore:`torch.jit", "ignore:Converting a tensor", "ignore:.isinstance")
@pytest.mark.parametrize("recorded", ["trace", "export"])
def test_second_derivatives_and_many_cotangents_of_recorded_programs(recorded):
    """They were torch's errors: no autograd formula, no batching rule."""
    layer = ot.ORGaNICs(K, H, 2, bidirectional=True, seed=0, dtype=torch.float64)
    x = numbers(2, T, N, K, dtype=torch.float64).requires_grad_()
    if recorded == "trace":
        module = torch.jit.trace(layer, (X.double(),))
    else:
        module = torch.export.export(layer, (X.double(),)).module()
    found = []
    for compute in (module, layer):
        [slope] = torch.autograd.grad(compute(x)[0].square().sum(), x, create_graph=True)
        [second] = torch.autograd.grad(slope.square().sum(), x)
        cotangents = numbers(3, 2, T, N, 2 * H, dtype=torch.float64)
        [many] = torch.autograd.grad(compute(x)[0], x, cotangents, is_grads_batched=True)
        found.append((slope, second, many))
    assert agree(*found)


@NEEDS_RECENT_TORCH
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_transforms_of_torch_func_within_compiled_programs():
    """The compiler was handed an operation that had no rule for them; alone, the layer is one operation still."""
    layer = ot.ORGaNICs(K, H, seed=0, dtype=torch.float64)
    xs, parameters = numbers(2, 2, T, N, K, dtype=torch.float64), dict(layer.named_parameters())

    def loss(parameters, x):
        return torch.func.functional_call(layer, parameters, (x,))[0].square().sum()

    def slopes(parameters, xs):
        return torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, xs)

    found = torch.compile(slopes, backend="aot_eager", fullgraph=True)(parameters, xs)
    for name, value in slopes(parameters, xs).items():
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-12)
    [graph] = torch._dynamo.explain(layer)(xs[0]).graphs
    assert any(str(node.target) == "organics_torch.sequence" for node in graph.graph.nodes)


@NEEDS_RECENT_TORCH
def test_a_scan_without_a_derivative_is_refused(monkeypatch):
    """Where torch would give zeros in place of gradients; values alone may be had."""
    monkeypatch.setattr(sequence, "SCAN_HAS_DERIVATIVE", False)
    layer, shapes = ot.ORGaNICs(K, H, implementation="reference", seed=0), ({0: torch.export.Dim.DYNAMIC},)
    with pytest.raises(RuntimeError, match="would give wrong gradients for a recorded loop of any number of steps"):
        torch.export.export(layer, (X,), dynamic_shapes=shapes)
    with torch.no_grad():
        program = torch.export.export(layer, (X,), dynamic_shapes=shapes)
        longer = numbers(2, T + 4, N, K)
        torch.testing.assert_close(program.module()(longer)[0], layer(longer)[0])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Exporting a model", "ignore:.isinstance")
@pytest.mark.parametrize("kind", ["layer", "classifier"])
def test_onnx_for_any_batch_and_number_of_steps(kind, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    options = {"seed": 0, "max_rates": (0.6, 0.4, 0.5)}
    if kind == "classifier":
        model = ot.ORGaNICsClassifier(K, H, 3, variant="main", **options)
    else:
        model = ot.ORGaNICs(K, H, bidirectional=True, bias=True, proj_size=2, recurrent="spectral", **options)
        model.cells[0].parametrizations.w_r.original.data *= 1.7  # out of the ball
    dynamic = torch.export.Dim.DYNAMIC
    given, shapes = (X,), ({0: dynamic, 1: dynamic},)
    if kind == "layer":  # with its state among the inputs, for streams
        given, shapes = (X, model.start_state(N)), (*shapes, CellState(*[{1: dynamic}] * 4))
    program = torch.onnx.export(model, given, dynamo=True, dynamic_shapes=shapes, verbose=False)
    program.save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for steps, batch in ((T, N), (9, 2), (1, 1)):
        x = numbers(3, steps, batch, K)
        inputs = (x, model(numbers(4, 2, batch, K))[1]) if kind == "layer" else (x,)
        flat = [value.detach() for value in torch.utils._pytree.tree_leaves(inputs)]
        found = session.run(
            None, {of.name: value.numpy() for of, value in zip(session.get_inputs(), flat, strict=True)}
        )
        wanted = [value.detach() for value in torch.utils._pytree.tree_leaves(model(*inputs))]
        assert agree(map(torch.as_tensor, found), wanted, 1e-5)


# ---- what differs, as the page says


def test_an_lstms_state_is_answered_by_a_sentence():
    layer = ot.ORGaNICs(K, H)
    _, state = layer(X)
    holder = SimpleNamespace(state=state)

    def nested():
        _, (_, _) = layer(X)

    def nested_in_an_attribute():
        holder.output, (_, _) = layer(X)

    def variable():
        _, hn = layer(X)
        _, _ = hn

    def enclosing():
        _, _ = state

    def attribute():
        _, _ = holder.state

    def item():
        (_, _) = layer(X)[1]

    for unpacks in (nested, nested_in_an_attribute, variable, enclosing, attribute, item):
        with pytest.raises(ValueError, match=r"read state.y in place of h, and pass state on as a whole"):
            unpacks()
    one, other = map(tuple, (state, state))  # which read states while two things are unpacked
    assert len(one) == len(other) == 4
    with pytest.raises(TypeError, match=r"got tuple of 2; in place of an LSTM's \(h, c\) pass the state that the last"):
        layer(X, (torch.zeros(1, N, H), torch.zeros(1, N, H)))
    output, (y, a, b0, b1) = layer(X)
    assert all(one is other for one, other in zip((y, a, b0, b1), layer(X)[1], strict=True)) is False
    assert torch.equal(output[-1], y[0])
    state = layer(X)[1]
    assert isinstance(state, CellState)
    first, second = (part.shape for part in state[:2])
    assert first == second
    assert isinstance(layer(X, state._replace(y=torch.zeros(1, N, H)))[1]._asdict(), dict)


def test_within_autocast_the_state_keeps_its_precision():
    layer = ot.ORGaNICs(K, H)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, middle = layer(X[:2])
        assert {part.dtype for part in middle} == {torch.float32}
        output, _ = layer(X[2:], middle)
    assert torch.equal(output, layer(X)[0][2:].bfloat16())


@pytest.mark.parametrize("implementation", ["auto", "function", "reference"])
def test_two_directions_and_projections_are_what_they_say(implementation):
    options = {"implementation": implementation, "dtype": torch.float64, "max_rates": (0.6, 0.4, 0.5)}
    layer = ot.ORGaNICs(K, H, 2, bidirectional=True, proj_size=2, **options)
    x = numbers(1, T, N, K, dtype=torch.float64)
    hx = layer.start_state(N)
    xs, index = x, 0
    for pair in zip(layer.cells, layer.reverse_cells, strict=True):
        parts = []
        for back, cell in enumerate(pair):
            start = CellState(*(part[index] for part in hx))
            given = xs.flip(0) if back else xs
            last, ys = cell_sequence(cell.fields(), start, given, max_rates=cell.max_rates)
            ys = ys @ layer.projections[index].weight.T
            parts.append(ys.flip(0) if back else ys)
            assert torch.allclose(layer(x)[1].a[index], last.a, rtol=1e-12)
            index += 1
        xs = torch.cat(parts, -1)
    assert torch.allclose(layer(x, hx)[0], xs, rtol=1e-12)
    assert layer(x, outputs=False)[0] is None
    found = torch.autograd.grad(layer(x)[0].square().sum(), list(layer.parameters()))
    wanted = torch.autograd.grad(xs.square().sum(), list(layer.parameters()))
    assert all(torch.allclose(one, other, rtol=1e-10, atol=1e-13) for one, other in zip(found, wanted, strict=True))


@pytest.mark.parametrize("implementation", ["auto", "function", "reference"])
def test_biases_are_weights_of_an_input_that_is_one(implementation):
    options = {"implementation": implementation, "dtype": torch.float64, "max_rates": (0.6, 0.4, 0.5), "seed": 0}
    layer, without = ot.ORGaNICs(K, H, bias=True, **options), ot.ORGaNICs(K, H, **options)
    x = numbers(1, T, N, K, dtype=torch.float64)
    assert torch.allclose(layer(x)[0], without(x)[0], rtol=1e-12)
    cell = layer.cells[0]
    for seed, name in enumerate(("bias_z", "bias_b0", "bias_b1")):
        getattr(cell, name).data = numbers(seed, H, dtype=torch.float64)
    wider = ot.ORGaNICs(K + 1, H, **options)
    state = without.state_dict()
    for weights, bias in (("w_zx", cell.bias_z), ("w_bx0", cell.bias_b0), ("w_bx1", cell.bias_b1)):
        state[f"cells.0.{weights}"] = torch.cat([state[f"cells.0.{weights}"], bias.detach()[:, None]], 1)
    wider.load_state_dict(state)
    ones = torch.cat([x, torch.ones(T, N, 1, dtype=torch.float64)], -1)
    assert torch.allclose(layer(x)[0], wider(ones)[0], rtol=1e-12)
    assert torch.allclose(cell(x[0]).y, wider.cells[0](ones[0]).y, rtol=1e-12)
    layer(x)[0].square().sum().backward()
    wider(ones)[0].square().sum().backward()
    for name, bias in (("w_zx", cell.bias_z), ("w_bx0", cell.bias_b0), ("w_bx1", cell.bias_b1)):
        wanted = getattr(wider.cells[0], name).grad
        assert torch.allclose(torch.cat([getattr(cell, name).grad, bias.grad[:, None]], 1), wanted, rtol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("recurrent", ["orthogonal", "identity", "spectral"])
def test_every_parameter_has_memory_of_its_own(recurrent, dtype):
    """The three biases of a cell in float64 were one array: a step of an optimizer moved all by the sum."""
    layer = ot.ORGaNICs(K, H, 2, True, bidirectional=True, proj_size=2, recurrent=recurrent, dtype=dtype)
    classifier = ot.ORGaNICsClassifier(K, H, 3, bias=True, recurrent=recurrent, dtype=dtype)
    static = (ot.DivisiveNorm(K, H, dtype=dtype), ot.DivisiveNorm2d(K, H, 3, dtype=dtype))
    for module in (layer, classifier, *static, ot.DivisiveNormalization(K, dtype=dtype)):
        tensors = [*module.parameters(), *module.buffers()]
        assert len({value.untyped_storage().data_ptr() for value in tensors}) == len(tensors)


@pytest.mark.parametrize("implementation", ["auto", "reference"])
def test_slopes_of_the_biases_are_those_of_differences(implementation):
    layer = ot.ORGaNICs(K, H, 1, True, seed=0, implementation=implementation, dtype=torch.float64)
    biases = [value for name, value in layer.named_parameters() if "bias" in name]

    def loss(*values):
        with torch.no_grad():
            for bias, value in zip(biases, values, strict=True):
                bias.copy_(value)
        output, state = layer(X.double())
        return output.square().sum() + state.a.sum()

    at = [0.1 * numbers(index, H, dtype=torch.float64) for index in range(3)]
    slopes = torch.autograd.grad(loss(*at), biases)
    for which, slope in enumerate(slopes):
        for unit in range(H):
            sides = []
            for by in (1e-5, -1e-5):
                moved = [value.clone() for value in at]
                moved[which][unit] += by
                sides.append(loss(*moved).item())
            assert (sides[0] - sides[1]) / 2e-5 == pytest.approx(slope[unit].item(), rel=1e-5, abs=1e-8)


def test_state_dicts_of_other_options_are_refused():
    """Even where shapes agree."""
    two = ot.ORGaNICs(H, H, 2).state_dict()
    for options in ({"bidirectional": True}, {"bias": True, "num_layers": 2}, {"proj_size": H, "num_layers": 2}):
        layer = ot.ORGaNICs(H, H, **options)
        with pytest.raises(RuntimeError, match=r"Missing key|Unexpected key"):
            layer.load_state_dict(two)
        with pytest.raises(RuntimeError, match=r"Missing key|Unexpected key"):
            ot.ORGaNICs(H, H, 2).load_state_dict(layer.state_dict())


def test_what_does_not_take_the_options_says_so(tmp_path):
    for options in ({"bidirectional": True}, {"bias": True}, {"proj_size": 2}):
        layer = ot.ORGaNICs(K, H, **options)
        with pytest.raises(ValueError, match="one direction, without biases and projections"):
            ot.save(tmp_path / "file", layer)
        with pytest.raises(ValueError, match="one direction and neither biases nor projections"):
            ot.prove_stable(layer, X[0, 0])
        assert len(ot.inspect(layer, X)) == 1 + layer.bidirectional
    with pytest.raises(ValueError, match="proj_size is for ORGaNICs"):
        ot.ORGaNICsClassifier(K, H, 2, proj_size=2)
    with pytest.raises(TypeError, match=r"bias must be True or False, got 0.5"):
        ot.ORGaNICs(K, H, 2, 0.5)
    with pytest.raises(TypeError, match=r"learn_rates must be True or False, got 'false'"):
        ot.ORGaNICs(K, H, learn_rates="false")
    with pytest.raises(ValueError, match="proj_size must be"):
        ot.ORGaNICs(K, H, proj_size=-1)


def test_a_classifier_of_two_directions_reads_both_ends():
    model = ot.ORGaNICsClassifier(K, H, 3, num_layers=2, bidirectional=True, bias=True)
    x = X.transpose(0, 1)
    output, _ = model.layer(x)
    ends = torch.cat([output[:, -1, :H], output[:, 0, H:]], -1)
    assert torch.allclose(model(x), model.readout(ends), atol=1e-6)
    assert drawn_again(model) == (True, True)
    torch.manual_seed(0)
    model.reset_parameters(3)
    same_seed = ot.ORGaNICsClassifier(K, H, 3, num_layers=2, bidirectional=True, bias=True, seed=3)
    assert torch.equal(model(x), same_seed(x))


@pytest.mark.parametrize("recurrent", ["orthogonal", "identity", "spectral"])
def test_parameters_drawn_again_are_those_of_a_new_layer(recurrent):
    options = {"recurrent": recurrent, "rate_spread": 3.0, "max_rates": (0.6, 0.4, 0.5), "bidirectional": True}
    layer = ot.ORGaNICs(K, H, 2, proj_size=2, seed=1, device="meta", **options)
    layer.to_empty(device="cpu").reset_parameters(seed=7)
    wanted = ot.ORGaNICs(K, H, 2, proj_size=2, seed=7, **options).state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in layer.state_dict().items())
    norm = ot.DivisiveNorm(K, H, recurrent="spectral" if recurrent == "spectral" else "identity")
    assert torch.equal(pickle.loads(pickle.dumps(norm))(X), norm(X))


def test_no_more_is_promised():
    root = PAGE.parents[2]
    pages = [root / "README.md", *root.glob("docs/**/*.md"), *root.glob("adapters/**/*.py")]
    for page in pages:
        assert not re.search(r"drop-?in\b(?! of)", page.read_text().replace("\n", " "), re.IGNORECASE)


def test_no_warning_without_a_reason():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ot.ORGaNICs(K, H, 2, dropout=0.5).flatten_parameters()
        ot.ORGaNICs(K, H)
