"""Ways through a grid, anti-diagonals of a strip of rows in lanes; scores may be distances made where they are needed.

Of a strip, row r at time t is at column first + t - r. What is kept of a time is a line: place 0 is the row before the
strip, one column ahead, place 1 + r is row r. So a step from (i - a, j - b) reads the line a + b times before, a places
to the left. All in float64; -inf is what cannot be reached.
"""

from __future__ import annotations

from math import inf
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .layout import (
    BOUNDS,
    BOUNDS_BATCH,
    COLUMN_FEATURES,
    COLUMN_FEATURES_BATCH,
    COLUMN_STRIDE,
    CORNERS,
    CORNERS_BATCH,
    ENDS_OPEN,
    GRID,
    GRID_BATCH,
    METRIC,
    NUM_COLUMNS,
    NUM_FEATURES,
    NUM_ROWS,
    NUM_TASKS,
    OPENS,
    PATH_LENGTH,
    ROW_FEATURES,
    ROW_FEATURES_BATCH,
    SCRATCH,
    SCRATCH_BYTES,
    STATES,
    STEPS,
    STRIP,
    TICKET,
    VALUES,
)
from .numba_chain import integers
from .numba_math import arithmetic, jit
from .numba_simd import fma, make_pointer, select, take_ticket


@intrinsic
def ahead(typingctx: Any, pointer: Any, count: Any) -> Any:
    """A pointer so many elements on."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.gep(args[0], [args[1]])

    return pointer(pointer, types.int64), lower


@intrinsic
def root(typingctx: Any, x: Any) -> Any:
    """The square root of floating-point lanes."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = context.get_value_type(sig.return_type)
        name = f"llvm.sqrt.v{x.lanes}f{x.element.bitwidth}"
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind]), name)
        return builder.call(function, args)

    return x(x), lower


LINE = STRIP + 8
"""Elements of a line."""
SPAN = 3
"""Diagonals that a step may go over, at most."""


