"""Steps of Viterbi streams by compiled code, of NumPy arrays; one thread does them, since a chunk is short."""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np

from . import compiled, layout, plan
from .memory import address

_KINDS = {np.dtype(np.float32): "f32", np.dtype(np.float64): "f64"}
_NUMBERS = (layout.TAKEN, layout.PENDING, layout.LENGTHS, layout.COMMITTED, layout.FORCED)


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
    lengths: Any,
    num_steps: Any,
    num_pending: Any,
) -> tuple[Any, Any, Any, Any]:
    """See `streaming.trellis.forward`: messages, their scales, back-pointers, origins.

    Args:
        weights: (B or 1, K, K), or (B or 1, E) along edges in order of their targets.
        edges: sources (E,), and where each state's edges begin and how many they are (K,); empty for a matrix.
        scaling: every how many steps, on which of them, and whether emissions are centred.
    """
    size, count, num_states = emission.shape
    dtype = message.dtype
    kind, lanes = _KINDS[dtype], plan.LANES[_KINDS[dtype]]
    message, origins = np.array(message, order="C"), np.array(origins, np.int64, order="C")
    scale, pointers = np.zeros(size), np.zeros((count, size, num_states), pointer_type(num_states))
    weights, initial, emission = (np.ascontiguousarray(x, dtype) for x in (weights, initial, emission))
    width = layout.padded(max(num_states, lanes), lanes)
    arrays = {
        layout.WEIGHTS: weights,
        layout.INITIAL: initial,
        layout.EMISSION: emission,
        layout.LAST: message,
        layout.ORIGINS: origins,
        layout.TOTAL: scale,
        layout.POINTERS: pointers,
        layout.SCRATCH: np.empty((5 * width + lanes * lanes) * plan.SIZE[kind] + 16 * num_states, np.uint8),
    }
    words = _words(size, count, num_states)
    words[layout.SCALE_EVERY], words[layout.SCALE_LAST], words[layout.IS_CENTRED] = scaling
    words[layout.WEIGHTS_BATCH] = weights[0].size if len(weights) > 1 else 0
    words[layout.NUM_EDGES] = weights.shape[-1] if edges else -1
    if edges:
        fields = layout.EDGE_SOURCE, layout.EDGE_START, layout.EDGE_COUNT
        arrays |= {field: np.ascontiguousarray(x, np.int64) for field, x in zip(fields, edges, strict=True)}
    _call(
        compiled.entry("trellis", "forward", kind), words, arrays, np.array([num_steps, num_pending, lengths], np.int64)
    )
    return message, scale, pointers, origins


def segments(
    begin: Any, open_: Any, emission: Any, duration: Any, transition: Any, lengths: Any
) -> tuple[Any, ...] | None:
    """Steps of segments, as `segments.advance` takes them, to the bit; None where numbers are infinite or none.

    Args:
        begin: (B, K), and `open_` (B, K, D), of the step before.
        emission: (B, n, K), numbers; `duration` (B, K, D), `transition` (B, K, K), all of one dtype.

    Returns:
        Both messages after the last step, (B, n) what each step took out, and (n, B, K) the lengths and the sources of
        the best segments.
    """
    size, count, num_states = emission.shape
    kind, dtype = _KINDS[begin.dtype], begin.dtype
    width, longest = layout.padded(num_states, plan.LANES[kind]), open_.shape[-1]

    def padded(x: Any, value: float) -> Any:
        found = np.full((*x.shape[:-1], width), value, dtype)
        found[..., :num_states] = x
        return found

    first, held = padded(begin, -np.inf), padded(open_.swapaxes(1, 2), -np.inf)
    scales = np.zeros((size, count))
    lasted, sources = (np.zeros((count, size, num_states), np.int32) for _ in range(2))
    arrays = {
        layout.LAST: first,
        layout.MESSAGES: held,
        layout.EMISSION: padded(emission, 0.0),
        layout.DURATIONS: padded(duration.swapaxes(1, 2), -np.inf),
        layout.WEIGHTS: padded(transition, -np.inf),
        layout.TOTAL: scales,
        layout.COUNTS: lasted,
        layout.POINTERS: sources,
        layout.SCRATCH: np.empty(2 * width, np.float64),
    }
    words = _words(size, count, num_states)
    words[layout.NUM_DURATIONS] = longest
    numbers = np.zeros((4, size), np.int64)
    numbers[2] = lengths
    _call(compiled.entry("trellis", "segments", kind), words, arrays, numbers)
    if not numbers[3].all():
        return None
    return first[:, :num_states], held[..., :num_states].swapaxes(1, 2), scales, lasted, sources


