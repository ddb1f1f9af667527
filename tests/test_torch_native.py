"""The native library: compiled once, kept safely, and never missed where it cannot be had."""

from __future__ import annotations

import ctypes
import os
import platform
import stat
import subprocess
import threading
import time
from pathlib import Path

import pytest
from support import ELSEWHERE, PATIENCE, run_python

torch = pytest.importorskip("torch", reason="torch is not installed")

import organics_torch as ot  # noqa: E402
from organics_backends import native as compiled  # noqa: E402
from organics_torch import native  # noqa: E402
from organics_torch.implementation import Reserve  # noqa: E402

pytestmark = pytest.mark.cpu
needs_native = pytest.mark.skipif(native.load() is None, reason=f"the native library is {native.status()}")


def anew():
    """The library as a new process looks for it."""
    return compiled.Library("sequence", native.VARIABLE, native._sources, native._open)


PROGRAM = """
import torch, organics_torch as ot
from organics_torch import native
layer = ot.ORGaNICs(2, 4, seed=0)
output, hn = layer(torch.ones(5, 3, 2))
output.sum().backward()
print(native.status())
"""


def test_without_a_compiler_the_plain_implementation_is_taken(tmp_path):
    """A fresh process on a machine without compiler trains, and says nothing about it unless asked."""
    folders = dict.fromkeys(("XDG_CACHE_HOME", "TMPDIR", "PATH"), str(tmp_path))
    done = run_python(PROGRAM, **folders, CXX="", **{native.VARIABLE: ""})
    assert done.returncode == 0, done.stderr
    assert "no C++ compiler" in done.stdout
    assert not done.stderr.strip()


def test_switched_off(monkeypatch):
    monkeypatch.setenv(native.VARIABLE, "0")
    layer = ot.ORGaNICs(2, 4, seed=0)
    assert layer(torch.ones(5, 3, 2))[0].shape == (5, 3, 4)
    assert native.status() == "switched off by ORGANICS_TORCH_FUSED"
    layer.implementation = "fused"
    with pytest.raises(RuntimeError, match="switched off"):
        layer(torch.ones(5, 3, 2))


@pytest.mark.skipif(os.name != "posix", reason=f"{ELSEWHERE}a shell script plays the compiler")
def test_a_compiler_that_fails(tmp_path, monkeypatch, caplog):
    """The log has its words, and that slower code takes its place."""
    caplog.set_level("INFO", "organics_backends")
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\necho no such target >&2\nexit 1\n")
    broken.chmod(broken.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(broken))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library, status = anew().found
    assert library is None
    assert "no such target" in status
    assert "slower code takes its place" in caplog.messages[-1]
    assert "no such target" in caplog.messages[-1]


@pytest.mark.skipif(os.name != "posix", reason=f"{ELSEWHERE}signals of a process group")
def test_ctrl_c_does_not_reach_the_compiler():
    """It goes to all processes of a terminal; the one that waits for the compiler may want to end in peace."""
    program = """
import os, signal, threading, time
from organics_backends import native
os.setpgrp()
signal.signal(signal.SIGINT, lambda *_: print("asked"))
threading.Timer(0.5, lambda: os.killpg(0, signal.SIGINT)).start()
print(native.run("sh", "-c", "sleep 2; echo compiled").stdout)
"""
    done = run_python(program)
    assert done.stdout.split() == ["asked", "compiled"], done.stderr


@pytest.mark.skipif(os.name != "posix", reason=f"{ELSEWHERE}signals of a process group")
def test_a_compiler_that_hangs_is_ended(monkeypatch):
    """With all that it has begun."""
    monkeypatch.setattr(compiled, "TIMEOUT", 1.0)
    begun = time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired):
        compiled.run("sh", "-c", "sleep 600 & sleep 600")
    assert time.monotonic() - begun < PATIENCE


