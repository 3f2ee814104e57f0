"""THE recursion: messages along a chain in any semiring, and the way back along it.

Everything else in the library is made of `chain_messages` and `traceback`. The backward pass is the same
recursion on the transposed transition, reversed. Notation: Rabiner 1989; alpha are forward messages with their
emission, beta reversed ones without.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from .backend import Array, Backend
from .kernels.registry import Kernel, MessageCall, Messages, register, select
from .numerics import accurate_sum
from .semiring import Message, Semiring
from .structure import Structure, Weights, insert_axes


class Items(NamedTuple):
    """What each step after the first brings, time on the leading axis, in the order of travel."""

    emission: Message
    weights: Weights | None
    is_valid: Array | None
    """Whether a transition leads into the step."""


class Travel(NamedTuple):
    """A chain laid out in the order of travel."""

    structure: Structure
    constant: Weights | None
    """Prepared weights, where one slot serves every step."""
    predicted: Message
    """What the first step starts from."""
    first: Message
    first_scale: Message
    items: Items


def chain_messages(call: MessageCall, kernel: str = "auto") -> Messages:
    """Messages of all steps, normalised a step at a time, their log scales apart.

    m_0 = initial + e_0 and m_t = (m_{t-1} times W_{t-1}) + e_t, in the semiring; with `reverse`, from the last
    step to the first along transposed W. No transition leads into or out of a step beyond a sequence's length,
    whose emissions the caller sets to 0.
    """
    return select(kernel, call).messages(call)


def lay_out(call: MessageCall) -> Travel:
    """Bring a call to the order of travel, with what each step needs ready."""
    backend, semiring, structure, weights = call.backend, call.semiring, call.structure, call.weights
    xp = backend.xp
    is_constant = weights[0][0].shape[1] == 1
    is_valid = None
    if call.lengths is not None:
        is_valid = (1 + backend.arange(call.num_steps - 1, like=call.lengths))[:, None] < call.lengths
    emission = tuple(_time_first(backend, e) for e in call.emission)
    if call.reverse:
        structure, weights = structure.transposed(backend, weights)
        emission = tuple(xp.flip(e, axis=0) for e in emission)
        is_valid = None if is_valid is None else xp.flip(is_valid, axis=0)
        if not is_constant:
            weights = tuple(tuple(xp.flip(w, axis=1) for w in part) for part in weights)
    weights = structure.prepare(backend, semiring, weights, semiring.depth)
    if is_constant:
        weights = tuple(tuple(w[:, 0, ...] for w in part) for part in weights)
    else:
        weights = tuple(tuple(_time_first(backend, w) for w in part) for part in weights)
    shape = emission[0].shape[1:]
    predicted = semiring.lift(backend, tuple(xp.broadcast_to(x, shape) for x in call.initial))
    emission = tuple(insert_axes(backend, e, semiring.depth, 1) for e in emission)
    if is_valid is not None:
        is_valid = insert_axes(backend, is_valid, semiring.depth + 1, 0)
    first = tuple(x + e[0, ...] for x, e in zip(predicted, emission, strict=True))
    first, first_scale = semiring.normalise(backend, first)
    items = Items(tuple(e[1:, ...] for e in emission), None if is_constant else weights, is_valid)
    return Travel(structure, weights if is_constant else None, predicted, first, first_scale, items)


class Run(NamedTuple):
    """Messages after each item, their scales, and the last one."""

    values: Message | None
    scales: Message
    last: Message


def run(
    backend: Backend,
    semiring: Semiring,
    structure: Structure,
    constant: Weights | None,
    message: Message,
    items: Items,
    *,
    include_emission: bool = True,
    last_only: bool = False,
) -> Run:
    """The loop over time."""
    xp = backend.xp

    def step(carry: Message, item: Items) -> tuple[Message, Any]:
        weights = constant if item.weights is None else item.weights
        assert weights is not None
        predicted = structure.contract(backend, semiring, carry, weights)
        if item.is_valid is not None:
            moves = zip(predicted, carry, strict=True)
            predicted = tuple(xp.where(item.is_valid, new, old) for new, old in moves)
        moved = tuple(x + e for x, e in zip(predicted, item.emission, strict=True))
        moved, scale = semiring.normalise(backend, moved)
        kept = moved if include_emission else predicted
        return moved, (None if last_only else kept, scale)

    last, (values, scales) = backend.scan(lambda carry, item: step(carry, Items(*item)), message, tuple(items))
    return Run(values, scales, last)


def reference_messages(call: MessageCall) -> Messages:
    """One step after the other."""
    backend, semiring = call.backend, call.semiring
    travel = lay_out(call)
    if call.num_steps == 1:
        return collect(call, travel, None)
    found = run(
        backend,
        semiring,
        travel.structure,
        travel.constant,
        travel.first,
        travel.items,
        include_emission=call.include_emission,
        last_only=call.last_only,
    )
    return collect(call, travel, found)


def collect(call: MessageCall, travel: Travel, found: Run | None) -> Messages:
    """Messages from the first step's and those of the run over the others."""
    backend = call.backend
    xp = backend.xp

    def joined(first: Array, rest: Array | None) -> Array:
        whole = first[None, ...] if rest is None else xp.concat([first[None, ...], rest], axis=0)
        return _batch_first(backend, xp.flip(whole, axis=0) if call.reverse else whole)

    rest: Any = (None,) * len(travel.first)
    first_scale = travel.first_scale
    scales = tuple(
        xp.reshape(joined(a, b), call.emission[0].shape[:2])
        for a, b in zip(first_scale, rest if found is None else found.scales, strict=True)
    )
    lowest = xp.finfo(scales[0].dtype).min
    scales = (xp.where(scales[0] == lowest, 0.0, scales[0]), *scales[1:])
    total = accurate_sum(backend, scales[0])
    last = travel.first if found is None else found.last
    if call.last_only:
        return Messages((), (), total, last)
    first = travel.first if call.include_emission else travel.predicted
    later = rest if found is None or found.values is None else found.values
    values = tuple(joined(a, b) for a, b in zip(first, later, strict=True))
    return Messages(values, scales, total, last)


