"""The one recursion over segments: explicit durations, in the log and max semirings, and its derivatives.

With b_t(k) the weight of all ways to begin a segment of state k at step t, and E_t(k) to end one there,

    E_t(k) = sum over d of b_{t-d+1}(k) * (emissions t-d+1..t) * duration(k, d)
    b_{t+1}(j) = sum over k of E_t(k) * transition(k, j)

a step carries K D open segments and costs K (D + K). Emissions are only ever added, never taken back: what is
-inf or hugely negative is exact. Every sequence ends in a segment whose weight is `tail`: p(duration = d), or, where
it may run past the end, p(duration >= d).

The derivatives of the log-likelihoods L are probabilities of segments, sums of positive terms:

    likelihood(theta) = L                            its derivative: statistics
    statistics(theta, g) = sum over b of g_b dL_b/dtheta, and L      curvature
    curvature(theta, v, g) = sum over b of g_b d2L_b/dtheta2 v: the library's own derivative of `statistics`
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any, NamedTuple

from .arrays import filled, no_rule
from .backend import Array, Backend, Primitive
from .backend.protocol import Shape, batch_size, declare
from .kernels import segments as compiled
from .numerics import accurate_sum, centre, draw, logsumexp, multiply, softmax

NUM_THETA = 5
MOST_MISSING = 1e-6
"""From one, of a step's posteriors, before sequences are counted again by array code."""
Reduce = Callable[[Backend, Array, int], Array]


class Theta(NamedTuple):
    """What the log-likelihoods depend on; every array but the emissions may be shared, with a batch axis of 1."""

    initial: Array
    """(B, K)"""
    transition: Array
    """(B, K, K)"""
    duration: Array
    """(B, K, D), D at most T: log weights of a segment that is followed by another."""
    tail: Array
    """(B, K, D): of one that reaches the end of its sequence."""
    emission: Array
    """(B, T, K)"""


@dataclass(frozen=True)
class Passed:
    """Messages of the forward pass, scaled: `b` and `ends` (B, T, K), what each step took out (B, T)."""

    begins: Array
    ends: Array
    scales: Array
    emission: Array
    """Centred, 0 in the padding."""
    final: Array
    """(B, D, K): weights of the segments that reach the end, by their length."""
    log_likelihood: Array
    """(B,), and the same on the scale of the messages."""
    scaled: Array
    run: compiled.Run | None
    """What compiled code goes on from; None where array code made the messages."""


def sum_of(backend: Backend, x: Array, axis: int) -> Array:
    """The log semiring's sum."""
    return logsumexp(backend, x, axis=axis)


def max_of(backend: Backend, x: Array, axis: int) -> Array:
    """The max semiring's."""
    return backend.xp.max(x, axis=axis)


def forward_pass(
    backend: Backend, theta: Theta, lengths: Array, reduce: Reduce = sum_of, kernel: str = "reference"
) -> Passed:
    """The recursion over time, in O(T K (D + K)); by compiled code, in float64, where the kernel allows."""
    xp = backend.xp
    num_steps = theta.emission.shape[1]
    size, count = lengths.shape[0], theta.duration.shape[-1]
    is_valid = backend.arange(num_steps, like=theta.emission)[None, :] < lengths[:, None]
    emission, top = centre(backend, xp.where(is_valid[..., None], theta.emission, 0.0))
    arrays = (theta.initial, theta.transition, theta.duration, emission)
    dtype, run = emission.dtype, None
    if not backend.records(arrays) and compiled.can_run(backend, kernel, arrays):
        run = compiled.Run(*arrays[1:], lengths)
        found = run.forward(theta.initial, is_best=reduce is max_of)
        begins, ends, scales = (backend.asarray(x, like=emission) for x in found)
        # what is left to do is little, and goes on in float64
        theta = Theta(*(xp.astype(x, begins.dtype, copy=False) for x in theta))
        emission = xp.astype(emission, begins.dtype, copy=False)
    else:
        begins, ends, scales = _messages(backend, theta, emission, size, reduce)
    final = open_segments(backend, begins, emission, scales, lengths - 1, count) + xp.matrix_transpose(theta.tail)
    scaled = reduce(backend, _joined(xp, final), -1)
    is_before = backend.arange(num_steps, like=emission)[None, :] < lengths[:, None] - 1
    shift = accurate_sum(backend, xp.where(is_valid, top, 0.0) + xp.where(is_before, scales, 0.0))
    value = xp.where(scaled == -inf, -inf, xp.astype(shift + scaled, dtype))
    return Passed(begins, ends, scales, emission, final, value, scaled, run)


