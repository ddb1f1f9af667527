"""Compiles the CUDA kernels for sm_90 ahead of time: no GPU is needed, and what they take of one is read off.

python tests/ahead.py    # a table for the documentation, of the Triton kernels
"""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.util
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

SHARED = 227 * 1024
"""Bytes of shared memory that a block may take on an H100."""


class Cost(NamedTuple):
    """What a compiled kernel takes: registers and bytes of stack per thread, bytes of shared memory per block."""

    registers: int
    stack: int
    shared: int


def triton_compiled(kernel: Any, constants: dict[str, Any], numbers: dict[str, int], **options: int) -> Any:
    """Compile one of the recurrent layer's kernels as its launch would.

    ``constants`` are its constexpr arguments; ``numbers`` are its integers, of which Triton
    makes a one a constant, and knows whether 16 divides the others.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    fixed = dict(constants) | {name: 1 for name, value in numbers.items() if value == 1}
    half = constants["DOT"] == "bf16"
    signature, attributes = {}, {}
    for i, name in enumerate(kernel.arg_names):
        if name in fixed:
            signature[name] = "constexpr"
            continue
        pointer = name != "once" and name not in numbers
        signature[name] = ("*bf16" if half and name == "weights" else "*fp32") if pointer else "i32"
        if pointer or numbers.get(name, 1) % 16 == 0:
            attributes[i,] = [["tt.divisibility", 16]]
    places = {(kernel.arg_names.index(name),): value for name, value in fixed.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=places, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)


def triton_cost(made: Any) -> Cost:
    """What a compiled kernel takes."""
    import triton

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        report = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", report)
    assert found, report
    return Cost(int(found[1]), int(found[2]), made.metadata.shared)


def layer_cost(direction: str, n: int, precision: str, **options: Any) -> Cost:
    """What one direction of the recurrent layer takes on an H100."""
    return triton_cost(layer_compiled(direction, n, precision, **options))


def layer_compiled(
    direction: str, n: int, precision: str, *, main: bool = False, recurrent: bool = True, batch: int = 256
) -> Any:
    """One direction of the recurrent layer for an H100, as Triton's compiler returns it."""
    from organics_torch import triton_kernel as kernels

    made = kernels.options(n, precision, SHARED, main=main, recurrent=recurrent)
    constants = {name: value for name, value in made.items() if name.isupper()} | {"OUTPUTS": True}
    if direction == "forward":
        constants["SAVE"] = True
    launch = {name: value for name, value in made.items() if not name.isupper()}
    numbers = {"steps": 784, "batch": batch, "n": n}
    return triton_compiled(getattr(kernels, f"_{direction}"), constants, numbers, **launch)


def nvrtc() -> ctypes.CDLL | None:
    """CUDA's run-time compiler, which the package nvidia-cuda-nvrtc or a CUDA toolkit brings, or None."""
    folders = list(importlib.util.find_spec("nvidia").submodule_search_locations or ()) if _has("nvidia") else []
    names = [str(file) for folder in folders for file in sorted(Path(folder).glob("*/lib/libnvrtc.so*"))]
    names += [str(file) for file in sorted(Path("/usr/local").glob("cuda*/lib64/libnvrtc.so*"))]
    for name in [*names, ctypes.util.find_library("nvrtc")]:
        if name is not None and "alt" not in Path(name).name:
            try:
                return ctypes.CDLL(name)
            except OSError:
                continue
    return None


def _has(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def nvrtc_cost(library: ctypes.CDLL, text: str, *options: str) -> Cost:
    """Compile CUDA C++ for sm_90 the way cupy does; RuntimeError with the compiler's words where it fails."""
    program = ctypes.c_void_p()
    flags = [*options, "--gpu-architecture=sm_90", "--ptxas-options=-v"]
    library.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"kernel.cu", 0, None, None)
    status = library.nvrtcCompileProgram(
        program, len(flags), (ctypes.c_char_p * len(flags))(*(flag.encode() for flag in flags))
    )
    size = ctypes.c_size_t()
    library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    library.nvrtcGetProgramLog(program, log)
    library.nvrtcDestroyProgram(ctypes.byref(program))
    report = log.value.decode()
    if status:
        raise RuntimeError(report)
    registers, stack, shared = (
        max((int(number) for number in re.findall(pattern, report)), default=0)
        for pattern in (r"Used (\d+) registers", r"(\d+) bytes spill stores", r"(\d+) bytes smem")
    )
    return Cost(registers, stack, shared)


def main() -> None:
    """The table."""
    import triton

    print(f"Triton {triton.__version__}\n")
    print("| units | precision | matrices kept | forward | backward |\n|---|---|---|---|---|")
    from organics_torch import triton_kernel as kernels

    for n in (64, 128):
        for precision in ("highest", "high", "medium"):
            kept = kernels.resident(n, precision, SHARED)
            cells = (layer_cost(direction, n, precision) for direction in ("forward", "backward"))
            shown = [f"{cost.registers}, {cost.stack} B, {cost.shared // 1024} KiB" for cost in cells]
            print(f"| {n} | {precision} | {kept} | " + " | ".join(shown) + " |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
