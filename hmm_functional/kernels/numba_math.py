"""Numbers of any size as (mantissa, exponent) in vector lanes, and exp and log between them and nats.

A weight exp(x) is kept as m 2^n with m in [1/2, 2) and n an integer-valued float: products add exponents, and nothing
underflows however small it is against its neighbours. Zero is m = 0 with n = -BIG. Rounding uses the addition of a
constant, so no function here may be compiled with reassociation.
"""

from __future__ import annotations

from functools import lru_cache
from math import inf, log
from types import SimpleNamespace
from typing import Any

from numba import njit, types

from .numba_simd import (
    BYTES,
    Vec,
    as_bits,
    fma,
    make_fold,
    make_from_bits,
    make_iota,
    make_load,
    make_pointer,
    make_splat,
    make_store,
    make_transpose,
    select,
)

# 1/i!, from the highest: degree 12 is below 2^-54 on |r| <= ln2 / 2, degree 7 below 2^-25
_FACTORIALS = [1.0]
for _i in range(1, 13):
    _FACTORIALS.append(_FACTORIALS[-1] / _i)

# atanh series of log((1 + s) / (1 - s)) with minimax coefficients of fdlibm's e_log.c
_LOG = (
    6.666666666666735130e-01,
    3.999999999940941908e-01,
    2.857142874366239149e-01,
    2.222219843214978396e-01,
    1.818357216161805012e-01,
    1.531383769920937332e-01,
    1.479819860511658591e-01,
)


def jit(function: Any) -> Any:
    """Compile into the caller: no exceptions, products and sums fused where that rounds less."""
    return njit(error_model="numpy", fastmath={"nsz", "contract"}, no_cpython_wrapper=True, no_cfunc_wrapper=True)(
        function
    )


@lru_cache
def arithmetic(element: Any) -> Any:
    """Vector arithmetic of one floating type: constants, conversions, memory."""
    is_double = element == types.float64
    lanes = BYTES // (8 if is_double else 4)
    vec = Vec(element, lanes)
    splat = make_splat(vec)
    from_bits = make_from_bits(vec)
    isplat = make_splat(Vec(types.int64 if is_double else types.int32, lanes))
    to_element = element

    mantissa_bits = 52 if is_double else 23
    bias = 1023 if is_double else 127
    magic = 1.5 * 2.0**mantissa_bits
    count_magic = 2.0**mantissa_bits
    count_bits = (bias + mantissa_bits) << mantissa_bits
    one_bits = bias << mantissa_bits
    fraction = (1 << mantissa_bits) - 1
    ln2_high = 6.93147180369123816490e-01 if is_double else 0.693359375
    ln2_low = log(2.0) - ln2_high if not is_double else 1.90821492927058770002e-10
    lowest = 900.0 if is_double else 96.0
    guard = 2.0**-800 if is_double else 2.0**-60
    big, lowest_log = 1e35, 5e30  # below every exponent a weight can have; below every finite score
    log2_e = 1.0 / log(2.0)
    degree = 12 if is_double else 7
    c0, c1, c2, c3, c4, c5, c6, c7, c8, c9, c10, c11, c12 = _FACTORIALS
    l0, l1, l2, l3, l4, l5, l6 = _LOG

    @jit
    def const(x: Any) -> Any:
        return splat(to_element(x))

    @jit
    def exp_reduced(r: Any) -> Any:
        """exp(r) for |r| <= 0.4."""
        if degree == 12:
            p = fma(const(c12), r, const(c11))
            p = fma(p, r, const(c10))
            p = fma(p, r, const(c9))
            p = fma(p, r, const(c8))
            p = fma(p, r, const(c7))
        else:
            p = const(c7)
        p = fma(p, r, const(c6))
        p = fma(p, r, const(c5))
        p = fma(p, r, const(c4))
        p = fma(p, r, const(c3))
        p = fma(p, r, const(c2))
        p = fma(p, r, const(c1))
        return fma(p, r, const(c0))

    @jit
    def exp_split(x: Any) -> Any:
        """(m, n) of exp(x); m = 0 for -inf, NaN for NaN."""
        floor = const(-lowest_log)
        y = select(floor > x, floor, x)
        n = fma(y, const(log2_e), const(magic)) - const(magic)
        r = fma(n, const(-ln2_low), fma(n, const(-ln2_high), y))
        r = select(r > const(0.4), const(0.4), r)
        r = select(r < const(-0.4), const(-0.4), r)
        m = exp_reduced(r)
        return select(x == const(-inf), const(0.0), m), n

    @jit
    def power(n: Any) -> Any:
        """2^n for integers n, 2^-lowest below -lowest."""
        n = select(n < const(-lowest), const(-lowest), n)
        bits = as_bits(n + const(magic)) << isplat(mantissa_bits)
        return from_bits(bits + isplat(one_bits))

    @jit
    def split(x: Any, n: Any) -> Any:
        """(m, n) of x 2^n for x zero or normal; NaN stays in m."""
        bits = as_bits(x)
        more = from_bits((bits >> isplat(mantissa_bits)) + isplat(count_bits)) - const(count_magic + bias)
        m = from_bits((bits & isplat(fraction)) | isplat(one_bits))
        positive = x > const(0.0)
        return select(positive, m, x), select(positive, n + more, const(-big))

    @jit
    def log_of(m: Any, n: Any) -> Any:
        """log(m 2^n) for m in [1/2, 2); -inf for m = 0."""
        high = m > const(1.4142135623730951)
        k = select(high, n + const(1.0), n)
        x = select(high, m * const(0.5), m)
        low = x < const(0.7071067811865475)
        k = select(low, k - const(1.0), k)
        x = select(low, x * const(2.0), x)
        f = x - const(1.0)
        s = f / (const(2.0) + f)
        z = s * s
        r = fma(const(l6), z, const(l5))
        r = fma(r, z, const(l4))
        r = fma(r, z, const(l3))
        r = fma(r, z, const(l2))
        r = fma(r, z, const(l1))
        r = fma(r, z, const(l0)) * z
        h = const(0.5) * f * f
        found = fma(k, const(ln2_high), f - (h - fma(s, h + r, k * const(ln2_low))))
        return select(m == const(0.0), const(-inf), found)

    return SimpleNamespace(
        element=element,
        lanes=lanes,
        vec=vec,
        splat=splat,
        const=const,
        exp_split=exp_split,
        power=power,
        split=split,
        log_of=log_of,
        big=big,
        guard=guard,
        lowest=lowest,
        tiny=2.0**-120 if is_double else 2.0**-40,
        load=make_load(vec, element),
        store=make_store(vec, element),
        load_double=make_load(vec, types.float64),
        load_single=make_load(vec, types.float32),
        store_double=make_store(vec, types.float64),
        store_single=make_store(vec, types.float32),
        transpose=make_transpose(vec),
        fold_max=make_fold(vec, "max"),
        fold_add=make_fold(vec, "add"),
        iota=make_iota(vec),
        pointer=make_pointer(element),
    )