def _messages(backend: Backend, theta: Theta, emission: Array, size: int, reduce: Reduce) -> tuple[Array, Array, Array]:
    """Begins and ends (B, T, K), and what each step took out (B, T), by array code."""
    xp, num_states, count = backend.xp, emission.shape[-1], theta.duration.shape[-1]
    begin = xp.broadcast_to(theta.initial, (size, num_states))
    open_ = backend.full((size, num_states, count), -inf, like=emission)

    def step(carry: Any, item: Any) -> tuple[Any, Any]:
        (open_, begin, scale), (e,) = carry, item
        open_, end, after, taken = advance(
            backend, open_ - scale[..., None], begin, e, theta.duration, theta.transition, reduce
        )
        return (open_, after - taken, taken), (begin, end, taken[:, 0])

    start = (open_, begin, xp.zeros_like(begin[:, :1]))
    _, found = scan_in_chunks(backend, step, start, (xp.permute_dims(emission, (1, 0, 2)),), count)
    begins, ends, scales = (xp.moveaxis(x, 0, 1) for x in found)
    return begins, ends, scales


def advance(
    backend: Backend, open_: Array, begin: Array, e: Array, duration: Array, transition: Array, reduce: Reduce
) -> tuple[Array, Array, Array, Array]:
    """One step of the recursion.

    Args:
        open_: (..., K, D): the segments that the step before was step d + 1 of.
        begin: (..., K): those that begin now.
        e: (..., K), emissions.

    Returns:
        The open segments, without their durations; those that end now, (..., K); those that begin with the next step,
        (..., K); and the largest of the first, (..., 1), to be taken out of all.
    """
    xp = backend.xp
    open_ = xp.concat([(begin + e)[..., None], open_[..., :-1] + e[..., None]], axis=-1)
    end = reduce(backend, open_ + duration, -1)
    return open_, end, reduce(backend, end[..., None] + transition, -2), largest(backend, open_)


def advance_left(
    backend: Backend, open_: Array, begin: Array, e: Array, duration: Array, transition: Array
) -> tuple[Array, Array, Array]:
    """The same step, in the log semiring, of open segments that are kept by how many more steps they last.

    A segment's duration is chosen where it begins, so that each step sums two ways into a number of steps left, and
    what is left is known without a sum over D^2 pairs (Yu and Kobayashi 2003).

    Args:
        open_: (..., K, D): the segments that last d more steps after the step before; those of 0 have ended.

    Returns:
        The open segments, (..., K, D); those that begin with the next step, (..., K); and the largest of the first.
    """
    xp = backend.xp
    later = xp.concat([open_[..., 1:], xp.full_like(open_[..., :1], -inf)], axis=-1)
    open_ = logsumexp(backend, xp.stack([later, begin[..., None] + duration]), axis=0) + e[..., None]
    return open_, logsumexp(backend, open_[..., :1] + transition, axis=-2), largest(backend, open_)


def largest(backend: Backend, open_: Array) -> Array:
    """The largest weight of all open segments (..., K, D), a constant (..., 1); 0 where there is none."""
    most = backend.pivot(_joined(backend.xp, open_), -1)
    return backend.xp.where(most == backend.xp.finfo(most.dtype).min, 0.0, most)


def _joined(xp: Any, x: Array) -> Array:
    """The last two axes as one, of an empty batch too."""
    return xp.reshape(x, (*x.shape[:-2], x.shape[-2] * x.shape[-1]))


