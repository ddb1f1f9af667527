"""The data of the training tasks: idx files, MNIST's folders and downloads, digits, adding, copy."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import struct
import threading
import urllib.error
from urllib.request import urlopen

import numpy as np
import pytest
from support import ELSEWHERE

from organics_train import datasets
from organics_train.datasets import adding_problem, copy_problem, load_dataset, mnist_folder


def idx(array):
    array = np.asarray(array, dtype=np.uint8)
    header = b"\x00\x00\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.tobytes()


def write_idx(path, array):
    path.write_bytes(gzip.compress(idx(array)))
    return path


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """No MNIST anywhere, an empty cache folder, no network."""
    monkeypatch.delenv("ORGANICS_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def refuse(url, timeout):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(datasets.urllib.request, "urlopen", refuse)
    return tmp_path


@pytest.fixture
def tiny(alone, monkeypatch):
    """A synthetic MNIST of 10 images, as files."""
    monkeypatch.setattr(datasets, "MNIST_SPLIT", (5, 2, 3))
    rng = np.random.default_rng(3)
    images, labels = rng.integers(0, 256, (10, 28, 28)), np.arange(10)
    contents = {
        "train-images-idx3-ubyte.gz": images[:7],
        "train-labels-idx1-ubyte.gz": labels[:7],
        "t10k-images-idx3-ubyte.gz": images[7:],
        "t10k-labels-idx1-ubyte.gz": labels[7:],
    }
    folder = alone / "data"
    folder.mkdir()
    for name, array in contents.items():
        write_idx(folder / name, array)
    sums = {name: hashlib.sha256(idx(array)).hexdigest() for name, array in contents.items()}
    monkeypatch.setattr(datasets, "CHECKSUMS", sums)
    monkeypatch.setenv("ORGANICS_DATA", str(folder))
    return folder, images, labels


def read_idx(path, axes):
    return datasets._parse_idx(datasets._unzipped(path), str(path), axes)


def test_idx_round_trip(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (3, 4, 5))
    read = read_idx(write_idx(tmp_path / "a.gz", array), axes=3)
    assert read.dtype == np.uint8
    assert np.array_equal(read, array)


@pytest.mark.parametrize(
    ("content", "message"),  # mtime=0: with the time in it, two processes collect two lists of tests
    [
        (b"not gzip at all", "corrupt"),
        (gzip.compress(idx(np.ones(5)), mtime=0)[:-12], "corrupt"),
        (gzip.compress(b"", mtime=0), "starts with nothing"),
        (gzip.compress(b"\x00\x00\x0d\x01" + bytes(8), mtime=0), "no idx file of bytes"),
        (gzip.compress(b"\x00\x00\x08\x01" + bytes(2), mtime=0), "header is cut short"),
        (gzip.compress(idx(np.ones((2, 2))), mtime=0), "2 axes, expected 1"),
        (gzip.compress(idx(np.ones(5))[:-1], mtime=0), "4 bytes, its header says 5"),
        (gzip.compress(idx(np.ones(5)) + b"x", mtime=0), "6 bytes, its header says 5"),
        (gzip.compress(b"\x00\x00\x08\x01\xff\xff\xff\xff", mtime=0), "header says 4294967295"),
    ],
)
def test_corrupt_idx_is_named(tmp_path, content, message):
    path = tmp_path / "bad-idx1-ubyte.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_idx(path, axes=1)
    assert str(path) in str(caught.value)


def test_mnist_tasks_from_files(tiny):
    _, images, labels = tiny
    pixels = (images / 255.0).astype(np.float32)
    rows = load_dataset("rowmnist")
    assert [len(part) for part in (rows.x_train, rows.x_validation, rows.x_test)] == [5, 2, 3]
    assert np.array_equal(np.concatenate([rows.x_train, rows.x_validation, rows.x_test]), pixels)
    assert np.array_equal(np.concatenate([rows.y_train, rows.y_validation, rows.y_test]), labels)
    assert (rows.steps, rows.input_size, rows.outputs, rows.kind) == (28, 28, 10, "classes")
    assert np.array_equal(load_dataset("mnist").x_train, pixels[:5].reshape(5, 1, 784))
    assert np.array_equal(load_dataset("smnist").x_train, pixels[:5].reshape(5, 784, 1))


def test_another_data_set_of_these_names_is_not_mnist(tiny):
    folder, images, _ = tiny
    write_idx(folder / "t10k-images-idx3-ubyte.gz", 255 - images[7:])
    with pytest.raises(ValueError, match=r"t10k-images-idx3-ubyte\.gz is not MNIST's: unzipped it has the sha256"):
        load_dataset("mnist")


def test_permuted_pixels_are_the_same_pixels(tiny):
    plain, permuted = load_dataset("smnist").x_test, load_dataset("psmnist").x_test
    assert not np.array_equal(plain, permuted)
    assert np.array_equal(np.sort(plain, axis=1), np.sort(permuted, axis=1))
    assert np.array_equal(permuted, load_dataset("psmnist").x_test)


def test_coarse_images_are_block_means(tiny):
    _, images, _ = tiny
    coarse = load_dataset("smnist", downsample=2).x_train
    assert coarse.shape == (5, 196, 1)
    assert coarse[0, 0, 0] == pytest.approx(images[0, :2, :2].mean() / 255, rel=1e-5)
    assert coarse[0, 15, 0] == pytest.approx(images[0, 2:4, 2:4].mean() / 255, rel=1e-5)
    with pytest.raises(ValueError, match="downsample must divide the 28 x 28"):
        load_dataset("smnist", downsample=3)
    with pytest.raises(ValueError, match="not for 'copy'"):
        load_dataset("copy", downsample=2)


def test_mnist_is_found_in_the_subfolder_and_in_the_cache(tiny, monkeypatch):
    folder, *_ = tiny
    assert mnist_folder() == folder
    (folder.parent / "mnist").symlink_to(folder)
    monkeypatch.setenv("ORGANICS_DATA", str(folder.parent))
    assert mnist_folder() == folder.parent / "mnist"
    monkeypatch.delenv("ORGANICS_DATA")
    cache = datasets.cache_folder()
    cache.mkdir(parents=True)
    (cache / "mnist").symlink_to(folder)
    assert mnist_folder() == cache / "mnist"


def test_mnist_in_the_home_folder_and_unpacked(tiny, monkeypatch):
    """``~`` is the home folder; of the four files some may be packed and some not; what is packed is preferred."""
    folder, images, labels = tiny
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.setenv("USERPROFILE", str(folder.parent))
    monkeypatch.setenv("ORGANICS_DATA", f"~/{folder.name}")
    assert mnist_folder() == folder
    packed = load_dataset("rowmnist")
    for name in ("train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
        (folder / name).write_bytes(gzip.decompress((folder / f"{name}.gz").read_bytes()))
        (folder / f"{name}.gz").unlink()
    for got, want in zip(load_dataset("rowmnist"), packed, strict=True):
        np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(np.round(255 * packed.x_train), images[:5])
    (folder / "t10k-labels-idx1-ubyte").write_bytes(idx(labels[7:] + 1))
    with pytest.raises(ValueError, match="t10k-labels-idx1-ubyte is not MNIST's"):
        load_dataset("rowmnist")


def test_no_mnist_is_one_sentence(alone):
    with pytest.raises(FileNotFoundError, match=r"cannot be downloaded \(no network\); set ORGANICS_DATA") as caught:
        load_dataset("mnist")
    assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match="MNIST is not in"):
        mnist_folder(download=False)


def test_download_checks_the_content_and_leaves_nothing_half(alone, monkeypatch):
    good = {name: gzip.compress(name.encode()) for name in datasets.CHECKSUMS}
    sums = {name: hashlib.sha256(name.encode()).hexdigest() for name in good}
    monkeypatch.setattr(datasets, "CHECKSUMS", sums)
    asked = []

    def serve(url, timeout):
        asked.append(url)
        name = url.rsplit("/", 1)[1]
        if url.startswith(datasets.MIRRORS[0]):
            return io.BytesIO(gzip.compress(b"something else") if "labels" in name else good[name][:-9])
        return io.BytesIO(good[name])

    monkeypatch.setattr(datasets.urllib.request, "urlopen", serve)
    folder = mnist_folder()
    assert len(asked) == 8
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == good
    assert mnist_folder() == folder
    assert len(asked) == 8


def test_wrong_download_is_not_kept(alone, monkeypatch):
    monkeypatch.setattr(datasets.urllib.request, "urlopen", lambda url, timeout: io.BytesIO(gzip.compress(b"x")))
    with pytest.raises(FileNotFoundError, match="has the sha256"):
        mnist_folder()
    assert list((datasets.cache_folder() / "mnist").iterdir()) == []


class Cut(http.server.BaseHTTPRequestHandler):
    """Half of every file, and then the connection ends."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(gzip.compress(b"x")[:9])

    def log_message(self, *arguments):
        pass


