"""Steps of best paths with their back-pointers, and what survivors agree on, for streams that wait between chunks.

As `streaming/trellis.py` in NumPy, to the bit: sums in the same order, exact ties to the lowest source, the first NaN
as NumPy's argmax has it. States are in lanes; a row's last vector overlaps the one before where states do not fill it,
so that weights are read where they lie. Nothing here may be compiled as if there were no NaN or no infinity.
"""

from __future__ import annotations

from math import inf
from typing import Any

from numba import njit, types
from numba.extending import intrinsic

from .layout import (
    COMMITTED,
    COUNTS,
    DURATIONS,
    EDGE_COUNT,
    EDGE_SOURCE,
    EDGE_START,
    EMISSION,
    ENDS,
    FORCED,
    INITIAL,
    IS_CENTRED,
    IS_WIDE,
    LAST,
    LENGTHS,
    MAX_DELAY,
    MESSAGES,
    NUM_DURATIONS,
    NUM_EDGES,
    NUM_STATES,
    NUM_STEPS,
    NUM_TASKS,
    ORIGINS,
    PENDING,
    POINTERS,
    SCALE_EVERY,
    SCALE_LAST,
    SCRATCH,
    STATES,
    TAKEN,
    TOTAL,
    VALUES,
    WEIGHTS,
    WEIGHTS_BATCH,
)
from .numba_chain import doubles, integers
from .numba_math import arithmetic
from .numba_simd import int_of, make_pointer, make_splat, make_store_integers, select

NEVER = 2**63 - 1
"""A step past all others."""

narrow, wide = make_pointer(types.int16), make_pointer(types.int32)


def exact(function: Any) -> Any:
    """Compile into the caller, with no rule of arithmetic relaxed."""
    return njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)(function)


@intrinsic
def ahead(typingctx: Any, pointer: Any, count: Any) -> Any:
    """A pointer so many elements on."""
    return pointer(pointer, types.int64), lambda context, builder, sig, args: builder.gep(args[0], [args[1]])


def build(kind: str, element: Any = types.float64) -> Any:
    """The kernel `run(fields, 0)`.

    "forward" takes emissions, "commit" says which of their steps are final; "segments" and "follow" are what models
    with durations need.
    """
    if kind in ("commit", "follow"):
        return _commit() if kind == "commit" else _follow()
    return _segments(element) if kind == "segments" else _forward(element)


def _ways(element: Any) -> tuple[Any, Any]:
    """Whether numbers are ordinary, and the best ways from a message of such."""
    ar = arithmetic(element)
    W, f = ar.lanes, element
    load, store, const, splat = ar.load, ar.store, ar.const, ar.splat
    fold_max = ar.fold_max
    integer = int_of(ar.vec)
    isplat, store_ids = make_splat(integer), make_store_integers(integer, types.int32)

    @exact
    def are_ordinary(x: Any, count: Any) -> Any:
        """Whether all are numbers below infinity."""
        found, whole = True, count // W * W
        odd = const(0.0)
        for i in range(0, whole, W):
            odd = select(load(x, i) < const(inf), odd, const(1.0))
        for i in range(whole, count):
            found = found and x[i] < f(inf)
        return found and fold_max(odd) == f(0.0)

    @exact
    def best_plain(x: Any, w: Any, stride: Any, K: Any, width: Any, p: Any, ids: Any) -> None:
        """The best ways from a message of numbers below infinity."""
        low, last = const(-inf), width - W
        v = 0
        while v < width:
            a0, a1 = min(v, last), min(v + W, last)
            v0, v1, k0, k1 = low, low, isplat(0), isplat(0)
            if v + 2 * W < width:
                a2, a3 = min(v + 2 * W, last), min(v + 3 * W, last)
                v2, v3, k2, k3 = low, low, isplat(0), isplat(0)
                for i in range(K):
                    m, here, r = splat(x[i]), isplat(i), i * stride
                    c = m + load(w, r + a0)
                    k0, v0 = select(c > v0, here, k0), select(c > v0, c, v0)
                    c = m + load(w, r + a1)
                    k1, v1 = select(c > v1, here, k1), select(c > v1, c, v1)
                    c = m + load(w, r + a2)
                    k2, v2 = select(c > v2, here, k2), select(c > v2, c, v2)
                    c = m + load(w, r + a3)
                    k3, v3 = select(c > v3, here, k3), select(c > v3, c, v3)
                store(p, a2, v2)
                store_ids(ids, a2, k2)
                store(p, a3, v3)
                store_ids(ids, a3, k3)
            else:
                for i in range(K):
                    m, here, r = splat(x[i]), isplat(i), i * stride
                    c = m + load(w, r + a0)
                    k0, v0 = select(c > v0, here, k0), select(c > v0, c, v0)
                    c = m + load(w, r + a1)
                    k1, v1 = select(c > v1, here, k1), select(c > v1, c, v1)
            store(p, a0, v0)
            store_ids(ids, a0, k0)
            store(p, a1, v1)
            store_ids(ids, a1, k1)
            v += 4 * W

    return are_ordinary, best_plain