def open_segments(
    backend: Backend,
    begins: Array,
    emission: Array,
    scales: Array,
    last: Array,
    count: int,
    states: Array | None = None,
) -> Array:
    """(B, D, K): weights, without durations, of the segments of 1..D steps that `last` (B,) is the last step of.

    Args:
        states: (S, B) the one state each to look at, with `last` (S, B): (S, B, D, 1).
    """
    xp = backend.xp
    place = last[..., None] - backend.arange(count, like=last)
    is_there = (place >= 0)[..., None]
    index = xp.where(place >= 0, place, 0)
    if states is None:
        begin, own = (backend.take_along(x, index[..., None], 1) for x in (begins, emission))
    else:
        num_states = begins.shape[-1]
        cells = index * num_states + states[..., None]
        flat = (_joined(xp, x)[None, ...] for x in (begins, emission))
        begin, own = (backend.take_along(x, cells, -1)[..., None] for x in flat)
        scales = scales[None, ...]
    before = backend.take_along(scales, xp.where(place > 0, place - 1, 0), -1)[..., None]
    later = xp.cumulative_sum(xp.where(is_there, own - before, 0.0), axis=-2)
    later = xp.concat([xp.zeros_like(later[..., :1, :]), later[..., :-1, :]], axis=-2)
    return xp.where(is_there, begin + own + later, -inf)


class Counts(NamedTuple):
    """Expected numbers of segments given the observations, of each sequence."""

    initial: Array
    """(B, K): of first segments."""
    transition: Array
    """(B, K, K)"""
    duration: Array
    """(B, K, D): of segments that are followed by another."""
    tail: Array
    """(B, K, D): of those that reach the end."""
    emission: Array
    """(B, T, K): posteriors of the states."""


def counts_of(backend: Backend, theta: Theta, lengths: Array, kernel: str = "reference") -> tuple[Counts, Array]:
    """The derivative of the log-likelihoods, by a pass forward and one back that counts, and those themselves, (B,)."""
    xp, passed = backend.xp, forward_pass(backend, theta, lengths, kernel=kernel)
    if passed.run is None:
        return _counts(backend, theta, lengths, passed), passed.log_likelihood
    known = backend.to_numpy(xp.where(passed.scaled == -inf, 0.0, passed.scaled))
    found = (backend.asarray(x, like=theta.emission) for x in passed.run.counts(theta.tail, known))
    counts = Counts(*(xp.astype(x, theta.emission.dtype, copy=False) for x in found))
    # compiled code takes log p(x) from messages: of 1e12 nats it leaves too few digits
    is_valid = backend.arange(theta.emission.shape[1], like=lengths)[None, :] < lengths[:, None]
    is_one = xp.abs(xp.sum(counts.emission, axis=-1) - 1.0) < MOST_MISSING
    is_off = xp.any(is_valid & ~is_one, axis=-1) & (passed.scaled > -inf)
    if bool(xp.any(is_off)):
        counts = _counted_again(backend, theta, lengths, passed, counts, is_off)
    return counts, passed.log_likelihood


def _counted_again(
    backend: Backend, theta: Theta, lengths: Array, passed: Passed, counts: Counts, is_off: Array
) -> Counts:
    """The counts, those of some sequences (B,) by array code."""
    xp, size = backend.xp, lengths.shape[0]
    places = backend.to_numpy(is_off).nonzero()[0]
    rows = backend.asarray(places, like=lengths)
    source = backend.to_numpy(backend.arange(size, like=lengths)).copy()
    source[places] = size + backend.to_numpy(backend.arange(len(places), like=lengths))

    def some(x: Array) -> Array:
        return x if x.shape[0] == 1 else xp.take(x, rows, axis=0)

    dtype = passed.begins.dtype
    own = Theta(*(some(xp.astype(x, dtype, copy=False)) for x in theta))
    parts = {name: some(getattr(passed, name)) for name in ("begins", "ends", "scales", "emission", "final", "scaled")}
    again = _counts(backend, own, some(lengths), replace(passed, **parts))
    index = backend.asarray(source, like=lengths)
    both = (xp.concat([x, xp.astype(y, x.dtype)], axis=0) for x, y in zip(counts, again, strict=True))
    return Counts(*(xp.take(x, index, axis=0) for x in both))