Choose = Callable[[Backend, Array, Any, Array], Array]
"""(log weights of the candidates (..., C), one step's source of chance, ranks (...)) to one candidate (...)."""


def traceback(
    backend: Backend,
    structure: Structure,
    weights: tuple[Array, ...],
    messages: Array,
    final: Array,
    lengths: Array | None,
    choose: Choose,
    *,
    chance: Array | None = None,
    rank: Array | None = None,
    copies: int | None = None,
) -> Array:
    """States from the last step to the first, each chosen among the ways into the one after it.

    Args:
        messages: forward messages (B, T, K), or (B, T, k, K) of the k best.
        final: (B or 1, K).
        choose: argmax gives the best path; a draw from the candidates gives a sample.
        chance: (T, ..., B) passed to `choose` a step at a time.
        rank: (k, B) which of the k best each copy follows.
        copies: leading size of the result, for several paths a sequence.

    Returns:
        (B, T), or (copies, B, T); steps beyond a length repeat its last state.
    """
    xp = backend.xp
    is_best_list = messages.ndim == 4
    messages = xp.permute_dims(messages, (1, 0, 3, 2)) if is_best_list else _time_first(backend, messages)[..., None]
    depth, num_steps = messages.shape[-1], messages.shape[0]
    lead = (messages.shape[1],) if copies is None else (copies, messages.shape[1])
    if rank is None:
        rank = backend.full(lead, 0, like=messages, dtype=backend.index_dtype())

    def pick(terms: Array, luck: Any, rank: Array) -> tuple[Array, Array]:
        terms = xp.broadcast_to(terms, (*lead, *terms.shape[-2:]))
        place = choose(backend, xp.reshape(terms, (*lead, terms.shape[-2] * terms.shape[-1])), luck, rank)
        return place // depth, place % depth

    state, rank = pick(messages[-1, ...] + final[..., None], None if chance is None else chance[-1, ...], rank)
    if num_steps == 1:
        return state[..., None]

    is_constant = weights[0].shape[1] == 1
    constant = tuple(w[:, 0, ...] for w in weights)
    flipped = None if is_constant else tuple(xp.flip(_time_first(backend, w), axis=0) for w in weights)
    is_valid = None
    if lengths is not None:
        is_valid = xp.flip((1 + backend.arange(num_steps - 1, like=lengths))[:, None] < lengths, axis=0)
    luck = None if chance is None else xp.flip(chance[:-1, ...], axis=0)

    def step(carry: Any, item: Any) -> tuple[Any, Array]:
        message, slot, ok, luck = item
        state, rank = carry
        log_weights, sources = structure.incoming(backend, constant if slot is None else slot, state)
        if sources is not None:
            message = backend.take_along(message[None, ...] if copies is not None else message, sources[..., None], -2)
        place, found = pick(message + log_weights[..., None], luck, rank)
        if sources is not None:
            place = backend.take_along(sources, place[..., None], -1)[..., 0]
        if ok is not None:
            place, found = xp.where(ok, place, state), xp.where(ok, found, rank)
        return (place, found), place

    items = (xp.flip(messages[:-1, ...], axis=0), flipped, is_valid, luck)
    _, earlier = backend.scan(step, (state, rank), items)
    path = xp.concat([xp.flip(earlier, axis=0), state[None, ...]], axis=0)
    return xp.permute_dims(path, (*range(1, path.ndim), 0))


