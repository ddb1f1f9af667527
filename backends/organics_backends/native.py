"""Native code: compiled on first use with the system's C++ compiler, kept in the user's cache.

Nothing here is needed: without a compiler :meth:`Library.load` returns None, and the implementations of the array
libraries are taken. The sequence of the trained cell (sequence.cpp) is one source for torch and jax.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

FLAGS = (
    "-std=c++17",
    "-O3",
    "-march=native",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fPIC",
    "-shared",
    "-pthread",
)
TIMEOUT = 300.0
# What prebuilt code may need of a processor, best first, by machine: the compiler's name for it, and Linux's flags.
LEVELS = {
    "x86_64": (
        ("x86-64-v4", ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx2", "bmi2", "fma", "f16c")),
        ("x86-64-v3", ("avx2", "bmi2", "fma", "f16c", "movbe")),
        ("x86-64", ()),
    ),
    "aarch64": (("armv8-a", ()),),
    "arm64": (("armv8-a", ()),),
}
_logger = logging.getLogger("organics_backends")

# The order of the arguments in sequence.cpp.
ARGUMENTS = (
    *("steps", "batch", "inputs", "units", "main", "threads", "rows", "chunk", "period", "keep"),
    *("x_t", "x_r", "y_t", "y_r", "gy_t", "gy_r", "gx_t", "gx_r"),
    *("x", "w_zx", "w_r", "w", "w_bx0", "w_by0", "w_ba0", "w_bx1", "w_by1", "w_ba1"),
    *("r_y", "r_a", "r_b0", "r_b1", "sigma"),
    *("start", "ys", "last", "tape", "marks"),
    *("g_ys", "g_last", "g_x", "g_start"),
    *("g_w_zx", "g_w_r", "g_w", "g_w_bx0", "g_w_by0", "g_w_ba0", "g_w_bx1", "g_w_by1", "g_w_ba1"),
    *("g_r_y", "g_r_a", "g_r_b0", "g_r_b1", "g_sigma"),
)
_ROWS = 64
_CHUNK_NUMBERS = 32768  # per array: rows * steps * units of a chunk, so that a chunk's arrays fit into the cache


def layout(steps: int, batch: int, inputs: int, units: int, main: bool, threads: int, every: int) -> dict[str, int]:
    """The first arguments of a pass, which say how its tape is laid out: the same forward and backward."""
    threads = max(1, min(threads, batch))
    rounds = max(1, math.ceil(batch / (threads * _ROWS)))  # blocks of at most _ROWS sequences, as many for every thread
    rows = max(1, math.ceil(batch / (threads * rounds)))
    chunk = max(1, min(steps, 16, _CHUNK_NUMBERS // (rows * units), every or steps))
    period = every // chunk * chunk if 0 < every < steps else steps
    return {
        **{"steps": steps, "batch": batch, "inputs": inputs, "units": units, "main": int(main)},
        **{"threads": threads, "rows": rows, "chunk": chunk, "period": period, "keep": int(not every)},
    }


def source(package: str, name: str) -> bytes:
    """A file that lies beside a package's modules."""
    return files(package).joinpath(name).read_bytes()