def test_download_that_is_cut_short(alone, monkeypatch):
    """By a real server: the next mirror is asked, and where there is none, it is one sentence and no file."""
    asked = []

    def open_url(url, timeout):
        asked.append(url)
        return urlopen(url, timeout=timeout)

    monkeypatch.setattr(datasets.urllib.request, "urlopen", open_url)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Cut) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        mirrors = tuple(f"http://127.0.0.1:{server.server_port}/{name}/" for name in "ab")
        monkeypatch.setattr(datasets, "MIRRORS", mirrors)
        with pytest.raises(FileNotFoundError, match=r"b/train-images-idx3-ubyte\.gz came cut short"):
            mnist_folder()
        server.shutdown()
    assert [url.split("/")[3] for url in asked] == ["a", "b"]
    assert list((datasets.cache_folder() / "mnist").iterdir()) == []


def test_real_mnist():
    try:
        folder = mnist_folder(download=False)
    except FileNotFoundError as error:
        pytest.skip(f"{ELSEWHERE}{error}")
    for name, digest in datasets.CHECKSUMS.items():
        assert hashlib.sha256(gzip.decompress((folder / name).read_bytes())).hexdigest() == digest
    data = load_dataset("mnist", limit=100)
    assert [len(part) for part in (data.x_train, data.x_validation, data.x_test)] == [100, 3_000, 10_000]
    assert data.x_test.mean() == pytest.approx(0.132515, abs=1e-5)


