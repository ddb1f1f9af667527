"""The native sequence in jax: the core's numbers and derivatives, under every transformation, and never missed."""

from __future__ import annotations

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import run_python, two_devices

from organics_core.cell import CellState, MaxRates
from organics_jax import ORGaNICs, ORGaNICsCell, fused, native
from organics_jax.sequence import sequence

KEY = jax.random.key(7)
RATES = MaxRates(y=0.3, a=0.2, b=0.4)
VARIANTS = ("rectified_recurrence", "main")
pytestmark = [
    pytest.mark.cpu,
    pytest.mark.skipif(native.load() is None, reason=f"the native library is {native.status()}"),
]


def assert_close(found, wanted, eps=None, size=None):
    """To rounding: a tenth of the digits, at the size of the largest number of each array."""
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        bound = (eps or np.finfo(a.dtype).eps) * 2000
        np.testing.assert_allclose(a, b, rtol=bound, atol=bound * (size or max(1e-3, np.abs(b).max(initial=0))))


def of_kind(dtype, recurrent="orthogonal", variant="rectified_recurrence", steps=11, batch=(3,), units=5):
    """A cell, a start state of which one a is 0 and another negative, and inputs."""
    cell = ORGaNICsCell(2, units, key=KEY, recurrent=recurrent, variant=variant, max_rates=RATES, dtype=dtype)
    xs = jax.random.normal(jax.random.key(1), (steps, *batch, 2), dtype)
    start = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(KEY, p.shape, dtype), cell.initial_state(batch))
    return cell, start._replace(a=start.a.at[..., 0].set(0.0).at[..., 1].set(-0.1)), xs


def loss_of(implementation, cell, start, xs, parts=(True, True)):
    last, ys = sequence(
        cell.parameters, start, xs, max_rates=RATES, variant=cell.variant, implementation=implementation
    )
    weights = (jnp.arange(ys.size).reshape(ys.shape) % 7 - 3.0).astype(ys.dtype)
    of_ys, of_last = jnp.sum(weights * ys), sum(jnp.sum((i + 1) * part**2) for i, part in enumerate(last))
    return sum(one for one, wanted in zip((of_ys, of_last), parts, strict=True) if wanted)


def slopes(implementation, cell, start, xs, **options):
    """Value and gradients of the parameters (sigma too), the start state and the inputs."""
    arrays, static = eqx.partition(cell, eqx.is_array)

    def run(arrays, start, xs):
        return loss_of(implementation, eqx.combine(arrays, static), start, xs, **options)

    value, (of_cell, *others) = jax.jit(jax.value_and_grad(run, argnums=(0, 1, 2)))(arrays, start, xs)
    return value, of_cell.parameters, others


@pytest.mark.parametrize(
    ("dtype", "recurrent", "variant", "steps", "batch", "units"),
    [
        (jnp.float64, "orthogonal", "rectified_recurrence", 11, (3,), 5),
        (jnp.float64, "orthogonal", "main", 2, (2, 3), 40),
        (jnp.float64, "identity", "rectified_recurrence", 33, (), 17),
        (jnp.float64, "identity", "main", 1, (1,), 1),
        (jnp.float32, "orthogonal", "rectified_recurrence", 18, (70,), 33),
        (jnp.float32, "identity", "main", 11, (3,), 5),
    ],
)
def test_values_and_gradients_are_the_cores(dtype, recurrent, variant, steps, batch, units):
    given = of_kind(dtype, recurrent, variant, steps, batch, units)
    assert_close(slopes("fused", *given), slopes("reference", *given))


def test_gradients_of_the_last_state_and_of_the_outputs_alone():
    given = of_kind(jnp.float64)
    for parts in ((True, False), (False, True)):
        assert_close(slopes("fused", *given, parts=parts), slopes("reference", *given, parts=parts))


