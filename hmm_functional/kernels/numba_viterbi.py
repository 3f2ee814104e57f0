"""The best path: max messages with compact back-pointers, in segments where those would not fit.

A back-pointer says which of the ways into a state was best: a source, a band, or an edge's rank, in 1, 2 or 4 bytes. A
sequence longer than a segment runs twice: once to keep the message at each segment's start, and once a segment, from
the last to the first, for its back-pointers. Emissions are centred, and messages scaled once a chunk.
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import intrinsic

from .layout import (
    CHUNK,
    EDGE_COUNT,
    EDGE_ORDER,
    EDGE_SOURCE,
    EDGE_START,
    EDGE_TARGET,
    EMISSION,
    EMISSION_BATCH,
    EMISSION_STEP,
    FINAL,
    FINAL_BATCH,
    INITIAL,
    INITIAL_BATCH,
    IS_VARYING,
    LENGTHS,
    MATRIX,
    NUM_EDGES,
    NUM_OFFSETS,
    NUM_STATES,
    NUM_STEPS,
    NUM_TASKS,
    OFFSETS,
    ORDER,
    SCORES,
    SCRATCH,
    SCRATCH_BYTES,
    SEGMENT,
    STATES,
    TASKS,
    TICKET,
    TINY,
    WEIGHTS,
    WEIGHTS_BATCH,
    WEIGHTS_FROM,
    WEIGHTS_SLOT,
    WEIGHTS_TO,
)
from .numba_chain import chain_parts, doubles, integers, matrix_parts
from .numba_math import jit
from .numba_simd import (
    extract,
    int_of,
    make_broadcast,
    make_pointer,
    make_splat,
    make_store_integers,
    select,
    take_ticket,
)


def build(element: Any, io: Any, lanes: bool, structure: str, pointer_type: Any) -> Any:
    """The kernel `run(fields, thread)`; `pointer_type` is "u8", "u16" or "i32"."""
    parts = chain_parts(element, io, lanes, structure, False)
    ar = parts.ar
    W, f = ar.lanes, element
    load, store, const, splat, pointer = ar.load, ar.store, ar.const, ar.splat, ar.pointer
    integer = int_of(ar.vec)
    isplat = make_splat(integer)
    code = {"u8": types.uint8, "u16": types.uint16, "i32": types.int32}[pointer_type]
    codes, store_codes = make_pointer(code), make_store_integers(integer, code)
    copy_log = matrix_parts(ar, io).copy_log
    geometry, load_rows, load_state, reduce_max, ios = (
        parts.geometry,
        parts.load_rows,
        parts.load_state,
        parts.reduce_max,
        parts.ios,
    )
    is_dense, is_banded = structure == "dense", structure == "banded"
    bytes_of = 8 if element == types.float64 else 4
    io_bytes = 8 if io == types.float64 else 4
    infinity = float("inf")

    can_be_small = is_dense and not lanes
    iota, load_flat = ar.iota, parts.load_flat

    @intrinsic
    def to_from(typingctx: Any, pointer: Any, place: Any) -> Any:
        """The pointer `place` codes further on."""
        return pointer(pointer, types.int64), lambda context, builder, sig, args: builder.gep(args[0], [args[1]])

    @jit
    def prepare(a: Any, b: Any, slot: Any, wm: Any) -> Any:
        """Log weights of one slot in the kernel's layout; whether one is NaN."""
        K = a[NUM_STATES]
        source = ios(a[WEIGHTS] + (b * a[WEIGHTS_BATCH] + slot * a[WEIGHTS_SLOT]) * io_bytes)
        if is_dense:
            if lanes:
                return copy_log(source, a[WEIGHTS_TO], a[WEIGHTS_FROM], K, K, wm)
            return copy_log(source, a[WEIGHTS_FROM], a[WEIGHTS_TO], K, K, wm)
        E, bad = a[NUM_EDGES], 0
        if is_banded:
            width = (K + W - 1) // W * W
            targets, sources, offsets = integers(a[EDGE_TARGET]), integers(a[EDGE_SOURCE]), integers(a[OFFSETS])
            for i in range(a[NUM_OFFSETS] * width):
                wm[i] = f(-infinity)
            for e in range(E):
                for o in range(a[NUM_OFFSETS]):
                    if offsets[o] == targets[e] - sources[e]:
                        wm[o * width + targets[e]] = f(source[e])
                if source[e] != source[e]:
                    bad = 1
            return bad
        order = integers(a[EDGE_ORDER])
        for e in range(E):
            wm[e] = f(source[order[e]])
            if source[e] != source[e]:
                bad = 1
        return bad

    @jit
    def best_lanes(K: Any, A: Any, x: Any, p: Any, to: Any, line: Any) -> None:
        width = (K + W - 1) // W * W
        j = 0
        while j < K:
            b0 = j * width
            b1 = (j + 1 if j + 1 < K else j) * width
            b2 = (j + 2 if j + 2 < K else j) * width
            b3 = (j + 3 if j + 3 < K else j) * width
            low = const(-infinity)
            v0, v1, v2, v3 = low, low, low, low
            k0, k1, k2, k3 = isplat(0), isplat(0), isplat(0), isplat(0)
            for i in range(K):
                m, here = load(x, i * W), isplat(i)
                c = m + splat(A[b0 + i])
                k0, v0 = select(c > v0, here, k0), select(c > v0, c, v0)
                c = m + splat(A[b1 + i])
                k1, v1 = select(c > v1, here, k1), select(c > v1, c, v1)
                c = m + splat(A[b2 + i])
                k2, v2 = select(c > v2, here, k2), select(c > v2, c, v2)
                c = m + splat(A[b3 + i])
                k3, v3 = select(c > v3, here, k3), select(c > v3, c, v3)
            store(p, j * W, v0)
            store_codes(to, line + j * W, k0)
            if j + 1 < K:
                store(p, (j + 1) * W, v1)
                store_codes(to, line + (j + 1) * W, k1)
            if j + 2 < K:
                store(p, (j + 2) * W, v2)
                store_codes(to, line + (j + 2) * W, k2)
            if j + 3 < K:
                store(p, (j + 3) * W, v3)
                store_codes(to, line + (j + 3) * W, k3)
            j += 4

    @jit
    def best_states(K: Any, NV: Any, S: Any, G: Any, A: Any, x: Any, p: Any, to: Any, line: Any) -> None:
        width = NV * W
        low = const(-infinity)
        g = 0
        while g < G:
            if g + 2 <= G:  # two sequences share a reading of the weights
                b, c0, v = g * S, line + g * NV * W, 0
                c1 = c0 + NV * W
                while v < NV:
                    u = v + 1 if v + 1 < NV else v
                    v0, v1, v2, v3 = low, low, low, low
                    k0, k1, k2, k3 = isplat(0), isplat(0), isplat(0), isplat(0)
                    for i in range(K):
                        y, z, here = load(A, i * width + v * W), load(A, i * width + u * W), isplat(i)
                        m = splat(x[b + i])
                        c = y + m
                        k0, v0 = select(c > v0, here, k0), select(c > v0, c, v0)
                        c = z + m
                        k1, v1 = select(c > v1, here, k1), select(c > v1, c, v1)
                        m = splat(x[b + S + i])
                        c = y + m
                        k2, v2 = select(c > v2, here, k2), select(c > v2, c, v2)
                        c = z + m
                        k3, v3 = select(c > v3, here, k3), select(c > v3, c, v3)
                    store(p, b + v * W, v0)
                    store_codes(to, c0 + v * W, k0)
                    store(p, b + u * W, v1)
                    store_codes(to, c0 + u * W, k1)
                    store(p, b + S + v * W, v2)
                    store_codes(to, c1 + v * W, k2)
                    store(p, b + S + u * W, v3)
                    store_codes(to, c1 + u * W, k3)
                    v += 2
                g += 2
                continue
            v, b = 0, g * S
            while v + 2 <= NV:
                v0, v1, k0, k1 = low, low, isplat(0), isplat(0)
                for i in range(K):
                    m, here, r = splat(x[b + i]), isplat(i), i * width + v * W
                    c = m + load(A, r)
                    k0, v0 = select(c > v0, here, k0), select(c > v0, c, v0)
                    c = m + load(A, r + W)
                    k1, v1 = select(c > v1, here, k1), select(c > v1, c, v1)
                store(p, b + v * W, v0)
                store_codes(to, line + (g * NV + v) * W, k0)
                store(p, b + (v + 1) * W, v1)
                store_codes(to, line + (g * NV + v + 1) * W, k1)
                v += 2
            if v < NV:
                v0, k0 = low, isplat(0)
                for i in range(K):
                    c = splat(x[b + i]) + load(A, i * width + v * W)
                    k0, v0 = select(c > v0, isplat(i), k0), select(c > v0, c, v0)
                store(p, b + v * W, v0)
                store_codes(to, line + (g * NV + v) * W, k0)
            g += 1

    @jit
    def best_bands(a: Any, NV: Any, margin: Any, S: Any, G: Any, wm: Any, x: Any, p: Any, to: Any, line: Any) -> None:
        """Bands of larger offsets come from lower sources, so they go first."""
        offsets, O, K = integers(a[OFFSETS]), a[NUM_OFFSETS], a[NUM_STATES]
        width = NV * W
        for g in range(G):
            for v in range(NV):
                i = g * S + margin + v * W
                best, which = const(-infinity), isplat(0)
                for q in range(O):
                    o = O - 1 - q
                    if abs(offsets[o]) < K:
                        c = load(x, i - offsets[o]) + load(wm, o * width + v * W)
                        which, best = select(c > best, isplat(o), which), select(c > best, c, best)
                store(p, i, best)
                store_codes(to, line + (g * NV + v) * W, which)

    @jit
    def best_edges(a: Any, wm: Any, x: Any, p: Any, to: Any, line: Any) -> None:
        order, start, count = integers(a[EDGE_ORDER]), integers(a[EDGE_START]), integers(a[EDGE_COUNT])
        sources = integers(a[EDGE_SOURCE])
        for j in range(a[NUM_STATES]):
            best, which = const(-infinity), isplat(0)
            for e in range(start[j], start[j] + count[j]):
                c = load(x, sources[order[e]] * W) + splat(wm[e])
                which, best = select(c > best, isplat(e - start[j]), which), select(c > best, c, best)
            store(p, j * W, best)
            store_codes(to, line + j * W, which)

    b0, b1, b2, b3, b4, b5, b6, b7 = (make_broadcast(ar.vec, lane) for lane in range(8))

    @jit
    def forward_in_registers(
        a: Any, first: Any, begin: Any, end: Any, x: Any, flat: Any, bad: Any, A: Any, to: Any, keeps: Any
    ) -> None:
        """As `forward`, of one sequence of at most 8 states of constant weights, whose message stays in a register."""
        K, order = a[NUM_STATES], integers(a[ORDER])
        low = const(-infinity)
        r0, r1, r2, r3, r4, r5, r6, r7 = load(A, 0), low, low, low, low, low, low, low
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
        y = load(x, 0)
        wrong = const(0.0)
        t0 = begin
        while t0 < end:
            steps = min(CHUNK, end - t0)
            load_flat(ios(a[EMISSION]), order[first] * a[EMISSION_BATCH] + t0 * K, steps * K, flat)
            for i in range(0, steps * K, W):
                e = load(flat, i)
                wrong = select((e != e) | (e == const(infinity)), const(1.0), wrong)
            for s in range(steps):
                c0, c1, c2, c3 = b0(y) + r0, b1(y) + r1, b2(y) + r2, b3(y) + r3
                c4, c5, c6, c7 = b4(y) + r4, b5(y) + r5, b6(y) + r6, b7(y) + r7
                k0, v0 = select(c1 > c0, isplat(1), isplat(0)), select(c1 > c0, c1, c0)
                k2, v2 = select(c3 > c2, isplat(3), isplat(2)), select(c3 > c2, c3, c2)
                k4, v4 = select(c5 > c4, isplat(5), isplat(4)), select(c5 > c4, c5, c4)
                k6, v6 = select(c7 > c6, isplat(7), isplat(6)), select(c7 > c6, c7, c6)
                k0, v0 = select(v2 > v0, k2, k0), select(v2 > v0, v2, v0)
                k4, v4 = select(v6 > v4, k6, k4), select(v6 > v4, v6, v4)
                k0, v0 = select(v4 > v0, k4, k0), select(v4 > v0, v4, v0)
                if keeps:
                    store_codes(to, (t0 + s - begin) * W, k0)
                y = v0 + load(flat, s * K)
            high = reduce_max(select(iota() < const(float(K)), y, low))
            y = y - select(high > low, high, const(0.0))
            t0 += steps
        for l in range(W):
            if extract(wrong, l) > f(0.0):
                bad[0] = f(1.0)
        for l in range(W):
            x[l] = extract(y, l) if l < K else f(-infinity)

    @jit
    def centre(em: Any, rows: Any, NV: Any, bad: Any, G: Any, t0: Any, lens: Any) -> None:
        for r in range(rows):
            line, g = r * NV * W, r % G
            top = load(em, line)
            for v in range(1, NV):
                x = load(em, line + v * W)
                top = select(x > top, x, top)
            top = reduce_max(top)
            top = select(top > const(-infinity), top, const(0.0))
            wrong = const(0.0)
            for v in range(NV):
                x = load(em, line + v * W) - top
                wrong = select(x != x, const(1.0), wrong)
                store(em, line + v * W, x)
            inside = const(float(t0 + r // G)) < load(lens, g * W)
            store(bad, g * W, select(inside & (wrong > const(0.0)), const(1.0), load(bad, g * W)))

    @jit
    def forward(
        a: Any,
        first: Any,
        count: Any,
        G: Any,
        NV: Any,
        margin: Any,
        S: Any,
        begin: Any,
        end: Any,
        shortest: Any,
        x: Any,
        p: Any,
        em: Any,
        lens: Any,
        bad: Any,
        wm: Any,
        is_varying: Any,
        to: Any,
        keeps: Any,
    ) -> None:
        """Messages of steps begin..end-1 from that of step begin - 1 in `x`; back-pointers where `keeps`."""
        b = integers(a[ORDER])[first]
        size = G * NV * W
        t0 = begin
        if can_be_small and NV == 1 and G == 1 and W == 8 and not is_varying and a[EMISSION_STEP] == a[NUM_STATES]:
            if begin == 0:  # nothing leads into the first step
                load_flat(ios(a[EMISSION]), b * a[EMISSION_BATCH], a[NUM_STATES], em)
                for k in range(a[NUM_STATES]):
                    x[k] = p[k] + em[k]
                    if em[k] != em[k] or em[k] == f(infinity):
                        bad[0] = f(1.0)
                begin += 1
            forward_in_registers(a, first, begin, end, x, em, bad, wm, to_from(to, W if t0 == 0 else 0), keeps)
            return
        while t0 < end:
            steps = min(CHUNK, end - t0)
            load_rows(a, a[EMISSION], a[EMISSION_BATCH], a[EMISSION_STEP], first, count, t0, steps, -infinity, em)
            centre(em, steps * G, NV, bad, G, t0, lens)
            for s in range(steps):
                t = t0 + s
                line = (t - begin) * size if keeps else 0
                if t > 0:
                    if is_varying and t < shortest and prepare(a, b, t - 1, wm) != 0:
                        for i in range(G * W):
                            bad[i] = f(1.0)
                    if is_dense:
                        if lanes:
                            best_lanes(a[NUM_STATES], wm, x, p, to, line)
                        else:
                            best_states(a[NUM_STATES], NV, S, G, wm, x, p, to, line)
                    elif is_banded:
                        best_bands(a, NV, margin, S, G, wm, x, p, to, line)
                    else:
                        best_edges(a, wm, x, p, to, line)
                for g in range(G):
                    kept = const(float(t)) >= load(lens, g * W)
                    for v in range(NV):
                        i = g * S + margin + v * W
                        y = load(p, i) + load(em, ((s * G + g) * NV + v) * W)
                        if t >= shortest:
                            y = select(kept, load(x, i), y)
                        store(x, i, y)
            for g in range(G):
                high = const(-infinity)
                for v in range(NV):
                    y = load(x, g * S + margin + v * W)
                    high = select(y > high, y, high)
                high = reduce_max(high)
                high = select(high > const(-infinity), high, const(0.0))
                for v in range(NV):
                    i = g * S + margin + v * W
                    store(x, i, load(x, i) - high)
            t0 += steps

    @jit
    def source_of(a: Any, j: Any, which: Any) -> Any:
        if is_dense:
            return which
        if is_banded:
            return j - integers(a[OFFSETS])[which]
        place = integers(a[EDGE_START])[j] + which
        return integers(a[EDGE_SOURCE])[integers(a[EDGE_ORDER])[place]]

    @jit
    def weight_of(a: Any, b: Any, slot: Any, i: Any, j: Any, which: Any) -> Any:
        source = ios(a[WEIGHTS] + (b * a[WEIGHTS_BATCH] + slot * a[WEIGHTS_SLOT]) * io_bytes)
        if is_dense:
            return float(source[i * a[WEIGHTS_FROM] + j * a[WEIGHTS_TO]])
        order = integers(a[EDGE_ORDER])
        place = integers(a[EDGE_START])[j]
        if is_banded:
            sources = integers(a[EDGE_SOURCE])
            while sources[order[place]] != i:
                place += 1
        else:
            place += which
        return float(source[order[place]])

    @jit
    def group(a: Any, scratch: Any, first: Any, count: Any) -> None:
        K, T = a[NUM_STATES], a[NUM_STEPS]
        G, NV, margin, S = geometry(a, count)
        order, lengths = integers(a[ORDER]), integers(a[LENGTHS])
        states, scores = integers(a[STATES]), ios(a[SCORES])
        emission = ios(a[EMISSION])
        b = order[first]
        size, row = G * S, G * NV * W
        is_varying = a[IS_VARYING] != 0

        at = scratch
        x, p = pointer(at), pointer(at + size * bytes_of)
        at += 2 * size * bytes_of
        em = pointer(at)
        at += CHUNK * row * bytes_of
        lens, bad = pointer(at), pointer(at + G * W * bytes_of)
        at += 2 * G * W * bytes_of
        totals = doubles(at)
        at += G * W * 8
        tail = integers(at)  # the state each path is at
        at += G * W * 8
        wm = pointer(at)
        if is_dense:
            if a[MATRIX] == 0:
                at += K * ((K + W - 1) // W * W) * bytes_of
        elif is_banded:
            at += a[NUM_OFFSETS] * NV * W * bytes_of
        else:
            at += (a[NUM_EDGES] + W) * bytes_of

        longest, shortest = 0, T
        for g in range(G):
            for l in range(W):
                length = lengths[order[first + (min(l, count - 1) if lanes else g)]]
                lens[g * W + l] = f(length)
                bad[g * W + l] = f(0.0)
                longest, shortest = max(longest, length), min(shortest, length)
        nan = 0
        if is_dense and a[MATRIX] != 0:
            wm, nan = pointer(a[MATRIX]), integers(a[TINY])[K]
        elif not is_varying:
            nan = prepare(a, b, 0, wm)
        if nan != 0 and longest > 1:
            for i in range(G * W):
                bad[i] = f(1.0)
        for i in range(0, size, W):
            store(x, i, const(-infinity))
            store(p, i, const(-infinity))

        length = a[SEGMENT]
        segments = (longest + length - 1) // length
        kept = pointer(at)  # messages before each segment
        at += segments * row * bytes_of
        to = codes(at)

        load_state(a, a[INITIAL], a[INITIAL_BATCH], first, count, G, NV, margin, S, p)
        for g in range(G):
            wrong = const(0.0)
            for v in range(NV):
                y = load(p, g * S + margin + v * W)
                wrong = select(y != y, const(1.0), wrong)
            for l in range(W):
                if extract(wrong, l) > f(0.0):
                    for q in range(W):
                        if q == l or not lanes:
                            bad[g * W + q] = f(1.0)
        if segments > 1:
            for s in range(segments - 1):
                forward(
                    a,
                    first,
                    count,
                    G,
                    NV,
                    margin,
                    S,
                    s * length,
                    (s + 1) * length,
                    shortest,
                    x,
                    p,
                    em,
                    lens,
                    bad,
                    wm,
                    is_varying,
                    to,
                    False,
                )
                for i in range(0, row, W):
                    g, v = i // (NV * W), i % (NV * W)
                    store(kept, (s + 1) * row + i, load(x, g * S + margin + v))
        begin = (segments - 1) * length
        forward(
            a, first, count, G, NV, margin, S, begin, longest, shortest, x, p, em, lens, bad, wm, is_varying, to, True
        )

        load_state(a, a[FINAL], a[FINAL_BATCH], first, count, G, NV, margin, S, p)
        for g in range(count):
            l = g if lanes else 0
            base = 0 if lanes else g * S + margin
            step = W if lanes else 1
            high, best, wrong = f(-infinity), 0, False
            for k in range(K):
                final = p[base + k * step + l]
                y = x[base + k * step + l] + final
                if y > high:
                    high, best = y, k
                if final != final or y != y:
                    wrong = True
            place = g if lanes else g * W
            for q in range(1 if lanes else W):
                if bad[place + q] > f(0.0):
                    wrong = True
            which = order[first + g]
            tail[g] = best if high > f(-infinity) and not wrong else -1
            totals[g] = float("nan") if wrong else -infinity
            if tail[g] >= 0:
                totals[g] = float(ios(a[FINAL])[which * a[FINAL_BATCH] + best])
            for t in range(lengths[which], T):
                states[which * T + t] = -1

        for q in range(segments):
            s = segments - 1 - q
            begin, end = s * length, min((s + 1) * length, longest)
            if q > 0:
                if s == 0:
                    load_state(a, a[INITIAL], a[INITIAL_BATCH], first, count, G, NV, margin, S, p)
                else:
                    for i in range(0, row, W):
                        g, v = i // (NV * W), i % (NV * W)
                        store(x, g * S + margin + v, load(kept, s * row + i))
                forward(
                    a,
                    first,
                    count,
                    G,
                    NV,
                    margin,
                    S,
                    begin,
                    end,
                    shortest,
                    x,
                    p,
                    em,
                    lens,
                    bad,
                    wm,
                    is_varying,
                    to,
                    True,
                )
            for g in range(count):
                which = order[first + g]
                j, total = tail[g], totals[g]
                t = min(end, lengths[which]) - 1
                while t >= begin:
                    states[which * T + t] = j
                    if j >= 0:
                        total += float(emission[which * a[EMISSION_BATCH] + t * a[EMISSION_STEP] + j])
                        if t > 0:
                            place = (t - begin) * row + (j * W + g if lanes else g * NV * W + j)
                            choice = int(to[place])
                            i = source_of(a, j, choice)
                            total += weight_of(a, which, (t - 1) if is_varying else 0, i, j, choice)
                            j = i
                        else:
                            total += float(ios(a[INITIAL])[which * a[INITIAL_BATCH] + j])
                    t -= 1
                tail[g], totals[g] = j, total
        for g in range(count):
            scores[order[first + g]] = io(totals[g])

    def run(a, slot):
        scratch = a[SCRATCH] + slot * a[SCRATCH_BYTES]
        tasks, ticket = integers(a[TASKS]), integers(a[TICKET])
        while True:
            task = take_ticket(ticket)
            if task >= a[NUM_TASKS]:
                break
            group(a, scratch, tasks[task], tasks[task + 1] - tasks[task])
        return 0

    return run
