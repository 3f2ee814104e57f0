"""The steps of a chain in the log semiring, for vectors that hold sequences or states.

One source serves two layouts. With `lanes`, a vector holds one state of 8 or 16 sequences and the transition's
weights are read as scalars; otherwise a vector holds neighbouring states of one sequence, and up to FRONT sequences
share one reading of the weights. A state is (m, n), the weight m 2^n, scaled so that the largest n is 0.

Sums into a state multiply linear weights w = m 2^n, cut at 2^-lowest. A sum that falls below `guard`, where what was
cut could matter, is done again with the exponents kept (`exact`), so that no path is lost; band and edge sums always
keep them.
"""

from __future__ import annotations

from functools import lru_cache
from types import SimpleNamespace
from typing import Any

from numba import types

from .layout import (
    CHUNK,
    EDGE_COUNT,
    EDGE_ORDER,
    EDGE_SOURCE,
    EDGE_START,
    EDGE_TARGET,
    EMISSION,
    EMISSION_BATCH,
    NUM_EDGES,
    NUM_OFFSETS,
    NUM_STATES,
    NUM_STEPS,
    OFFSETS,
    ORDER,
    WEIGHTS,
    WEIGHTS_BATCH,
    WEIGHTS_FROM,
    WEIGHTS_SLOT,
    WEIGHTS_TANGENT,
    WEIGHTS_TO,
)
from .numba_math import arithmetic, jit
from .numba_simd import any_lane, extract, fma, make_broadcast, make_pointer, select

integers = make_pointer(types.int64)
doubles = make_pointer(types.float64)


def matrix_parts(ar: Any, io: Any) -> SimpleNamespace:
    """Linear weights from log weights of any strides."""
    ios = make_pointer(io)
    element, lanes = ar.element, ar.lanes
    load, store, const, exp_split, power = ar.load, ar.store, ar.const, ar.exp_split, ar.power
    tiny_limit = ar.tiny
    to_element = element

    @jit
    def prepare(source: Any, row: Any, column: Any, rows: Any, columns: Any, out: Any, flags: Any, by_row: Any) -> Any:
        """out[rows][columns padded] = exp(source - shift), 0 where that is too small; flags say where.

        `flags` counts by row or by column; (shift, whether any flag is set).
        """
        width = (columns + lanes - 1) // lanes * lanes
        shift = -float("inf")
        for r in range(rows):
            for c in range(columns):
                x = source[r * row + c * column]
                if x > shift:
                    shift = x
        if not shift > -float("inf"):
            shift = to_element(0.0)
        for i in range(rows if by_row else columns):
            flags[i] = 0
        found = 0
        for r in range(rows):
            line = r * width
            if column == 1:
                for c in range(columns):
                    out[line + c] = to_element(source[r * row + c] - shift)
            else:
                for c in range(columns):
                    out[line + c] = to_element(source[r * row + c * column] - shift)
            for c in range(columns, width):
                out[line + c] = to_element(-float("inf"))
            for c in range(0, width, lanes):
                m, n = exp_split(load(out, line + c))
                x = m * power(n)
                small = (x < const(tiny_limit)) & (x > const(0.0))
                store(out, line + c, select(small, const(0.0), x))
                if any_lane(small):
                    found = 1
                    for l in range(lanes):
                        if extract(x, l) < to_element(tiny_limit) and extract(x, l) > to_element(0.0):
                            flags[r if by_row else c + l] = 1
        return float(shift), found

    @jit
    def prepare_tangent(source: Any, row: Any, column: Any, rows: Any, columns: Any, linear: Any, out: Any) -> Any:
        """out = linear * source, 0 where linear is 0."""
        width = (columns + lanes - 1) // lanes * lanes
        for r in range(rows):
            for c in range(width):
                out[r * width + c] = to_element(0.0)
            for c in range(columns):
                if linear[r * width + c] != to_element(0.0):
                    out[r * width + c] = linear[r * width + c] * to_element(source[r * row + c * column])

    @jit
    def copy_log(source: Any, row: Any, column: Any, rows: Any, columns: Any, out: Any) -> Any:
        """out[rows][columns padded with -inf] = source; whether one is NaN."""
        width, bad = (columns + lanes - 1) // lanes * lanes, 0
        for r in range(rows):
            for c in range(columns):
                x = source[r * row + c * column]
                out[r * width + c] = to_element(x)
                if x != x:
                    bad = 1
            for c in range(columns, width):
                out[r * width + c] = to_element(-float("inf"))
        return bad

    return SimpleNamespace(prepare=prepare, prepare_tangent=prepare_tangent, copy_log=copy_log, ios=ios)


