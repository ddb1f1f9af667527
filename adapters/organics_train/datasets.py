"""The data of the training tasks, as numpy arrays; no framework here.

MNIST is looked for in ``$ORGANICS_DATA`` (the folder itself, or its subfolder
``mnist``), then in the user's cache folder, and else downloaded there. Its four
idx files may be packed (.gz) or not.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import itertools
import os
import struct
import sys
import tempfile
import urllib.request
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from organics_core import checks

from .cognitive import PREFIX, Trials, make_parts

Array = np.ndarray[Any, Any]

TASKS = ("digits", "mnist", "smnist", "psmnist", "rowmnist", "adding", "copy")
MNIST_SPLIT = (57_000, 3_000, 10_000)
DIGITS_SPLIT = (1_257, 180, 360)
TRIALS = (1_000, 1_000)
"""Of NeuroGym, for validation and test."""
PERMUTATION_SEED = 0

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)

# sha256 of the files' content after decompression: the same whatever program compressed them
CHECKSUMS = {
    "train-images-idx3-ubyte.gz": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte.gz": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte.gz": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte.gz": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


IDX_BYTES = b"\x00\x00\x08"
"""How an idx file of unsigned bytes begins; packed ones begin otherwise."""


class Dataset(NamedTuple):
    """One task: inputs (N, T, k) in float32 and targets, in three parts.

    Attributes
    ----------
    name : str
    x_train, x_validation, x_test : float32 arrays (N, T, k)
    y_train, y_validation, y_test : arrays
        Integer classes (N,) for ``kind="classes"``, integer classes of every
        step (N, T) for ``"steps"``, float32 numbers (N,) for ``"number"`` or of
        every step (N, T, outputs) for ``"numbers"``.
    kind : {"classes", "steps", "number", "numbers"}
    outputs : int
        What the readout has: the number of classes, or of numbers.
    scored_steps : int
        With targets of every step: accuracy is counted over the last so many; 0 is all.
    """

    name: str
    x_train: Array
    y_train: Array
    x_validation: Array
    y_validation: Array
    x_test: Array
    y_test: Array
    kind: str
    outputs: int
    scored_steps: int = 0

    @property
    def every_step(self) -> bool:
        """Whether there is a target at every step."""
        return self.kind in ("steps", "numbers")

    @property
    def steps(self) -> int:
        """T, the number of steps of every sequence."""
        return int(self.x_train.shape[1])

    @property
    def input_size(self) -> int:
        """k, the number of inputs at every step."""
        return int(self.x_train.shape[2])


KINDS = {"classes": "(N,)", "steps": "(N, T)", "number": "(N,)", "numbers": "(N, T, outputs)"}
"""The kinds of targets, and their shapes."""


def checked(data: Dataset) -> Dataset:
    """Data of one's own as training takes them: float32, and classes in int64.

    Raises
    ------
    TypeError, ValueError
        Naming the array whose dtype, shape or classes are wrong: a training would go on with targets that it
        repeats along an axis or leaves out.
    """
    if not isinstance(data, Dataset):
        raise TypeError(f"data must be a Dataset, got {checks.describe(data)}")
    checks.one_of("kind", data.kind, KINDS)
    outputs = checks.positive_integer("outputs", data.outputs)
    if data.kind == "number" and outputs != 1:
        raise ValueError(f"outputs must be 1 for kind 'number', got {outputs}")
    parts: dict[str, Any] = {}
    for part in ("train", "validation", "test"):
        x, y = np.asarray(getattr(data, f"x_{part}")), np.asarray(getattr(data, f"y_{part}"))
        first = parts.get("x_train")
        fits = x.ndim == 3 and 0 not in x.shape and (first is None or x.shape[1:] == first.shape[1:])
        if x.dtype.kind not in "fiub" or not fits:
            wanted = "(N, T, k)" if first is None else f"(N, {first.shape[1]}, {first.shape[2]})"
            raise ValueError(
                f"x_{part} must hold numbers of shape {wanted}, at least one sequence, got {x.dtype} of shape {x.shape}"
            )
        shape = (len(x), *(x.shape[1:2] if data.every_step else ()), *((outputs,) if data.kind == "numbers" else ()))
        if y.shape != shape:
            raise ValueError(
                f"y_{part} must have shape {KINDS[data.kind]} for kind {data.kind!r}, here {shape}, got {y.shape}"
            )
        integers = data.kind in ("classes", "steps")
        if y.dtype.kind not in ("iu" if integers else "fiu"):
            wanted = "integer classes" if integers else "numbers"
            raise TypeError(f"y_{part} must hold {wanted} for kind {data.kind!r}, got dtype {y.dtype}")
        if integers:
            checks.classes(f"y_{part}", int(y.min()), int(y.max()), outputs)
        for name, array, dtype in (
            (f"x_{part}", x, np.float32),
            (f"y_{part}", y, np.int64 if integers else np.float32),
        ):
            with np.errstate(over="ignore"):
                parts[name] = array.astype(dtype, copy=False)
            finite = np.isfinite(parts[name])
            if not finite.all():
                raise ValueError(f"{name} must be finite in float32, got {array[~finite][0]}")
    scored = data.scored_steps
    if data.every_step and not (checks.is_number(scored) and 0 <= scored <= parts["x_train"].shape[1]):
        raise ValueError(f"scored_steps must be from 0, all, to the {parts['x_train'].shape[1]} steps, got {scored!r}")
    return data._replace(**parts)


def fingerprint(data: Dataset) -> str:
    """The sha256 of all that is in it but its name."""
    digest = hashlib.sha256(repr((data.kind, data.outputs, data.scored_steps)).encode())
    for part in data[1:7]:
        array = np.ascontiguousarray(part)
        digest.update(f"{array.dtype.str} {array.shape}".encode())
        digest.update(array.data if array.size else b"")
    return digest.hexdigest()


def load_dataset(
    task: str,
    *,
    downsample: int = 1,
    limit: int | None = None,
    length: int = 100,
    samples: int = 20_000,
    data_seed: int = 0,
    task_options: dict[str, Any] | None = None,
) -> Dataset:
    """The data of one task.

    Parameters
    ----------
    task : str
        ``"digits"``, scikit-learn's 8 x 8 digits, one row per step;
        ``"mnist"``, the whole image in one step; ``"rowmnist"``, one row per
        step; ``"smnist"``, one pixel per step; ``"psmnist"``, the pixels in a
        fixed random order; ``"adding"`` and ``"copy"``, made here;
        ``"neurogym:NAME"``, trials of a task of NeuroGym.
    downsample : int
        Average MNIST over blocks of so many pixels a side: 2 gives 14 x 14.
    limit : int, optional
        Keep the first so many training examples.
    length : int
        T of the adding problem, delay of the copying problem.
    samples : int
        Training examples of the adding and copying problems, and trials; those of the other parts
        do not depend on it, though trials are padded to the longest of all.
    data_seed : int
        Of the adding and copying problems, and of trials.
    task_options : dict, optional
        Of NeuroGym's task.

    Returns
    -------
    Dataset

    Raises
    ------
    ValueError
        For an unknown task, a wrong option, or a corrupt file, which is named.
    FileNotFoundError
        Where MNIST is neither on this machine nor to be downloaded.
    ImportError
        For ``"digits"`` without scikit-learn, and for tasks of NeuroGym without it.

    Examples
    --------
    >>> data = load_dataset("adding", length=20, samples=100)
    >>> data.x_train.shape, data.kind
    ((100, 20, 2), 'number')
    """
    check_task(task)
    downsample = checks.positive_integer("downsample", downsample)
    if downsample > 1 and task not in ("mnist", "smnist", "psmnist", "rowmnist"):
        raise ValueError(f"downsample is for the MNIST tasks, not for {task!r}")
    if task == "digits":
        data = _digits()
    elif task == "adding":
        data = _synthetic(task, adding_problem, length, samples, data_seed)
    elif task == "copy":
        data = _synthetic(task, copy_problem, length, samples, data_seed)
    elif task.startswith(PREFIX):
        data = of_trials(task, trial_parts(task, task_options or {}, samples, data_seed))
    else:
        data = _mnist(task, downsample)
    if limit is not None:
        limit = checks.positive_integer("limit", limit)
        data = data._replace(x_train=data.x_train[:limit], y_train=data.y_train[:limit])
    return data


def check_task(task: str) -> None:
    """ValueError unless it is one of ``TASKS`` or begins as one of NeuroGym does, which knows its names."""
    if not (isinstance(task, str) and task.startswith(PREFIX)):
        checks.one_of("task", task, (*TASKS, f"{PREFIX}NAME"))


def adding_problem(seed: int | np.random.Generator, samples: int, length: int) -> tuple[Array, Array]:
    """The adding problem: the sum of the two numbers that are marked.

    Parameters
    ----------
    seed : int or numpy.random.Generator
    samples, length : int
        Number of sequences and of their steps, at least 2.

    Returns
    -------
    x : float32 array (samples, length, 2)
        Numbers uniform(0, 1), and marks: one in either half.
    y : float32 array (samples,)

    Notes
    -----
    Hochreiter & Schmidhuber (1997), section 5.4, in the form of Arjovsky, Shah
    & Bengio (2016), section 4.2. Answering 1 always has the mean squared error
    1/6.
    """
    samples, length = checks.positive_integer("samples", samples), checks.positive_integer("length", length)
    if length < 2:
        raise ValueError(f"length must be at least 2 for the adding problem, got {length}")
    rng = np.random.default_rng(seed)
    numbers = rng.random((samples, length), dtype=np.float32)
    marks = np.zeros((samples, length), dtype=np.float32)
    rows = np.arange(samples)
    marks[rows, rng.integers(0, length // 2, samples)] = 1.0
    marks[rows, rng.integers(length // 2, length, samples)] = 1.0
    return np.stack([numbers, marks], axis=-1), (numbers * marks).sum(axis=1)


def copy_problem(seed: int | np.random.Generator, samples: int, length: int, symbols: int = 10) -> tuple[Array, Array]:
    """The copying problem: ten symbols, to be said again after a delay.

    Parameters
    ----------
    seed : int or numpy.random.Generator
    samples : int
    length : int
        The delay, in steps.
    symbols : int
        How many are to be remembered.

    Returns
    -------
    x : float32 array (samples, length + 2 symbols, 10)
        One-hot: blank 0, symbols 1 to 8, and the sign 9 to begin.
    y : int64 array (samples, length + 2 symbols)

    Notes
    -----
    Arjovsky, Shah & Bengio (2016), section 4.1. Answering without memory has
    the cross entropy symbols log 8 / (length + 2 symbols).
    """
    samples, length = checks.positive_integer("samples", samples), checks.positive_integer("length", length)
    symbols = checks.positive_integer("symbols", symbols)
    rng = np.random.default_rng(seed)
    message = rng.integers(1, 9, (samples, symbols))
    total = length + 2 * symbols
    shown = np.zeros((samples, total), dtype=np.int64)
    shown[:, :symbols] = message
    shown[:, symbols + length - 1] = 9
    y = np.zeros((samples, total), dtype=np.int64)
    y[:, -symbols:] = message
    return np.eye(10, dtype=np.float32)[shown], y


def _synthetic(
    task: str,
    make: Callable[[np.random.Generator, int, int], tuple[Array, Array]],
    length: int,
    samples: int,
    seed: int,
) -> Dataset:
    first, second = np.random.SeedSequence(seed).spawn(2)  # so that the other parts are the same for any `samples`
    train = make(np.random.default_rng(seed), samples, length)
    validation, test = (make(np.random.default_rng(own), 1_000, length) for own in (first, second))
    if task == "adding":
        return Dataset(task, *train, *validation, *test, kind="number", outputs=1)
    return Dataset(task, *train, *validation, *test, kind="steps", outputs=10, scored_steps=10)


def trial_parts(task: str, options: dict[str, Any], samples: int, seed: int = 0) -> list[Trials]:
    """Trials of a task of NeuroGym for training, validation and test."""
    return make_parts(task, options, (checks.positive_integer("samples", samples), *TRIALS), seed)


def of_trials(task: str, parts: list[Trials]) -> Dataset:
    """What is learned of such trials."""
    x, y = zip(*(part[:2] for part in parts), strict=True)
    classes = y[0].dtype.kind == "i"
    outputs = 1 + max(int(part.max()) for part in y) if classes else y[0].shape[-1]
    kind = "steps" if classes else "numbers"
    return Dataset(task, x[0], y[0], x[1], y[1], x[2], y[2], kind=kind, outputs=outputs, scored_steps=1)


def _digits() -> Dataset:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ImportError('the task digits needs scikit-learn: pip install "organics-core[cli]"') from None
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x = (x[order] / 16.0).astype(np.float32).reshape(-1, 8, 8)
    return _split("digits", x, y[order].astype(np.int64), DIGITS_SPLIT)


def _mnist(task: str, downsample: int) -> Dataset:
    folder = mnist_folder()
    files = [_mnist_path(folder, name) for name in CHECKSUMS]
    images = np.concatenate([_mnist_file(files[0], 3), _mnist_file(files[2], 3)])
    labels = np.concatenate([_mnist_file(files[1], 1), _mnist_file(files[3], 1)])
    x = images.astype(np.float32) / np.float32(255.0)
    count, height, width = x.shape
    if height % downsample or width % downsample:
        raise ValueError(f"downsample must divide the {height} x {width} pixels of the images, got {downsample}")
    if downsample > 1:
        x = x.reshape(count, height // downsample, downsample, width // downsample, downsample).mean(axis=(2, 4))
    if task == "mnist":
        x = x.reshape(count, 1, -1)
    elif task != "rowmnist":
        x = x.reshape(count, -1, 1)
    if task == "psmnist":
        x = x[:, np.random.default_rng(PERMUTATION_SEED).permutation(x.shape[1])]
    return _split(task, np.ascontiguousarray(x), labels.astype(np.int64), MNIST_SPLIT)


def _split(name: str, x: Array, y: Array, sizes: tuple[int, int, int]) -> Dataset:
    first, second, end = itertools.accumulate(sizes)
    train, validation, test = ((x[a:b], y[a:b]) for a, b in ((0, first), (first, second), (second, end)))
    return Dataset(name, *train, *validation, *test, kind="classes", outputs=10)


def _mnist_file(path: Path, axes: int) -> Array:
    """A file of MNIST, and of no other data set that has its names and shapes."""
    raw = _unzipped(path)
    array = _parse_idx(raw, str(path), axes)
    digest, expected = hashlib.sha256(raw).hexdigest(), CHECKSUMS[path.name.removesuffix(".gz") + ".gz"]
    if digest != expected:
        raise ValueError(f"{path} is not MNIST's: unzipped it has the sha256 {digest}, expected {expected}")
    return array


def _unzipped(path: Path) -> bytes:
    try:
        raw = path.read_bytes()
        return raw if raw[:3] == IDX_BYTES else gzip.decompress(raw)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is corrupt: {str(error).rstrip('.')}") from None


def _parse_idx(raw: bytes, name: str, axes: int | None) -> Array:
    if len(raw) < 4 or raw[:3] != IDX_BYTES or raw[3] == 0:
        raise ValueError(
            f"{name} is corrupt: it starts with {raw[:4].hex(' ') or 'nothing'}, no idx file of bytes does"
        )
    rank = raw[3]
    if axes is not None and rank != axes:
        raise ValueError(f"{name} is corrupt: it holds an array of {rank} axes, expected {axes}")
    offset = 4 + 4 * rank
    if len(raw) < offset:
        raise ValueError(f"{name} is corrupt: its header is cut short")
    shape = struct.unpack(f">{rank}I", raw[4:offset])
    size = int(np.prod(shape, dtype=object))
    if len(raw) - offset != size:
        raise ValueError(f"{name} is corrupt: it holds {len(raw) - offset} bytes, its header says {size}")
    return np.frombuffer(raw, dtype=np.uint8, offset=offset).reshape(shape)


def cache_folder() -> Path:
    """Where downloads are kept: the user's cache folder, by the platform's custom."""
    if os.environ.get("XDG_CACHE_HOME"):
        base = Path(os.environ["XDG_CACHE_HOME"])
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path.home() / ".cache"
    return base / "organics"


def mnist_folder(*, download: bool = True) -> Path:
    """The folder with the four files of MNIST.

    Parameters
    ----------
    download : bool
        Whether to download them to the cache folder where they are not found.

    Returns
    -------
    Path

    Raises
    ------
    FileNotFoundError
        Where there are none, and none to be had.
    """
    cache = cache_folder() / "mnist"
    given = os.environ.get("ORGANICS_DATA")
    folder = Path(given).expanduser() if given else cache
    places = [folder, folder / "mnist", cache] if given else [cache]
    for place in places:
        if all(_mnist_path(place, name).is_file() for name in CHECKSUMS):
            return place
    looked = " nor in ".join(str(place) for place in places)
    hint = "set ORGANICS_DATA to a folder with its four idx files, .gz or unpacked"
    if not download:
        raise FileNotFoundError(f"MNIST is not in {looked}; {hint}")
    try:
        for name in CHECKSUMS:
            _download(name, cache)
    except OSError as error:
        reason = str(getattr(error, "reason", error)) or type(error).__name__
        raise FileNotFoundError(
            f"MNIST is not in {looked} and cannot be downloaded ({reason.rstrip('.')}); {hint}"
        ) from None
    return cache


def _mnist_path(folder: Path, name: str) -> Path:
    """The file ``name``, which ends in .gz, or where it is not there its unpacked form."""
    packed, plain = folder / name, folder / name.removesuffix(".gz")
    return packed if packed.is_file() or not plain.is_file() else plain


def _download(name: str, folder: Path) -> None:
    """One file of MNIST to ``folder``, from the first mirror that has it whole; in place only when checked."""
    target = folder / name
    if target.is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    problem: OSError | None = None
    for mirror in MIRRORS:
        try:
            with urllib.request.urlopen(mirror + name, timeout=30) as response:
                raw = response.read()
            digest = hashlib.sha256(gzip.decompress(raw)).hexdigest()
        except (OSError, EOFError, zlib.error, http.client.HTTPException) as error:
            problem = OSError(f"{mirror}{name} came cut short or is no gzip file")
            if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile):
                problem = error
            continue
        if digest != CHECKSUMS[name]:
            problem = OSError(f"{mirror}{name} has the sha256 {digest}, expected {CHECKSUMS[name]}")
            continue
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=name, suffix=".part")
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(raw)
            os.replace(temporary, target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        return
    assert problem is not None
    raise problem