@needs_native
@pytest.mark.skipif(os.name != "posix", reason=f"{ELSEWHERE}file owners and modes")
def test_cache(tmp_path, monkeypatch, caplog):
    """Many processes may compile at once, which is said; a damaged or foreign file is not loaded."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    # it will not run: compile fast
    monkeypatch.setattr(compiled, "FLAGS", ("-std=c++17", "-O0", *compiled.FLAGS[-3:]))
    found = []
    threads = [threading.Thread(target=lambda: found.append(native.library.build())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1]
    assert [path.name for path in compiled.cache_folder().iterdir()] == [found[0].name]
    assert native._open(found[0]) is not None
    said = [record.getMessage() for record in caplog.records if record.name == "organics_backends"]
    assert said
    assert all(line.startswith("compiling sequence with ") for line in said)
    when = found[0].stat().st_mtime_ns
    caplog.clear()
    assert native.library.build().stat().st_mtime_ns == when
    assert not caplog.records
    found[0].chmod(0o777)
    assert native.library.build().stat().st_mtime_ns != when
    found[0].write_bytes(b"not a library")
    library, status = anew().found
    assert library is not None
    assert status == "in use"
    whole = found[0].read_bytes()
    if whole.startswith(b"\x7fELF"):  # opened without its end, it would kill the process
        for size in (4096, len(whole) - 1):
            found[0].write_bytes(whole[:size])
            assert native.library.build() == found[0]
            assert found[0].stat().st_size > size


def test_threads_that_want_it_first_open_it_once(tmp_path, monkeypatch):
    opened = []

    def opening(path):
        time.sleep(0.2)
        opened.append(path)
        return path

    library = compiled.Library("some", native.VARIABLE, dict, opening)
    monkeypatch.setattr(library, "build", lambda: tmp_path)
    threads = [threading.Thread(target=library.load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert opened == [tmp_path]


@pytest.mark.skipif(os.name != "posix", reason=f"{ELSEWHERE}the home of a user")
def test_without_a_home_the_temporary_folder_keeps_it(tmp_path, monkeypatch):
    """A user of a container, who is in no list of users."""

    def nobody():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nobody)
    monkeypatch.setattr(compiled.tempfile, "tempdir", str(tmp_path))
    source = b'extern "C" int one(void) { return 1; }'
    library = compiled.Library("one", native.VARIABLE, lambda: {"one.cpp": source}, ctypes.CDLL)
    if library.found[0] is None and "no C++ compiler" in library.found[1]:
        pytest.skip(f"{ELSEWHERE}a compiler is there")
    assert library.found[0].one() == 1
    assert [path.suffix for path in (tmp_path / f"organics-core-{os.getuid()}").iterdir()] == [".so"]


@needs_native
@pytest.mark.skipif(os.name != "posix", reason=f"{ELSEWHERE}shared objects")
def test_what_a_wheel_brings_serves_where_no_compiler_is(tmp_path, monkeypatch):
    """Or none that works. The best for this processor, the plain one on an unknown; a damaged file is left there."""
    source = Path(compiled.__file__).parent / "sequence.cpp"
    fast = ("-std=c++17", "-O0", "-march=native", *compiled.FLAGS[-3:])
    monkeypatch.setattr(compiled, "FLAGS", fast)
    made = compiled.prebuild(source, tmp_path / "prebuilt")
    assert [path.name for path in made] == [f"sequence-{name}.so" for name, _ in compiled.LEVELS[platform.machine()]]
    monkeypatch.setattr(compiled, "__file__", str(tmp_path / "native.py"))
    for name in ("XDG_CACHE_HOME", "TMPDIR", "PATH", "CXX"):
        monkeypatch.setenv(name, str(tmp_path))
    library, status = anew().found
    assert (library is not None, status) == (True, "in use")
    assert anew().build() in made
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\necho no headers >&2\nexit 1\n")
    broken.chmod(0o755)
    assert anew().build() in made
    monkeypatch.setattr(compiled, "_processor", lambda: "unheard of")
    assert anew().build() == made[-1]
    made[-1].write_bytes(b"not a library")
    assert anew().found[0] is None
    assert made[-1].exists()
    made[-1].unlink()
    assert anew().found[1].endswith("c++ failed: no headers")


@needs_native
def test_all_threads_give_the_same_bits():
    layer = ot.ORGaNICs(2, 20, implementation="fused", seed=0)
    x = torch.randn(9, 50, 2, generator=torch.Generator().manual_seed(1))
    before = torch.get_num_threads()
    found = []
    try:
        for _ in range(3):
            torch.set_num_threads(3)
            layer.zero_grad()
            output, _ = layer(x)
            output.square().sum().backward()
            found.append([output.detach(), *(p.grad for p in layer.parameters())])
    finally:
        torch.set_num_threads(before)
    for again in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], again, strict=True))


@needs_native
def test_threads_may_change_between_the_passes():
    layer = ot.ORGaNICs(2, 20, implementation="fused", seed=0, dtype=torch.float64)
    x = torch.randn(9, 50, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    before = torch.get_num_threads()
    found = []
    try:
        for later in (1, 4):
            torch.set_num_threads(1)
            loss = layer(x)[0].square().sum()
            torch.set_num_threads(later)
            found.append(torch.autograd.grad(loss, list(layer.parameters())))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@needs_native
@pytest.mark.skipif(not hasattr(os, "fork"), reason=f"{ELSEWHERE}no fork")
def test_a_forked_child_computes_too():
    """OpenMP's threads do not survive a fork: the child takes others. No compiler of torch's is imported for that."""
    program = """
