"""Recorded loops: the bookkeeping of buffers and chunks, with a recorder that needs no GPU."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from organics_backends.graphs import COST, LONG, STEPS, RecordingBackend
from organics_core.backend import GenericBackend
from organics_core.circuit import State


class Recorder:
    """Replays by calling again; like a capture, recording itself computes nothing."""

    def __init__(self, *, refuses: bool = False) -> None:
        self.refuses = refuses
        self.recordings = 0
        self.replays = 0

    def record(self, function: Callable[[], None]) -> Callable[[], None] | None:
        self.recordings += 1
        if self.refuses:
            return None

        def replay() -> None:
            self.replays += 1
            function()

        return replay


def step(state: State, x: Any) -> tuple[State, Any]:
    """Mixes, swaps and hands back parts of its carry."""
    drive, gain = x
    return State(state.a, 0.9 * state.y + gain * drive), (state.a, None, state.y * drive)


def problem(length: int) -> tuple[State, Any]:
    rng = np.random.default_rng(length)
    return State(rng.standard_normal(3), rng.standard_normal(3)), (rng.standard_normal((length, 3)), rng.random(length))


def same(found: Any, want: Any) -> None:
    for got, expected in zip(found, want, strict=True):
        if expected is None:
            assert got is None
        else:
            np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("length", [1, 2, STEPS // 4, STEPS + 1, 3 * STEPS + 5, COST * STEPS**2 + 70])
@pytest.mark.parametrize("refuses", [False, True])
def test_recorded_loop_is_the_plain_loop(length: int, refuses: bool) -> None:
    """Bit for bit, for lengths below, at and beyond the chunks, and where nothing can be recorded."""
    recorder = Recorder(refuses=refuses)
    start, xs = problem(length)
    before = [leaf.copy() for leaf in start]
    carry, ys = RecordingBackend(recorder).scan(step, start, xs)
    want_carry, want_ys = GenericBackend().scan(step, start, xs)
    same(carry, want_carry)
    same(ys, want_ys)
    same(start, before)  # buffers are copies
    assert recorder.recordings == int(length >= STEPS // 4)
    if recorder.recordings and not refuses:
        chunk = max(1, min(STEPS, math.isqrt(length // COST)))
        assert recorder.replays == (length - 1) // chunk


@pytest.mark.parametrize("inner", [3, 20, LONG])
def test_the_right_loop_of_two_is_recorded(inner: int) -> None:
    """Short inner loops are recorded with the outer one; a long one is recorded itself."""
    recorder = Recorder()

    def nested(backend: GenericBackend) -> Any:
        def outer(state: State, x: Any) -> tuple[State, Any]:
            state, _ = backend.scan(lambda s, k: (step(s, (x[0], x[1] + k))[0], None), state, np.arange(float(inner)))
            return State(*state), state[0]

        return backend.scan(outer, *problem(STEPS))

    with np.errstate(all="ignore"):
        carry, ys = nested(RecordingBackend(recorder))
        want_carry, want_ys = nested(GenericBackend())
    same(carry, want_carry)
    same([ys], [want_ys])
    assert recorder.recordings == (1 if inner < LONG else STEPS)
    assert recorder.replays > 0
