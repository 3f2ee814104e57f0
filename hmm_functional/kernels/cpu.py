"""The kernel "numba": on the CPU, compiled, for torch tensors and NumPy arrays.

It serves `chain_messages`, and fused whole quantities, which read the emissions once a pass and write results only.
This file lays calls out for the compiled code.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from ..backend import Array
from ..edges import Edges
from ..semiring import EXPECTATION, LOG
from ..structure import Dense
from . import compiled, halves, layout, plan
from .call_layout import TYPES, Layout
from .job import Job, execute
from .memory import contiguous, empty_like, host, is_readable, kind_of
from .registry import Fused, Kernel, MessageCall, Messages, register


def chain_messages(call: MessageCall) -> Messages:
    """`recursion.chain_messages` in the log and the expectation semiring."""
    made = Layout(call)
    shape = made.like.shape
    count = len(call.initial)
    values = tuple(empty_like(made.like, shape, made.io) for _ in range(0 if call.last_only else count))
    scales = tuple(empty_like(made.like, shape[:2], made.io) for _ in range(0 if call.last_only else count))
    total = empty_like(made.like, shape[:1], "f64")
    last = tuple(empty_like(made.like, (shape[0], shape[2]), made.io) for _ in range(count))
    if shape[0]:
        job = made.job
        places = [(layout.VALUES, layout.SCALES, layout.LAST)]
        if made.has_tangent:
            places.append((layout.VALUE_TANGENTS, layout.SCALE_TANGENTS, layout.LAST_TANGENTS))
        for i, (value, scale, end) in enumerate(places):
            if not call.last_only:
                job.point(value, values[i])
                job.point(scale, scales[i])
            job.point(end, last[i])
        job.point(layout.TOTAL, total)
        made.execute(made.jobs("messages", made.has_tangent))
    return Messages(values, scales, total, last)


def meets(call: MessageCall, is_recorded: bool) -> bool:
    """Whether the passes of the call are to meet in the middle of its few sequences."""
    batch, num_steps, num_states = call.emission[0].shape
    # laying out all those jobs takes some time, but where no derivative is recorded their call may be repeated
    bar = plan.SERIAL_WORK * (4 if is_recorded else 1)
    return plan.leaves_threads_idle(call.structure, batch, num_steps, num_states, bar)


def forward(
    call: MessageCall, final: Array, has_messages: bool, is_normalised: bool = False, meets: bool = False
) -> tuple[Array, ...]:
    """Log-likelihoods (B,), and messages (B, T, K) where wanted, each row scaled or normalised.

    The messages are forward ones, and where passes meet reversed ones of the late half.
    """
    made = Layout(call)
    likelihood = empty_like(made.like, (made.batch,), made.io)
    messages = empty_like(made.like, made.like.shape, made.io) if has_messages else None
    if messages is None and made.lengths is None:
        meets = meets or plan.reads_too_much(call.structure, made.can_share, made.batch, made.num_states)
    if made.batch and meets and _can_be_cut(made):
        halves.meet(made, final, likelihood, messages)
    elif made.batch:
        _forward(made, final, likelihood, messages, 2 if is_normalised else 0)
    return (likelihood,) if messages is None else (likelihood, messages)


def _can_be_cut(made: Layout) -> bool:
    return made.num_steps > 1 and (made.lengths is None or made.lengths.min() > 1)


def _forward(made: Layout, final: Array, likelihood: Array, messages: Array | None, form: int) -> None:
    job = made.job
    job.point_rows(layout.FINAL, layout.FINAL_BATCH, final)
    job.point(layout.LOG_LIKELIHOOD, likelihood)
    job.keep(layout.TOTAL, np.empty(made.batch))
    if messages is not None:
        job.point(layout.VALUES, messages)
        job.fields[layout.TAGGED] = form
    made.execute(made.jobs("messages", False))


def smooth(call: MessageCall, final: Array) -> tuple[Array, Array]:
    """Log posteriors (B, T, K), -inf in the padding, and log-likelihoods (B,)."""
    made = Layout(call)
    likelihood = empty_like(made.like, (made.batch,), made.io)
    posteriors = empty_like(made.like, made.like.shape, made.io)
    if meets(call, False) and _can_be_cut(made):
        jobs = []
        for cut, early, late in halves.meet(made, final, likelihood, posteriors, form=1):
            for half in halves.go_on(cut, early, late, posteriors, posteriors):
                half.job.fields[layout.TAGGED] = 1
                jobs += half.jobs("backward", False, reverse=True)
            if cut.end < made.num_steps:
                posteriors[cut.which, cut.end :] = -np.inf
        execute(jobs, made.threads)
    elif made.batch:
        _forward(made, final, likelihood, posteriors, 1)
        job = made.job
        job.point_rows(layout.INITIAL, layout.INITIAL_BATCH, final)  # where a backward pass starts
        job.point(layout.MESSAGES, posteriors)
        made.execute(made.jobs("backward", False, reverse=True))
    return posteriors, likelihood


def statistics(
    call: MessageCall, final: Array, messages: Array, scale: Array, has_counts: bool, meets: bool = False
) -> tuple[Array, Array | None]:
    """Posteriors (B, T, K) times scale (B,), 0 in the padding, and expected counts, shaped as the weights, or None.

    Args:
        messages: what `forward` gave, `meets` being the same.
    """
    made = Layout(call)
    posteriors = empty_like(made.like, made.like.shape, made.io)
    weights = call.weights[0][0]
    if not made.batch:
        return posteriors, _zeros(weights) if has_counts else None
    messages, scale = _of_all(made, messages), _of_all(made, scale)
    counted = has_counts and made.num_steps > 1
    if meets and _can_be_cut(made):
        counts = _statistics_of_halves(made, final, messages, scale, posteriors, counted)
    else:
        job = made.job
        job.point_rows(layout.INITIAL, layout.INITIAL_BATCH, final)  # where a backward pass starts
        job.point(layout.MESSAGES, messages)
        job.point(layout.VALUES, posteriors)
        job.point(layout.GRADIENT_SCALE, scale)
        jobs = made.jobs("backward", True, reverse=True)
        arrays = [_room_for_counts(made, job, made.structure) for job in jobs] if counted else []
        made.execute(jobs)
        parts = zip(arrays, made.plans(), strict=True) if counted else ()
        counts = sum(_in_order(made, array, tasks.lanes) for array, tasks in parts)
    if not has_counts:
        return posteriors, None
    return posteriors, _counts(made, counts) if counted else _zeros(weights)


def _statistics_of_halves(
    made: Layout, final: Array, messages: Array, scale: Array, posteriors: Array, has_counts: bool
) -> Any:
    """`statistics` where passes meet: fills the posteriors and gives counts (B or 1, *base)."""
    passes: list[tuple[halves.Cut, Layout, Any]] = []
    jobs, between = [], []
    for cut in halves.cuts(made, final):
        one = cut.which
        early, late = messages[one, cut.middle - 1], messages[one, cut.middle]
        if has_counts:
            between.append(halves.pairs_between(cut, early, late, host(scale)[one.start]))
        for half in halves.go_on(cut, early, late, messages, posteriors):
            half.job.point(layout.GRADIENT_SCALE, scale[one])
            (job,) = half.jobs("backward", True, reverse=True)
            passes.append((cut, half, _room_for_counts(half, job, made.structure) if has_counts else None))
            jobs.append(job)
        posteriors[one, cut.end :] = 0.0
    execute(jobs, made.threads)
    if not has_counts:
        return None
    counts = np.stack(between)
    for cut, half, array in passes:
        counts[cut.which.start] += _in_order(half, array, False)[0]
    return counts.sum(0, keepdims=True) if made.is_shared else counts


def pull(call: MessageCall, values: Array, cotangent: Array) -> tuple[Array, Array, Array]:
    """Cotangents of the initial message (B, K), of constant weights, and of the emissions (B, T, K)."""
    made = Layout(call)
    structure = "dense" if made.structure == "dense" else "edges"
    start = empty_like(made.like, (made.batch, made.num_states), made.io)
    change = empty_like(made.like, made.like.shape, made.io)
    weights = call.weights[0][0]
    if not made.batch:
        return start, _zeros(weights), change
    job = made.job
    job.point(layout.MESSAGES, _of_all(made, values))
    job.point(layout.COTANGENT, _of_all(made, cotangent))
    job.point(layout.START, start)
    job.point(layout.VALUES, change)
    job.start(plan.one_by_one(made.batch, made.lengths))
    if structure == "dense" and made.is_shared:
        made.prepare(job, False, False)
    counts = _room_for_counts(made, job, structure) if made.num_steps > 1 else None
    element = "f64" if structure == "edges" else made.element
    job.scratch(plan.pull_scratch(job.fields, structure, element), made.threads)
    job.entry = compiled.entry("pull", element, made.io, structure)
    made.execute([job])
    if counts is None:
        return start, _zeros(weights), change
    if structure == "dense":
        counts = _square(made, counts)
        counts = counts.swapaxes(1, 2) if call.reverse else counts
    elif made.is_shared:
        counts = counts.sum(0, keepdims=True)
    return start, _counts(made, counts), change


def _room_for_counts(made: Layout, job: Job, structure: str) -> Any:
    """Zeros that a job counts in, for each thread, or for each sequence where weights are its own."""
    width = layout.padded(made.num_states, plan.LANES[made.element])
    size, kind = 2 * made.num_states * width, made.element
    if structure == "banded":
        size = len(cast(Any, made.call.structure).offsets) * width
    elif structure == "edges":
        size, kind = made.call.weights[0][0].shape[-1], "f64"
    counts = np.zeros((made.threads if made.is_shared else made.batch, size), TYPES[kind])
    job.keep(layout.COUNTS, counts)
    job.fields[layout.COUNTS_SIZE] = size
    job.fields[layout.IS_COUNTED_APART] = int(not made.is_shared)
    return counts


def _counts(made: Layout, counts: Any) -> Array:
    """Counts (B or 1, *base) as the weights' gradient."""
    weights = made.call.weights[0][0]
    found = empty_like(weights, weights.shape, made.io)
    host(found)[...] = counts[:, None, ...]
    return found


