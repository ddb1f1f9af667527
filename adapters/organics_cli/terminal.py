"""Terminals and pipes that are less than one hopes for: no UTF-8, no width, no reader."""

from __future__ import annotations

import codecs
import os
import sys
import unicodedata

EXIT_NO_READER = 141
"""As a program that SIGPIPE ended: 128 + 13."""

SIGNS = {
    "≥": ">=", "≤": "<=", "≈": "~", "≠": "!=", "±": "+-", "×": "x", "·": "*", "−": "-", "–": "-", "—": "-", "…": "...",
    "‖": "||", "∞": "inf", "√": "sqrt", "→": "->", "←": "<-", "✓": "+", "✗": "x", "•": "*", "ᵀ": "^T", "⁻": "-",
    "λ": "lambda", "σ": "sigma", "τ": "tau", "µ": "u", "μ": "u", "α": "alpha", "Δ": "d", "∂": "d", "ŷ": "y", "⌊": "[",
    "⌋": "]", "“": '"', "”": '"', "‘": "'", "’": "'", "━": "-", "─": "-", "│": "|", "╭": "+", "╮": "+", "╰": "+",
    "╯": "+", "╸": "-", "╺": "-", "δ": "delta", "°": "deg", "●": "*", "○": "o",
}  # fmt: skip


def plain(error: UnicodeError) -> tuple[str, int]:
    """An error handler: signs that an encoding lacks in letters that it has."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(_letters(sign) for sign in text), error.end


def _letters(sign: str) -> str:
    if sign in SIGNS:
        return SIGNS[sign]
    simple = unicodedata.normalize("NFKD", sign).encode("ascii", "ignore").decode()
    return simple or ("+" if "BOX DRAWINGS" in unicodedata.name(sign, "") else "?")


def prepare() -> None:
    """Let every stream print what it can, also one that is closed, and forget a width that is none."""
    codecs.register_error("organics", plain)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed, as by >&-: what is printed goes nowhere
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        lacking = stream.errors == "surrogateescape" and not _is_utf(stream.encoding)  # of the locale C
        if hasattr(stream, "reconfigure") and (stream.errors == "strict" or lacking):
            stream.reconfigure(errors="organics")
    for name in ("COLUMNS", "LINES"):
        value = os.environ.get(name, "")
        if value.isdigit() and int(value) == 0:
            del os.environ[name]


def _is_utf(encoding: str | None) -> bool:
    return (encoding or "").lower().replace("-", "").startswith("utf")


def end_without_reader() -> SystemExit:
    """What to raise where nobody reads the output any more, as after ``organics ... | head -1``."""
    try:
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, sys.stdout.fileno())
    except (OSError, ValueError):  # a stream without a file
        pass
    return SystemExit(EXIT_NO_READER)
