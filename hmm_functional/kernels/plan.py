"""How a call's sequences share vectors, readings of the weights, and threads; how much scratch a thread needs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from ..structure import Dense
from . import layout, threads
from .layout import CHUNK, FRONT, padded

LANES = {"f64": 8, "f32": 16}
SIZE = {"f64": 8, "f32": 4}
SINGLE_FROM = 32
"""States from which float32 inputs are computed in float32; fewer gain nothing by it and get float64 inside."""
SERIAL_WORK = 40_000
"""Elementary operations below which a second thread costs more than it saves, though it be awake."""
MOST_LANE_SCRATCH = 2**28
"""Bytes that messages or back-pointers of a task may take before its sequences go in smaller groups, or in segments."""
OWN_CACHE = 2**20
"""Bytes of transition matrix that a thread has close at hand."""
FULL_ENOUGH = 0.3
"""Share of a group's vector steps that must be within lengths; sequences longer than their company go alone."""


@dataclass(frozen=True)
class Plan:
    """Tasks of one layout: sequences `order[tasks[i] : tasks[i + 1]]` go together."""

    lanes: bool
    order: Any
    tasks: Any

    largest: int
    """Sequences of the largest task."""


def element_of(io: str, structure: str, num_states: int) -> str:
    """What a call computes in."""
    return "f32" if io == "f32" and structure != "edges" and num_states >= SINGLE_FROM else "f64"


def variant_of(structure: Any) -> str:
    """ "dense", "banded" or "edges"."""
    if isinstance(structure, Dense):
        return "dense"
    return "banded" if structure.offsets else "edges"


def plans(
    structure: str,
    can_share: bool,
    lengths: Any,
    batch: int,
    num_steps: int,
    num_states: int,
    element: str,
    num_threads: int,
) -> list[Plan]:
    """Groups of sequences of like length, the longest first.

    Args:
        can_share: one constant set of weights serves all sequences.
        lengths: NumPy integers, or None where all are `num_steps`.
    """
    if lengths is None:
        return _regular(structure, can_share, batch, num_steps, num_states, element, num_threads)
    order = np.argsort(-lengths, kind="stable")
    return _plans(structure, can_share, order, lengths, num_steps, num_states, element, num_threads)


@lru_cache(maxsize=256)
def _regular(structure: str, can_share: bool, batch: int, *sizes: Any) -> list[Plan]:
    """Plans of sequences of one length."""
    return _plans(structure, can_share, np.arange(batch), None, *sizes)


