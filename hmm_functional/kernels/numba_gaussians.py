"""Mixtures of diagonal Gaussians, frames in lanes: squared differences, and their exp-sum where they arise.

Differences are taken before anything is squared, so nothing cancels however far apart states lie; on processors that
add beside their multiplications that costs no more than a matrix product of frames and their squares.
"""

from __future__ import annotations

from typing import Any

from .layout import (
    CONSTANTS,
    FRAMES,
    INVERSE_SPREADS,
    MEANS,
    NUM_FEATURES,
    NUM_FRAMES,
    NUM_MIXTURES,
    NUM_STATES,
    NUM_TASKS,
    SCRATCH,
    SCRATCH_BYTES,
    TICKET,
    VALUES,
)
from .numba_chain import integers
from .numba_math import arithmetic, jit
from .numba_simd import fma, select, take_ticket


def build(element: Any, num_vectors: int) -> Any:
    """The kernel `run(fields, thread)`; a task is `num_vectors` vectors of frames, two at a time."""
    ar = arithmetic(element)
    W = ar.lanes
    load, store, const, splat, pointer = ar.load, ar.store, ar.const, ar.splat, ar.pointer
    exp_split, split, power, log_of, transpose = ar.exp_split, ar.split, ar.power, ar.log_of, ar.transpose
    width = 2 * W
    blocks = num_vectors // 2
    bytes_of = 64 // W

    @jit
    def load_frames(x: Any, first: Any, count: Any, D: Any, out: Any) -> None:
        """Frames first..first+2W as out[feature][2 W frames]; the last one again where there are fewer."""
        whole = D // W * W
        for h in range(2):
            for d in range(0, whole, W):
                temp = D * width
                for l in range(W):
                    row = first + min(h * W + l, count - 1)
                    store(out, temp + l * W, load(x, row * D + d))
                transpose(out, temp)
                for c in range(W):
                    store(out, (d + c) * width + h * W, load(out, temp + c * W))
            for d in range(whole, D):
                for l in range(W):
                    out[d * width + h * W + l] = x[(first + min(h * W + l, count - 1)) * D + d]

    @jit
    def score(x: Any, D: Any, G: Any, means: Any, spreads: Any, constants: Any, out: Any) -> None:
        """out[Gaussian][2 W frames]."""
        zero = const(0.0)
        g = 0
        while g < G:
            r0 = g * D
            r1 = (g + 1 if g + 1 < G else g) * D
            r2 = (g + 2 if g + 2 < G else g) * D
            r3 = (g + 3 if g + 3 < G else g) * D
            a0, a1, a2, a3, b0, b1, b2, b3 = zero, zero, zero, zero, zero, zero, zero, zero
            for d in range(D):
                p, q = load(x, d * width), load(x, d * width + W)
                m, s = splat(means[r0 + d]), splat(spreads[r0 + d])
                t, u = (p - m) * s, (q - m) * s
                a0, b0 = fma(t, t, a0), fma(u, u, b0)
                m, s = splat(means[r1 + d]), splat(spreads[r1 + d])
                t, u = (p - m) * s, (q - m) * s
                a1, b1 = fma(t, t, a1), fma(u, u, b1)
                m, s = splat(means[r2 + d]), splat(spreads[r2 + d])
                t, u = (p - m) * s, (q - m) * s
                a2, b2 = fma(t, t, a2), fma(u, u, b2)
                m, s = splat(means[r3 + d]), splat(spreads[r3 + d])
                t, u = (p - m) * s, (q - m) * s
                a3, b3 = fma(t, t, a3), fma(u, u, b3)
            half = const(-0.5)
            c = splat(constants[g])
            store(out, g * width, fma(half, a0, c))
            store(out, g * width + W, fma(half, b0, c))
            if g + 1 < G:
                c = splat(constants[g + 1])
                store(out, (g + 1) * width, fma(half, a1, c))
                store(out, (g + 1) * width + W, fma(half, b1, c))
            if g + 2 < G:
                c = splat(constants[g + 2])
                store(out, (g + 2) * width, fma(half, a2, c))
                store(out, (g + 2) * width + W, fma(half, b2, c))
            if g + 3 < G:
                c = splat(constants[g + 3])
                store(out, (g + 3) * width, fma(half, a3, c))
                store(out, (g + 3) * width + W, fma(half, b3, c))
            g += 4

    @jit
    def mix(K: Any, M: Any, scores: Any) -> None:
        """log of the sum of exp over each state's mixture, in place."""
        for k in range(K):
            for h in range(2):
                top = const(-float("inf"))
                for m in range(M):
                    y = load(scores, (k * M + m) * width + h * W)
                    top = select(y > top, y, top)
                top = select(top > const(-float("inf")), top, const(0.0))
                total = const(0.0)
                for m in range(M):
                    x, n = exp_split(load(scores, (k * M + m) * width + h * W) - top)
                    total = total + x * power(n)
                x, n = split(total, const(0.0))
                store(scores, k * width + h * W, log_of(x, n) + top)

    def run(a, slot):
        scratch = pointer(a[SCRATCH] + slot * a[SCRATCH_BYTES])
        ticket = integers(a[TICKET])
        K, M, D, N = a[NUM_STATES], a[NUM_MIXTURES], a[NUM_FEATURES], a[NUM_FRAMES]
        frames, values = pointer(a[FRAMES]), pointer(a[VALUES])
        means, spreads, constants = pointer(a[MEANS]), pointer(a[INVERSE_SPREADS]), pointer(a[CONSTANTS])
        scores = pointer(a[SCRATCH] + slot * a[SCRATCH_BYTES] + (D + W) * width * bytes_of)
        while True:
            task = take_ticket(ticket)
            if task >= a[NUM_TASKS]:
                break
            for block in range(blocks):
                first = (task * blocks + block) * width
                count = min(width, N - first)
                if count <= 0:
                    break
                load_frames(frames, first, count, D, scratch)
                score(scratch, D, K * M, means, spreads, constants, scores)
                if M > 1:
                    mix(K, M, scores)
                for l in range(count):
                    for k in range(K):
                        values[(first + l) * K + k] = scores[k * width + l]
        return 0

    return run
