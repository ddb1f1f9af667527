"""One checkpoint file for every framework: trained in one, it computes the same in the others, and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import ELSEWHERE, to_numpy

import organics_core as oc
from organics_core.io.checkpoints import LayerSettings, load_checkpoint, save_checkpoint

torch_only, jax_only = pytest.mark.library("torch"), pytest.mark.library("jax")
both = pytest.mark.library("torch", "jax", together=True)
PAIRS = [
    pytest.param("torch", "numpy", marks=torch_only),
    pytest.param("torch", "torch", marks=torch_only),
    pytest.param("jax", "numpy", marks=jax_only),
    pytest.param("torch", "jax", marks=both),
    pytest.param("jax", "torch", marks=both),
]
RECURRENTS = ("orthogonal", "identity", "spectral")
XS = np.random.default_rng(1).standard_normal((9, 4, 3)).astype(np.float32)  # steps, batch, input
LABELS = np.arange(4)


def trained(framework: str, **options: Any) -> Any:
    """A classifier of two layers after a few steps of Adam."""
    if framework == "torch":
        import torch

        from organics_torch import ORGaNICsClassifier

        torch.manual_seed(0)
        model = ORGaNICsClassifier(3, 6, 5, num_layers=2, **options)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        for _ in range(3):
            optimizer.zero_grad()
            scores = model(torch.as_tensor(XS).swapaxes(0, 1))
            torch.nn.functional.cross_entropy(scores, torch.as_tensor(LABELS)).backward()
            optimizer.step()
        return model
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    import optax

    from organics_jax import ORGaNICsClassifier as JaxClassifier

    own = JaxClassifier(3, 6, 5, num_layers=2, key=jax.random.key(0), dtype=jnp.float32, **options)
    xs = jnp.asarray(XS).swapaxes(0, 1)

    @eqx.filter_jit
    @eqx.filter_grad
    def slope(model: Any) -> Any:
        return optax.softmax_cross_entropy_with_integer_labels(model(xs), jnp.asarray(LABELS)).mean()

    optimizer = optax.adam(0.02)
    state = optimizer.init(eqx.filter(own, eqx.is_inexact_array))
    for _ in range(3):
        updates, state = optimizer.update(slope(own), state)
        own = eqx.apply_updates(own, updates)
    return own


def scores(framework: str, model: Any) -> np.ndarray:
    if framework == "torch":
        import torch

        with torch.no_grad():
            return to_numpy(model(torch.as_tensor(XS).swapaxes(0, 1)))
    import equinox as eqx
    import jax.numpy as jnp

    return np.asarray(eqx.filter_jit(lambda model, xs: model(xs))(model, jnp.asarray(XS).swapaxes(0, 1)))


def numpy_scores(path: Path) -> np.ndarray:
    """What the core computes from the file, in numpy alone."""
    found = load_checkpoint(path)
    signal = XS
    for parameters, start in found.layers:
        begin = oc.CellState(*(np.broadcast_to(part, (XS.shape[1], part.shape[-1])) for part in start))
        _, signal = oc.cell_sequence(
            parameters, begin, signal, max_rates=found.settings.max_rates, variant=found.settings.variant
        )
    assert found.readout is not None
    return signal[-1] @ found.readout.weight.T + found.readout.bias


def adapter(framework: str) -> Any:
    if framework == "torch":
        import organics_torch

        return organics_torch
    import organics_jax

    return organics_jax


@pytest.mark.parametrize(
    ("writer", "reader", "recurrent"),
    [
        *(pytest.param(*pair.values, recurrent, marks=pair.marks) for pair in PAIRS for recurrent in RECURRENTS),
        pytest.param("jax", "jax", "spectral", marks=jax_only),
    ],
)
def test_trained_here_read_there(tmp_path: Path, writer: str, reader: str, recurrent: str) -> None:
    """Same outputs to 1e-5; written again by the reader, the file holds the same numbers."""
    model = trained(writer, recurrent=recurrent, max_rates=oc.MaxRates(y=0.3, a=0.1))
    want = scores(writer, model)
    assert np.ptp(want) > 0.1
    path, again = tmp_path / "model.safetensors", tmp_path / "again.safetensors"
    adapter(writer).save(path, model)
    if reader == "numpy":
        got = numpy_scores(path)
        found = load_checkpoint(path)
        save_checkpoint(again, found.layers, found.readout, found.settings)
    else:
        read = adapter(reader).load(path)
        got = scores(reader, read)
        adapter(reader).save(again, read)
    assert got.dtype == want.dtype
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    one, other = load_checkpoint(path), load_checkpoint(again)
    assert one.settings == other.settings
    assert one.settings.recurrent == recurrent
    for left, right in zip(one.layers, other.layers, strict=True):
        for tree, copy in zip(left, right, strict=True):
            for name, value, same in zip(tree._fields, tree, copy, strict=True):
                if value is not None:
                    np.testing.assert_allclose(same, value, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("framework", [pytest.param("torch", marks=torch_only), pytest.param("jax", marks=jax_only)])
def test_files_that_are_none(tmp_path: Path, framework: str) -> None:
    """Each error names the file and what is wrong with it, and executes nothing."""
    pytest.importorskip("safetensors")
    load = adapter(framework).load
    missing = tmp_path / "missing.safetensors"
    with pytest.raises(ValueError, match=r"no checkpoint file .*missing\.safetensors"):
        load(missing)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"cos\nsystem\n(S'touch hacked'\ntR.")
    with pytest.raises(ValueError, match=r"broken\.safetensors is not a readable safetensors file"):
        load(broken)
    path = tmp_path / "model.safetensors"
    adapter(framework).save(path, trained(framework))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"model\.safetensors is not a readable safetensors file"):
        load(path)


@torch_only
@jax_only
def test_nothing_half_written(tmp_path: Path) -> None:
    """A tensor of a wrong shape is refused by name, and the file that was there stays."""
    path = tmp_path / "model.safetensors"
    parameters, start = oc.init_cell(0, 2, 4)
    save_checkpoint(path, [(parameters, start)], settings=LayerSettings())
    before = path.read_bytes()
    with pytest.raises(ValueError, match="w_r"):
        save_checkpoint(path, [(parameters._replace(w_r=np.zeros((3, 3))), start)])
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


@torch_only
@jax_only
def test_damage_is_noticed(tmp_path: Path) -> None:
    """100 bytes of the numbers, or one of the settings; a file without a checksum is read as ever."""
    from safetensors.numpy import load_file, save_file

    path = tmp_path / "model.safetensors"
    save_checkpoint(path, [oc.init_cell(0, 2, 4)])
    whole = path.read_bytes()
    size = 8 + int.from_bytes(whole[:8], "little")
    for first, count in ((size + 50, 100), (whole.index(b"0.05"), 1)):
        damaged = bytearray(whole)
        damaged[first : first + count] = bytes(byte ^ 1 for byte in damaged[first : first + count])
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
            load_checkpoint(path)
    path.write_bytes(whole)
    old = {"format": "organics-core layers", "version": "1"} | {
        name: json.dumps(value._asdict() if name == "max_rates" else value)
        for name, value in LayerSettings()._asdict().items()
    }
    save_file(load_file(path), path, metadata=old)
    assert load_checkpoint(path).settings == LayerSettings()


@torch_only
@jax_only
def test_equal_layers_are_equal_files_and_links_stay(tmp_path: Path) -> None:
    link, target = tmp_path / "link.safetensors", tmp_path / "folder" / "model.safetensors"
    target.parent.mkdir()
    try:
        link.symlink_to(target)
    except OSError:
        pytest.skip(f"{ELSEWHERE}no symbolic links")
    save_checkpoint(link, [oc.init_cell(0, 2, 4)])
    assert link.is_symlink()
    save_checkpoint(tmp_path / "again", [oc.init_cell(0, 2, 4)])
    assert target.read_bytes() == (tmp_path / "again").read_bytes()


@pytest.mark.parametrize("framework", [pytest.param("torch", marks=torch_only), pytest.param("jax", marks=jax_only)])
def test_half_precision_is_refused_in_words(tmp_path: Path, framework: str) -> None:
    if framework == "torch":
        import torch

        model, words = trained("torch").to(torch.bfloat16), r"model has torch\.bfloat16 .* save model\.float\(\)"
    else:
        import jax
        import jax.numpy as jnp

        from organics_jax import ORGaNICs

        model, words = ORGaNICs(2, 3, key=jax.random.key(0), dtype=jnp.bfloat16), "float32 or float64, got bfloat16"
    with pytest.raises((TypeError, ValueError), match=words):
        adapter(framework).save(tmp_path / "model.safetensors", model)
    assert list(tmp_path.iterdir()) == []
