"""Along the messages of a pass, against it: log posteriors, or the gradient of the log-likelihoods, in one pass.

At step t, with forward messages f and what the later steps say, p (moved back over the transition from y, the message
of step t + 1): the posterior is f p / z with z = sum f p, and the transition from i to j has probability
f_i A_ij y_j / z, so that counts are A times a sum of outer products, made a chunk of steps at a time. Where f and y
disagree so much that linear weights could have lost what matters, a step's pairs are summed with exponents.
Along reversed messages all is the same with time turned round.
"""

from __future__ import annotations

from typing import Any

from numba import types

from .layout import (
    CHUNK,
    COUNTS,
    COUNTS_SIZE,
    EDGE_COUNT,
    EDGE_ORDER,
    EDGE_SOURCE,
    EDGE_START,
    EMISSION,
    EMISSION_BATCH,
    EMISSION_STEP,
    GRADIENT_SCALE,
    INITIAL,
    INITIAL_BATCH,
    IS_COUNTED_APART,
    IS_VARYING,
    LENGTHS,
    MATRIX,
    MESSAGES,
    NUM_EDGES,
    NUM_OFFSETS,
    NUM_STATES,
    NUM_STEPS,
    NUM_TASKS,
    OFFSETS,
    ORDER,
    REVERSE,
    SCRATCH,
    SCRATCH_BYTES,
    SHIFT,
    TAGGED,
    TASKS,
    TICKET,
    TINY,
    VALUES,
    WEIGHTS,
    WEIGHTS_BATCH,
)
from .numba_chain import chain_parts, doubles, integers
from .numba_math import jit
from .numba_simd import any_lane, extract, fma, select, take_ticket