@pytest.mark.parametrize("threads", [1, 3])
def test_states_at_the_beginnings_of_periods_are_enough(threads, monkeypatch):
    """Of several periods, the last one cut short, in blocks of several threads."""
    monkeypatch.setattr(fused, "_threads", lambda: threads)
    jax.clear_caches()
    given = of_kind(jnp.float64, steps=71, batch=(10,))
    assert_close(slopes("fused", *given), slopes("reference", *given))
    shape = (71, 10, 2)
    values = [jax.ShapeDtypeStruct(size, jnp.float64) for size in ((5, 2), (4, 10, 5), shape)]
    setup = fused.Setup(False, False, keep=True)
    avals = [values[0]] * (len(setup.operands) - 2) + values[1:]
    assert setup.results(avals) == {"last": (4, 10, 5), "ys": (71, 10, 5), "marks": (5, 4, 10, 5)}
    jax.clear_caches()


def test_auto_is_native_and_reads_nothing_that_it_does_not_need():
    """Under jit what nobody reads is not written, and inputs that are data have no gradient."""
    cell, start, xs = of_kind(jnp.float32)

    def last(parameters):
        return jnp.sum(sequence(parameters, start, xs)[0].y ** 2)

    program = jax.jit(jax.grad(last)).lower(cell.parameters).compile().as_text()
    calls = [line for line in program.splitlines() if 'custom_call_target="organics_' in line]
    assert len(calls) == 2
    assert not any("f32[11,3" in line.partition("custom-call(")[0] for line in calls)  # neither ys nor gradients of xs
    assert "organics_forward" in jax.jit(lambda xs: sequence(cell.parameters, start, xs)).lower(xs).as_text()
    chunked = jax.jit(lambda xs: sequence(cell.parameters, start, xs, implementation="chunked")).lower(xs)
    assert "organics_forward" not in chunked.as_text()


@pytest.mark.parametrize("batch", [(9,), ()])
def test_mapped_over_inputs_parameters_and_cotangents(batch):
    """vmap of the sequence and of its gradients, the gradient of vmap, the rows of a Jacobian: all as the scan's."""
    cell, start, _ = of_kind(jnp.float64, batch=batch)
    many = jax.random.normal(jax.random.key(2), (3, 6, *batch, 2))
    factors = jnp.asarray([0.5, 1.0, 1.5])

    def run(implementation, scale, xs):
        p = cell.parameters._replace(w_by0=scale * cell.parameters.w_by0)
        return sequence(p, start, xs, max_rates=RATES, implementation=implementation)[1]

    def all_of(name):
        def loss(scale, xs):
            return jnp.sum(run(name, scale, xs) ** 2)

        return (
            jax.vmap(lambda xs: run(name, 1.0, xs))(many),
            jax.vmap(lambda xs: run(name, 1.0, xs), in_axes=2, out_axes=1)(jnp.moveaxis(many, 0, 2)),
            jax.jit(jax.vmap(lambda s, xs: run(name, s, xs)))(factors, many),
            jax.vmap(lambda s: run(name, s, many[0]))(factors),
            jax.vmap(jax.grad(loss, argnums=(0, 1)), in_axes=(None, 0))(1.0, many),
            jax.jit(jax.vmap(jax.grad(loss, argnums=(0, 1))))(factors, many),
            jax.grad(lambda s: jnp.sum(jax.vmap(loss, in_axes=(None, 0))(s, many)))(1.0),
            jax.jit(jax.jacrev(lambda s: run(name, s, many[0])))(1.0),
            jax.vmap(jax.vmap(jax.grad(loss), in_axes=(0, None)), in_axes=(None, 0))(factors, many),
        )

    found, wanted = (jax.jit(functools.partial(all_of, name))() for name in ("fused", "reference"))
    assert_close(found, wanted)
    assert_close(jax.vmap(lambda xs: run("fused", 1.0, xs))(many), wanted[0])  # not compiled
    slope = jax.vmap(jax.grad(lambda s: jnp.sum(run("fused", s, many[0]))))
    assert ("@organics_backward" in jax.jit(slope).lower(factors).as_text()) == (batch == (9,))  # native where a batch


def test_a_mapped_batch_is_one_call():
    """Its gradient too: the weights' is that of the whole batch."""
    cell, start, xs = of_kind(jnp.float32, batch=())

    def loss(parameters, many):
        return jnp.sum(jax.vmap(lambda xs: sequence(parameters, start, xs)[1])(many))

    text = jax.jit(jax.grad(loss)).lower(cell.parameters, jnp.stack([xs] * 12)).as_text()
    assert text.count("@organics_forward") == text.count("@organics_backward") == 1
    assert "while" not in text


