"""`chain_messages` in the log and the expectation semiring, compiled."""

from __future__ import annotations

import math
from typing import Any

from numba import types

from .layout import (
    CHUNK,
    EARLIER,
    EARLIER_BATCH,
    EMISSION,
    EMISSION_BATCH,
    EMISSION_STEP,
    FINAL,
    FINAL_BATCH,
    INCLUDE_EMISSION,
    INITIAL,
    INITIAL_BATCH,
    INITIAL_TANGENT,
    IS_VARYING,
    LAST,
    LAST_TANGENTS,
    LENGTHS,
    LOG_LIKELIHOOD,
    MATRIX,
    MATRIX_TANGENT,
    NUM_EDGES,
    NUM_OFFSETS,
    NUM_STATES,
    NUM_STEPS,
    NUM_TASKS,
    ORDER,
    REVERSE,
    SCALE_TANGENTS,
    SCALES,
    SCRATCH,
    SCRATCH_BYTES,
    SHIFT,
    TAGGED,
    TANGENT,
    TASKS,
    TICKET,
    TINY,
    TOTAL,
    VALUE_TANGENTS,
    VALUES,
)
from .numba_chain import chain_parts, doubles, integers
from .numba_math import jit
from .numba_simd import extract, fma, select, take_ticket

LN2 = math.log(2.0)


