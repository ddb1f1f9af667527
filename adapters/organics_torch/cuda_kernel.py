"""A whole sequence in one CUDA kernel per direction, without tensor cores: sequence.cu, compiled when it is first run.

A block takes few sequences, so that a batch of some hundred occupies the whole
device, and a step has one barrier; the matrices stay on the chip, in registers
and shared memory. Everything is float32's.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import on_chip
from .implementation import address

TEXT = Path(__file__).with_name("sequence.cu")


class Plan(NamedTuple):
    """How a block divides its work: see sequence.cu.

    Attributes
    ----------
    rows : int
        Sequences per block.
    lanes : int
        Threads that share an output.
    outs : int
        Outputs per thread.
    kept, shared : int
        Matrices in registers, and in shared memory.
    blocks : int
        Blocks that a multiprocessor should take at the same time.
    ahead : int
        Steps between the fetch of a tape into the cache and its use.
    """

    rows: int
    lanes: int
    outs: int
    kept: int
    shared: int
    blocks: int = 1
    ahead: int = 0

    def threads(self, width: int) -> int:
        """Of a block."""
        return width * self.lanes // self.outs

    def memory(self, width: int) -> int:
        """Bytes of shared memory of a block."""
        return 4 * (2 * 4 * self.rows * width + self.shared * width**2)


PLANS = {32: Plan(2, 4, 1, 6, 0, 1, 4), 64: Plan(2, 4, 1, 6, 0, 1, 4), 128: Plan(2, 4, 2, 3, 3, 1, 2)}
"""By the width that the units are padded to."""
MOST_UNITS = max(PLANS)
TURNS = {"highest": 6, "high": 4, "medium": 2}
"""So many blocks per multiprocessor at most, by torch's precision of products, on which the other kernels' time hangs.

Milliseconds on an H200 for 784 steps forwards and backwards of 1024 sequences, at 64 and 128 units: 8.9 and 22, and
by the Triton kernels 11.7 and 38.8 ("highest"), 7.9 and 23.6 ("high"); of 2048 sequences 16 and 43, and 13.3 and
44.8, 9.2 and 26. That of "medium" is from batches of 256.
"""


def padded(units: int) -> int:
    """The least width there is a plan for."""
    return min(width for width in PLANS if width >= units)


def arranged(matrices: Tensor, plan: Plan) -> Tensor:
    """Six matrices (out, in) in the order in which the threads read them."""
    width = matrices.shape[-1]
    threads = plan.threads(width)
    parts = matrices.reshape(6, plan.outs, threads // plan.lanes, width // plan.lanes // 4, plan.lanes, 4)
    return parts.permute(0, 1, 3, 2, 4, 5).contiguous()


@functools.cache
def text(width: int, plan: Plan, **flags: bool) -> str:
    """The kernel's text, which every launch asks for; ``flags`` are main, recurrent, outputs, save."""
    named = {"units": width, **plan._asdict(), **{name: int(value) for name, value in flags.items()}}
    lines = [f"#define {name.upper()} {value}" for name, value in named.items()]
    return "\n".join([*lines, TEXT.read_text()])


DYNAMIC = "#define DYNAMIC_SHARED extern __shared__ float4 dynamic_shared[];\n"


@functools.cache
def nvrtc() -> ctypes.CDLL:
    """CUDA's run-time compiler: the one that torch brings, or the system's."""
    spec = importlib.util.find_spec("nvidia")
    roots = [Path(root) for root in (spec.submodule_search_locations or ())] if spec else []
    roots += [Path(torch.__file__).parent.parent, Path(torch.__file__).parent, Path("/usr/local")]
    patterns = ("cu13/lib", "cuda_nvrtc/lib", "lib", "cuda*/lib64")
    error: OSError | None = None
    for folder in [found for root in roots for pattern in patterns for found in sorted(root.glob(pattern))]:
        for name in sorted(folder.glob("libnvrtc.so*")):
            try:
                for builtins in folder.glob("libnvrtc-builtins.so*"):
                    ctypes.CDLL(str(builtins), ctypes.RTLD_GLOBAL)
                return ctypes.CDLL(str(name))
            except OSError as problem:
                error = problem
    try:
        return ctypes.CDLL("libnvrtc.so")
    except OSError:
        raise RuntimeError(f"CUDA's run-time compiler is missing ({error})") from None


def compiled(text: str, architecture: str) -> tuple[bytes, str]:
    """The machine code for an architecture like "sm_90", and what the assembler said of it."""
    library = nvrtc()
    program = ctypes.c_void_p()
    flags = [b"--gpu-architecture=" + architecture.encode(), b"--std=c++17", b"--ptxas-options=-v"]
    flags += [b"--prec-sqrt=false", b"--prec-div=false"]
    library.nvrtcCreateProgram(ctypes.byref(program), (DYNAMIC + text).encode(), b"sequence.cu", 0, None, None)
    status = library.nvrtcCompileProgram(program, len(flags), (ctypes.c_char_p * len(flags))(*flags))
    size = ctypes.c_size_t()
    library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    library.nvrtcGetProgramLog(program, log)
    if status:
        raise RuntimeError(log.value.decode())
    library.nvrtcGetCUBINSize(program, ctypes.byref(size))
    code = ctypes.create_string_buffer(size.value)
    library.nvrtcGetCUBIN(program, code)
    library.nvrtcDestroyProgram(ctypes.byref(program))
    return code.raw, log.value.decode()


