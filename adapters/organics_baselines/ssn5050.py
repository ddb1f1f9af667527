"""The stabilized supralinear network with as many inhibitory neurons as excitatory ones."""

from __future__ import annotations

from ._registry import Entry
from .ssn import SSN, equations

MODEL = Entry("SSN (50:50)", "Ahmadian et al. 2013", SSN, options={"excitatory": 0.5}, equations=equations)
