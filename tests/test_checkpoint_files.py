"""Checkpoint files in numpy alone: what is written is read, and what is wrong with a file is said by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import organics_core as oc
from organics_core.io.checkpoints import LayerSettings, load_checkpoint, save_checkpoint

pytest.importorskip("safetensors", reason="safetensors is not installed")

from organics_core.io.tensors import read_tensors, write_tensors

SETTINGS = LayerSettings(oc.MaxRates(0.2, 0.1, 0.05), "main", False, "spectral", True)


def layers(dtype=np.float64, recurrent="orthogonal"):
    """Two, the second with a sigma per neuron."""
    first = oc.init_cell(0, 3, 4, dtype=dtype, recurrent=recurrent)
    second, start = oc.init_cell(1, 4, 4, dtype=dtype, recurrent=recurrent)
    return [first, (second._replace(sigma=np.linspace(0.5, 1.5, 4, dtype=dtype)), start)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("recurrent", ["orthogonal", "identity"])
def test_what_is_saved_is_loaded_to_the_bit(tmp_path: Path, dtype, recurrent) -> None:
    saved, readout = layers(dtype, recurrent), (np.ones((5, 4), dtype), np.arange(5, dtype=dtype))
    settings = SETTINGS._replace(recurrent=recurrent)
    file = tmp_path / "new" / "folder" / "file.safetensors"
    save_checkpoint(file, saved, readout, settings)
    found = load_checkpoint(file)
    assert found.settings == settings
    for (parameters, start), layer in zip(saved, found.layers, strict=True):
        for name, value in (*parameters._asdict().items(), *start._asdict().items()):
            back = getattr(layer.parameters, name, None) if name in parameters._fields else getattr(layer.start, name)
            if value is None:
                assert back is None
            else:
                assert back.dtype == dtype
                np.testing.assert_array_equal(back, value)
    for back, value in zip(found.readout, readout, strict=True):
        np.testing.assert_array_equal(back, value)
    before = file.read_bytes()
    save_checkpoint(file, saved, readout, settings)
    assert file.read_bytes() == before


@pytest.fixture
def content(tmp_path: Path):
    """Tensors and header of a good file, and what a file with others of them is said to be."""
    save_checkpoint(tmp_path / "good.safetensors", layers(), (np.ones((5, 4)), np.ones(5)), SETTINGS)
    tensors, header = read_tensors(tmp_path / "good.safetensors")

    def told(tensors, header) -> str:
        write_tensors(tmp_path / "bad.safetensors", tensors, header)
        with pytest.raises(ValueError, match="bad") as error:
            load_checkpoint(tmp_path / "bad.safetensors")
        return str(error.value)

    return tensors, header, told


def test_every_tensor_is_needed_and_no_other(content) -> None:
    tensors, header, told = content
    last = {name for name in tensors if name.startswith("layers.1.")}
    for name in sorted(tensors):
        rest = {other: value for other, value in tensors.items() if other != name}
        assert f"lacks the tensor '{name}'" in told(rest, header)
    assert len(last) == 18
    assert "unexpected tensor 'spare'" in told({**tensors, "spare": np.ones(2)}, header)
    assert "unexpected tensor 'layers.3.w_r'" in told({**tensors, "layers.3.w_r": np.ones((4, 4))}, header)


def test_shapes_and_dtypes_are_checked(content) -> None:
    tensors, header, told = content
    for name, value in tensors.items():
        wide = np.ones((*value.shape, 2))
        assert f"tensor '{name}' must have shape (" in told({**tensors, name: wide}, header)
        first = name == "layers.0.w_zx"
        wanted = f"'{name}' must have dtype " + ("float32 or float64" if first else "float64, as the first tensor")
        assert wanted in told({**tensors, name: value.astype(np.int64)}, header)


def test_the_header_is_checked(content) -> None:
    tensors, header, told = content
    assert "lacks format 'organics-core layers'" in told(tensors, {**header, "format": "other"})
    assert "has version '9' of the checkpoint format" in told(tensors, {**header, "version": "9"})
    for name in LayerSettings._fields:
        rest = {key: value for key, value in header.items() if key != name}
        assert f"lacks the setting '{name}'" in told(tensors, rest)
        assert f"broken setting '{name}'" in told(tensors, {**header, name: "{"})
    assert "broken setting 'max_rates'" in told(tensors, {**header, "max_rates": json.dumps({"y": 1.0})})
    for name, value in (("variant", "none"), ("recurrent", "none"), ("learn_rates", 1), ("batch_first", "yes")):
        message = told(tensors, {**header, name: json.dumps(value)})
        assert "a broken setting in its header: " in message
        assert name in message


def test_damage_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "file.safetensors"
    save_checkpoint(file, layers())
    whole = bytearray(file.read_bytes())
    whole[-1] ^= 1
    file.write_bytes(whole)
    with pytest.raises(ValueError, match=r"file\.safetensors is damaged"):
        load_checkpoint(file)
    file.write_bytes(whole[:100])
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        load_checkpoint(file)
    with pytest.raises(ValueError, match="there is no checkpoint file"):
        load_checkpoint(tmp_path / "none")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (([1],), "pairs"),
        (([(1, 2)],), r"layers\[0\]\[0\] must be CellParameters"),
        (([(layers()[0][0], 2)],), r"layers\[0\]\[1\] must be a CellState"),
        ((layers(), 3), "readout must be a pair"),
        ((layers(), None, "main"), "settings must be LayerSettings"),
        ((layers(), None, SETTINGS._replace(learn_rates=1)), "learn_rates must be true or false, got 1"),
    ],
)
def test_what_is_no_checkpoint_is_not_written(tmp_path: Path, arguments, told) -> None:
    """And the file that was there stays."""
    file = tmp_path / "file.safetensors"
    file.write_text("as before")
    with pytest.raises(TypeError, match=told):
        save_checkpoint(file, *arguments)
    assert file.read_text() == "as before"
    assert list(tmp_path.iterdir()) == [file]