@functools.cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


def _check(status: int, what: str) -> None:
    if status:
        name = ctypes.c_char_p()
        _driver().cuGetErrorName(status, ctypes.byref(name))
        raise RuntimeError(f"{what}: {(name.value or b'error').decode()} ({status})")


@functools.cache
def _module(text: str, device: int) -> ctypes.c_void_p:
    """Both kernels on a device."""
    driver, context, module = _driver(), ctypes.c_void_p(), ctypes.c_void_p()
    major, minor = torch.cuda.get_device_capability(device)
    code, _ = compiled(text, f"sm_{major}{minor}")
    _check(driver.cuCtxGetCurrent(ctypes.byref(context)), "cuCtxGetCurrent")
    if not context.value:  # a thread of torch's that has computed nothing so far
        _check(driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device), "cuDevicePrimaryCtxRetain")
        _check(driver.cuCtxSetCurrent(context), "cuCtxSetCurrent")
    _check(driver.cuModuleLoadData(ctypes.byref(module), code), "cuModuleLoadData")
    return module


@functools.cache
def _function(text: str, name: str, memory: int, device: int) -> ctypes.c_void_p:
    """A kernel on a device, ready to be launched with so much shared memory."""
    function = ctypes.c_void_p()
    _check(
        _driver().cuModuleGetFunction(ctypes.byref(function), _module(text, device), name.encode()),
        "cuModuleGetFunction",
    )
    if memory > 48 * 1024:
        _check(_driver().cuFuncSetAttribute(function, 8, memory), "cuFuncSetAttribute")
    return function


def launch(text: str, name: str, blocks: int, threads: int, memory: int, arguments: tuple[Any, ...]) -> None:
    """Run a kernel on the current stream; ``arguments`` are tensors and 32-bit integers."""
    device = next(value.device for value in arguments if isinstance(value, Tensor))
    with torch.cuda.device(device):
        function = _function(text, name, memory, device.index or 0)
        values = [
            ctypes.c_void_p(address(f"argument {i}", value)) if isinstance(value, Tensor) else ctypes.c_int(value)
            for i, value in enumerate(arguments)
        ]
        places = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        stream = ctypes.c_void_p(torch.cuda.current_stream(device).cuda_stream)
        status = _driver().cuLaunchKernel(function, blocks, 1, 1, threads, 1, 1, memory, stream, places, None)
        _check(status, "cuLaunchKernel")


class _Launch(on_chip.Launch):
    """The weights of one sequence as the kernels take them, and what a launch takes."""

    def __init__(self, stacked: on_chip.Stacked, xs: Tensor) -> None:
        width = padded(stacked.n)
        super().__init__(stacked, width)
        self.plan = fitting(PLANS[width], width, memory(xs))
        self.blocks = -(-xs.shape[1] // self.plan.rows)
        self.sums = self.blocks * self.plan.rows

    def __call__(self, direction: str, *arguments: Any, **options: Any) -> None:
        """Run the kernel of a direction."""
        if not self.blocks:  # no sequences: the driver refuses a launch of nothing
            return
        width = self.matrices.shape[-1]
        flags = {"main": self.stacked.main, "recurrent": self.stacked.w_r is not None, "save": True}
        flags |= {name.lower(): value for name, value in options.items()}
        given = list(arguments)
        place = 1 if direction == "forward" else 9  # both kernels multiply from the left
        given[place] = arranged(given[place].transpose(1, 2), self.plan)
        launch(
            text(width, self.plan, **flags),
            f"organics_{direction}",
            self.blocks,
            self.plan.threads(width),
            self.plan.memory(width),
            tuple(given),
        )


def memory(xs: Tensor) -> int:
    """Bytes of shared memory that a block may take where ``xs`` is."""
    return int(torch.cuda.get_device_properties(xs.device).shared_memory_per_block_optin)


def fitting(plan: Plan, width: int, room: int) -> Plan:
    """The plan with as many matrices in shared memory as there is room for; the others are read from the cache."""
    while plan.shared and plan.memory(width) > room:
        plan = plan._replace(shared=plan.shared - 1)
    return plan


def suits(xs: Tensor, units: int) -> bool:
    """Whether the batch is so small that its blocks run in few turns, and tensor cores would not pay."""
    if units > MOST_UNITS:
        return False
    blocks = -(-xs.shape[1] // PLANS[padded(units)].rows)
    turns = TURNS[torch.get_float32_matmul_precision()]
    return bool(blocks <= turns * torch.cuda.get_device_properties(xs.device).multi_processor_count)


def obstacle(xs: Tensor, units: int, checkpoint_every: int | None) -> str | None:
    """Why the kernels do not take a sequence of this kind, or None."""
    if xs.dtype != torch.float32:
        return f"it takes float32, not {xs.dtype}"
    if not xs.is_cuda:
        return f"it runs on CUDA, not on {xs.device}"
    if units > MOST_UNITS:
        return f"it takes at most {MOST_UNITS} units, not {units}"
    if checkpoint_every is not None:
        return "it keeps every state: checkpoint_every must be None"
    try:
        nvrtc()
    except RuntimeError as error:
        return str(error)
    return None


kept_shapes = on_chip.kept_shapes
forward = functools.partial(on_chip.forward, _Launch)
backward = functools.partial(on_chip.backward, _Launch)