def _in_order(made: Layout, counts: Any, lanes: bool) -> Any:
    """Counts (B or 1, *base) of a pass against the direction of `made`, from the layout of numba_backward."""
    reverse = made.call.reverse
    if made.structure == "dense":  # [from][to] in time with lanes, else [to][from] on the way
        square = _square(made, counts)
        return square if lanes or reverse else square.swapaxes(1, 2)
    if made.is_shared:
        counts = counts.sum(0, keepdims=True)
    if made.structure == "edges":
        return counts
    sources, targets = (host(x) for x in made.call.structure.tables[:2])
    offsets = np.array(cast(Any, made.call.structure).offsets)
    if not reverse:  # the pass travels from targets to sources
        sources, targets, offsets = targets, sources, -offsets
    # in rising order of offsets, at the state that the pass moves into
    width = layout.padded(made.num_states, plan.LANES[made.element])
    offsets = np.sort(offsets)
    return counts.reshape(-1, len(offsets), width)[:, np.searchsorted(offsets, targets - sources), targets]


def _square(made: Layout, counts: Any) -> Any:
    """Counts (B or 1, K, K) of a dense transition."""
    if made.is_shared:
        counts = counts.sum(0, keepdims=True)
    num_states = made.num_states
    width = layout.padded(num_states, plan.LANES[made.element])
    return counts[:, : num_states * width].reshape(-1, num_states, width)[:, :, :num_states]