@lru_cache
def chain_parts(element: Any, io: Any, lanes: bool, structure: str, has_tangent: bool) -> SimpleNamespace:
    """The functions kernels of one variant are made of."""
    ar = arithmetic(element)
    W = ar.lanes
    is_dense, is_banded, is_edges = (structure == name for name in ("dense", "banded", "edges"))
    load, store, const, splat, pointer = ar.load, ar.store, ar.const, ar.splat, ar.pointer
    load_io = ar.load_double if io == types.float64 else ar.load_single
    store_io = ar.store_double if io == types.float64 else ar.store_single
    exp_split, split, power, log_of = ar.exp_split, ar.split, ar.power, ar.log_of
    fold_max, fold_add, transpose = ar.fold_max, ar.fold_add, ar.transpose
    matrix = matrix_parts(ar, io)
    prepare, prepare_tangent, ios = matrix.prepare, matrix.prepare_tangent, matrix.ios
    f = element
    guard, big = ar.guard, ar.big
    least = 900.0 if element == io == types.float64 else 90.0
    infinity = float("inf")
    io_bytes = 8 if io == types.float64 else 4
    empty = 0.1 * big

    # Sizes. G groups of NV vectors; a state array of one group is S elements, its first vector at MARGIN.

    @jit
    def geometry(a: Any, count: Any) -> Any:
        """(G, NV, MARGIN, S) of a task of `count` sequences."""
        K = a[NUM_STATES]
        if lanes:
            return 1, K, 0, K * W
        NV = (K + W - 1) // W
        margin = 0
        if is_banded:
            offsets = integers(a[OFFSETS])
            for o in range(a[NUM_OFFSETS]):
                if abs(offsets[o]) < K:
                    margin = max(margin, abs(offsets[o]))
            margin = (margin + W - 1) // W * W
        return count, NV, margin, NV * W + 2 * margin

    # Emissions: rows into vectors, (mantissa, exponent) and the largest of each step apart

    @jit
    def load_rows(
        a: Any, data: Any, by_batch: Any, by_step: Any, first: Any, count: Any, t0: Any, steps: Any, fill: Any, out: Any
    ) -> None:
        """Rows t0..t0+steps of the task's sequences into out[step][group][vector]; `fill` beyond K."""
        K, order = a[NUM_STATES], integers(a[ORDER])
        x = ios(data)
        if lanes:
            size = steps * K
            whole = size // W * W if by_step == K else 0
            for i in range(0, whole, W):
                for l in range(W):
                    row = order[first + min(l, count - 1)] * by_batch + t0 * by_step
                    store(out, i * W + l * W, load_io(x, row + i))
                transpose(out, i * W)
            for i in range(whole, size):
                place = (t0 + i // K) * by_step + i % K
                for l in range(W):
                    out[i * W + l] = f(x[order[first + min(l, count - 1)] * by_batch + place])
        else:
            width = (K + W - 1) // W * W
            for s in range(steps):
                for g in range(count):
                    row = order[first + g] * by_batch + (t0 + s) * by_step
                    line = (s * count + g) * width
                    whole = K // W * W
                    for k in range(0, whole, W):
                        store(out, line + k, load_io(x, row + k))
                    for k in range(whole, K):
                        out[line + k] = f(x[row + k])
                    for k in range(K, width):
                        out[line + k] = f(fill)

    @jit
    def store_rows(a: Any, data: Any, first: Any, count: Any, t0: Any, steps: Any, given: Any) -> None:
        """The way back: vectors into rows of a contiguous (B, T, K) array; `given` is overwritten."""
        K, T, order = a[NUM_STATES], a[NUM_STEPS], integers(a[ORDER])
        x = ios(data)
        if lanes:
            size = steps * K
            whole = size // W * W
            for i in range(0, whole, W):
                transpose(given, i * W)
                for l in range(count):
                    store_io(x, (order[first + l] * T + t0) * K + i, load(given, i * W + l * W))
            for i in range(whole, size):
                for l in range(count):
                    x[(order[first + l] * T + t0) * K + i] = given[i * W + l]
        else:
            width = (K + W - 1) // W * W
            for s in range(steps):
                for g in range(count):
                    row = (order[first + g] * T + t0 + s) * K
                    line = (s * count + g) * width
                    whole = K // W * W
                    for k in range(0, whole, W):
                        store_io(x, row + k, load(given, line + k))
                    for k in range(whole, K):
                        x[row + k] = given[line + k]

    @jit
    def reduce_max(x: Any) -> Any:
        """The largest over the states of a group, in every lane."""
        if lanes:
            return x
        return splat(fold_max(x))

    @jit
    def reduce_sum(x: Any) -> Any:
        if lanes:
            return x
        return splat(fold_add(x))

    @jit
    def split_emissions(raw: Any, exponents: Any, tops: Any, rows: Any, NV: Any) -> None:
        """exp of each row less its largest, in place as mantissas, with exponents; the largest in `tops`."""
        for r in range(rows):
            line = r * NV * W
            top = load(raw, line)
            for v in range(1, NV):
                x = load(raw, line + v * W)
                top = select(x > top, x, top)
            top = reduce_max(top)
            top = select(top > const(-infinity), top, const(0.0))
            store(tops, r * W, top)
            for v in range(NV):
                m, n = exp_split(load(raw, line + v * W) - top)
                store(raw, line + v * W, m)
                store(exponents, line + v * W, n)

    @jit
    def load_state(
        a: Any, data: Any, by_batch: Any, first: Any, count: Any, G: Any, NV: Any, margin: Any, S: Any, out: Any
    ) -> None:
        """A row (K,) of each sequence as a state array; -inf beyond K."""
        K, order = a[NUM_STATES], integers(a[ORDER])
        x = ios(data)
        if lanes:
            for k in range(K):
                for l in range(W):
                    out[k * W + l] = f(x[order[first + min(l, count - 1)] * by_batch + k])
        else:
            for g in range(G):
                for k in range(NV * W):
                    out[g * S + margin + k] = f(x[order[first + g] * by_batch + k]) if k < K else f(-infinity)

    @jit
    def store_state(a: Any, data: Any, first: Any, count: Any, margin: Any, S: Any, given: Any) -> None:
        K, order = a[NUM_STATES], integers(a[ORDER])
        x = ios(data)
        for g in range(count):
            for k in range(K):
                x[order[first + g] * K + k] = given[k * W + g] if lanes else given[g * S + margin + k]

    # Messages between two kernels: linear where they can be, else the log, which is negative

    @jit
    def tag(m: Any, n: Any) -> Any:
        is_small = (n < const(-least)) & (m > const(0.0))
        x = m * power(n)
        return select(is_small, log_of(m, n), x) if any_lane(is_small) else x

    @jit
    def untag(x: Any) -> Any:
        m, n = split(x, const(0.0))
        is_log = x < const(0.0)
        if any_lane(is_log):
            lm, ln = exp_split(x)
            return select(is_log, lm, m), select(is_log, ln, n)
        return m, n

    # Weights of one slot

    @jit
    def log_weights(a: Any, b: Any, slot: Any) -> Any:
        """Where the log weights of a slot begin, as an element offset."""
        return b * a[WEIGHTS_BATCH] + slot * a[WEIGHTS_SLOT]

    @jit
    def prepare_slot(a: Any, b: Any, slot: Any, wm: Any, wn: Any, wd: Any, flags: Any) -> Any:
        """Weights of one slot of one sequence: linear for a matrix, (m, n) for bands and edges. (shift, has_tiny)."""
        K = a[NUM_STATES]
        source = ios(a[WEIGHTS] + log_weights(a, b, slot) * io_bytes)
        tangents = ios(a[WEIGHTS_TANGENT] + log_weights(a, b, slot) * io_bytes)
        if is_dense:
            shift, has_tiny = prepare(source, a[WEIGHTS_FROM], a[WEIGHTS_TO], K, K, wm, flags, False)
            if has_tangent:
                prepare_tangent(tangents, a[WEIGHTS_FROM], a[WEIGHTS_TO], K, K, wm, wd)
            return shift, has_tiny
        E = a[NUM_EDGES]
        if is_banded:
            NV = (K + W - 1) // W
            width, O = NV * W, a[NUM_OFFSETS]
            targets, sources, offsets = integers(a[EDGE_TARGET]), integers(a[EDGE_SOURCE]), integers(a[OFFSETS])
            for i in range(O * width):
                wm[i] = f(-infinity)
                if has_tangent:
                    wd[i] = f(0.0)
            for e in range(E):
                gap = targets[e] - sources[e]
                for o in range(O):
                    if offsets[o] == gap:
                        wm[o * width + targets[e]] = f(source[e])
                        if has_tangent and source[e] > -infinity:
                            wd[o * width + targets[e]] = f(tangents[e])
            for i in range(0, O * width, W):
                m, n = exp_split(load(wm, i))
                store(wm, i, m)
                store(wn, i, select(m == const(0.0), const(-big), n))
            return 0.0, 0
        order = integers(a[EDGE_ORDER])
        padded_edges = (E + W - 1) // W * W
        for i in range(padded_edges):
            wm[i] = f(source[order[i]]) if i < E else f(-infinity)
            if has_tangent:
                wd[i] = f(tangents[order[i]]) if i < E and source[order[i]] > -infinity else f(0.0)
        for i in range(0, padded_edges, W):
            m, n = exp_split(load(wm, i))
            store(wm, i, m)
            store(wn, i, select(m == const(0.0), const(-big), n))
        return 0.0, 0

    # Sums into states: from m, n (and w, linear) to pm, pn; with tangents, d to pd

    @jit
    def smaller(a: Any, b: Any) -> Any:
        """The smaller of two that is not 0; something large where both are."""
        a = select(a > const(0.0), a, const(big))
        b = select(b > const(0.0), b, const(big))
        return select(a < b, a, b)

    @jit
    def contract_lanes(A: Any, K: Any, width: Any, w: Any, pm: Any) -> Any:
        """Linear sums, vectors of sequences; the smallest that is not 0."""
        low = const(big)
        zero = const(0.0)
        j = 0
        while j + 8 <= K:  # as many sums as hide a multiply-add's latency
            b = j * width
            v0, v1, v2, v3 = zero, zero, zero, zero
            v4, v5, v6, v7 = zero, zero, zero, zero
            for i in range(K):
                x, r = load(w, i * W), b + i
                v0 = fma(x, splat(A[r]), v0)
                v1 = fma(x, splat(A[r + width]), v1)
                v2 = fma(x, splat(A[r + 2 * width]), v2)
                v3 = fma(x, splat(A[r + 3 * width]), v3)
                v4 = fma(x, splat(A[r + 4 * width]), v4)
                v5 = fma(x, splat(A[r + 5 * width]), v5)
                v6 = fma(x, splat(A[r + 6 * width]), v6)
                v7 = fma(x, splat(A[r + 7 * width]), v7)
            store(pm, j * W, v0)
            store(pm, (j + 1) * W, v1)
            store(pm, (j + 2) * W, v2)
            store(pm, (j + 3) * W, v3)
            store(pm, (j + 4) * W, v4)
            store(pm, (j + 5) * W, v5)
            store(pm, (j + 6) * W, v6)
            store(pm, (j + 7) * W, v7)
            low = smaller(
                low, smaller(smaller(smaller(v0, v1), smaller(v2, v3)), smaller(smaller(v4, v5), smaller(v6, v7)))
            )
            j += 8
        while j < K:
            v0 = zero
            for i in range(K):
                v0 = fma(load(w, i * W), splat(A[j * width + i]), v0)
            store(pm, j * W, v0)
            low = select((v0 > zero) & (v0 < low), v0, low)
            j += 1
        return low

    @jit
    def contract_states(A: Any, K: Any, NV: Any, S: Any, G: Any, w: Any, pm: Any) -> Any:
        """Linear sums, vectors of states; the smallest that is not 0."""
        low = const(big)
        zero = const(0.0)
        width = NV * W
        g = 0
        while g + 4 <= G:
            b, v = g * S, 0
            while v < NV:
                u = v + 1 if v + 1 < NV else v
                v0, v1, v2, v3 = zero, zero, zero, zero
                v4, v5, v6, v7 = zero, zero, zero, zero
                for i in range(K):
                    r, q = i * width, b + i
                    x, y = load(A, r + v * W), load(A, r + u * W)
                    p = splat(w[q])
                    v0, v4 = fma(x, p, v0), fma(y, p, v4)
                    p = splat(w[q + S])
                    v1, v5 = fma(x, p, v1), fma(y, p, v5)
                    p = splat(w[q + 2 * S])
                    v2, v6 = fma(x, p, v2), fma(y, p, v6)
                    p = splat(w[q + 3 * S])
                    v3, v7 = fma(x, p, v3), fma(y, p, v7)
                store(pm, b + v * W, v0)
                store(pm, b + S + v * W, v1)
                store(pm, b + 2 * S + v * W, v2)
                store(pm, b + 3 * S + v * W, v3)
                store(pm, b + u * W, v4)
                store(pm, b + S + u * W, v5)
                store(pm, b + 2 * S + u * W, v6)
                store(pm, b + 3 * S + u * W, v7)
                low = smaller(
                    low, smaller(smaller(smaller(v0, v1), smaller(v2, v3)), smaller(smaller(v4, v5), smaller(v6, v7)))
                )
                v += 2
            g += 4
        while g + 2 <= G:
            b, v = g * S, 0
            while v < NV:
                u = v + 1 if v + 1 < NV else v
                v0, v1, v2, v3 = zero, zero, zero, zero
                for i in range(K):
                    r = i * width
                    x, y = load(A, r + v * W), load(A, r + u * W)
                    p, q = splat(w[b + i]), splat(w[b + S + i])
                    v0 = fma(x, p, v0)
                    v1 = fma(y, p, v1)
                    v2 = fma(x, q, v2)
                    v3 = fma(y, q, v3)
                store(pm, b + v * W, v0)
                store(pm, b + u * W, v1)
                store(pm, b + S + v * W, v2)
                store(pm, b + S + u * W, v3)
                v0 = select(v0 > zero, v0, low)
                v1 = select(v1 > zero, v1, low)
                v2 = select(v2 > zero, v2, low)
                v3 = select(v3 > zero, v3, low)
                v0 = select(v0 < v1, v0, v1)
                v2 = select(v2 < v3, v2, v3)
                v0 = select(v0 < v2, v0, v2)
                low = select(v0 < low, v0, low)
                v += 2
            g += 2
        while g < G:
            b = g * S
            v = 0
            while v + 4 <= NV:
                v0, v1, v2, v3 = zero, zero, zero, zero
                for i in range(K):
                    x = splat(w[b + i])
                    r = i * width + v * W
                    v0 = fma(x, load(A, r), v0)
                    v1 = fma(x, load(A, r + W), v1)
                    v2 = fma(x, load(A, r + 2 * W), v2)
                    v3 = fma(x, load(A, r + 3 * W), v3)
                store(pm, b + v * W, v0)
                store(pm, b + (v + 1) * W, v1)
                store(pm, b + (v + 2) * W, v2)
                store(pm, b + (v + 3) * W, v3)
                v0 = select(v0 > zero, v0, low)
                v1 = select(v1 > zero, v1, low)
                v2 = select(v2 > zero, v2, low)
                v3 = select(v3 > zero, v3, low)
                v0 = select(v0 < v1, v0, v1)
                v2 = select(v2 < v3, v2, v3)
                v0 = select(v0 < v2, v0, v2)
                low = select(v0 < low, v0, low)
                v += 4
            while v < NV:
                v0, v1 = zero, zero
                i = 0
                while i + 2 <= K:
                    r = i * width + v * W
                    v0 = fma(splat(w[b + i]), load(A, r), v0)
                    v1 = fma(splat(w[b + i + 1]), load(A, r + width), v1)
                    i += 2
                if i < K:
                    v0 = fma(splat(w[b + i]), load(A, i * width + v * W), v0)
                v0 = v0 + v1
                store(pm, b + v * W, v0)
                low = select((v0 > zero) & (v0 < low), v0, low)
                v += 1
            g += 1
        return low

    @jit
    def exact(a: Any, source: Any, shift: Any, j: Any, m: Any, n: Any, base: Any, stride: Any, temp: Any) -> Any:
        """(m, n) of one sum into state j of one sequence, exponents kept; terms are left in `temp`."""
        K = a[NUM_STATES]
        NV = (K + W - 1) // W
        width = NV * W
        by_from, by_to = a[WEIGHTS_FROM], a[WEIGHTS_TO]
        for i in range(width):
            temp[i] = f(source[i * by_from + j * by_to] - shift) if i < K else f(-infinity)
            temp[width + i] = m[base + i * stride] if i < K else f(0.0)
            temp[2 * width + i] = n[base + i * stride] if i < K else f(-big)
        top = const(-big)
        for v in range(NV):
            am, an = exp_split(load(temp, v * W))
            x = am * load(temp, width + v * W)
            y = an + load(temp, 2 * width + v * W)
            y = select(x == const(0.0), const(-big), y)
            store(temp, width + v * W, x)
            store(temp, 2 * width + v * W, y)
            top = select(y > top, y, top)
        high = fold_max(top)
        total = const(0.0)
        for v in range(NV):
            x = load(temp, width + v * W) * power(load(temp, 2 * width + v * W) - splat(high))
            store(temp, v * W, x)
            total = total + x
        return fold_add(total), high

    @jit
    def mend(
        a: Any,
        source: Any,
        tangents: Any,
        shift: Any,
        flags: Any,
        has_tiny: Any,
        G: Any,
        NV: Any,
        S: Any,
        m: Any,
        n: Any,
        d: Any,
        pm: Any,
        pn: Any,
        pd: Any,
        temp: Any,
    ) -> None:
        """Do again the sums that fell below the guard, or whose weights are too small to be linear."""
        K = a[NUM_STATES]
        for g in range(G):
            for v in range(NV):
                i = g * S + v * W
                x = load(pm, i)
                low = (x < const(guard)) & (x > const(0.0))
                if not any_lane(low) and not has_tiny:
                    continue
                for l in range(W):
                    j = v if lanes else v * W + l
                    if j >= K:
                        continue
                    value = pm[i + l]
                    if (value < f(guard) and value > f(0.0)) or (has_tiny and flags[j] != 0):
                        base, stride = (l, W) if lanes else (g * S, 1)
                        pm[i + l], pn[i + l] = exact(a, source, shift, j, m, n, base, stride, temp)
                        if has_tangent:
                            total = f(0.0)
                            for k in range(K):
                                if temp[k] > f(0.0):
                                    tangent = f(tangents[k * a[WEIGHTS_FROM] + j * a[WEIGHTS_TO]])
                                    total += temp[k] * (d[base + k * stride] + tangent)
                            pd[i + l] = total / pm[i + l] if pm[i + l] > f(0.0) else f(0.0)

    @jit
    def contract_tangents(A: Any, dA: Any, K: Any, NV: Any, S: Any, G: Any, w: Any, d: Any, pm: Any, pd: Any) -> None:
        """Means of the tangents over the ways into each state, vectors of states."""
        width = NV * W
        zero = const(0.0)
        for g in range(G):
            for v in range(NV):
                total = zero
                for i in range(K):
                    x = w[g * S + i]
                    total = fma(splat(x * d[g * S + i]), load(A, i * width + v * W), total)
                    total = fma(splat(x), load(dA, i * width + v * W), total)
                p = load(pm, g * S + v * W)
                store(pd, g * S + v * W, select(p > zero, total / select(p > zero, p, const(1.0)), zero))

    @jit
    def contract_bands(
        a: Any,
        wm: Any,
        wn: Any,
        wd: Any,
        G: Any,
        NV: Any,
        margin: Any,
        S: Any,
        m: Any,
        n: Any,
        d: Any,
        pm: Any,
        pn: Any,
        pd: Any,
    ) -> None:
        offsets, O, K = integers(a[OFFSETS]), a[NUM_OFFSETS], a[NUM_STATES]
        width = NV * W
        for g in range(G):
            for v in range(NV):
                i = g * S + margin + v * W
                top = const(-big)
                for o in range(O):
                    if abs(offsets[o]) < K:
                        y = load(n, i - offsets[o]) + load(wn, o * width + v * W)
                        top = select(y > top, y, top)
                total, change = const(0.0), const(0.0)
                for o in range(O):
                    if abs(offsets[o]) < K:
                        y = load(n, i - offsets[o]) + load(wn, o * width + v * W)
                        x = load(m, i - offsets[o]) * load(wm, o * width + v * W) * power(y - top)
                        total = total + x
                        if has_tangent:
                            change = fma(x, load(d, i - offsets[o]) + load(wd, o * width + v * W), change)
                store(pm, i, total)
                store(pn, i, top)
                if has_tangent:
                    store(
                        pd,
                        i,
                        select(total > const(0.0), change / select(total > const(0.0), total, const(1.0)), const(0.0)),
                    )

    @jit
    def contract_edges(a: Any, wm: Any, wn: Any, wd: Any, m: Any, n: Any, d: Any, pm: Any, pn: Any, pd: Any) -> None:
        order, start, count = integers(a[EDGE_ORDER]), integers(a[EDGE_START]), integers(a[EDGE_COUNT])
        sources = integers(a[EDGE_SOURCE])
        for j in range(a[NUM_STATES]):
            top = const(-big)
            for e in range(start[j], start[j] + count[j]):
                y = load(n, sources[order[e]] * W) + splat(wn[e])
                top = select(y > top, y, top)
            total, change = const(0.0), const(0.0)
            for e in range(start[j], start[j] + count[j]):
                i = sources[order[e]] * W
                x = load(m, i) * splat(wm[e]) * power(load(n, i) + splat(wn[e]) - top)
                total = total + x
                if has_tangent:
                    change = fma(x, load(d, i) + splat(wd[e]), change)
            store(pm, j * W, total)
            store(pn, j * W, top)
            if has_tangent:
                store(
                    pd,
                    j * W,
                    select(total > const(0.0), change / select(total > const(0.0), total, const(1.0)), const(0.0)),
                )

    @jit
    def contract(
        a: Any,
        b: Any,
        slot: Any,
        wm: Any,
        wn: Any,
        wd: Any,
        flags: Any,
        has_tiny: Any,
        shift: Any,
        G: Any,
        NV: Any,
        margin: Any,
        S: Any,
        m: Any,
        n: Any,
        w: Any,
        d: Any,
        pm: Any,
        pn: Any,
        pd: Any,
        temp: Any,
        was_mended: Any,
    ) -> Any:
        """The messages moved one step on. Whether exponents in `pn` are to be read."""
        if is_dense:
            K = a[NUM_STATES]
            if lanes:
                low = contract_lanes(wm, K, (K + W - 1) // W * W, w, pm)
            else:
                low = contract_states(wm, K, NV, S, G, w, pm)
                if has_tangent:
                    contract_tangents(wm, wd, K, NV, S, G, w, d, pm, pd)
            if was_mended:
                for i in range(0, G * S, W):
                    store(pn, i, const(0.0))
            if has_tiny or any_lane(low < const(guard)):
                at = log_weights(a, b, slot) * io_bytes
                mend(
                    a,
                    ios(a[WEIGHTS] + at),
                    ios(a[WEIGHTS_TANGENT] + at),
                    shift,
                    flags,
                    has_tiny,
                    G,
                    NV,
                    S,
                    m,
                    n,
                    d,
                    pm,
                    pn,
                    pd,
                    temp,
                )
                return True
            return False
        if is_banded:
            contract_bands(a, wm, wn, wd, G, NV, margin, S, m, n, d, pm, pn, pd)
        else:
            contract_edges(a, wm, wn, wd, m, n, d, pm, pn, pd)
        return False

    @jit
    def is_kept(lens: Any, t: Any, reverse: Any) -> Any:
        """Lanes whose message no transition leads into at step t."""
        return const(float(t)) >= (lens - const(1.0) if reverse else lens)

    @jit
    def advance(
        G: Any,
        NV: Any,
        margin: Any,
        S: Any,
        em: Any,
        en: Any,
        line: Any,
        pm: Any,
        pn: Any,
        has_exponents: Any,
        m: Any,
        n: Any,
        w: Any,
        highs: Any,
        high_line: Any,
        is_ragged: Any,
        lens: Any,
        t: Any,
    ) -> None:
        """Messages from what was predicted and a step's emissions, scaled; largest exponents in `highs`."""
        for g in range(G):
            high = const(-big)
            padding = const(float(t)) >= load(lens, g * W)
            for v in range(NV):
                i = g * S + margin + v * W
                r = line + (g * NV + v) * W
                x, y = load(em, r), load(en, r)
                if is_ragged:
                    x = select(padding, const(1.0), x)
                    y = select(padding, const(0.0), y)
                if has_exponents:
                    y = y + load(pn, i)
                x, y = split(load(pm, i) * x, y)
                store(m, i, x)
                store(n, i, y)
                high = select(y > high, y, high)
            high = reduce_max(high)
            high = select(high > const(-empty), high, const(0.0))
            store(highs, high_line + g * W, high)
            for v in range(NV):
                i = g * S + margin + v * W
                y = load(n, i)
                y = select(y > const(-empty), y - high, y)
                store(n, i, y)
                if is_dense:
                    store(w, i, load(m, i) * power(y))

    @jit
    def weigh(K: Any, wm: Any, C: Any) -> None:
        """Products times the weights, with the pairs that were summed apart."""
        size = K * ((K + W - 1) // W * W)
        for i in range(size):
            C[i] = C[i] * wm[i] + C[size + i]

    # One sequence of at most 8 states: a chunk's messages stay linear, in a register

    iota = ar.iota

    @jit
    def load_flat(x: Any, row: Any, size: Any, out: Any) -> None:
        """`size` neighbouring elements; zeros for as much as a vector may reach beyond them."""
        whole = size // W * W
        for i in range(0, whole, W):
            store(out, i, load_io(x, row + i))
        for i in range(whole, size):
            out[i] = f(x[row + i])
        for i in range(size, min(whole + 2 * W, CHUNK * W)):
            out[i] = f(0.0)

    @jit
    def store_flat(x: Any, row: Any, size: Any, given: Any) -> None:
        whole = size // W * W
        for i in range(0, whole, W):
            store_io(x, row + i, load(given, i))
        for i in range(whole, size):
            x[row + i] = given[i]

    b0, b1, b2, b3, b4, b5, b6, b7 = (make_broadcast(ar.vec, lane) for lane in range(8))
    start_limit, limit = 2.0**-100, 2.0**-500

    @jit
    def chunk_in_registers(
        a: Any, first: Any, t0: Any, steps: Any, reverse: Any, A: Any, w: Any, flat: Any, xs: Any, ps: Any, tops: Any
    ) -> Any:
        """Messages `xs` and predictions `ps` (steps, W) from the linear message `w`, all on its scale.

        tops[0] is the log scale of the chunk's emissions, taken out of every step. False, and nothing is meant by the
        outputs, where a weight comes near the end of the linear range, or is 0, or NaN: then exponents are needed.
        """
        K, order = a[NUM_STATES], integers(a[ORDER])
        size = steps * K
        x = ios(a[EMISSION])
        row = order[first] * a[EMISSION_BATCH] + t0 * K
        whole = size // W * W
        for i in range(0, whole, W):
            store(flat, i, load_io(x, row + i))
        for i in range(whole, size):
            flat[i] = f(x[row + i])
        end = min(whole + 2 * W, CHUNK * W)
        for i in range(size, end):
            flat[i] = flat[0]
        top = load(flat, 0)
        for i in range(W, end, W):
            y = load(flat, i)
            top = select(y > top, y, top)
        high = fold_max(top)
        if not (high > f(-infinity) and high < f(infinity)):
            return False
        tops[0] = high
        for i in range(0, end, W):
            m, n = exp_split(load(flat, i) - splat(high))
            store(flat, i, m * power(n))
        inside = iota() < const(float(K))
        y = load(w, 0)
        if any_lane(inside & (y < const(start_limit))):
            return False
        r0, r1, r2, r3 = load(A, 0), const(0.0), const(0.0), const(0.0)
        r4, r5, r6, r7 = const(0.0), const(0.0), const(0.0), const(0.0)
        if K > 1:
            r1 = load(A, W)
        if K > 2:
            r2 = load(A, 2 * W)
        if K > 3:
            r3 = load(A, 3 * W)
        if K > 4:
            r4 = load(A, 4 * W)
        if K > 5:
            r5 = load(A, 5 * W)
        if K > 6:
            r6 = load(A, 6 * W)
        if K > 7:
            r7 = load(A, 7 * W)
        low = const(1.0)
        for s in range(steps):
            c = steps - 1 - s if reverse else s
            p0, p1, p2, p3 = b0(y) * r0, b1(y) * r1, b2(y) * r2, b3(y) * r3
            p0, p1 = fma(b4(y), r4, p0), fma(b5(y), r5, p1)
            p2, p3 = fma(b6(y), r6, p2), fma(b7(y), r7, p3)
            p = (p0 + p1) + (p2 + p3)
            store(ps, c * W, p)
            y = p * load(flat, c * K)
            store(xs, c * W, y)
            low = select(y < low, y, low)
        return not any_lane(inside & ((low < const(limit)) | (y != y)))

    return SimpleNamespace(**{name: value for name, value in locals().items() if name not in ("ar",)}, ar=ar)
