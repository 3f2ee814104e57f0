"""Log posteriors from forward messages and what the later steps say of each step: rows added and normalised."""

from __future__ import annotations

from typing import Any

from .layout import (
    CHUNK,
    COTANGENT,
    LENGTHS,
    MESSAGES,
    NUM_STATES,
    NUM_STEPS,
    NUM_TASKS,
    SCRATCH,
    SCRATCH_BYTES,
    TICKET,
    VALUES,
)
from .numba_chain import chain_parts, integers
from .numba_math import jit
from .numba_simd import make_pointer, select, take_ticket


def build(element: Any, io: Any) -> Any:
    """The kernel `run(fields, thread)`; a task is a chunk of steps of one sequence."""
    parts = chain_parts(element, io, False, "dense", False)
    ar = parts.ar
    W, f = ar.lanes, element
    load, store, const, splat, pointer = ar.load, ar.store, ar.const, ar.splat, ar.pointer
    exp_split, split, power, log_of, fold_max, fold_add = (
        ar.exp_split,
        ar.split,
        ar.power,
        ar.log_of,
        ar.fold_max,
        ar.fold_add,
    )
    ios = make_pointer(io)
    infinity, bytes_of = float("inf"), 64 // W

    @jit
    def chunk(a: Any, b: Any, t0: Any, steps: Any, z: Any, tops: Any, totals: Any) -> None:
        """A loop a stage, so that the rows' long ways to a result overlap."""
        K, T = a[NUM_STATES], a[NUM_STEPS]
        width = (K + W - 1) // W * W
        here, later, out = ios(a[MESSAGES]), ios(a[COTANGENT]), ios(a[VALUES])
        length = integers(a[LENGTHS])[b]
        for s in range(steps):
            row = (b * T + t0 + s) * K
            for k in range(width):
                z[s * width + k] = f(here[row + k] + later[row + k]) if k < K else f(-infinity)
        for s in range(steps):
            top = load(z, s * width)
            for k in range(W, width, W):
                x = load(z, s * width + k)
                top = select(x > top, x, top)
            high = fold_max(top)
            tops[s] = high if high > f(-infinity) else f(0.0)
        for s in range(steps):
            total = const(0.0)
            for k in range(0, width, W):
                m, n = exp_split(load(z, s * width + k) - splat(tops[s]))
                total = total + m * power(n)
            totals[s] = fold_add(total)
        for s in range(0, steps, W):
            total = load(totals, s)
            m, n = split(total, const(0.0))
            store(totals, s, select(total == const(0.0), const(0.0), log_of(m, n)))
        for s in range(steps):
            row, inside = (b * T + t0 + s) * K, t0 + s < length
            norm = tops[s] + totals[s]
            for k in range(K):
                out[row + k] = io(z[s * width + k] - norm) if inside else io(-infinity)

    def run(a, slot):
        K, T = a[NUM_STATES], a[NUM_STEPS]
        width = (K + W - 1) // W * W
        scratch = a[SCRATCH] + slot * a[SCRATCH_BYTES]
        z, tops = pointer(scratch), pointer(scratch + CHUNK * width * bytes_of)
        totals = pointer(scratch + CHUNK * (width + 1) * bytes_of)
        ticket = integers(a[TICKET])
        blocks = (T + 16 * CHUNK - 1) // (16 * CHUNK)
        while True:
            task = take_ticket(ticket)
            if task >= a[NUM_TASKS]:
                break
            b, block = task // blocks, task % blocks
            for part in range(16):
                t0 = (block * 16 + part) * CHUNK
                if t0 < T:
                    chunk(a, b, t0, min(CHUNK, T - t0), z, tops, totals)
        return 0

    return run
