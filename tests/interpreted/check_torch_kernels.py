"""The CUDA kernels of the recurrent layer, run by Triton's interpreter on the CPU, against the core.

Triton must be imported with TRITON_INTERPRET=1 from the start, so these tests
have a process of their own: test_torch_triton.py runs them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import organics_core as oc
from organics_core.cell import CELL_VARIANTS
from organics_torch import ORGaNICs
from organics_torch import triton_kernel as kernels

pytestmark = pytest.mark.library("torch")


def test_the_kernels_are_interpreted() -> None:
    """Otherwise nothing here would run on a CPU."""
    assert kernels.interpreted()


@pytest.fixture
def precision() -> Iterator[Any]:
    """Sets torch's precision of float32 products, and puts it back."""
    before = torch.get_float32_matmul_precision()
    yield torch.set_float32_matmul_precision
    torch.set_float32_matmul_precision(before)


def pair(n: int, **options: Any) -> tuple[ORGaNICs, ORGaNICs]:
    """The layer by the kernels, and in float64 by the core under autograd."""
    made = [
        ORGaNICs(3, n, seed=1, max_rates=oc.MaxRates(0.4, 0.3, 0.3), dtype=dtype, implementation=how, **options)
        for dtype, how in ((torch.float32, "triton"), (torch.float64, "reference"))
    ]
    # away from the kinks of W = min(exp(V), 1) and of the spectral ball, where training starts
    for layer in made:
        with torch.no_grad():
            for name, parameter in layer.named_parameters():
                if name.endswith("log_w"):
                    parameter -= 0.3
                if name.endswith("w_r.original"):
                    parameter[0] *= 1.5
    return made[0], made[1]


def results(layer: ORGaNICs, batch: int, steps: int, *, outputs: bool = True, last: bool = True) -> list[torch.Tensor]:
    """Outputs, last states, and the gradients of everything, for a loss that weighs every number differently."""
    dtype = layer.cells[0].w_zx.dtype
    noise = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=noise, dtype=torch.float64).to(dtype)

    xs = draw(steps, batch, 3).requires_grad_()
    start = [part.clone().requires_grad_() for part in layer.start_state(batch)]
    ys, hn = layer(xs, oc.CellState(*start), outputs=outputs)
    loss = sum(((part * draw(*part.shape)).sum() for part in hn), torch.zeros((), dtype=dtype)) if last else 0.0
    if outputs:
        loss = loss + (ys * draw(*ys.shape)).sum()
    names = [name for name, _ in layer.named_parameters()]
    gradients = torch.autograd.grad(loss, [xs, *start, *layer.parameters()], allow_unused=True)
    assert len(gradients) == 5 + len(names)
    return [part for part in (ys, *hn, *gradients) if part is not None]


def largest_difference(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> float:
    """Relative to the largest number of each array; the worst of them."""
    assert len(found) == len(wanted)
    return max(float((a.double() - b).abs().max() / b.abs().max()) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("variant", CELL_VARIANTS)
@pytest.mark.parametrize(("n", "recurrent"), [(16, "orthogonal"), (32, "orthogonal"), (16, "identity")])
def test_kernels_are_the_core(variant: str, n: int, recurrent: str) -> None:
    """Values and every gradient to float32's resolution; more sequences than one program takes."""
    layer, core = pair(n, variant=variant, recurrent=recurrent)
    assert largest_difference(results(layer, 18, 4), results(core, 18, 4)) < 3e-6


@pytest.mark.parametrize("n", [1, 5, 20])
def test_units_that_do_not_fill_a_tile(n: int) -> None:
    """Padding changes nothing."""
    layer, core = pair(n)
    assert largest_difference(results(layer, 2, 3), results(core, 2, 3)) < 3e-6


def test_losses_of_the_outputs_or_of_the_last_state_alone() -> None:
    """Either way into the backward pass, and no outputs at all."""
    layer, core = pair(16)
    for options in ({"last": False}, {"outputs": False}):
        assert largest_difference(results(layer, 2, 3, **options), results(core, 2, 3, **options)) < 3e-6


def test_layers_rates_that_are_fixed_and_spectral_weights() -> None:
    """What is around the kernels: two layers, parametrized W_r, rates without gradients."""
    layer, core = pair(16, num_layers=2, recurrent="spectral", learn_rates=False)
    assert largest_difference(results(layer, 2, 3), results(core, 2, 3)) < 5e-6


def test_one_step_and_no_gradient() -> None:
    """The shortest sequence, and the pass that keeps nothing."""
    layer, core = pair(16)
    assert largest_difference(results(layer, 1, 1), results(core, 1, 1)) < 3e-6
    xs = torch.ones(3, 2, 3)
    with torch.no_grad():
        ys, hn = layer(xs)
        want, want_hn = core(xs.double())
    assert largest_difference([ys, *hn], [want, *want_hn]) < 3e-6


def test_backward_twice_gives_the_same() -> None:
    """The backward pass leaves what it reads as it is."""
    layer, _ = pair(16)
    ys, _ = layer(torch.ones(3, 2, 3))
    first, second = (torch.autograd.grad(ys.sum(), list(layer.parameters()), retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("n", [64, 128])
@pytest.mark.parametrize(
    ("name", "least", "most"), [("highest", 0.0, 3e-6), ("high", 2e-5, 1e-3), ("medium", 4e-4, 2e-2)]
)
def test_errors_of_the_precisions(precision: Any, n: int, name: str, least: float, most: float) -> None:
    """The sizes of the record: the numbers are rounded as on the tensor cores, so the errors are the stated ones."""
    layer, core = pair(n)
    precision(name)
    assert least <= largest_difference(results(layer, 3, 6), results(core, 3, 6)) < most


@pytest.mark.parametrize("width", [16, 32, 64, 128])
@pytest.mark.parametrize("precision_name", ["highest", "high", "medium"])
def test_matrices_in_shared_memory_fit(width: int, precision_name: str) -> None:
    """The number that stay never exceeds the room, and grows with it."""
    counts = [kernels.resident(width, precision_name, kilobytes * 1024) for kilobytes in (0, 48, 100, 164, 227)]
    assert counts == sorted(counts)
    assert counts[0] == 0
    assert counts[-1] == 6 or width == 128
    one = width * width * {"highest": 8, "high": 4, "medium": 2}[precision_name]
    assert all(count * one <= size * 1024 for count, size in zip(counts, (0, 48, 100, 164, 227), strict=True))


def test_every_count_of_resident_matrices_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever stays in shared memory, the numbers are the same."""
    layer, _ = pair(16)
    first = results(layer, 2, 2)
    for count in range(6):
        monkeypatch.setattr(kernels, "resident", lambda *_, count=count: count)
        kernels._fits.clear()
        assert all(torch.equal(a, b) for a, b in zip(first, results(layer, 2, 2), strict=True))


def test_what_the_kernels_do_not_take() -> None:
    """By name an error that says why; otherwise the ordinary way."""
    xs = torch.zeros(2, 1, 3)
    for options, inputs, message in (
        ({"dtype": torch.float64}, xs.double(), "it takes float32, not torch.float64"),
        ({"checkpoint_every": 1}, xs, "checkpoint_every must be None"),
        ({"hidden_size": 129}, xs, "it takes at most 128 units, not 129"),
    ):
        made = {"input_size": 3, "hidden_size": 4, "seed": 0, **options}
        with pytest.raises(RuntimeError, match=f"the triton implementation cannot run this sequence: .*{message}"):
            ORGaNICs(**made, implementation="triton")(inputs)
        ORGaNICs(**made)(inputs)
