"""The cell over a whole sequence."""

from __future__ import annotations

from organics_core.cell import cell_sequence as sequence

__all__ = ["sequence"]
