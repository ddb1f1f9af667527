"""The explorer: a page whose sliders move a circuit, its responses, fixed points, eigenvalues and spectrum.

``organics explore`` opens it. Numbers come from organics_core, pictures from
organics_plot; here is only what the sliders mean (:class:`Settings`) and which
pictures there are (:data:`PANELS`), both without marimo. ``notebook.py`` is the page.
"""

from .panels import PANELS, Solved, python_code, report, solve
from .picture import Picture
from .settings import RANGES, Settings, settings_from

__all__ = ["PANELS", "RANGES", "Picture", "Settings", "Solved", "python_code", "report", "settings_from", "solve"]