def build(element: Any, io: Any, lanes: bool, structure: str, has_tangent: bool) -> Any:
    """The kernel `run(fields, thread)` of one variant."""
    parts = chain_parts(element, io, lanes, structure, has_tangent)
    ar = parts.ar
    W, f = ar.lanes, element
    load, store, const, pointer = ar.load, ar.store, ar.const, ar.pointer
    exp_split, split, power, log_of = ar.exp_split, ar.split, ar.power, ar.log_of
    splat, fold_add = ar.splat, ar.fold_add
    big, infinity = ar.big, float("inf")
    geometry, load_rows, store_rows = parts.geometry, parts.load_rows, parts.store_rows
    split_emissions, load_state, store_state = parts.split_emissions, parts.load_state, parts.store_state
    prepare_slot, contract, is_kept, advance = parts.prepare_slot, parts.contract, parts.is_kept, parts.advance
    chunk_in_registers, store_flat = parts.chunk_in_registers, parts.store_flat
    reduce_max, reduce_sum, ios, tag = parts.reduce_max, parts.reduce_sum, parts.ios, parts.tag
    is_dense, is_banded = structure == "dense", structure == "banded"
    bytes_of = 8 if element == types.float64 else 4

    @jit
    def centre_tangents(
        G: Any,
        NV: Any,
        margin: Any,
        S: Any,
        m: Any,
        n: Any,
        de: Any,
        line: Any,
        pd: Any,
        d: Any,
        means: Any,
        mean_line: Any,
        is_ragged: Any,
        lens: Any,
        t: Any,
    ) -> None:
        """Tangents with a step's emissions', less their mean over the message."""
        for g in range(G):
            padding = const(float(t)) >= load(lens, g * W)
            total, weight = const(0.0), const(0.0)
            for v in range(NV):
                i = g * S + margin + v * W
                change = load(de, line + (g * NV + v) * W)
                if is_ragged:
                    change = select(padding, const(0.0), change)
                change = change + load(pd, i)
                x = load(m, i)
                x = select(x > const(0.0), x * power(load(n, i)), x)
                change = select(x == const(0.0), const(0.0), change)
                store(d, i, change)
                weight = weight + x
                total = fma(x, change, total)
            total, weight = reduce_sum(total), reduce_sum(weight)
            mean = select(weight == const(0.0), const(0.0), total / select(weight == const(0.0), const(1.0), weight))
            store(means, mean_line + g * W, mean)
            for v in range(NV):
                i = g * S + margin + v * W
                store(d, i, load(d, i) - mean)

    can_be_small = is_dense and not lanes and not has_tangent

    @jit
    def keep_chunk(
        a: Any,
        first: Any,
        t0: Any,
        steps: Any,
        last: Any,
        shift: Any,
        form: Any,
        include: Any,
        m: Any,
        n: Any,
        w: Any,
        xs: Any,
        ps: Any,
        tops: Any,
        totals: Any,
    ) -> None:
        """What a chunk in registers leaves: values, the scaled last message, and the scales."""
        K = a[NUM_STATES]
        if a[VALUES] != 0:
            for c in range(steps):
                x, y = split(load(xs, c * W) if include else load(ps, c * W), const(0.0))
                y = select(x > const(0.0), y - reduce_max(y), y)
                if form == 1:
                    store(ps, c * K, tag(x, y))
                else:
                    norm = const(0.0)
                    if form == 2:
                        p, q = split(splat(fold_add(x * power(y))), norm)
                        norm = log_of(p, q)
                    store(ps, c * K, log_of(x, y) - norm)
        x, y = split(load(xs, last), const(0.0))
        high = reduce_max(y)
        y = select(x > const(0.0), y - high, y)
        store(m, 0, x)
        store(n, 0, y)
        store(w, 0, x * power(y))
        for l in range(W):
            totals[l] += (float(tops[0]) + shift) * steps
            totals[W + l] += float(extract(high, 0))
        if a[VALUES] != 0:
            store_flat(ios(a[VALUES]), (integers(a[ORDER])[first] * a[NUM_STEPS] + t0) * K, steps * K, ps)

    @jit
    def group(a: Any, scratch: Any, first: Any, count: Any) -> None:
        K, T, E = a[NUM_STATES], a[NUM_STEPS], a[NUM_EDGES]
        reverse, include, is_varying = a[REVERSE] != 0, a[INCLUDE_EMISSION] != 0, a[IS_VARYING] != 0
        G, NV, margin, S = geometry(a, count)
        order, lengths = integers(a[ORDER]), integers(a[LENGTHS])
        b = order[first]
        size, rows = G * S, CHUNK * G * NV * W
        wants_values, form = a[VALUES] != 0, a[TAGGED]

        # scratch, in the order of `cpu.scratch_elements`
        at = scratch
        m, n, w, d = (
            pointer(at),
            pointer(at + size * bytes_of),
            pointer(at + 2 * size * bytes_of),
            pointer(at + 3 * size * bytes_of),
        )
        at += 4 * size * bytes_of
        pm, pn, pd = pointer(at), pointer(at + size * bytes_of), pointer(at + 2 * size * bytes_of)
        at += 3 * size * bytes_of
        em, en, de = pointer(at), pointer(at + rows * bytes_of), pointer(at + 2 * rows * bytes_of)
        out, dout = pointer(at + 3 * rows * bytes_of), pointer(at + 4 * rows * bytes_of)
        at += 5 * rows * bytes_of
        short = CHUNK * G * W
        tops, highs, means = pointer(at), pointer(at + short * bytes_of), pointer(at + 2 * short * bytes_of)
        at += 3 * short * bytes_of
        lens = pointer(at)
        at += G * W * bytes_of
        temp = pointer(at)
        at += 3 * (K + W) * bytes_of
        totals = doubles(at)  # scales in nats, exponents, tangents; one a lane
        at += 3 * G * W * 8
        shifts = doubles(at)  # of the transition into each step of a chunk
        at += CHUNK * 8
        flags = integers(at)
        at += (K + W) * 8
        wm = pointer(at)
        if is_dense:
            block = K * ((K + W - 1) // W * W)
            wn, wd = wm, pointer(at + block * bytes_of)
        elif is_banded:
            block = a[NUM_OFFSETS] * NV * W
            wn, wd = pointer(at + block * bytes_of), pointer(at + 2 * block * bytes_of)
        else:
            block = E + W
            wn, wd = pointer(at + block * bytes_of), pointer(at + 2 * block * bytes_of)

        shift, has_tiny = 0.0, 0
        is_shared = is_dense and a[MATRIX] != 0
        if is_shared:
            wm, wd, flags = pointer(a[MATRIX]), pointer(a[MATRIX_TANGENT]), integers(a[TINY])
            shift, has_tiny = doubles(a[SHIFT])[0], flags[K]
        elif not is_varying:
            shift, has_tiny = prepare_slot(a, b, 0, wm, wn, wd, flags)

        # bands, edges and varying weights, and tangents, take no short way
        is_small = can_be_small and NV == 1 and G == 1 and W == 8 and not is_varying and has_tiny == 0
        is_small = is_small and a[SCALES] == 0 and a[EMISSION_STEP] == K
        longest, shortest = 0, T
        for g in range(G):
            for l in range(W):
                length = lengths[order[first + (min(l, count - 1) if lanes else g)]]
                lens[g * W + l] = f(length)
                longest, shortest = max(longest, length), min(shortest, length)
        for i in range(3 * G * W):
            totals[i] = 0.0
        for i in range(0, size, W):
            store(m, i, const(0.0))
            store(n, i, const(-big))
            store(w, i, const(0.0))
            store(d, i, const(0.0))
            store(pd, i, const(0.0))

        # what the first step starts from
        load_state(a, a[INITIAL], a[INITIAL_BATCH], first, count, G, NV, margin, S, pm)
        if has_tangent:
            load_state(a, a[INITIAL_TANGENT], a[INITIAL_BATCH], first, count, G, NV, margin, S, pd)
        for g in range(G):
            for v in range(NV):
                i = g * S + margin + v * W
                x, y = exp_split(load(pm, i))
                if not include and wants_values:
                    store(out, (g * NV + v) * W, load(pm, i))
                if has_tangent:
                    store(pd, i, select(x == const(0.0), const(0.0), load(pd, i)))
                store(pm, i, x)
                store(pn, i, select(x == const(0.0), const(-big), y))

        was_mended = True
        done = 0
        while done < longest:
            steps = min(CHUNK, longest - done)
            t0 = longest - done - steps if reverse else done
            is_linear = is_small and done > 0
            if is_linear and chunk_in_registers(a, first, t0, steps, reverse, wm, w, em, en, out, tops):
                last = 0 if reverse else (steps - 1) * W
                keep_chunk(a, first, t0, steps, last, shift, form, include, m, n, w, en, out, tops, totals)
                done += steps
                was_mended = True
                continue
            load_rows(a, a[EMISSION], a[EMISSION_BATCH], a[EMISSION_STEP], first, count, t0, steps, -infinity, em)
            split_emissions(em, en, tops, steps * G, NV)
            if has_tangent:
                load_rows(a, a[TANGENT], a[EMISSION_BATCH], a[EMISSION_STEP], first, count, t0, steps, 0.0, de)
            for s in range(steps):
                c = steps - 1 - s if reverse else s
                t = t0 + c
                is_ragged = t + 1 >= shortest
                has_exponents = True
                shifts[c] = 0.0
                if done + s > 0:
                    if is_varying:
                        slot = t if reverse else t - 1
                        shift, has_tiny = prepare_slot(a, b, slot, wm, wn, wd, flags)
                    has_exponents = contract(
                        a,
                        b,
                        (t if reverse else t - 1) if is_varying else 0,
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
                        pd,
                        temp,
                        was_mended,
                    )
                    shifts[c] = shift
                    was_mended = has_exponents
                    has_exponents = has_exponents or not is_dense
                    if is_ragged:  # where no transition leads into the step, the message stays
                        for g in range(G):
                            kept = is_kept(load(lens, g * W), t, reverse)
                            for v in range(NV):
                                i = g * S + margin + v * W
                                store(pm, i, select(kept, load(m, i), load(pm, i)))
                                old = load(pn, i) if has_exponents else const(0.0)
                                store(pn, i, select(kept, load(n, i), old))
                                if has_tangent:
                                    store(pd, i, select(kept, load(d, i), load(pd, i)))
                        has_exponents = True
                        was_mended = True
                    if not include and wants_values:
                        for g in range(G):
                            for v in range(NV):
                                i = g * S + margin + v * W
                                x, y = split(load(pm, i), load(pn, i) if has_exponents else const(0.0))
                                store(out, ((c * G + g) * NV + v) * W, log_of(x, y))
                elif not include and wants_values:
                    # the first row, which waits where the chunk's first row is
                    for i in range(0, G * NV * W, W):
                        store(out, c * G * NV * W + i, load(out, i))
                if has_tangent and not include and wants_values:
                    for g in range(G):
                        for v in range(NV):
                            store(dout, ((c * G + g) * NV + v) * W, load(pd, g * S + margin + v * W))
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
                    c * G * W,
                    is_ragged,
                    lens,
                    t,
                )
                if has_tangent:
                    centre_tangents(
                        G, NV, margin, S, m, n, de, c * G * NV * W, pd, d, means, c * G * W, is_ragged, lens, t
                    )
                if include and wants_values:
                    for g in range(G):
                        norm = const(0.0)
                        if form == 2:
                            for v in range(NV):
                                i = g * S + margin + v * W
                                x = load(m, i)
                                norm = norm + (x * power(load(n, i)) if not is_dense else load(w, i))
                            x, y = split(reduce_sum(norm), const(0.0))
                            norm = select(x == const(0.0), const(0.0), log_of(x, y))
                        for v in range(NV):
                            i = g * S + margin + v * W
                            r = ((c * G + g) * NV + v) * W
                            store(
                                out,
                                r,
                                tag(load(m, i), load(n, i)) if form == 1 else log_of(load(m, i), load(n, i)) - norm,
                            )
                            if has_tangent:
                                store(dout, r, load(d, i))
            # scales, in float64
            for c in range(steps):
                t = t0 + c
                for g in range(G):
                    for l in range(count if lanes else 1):
                        q = (c * G + g) * W + l
                        p = g * W + l
                        length = int(lens[p])
                        top = float(tops[q]) if t < length else 0.0
                        if t + 1 < length if reverse else t < length:
                            top += shifts[c]
                        totals[p] += top
                        totals[G * W + p] += float(highs[q])
                        if has_tangent:
                            totals[2 * G * W + p] += float(means[q])
                        if a[SCALES] != 0:
                            place = order[first + (l if lanes else g)] * T + t
                            ios(a[SCALES])[place] = io(top + LN2 * float(highs[q]))
                            if has_tangent:
                                ios(a[SCALE_TANGENTS])[place] = io(means[q])
            if wants_values:
                store_rows(a, a[VALUES], first, count, t0, steps, out)
                if has_tangent:
                    store_rows(a, a[VALUE_TANGENTS], first, count, t0, steps, dout)
            done += steps

        finish(a, first, count, G, NV, margin, S, m, n, d, totals, longest, out)

    @jit
    def finish(
        a: Any,
        first: Any,
        count: Any,
        G: Any,
        NV: Any,
        margin: Any,
        S: Any,
        m: Any,
        n: Any,
        d: Any,
        totals: Any,
        longest: Any,
        out: Any,
    ) -> None:
        """Totals, last messages, log-likelihoods, and the padding."""
        K, T, order = a[NUM_STATES], a[NUM_STEPS], integers(a[ORDER])
        for g in range(count):
            p = g if lanes else g * W
            doubles(a[TOTAL])[order[first + g]] = totals[p] + LN2 * totals[G * W + p]
        for g in range(G):
            for v in range(NV):
                i = g * S + margin + v * W
                store(out, i, log_of(load(m, i), load(n, i)))
        if a[LAST] != 0:
            store_state(a, a[LAST], first, count, margin, S, out)
            if has_tangent:
                store_state(a, a[LAST_TANGENTS], first, count, margin, S, d)
        if a[VALUES] != 0 and longest < T:
            for g in range(count):
                start = order[first + g] * a[INITIAL_BATCH]
                for t in range(longest, T):
                    row = (order[first + g] * T + t) * K
                    for k in range(K):
                        i = k * W + g if lanes else g * S + margin + k
                        if a[REVERSE] != 0:  # what a sequence starts from
                            ios(a[VALUES])[row + k] = ios(a[INITIAL])[start + k]
                        else:
                            ios(a[VALUES])[row + k] = io(out[i])
                        if has_tangent:
                            change = ios(a[INITIAL_TANGENT])[start + k] if a[REVERSE] != 0 else io(d[i])
                            ios(a[VALUE_TANGENTS])[row + k] = change
        if a[LOG_LIKELIHOOD] != 0:
            load_state(a, a[FINAL], a[FINAL_BATCH], first, count, G, NV, margin, S, out)
            for g in range(G):
                high = const(-big)
                for v in range(NV):
                    i = g * S + margin + v * W
                    x, y = exp_split(load(out, i))
                    x, y = split(x * load(m, i), y + load(n, i))
                    store(m, i, x)
                    store(n, i, y)
                    high = select(y > high, y, high)
                high = reduce_max(high)
                total = const(0.0)
                for v in range(NV):
                    i = g * S + margin + v * W
                    total = total + load(m, i) * power(load(n, i) - high)
                store(out, g * W, reduce_sum(total))
                store(m, g * S + margin, high)  # read below, before the next group's
                for l in range(count if lanes else 1):
                    p = g * W + l
                    value = float(out[p])
                    found = totals[p] + LN2 * (totals[G * W + p] + float(m[g * S + margin + l])) + math.log(value)
                    if a[EARLIER] != 0:
                        which = order[first + (l if lanes else g)]
                        found += doubles(a[EARLIER])[which] + doubles(a[EARLIER])[a[EARLIER_BATCH] + which]
                    if value == 0.0:
                        found = -infinity
                    ios(a[LOG_LIKELIHOOD])[order[first + (l if lanes else g)]] = io(found)
        if a[SCALES] != 0:
            for g in range(count):
                for t in range(longest, T):
                    ios(a[SCALES])[order[first + g] * T + t] = io(0.0)
                    if has_tangent:
                        ios(a[SCALE_TANGENTS])[order[first + g] * T + t] = io(0.0)

    def run(a, slot):
        scratch = a[SCRATCH] + slot * a[SCRATCH_BYTES]
        tasks = integers(a[TASKS])
        ticket = integers(a[TICKET])
        while True:
            task = take_ticket(ticket)
            if task >= a[NUM_TASKS]:
                break
            group(a, scratch, tasks[task], tasks[task + 1] - tasks[task])
        return 0

    return run