def _counts(backend: Backend, theta: Theta, lengths: Array, passed: Passed) -> Counts:
    """Probabilities of segments from the last to the first, by array code.

    Each is that of the step it ends at, times its share among the segments that may end there; that of a step, what
    the segment that begins next leaves of its share among the ways to begin. No message is taken from another: shares
    sum to one however large the messages are.
    """
    xp = backend.xp
    num_steps, num_states = theta.emission.shape[1:]
    size, count = lengths.shape[0], theta.duration.shape[-1]
    left = lengths[:, None] - backend.arange(num_steps, like=passed.emission)[None, :]  # steps from each to the end
    final = xp.reshape(softmax(backend, _joined(xp, passed.final)), (size, count, num_states))
    final = xp.matrix_transpose(final)
    # segments that end at t: those of one step, and what each step before adds
    first = passed.begins + passed.emission
    before = xp.concat([xp.zeros_like(passed.scales[:, :1]), passed.scales[:, :-1]], axis=-1)
    more = passed.emission - before[..., None]

    def window(x: Array) -> Array:  # (B, K, D): of the last step, the one before and so on
        return xp.permute_dims(xp.flip(x[:, num_steps - count :, :], axis=1), (0, 2, 1))

    def earlier(x: Array, value: float) -> Array:  # D steps before each
        gap = xp.full_like(x[:, :count, :], value)
        return xp.concat([gap, x[:, : num_steps - count, :]], axis=1)

    def step(carry: Any, item: Any) -> tuple[Any, Any]:
        (firsts, mores, begun, covered, starts, durations, ends, moves), given = carry, item
        end, is_last, next_first, next_more = given
        moved = starts[:, None, :] * softmax(backend, end[:, :, None] + theta.transition, axis=1)
        sums = xp.cumulative_sum(mores, axis=-1)
        sums = xp.concat([xp.zeros_like(sums[..., :1]), sums[..., :-1]], axis=-1)
        inside = xp.sum(moved, axis=-1)[..., None] * softmax(backend, firsts + sums + theta.duration)
        at_end = xp.where(is_last[:, None, None], final, 0.0)
        both = inside + at_end
        begun = begun + both
        covered = covered + xp.flip(xp.cumulative_sum(xp.flip(both, axis=-1), axis=-1), axis=-1)
        starts, posterior = begun[..., 0], covered[..., 0]
        begun, covered = (xp.concat([x[..., 1:], xp.zeros_like(x[..., :1])], axis=-1) for x in (begun, covered))
        firsts = xp.concat([firsts[..., 1:], next_first[..., None]], axis=-1)
        mores = xp.concat([mores[..., 1:], next_more[..., None]], axis=-1)
        return (firsts, mores, begun, covered, starts, durations + inside, ends + at_end, moves + moved), (posterior,)

    zeros = backend.full((size, num_states, count), 0.0, like=passed.emission)
    none = backend.full((size, num_states, num_states), 0.0, like=zeros)
    carry = (window(first), window(more), zeros, zeros, zeros[..., 0], zeros, zeros, none)
    items = (passed.ends, left == 1, earlier(first, -inf), earlier(more, 0.0))
    items = tuple(xp.flip(xp.moveaxis(x, 1, 0), axis=0) for x in items)
    found, (posteriors,) = scan_in_chunks(backend, step, carry, items, count)
    starts, durations, ends, moves = found[4:]
    return Counts(starts, moves, durations, ends, xp.moveaxis(xp.flip(posteriors, axis=0), 0, 1))


