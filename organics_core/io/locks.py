"""Folders that one process at a time writes to."""

from __future__ import annotations

import errno
import os
import platform
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

NAME = ".lock"
"""Of the file that is locked: it names the process, and stays behind, without meaning, where that was killed."""
_TAKEN = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
_held: set[str] = set()
"""Of this process, to which its own locks are open."""
_guard = threading.Lock()


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Inside, no other process, and no other thread, is here with the same folder.

    The lock is the operating system's, which gives it up when the process ends,
    however that ends. Where a file system has no locks there is none.

    Parameters
    ----------
    folder : Path
        Made where there is none, and removed in the end if it is empty then.

    Raises
    ------
    ValueError
        Naming the folder and who is there.
    OSError
        Naming the folder, where nothing can be written to it.
    """
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    path = os.path.join(os.path.realpath(folder), NAME)
    with _guard:
        if path in _held:
            raise _refusal(folder, _about())
        handle = _locked(path, folder)
        _held.add(path)
    try:
        yield
    finally:
        with _guard:
            _release(path, handle)
            _held.remove(path)
        for place in made:
            with suppress(OSError):
                place.rmdir()


def _locked(path: str, folder: Path) -> int:
    """The open, locked file."""
    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(folder)) from None
        try:
            _lock(handle)
        except OSError as error:
            if error.errno in _TAKEN:
                holder = os.read(handle, 1000).decode(errors="replace").strip()
                os.close(handle)
                raise _refusal(folder, holder or "another process") from None
        if _is_at(handle, path):
            try:
                os.ftruncate(handle, 0)
                os.write(handle, f"{_about()}\n".encode())
            except OSError as error:  # a full disk
                _release(path, handle)
                raise OSError(error.errno, error.strerror, str(folder)) from None
            return handle
        os.close(handle)  # who had it has removed it since it was opened


def _is_at(handle: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _release(path: str, handle: int) -> None:
    if sys.platform == "win32":  # which removes no open file
        os.close(handle)
        with suppress(OSError):  # another process has opened it
            os.unlink(path)
    else:
        with suppress(OSError):
            os.unlink(path)
        os.close(handle)


def _lock(handle: int) -> None:
    """OSError where another process has it."""
    if sys.platform == "win32":
        import msvcrt

        os.lseek(handle, 2**30, os.SEEK_SET)  # beyond the text, which others are to read
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        os.lseek(handle, 0, os.SEEK_SET)
    else:
        import fcntl

        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock none that children have, too


def _about() -> str:
    return f"process {os.getpid()} on {platform.node() or 'this machine'}"


def _refusal(folder: Path, holder: str) -> ValueError:
    return ValueError(f"{folder} is in use by {holder}: wait until that ends, or choose another folder")