@pytest.mark.parametrize(("variant", "how"), [(VARIANTS[0], jax.jit), (VARIANTS[1], lambda f: f)])
def test_forward_and_second_derivatives(variant, how):
    """Forward, and all four orders of two."""
    cell, start, xs = of_kind(jnp.float64, variant=variant, steps=4, batch=(2,))

    def loss(name, xs):
        return jnp.sum(
            sequence(cell.parameters, start, xs, max_rates=RATES, variant=variant, implementation=name)[1] ** 2
        )

    def along(name, function):
        return jax.jvp(lambda xs: function(name, xs), (xs,), (jnp.cos(xs),))

    assert_close(how(lambda: along("fused", loss))(), jax.jit(lambda: along("reference", loss))())
    wanted = jax.jit(jax.hessian(lambda xs: loss("reference", xs)))(xs)
    assert float(jnp.abs(wanted).max()) > 1e-4
    orders = [(outer, inner) for outer in (jax.jacrev, jax.jacfwd) for inner in (jax.jacrev, jax.jacfwd)]
    for outer, inner in orders if how is jax.jit else orders[:1]:  # not compiled one of them: the rules are the same
        assert_close(how(outer(inner(lambda xs: loss("fused", xs))))(xs), wanted)
    if how is not jax.jit:
        return
    found, third = (
        jax.jit(lambda name=name: jax.jvp(jax.hessian(lambda xs: loss(name, xs)), (xs,), (jnp.cos(xs),))[1])()
        for name in ("fused", "reference")
    )
    assert_close(found, third)


def test_linearize_vjp_and_checkpoint():
    cell, start, xs = of_kind(jnp.float64)
    found = {}
    for name in ("fused", "reference"):

        def run(xs, name=name):
            return sequence(cell.parameters, start, xs, max_rates=RATES, implementation=name)[1]

        ys, pull = jax.vjp(run, xs)
        _, along = jax.linearize(run, xs)
        remade = jax.grad(jax.checkpoint(lambda xs, run=run: jnp.sum(run(xs) ** 2)))(xs)
        found[name] = (ys, pull(jnp.cos(ys)), along(jnp.sin(xs)), jax.vmap(along)(jnp.stack([xs, xs**2])), remade)
    assert_close(found["fused"], found["reference"])


@pytest.mark.parametrize("variant", VARIANTS)
def test_nan_comes_through(variant):
    """From its step on, into the gradients, into no other sequence."""
    layer = ORGaNICs(2, 5, key=KEY, implementation="fused", variant=variant, max_rates=RATES, dtype=jnp.float64)
    xs = jax.random.normal(jax.random.key(1), (40, 3, 2)).at[7, 1, 0].set(jnp.nan)
    output, hn = layer(xs)
    wanted = np.zeros(output.shape, bool)
    wanted[7:, 1] = True
    np.testing.assert_array_equal(np.isnan(output), wanted)
    assert all(np.isnan(part[0, 1]).all() for part in hn)
    slope = eqx.filter_grad(lambda layer: layer(xs)[0].sum())(layer)
    assert bool(jnp.isnan(slope.cells[0].parameters.w_by0).any())


def test_nothing_undefined_is_kept():
    """jax_debug_nans looks at all that eager operations keep."""
    cell, start, xs = of_kind(jnp.float32, steps=37, batch=(67,))
    with jax.debug_nans(True):
        for _ in range(3):
            jax.grad(lambda xs: jnp.sum(sequence(cell.parameters, start, xs)[1]))(xs)


def test_the_same_bits_every_time():
    given = of_kind(jnp.float32, steps=9, batch=(50,), units=20)
    first = slopes("fused", *given)
    for _ in range(3):
        again = slopes("fused", *given)
        assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True))


