"""Steps of Viterbi streams by compiled code, of NumPy arrays; one thread does them, since a chunk is short."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import compiled, layout, plan
from .job import Job, execute

_KINDS = {np.dtype(np.float32): "f32", np.dtype(np.float64): "f64"}


def can_run(message: Any) -> bool:
    """Whether compiled code serves messages (B, K) of this kind."""
    return message.dtype in _KINDS and compiled.is_available()


def forward(
    weights: Any,
    edges: tuple[Any, ...],
    scaling: tuple[int, int, bool],
    initial: Any,
    message: Any,
    origins: Any,
    emission: Any,
    counts: Sequence[Any],
) -> tuple[Any, Any, Any, Any]:
    """See `streaming.trellis.forward`: messages, their scales, back-pointers, origins.

    Args:
        weights: (B or 1, K, K), or (B or 1, E) along edges in order of their targets.
        edges: sources (E,), and where each state's edges begin and how many they are (K,); empty for a matrix.
        scaling: every how many steps, on which of them, and whether emissions are centred.
        counts: steps of each stream in this chunk, steps before, and those pending, (B,).
    """
    size, num_steps, num_states = emission.shape
    kind, dtype = _KINDS[message.dtype], message.dtype
    found = np.array(message, order="C"), np.array(origins, np.int64, order="C")
    scale, pointers = np.zeros(size), np.zeros((num_steps, size, num_states), _pointer_type(num_states))
    job = _job(size, num_steps, num_states)
    words = job.fields
    words[layout.SCALE_EVERY], words[layout.SCALE_LAST], words[layout.IS_CENTRED] = scaling
    words[layout.WEIGHTS_BATCH] = weights[0].size if len(weights) > 1 else 0
    job.point(layout.WEIGHTS, np.ascontiguousarray(weights, dtype))
    if edges:
        words[layout.NUM_EDGES] = weights.shape[-1]
        for field, x in zip((layout.EDGE_SOURCE, layout.EDGE_START, layout.EDGE_COUNT), edges, strict=True):
            job.point(field, _integers(x))
    for field, x in ((layout.INITIAL, initial), (layout.EMISSION, emission)):
        job.point(field, np.ascontiguousarray(x, dtype))
    for field, x in zip((layout.LENGTHS, layout.TAKEN, layout.PENDING), counts, strict=True):
        job.point(field, _integers(x))
    results = {layout.LAST: found[0], layout.ORIGINS: found[1], layout.TOTAL: scale, layout.POINTERS: pointers}
    for field, x in results.items():
        job.point(field, x)
    lanes = plan.LANES[kind]
    width = layout.padded(max(num_states, lanes), lanes)
    room = 5 * width * plan.SIZE[kind] + 16 * num_states + lanes * lanes * plan.SIZE[kind]
    job.scratch(room, 1)
    job.entry = compiled.entry("trellis", "edges" if edges else "dense", kind)
    execute([job], 1)
    return found[0], scale, pointers, found[1]


def can_commit(pointers: Any, pending: Any) -> bool:
    """Whether compiled code can follow these pointers: there are as many rows as are said to be pending."""
    return compiled.is_available() and len(pending) > 0 and pending.min() >= 0 and pending.max() <= len(pointers)


def commit(
    message: Any, origins: Any, pointers: Any, num_steps: Any, pending: Any, max_delay: int | None
) -> tuple[Any, Any, Any, Any, Any]:
    """See `streaming.trellis.commit`: states, how many are final, how many were forced, messages, origins.

    Raises:
        ValueError: a pointer is no state.
    """
    width, size, num_states = pointers.shape
    found = np.array(message, np.float64, order="C"), np.array(origins, np.int64, order="C")
    states, count, forced = np.full((size, width), -1), np.zeros(size, np.int64), np.zeros(size, np.int64)
    job = _job(size, width, num_states)
    job.fields[layout.MAX_DELAY] = -1 if max_delay is None else max_delay
    for field, x in (
        (layout.LAST, found[0]),
        (layout.ORIGINS, found[1]),
        (layout.POINTERS, np.ascontiguousarray(pointers, _pointer_type(num_states))),
        (layout.TAKEN, _integers(num_steps)),
        (layout.PENDING, _integers(pending)),
        (layout.STATES, states),
        (layout.COMMITTED, count),
        (layout.FORCED, forced),
    ):
        job.point(field, x)
    job.scratch(16 * (num_states + width), 1)
    job.entry = compiled.entry("trellis", "commit")
    execute([job], 1)
    if (count < 0).any():
        raise ValueError(f"state: expected back_pointers in 0..{num_states - 1}, got others")
    return states[:, : int(count.max())], count, forced, found[0].astype(message.dtype, copy=False), found[1]


def _job(size: int, num_steps: int, num_states: int) -> Job:
    job = Job()
    job.num_tasks = job.fields[layout.NUM_TASKS] = size
    job.fields[layout.NUM_STEPS], job.fields[layout.NUM_STATES] = num_steps, num_states
    job.fields[layout.IS_WIDE] = int(_pointer_type(num_states) is np.int32)
    return job


def _pointer_type(num_states: int) -> type[np.signedinteger[Any]]:
    return np.int16 if num_states < 2**15 else np.int32


def _integers(x: Any) -> Any:
    return np.ascontiguousarray(x, np.int64)
