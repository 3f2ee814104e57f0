"""Values of diagonal Gaussians and their mixtures by compiled code, for arrays in the CPU's memory."""

from __future__ import annotations

from math import log, pi

import numpy as np

from ..backend import Array, Backend
from . import compiled, layout, plan, threads
from .job import Job, execute
from .memory import contiguous, empty_like, host, is_readable, kind_of

VECTORS = 8
"""Vectors of frames a task takes."""


def can_read(backend: Backend, *arrays: Array) -> bool:
    """Whether compiled code can read these arrays now."""
    if backend.name not in ("torch", "numpy") or backend.is_traced(*arrays):
        return False
    return compiled.is_available() and all(is_readable(x) for x in arrays)


def mixture_log_prob(frames: Array, log_weights: Array | None, means: Array, variances: Array) -> Array:
    """log p (N, K) of frames (N, D) under mixtures of M diagonal Gaussians.

    Args:
        log_weights: (K, M), or None for M = 1.
        means, variances: (K, M, D), of the frames' dtype.
    """
    kind = kind_of(frames)
    num_states, num_mixtures, dim = means.shape
    found = empty_like(frames, (frames.shape[0], num_states), kind)
    if frames.shape[0] == 0:
        return found
    with np.errstate(all="ignore"):  # what is no variance gives NaN
        spread = np.sqrt(host(variances)).reshape(-1, dim)
        constants = -0.5 * dim * log(2 * pi) - np.log(spread).sum(-1)
        inverse = 1 / spread
        if log_weights is not None:
            constants = constants + host(log_weights).reshape(-1)
    job = Job()
    fields = job.fields
    fields[layout.NUM_FRAMES], fields[layout.NUM_FEATURES] = frames.shape[0], dim
    fields[layout.NUM_STATES], fields[layout.NUM_MIXTURES] = num_states, num_mixtures
    dtype = spread.dtype
    for field, x in (
        (layout.FRAMES, contiguous(frames)),
        (layout.MEANS, np.ascontiguousarray(host(means), dtype)),
        (layout.INVERSE_SPREADS, np.ascontiguousarray(inverse, dtype)),
        (layout.CONSTANTS, np.ascontiguousarray(constants, dtype)),
        (layout.VALUES, found),
    ):
        job.point(field, x)
    lanes = plan.LANES[kind]
    job.count_tasks(-(-frames.shape[0] // (VECTORS * lanes)))
    num_threads = threads.available() if frames.shape[0] * spread.size > plan.SERIAL_WORK else 1
    job.scratch(plan.gaussians_scratch(dim, num_states * num_mixtures, kind), num_threads)
    job.entry = compiled.entry("gaussians", kind, VECTORS)
    execute([job], num_threads)
    return found
