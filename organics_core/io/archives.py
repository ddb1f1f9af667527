"""Opening .npz archives: without pickle, and with an error that says what a file is instead."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np
from numpy.lib.npyio import NpzFile

UNREADABLE = (
    *(ValueError, OSError, EOFError, zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error),
    *(NotImplementedError, RuntimeError),  # another kind of packing, or a password, as damage may look
)
"""What reading an array out of a damaged archive raises."""


def open_npz(path: Path) -> NpzFile:
    """The archive at ``path``.

    Raises
    ------
    ValueError
        Saying what the file is instead, without its name.
    OSError
        Where it cannot be opened.
    """
    with path.open("rb") as file:
        start = file.read(2)
    try:
        archive = np.load(path, allow_pickle=False)
    except UNREADABLE as error:
        if start == b"\x1f\x8b":
            raise ValueError("no .npz archive but packed by gzip; unpack it first") from None
        if start[:1] == b"\x80":  # as pickles begin, from protocol 2 on
            raise ValueError("no .npz archive but looks like a pickle, which is never loaded") from None
        if "pickle" in str(error):  # numpy's guess at whatever it does not know
            raise ValueError("no .npz archive: it does not begin as one") from None
        raise ValueError(f"no .npz archive: {str(error)[:1].lower()}{str(error)[1:]}") from None
    if not isinstance(archive, NpzFile):
        raise ValueError("a single array, not an .npz archive")
    return archive