import os, signal, sys, torch, organics_torch as ot
torch.set_num_threads(2)
layer, x = ot.ORGaNICs(1, 8, seed=0, implementation="fused"), torch.ones(5, 4, 1)
here = layer(x)[0]
torch.ones(1 << 20).exp()  # by both threads
child = os.fork()
if not child:
    signal.alarm(300)  # a child that hangs
    os._exit(0 if torch.equal(layer(x)[0], here) else 3)
print(os.waitpid(child, 0)[1], "torch._dynamo" in sys.modules)
"""
    done = run_python(program)
    assert done.stdout.strip() == "0 False", done.stderr


def test_reserve_lends_one_buffer_to_one_tensor_at_a_time():
    reserve = Reserve(smallest=16)
    one = reserve.empty((4, 8), torch.float32)
    first = one.data_ptr()
    view = one[1]
    two = reserve.empty((4, 8), torch.float32)
    assert two.data_ptr() != first
    del one
    three = reserve.empty((4, 8), torch.float32)
    assert three.data_ptr() not in (first, two.data_ptr())  # the view still holds it
    del view
    again = reserve.empty((2, 10), torch.float32)
    assert again.data_ptr() == first
    assert again.shape == (2, 10)
    del again
    assert reserve.empty((4, 800), torch.float64).shape == (4, 800)  # too large for the spare one
    assert reserve.empty((0,), torch.float64).shape == (0,)


def test_reserve_keeps_what_was_lent_at_once_and_no_more():
    reserve = Reserve(smallest=16)
    both = [reserve.empty((100,), torch.float32), reserve.empty((20,), torch.float32)]
    places = [tensor.data_ptr() for tensor in both]
    del both
    both = [reserve.empty((90,), torch.float32), reserve.empty((20,), torch.float32)]
    assert [tensor.data_ptr() for tensor in both] == places  # each has its own, in turn, too
    del both

    def kept():
        return sum(size * len(spare) for size, spare in reserve._spare.items())

    small = [reserve.empty((10,), torch.float32) for _ in range(4)]  # the first has that of 80 bytes
    assert kept() == 400
    small.append(reserve.empty((10,), torch.float32))  # 240 are lent, and 400 more would be too much
    assert kept() == 0
    for count in range(101, 300, 7):
        reserve.empty((count,), torch.float64)
        assert kept() + 240 <= 1.25 * (8 * count + 240)
    del small


def test_memory_does_not_grow():
    resource = pytest.importorskip("resource", reason=f"{ELSEWHERE}no resource usage")
    layer = ot.ORGaNICs(1, 32, seed=0)
    x = torch.ones(100, 64, 1)

    def peak():
        for _ in range(10):
            output, _ = layer(x)
            output.sum().backward()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    peak()
    before = peak()
    assert peak() - before < 20_000  # KiB; a lost buffer each time would be ten times as much