def build(element: Any, io: Any, lanes: bool, structure: str, is_gradient: bool) -> Any:
    """The kernel `run(fields, thread)`; the fields' direction of travel is against that of the messages."""
    parts = chain_parts(element, io, lanes, structure, False)
    ar = parts.ar
    W, f = ar.lanes, element
    load, store, const, splat, pointer = ar.load, ar.store, ar.const, ar.splat, ar.pointer
    exp_split, split, power, log_of, fold_add = ar.exp_split, ar.split, ar.power, ar.log_of, ar.fold_add
    big, infinity = ar.big, float("inf")
    geometry, load_rows, store_rows = parts.geometry, parts.load_rows, parts.store_rows
    split_emissions, load_state = parts.split_emissions, parts.load_state
    prepare_slot, contract, is_kept, untag = parts.prepare_slot, parts.contract, parts.is_kept, parts.untag
    chunk_in_registers, load_flat, store_flat = parts.chunk_in_registers, parts.load_flat, parts.store_flat
    reduce_max, reduce_sum, ios, exact = parts.reduce_max, parts.reduce_sum, parts.ios, parts.exact
    advance = parts.advance
    is_dense, is_banded = structure == "dense", structure == "banded"
    weigh = parts.weigh
    bytes_of = 8 if element == types.float64 else 4
    io_bytes = 8 if io == types.float64 else 4
    # how far below their peaks' product z may lie for linear pairs to be right to rounding
    safe = (700.0, 60.0) if element == types.float64 else (64.0, 14.0)
    safe_wide, safe_tiny = safe

    @jit
    def add_products(K: Any, width: Any, rows: Any, stride: Any, ahead: Any, behind: Any, C: Any) -> None:
        """C += sums over rows (and lanes) of outer products: of `ahead` by `behind` with lanes, else the other way."""
        zero = const(0.0)
        if lanes:
            i = 0
            while i < K:
                more = min(4, K - i)
                j = 0
                while j < K:
                    two = j + 1 < K
                    v0, v1, v2, v3, u0, u1, u2, u3 = zero, zero, zero, zero, zero, zero, zero, zero
                    for r in range(rows):
                        x = load(behind, r * stride + j * W)
                        y = load(behind, r * stride + (j + 1 if two else j) * W)
                        at = r * stride
                        a0 = load(ahead, at + i * W)
                        a1 = load(ahead, at + (i + 1 if more > 1 else i) * W)
                        a2 = load(ahead, at + (i + 2 if more > 2 else i) * W)
                        a3 = load(ahead, at + (i + 3 if more > 3 else i) * W)
                        v0, u0 = fma(a0, x, v0), fma(a0, y, u0)
                        v1, u1 = fma(a1, x, v1), fma(a1, y, u1)
                        v2, u2 = fma(a2, x, v2), fma(a2, y, u2)
                        v3, u3 = fma(a3, x, v3), fma(a3, y, u3)
                    at = i * width + j
                    C[at] += fold_add(v0)
                    if more > 1:
                        C[at + width] += fold_add(v1)
                    if more > 2:
                        C[at + 2 * width] += fold_add(v2)
                    if more > 3:
                        C[at + 3 * width] += fold_add(v3)
                    if two:
                        C[at + 1] += fold_add(u0)
                        if more > 1:
                            C[at + width + 1] += fold_add(u1)
                        if more > 2:
                            C[at + 2 * width + 1] += fold_add(u2)
                        if more > 3:
                            C[at + 3 * width + 1] += fold_add(u3)
                    j += 2
                i += 4
        else:
            j = 0
            while j + 4 <= K:
                for v in range(0, width, W):
                    at = j * width + v
                    v0, v1 = load(C, at), load(C, at + width)
                    v2, v3 = load(C, at + 2 * width), load(C, at + 3 * width)
                    for r in range(rows):
                        x, q = load(ahead, r * stride + v), r * stride + j
                        v0 = fma(splat(behind[q]), x, v0)
                        v1 = fma(splat(behind[q + 1]), x, v1)
                        v2 = fma(splat(behind[q + 2]), x, v2)
                        v3 = fma(splat(behind[q + 3]), x, v3)
                    store(C, at, v0)
                    store(C, at + width, v1)
                    store(C, at + 2 * width, v2)
                    store(C, at + 3 * width, v3)
                j += 4
            while j < K:
                for v in range(0, width, W):
                    v0 = load(C, j * width + v)
                    for r in range(rows):
                        v0 = fma(splat(behind[r * stride + j]), load(ahead, r * stride + v), v0)
                    store(C, j * width + v, v0)
                j += 1

    @jit
    def add_pairs_exactly(
        a: Any, b: Any, shift: Any, m: Any, n: Any, base: Any, stride: Any, posterior: Any, line: Any, temp: Any, C: Any
    ) -> None:
        """Pairs of one step of one sequence, each the earlier state's posterior times its share of the ways on."""
        K = a[NUM_STATES]
        width = (K + W - 1) // W * W
        source = ios(a[WEIGHTS] + (b * a[WEIGHTS_BATCH]) * io_bytes)
        for i in range(K):
            weight = posterior[line + i * stride]
            if weight == f(0.0):
                continue
            total, _ = exact(a, source, shift, i, m, n, base, stride, temp)
            for j in range(K):
                if temp[j] > f(0.0):
                    C[K * width + (i * width + j if lanes else j * width + i)] += weight * (temp[j] / total)

    @jit
    def give_chunk(
        K: Any,
        steps: Any,
        reverse: Any,
        is_tagged: Any,
        has_counts: Any,
        weight: Any,
        fm: Any,
        ps: Any,
        xs: Any,
        w: Any,
        ahead: Any,
        behind: Any,
        totals: Any,
        out: Any,
    ) -> None:
        """Results of a chunk in registers, a loop a stage, so that the steps' long ways to a result overlap."""
        zero = const(0.0)
        for c in range(steps):
            x = load(fm, c * K)
            if is_tagged:
                x = select(x < zero, zero, x)
            else:
                x, y = exp_split(x)
                x = x * power(y)
            store(ahead, c * W, x)
            totals[c] = fold_add(x * load(ps, c * W))
        if is_gradient:
            for c in range(steps):
                total = splat(totals[c])
                some = (weight != zero) & (total != zero)
                factor = select(some, weight / select(some, total, const(1.0)), zero)
                x = select(some, load(ahead, c * W) * load(ps, c * W) * factor, zero)
                store(out, c * K, x)
                if has_counts:
                    before = c + 1 if reverse else c - 1  # on the way
                    y = load(w, 0) if before < 0 or before == steps else load(xs, before * W)
                    store(behind, c * W, select(some, y * factor, zero))
        else:
            for c in range(0, steps, W):
                total = load(totals, c)
                x, y = split(total, zero)
                store(totals, c, select(total == zero, zero, log_of(x, y)))
            for c in range(steps):
                x, y = untag(load(fm, c * K)) if is_tagged else exp_split(load(fm, c * K))
                x, y = split(x * load(ps, c * W), y)
                store(out, c * K, log_of(x, y) - splat(totals[c]))

    @jit
    def group(a: Any, scratch: Any, first: Any, count: Any, C: Any) -> None:
        K, T, E = a[NUM_STATES], a[NUM_STEPS], a[NUM_EDGES]
        reverse, is_varying, is_tagged = a[REVERSE] != 0, a[IS_VARYING] != 0, a[TAGGED] != 0
        G, NV, margin, S = geometry(a, count)
        order, lengths = integers(a[ORDER]), integers(a[LENGTHS])
        b = order[first]
        size, rows = G * S, CHUNK * G * NV * W
        has_counts = is_gradient and a[COUNTS] != 0
        width = (K + W - 1) // W * W

        # scratch, as numba_messages lays it out: `fm` and `fn` lie where it keeps tangents
        at = scratch
        m, n, w, d = (
            pointer(at),
            pointer(at + size * bytes_of),
            pointer(at + 2 * size * bytes_of),
            pointer(at + 3 * size * bytes_of),
        )
        at += 4 * size * bytes_of
        pm, pn = pointer(at), pointer(at + size * bytes_of)
        at += 3 * size * bytes_of
        em, en, fm = pointer(at), pointer(at + rows * bytes_of), pointer(at + 2 * rows * bytes_of)
        out, fn = pointer(at + 3 * rows * bytes_of), pointer(at + 4 * rows * bytes_of)
        at += 5 * rows * bytes_of
        short = CHUNK * G * W
        tops, highs = pointer(at), pointer(at + short * bytes_of)
        at += 3 * short * bytes_of
        lens = pointer(at)
        at += G * W * bytes_of
        temp = pointer(at)
        at += 3 * (K + W) * bytes_of
        scale = pointer(at)
        at += 3 * G * W * 8 + CHUNK * 8
        flags = integers(at)
        at += (K + W) * 8
        wm = pointer(at)
        wn, wd = wm, wm
        if is_banded:
            wn = pointer(at + a[NUM_OFFSETS] * NV * W * bytes_of)
        elif not is_dense:
            wn = pointer(at + (E + W) * bytes_of)
        # linear messages of the chunk's steps, ahead of and behind each transition
        ps = pointer(scratch + a[SCRATCH_BYTES] - 3 * rows * bytes_of)
        ahead = pointer(scratch + a[SCRATCH_BYTES] - 2 * rows * bytes_of)
        behind = pointer(scratch + a[SCRATCH_BYTES] - rows * bytes_of)

        shift, has_tiny = 0.0, 0
        if is_dense and a[MATRIX] != 0:
            wm, wd, flags = pointer(a[MATRIX]), pointer(a[MATRIX]), integers(a[TINY])
            shift, has_tiny = doubles(a[SHIFT])[0], flags[K]
        elif not is_varying:
            shift, has_tiny = prepare_slot(a, b, 0, wm, wn, wd, flags)
        safe_bits = const(-(safe_tiny if has_tiny != 0 else safe_wide))

        is_small = is_dense and not lanes and NV == 1 and G == 1 and W == 8 and not is_varying and has_tiny == 0
        is_small = is_small and a[EMISSION_STEP] == K
        longest, shortest = 0, T
        for g in range(G):
            for l in range(W):
                which = order[first + (min(l, count - 1) if lanes else g)]
                length = lengths[which]
                lens[g * W + l] = f(length)
                longest, shortest = max(longest, length), min(shortest, length)
                if is_gradient:
                    scale[g * W + l] = f(ios(a[GRADIENT_SCALE])[which]) if l < count or not lanes else f(0.0)
        for i in range(0, size, W):
            store(m, i, const(0.0))
            store(n, i, const(-big))
            store(w, i, const(0.0))
        load_state(a, a[INITIAL], a[INITIAL_BATCH], first, count, G, NV, margin, S, pm)
        for g in range(G):
            for v in range(NV):
                i = g * S + margin + v * W
                x, y = exp_split(load(pm, i))
                store(pm, i, x)
                store(pn, i, select(x == const(0.0), const(-big), y))

        was_mended = True
        done = 0
        while done < longest:
            steps = min(CHUNK, longest - done)
            t0 = longest - done - steps if reverse else done
            is_linear = is_small and done > 0
            is_linear = is_linear and chunk_in_registers(a, first, t0, steps, reverse, wm, w, em, en, ps, tops)
            if is_linear:
                load_flat(ios(a[MESSAGES]), (b * T + t0) * K, steps * K, fm)
            else:
                load_rows(a, a[EMISSION], a[EMISSION_BATCH], a[EMISSION_STEP], first, count, t0, steps, -infinity, em)
                split_emissions(em, en, tops, steps * G, NV)
                load_rows(a, a[MESSAGES], T * K, K, first, count, t0, steps, 0.0 if is_tagged else -infinity, fm)
            if is_linear:
                weight = load(scale, 0)
                give_chunk(K, steps, reverse, is_tagged, has_counts, weight, fm, ps, en, w, ahead, behind, tops, out)
                x, y = split(load(en, 0 if reverse else (steps - 1) * W), const(0.0))
                y = select(x > const(0.0), y - reduce_max(y), y)
                store(m, 0, x)
                store(n, 0, y)
                store(w, 0, x * power(y))
                was_mended = True
            for s in range(0 if is_linear else steps):
                c = steps - 1 - s if reverse else s
                t = t0 + c
                slot = t if reverse else t - 1
                is_ragged = t + 1 >= shortest
                has_exponents = True
                if done + s > 0:
                    if is_varying:
                        shift, has_tiny = prepare_slot(a, b, slot, wm, wn, wd, flags)
                    has_exponents = contract(
                        a,
                        b,
                        slot if is_varying else 0,
                        wm,
                        wn,
                        wd,
                        flags,
                        has_tiny,
                        shift,
                        G,
                        NV,
                        margin,
                        S,
                        m,
                        n,
                        w,
                        d,
                        pm,
                        pn,
                        d,
                        temp,
                        was_mended,
                    )
                    was_mended = has_exponents
                    has_exponents = has_exponents or not is_dense
                    if is_ragged:
                        for g in range(G):
                            kept = is_kept(load(lens, g * W), t, reverse)
                            for v in range(NV):
                                i = g * S + margin + v * W
                                store(pm, i, select(kept, load(m, i), load(pm, i)))
                                old = load(pn, i) if has_exponents else const(0.0)
                                store(pn, i, select(kept, load(n, i), old))
                        has_exponents = True
                        was_mended = True
                # the posterior, and what divides pairs
                for g in range(G):
                    line = (c * G + g) * NV * W
                    high = const(-big)
                    for v in range(NV):
                        i, r = g * S + margin + v * W, line + v * W
                        x, y = untag(load(fm, r)) if is_tagged else exp_split(load(fm, r))
                        store(fm, r, x)
                        store(fn, r, select(x == const(0.0), const(-big), y))
                        if has_exponents:
                            y = y + load(pn, i)
                        x, y = split(x * load(pm, i), y)
                        store(out, r, x)
                        store(d, i, y)
                        high = select(y > high, y, high)
                    high = reduce_max(high)
                    high = select(high > const(-0.1 * big), high, const(0.0))
                    total = const(0.0)
                    for v in range(NV):
                        i, r = g * S + margin + v * W, line + v * W
                        y = load(d, i) - high
                        if is_gradient:
                            x = load(out, r) * power(y)
                            store(out, r, x)
                        else:
                            x = load(out, r) * power(y)
                            store(d, i, y)
                        total = total + x
                    total = reduce_sum(total)
                    step = const(float(t))
                    length = load(lens, g * W)
                    if not is_gradient:
                        norm = log_of(*split(total, const(0.0)))
                        norm = select(total == const(0.0), const(0.0), norm)
                        for v in range(NV):
                            i, r = g * S + margin + v * W, line + v * W
                            x = log_of(load(out, r), load(d, i)) - norm
                            if is_ragged:
                                x = select(step >= length, const(-infinity), x)
                            store(out, r, x)
                        continue
                    weight = load(scale, g * W)
                    some = (weight != const(0.0)) & (total != const(0.0)) & (step < length)
                    factor = select(some, weight / select(some, total, const(1.0)), const(0.0))
                    for v in range(NV):
                        r = line + v * W
                        store(out, r, select(some, load(out, r) * factor, const(0.0)))
                    if has_counts:
                        is_pair = some & (step + const(1.0 if reverse else 0.0) < length)
                        factor = select(is_pair, factor, const(0.0))
                        if done + s == 0:
                            factor = const(0.0)
                        if is_dense:
                            is_far = (high < safe_bits) & (factor != const(0.0))
                            linear = select(is_far, const(0.0), factor * power(const(0.0) - high))
                            for v in range(NV):
                                i, r = g * S + margin + v * W, line + v * W
                                store(ahead, r, load(fm, r) * power(load(fn, r)))
                                store(behind, r, select(linear == const(0.0), const(0.0), load(w, i) * linear))
                            if any_lane(is_far):
                                for l in range(W if lanes else 1):
                                    if extract(high, l) < extract(safe_bits, l) and extract(factor, l) != f(0.0):
                                        base, stride = (l, W) if lanes else (g * S + margin, 1)
                                        here = line + l if lanes else line
                                        add_pairs_exactly(a, b, shift, m, n, base, stride, out, here, temp, C)
                        elif is_banded:
                            offsets = integers(a[OFFSETS])
                            for v in range(NV):
                                i, r = g * S + margin + v * W, line + v * W
                                x0, y0 = load(pm, i), load(pn, i)
                                is_moved = is_pair & (x0 > const(0.0)) & (const(float(done + s)) > const(0.0))
                                share = load(out, r) / select(is_moved, x0, const(1.0))
                                share = select(is_moved, share, const(0.0))
                                for o in range(a[NUM_OFFSETS]):
                                    if abs(offsets[o]) < K:
                                        q = o * width + v * W
                                        x = load(wm, q) * load(m, i - offsets[o])
                                        y = load(wn, q) + load(n, i - offsets[o]) - y0
                                        x = select(is_moved & (x > const(0.0)), x * power(y) * share, const(0.0))
                                        store(C, q, load(C, q) + x)
                        else:
                            edges, start = integers(a[EDGE_ORDER]), integers(a[EDGE_START])
                            many, sources = integers(a[EDGE_COUNT]), integers(a[EDGE_SOURCE])
                            for i in range(K):
                                x0, y0 = load(pm, i * W), load(pn, i * W)
                                is_moved = is_pair & (x0 > const(0.0)) & (const(float(done + s)) > const(0.0))
                                share = load(out, line + i * W) / select(is_moved, x0, const(1.0))
                                share = select(is_moved, share, const(0.0))
                                for e in range(start[i], start[i] + many[i]):
                                    j = sources[edges[e]] * W
                                    x = splat(wm[e]) * load(m, j)
                                    y = load(n, j) + splat(wn[e]) - y0
                                    x = select(is_moved & (x > const(0.0)), x * power(y) * share, const(0.0))
                                    C[edges[e]] += fold_add(x)
                advance(
                    G,
                    NV,
                    margin,
                    S,
                    em,
                    en,
                    c * G * NV * W,
                    pm,
                    pn,
                    has_exponents,
                    m,
                    n,
                    w,
                    highs,
                    0,
                    is_ragged,
                    lens,
                    t,
                )
            if has_counts and is_dense:
                add_products(K, width, steps * G, NV * W, ahead, behind, C)
            if is_linear:
                store_flat(ios(a[VALUES]), (b * T + t0) * K, steps * K, out)
            else:
                store_rows(a, a[VALUES], first, count, t0, steps, out)
            done += steps

        if has_counts and is_dense and a[IS_COUNTED_APART] != 0:
            weigh(K, wm, C)
        for g in range(count):
            for t in range(longest, T):
                for k in range(K):
                    ios(a[VALUES])[(order[first + g] * T + t) * K + k] = io(0.0) if is_gradient else io(-infinity)

    def run(a, slot):
        scratch = a[SCRATCH] + slot * a[SCRATCH_BYTES]
        tasks, order, ticket = integers(a[TASKS]), integers(a[ORDER]), integers(a[TICKET])
        is_apart = a[IS_COUNTED_APART] != 0
        while True:
            task = take_ticket(ticket)
            if task >= a[NUM_TASKS]:
                break
            C = pointer(a[COUNTS] + (order[tasks[task]] if is_apart else slot) * a[COUNTS_SIZE] * bytes_of)
            group(a, scratch, tasks[task], tasks[task + 1] - tasks[task], C)
        if is_gradient and is_dense and a[COUNTS] != 0 and not is_apart:
            weigh(a[NUM_STATES], pointer(a[MATRIX]), pointer(a[COUNTS] + slot * a[COUNTS_SIZE] * bytes_of))
        return 0

    return run