def backward_pass(
    backend: Backend,
    transition: Array,
    duration: Array,
    tail: Array,
    emission: Array,
    lengths: Array,
    kernel: str = "reference",
) -> Array:
    """Weights (B, T, K) of what follows a segment that ends at each step; -inf from each sequence's last step on.

    The arrays are those of a `Theta`, whose emissions are taken as they are: nothing is scaled.
    """
    xp, arrays = backend.xp, (transition, duration, tail, emission)
    if not backend.records(arrays) and compiled.can_run(backend, kernel, arrays):
        after = compiled.Run(transition, duration, emission, lengths).after(tail)
        return xp.astype(backend.asarray(after, like=emission), emission.dtype, copy=False)
    (size, num_steps, num_states), count = emission.shape, tail.shape[-1]
    left = lengths[:, None] - backend.arange(num_steps, like=emission)[None, :]  # steps from each to the end
    padded = xp.concat([tail, xp.full_like(tail[..., :1], -inf)], axis=-1)
    at = xp.where((left >= 1) & (left <= count), left - 1, count)
    tails = backend.take_along(xp.broadcast_to(padded, (size, *padded.shape[1:])), at[:, None, :], 2)

    def step(held: Any, place: Any) -> tuple[Any, Any]:
        # of the step after and all that follows: if d + 1 steps are of one segment, if all are, if one begins there
        (later, last, after), (e, tail, is_last, is_after) = held, place
        future = xp.where(is_last[:, None], -inf, logsumexp(backend, after[:, None, :] + transition))
        later = xp.concat([(e + future)[..., None], later[..., :-1] + e[..., None]], axis=-1)
        last = xp.where(is_last[:, None], e, last + e)
        ways = xp.stack([logsumexp(backend, later + duration), last + tail], axis=-1)
        return (later, last, xp.where(is_after[:, None], -inf, logsumexp(backend, ways))), (future,)

    empty = backend.full((size, num_states, count), -inf, like=emission)
    items = (emission, xp.matrix_transpose(tails), left == 1, left < 1)
    items = tuple(xp.flip(xp.moveaxis(x, 1, 0), axis=0) for x in items)
    _, (found,) = scan_in_chunks(backend, step, (empty, empty[..., 0], empty[..., 0]), items, count)
    return xp.moveaxis(xp.flip(found, axis=0), 0, 1)


def scan_in_chunks(
    backend: Backend, step: Callable[[Any, Any], tuple[Any, Any]], carry: Any, xs: tuple[Array, ...], length: int
) -> tuple[Any, tuple[Array, ...]]:
    """`Backend.scan` in chunks of about `length` steps, so that derivatives keep one carry a chunk, not a step."""
    xp, num_steps = backend.xp, xs[0].shape[0]
    whole = num_steps // length if length > 1 else 0
    parts: list[tuple[Array, ...]] = []
    if whole > 1:

        def chunk(carry: Any, part: Any) -> tuple[Any, Any]:
            return backend.scan(step, carry, part)

        head = tuple(xp.reshape(x[: whole * length, ...], (whole, length, *x.shape[1:])) for x in xs)
        carry, found = backend.scan(chunk, carry, head)
        parts.append(tuple(xp.reshape(y, (whole * length, *y.shape[2:])) for y in found))
        xs = tuple(x[whole * length :, ...] for x in xs)
    if xs[0].shape[0]:
        carry, found = backend.scan(step, carry, xs)
        parts.append(found)
    return carry, parts[0] if len(parts) == 1 else tuple(xp.concat(ys, axis=0) for ys in zip(*parts, strict=True))


Choose = Callable[[Array, Array | None], Array]