def test_exported_programs_are_jaxs_own():
    """With a fixed shape, too: another machine has no such library."""
    layer = ORGaNICs(2, 4, key=KEY, dtype=jnp.float64)
    xs = jax.random.normal(KEY, (5, 3, 2))
    program = jax.export.export(jax.jit(lambda xs: layer(xs)[0]))(xs)
    again = jax.export.deserialize(program.serialize(vjp_order=1))
    assert_close(again.call(xs), layer(xs)[0])
    slope = jax.grad(lambda xs: jnp.sum(again.call(xs) ** 2))(xs)
    assert_close(slope, jax.grad(lambda xs: jnp.sum(layer(xs)[0] ** 2))(xs))


def test_what_is_not_native_says_so(monkeypatch):
    cell, start, xs = of_kind(jnp.float64)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (cell.parameters, start, xs))
    with pytest.raises(RuntimeError, match=r"'fused' needs float32 or float64.*the dtypes are bfloat16; choose 'auto'"):
        sequence(*half, implementation="fused")
    assert sequence(*half)[1].dtype == jnp.bfloat16
    wanted = sequence(cell.parameters, start, xs)[1]
    monkeypatch.setenv(native.VARIABLE, "0")
    with pytest.raises(RuntimeError, match="switched off by ORGANICS_JAX_FUSED"):
        sequence(cell.parameters, start, xs, implementation="fused")
    assert_close(sequence(cell.parameters, start, xs)[1], wanted)


def test_one_pull_of_many():
    """What a mapped forward pass has kept serves a derivative that is not mapped, and native."""
    cell, start, xs = of_kind(jnp.float64, steps=37, batch=(3,))
    factors = jnp.asarray([0.5, 1.5])

    def run(name, scale):
        p = cell.parameters._replace(w_by0=scale * cell.parameters.w_by0)
        return sequence(p, start, xs, max_rates=RATES, implementation=name)[1]

    pulls = jax.vmap(lambda scale: jax.vjp(lambda s: run("fused", s), scale)[1])(factors)
    found = jax.tree.map(lambda leaf: leaf[1], pulls)(jnp.ones((37, 3, 5)))
    wanted = jax.vjp(lambda s: run("reference", s), factors[1])[1](jnp.ones((37, 3, 5)))
    assert abs(float(wanted[0])) > 1e-4
    assert_close(found, wanted)
    with jax.debug_nans(True):
        jax.vmap(jax.grad(lambda s: jnp.sum(run("fused", s))))(factors)


def test_within_disable_jit():
    cell, start, xs = of_kind(jnp.float64, steps=3)
    with jax.disable_jit():
        found = jax.value_and_grad(lambda xs: loss_of("fused", cell, start, xs))(xs)
    assert_close(found, jax.value_and_grad(lambda xs: loss_of("reference", cell, start, xs))(xs))


def test_no_inputs():
    cell, start, _ = of_kind(jnp.float64)
    p = cell.parameters._replace(**{name: jnp.zeros((5, 0)) for name in ("w_zx", "w_bx0", "w_bx1")})
    xs = jnp.zeros((4, 3, 0))
    assert_close(sequence(p, start, xs), sequence(p, start, xs, implementation="reference"))


@pytest.mark.parametrize("implementation", ["auto", "chunked", "parallel", "reference"])
def test_wrong_arguments_of_a_sequence(implementation):
    cell, start, xs = of_kind(jnp.float64)
    with pytest.raises(ValueError, match="unknown variant 'rectified'"):
        sequence(cell.parameters, start, xs, variant="rectified", implementation=implementation)
    with pytest.raises(ValueError, match=r"xs must have shape \(T, ..., .*with T >= 1, got shape \(0, 3, 2\)"):
        sequence(cell.parameters, start, xs[:0], implementation=implementation)
    with pytest.raises(ValueError, match=r"xs? must have shape .*2\).*, got shape \(11, 3, 1\)"):
        sequence(cell.parameters, start, xs[..., :1], implementation=implementation)
    with pytest.raises(ValueError, match="unknown implementation 'fast'"):
        sequence(cell.parameters, start, xs, implementation="fast")