def _plans(
    structure: str,
    can_share: bool,
    order: Any,
    lengths: Any,
    num_steps: int,
    num_states: int,
    element: str,
    num_threads: int,
) -> list[Plan]:
    width, batch = LANES[element], len(order)
    if structure == "edges":
        return [_plan(True, order, _cuts(batch, width if can_share else 1))]
    if structure == "banded" or not can_share:
        return [_plan(False, order, _cuts(batch, 1))]
    if batch < 2 * width or num_steps * num_states * width * SIZE[element] > MOST_LANE_SCRATCH:
        share = min(FRONT, max(1, -(-batch // num_threads)))
        return [_plan(False, order, _cuts_of_equals(order, lengths, share))]
    alone = 0
    if lengths is not None:
        long = lengths[order]
        while batch - alone > width and long[alone : alone + width].sum() < FULL_ENOUGH * width * long[alone]:
            alone += 1
    found = [_plan(False, order[:alone], np.arange(alone + 1))] if alone else []
    return [*found, _plan(True, order[alone:], _cuts(batch - alone, width))]


def one_by_one(batch: int, lengths: Any) -> Plan:
    """Every sequence a task, the longest first."""
    order = np.arange(batch) if lengths is None else np.argsort(-lengths, kind="stable")
    return _plan(False, order, _cuts(batch, 1))


def _plan(lanes: bool, order: Any, tasks: Any) -> Plan:
    return Plan(lanes, order, tasks, int(np.diff(tasks).max()))


def _cuts(count: int, width: int) -> Any:
    return np.append(np.arange(0, count, width), count)


def _cuts_of_equals(order: Any, lengths: Any, width: int) -> Any:
    if lengths is None or width == 1:
        return _cuts(len(order), width)
    cuts, first = [0], 0
    for i in range(1, len(order) + 1):
        if i == len(order) or i - first == width or lengths[order[i]] != lengths[order[first]]:
            cuts.append(i)
            first = i
    return np.array(cuts)


def work(structure: Any, batch: int, num_steps: int, num_states: int) -> int:
    """Elementary operations of a pass, an exponential taken for 20."""
    moves = structure.num_states // 4 if isinstance(structure, Dense) else 4 * max(structure.degrees)
    return batch * num_steps * num_states * (20 + moves) // 4


def leaves_threads_idle(structure: Any, batch: int, num_steps: int, num_states: int, bar: int) -> bool:
    """Whether a pass of few sequences and more than `bar` operations could use twice the threads it keeps busy."""
    is_long = work(structure, batch, num_steps, num_states) > bar
    return is_long and 0 < 2 * batch <= threads.available()


def reads_too_much(structure: Any, can_share: bool, batch: int, num_states: int) -> bool:
    """Whether sequences on different threads would each read a matrix that is too large for a thread's own cache."""
    is_large = isinstance(structure, Dense) and num_states**2 * 8 > OWN_CACHE
    return can_share and is_large and 1 < batch <= FRONT * threads.available() // 2


@dataclass(frozen=True)
class Sizes:
    """Elements of a task's arrays."""

    state: int
    rows: int
    lanes: int
    """Of all groups together."""
    weights: int
    num_states: int


def sizes(fields: list[int], lanes: bool, structure: str, element: str, group: int, is_prepared: bool) -> Sizes:
    """Sizes for tasks of `group` sequences; `is_prepared`: the weights lie outside of the scratch."""
    width, num_states = LANES[element], fields[layout.NUM_STATES]
    groups = 1 if lanes else group
    across = num_states * width if lanes else padded(num_states, width)
    margin = padded(num_states, width) if structure == "banded" else 0  # what offsets reach, at most, on each side
    weights = 0
    if structure == "banded":
        weights = fields[layout.NUM_OFFSETS] * padded(num_states, width)
    elif structure == "edges":
        weights = fields[layout.NUM_EDGES] + width
    elif not is_prepared:
        weights = num_states * padded(num_states, width)
    return Sizes(groups * (across + 2 * margin), CHUNK * groups * across, groups * width, weights, num_states)


def messages_scratch(n: Sizes, element: str) -> int:
    """Bytes of a thread's scratch in numba_messages and numba_backward."""
    floats = 7 * n.state + 8 * n.rows + (3 * CHUNK + 1) * n.lanes + 4 * n.num_states + 3 * n.weights + 64
    return padded(floats * SIZE[element] + (3 * n.lanes + CHUNK + n.num_states + 64) * 8, 64)


def pull_scratch(fields: list[int], structure: str, element: str) -> int:
    """Bytes of a thread's scratch in numba_pull."""
    num_states = fields[layout.NUM_STATES]
    width = padded(num_states, LANES[element])
    weights = num_states * width if structure == "dense" else 2 * (fields[layout.NUM_EDGES] + LANES[element])
    return padded((10 * width + weights + 64) * SIZE[element] + (num_states + 16) * 8, 64)


def viterbi_scratch(n: Sizes, element: str, num_steps: int, segment: int, code_bytes: int) -> int:
    """Bytes of a thread's scratch in numba_viterbi."""
    row = n.rows // CHUNK
    floats = 2 * n.state + n.rows + 2 * n.lanes + n.weights + (-(-num_steps // segment)) * row
    return padded(floats * SIZE[element] + 16 * n.lanes + segment * row * code_bytes + 64, 64)


def segment_of(num_steps: int, row: int, code_bytes: int) -> int:
    """Steps whose back-pointers are kept at once: all, or, past MOST_LANE_SCRATCH bytes, about their square root."""
    if num_steps * row * code_bytes <= MOST_LANE_SCRATCH:
        return max(num_steps, 1)
    return padded(int((4 * num_steps) ** 0.5) + 1, CHUNK)


def gaussians_scratch(dim: int, num_gaussians: int, element: str) -> int:
    """Bytes of a thread's scratch in numba_gaussians."""
    width = LANES[element]
    return padded((dim + width + num_gaussians) * 2 * width * SIZE[element], 64)