def follow(sources: Any, durations: Any, path: Any, ends: Any, first: Any) -> Any:
    """The steps (W, B, K) at which the pasts of segments part from the best one's, from the step `first` (B,) on.

    Args:
        sources, durations: (W, B, K), of the best segments that end with each step.
        path, ends: (W, B): the best segments' states, and where those that begin with a step end.

    Raises:
        ValueError: sources or durations lead nowhere.
    """
    width, size, num_states = sources.shape
    parting = np.zeros(sources.shape, np.int64)
    arrays = {
        layout.POINTERS: np.ascontiguousarray(sources, np.int32),
        layout.COUNTS: np.ascontiguousarray(durations, np.int32),
        layout.STATES: np.ascontiguousarray(path, np.int64),
        layout.ENDS: np.ascontiguousarray(ends, np.int64),
        layout.VALUES: parting,
    }
    numbers = np.zeros((4, size), np.int64)
    numbers[0] = first
    _call(compiled.entry("trellis", "follow"), _words(size, width, num_states), arrays, numbers)
    if not numbers[3].all():
        raise ValueError(f"state: expected sources in 0..{num_states - 1} and durations of steps held, got others")
    return parting


def can_commit(pointers: Any, num_pending: Any) -> bool:
    """Whether compiled code can follow these pointers: there are as many rows as are said to be pending."""
    if not (compiled.is_available() and len(num_pending)):
        return False
    return bool(num_pending.min() >= 0 and num_pending.max() <= len(pointers))


def commit(
    message: Any, origins: Any, pointers: Any, num_steps: Any, num_pending: Any, max_delay: int | None
) -> tuple[Any, Any, Any, Any, Any]:
    """See `streaming.trellis.commit`: states, how many are final, how many were forced, messages, origins.

    Raises:
        ValueError: a pointer is no state.
    """
    width, size, num_states = pointers.shape
    kind = message.dtype
    message, origins = np.array(message, np.float64, order="C"), np.array(origins, np.int64, order="C")
    states = np.full((size, width), -1)
    arrays = {
        layout.LAST: message,
        layout.ORIGINS: origins,
        layout.POINTERS: np.ascontiguousarray(pointers, pointer_type(num_states)),
        layout.STATES: states,
        layout.SCRATCH: np.empty(2 * (num_states + width), np.int64),
    }
    words = _words(size, width, num_states)
    words[layout.MAX_DELAY] = -1 if max_delay is None else max_delay
    numbers = np.zeros((5, size), np.int64)
    numbers[0], numbers[1] = num_steps, num_pending
    _call(compiled.entry("trellis", "commit"), words, arrays, numbers)
    count = numbers[3]
    if count.min() < 0:
        raise ValueError(f"state: expected back_pointers in 0..{num_states - 1}, got others")
    return states[:, : int(count.max())], count, numbers[4], message.astype(kind, copy=False), origins


def _words(size: int, num_steps: int, num_states: int) -> list[int]:
    words = [0] * layout.NUM_FIELDS
    words[layout.NUM_TASKS], words[layout.NUM_STEPS], words[layout.NUM_STATES] = size, num_steps, num_states
    words[layout.IS_WIDE] = int(pointer_type(num_states) is np.int32)
    return words


def _call(entry: compiled.Entry, words: list[int], arrays: dict[int, Any], numbers: Any) -> None:
    """Run compiled code on arrays by field, and on rows of numbers (R, B): the first of `_NUMBERS`."""
    for field, x in arrays.items():
        words[field] = address(x)
    first = address(numbers)
    for row, field in enumerate(_NUMBERS[: len(numbers)]):
        words[field] = first + 8 * row * numbers.shape[1]
    fields = array("q", words)
    entry(fields.buffer_info()[0], 0)


def pointer_type(num_states: int) -> type[np.signedinteger[Any]]:
    """Integers that tell so many states apart."""
    return np.int16 if num_states < 2**15 else np.int32