def _forward(element: Any) -> Any:
    ar = arithmetic(element)
    W, f = ar.lanes, element
    load, store, const, splat, pointer = ar.load, ar.store, ar.const, ar.splat, ar.pointer
    fold_max = ar.fold_max
    are_ordinary, best_plain = _ways(element)
    f64, i16, i32 = types.float64, types.int16, types.int32

    @exact
    def row_bytes(width: Any) -> Any:
        """What a row of scratch takes."""
        return (width + W - 1) // W * 64

    @exact
    def has_nan(x: Any, count: Any) -> Any:
        found = False
        for i in range(count):
            found = found or x[i] != x[i]
        return found

    @exact
    def fill(source: Any, K: Any, width: Any, out: Any) -> None:
        """A row, with -inf in lanes past its end."""
        for k in range(K):
            out[k] = source[k]
        for k in range(K, width):
            out[k] = f(-inf)

    @exact
    def best_any(x: Any, w: Any, stride: Any, K: Any, p: Any, ids: Any) -> None:
        """The best ways from any message, the first NaN before all numbers."""
        for j in range(K):
            best, which = x[0] + w[j], 0
            for i in range(1, K):
                c = x[i] + w[i * stride + j]
                if best == best and (c > best or c != c):
                    best, which = c, i
            p[j], ids[j] = best, i32(which)

    @exact
    def best_edges(a: Any, x: Any, w: Any, K: Any, p: Any, ids: Any) -> None:
        """The best ways along edges in order of their targets; from the last of all into what a NaN leads to."""
        sources, start, count = integers(a[EDGE_SOURCE]), integers(a[EDGE_START]), integers(a[EDGE_COUNT])
        for j in range(K):
            best, which = f(-inf), 0
            if count[j] > 0:
                first = start[j]
                best, which = x[sources[first]] + w[first], sources[first]
                for e in range(first + 1, first + count[j]):
                    c = x[sources[e]] + w[e]
                    if best == best and (c > best or c != c):
                        best, which = c, sources[e]
                if best != best:
                    which = sources[a[NUM_EDGES] - 1]
            p[j], ids[j] = best, i32(which)

    @exact
    def centre(row: Any, width: Any, is_centred: Any, e: Any) -> Any:
        """e = a row's emissions, 0 for what is none, less the largest; that, and whether all were emissions."""
        odd, high, last = const(0.0), const(-inf), width - W
        for v in range(0, width, W):
            at = min(v, last)
            x = load(row, at)
            odd = select(x < const(inf), odd, const(1.0))
            x = select(x < const(inf), x, const(0.0))
            high = select(x > high, x, high)
            store(e, at, x)
        top = fold_max(high)
        if not is_centred or not top > f(-inf):
            top = f(0.0)
        return top, fold_max(odd) == f(0.0)

    @exact
    def take(a: Any, b: Any, w: Any, stride: Any, is_plain: Any, width: Any) -> Any:
        """The steps of one stream; whether all went well."""
        K, n, B = a[NUM_STATES], a[NUM_STEPS], a[NUM_TASKS]
        room, size = a[SCRATCH], row_bytes(width)
        x, p, y, e = pointer(room), pointer(room + size), pointer(room + 2 * size), pointer(room + 3 * size)
        ids, own = wide(room + 4 * size), integers(room + 5 * size)
        other = ahead(own, K)
        message, origins = ahead(pointer(a[LAST]), b * K), ahead(integers(a[ORIGINS]), b * K)
        emission = ahead(pointer(a[EMISSION]), b * n * K)
        steps, begun = integers(a[LENGTHS])[b], integers(a[TAKEN])[b]
        is_fresh = integers(a[PENDING])[b] == 0
        every, last_due, is_centred = a[SCALE_EVERY], a[SCALE_LAST], a[IS_CENTRED] != 0
        is_right, last = True, width - W
        total = f64(0.0)
        fill(message, K, width, x)
        for k in range(K):
            own[k] = origins[k]
        for k in range(K, width):
            p[k] = f(-inf)
        for t in range(steps):
            row = ahead(emission, t * K)
            if width > K:
                fill(row, K, width, e)
                row = e
            top, is_number = centre(row, width, is_centred, e)
            is_right = is_right and is_number
            total += f64(top)
            if t == 0 and begun == 0:
                fill(ahead(pointer(a[INITIAL]), b * K), K, width, p)
                for k in range(K):
                    ids[k] = i32(0)
            elif a[NUM_EDGES] >= 0:
                best_edges(a, x, w, K, p, ids)
            elif is_plain and are_ordinary(x, width):
                best_plain(x, w, stride, K, width, p, ids)
            else:
                best_any(x, w, stride, K, p, ids)
            shift, high, odd = splat(top), const(-inf), const(0.0)
            for v in range(0, width, W):
                at = min(v, last)
                z = load(p, at) + (load(e, at) - shift)
                odd = select(z == z, odd, const(1.0))
                high = select(z > high, z, high)
                store(y, at, z)
            if begun + t >= last_due and (begun + t) % every == last_due:
                taken = fold_max(high)
                if not taken > f(-inf) or fold_max(odd) > f(0.0):
                    taken = f(0.0)
                total += f64(taken)
                shift = splat(taken)
                for v in range(0, width, W):
                    at = min(v, last)
                    store(x, at, load(y, at) - shift)
            else:
                x, y = y, x
            for k in range(K):
                other[k] = k if t == 0 and is_fresh else own[ids[k]]
            own, other = other, own
            if a[IS_WIDE] != 0:
                to = ahead(wide(a[POINTERS]), (t * B + b) * K)
                for k in range(K):
                    to[k] = ids[k]
            else:
                line = ahead(narrow(a[POINTERS]), (t * B + b) * K)
                for k in range(K):
                    line[k] = i16(ids[k])
        for k in range(K):
            message[k], origins[k] = x[k], own[k]
        doubles(a[TOTAL])[b] = total
        return is_right

    def run(a, slot):
        K, B = a[NUM_STATES], a[NUM_TASKS]
        width = max(K, W)
        is_dense = a[NUM_EDGES] < 0
        count = K * K if is_dense else a[NUM_EDGES]
        padded_weights = pointer(a[SCRATCH] + 5 * row_bytes(width) + 2 * K * 8)
        w, stride = pointer(a[WEIGHTS]), K
        is_plain, is_nan = True, False
        for b in range(B):
            if b == 0 or a[WEIGHTS_BATCH] != 0:
                given = ahead(pointer(a[WEIGHTS]), b * a[WEIGHTS_BATCH])
                is_plain = are_ordinary(given, count)
                is_nan = not is_plain and has_nan(given, count)
                w = given
                if is_dense and width > K:
                    w, stride = padded_weights, width
                    for i in range(K):
                        fill(ahead(given, i * K), K, width, ahead(w, i * width))
            is_right = take(a, b, w, stride, is_plain, width)
            message = ahead(pointer(a[LAST]), b * K)
            if is_nan and integers(a[TAKEN])[b] + integers(a[LENGTHS])[b] > 1:
                is_right = False
            if not is_right or has_nan(message, K):
                for k in range(K):
                    message[k] = f(float("nan"))
        return 0

    return run