def pull_messages(call: MessageCall, values: Array, cotangent: Array) -> tuple[Array, tuple[Array, ...], Array]:
    """Cotangents of the initial message, the weights and the emissions, from that of the messages.

    The transposed derivative of `chain_messages` in the log semiring: cotangents travel against the messages,
    split among the ways into a state by each way's share, so that nothing grows or underflows.
    `values` are the messages of `call`; adding one number to all states of a step changes no consumer of theirs.
    """
    backend, structure = call.backend, call.structure
    xp = backend.xp
    weights: Weights = call.weights
    emission, lengths, num_steps = call.emission[0], call.lengths, call.num_steps
    is_constant = weights[0][0].shape[1] == 1
    is_valid = None
    if lengths is not None:
        is_valid = (1 + backend.arange(num_steps - 1, like=lengths))[:, None] < lengths
    messages = values if call.include_emission else values + emission
    messages, cotangent = _time_first(backend, messages), _time_first(backend, cotangent)
    if call.reverse:
        structure, weights = structure.transposed(backend, weights)
        messages, cotangent = xp.flip(messages, axis=0), xp.flip(cotangent, axis=0)
        is_valid = None if is_valid is None else xp.flip(is_valid, axis=0)
        if not is_constant:
            weights = tuple(tuple(xp.flip(w, axis=1) for w in part) for part in weights)
    # from here on the messages' order of travel is forward; the scan runs against it
    slots = None
    if not is_constant:
        slots = tuple(xp.flip(_time_first(backend, part[0]), axis=0) for part in weights)
    constant = tuple(part[0][:, 0, ...] for part in weights) if is_constant else ()
    shared = weights[0][0].shape[0] == 1

    def step(carry: Any, item: Any) -> tuple[Any, Any]:
        onward, totals = carry
        message, given, slot, ok = item
        here = onward + given if call.include_emission else onward
        arrived = here if call.include_emission else here + given
        back, pairs = structure.pull(backend, message, constant if slot is None else slot, arrived)
        if ok is not None:
            back = xp.where(ok, back, arrived)
            pairs = tuple(xp.where(insert_axes(backend, ok, p.ndim - 2, 0), p, 0.0) for p in pairs)
        if shared:
            pairs = tuple(xp.sum(p, axis=0, keepdims=True) for p in pairs)
        if is_constant:
            return (back, tuple(a + b for a, b in zip(totals, pairs, strict=True))), (here, None)
        return (back, totals), (here, pairs)

    totals = tuple(xp.zeros_like(w) for w in constant)
    onward = xp.zeros_like(messages[0, ...])
    later, pairs = None, None
    if num_steps > 1:
        ok = None if is_valid is None else xp.flip(is_valid, axis=0)[..., None]
        items = (xp.flip(messages[:-1, ...], axis=0), xp.flip(cotangent[1:, ...], axis=0), slots, ok)
        (onward, totals), (later, pairs) = backend.scan(step, (onward, totals), items)
    here = onward + cotangent[0, ...] if call.include_emission else onward
    initial = here if call.include_emission else here + cotangent[0, ...]
    whole = here[None, ...] if later is None else xp.concat([here[None, ...], xp.flip(later, axis=0)], axis=0)
    if is_constant:
        found = tuple(t[:, None, ...] for t in totals)
    elif pairs is None:
        found = tuple(xp.zeros_like(part[0]) for part in weights)
    else:
        found = tuple(_batch_first(backend, xp.flip(p, axis=0)) for p in pairs)
    if call.reverse:
        whole = xp.flip(whole, axis=0)
        if not is_constant:
            found = tuple(xp.flip(w, axis=1) for w in found)
        _, turned = structure.transposed(backend, tuple((w,) for w in found))
        found = tuple(part[0] for part in turned)
    return initial, found, _batch_first(backend, whole)


def _time_first(backend: Backend, x: Array) -> Array:
    return backend.xp.permute_dims(x, (1, 0, *range(2, x.ndim)))


_batch_first = _time_first


register(Kernel("reference", lambda call: 0, lambda call: None, reference_messages))
