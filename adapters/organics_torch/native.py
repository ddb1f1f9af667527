"""The native sequence: compiled on first use with the system's C++ compiler, kept in the user's cache.

Nothing here is needed: without a compiler, :func:`load` returns None and the
plain torch implementation is taken.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

VARIABLE = "ORGANICS_TORCH_FUSED"
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
_status = "not tried yet"


def cache_folder() -> Path:
    """Where the compiled library is kept: below ``$XDG_CACHE_HOME``, ``~/.cache`` or the platform's counterpart."""
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "organics-core"


def status() -> str:
    """In words: whether the native sequence is in use, and if not, why."""
    return _status


def load() -> Any:
    """The native library, compiled if need be; None where it cannot be had or ``ORGANICS_TORCH_FUSED=0``."""
    global _status
    if os.environ.get(VARIABLE, "").strip().lower() in ("0", "false", "off", "no"):
        _status = f"switched off by {VARIABLE}"
        return None
    library, _status = _load()
    return library


@cache
def _load() -> tuple[Any, str]:
    try:
        path = _build()
        try:
            return _open(path), "in use"
        except (OSError, AttributeError):  # damaged, by a full disk say
            path.unlink()
            return _open(_build()), "in use"
    except Exception as error:  # whatever goes wrong, the plain implementation is there
        return None, f"not available: {error}"


def _build() -> Path:
    compiler = next(
        (found for name in (os.environ.get("CXX"), "c++", "g++", "clang++") if name and (found := shutil.which(name))),
        None,
    )
    source = files(__package__).joinpath("sequence.cpp").read_bytes()
    version = "" if compiler is None else _run(compiler, "--version").stdout
    key = hashlib.sha256(b"\0".join([source, " ".join(FLAGS).encode(), version.encode(), _processor().encode()]))
    name = f"sequence-{key.hexdigest()[:20]}.so"
    for folder in (cache_folder(), Path(tempfile.gettempdir()) / f"organics-core-{_user()}"):
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not _ours(folder):
                continue
            target = folder / name
            if target.exists() and _ours(target):
                return target
            if compiler is None:
                continue
            with tempfile.TemporaryDirectory(dir=folder) as work:
                code, product = Path(work) / "sequence.cpp", Path(work) / name
                code.write_bytes(source)
                done = _run(compiler, *FLAGS, str(code), "-o", str(product))
                if done.returncode:
                    raise RuntimeError(f"{compiler} failed: {done.stderr.strip()[:300]}")
                os.replace(product, target)  # at once, also beside other processes
            return target
        except OSError:
            continue
    raise RuntimeError(
        "no C++ compiler (c++, g++ or clang++) was found" if compiler is None else "no writable cache folder"
    )


def _run(*command: str) -> subprocess.CompletedProcess[str]:
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


def _open(path: Path) -> Any:
    from .fused import ARGUMENTS

    library = ctypes.CDLL(str(path))
    for suffix in ("f32", "f64"):
        size = getattr(library, f"organics_tape_{suffix}")
        size.argtypes, size.restype = [ctypes.c_void_p], ctypes.c_int64
        for name in ("forward", "backward"):
            function = getattr(library, f"organics_{name}_{suffix}")
            function.argtypes, function.restype = [ctypes.c_void_p], ctypes.c_int
    if library.organics_arguments() != len(ARGUMENTS):
        raise RuntimeError("the native library does not fit this version")
    return library