class Library:
    """Native code of one name.

    Parameters
    ----------
    name : str
    variable : str
        The environment's variable that switches it off, as ``0``.
    sources : function
        Gives the files, by name; the first is compiled, the others are included.
    opening : function
        Opens a compiled library. OSError or AttributeError: it is damaged, and compiled again.
    include : function, optional
        Gives a folder of further headers.
    """

    def __init__(
        self,
        name: str,
        variable: str,
        sources: Callable[[], dict[str, bytes]],
        opening: Callable[[Path], Any],
        include: Callable[[], str] | None = None,
    ) -> None:
        self.name, self.variable = name, variable
        self._sources, self._open, self._include = sources, opening, include
        self._status = "not tried yet"
        self._renew()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._renew)  # a thread that holds it is not in the child

    def _renew(self) -> None:
        self._lock = threading.RLock()  # cached_property has had none since Python 3.12

    def status(self) -> str:
        """In words: whether the native code is in use, and if not, why."""
        return self._status

    def load(self) -> Any:
        """What ``opening`` gave, compiled if need be; None where it cannot be had or the variable says 0."""
        if os.environ.get(self.variable, "").strip().lower() in ("0", "false", "off", "no"):
            self._status = f"switched off by {self.variable}"
            return None
        with self._lock:
            library, self._status = self.found
        return library

    @cached_property
    def found(self) -> tuple[Any, str]:
        """The library and its status, looked for once."""
        try:
            path = self.build()
            try:
                return self._open(path), "in use"
            except (OSError, AttributeError):  # damaged, by a full disk say
                if path.parent == Path(__file__).parent / "prebuilt":
                    raise
                path.unlink()
                return self._open(self.build()), "in use"
        except Exception as error:  # whatever goes wrong, the other implementations are there
            _logger.info("the native %s is not available, and slower code takes its place: %s", self.name, error)
            return None, f"not available: {error}"

    def build(self) -> Path:
        """The compiled library, from the cache or from the compiler."""
        compiler = _compiler()
        sources, flags = self._sources(), [*FLAGS]
        if self._include is not None:
            flags.append(f"-I{self._include()}")
        version = "" if compiler is None else run(compiler, "--version").stdout
        key = hashlib.sha256(
            b"\0".join([*sources.values(), " ".join(flags).encode(), version.encode(), _processor().encode()])
        )
        name = f"{self.name}-{key.hexdigest()[:20]}.so"
        folders = [Path(tempfile.gettempdir()) / f"organics-core-{_user()}"]
        with contextlib.suppress(RuntimeError):  # nobody's home: a user without an entry, in a container say
            folders.insert(0, cache_folder())
        failure = "no C++ compiler (c++, g++ or clang++) was found" if compiler is None else "no writable cache folder"
        for folder in folders:
            try:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                if not _ours(folder):
                    continue
                target = folder / name
                if target.exists() and _ours(target) and _whole(target):
                    return target
                if compiler is None:
                    continue
                _logger.info("compiling %s with %s, once, into %s", self.name, compiler, folder)
                with tempfile.TemporaryDirectory(dir=folder) as work:
                    for part, text in sources.items():
                        (Path(work) / part).write_bytes(text)
                    product = Path(work) / name
                    done = run(compiler, *flags, str(Path(work) / next(iter(sources))), "-o", str(product))
                    if done.returncode:
                        failure = f"{compiler} failed: {done.stderr.strip()[:300]}"
                        break
                    os.replace(product, target)  # at once, also beside other processes
                return target
            except OSError:
                continue
        brought = self._prebuilt()
        if brought is not None:
            return brought
        raise RuntimeError(failure)

    def _prebuilt(self) -> Path | None:
        """What the wheel brought for this processor, if anything."""
        seen = set(_processor().split())
        for level, flags in LEVELS.get(platform.machine(), ()):
            path = Path(__file__).parent / "prebuilt" / f"{self.name}-{level}.so"
            if seen.issuperset(flags) and path.exists():
                return path
        return None


def processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def prebuild(source: Path, folder: Path) -> list[Path]:
    """One source compiled for every level of this machine's kind of processor, for a wheel."""
    compiler = _compiler()
    if compiler is None:
        raise RuntimeError("no C++ compiler (c++, g++ or clang++) was found")
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for level, _ in LEVELS.get(platform.machine(), ()):
        product = folder / f"{source.stem}-{level}.so"
        flags = [f"-march={level}" if flag == "-march=native" else flag for flag in FLAGS]
        done = run(compiler, *flags, str(source), "-o", str(product))
        if done.returncode:
            raise RuntimeError(f"{compiler} failed: {done.stderr.strip()[:300]}")
        made.append(product)
    return made


def _compiler() -> str | None:
    names = (os.environ.get("CXX"), "c++", "g++", "clang++")
    return next((path for name in names if name and (path := shutil.which(name))), None)


def cache_folder() -> Path:
    """Where compiled libraries are kept: below ``$XDG_CACHE_HOME``, ``~/.cache`` or the platform's counterpart."""
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "organics-core"


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """A command in a session of its own: Ctrl-C, which all processes of a terminal get, does not reach it."""
    pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, start_new_session=True, **pipes) as process:
        try:
            out, error = process.communicate(timeout=TIMEOUT)
        except BaseException:
            if hasattr(os, "killpg"):
                os.killpg(process.pid, signal.SIGKILL)  # a compiler has children
            process.kill()
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, error)


def _user() -> str:
    return str(os.getuid()) if hasattr(os, "getuid") else "user"


def _ours(path: Path) -> bool:
    """Whether nobody else can have put the file there: a library is loaded only then."""
    if not hasattr(os, "getuid"):
        return True
    info = path.stat()
    return info.st_uid in (os.getuid(), 0) and not info.st_mode & 0o022


def _whole(path: Path) -> bool:
    """False for a library of Linux without its end: reading beyond it would kill the process with SIGBUS."""
    head = path.read_bytes()[:64]
    if head[:6] != b"\x7fELF\x02\x01":  # of 64 bits, little-endian
        return True
    table, size, count = (int.from_bytes(head[i:j], "little") for i, j in ((40, 48), (58, 60), (60, 62)))
    return path.stat().st_size >= table + size * count


def _processor() -> str:
    """What ``-march=native`` depends on, so that a home folder shared between machines does no harm."""
    lines = [platform.machine(), platform.processor()]
    try:
        wanted = ("model name", "flags", "Features", "CPU part")
        text = Path("/proc/cpuinfo").read_text()
        lines += [line for line in text.split("\n\n")[0].splitlines() if line.startswith(wanted)]
    except OSError:
        pass
    return "\n".join(lines)