def _segments(element: Any) -> Any:
    ar = arithmetic(element)
    W, f = ar.lanes, element
    load, store, const, splat, pointer = ar.load, ar.store, ar.const, ar.splat, ar.pointer
    fold_max = ar.fold_max
    are_ordinary, best_plain = _ways(element)
    integer = int_of(ar.vec)
    isplat, store_ids = make_splat(integer), make_store_integers(integer, types.int32)
    f64, i32 = types.float64, types.int32
    lowest = -3.4028234663852886e38 if element == types.float32 else -1.7976931348623157e308

    @exact
    def end(open_: Any, begin: Any, e: Any, laws: Any, D: Any, width: Any, taken: Any, ends: Any, ids: Any) -> Any:
        """Open segments (D, width) a step on, the best that end, the shorter among equals, and the largest of all."""
        high, shift = const(-inf), splat(taken)
        for v in range(0, width, W):
            best, which, own = const(-inf), isplat(0), load(e, v)
            for i in range(D):
                d = D - 1 - i
                y = load(begin, v) if d == 0 else load(open_, (d - 1) * width + v) - shift
                y = y + own
                store(open_, d * width + v, y)
                high = select(y > high, y, high)
                c = y + load(laws, d * width + v)
                which, best = select(c >= best, isplat(d), which), select(c >= best, c, best)
            store(ends, v, best)
            store_ids(ids, v, which)
        return fold_max(high)

    @exact
    def take(a: Any, b: Any) -> Any:
        """The steps of one stream; whether only ordinary numbers came up."""
        K, n, B, D = a[NUM_STATES], a[NUM_STEPS], a[NUM_TASKS], a[NUM_DURATIONS]
        width = (K + W - 1) // W * W
        begin, open_ = ahead(pointer(a[LAST]), b * width), ahead(pointer(a[MESSAGES]), b * D * width)
        laws, weights = ahead(pointer(a[DURATIONS]), b * D * width), ahead(pointer(a[WEIGHTS]), b * K * width)
        emission, scales = ahead(pointer(a[EMISSION]), b * n * width), ahead(doubles(a[TOTAL]), b * n)
        ends, ids = pointer(a[SCRATCH]), wide(a[SCRATCH] + width * 8)
        taken = f(0.0)
        if not (are_ordinary(begin, width) and are_ordinary(open_, D * width)):
            return False
        if not (are_ordinary(laws, D * width) and are_ordinary(weights, K * width)):
            return False
        for t in range(integers(a[LENGTHS])[b]):
            lasted = ahead(wide(a[COUNTS]), (t * B + b) * K)
            sources = ahead(wide(a[POINTERS]), (t * B + b) * K)
            high = end(open_, begin, ahead(emission, t * width), laws, D, width, taken, ends, ids)
            for k in range(K):
                lasted[k] = ids[k] + i32(1)
            if not high < f(inf) or not are_ordinary(ends, width):
                return False
            best_plain(ends, weights, width, K, width, begin, ids)
            for k in range(K):
                sources[k] = ids[k]
            taken = high if high > f(lowest) else f(0.0)
            scales[t] = f64(taken)
            for v in range(0, width, W):
                store(begin, v, load(begin, v) - splat(taken))
            if not are_ordinary(begin, width):
                return False
        for i in range(0, D * width, W):
            store(open_, i, load(open_, i) - splat(taken))
        return True

    def run(a, slot):
        for b in range(a[NUM_TASKS]):
            integers(a[COMMITTED])[b] = 1 if take(a, b) else 0
        return 0

    return run