def trace_back(
    backend: Backend, theta: Theta, lengths: Array, passed: Passed, choose: Choose, luck: Array | None, copies: int
) -> tuple[Array, Array]:
    """Segmentations (S, B, T) from the end: states, -1 in the padding, and where segments begin.

    Args:
        choose: one index along the last axis of log weights, given numbers in [0, 1) for each.
        luck: (T, 2, S, B) such numbers; None where the choice is certain.
        copies: S, segmentations of each sequence.
    """
    xp = backend.xp
    num_steps, num_states = theta.emission.shape[1:]
    size, count = lengths.shape[0], theta.duration.shape[-1]
    duration = xp.broadcast_to(theta.duration, (size, num_states, count))
    transition = xp.matrix_transpose(xp.broadcast_to(theta.transition, (size, num_states, num_states)))
    last = xp.broadcast_to(lengths - 1, (copies, size))
    final = _joined(xp, passed.final)
    # the numbers of the last step, which makes no other choice
    chance = None if luck is None else backend.take_along(luck[:, 0, ...], last[None, ...], 0)[0, ...]
    cell = choose(xp.broadcast_to(final, (copies, *final.shape)), chance)
    # cells count states within durations
    ends_with, seen = cell % num_states, cell // num_states + 1

    def step(carry: Any, item: Any) -> tuple[Any, Any]:
        (state, left), (t, end, chance) = carry, item
        into = backend.take_along(transition[None, ...], state[..., None, None], 2)[..., 0, :]
        earlier = choose(end[None, ...] + into, None if chance is None else chance[0, ...])
        at = xp.zeros_like(last) + t
        weights = open_segments(backend, passed.begins, passed.emission, passed.scales, at, count, earlier)[..., 0]
        law = backend.take_along(duration[None, ...], earlier[..., None, None], 2)[..., 0, :]
        lasted = choose(weights + law, None if chance is None else chance[1, ...]) + 1
        is_end, is_new = t == last, left == 0
        state = xp.where(is_end, ends_with, xp.where(is_new, earlier, state))
        left = xp.where(is_end, seen, xp.where(is_new, lasted, left))
        is_inside = t <= last
        left = xp.where(is_inside, left - 1, left)
        return (state, left), (xp.where(is_inside, state, -1), is_inside & (left == 0))

    start = (xp.zeros_like(ends_with), xp.ones_like(ends_with))
    steps = backend.arange(num_steps, like=lengths)
    items: tuple[Any, ...] = (steps, xp.moveaxis(passed.ends, 1, 0), luck)
    items = tuple(None if x is None else xp.flip(x, axis=0) for x in items)
    _, (states, begins) = backend.scan(step, start, items)
    is_possible = (passed.scaled > -inf)[None, :, None]
    states, begins = (xp.moveaxis(xp.flip(x, axis=0), 0, -1) for x in (states, begins))
    return xp.where(is_possible, states, -1), begins & is_possible


def first_best(backend: Backend) -> Choose:
    """The largest weight; ties go to the first."""
    return lambda weights, luck: backend.xp.argmax(weights, axis=-1)


# the primitives


def _num_theta(encoded: str) -> int:
    return NUM_THETA


def _given(backend: Backend, arrays: Sequence[Array], lengths: Array) -> tuple[Theta, Array]:
    """Theta, and the lengths (B,) of all sequences."""
    theta = Theta(*arrays[:NUM_THETA])
    size = batch_size(x.shape[0] for x in (*theta, lengths))
    emission = backend.xp.broadcast_to(theta.emission, (size, *theta.emission.shape[1:]))
    return theta._replace(emission=emission), backend.xp.broadcast_to(lengths, (size,))


def _likelihood(backend: Backend, encoded: str, arrays: Sequence[Array]) -> tuple[Array, ...]:
    return (forward_pass(backend, *_given(backend, arrays, arrays[-1]), kernel=encoded).log_likelihood,)


