"""The recursion over segments, states in lanes: open segments are summed up from their ends, emissions only ever added.

All in float64 and in logs; a sum is taken against its largest term, so that nothing is lost that float64 can tell.
Padded states have weights of -inf throughout.
"""

from __future__ import annotations

from math import inf
from typing import Any

from numba import types

from .layout import (
    AFTER,
    BEGINS,
    COUNTS,
    DURATION_COUNTS,
    DURATIONS,
    DURATIONS_BATCH,
    EMISSION,
    ENDS,
    INITIAL,
    INITIAL_BATCH,
    LENGTHS,
    NUM_DURATIONS,
    NUM_STATES,
    NUM_STEPS,
    NUM_TASKS,
    POSTERIORS,
    SCALES,
    SCORES,
    SCRATCH,
    SCRATCH_BYTES,
    START,
    TAIL_COUNTS,
    TAILS,
    TAILS_BATCH,
    TICKET,
    WEIGHTS,
    WEIGHTS_BATCH,
)
from .numba_chain import integers
from .numba_math import arithmetic, jit
from .numba_simd import select, take_ticket


def build(kind: str) -> Any:
    """The kernel `run(fields, thread)`, a sequence a task: "sum" and "max" pass forward, "back" counts."""
    ar = arithmetic(types.float64)
    W = ar.lanes
    load, store, const, splat, pointer = ar.load, ar.store, ar.const, ar.splat, ar.pointer
    exp_split, split, power, log_of, fold_max = ar.exp_split, ar.split, ar.power, ar.log_of, ar.fold_max
    lowest = ar.lowest
    is_max = kind == "max"

    @jit
    def exp_of(x: Any) -> Any:
        m, n = exp_split(x)
        return select(n < const(-lowest), m * const(0.0), m * power(n))

    @jit
    def pivot(top: Any) -> Any:
        return select(top > const(-inf), top, const(0.0))

    @jit
    def sum_of(terms: Any, count: Any, top: Any) -> Any:
        """log of the sum of exp of `count` vectors, whose largest is `top`."""
        if is_max:
            return top
        safe = pivot(top)
        total = const(0.0)
        for i in range(count):
            total = total + exp_of(load(terms, i * W) - safe)
        m, n = split(total, const(0.0))
        return log_of(m, n) + safe

    @jit
    def larger(x: Any, y: Any) -> Any:
        return select(x > y, x, y)

    @jit
    def forward(
        e: Any, L: Any, K: Any, D: Any, durations: Any, moves: Any, begins: Any, ends: Any, scales: Any, terms: Any
    ) -> None:
        for t in range(L):
            most = -inf
            count = min(D, t + 1)
            for v in range(0, K, W):
                c = load(e, t * K + v)
                top, best = const(-inf), const(-inf)
                for d in range(count):
                    s = t - d
                    x = load(begins, s * K + v) + c
                    best = larger(x, best)
                    y = x + load(durations, d * K + v)
                    store(terms, d * W, y)
                    top = larger(y, top)
                    if s > 0:
                        c = c + (load(e, (s - 1) * K + v) - splat(scales[s - 1]))
                store(ends, t * K + v, sum_of(terms, count, top))
                most = max(most, fold_max(best))
            scale = most if most > -inf else 0.0
            scales[t] = scale
            if t + 1 < L:
                for v in range(0, K, W):
                    top = const(-inf)
                    for k in range(K):
                        y = splat(ends[t * K + k]) + load(moves, k * K + v)
                        store(terms, k * W, y)
                        top = larger(y, top)
                    store(begins, (t + 1) * K + v, sum_of(terms, K, top) - splat(scale))

    @jit
    def back(
        e: Any,
        L: Any,
        K: Any,
        D: Any,
        durations: Any,
        tails: Any,
        moves: Any,
        begins: Any,
        ends: Any,
        scales: Any,
        known: Any,
        after: Any,
        starts: Any,
        posteriors: Any,
        counts: Any,
        done: Any,
        left: Any,
        terms: Any,
    ) -> None:
        """`moves` and `counts` are [to, from]; `starts` is what follows a segment that begins at the step seen last."""
        for back_step in range(L):
            s = L - 1 - back_step
            if back_step == 0:
                for v in range(0, K, W):
                    store(after, s * K + v, const(-inf))
            else:
                scale = splat(scales[s])
                for v in range(0, K, W):
                    top = const(-inf)
                    for j in range(K):
                        y = load(moves, j * K + v) + splat(starts[j])
                        store(terms, j * W, y)
                        top = larger(y, top)
                    store(after, s * K + v, sum_of(terms, K, top) - scale)
                    safe = pivot(top)
                    factor = exp_of(load(ends, s * K + v) + safe - scale)
                    for j in range(K):
                        found = exp_of(load(terms, j * W) - safe) * factor
                        store(counts, j * K + v, load(counts, j * K + v) + found)
            count = min(D, L - s)
            for v in range(0, K, W):
                c = load(e, s * K + v)
                top = const(-inf)
                for d in range(count):
                    t = s + d
                    if t == L - 1:
                        y = c + load(tails, d * K + v) - splat(known)
                    else:
                        y = c + load(durations, d * K + v) + load(after, t * K + v)
                        c = c + (load(e, (t + 1) * K + v) - splat(scales[t]))
                    store(terms, d * W, y)
                    top = larger(y, top)
                store(starts, v, sum_of(terms, count, top))
                safe = pivot(top)
                factor = exp_of(load(begins, s * K + v) + safe)
                over = const(0.0)
                for i in range(count):
                    d = count - 1 - i
                    found = exp_of(load(terms, d * W) - safe) * factor
                    over = over + found
                    place = (s + d) * K + v
                    store(posteriors, place, load(posteriors, place) + over)
                    place = d * K + v
                    if s + d == L - 1:
                        store(left, place, load(left, place) + found)
                    else:
                        store(done, place, load(done, place) + found)
        for v in range(0, K, W):
            store(starts, v, exp_of(load(begins, v) + load(starts, v)))

    def run_back(a, slot):
        ticket, lengths = integers(a[TICKET]), integers(a[LENGTHS])
        T, K, D = a[NUM_STEPS], a[NUM_STATES], a[NUM_DURATIONS]
        terms = pointer(a[SCRATCH] + slot * a[SCRATCH_BYTES])
        known = pointer(a[SCORES])
        while True:
            b = take_ticket(ticket)
            if b >= a[NUM_TASKS]:
                break
            rows, laws = b * T * K * 8, b * D * K * 8
            back(
                pointer(a[EMISSION] + rows),
                lengths[b],
                K,
                D,
                pointer(a[DURATIONS] + b * a[DURATIONS_BATCH] * 8),
                pointer(a[TAILS] + b * a[TAILS_BATCH] * 8),
                pointer(a[WEIGHTS] + b * a[WEIGHTS_BATCH] * 8),
                pointer(a[BEGINS] + rows),
                pointer(a[ENDS] + rows),
                pointer(a[SCALES] + b * T * 8),
                known[b],
                pointer(a[AFTER] + rows),
                pointer(a[START] + b * K * 8),
                pointer(a[POSTERIORS] + rows),
                pointer(a[COUNTS] + b * K * K * 8),
                pointer(a[DURATION_COUNTS] + laws),
                pointer(a[TAIL_COUNTS] + laws),
                terms,
            )
        return 0

    def run(a, slot):
        ticket, lengths = integers(a[TICKET]), integers(a[LENGTHS])
        T, K, D = a[NUM_STEPS], a[NUM_STATES], a[NUM_DURATIONS]
        terms = pointer(a[SCRATCH] + slot * a[SCRATCH_BYTES])
        while True:
            b = take_ticket(ticket)
            if b >= a[NUM_TASKS]:
                break
            rows = b * T * K * 8
            begins, initial = pointer(a[BEGINS] + rows), pointer(a[INITIAL] + b * a[INITIAL_BATCH] * 8)
            for v in range(0, K, W):
                store(begins, v, load(initial, v))
            forward(
                pointer(a[EMISSION] + rows),
                lengths[b],
                K,
                D,
                pointer(a[DURATIONS] + b * a[DURATIONS_BATCH] * 8),
                pointer(a[WEIGHTS] + b * a[WEIGHTS_BATCH] * 8),
                begins,
                pointer(a[ENDS] + rows),
                pointer(a[SCALES] + b * T * 8),
                terms,
            )
        return 0

    return run_back if kind == "back" else run
