"""Cotangents against the messages: `recursion.pull_messages`, compiled, for constant weights, sequence by sequence.

A state's cotangent goes to the ways into it by their shares, w_i A_ij / v_j with v = w A: two products with the matrix
a step. Where v_j is below the guard its shares are taken with exponents.
"""

from __future__ import annotations

from typing import Any

from numba import types

from .layout import (
    COTANGENT,
    COUNTS,
    COUNTS_SIZE,
    EDGE_COUNT,
    EDGE_ORDER,
    EDGE_SOURCE,
    EDGE_START,
    EMISSION,
    EMISSION_BATCH,
    EMISSION_STEP,
    INCLUDE_EMISSION,
    IS_COUNTED_APART,
    LENGTHS,
    MATRIX,
    MESSAGES,
    NUM_EDGES,
    NUM_STATES,
    NUM_STEPS,
    NUM_TASKS,
    ORDER,
    REVERSE,
    SCRATCH,
    SCRATCH_BYTES,
    SHIFT,
    START,
    TASKS,
    TICKET,
    TINY,
    VALUES,
    WEIGHTS,
    WEIGHTS_BATCH,
)
from .numba_chain import chain_parts, doubles, integers
from .numba_math import jit
from .numba_simd import extract, fma, select, take_ticket


def build(element: Any, io: Any, structure: str) -> Any:
    """The kernel `run(fields, thread)`; `structure` is "dense" or "edges", which bands are, too."""
    is_dense = structure == "dense"
    parts = chain_parts(element, io, not is_dense, structure, False)
    ar = parts.ar
    W, f = ar.lanes, element
    load, store, const, splat, pointer = ar.load, ar.store, ar.const, ar.splat, ar.pointer
    exp_split, power, fold_add, fold_max = ar.exp_split, ar.power, ar.fold_add, ar.fold_max
    prepare_slot, exact, ios, contract_states = parts.prepare_slot, parts.exact, parts.ios, parts.contract_states
    guard, big, empty, infinity = ar.guard, ar.big, parts.empty, float("inf")
    weigh = parts.weigh
    bytes_of = 8 if element == types.float64 else 4
    io_bytes = 8 if io == types.float64 else 4

    @jit
    def one(a: Any, scratch: Any, b: Any, C: Any) -> None:
        K, T, E = a[NUM_STATES], a[NUM_STEPS], a[NUM_EDGES]
        width = (K + W - 1) // W * W
        reverse, include = a[REVERSE] != 0, a[INCLUDE_EMISSION] != 0
        emission, given = ios(a[EMISSION]), ios(a[COTANGENT])
        values, out, start = ios(a[MESSAGES]), ios(a[VALUES]), ios(a[START])
        length = integers(a[LENGTHS])[b]

        at = scratch
        m, n, w = pointer(at), pointer(at + width * bytes_of), pointer(at + 2 * width * bytes_of)
        at += 3 * width * bytes_of
        v, r, c = pointer(at), pointer(at + width * bytes_of), pointer(at + 2 * width * bytes_of)
        at += 3 * width * bytes_of
        back, temp = pointer(at), pointer(at + width * bytes_of)
        at += 4 * width * bytes_of
        flags = integers(at)
        at += (K + W) * 8
        wm = pointer(at)
        wn = wm if is_dense else pointer(at + (E + W) * bytes_of)
        shift, has_tiny = 0.0, 0
        if is_dense and a[MATRIX] != 0:
            wm, flags = pointer(a[MATRIX]), integers(a[TINY])
            shift, has_tiny = doubles(a[SHIFT])[0], flags[K]
        else:
            shift, has_tiny = prepare_slot(a, b, 0, wm, wn, wm, flags)
        source = ios(a[WEIGHTS] + b * a[WEIGHTS_BATCH] * io_bytes)
        order, first = integers(a[EDGE_ORDER]), integers(a[EDGE_START])
        many, sources = integers(a[EDGE_COUNT]), integers(a[EDGE_SOURCE])

        for i in range(width):
            back[i] = f(0.0)
        for s in range(length):
            t = s if reverse else length - 1 - s  # against the direction of travel
            row = (b * T + t) * K
            # the cotangent of the step's emissions, and of what was predicted of it
            for j in range(K):
                if include:
                    back[j] += f(given[row + j])
                out[row + j] = io(back[j])
                c[j] = back[j] if include else back[j] + f(given[row + j])
                back[j] = f(0.0)
            for j in range(K, width):
                c[j] = f(0.0)
            if s == length - 1:
                break
            before = t + 1 if reverse else t - 1
            row = (b * T + before) * K
            for i in range(width):
                x = -infinity
                if i < K:
                    x = values[row + i]
                    if not include:
                        x += emission[b * a[EMISSION_BATCH] + before * a[EMISSION_STEP] + i]
                w[i] = f(x)
            top = const(-big)
            for i in range(0, width, W):
                x, y = exp_split(load(w, i))
                y = select(x == const(0.0), const(-big), y)
                store(m, i, x)
                store(n, i, y)
                top = select(y > top, y, top)
            high = splat(fold_max(top))
            high = select(high > const(-empty), high, const(0.0))
            for i in range(0, width, W):
                y = load(n, i)
                y = select(y > const(-empty), y - high, y)
                store(n, i, y)
                store(w, i, load(m, i) * power(y))
            if is_dense:
                contract_states(wm, K, width // W, width, 1, w, v)
                for j in range(K):
                    r[j] = f(0.0)
                    if (v[j] < f(guard) and v[j] > f(0.0)) or (has_tiny != 0 and flags[j] != 0):
                        total, _ = exact(a, source, shift, j, m, n, 0, 1, temp)
                        if total > f(0.0) and c[j] != f(0.0):
                            for i in range(K):
                                part = c[j] * (temp[i] / total)
                                back[i] += part
                                if a[COUNTS] != 0:
                                    C[K * width + i * width + j] += part
                    elif v[j] != f(0.0) and c[j] != f(0.0):
                        r[j] = c[j] / v[j]
                for j in range(K, width):
                    r[j] = f(0.0)
                for i in range(K):
                    total, x = const(0.0), splat(w[i])
                    for j in range(0, width, W):
                        y = load(r, j)
                        total = fma(load(wm, i * width + j), y, total)
                        if a[COUNTS] != 0:
                            store(C, i * width + j, fma(x, y, load(C, i * width + j)))
                    back[i] += w[i] * fold_add(total)
            else:
                for j in range(K):
                    if c[j] == f(0.0):
                        continue
                    best = f(-big)
                    for e in range(first[j], first[j] + many[j]):
                        i = sources[order[e]]
                        y = n[i] + wn[e]
                        if m[i] * wm[e] != f(0.0) and y > best:
                            best = y
                    total = f(0.0)
                    for e in range(first[j], first[j] + many[j]):
                        i = sources[order[e]]
                        total += m[i] * wm[e] * extract(power(splat(n[i] + wn[e] - best)), 0)
                    if total == f(0.0):
                        continue
                    for e in range(first[j], first[j] + many[j]):
                        i = sources[order[e]]
                        part = c[j] * (m[i] * wm[e] * extract(power(splat(n[i] + wn[e] - best)), 0) / total)
                        back[i] += part
                        if a[COUNTS] != 0:
                            C[order[e]] += part
        for i in range(K):
            start[b * K + i] = io(c[i])
        for t in range(length, T):
            for i in range(K):
                out[(b * T + t) * K + i] = io(0.0)
        if is_dense and a[COUNTS] != 0 and a[IS_COUNTED_APART] != 0:
            weigh(K, wm, C)

    def run(a, slot):
        scratch = a[SCRATCH] + slot * a[SCRATCH_BYTES]
        tasks, order, ticket = integers(a[TASKS]), integers(a[ORDER]), integers(a[TICKET])
        is_apart = a[IS_COUNTED_APART] != 0
        while True:
            task = take_ticket(ticket)
            if task >= a[NUM_TASKS]:
                break
            for q in range(tasks[task], tasks[task + 1]):
                b = order[q]
                one(a, scratch, b, pointer(a[COUNTS] + (b if is_apart else slot) * a[COUNTS_SIZE] * bytes_of))
        if is_dense and a[COUNTS] != 0 and not is_apart:
            weigh(a[NUM_STATES], pointer(a[MATRIX]), pointer(a[COUNTS] + slot * a[COUNTS_SIZE] * bytes_of))
        return 0

    return run