def test_digits():
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    data = load_dataset("digits")
    assert [len(part) for part in (data.x_train, data.x_validation, data.x_test)] == [1257, 180, 360]
    assert data.x_train.shape[1:] == (8, 8)
    assert data.x_train.dtype == np.float32
    assert (data.x_train.min(), data.x_train.max()) == (0, 1)
    assert set(data.y_test) == set(range(10))


def test_adding_problem():
    x, y = adding_problem(5, 200, 11)
    assert x.shape == (200, 11, 2)
    marks = x[..., 1]
    assert np.array_equal(marks[:, :5].sum(1), np.ones(200))
    assert np.array_equal(marks[:, 5:].sum(1), np.ones(200))
    assert np.allclose(y, [row[mark == 1].sum() for row, mark in zip(x[..., 0], marks, strict=True)])
    assert np.mean((y - 1) ** 2) == pytest.approx(1 / 6, abs=0.07)  # five standard errors
    again = adding_problem(5, 200, 11)
    assert np.array_equal(x, again[0])
    assert not np.array_equal(x, adding_problem(6, 200, 11)[0])


def test_copy_problem():
    x, y = copy_problem(5, 50, 7)
    shown = x.argmax(-1)
    assert x.shape == (50, 27, 10)
    assert np.array_equal(x.sum(-1), np.ones((50, 27)))
    assert np.array_equal(shown[:, :10], y[:, -10:])
    assert set(shown[:, :10].ravel()) == set(range(1, 9))
    assert np.array_equal(np.flatnonzero(shown[0] == 9), [16])
    assert np.all(shown[:, 17:] == 0)
    assert np.all(y[:, :-10] == 0)


@pytest.mark.parametrize("task", ["adding", "copy"])
def test_synthetic_parts_to_compare_on_do_not_depend_on_the_number_of_examples(task):
    few, many = (load_dataset(task, length=6, samples=count) for count in (5, 9))
    for one, other in zip(few[3:7], many[3:7], strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(few.x_validation, few.x_test)


def test_synthetic_parts_differ_and_are_seeded():
    data = load_dataset("adding", length=20, samples=30)
    again = load_dataset("adding", length=20, samples=30)
    assert np.array_equal(data.x_train, again.x_train)
    assert not np.array_equal(data.x_validation, data.x_test)
    assert (len(data.x_train), data.kind, data.outputs) == (30, "number", 1)


def test_wrong_arguments():
    with pytest.raises(ValueError, match="unknown task 'cifar'"):
        load_dataset("cifar")
    with pytest.raises(ValueError, match="length must be at least 2"):
        adding_problem(0, 5, 1)
    with pytest.raises(ValueError, match="limit must be at least 1"):
        load_dataset("copy", limit=0, samples=2)
