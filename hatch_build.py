"""Wheels with compiled kernels, where ORGANICS_PREBUILT=1 asks for them; without it they are the same everywhere."""

from __future__ import annotations

import os
import runpy
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class Prebuilt(BuildHookInterface):  # type: ignore[type-arg]
    """Compiles the native code for every level of the processor, and names the wheel's platform."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel" or os.environ.get("ORGANICS_PREBUILT") != "1":
            return
        native = runpy.run_path(str(Path(self.root, "backends", "organics_backends", "native.py")))
        folder = Path(self.directory, "prebuilt")
        for source in Path(self.root, "backends", "organics_backends").glob("*.cpp"):
            for path in native["prebuild"](source, folder):
                build_data["force_include"][str(path)] = f"organics_backends/prebuilt/{path.name}"
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform}"