def build(kind: str) -> Any:
    """The kernel `run(fields, thread)`, a pair of sequences a task: "path", "total", "visits" and "distances"."""
    ar = arithmetic(types.float64)
    W = ar.lanes
    load, store, const, pointer, iota, splat = ar.load, ar.store, ar.const, ar.pointer, ar.iota, ar.splat
    exp_split, split, power, log_of = ar.exp_split, ar.split, ar.power, ar.log_of
    lowest = ar.lowest
    bytes_at = make_pointer(types.uint8)
    is_path, is_visits = kind == "path", kind == "visits"

    @jit
    def exp_of(x: Any) -> Any:
        """exp(x), 0 where x is -inf or NaN."""
        m, n = exp_split(x)
        found = select(n < const(-lowest), const(0.0), m * power(n))
        return select(x > const(-inf), found, const(0.0))

    @jit
    def larger(x: Any, y: Any) -> Any:
        return select(y > x, y, x)

    @jit
    def gather(grid: Any, M: Any, last: Any, i0: Any, j0: Any, out: Any) -> None:
        """out[r] = grid(i0 + r, j0 - r), of the nearest cell there is."""
        for r in range(STRIP):
            j = min(max(j0 - r, 0), M - 1)
            out[r] = grid[min(i0 + r, last) * M + j]

    @jit
    def compare(rows: Any, columns: Any, stride: Any, D: Any, place: Any, metric: Any, out: Any) -> None:
        """out[r] = less the distance of row r from the column at `place` + r."""
        zero = const(0.0)
        p, q, r, s = zero, zero, zero, zero
        for d in range(D):
            at, of = d * stride + place, d * STRIP
            x = load(rows, of) - load(columns, at)
            p = fma(x, x, p)
            x = load(rows, of + W) - load(columns, at + W)
            q = fma(x, x, q)
            x = load(rows, of + 2 * W) - load(columns, at + 2 * W)
            r = fma(x, x, r)
            x = load(rows, of + 3 * W) - load(columns, at + 3 * W)
            s = fma(x, x, s)
        if metric == 1:
            p, q, r, s = root(p), root(q), root(r), root(s)
        store(out, 0, zero - p)
        store(out, W, zero - q)
        store(out, 2 * W, zero - r)
        store(out, 3 * W, zero - s)

    @jit
    def limits(bounds: Any, last: Any, M: Any, i0: Any, low: Any, high: Any) -> tuple[Any, Any]:
        """First and last column of a strip, and of each row; none are (0, -1)."""
        first, end = M, -1
        for r in range(STRIP):
            low[r], high[r] = 1.0, 0.0
            if i0 + r <= last:
                a, b = max(bounds[2 * (i0 + r)], 0), min(bounds[2 * (i0 + r) + 1], M - 1)
                if a <= b:
                    low[r], high[r] = float(a), float(b)
                    first, end = min(first, a), max(end, b)
        if end < first:
            return 0, -1
        return first, end

    @jit
    def score(
        grid: Any,
        metric: Any,
        rows: Any,
        columns: Any,
        stride: Any,
        D: Any,
        M: Any,
        last: Any,
        i0: Any,
        j0: Any,
        low: Any,
        high: Any,
        e: Any,
    ) -> None:
        """e[r], the score of (i0 + r, j0 - r), -inf where that may not be entered."""
        if metric == 0:
            gather(grid, M, last, i0, j0, e)
        else:
            compare(rows, columns, stride, D, M - 1 + STRIP - j0, metric, e)
        for v in range(0, STRIP, W):
            j = splat(float(j0 - v)) - iota()
            x = load(e, v)
            x = select(j < load(low, v), const(-inf), x)
            store(e, v, select(j > load(high, v), const(-inf), x))

    @jit
    def strip(rows: Any, stride: Any, D: Any, i0: Any, out: Any) -> None:
        """Features of a strip's rows, close together."""
        for d in range(D):
            for v in range(0, STRIP, W):
                store(out, d * STRIP + v, load(rows, d * stride + i0 + v))

    @jit
    def sweep(
        grid: Any,
        metric: Any,
        steps: Any,
        rows: Any,
        row_stride: Any,
        columns: Any,
        stride: Any,
        D: Any,
        M: Any,
        bounds: Any,
        last: Any,
        opens: Any,
        scratch: Any,
        mask: Any,
        lines: Any,
        taken: Any,
        starts: Any,
        edges: Any,
    ) -> Any:
        """S of the last row, by column; lines of all times, or of the last few, as `mask` says."""
        e, low, high = scratch, ahead(scratch, STRIP), ahead(scratch, 2 * STRIP)
        choices, mine = ahead(scratch, 3 * STRIP), ahead(scratch, 4 * STRIP)
        width, height = M + STRIP + 16, M + STRIP + SPAN
        a0, b0, a1, b1, a2, b2 = steps[0], steps[1], steps[3], steps[4], steps[6], steps[7]
        w0, w1, w2 = splat(float(steps[2])), splat(float(steps[5])), splat(float(steps[8]))
        old, new = ahead(edges, 8), ahead(edges, width + 8)
        for j in range(-8, width - 8):
            old[j] = -inf
        for s in range((last + STRIP) // STRIP):
            i0 = s * STRIP
            first, end = limits(bounds, last, M, i0, low, high)
            starts[s] = float(first)
            for j in range(-8, width - 8):
                new[j] = -inf
            own = ahead(lines, s * height * LINE if mask < 0 else 0)
            if metric != 0:
                strip(rows, row_stride, D, i0, mine)
            for n in range(SPAN):
                line = ahead(own, (n & mask) * LINE)
                for v in range(0, LINE, W):
                    store(line, v, const(-inf))
                line[0] = old[first + n - SPAN + 1]
            bottom = min(last - i0, STRIP - 1)
            for t in range(end - first + STRIP if end >= first else 0):
                j0 = first + t
                score(grid, metric, mine, columns, stride, D, M, last, i0, j0, low, high, e)
                line = ahead(own, ((t + SPAN) & mask) * LINE)
                p0 = ahead(own, ((t + SPAN - a0 - b0) & mask) * LINE)
                p1 = ahead(own, ((t + SPAN - a1 - b1) & mask) * LINE)
                p2 = ahead(own, ((t + SPAN - a2 - b2) & mask) * LINE)
                for v in range(0, STRIP, W):
                    x = load(e, v)
                    y0 = fma(w0, x, load(p0, v + 1 - a0))
                    y1 = fma(w1, x, load(p1, v + 1 - a1))
                    y2 = fma(w2, x, load(p2, v + 1 - a2))
                    if is_path:
                        best = larger(y0, y1)
                        choice = select(y1 > y0, const(1.0), const(0.0))
                        choice = select(y2 > best, const(2.0), choice)
                        best = larger(best, y2)
                        store(choices, v, choice)
                    else:
                        top = larger(larger(y0, y1), y2)
                        safe = select(top > const(-inf), top, const(0.0))
                        total = exp_of(y0 - safe) + exp_of(y1 - safe) + exp_of(y2 - safe)
                        m, n = split(total, const(0.0))
                        best = log_of(m, n) + safe
                    store(line, 1 + v, best)
                line[0] = old[j0 + 1]
                if i0 == 0 and (j0 == 0 or opens != 0) and e[0] > line[1]:
                    line[1] = e[0]
                    if is_path:
                        choices[0] = 3.0
                if is_path:
                    out = ahead(taken, (s * height + t) * STRIP)
                    for r in range(STRIP):
                        out[r] = types.uint8(choices[r])
                if 0 <= j0 - bottom < M:
                    new[j0 - bottom] = line[1 + bottom]
            old, new = new, old
        return old

    @jit
    def trace(
        taken: Any,
        steps: Any,
        starts: Any,
        ridge: Any,
        M: Any,
        last: Any,
        corner: Any,
        ends_open: Any,
        out: Any,
        most: Any,
    ) -> None:
        """The best way's cells, from the first on; `out` holds -1."""
        i, j, height = last, corner, M + STRIP + SPAN
        if ends_open:
            best = -inf
            for c in range(corner + 1):
                found = ridge[c] / (last + c + 2) if ends_open == 2 else ridge[c]
                if found > best:
                    best, j = found, c
        if not ridge[j] > -inf:
            return
        count = 0
        while i >= 0 and j >= 0 and count < most:
            out[2 * count], out[2 * count + 1] = i, j
            count += 1
            s = i // STRIP
            t = j - int(starts[s]) + i - s * STRIP
            choice = taken[(s * height + t) * STRIP + i - s * STRIP]
            if choice > 2:
                break
            i, j = i - steps[3 * choice], j - steps[3 * choice + 1]
        for n in range(count // 2):
            m = count - 1 - n
            out[2 * n], out[2 * m] = out[2 * m], out[2 * n]
            out[2 * n + 1], out[2 * m + 1] = out[2 * m + 1], out[2 * n + 1]

    @jit
    def spread(
        grid: Any,
        steps: Any,
        M: Any,
        bounds: Any,
        last: Any,
        corner: Any,
        scratch: Any,
        lines: Any,
        edges: Any,
        out: Any,
    ) -> None:
        """Shares of ways through each cell times the weights of the steps into it, back from the end; `out` holds 0."""
        e, low, high = scratch, ahead(scratch, STRIP), ahead(scratch, 2 * STRIP)
        # `gone` is shares that leave by each step, lines of the last few times
        here, gone = ahead(scratch, 3 * STRIP), ahead(scratch, 4 * STRIP)
        width, height = M + STRIP + 16, M + STRIP + SPAN
        ring = 4 * LINE
        a0, b0, a1, b1, a2, b2 = steps[0], steps[1], steps[3], steps[4], steps[6], steps[7]
        w0, w1, w2 = splat(float(steps[2])), splat(float(steps[5])), splat(float(steps[8]))
        old, new = ahead(edges, 8), ahead(edges, 3 * width + 8)
        for j in range(3 * width):
            old[j - 8] = 0.0
        for back in range((last + STRIP) // STRIP):
            s = last // STRIP - back
            i0 = s * STRIP
            first, end = limits(bounds, last, M, i0, low, high)
            for j in range(3 * width):
                new[j - 8] = 0.0
            own = ahead(lines, s * height * LINE)
            times = end - first + STRIP if end >= first else 0
            for n in range(SPAN + 1 if times else 0):
                t = times + n
                for k in range(3):
                    line = ahead(gone, k * ring + (t & 3) * LINE)
                    for v in range(0, LINE, W):
                        store(line, v, const(0.0))
                    line[STRIP] = old[k * width + first + t - STRIP]
            for step in range(times):
                t = times - 1 - step
                j0 = first + t
                score(grid, 0, e, e, 0, 0, M, last, i0, j0, low, high, e)
                q0 = ahead(gone, ((t + a0 + b0) & 3) * LINE)
                q1 = ahead(gone, ring + ((t + a1 + b1) & 3) * LINE)
                q2 = ahead(gone, 2 * ring + ((t + a2 + b2) & 3) * LINE)
                for v in range(0, STRIP, W):
                    store(here, v, load(q0, v + a0) + load(q1, v + a1) + load(q2, v + a2))
                if 0 <= last - i0 < STRIP and j0 - (last - i0) == corner:
                    here[last - i0] += 1.0
                line = ahead(own, (t + SPAN) * LINE)
                p0 = ahead(own, (t + SPAN - a0 - b0) * LINE)
                p1 = ahead(own, (t + SPAN - a1 - b1) * LINE)
                p2 = ahead(own, (t + SPAN - a2 - b2) * LINE)
                g0, g1 = ahead(gone, (t & 3) * LINE), ahead(gone, ring + (t & 3) * LINE)
                g2 = ahead(gone, 2 * ring + (t & 3) * LINE)
                begun = here[0] if i0 == 0 and j0 == 0 and line[1] > -inf else 0.0
                for v in range(0, STRIP, W):
                    x, top = load(e, v), load(line, 1 + v)
                    top = select(top > const(-inf), top, const(0.0))
                    share = load(here, v)
                    y0 = share * exp_of(fma(w0, x, load(p0, v + 1 - a0)) - top)
                    y1 = share * exp_of(fma(w1, x, load(p1, v + 1 - a1)) - top)
                    y2 = share * exp_of(fma(w2, x, load(p2, v + 1 - a2)) - top)
                    store(g0, v, y0)
                    store(g1, v, y1)
                    store(g2, v, y2)
                    store(here, v, fma(w0, y0, fma(w1, y1, w2 * y2)))
                here[0] += begun
                for k in range(3):
                    line = ahead(gone, k * ring + (t & 3) * LINE)
                    j = j0 - STRIP
                    line[STRIP] = old[k * width + j] if j >= -8 else 0.0
                    if j0 < M:
                        new[k * width + j0] = line[0]
                for r in range(max(0, j0 - M + 1), min(STRIP, last - i0 + 1, j0 + 1)):
                    out[(i0 + r) * M + j0 - r] = here[r]
            old, new = new, old

    def run(a, slot):
        ticket = integers(a[TICKET])
        N, M, D = a[NUM_ROWS], a[NUM_COLUMNS], a[NUM_FEATURES]
        room = a[SCRATCH] + slot * a[SCRATCH_BYTES]
        width, count = M + STRIP + 16, (N + STRIP - 1) // STRIP
        scratch = pointer(room)
        room += (4 * STRIP + max(STRIP * D, 12 * LINE)) * 8
        edges = pointer(room)
        room += 6 * width * 8
        starts = pointer(room)
        room += count * 8
        lines = pointer(room)
        taken = bytes_at(room + 4 * LINE * 8)
        steps, mask = integers(a[STEPS]), -1 if is_visits else 3
        while True:
            b = take_ticket(ticket)
            if b >= a[NUM_TASKS]:
                break
            corners = integers(a[CORNERS] + b * a[CORNERS_BATCH] * 8)
            last, corner = corners[0], corners[1]
            grid, bounds = pointer(a[GRID] + b * a[GRID_BATCH] * 8), integers(a[BOUNDS] + b * a[BOUNDS_BATCH] * 8)
            rows = pointer(a[ROW_FEATURES] + b * a[ROW_FEATURES_BATCH] * 8)
            columns = pointer(a[COLUMN_FEATURES] + b * a[COLUMN_FEATURES_BATCH] * 8)
            stride = a[COLUMN_STRIDE]
            ridge = sweep(
                grid,
                a[METRIC],
                steps,
                rows,
                count * STRIP,
                columns,
                stride,
                D,
                M,
                bounds,
                last,
                a[OPENS],
                scratch,
                mask,
                lines,
                taken,
                starts,
                edges,
            )
            if is_path:
                found = integers(a[STATES] + b * a[PATH_LENGTH] * 16)
                trace(taken, steps, starts, ridge, M, last, corner, a[ENDS_OPEN], found, a[PATH_LENGTH])
            elif is_visits:
                found = pointer(a[VALUES] + b * N * M * 8)
                if ridge[corner] > -inf:
                    spread(grid, steps, M, bounds, last, corner, scratch, lines, edges, found)
            else:
                pointer(a[VALUES])[b] = ridge[corner]
        return 0

    def run_distances(a, slot):
        """A strip of a pair a task."""
        ticket = integers(a[TICKET])
        N, M, D = a[NUM_ROWS], a[NUM_COLUMNS], a[NUM_FEATURES]
        e = pointer(a[SCRATCH] + slot * a[SCRATCH_BYTES])
        mine, count, stride = ahead(e, STRIP), (N + STRIP - 1) // STRIP, a[COLUMN_STRIDE]
        while True:
            task = take_ticket(ticket)
            if task >= a[NUM_TASKS]:
                break
            b, i0 = task // count, task % count * STRIP
            columns = pointer(a[COLUMN_FEATURES] + b * a[COLUMN_FEATURES_BATCH] * 8)
            strip(pointer(a[ROW_FEATURES] + b * a[ROW_FEATURES_BATCH] * 8), count * STRIP, D, i0, mine)
            out = pointer(a[VALUES] + b * N * M * 8)
            for j0 in range(M + STRIP - 1):
                compare(mine, columns, stride, D, M - 1 + STRIP - j0, a[METRIC], e)
                for r in range(max(0, j0 - M + 1), min(STRIP, N - i0, j0 + 1)):
                    out[(i0 + r) * M + j0 - r] = -e[r]
        return 0

    return run_distances if kind == "distances" else run