def test_an_empty_batch_and_a_wrong_shape():
    cell, _, _ = of_kind(jnp.float64)
    empty = jnp.zeros((4, 0, 2))
    start = cell.initial_state((0,))
    slope = jax.grad(lambda p: jnp.sum(sequence(p, start, empty, implementation="fused")[1]))(cell.parameters)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(slope))
    wrong = cell.parameters._replace(w_by0=jnp.zeros((4, 5)))
    with pytest.raises(RuntimeError, match=r"w_by0 has shape \(4, 5\)"):
        sequence(wrong, cell.initial_state((3,)), jnp.zeros((4, 3, 2)), implementation="fused")


PROGRAM = """
import jax, jax.numpy as jnp
from organics_jax import ORGaNICs, native
layer = ORGaNICs(2, 4, key=jax.random.key(0))
print(jax.grad(lambda x: layer(x)[0].sum())(jnp.ones((5, 3, 2))).shape)
print(native.status())
"""


def test_without_a_compiler_the_scan_is_taken(tmp_path):
    """A fresh process on a machine without compiler trains, and says nothing about it unless asked."""
    folders = dict.fromkeys(("XDG_CACHE_HOME", "TMPDIR", "PATH"), str(tmp_path))
    done = run_python(PROGRAM, **folders, CXX="", JAX_PLATFORMS="cpu", **{native.VARIABLE: ""})
    assert done.returncode == 0, done.stderr
    assert "no C++ compiler" in done.stdout
    assert not done.stderr.strip()


DEVICES = """
import jax, jax.numpy as jnp, numpy as np
from organics_jax import ORGaNICs
from organics_jax.sequence import sequence
cell = ORGaNICs(2, 4, key=jax.random.key(0)).cells[0]
xs = jax.random.normal(jax.random.key(1), (6, 8, 2))
loss = lambda p, xs: jnp.sum(sequence(p, cell.start, xs)[1] ** 2)
one = jax.grad(loss)(cell.parameters, xs)
for device in jax.devices():  # one device of several is native
    text = jax.jit(loss).lower(*jax.device_put((cell.parameters, xs), device)).as_text()
    assert "organics_forward" in text
devices = jax.sharding.Mesh(np.array(jax.devices()), ("batch",))
rows = jax.sharding.NamedSharding(devices, jax.sharding.PartitionSpec(None, "batch"))
spread = jax.device_put(xs, rows)
assert "organics_forward" not in jax.jit(loss).lower(cell.parameters, spread).as_text()
for how in (lambda f: f, jax.jit):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(how(jax.grad(loss))(cell.parameters, spread))):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
print("same")
"""


def test_one_device_of_many_is_native_and_many_are_not():
    done = run_python(DEVICES, **two_devices())
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "same"


def test_many_programs_at_once_do_not_wait_for_one_another():
    """More calls than the pool has threads, from many threads of Python."""
    program = """
import concurrent.futures, jax, jax.numpy as jnp, numpy as np
from organics_jax import ORGaNICs
layer, xs = ORGaNICs(1, 8, key=jax.random.key(0), implementation="fused"), jnp.ones((50, 40, 1))
slope = jax.jit(jax.grad(lambda xs: layer(xs)[0].sum()))
wanted = np.asarray(slope(xs))
with concurrent.futures.ThreadPoolExecutor(8) as pool:
    for found in pool.map(lambda _: np.asarray(slope(xs)), range(100)):
        np.testing.assert_array_equal(found, wanted)
print("done")
"""
    done = run_python(program)
    assert done.stdout.strip() == "done", done.stderr[-2000:]


def test_states_go_on():
    """A sequence in pieces, and a start state for all rows."""
    cell, start, xs = of_kind(jnp.float64)
    whole, ys = sequence(cell.parameters, start, xs, implementation="fused")
    middle, first = sequence(cell.parameters, start, xs[:4], implementation="fused")
    last, second = sequence(cell.parameters, middle, xs[4:], implementation="fused")
    assert_close((last, jnp.concatenate([first, second])), (whole, ys))
    assert isinstance(last, CellState)
    shared = sequence(cell.parameters, cell.start, xs, implementation="fused")
    assert_close(shared, sequence(cell.parameters, cell.initial_state((3,)), xs, implementation="reference"))