def _of_all(made: Layout, x: Array) -> Array:
    """`x` of every sequence, where transforms left one for all."""
    return contiguous(made.call.backend.xp.broadcast_to(x, (made.batch, *x.shape[1:])))


def _zeros(x: Array) -> Array:
    found = empty_like(x, x.shape, kind_of(x))
    found[...] = 0.0
    return found


def best_path(call: MessageCall, final: Array) -> tuple[Array, Array]:
    """The best states (B, T), -1 where there is none, and their scores (B,)."""
    made, structure = Layout(call), cast(Any, call.structure)
    states = empty_like(made.like, (made.batch, made.num_steps), "i64")
    scores = empty_like(made.like, (made.batch,), made.io)
    if made.batch:
        ways = made.num_states
        if made.structure != "dense":
            ways = len(structure.offsets) or structure.degrees[0]
        job = made.job
        job.point_rows(layout.FINAL, layout.FINAL_BATCH, final)
        job.point(layout.STATES, states)
        job.point(layout.SCORES, scores)
        code = "u8" if ways <= 2**8 else "u16" if ways <= 2**16 else "i32"
        made.execute(made.jobs("viterbi", code, is_log=True))
    return states, scores


def unsupported(call: MessageCall) -> str | None:
    """Why compiled kernels cannot serve the call."""
    if call.backend.name not in ("torch", "numpy"):
        return f"it takes torch tensors on the CPU and NumPy arrays, not arrays of {call.backend.name}"
    if call.semiring not in (LOG, EXPECTATION):
        return f"it has no messages in the {call.semiring.name} semiring"
    if not isinstance(call.structure, Dense | Edges):
        return "it has no low-rank transitions"
    weights = (part for weight in call.weights for part in weight)
    if not all(is_readable(x) for x in (*call.emission, *call.initial, *weights)):
        return "it takes plain float32 or float64 arrays in the memory of the CPU, in the machine's byte order"
    if not compiled.is_available():
        return "Numba is not installed"
    return None


FUSED = Fused(meets, forward, smooth, statistics, best_path, pull)
register(Kernel("numba", lambda call: 10, unsupported, chain_messages, FUSED))