def _likelihood_shapes(encoded: str, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    return ((batch_size(shape[0] for shape in shapes),),)


def _likelihood_jvp(backend: Backend, encoded: str, arrays: Any, outputs: Any, tangents: Any) -> Sequence[Any]:
    theta, lengths = list(arrays[:NUM_THETA]), arrays[-1]
    xp, size = backend.xp, batch_size(x.shape[0] for x in (*theta, lengths))
    apart = [xp.broadcast_to(x, (size, *x.shape[1:])) for x in theta]
    ones = backend.full((size,), 1.0, like=theta[-1])
    found = backend.call(STATISTICS, encoded, [*apart, ones, lengths])
    moves = filled(backend, theta, tangents)
    parts = [xp.sum(f * v, axis=tuple(range(1, f.ndim))) for f, v in zip(found[:-1], moves, strict=True)]
    return [sum(parts[1:], parts[0])]


def _likelihood_vjp(
    backend: Backend, encoded: str, arrays: Any, outputs: Any, cotangents: Any, needed: Any
) -> Sequence[Any]:
    if cotangents[0] is None:
        return [None] * NUM_THETA
    found = backend.call(STATISTICS, encoded, [*arrays[:NUM_THETA], cotangents[0], arrays[-1]])
    return [f if need else None for f, need in zip(found[:-1], needed, strict=True)]


def _statistics(backend: Backend, encoded: str, arrays: Sequence[Array]) -> tuple[Array, ...]:
    theta, lengths = _given(backend, arrays, arrays[-1])
    counts, value = counts_of(backend, theta, lengths, encoded)
    return *_weighted(backend, Theta(*arrays[:NUM_THETA]), arrays[NUM_THETA], counts), value


def _statistics_shapes(encoded: str, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    return *_gradient_shapes(encoded, shapes), *_likelihood_shapes(encoded, shapes)


def _weighted(backend: Backend, theta: Theta, scale: Array, counts: Counts) -> tuple[Array, ...]:
    """Counts times scale (B,), summed over the batch where it shares an array."""
    xp, found = backend.xp, []
    for x, one in zip(theta, counts, strict=True):
        one = multiply(backend, xp.reshape(scale, (-1, *[1] * (one.ndim - 1))), one)
        found.append(xp.sum(one, axis=0, keepdims=True) if x.shape[0] == 1 and one.shape[0] != 1 else one)
    return tuple(found)


def _statistics_jvp(backend: Backend, encoded: str, arrays: Any, outputs: Any, tangents: Any) -> Sequence[Any]:
    theta, scale, lengths = list(arrays[:NUM_THETA]), arrays[NUM_THETA], arrays[-1]
    found: list[Any] = [0.0] * NUM_THETA
    if any(t is not None for t in tangents[:-1]):
        moves = filled(backend, theta, tangents[:-1])
        found = list(backend.call(CURVATURE, encoded, [*theta, *moves, scale, lengths]))
    if tangents[-1] is not None:
        rescaled = backend.call(STATISTICS, encoded, [*theta, tangents[-1], lengths])
        found = [f + r for f, r in zip(found, rescaled[:-1], strict=True)]
    value: Any = 0.0
    if any(t is not None for t in tangents[:-1]):
        (value,) = _likelihood_jvp(backend, encoded, [*theta, lengths], (), tangents[:-1])
    return [*found, value]


def _statistics_vjp(
    backend: Backend, encoded: str, arrays: Any, outputs: Any, cotangents: Any, needed: Any
) -> Sequence[Any]:
    theta, scale, lengths = list(arrays[:NUM_THETA]), arrays[NUM_THETA], arrays[-1]
    directions = filled(backend, theta, cotangents[:-1])
    found: list[Any] = [None] * NUM_THETA
    if any(needed[:-1]) and any(c is not None for c in cotangents[:-1]):
        found = list(backend.call(CURVATURE, encoded, [*theta, *directions, scale, lengths]))
    if any(needed[:-1]) and cotangents[-1] is not None:
        slopes = backend.call(STATISTICS, encoded, [*theta, cotangents[-1], lengths])
        found = [s if f is None else f + s for f, s in zip(found, slopes[:-1], strict=True)]
    change = None
    if needed[-1]:
        (change,) = _likelihood_jvp(backend, encoded, [*theta, lengths], (), directions)
    return [*found, change]


def _curvature(backend: Backend, encoded: str, arrays: Sequence[Array]) -> tuple[Array, ...]:
    theta, moves = arrays[:NUM_THETA], arrays[NUM_THETA : 2 * NUM_THETA]
    scale, lengths = arrays[-2:]

    def statistics(*theta: Array) -> tuple[Array, ...]:
        counts, _ = counts_of(backend, *_given(backend, theta, lengths))
        return _weighted(backend, Theta(*theta), scale, counts)

    moves = [backend.xp.broadcast_to(move, x.shape) for move, x in zip(moves, theta, strict=True)]  # under vmap
    return backend.vjp(statistics, theta, moves)  # a Hessian is symmetric


def _gradient_shapes(encoded: str, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    return tuple(shapes[:NUM_THETA])


_THIRD = no_rule("the third derivative of a semi-Markov log-likelihood")

LIKELIHOOD = declare(
    Primitive(
        "semi_markov_likelihood",
        _likelihood,
        _num_theta,
        _likelihood_shapes,
        lambda encoded: (True,),
        _likelihood_jvp,
        _likelihood_vjp,
    )
)
STATISTICS = declare(
    Primitive(
        "semi_markov_statistics",
        _statistics,
        lambda encoded: NUM_THETA + 1,
        _statistics_shapes,
        lambda encoded: (True,) * (NUM_THETA + 1),
        _statistics_jvp,
        _statistics_vjp,
        num_gradients=_num_theta,
    )
)
CURVATURE = declare(
    Primitive(
        "semi_markov_curvature",
        _curvature,
        lambda encoded: 2 * NUM_THETA + 1,
        _gradient_shapes,
        lambda encoded: (True,) * NUM_THETA,
        _THIRD,
        _THIRD,
        num_gradients=_num_theta,
    )
)


def _paths(backend: Backend, encoded: str, arrays: Sequence[Array]) -> tuple[Array, ...]:
    """States and starts (B, S, T): the best segmentation, or draws where there is `luck` (B, T, 2, S)."""
    xp, (theta, lengths) = backend.xp, _given(backend, arrays, arrays[NUM_THETA])
    if len(arrays) > NUM_THETA + 1:
        luck = xp.permute_dims(arrays[-1], (1, 2, 3, 0))
        passed = forward_pass(backend, theta, lengths, kernel=encoded)
        found = trace_back(backend, theta, lengths, passed, chooser(backend), luck, luck.shape[2])
    else:
        passed = forward_pass(backend, theta, lengths, max_of, encoded)
        found = _best_path(backend, theta, lengths, passed)
    return tuple(xp.astype(xp.permute_dims(x, (1, 0, 2)), backend.index_dtype()) for x in found)


def _best_path(backend: Backend, theta: Theta, lengths: Array, passed: Passed) -> tuple[Array, Array]:
    """States and starts (1, B, T); a segment at a time where compiled code made the messages."""
    xp = backend.xp
    if passed.run is None:
        return trace_back(backend, theta, lengths, passed, first_best(backend), None, 1)
    cells = xp.argmax(xp.reshape(passed.final, (passed.final.shape[0], -1)), axis=-1)
    found = passed.run.best_path(*(backend.to_numpy(x) for x in (cells, passed.scaled > -inf)))
    states, begins = (backend.asarray(x, like=theta.emission)[None, ...] for x in found)
    return states, begins


def chooser(backend: Backend) -> Choose:
    """An index with probability in proportion to its weight."""
    return lambda weights, luck: draw(backend, weights, luck, None)


def _paths_shapes(encoded: str, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    batch, (num_steps, _) = batch_size(shape[0] for shape in shapes), shapes[NUM_THETA - 1][1:]
    copies = shapes[-1][3] if len(shapes) > NUM_THETA + 1 else 1
    return ((batch, copies, num_steps),) * 2


_NOT = no_rule("the derivative of a segmentation")

PATHS = declare(
    Primitive(
        "semi_markov_paths",
        _paths,
        lambda encoded: 0,
        _paths_shapes,
        lambda encoded: (False, False),
        _NOT,
        _NOT,
        integers=(True, True),
    )
)