def _follow() -> Any:
    @exact
    def follow(a: Any, b: Any) -> Any:
        """Where the past of each segment of a stream parts from the best one's; whether all that is read is held."""
        K, width, B, first = a[NUM_STATES], a[NUM_STEPS], a[NUM_TASKS], integers(a[TAKEN])[b]
        sources, lasted, parting = wide(a[POINTERS]), wide(a[COUNTS]), integers(a[VALUES])
        path, ends = integers(a[STATES]), integers(a[ENDS])
        for step in range(first, width):
            row, before = (step * B + b) * K, ((step - 1) * B + b) * K
            for k in range(K):
                here = NEVER if path[step * B + b] == k else step
                if step > first:
                    source = types.int64(sources[before + k])
                    if not 0 <= source < K:
                        return False
                    at = max(step - types.int64(lasted[before + source]), 0)
                    if at >= step:
                        return False
                    after = ends[at * B + b] + 1
                    if after != step:
                        here = min(after, step)
                    known = parting[(at * B + b) * K + source]
                    here = here if known == NEVER else known
                parting[row + k] = here
        return True

    def run(a, slot):
        for b in range(a[NUM_TASKS]):
            integers(a[COMMITTED])[b] = 1 if follow(a, b) else 0
        return 0

    return run


def _commit() -> Any:
    @exact
    def source(a: Any, step: Any, b: Any, k: Any) -> Any:
        """Where state k of a step came from; -1 where that is no state."""
        K = a[NUM_STATES]
        place = (step * a[NUM_TASKS] + b) * K + k
        found = types.int64(wide(a[POINTERS])[place]) if a[IS_WIDE] != 0 else types.int64(narrow(a[POINTERS])[place])
        return found if 0 <= found < K else -1

    @exact
    def go_back(a: Any, b: Any, step: Any, at: Any) -> Any:
        """States (K,) of a step as those of the step before; whether they are states."""
        is_right = True
        for k in range(a[NUM_STATES]):
            at[k] = source(a, step, b, at[k])
            is_right = is_right and at[k] >= 0
        return is_right

    @exact
    def commit(a: Any, b: Any, at: Any, parting: Any, path: Any, is_counted: Any) -> Any:
        """How many of a stream's pending steps are final; -1 where pointers lead nowhere."""
        K, width, delay = a[NUM_STATES], a[NUM_STEPS], a[MAX_DELAY]
        message, origins = ahead(doubles(a[LAST]), b * K), ahead(integers(a[ORIGINS]), b * K)
        pending, best = integers(a[PENDING])[b], -1
        for k in range(K):
            if message[k] > -inf and (best < 0 or message[k] > message[best]):
                best = k
        if best < 0 or integers(a[TAKEN])[b] == 0:
            return pending
        is_apart = False
        for k in range(K):
            at[k], parting[k] = k if message[k] > -inf else best, NEVER
            is_apart = is_apart or origins[at[k]] != origins[best]
        is_late = 0 <= delay < pending
        if pending == 0 or (is_apart and not is_late):
            return 0
        first = width - pending
        step = width - 1
        while True:
            own, is_apart = at[best], False
            path[step] = own
            for k in range(K):
                if at[k] != own:
                    parting[k], is_apart = step, True
            if not is_apart or step == first:
                break
            if not go_back(a, b, step, at):
                return -1
            step -= 1
        own = path[step]
        while step > first:
            own = source(a, step, b, own)
            if own < 0:
                return -1
            step -= 1
            path[step] = own
        # of the survivors, those that were elsewhere too early are dropped
        end, forced = width - delay, 0
        earliest, remaining = NEVER, NEVER
        for k in range(K):
            earliest = min(earliest, parting[k])
        is_late = is_late and earliest < end
        for k in range(K):
            if not is_late or parting[k] >= end:
                remaining = min(remaining, parting[k])
        count = max(min(remaining, width) - first, 0)
        for k in range(K):
            at[k] = k if message[k] > -inf else best
        for step in range(width - 1, first + count, -1):
            go_back(a, b, step, at)
        for k in range(K):
            if count < pending:
                origins[k] = at[k]
            if is_late and parting[k] < end:
                message[k] = -inf
                if is_counted[parting[k]] == 0:
                    forced += 1
                is_counted[parting[k]] = 1
        integers(a[FORCED])[b] = forced
        return count

    def run(a, slot):
        B, K, width = a[NUM_TASKS], a[NUM_STATES], a[NUM_STEPS]
        at = integers(a[SCRATCH])
        parting, path = ahead(at, K), ahead(at, 2 * K)
        is_counted = ahead(path, width)
        for b in range(B):
            for step in range(width):
                is_counted[step] = 0
            count = commit(a, b, at, parting, path, is_counted)
            integers(a[COMMITTED])[b] = count
            out = ahead(integers(a[STATES]), b * width)
            is_lost = True
            for k in range(K):
                is_lost = is_lost and not doubles(a[LAST])[b * K + k] > -inf
            if not is_lost:
                for i in range(count):
                    out[i] = path[width - integers(a[PENDING])[b] + i]
        return 0

    return run
