"""The chain's quantities with their derivatives: one set of rules for every model.

With theta the chain's arrays, L_b(theta) the log-likelihoods and M(theta) the messages:

    forward(theta) = L, M        its derivatives:  statistics, push, pull
    backward(theta) = M reversed                   push, pull
    statistics(theta, g) = sum over b of g_b dL_b/dtheta: posteriors and expected counts;  curvature, push
    push(theta, v) = dL v, dM v: the expectation semiring                                  curvature, statistics
    curvature(theta, v, g) = sum over b of g_b d2L_b/dtheta2 v: the expectation semiring, both ways
    pull(theta, G) = G dM: cotangents travelling against the messages

What is not listed (third derivatives of L, second ones of M) raises. Torch takes these rules; JAX differentiates
the recursion itself, whose steps keep nothing of size T x K x K.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import inf
from typing import Any

from .arrays import (
    Spec,
    Unpacked,
    at_last,
    emission_shape,
    filled,
    no_rule,
    num_theta,
    split,
    sum_over_slots,
    theta_shapes,
    unpack,
)
from .backend import Array, Backend, Primitive
from .backend.protocol import Shape, declare
from .numerics import accurate_sum, log_normalize, logsumexp, multiply, softmax
from .recursion import pull_messages
from .semiring import EXPECTATION, Message

# forward: log-likelihoods and messages


def _forward(backend: Backend, encoded: str, arrays: Sequence[Array]) -> tuple[Array, ...]:
    xp, a = backend.xp, unpack(backend, encoded, arrays)
    if (whole := a.fused()) is not None:
        fused, call = whole
        return fused.forward(call, a.final, a.spec.has_messages, meets=a.spec.meets)
    emission, top = a.centred()
    found = a.messages(a.call(emission, last_only=not a.spec.has_messages))
    end = logsumexp(backend, found.last[0] + a.final)
    total = found.total + accurate_sum(backend, top) + end
    log_likelihood = xp.where(end == -inf, -inf, xp.astype(total, emission.dtype))
    if not a.spec.has_messages:
        return (log_likelihood,)
    return log_likelihood, _met(a, emission, found.values[0]) if a.spec.meets else found.values[0]


def _met(a: Unpacked, emission: Array, messages: Array) -> Array:
    """What a kernel whose passes meet would have left: reversed messages in the late half of each sequence."""
    xp = a.backend.xp
    if emission.shape[1] < 2 or bool(xp.min(a.lengths) < 2):
        return messages
    (predicted,) = a.messages(a.call(emission, reverse=True)).values
    return xp.where((a.steps() < (a.lengths // 2)[:, None])[..., None], messages, predicted + emission)


def _forward_shapes(encoded: str, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    shape = emission_shape(encoded, shapes)
    return ((shape[0],), shape) if Spec.decode(encoded).has_messages else ((shape[0],),)


def _forward_differentiable(encoded: str) -> tuple[bool, ...]:
    spec = Spec.decode(encoded)
    return (True, spec.messages_vary) if spec.has_messages else (True,)


def _forward_jvp(backend: Backend, encoded: str, arrays: Any, outputs: Any, tangents: Any) -> Sequence[Any]:
    theta, _, constants = split(encoded, arrays)
    change, moved = backend.call(PUSH, encoded, [*theta, *filled(backend, theta, tangents), *constants])
    return change, moved if Spec.decode(encoded).messages_vary else None


def _forward_vjp(
    backend: Backend, encoded: str, arrays: Any, outputs: Any, cotangents: Any, needed: Any
) -> Sequence[Any]:
    theta, _, constants = split(encoded, arrays)
    spec = Spec.decode(encoded)
    found: list[Any] = [None] * len(theta)
    if cotangents[0] is not None:
        counted = replace(spec, has_counts=any(needed[1:-2])).encode()
        found = list(backend.call(STATISTICS, counted, [*theta, cotangents[0], *constants, *outputs[1:]]))
    if cotangents[1] is not None:
        pulled = backend.call(PULL, encoded, [*theta, cotangents[1], *constants, outputs[1]])
        found = [p if f is None else f + p for f, p in zip(found, pulled, strict=True)]
    return [f if need else None for f, need in zip(found, needed, strict=True)]


# backward: reversed messages, without their own emission


def _backward(backend: Backend, encoded: str, arrays: Sequence[Array]) -> tuple[Array, ...]:
    a = unpack(backend, encoded, arrays)
    found = a.messages(a.call(a.centred()[0], reverse=True))
    return (found.values[0],)


def _backward_jvp(backend: Backend, encoded: str, arrays: Any, outputs: Any, tangents: Any) -> Sequence[Any]:
    theta, _, constants = split(encoded, arrays)
    reverse = replace(Spec.decode(encoded), reverse=True).encode()
    return backend.call(PUSH, reverse, [*theta, *filled(backend, theta, tangents), *constants])[1:]


def _backward_vjp(
    backend: Backend, encoded: str, arrays: Any, outputs: Any, cotangents: Any, needed: Any
) -> Sequence[Any]:
    if cotangents[0] is None:
        return [None] * num_theta(encoded)
    theta, _, constants = split(encoded, arrays)
    reverse = replace(Spec.decode(encoded), reverse=True).encode()
    return backend.call(PULL, reverse, [*theta, cotangents[0], *constants, outputs[0]])


# statistics: the gradient of the log-likelihoods


def _statistics(backend: Backend, encoded: str, arrays: Sequence[Array]) -> tuple[Array, ...]:
    xp, a = backend.xp, unpack(backend, encoded, arrays, 1)
    (scale,), (messages,) = a.extras, a.saved
    if (whole := a.fused()) is not None and a.weights[0].shape[1] == 1:
        fused, call = whole
        posterior, counted = fused.statistics(call, a.final, messages, scale, a.spec.has_counts, a.spec.meets)
        counted = xp.zeros_like(a.weights[0]) if counted is None else counted
        return a.shared((posterior[:, 0, :], counted, posterior, at_last(a, posterior)))
    emission, _ = a.centred()
    (predicted,) = a.messages(a.call(emission, reverse=True)).values
    if a.spec.meets:  # the saved ones are not forward messages throughout
        (messages,) = a.messages(a.call(emission)).values
    posterior = xp.exp(a.masked(log_normalize(backend, messages + predicted), -inf))
    posterior = multiply(backend, posterior, scale[:, None, None])
    counts = tuple(xp.zeros_like(w) for w in a.weights)
    if a.spec.has_counts and emission.shape[1] > 1:

        def pairs(here: Message, there: Message) -> tuple[Array, ...]:
            return a.structure.pull(backend, here[0], a.weights, there[0])[1]

        counts = sum_over_slots(a, (messages,), (posterior,), pairs)
    return a.shared((posterior[:, 0, :], *counts, posterior, at_last(a, posterior)))


def _statistics_jvp(backend: Backend, encoded: str, arrays: Any, outputs: Any, tangents: Any) -> Sequence[Any]:
    theta, (scale,), constants = split(encoded, arrays, 1)
    found: list[Any] = [0.0] * len(theta)
    if any(t is not None for t in tangents[:-1]):
        moves = filled(backend, theta, tangents[:-1])
        found = list(backend.call(CURVATURE, encoded, [*theta, *moves, scale, *constants]))
    if tangents[-1] is not None:
        saved = arrays[len(theta) + 1 + len(constants) :]
        rescaled = backend.call(STATISTICS, encoded, [*theta, tangents[-1], *constants, *saved])
        found = [f + r for f, r in zip(found, rescaled, strict=True)]
    return found


def _statistics_vjp(
    backend: Backend, encoded: str, arrays: Any, outputs: Any, cotangents: Any, needed: Any
) -> Sequence[Any]:
    theta, (scale,), constants = split(encoded, arrays, 1)
    directions = filled(backend, theta, cotangents)
    found: list[Any] = [None] * len(theta)
    if any(needed[:-1]):
        found = list(backend.call(CURVATURE, encoded, [*theta, *directions, scale, *constants]))
    change = backend.call(PUSH, encoded, [*theta, *directions, *constants])[0] if needed[-1] else None
    return [*found, change]


# push: derivatives of log-likelihoods and messages along a direction


def _push(backend: Backend, encoded: str, arrays: Sequence[Array]) -> tuple[Array, ...]:
    xp, n = backend.xp, num_theta(encoded)
    a = unpack(backend, encoded, arrays, n)
    emission, _ = a.centred()
    reverse = a.spec.reverse
    found = a.messages(a.call_with_tangents(emission, a.extras, reverse=reverse))
    end, end_tangent = (a.theta[0], a.extras[0]) if reverse else (a.final, a.extras[-1])
    share = softmax(backend, found.last[0] + end)
    change = xp.sum(share * (found.last[1] + end_tangent), axis=-1) + xp.sum(found.scales[1], axis=-1)
    possible = xp.max(found.last[0] + end, axis=-1) > -inf
    return xp.where(possible, change, 0.0), found.values[1]


def _push_shapes(encoded: str, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    shape = emission_shape(encoded, shapes)
    return (shape[0],), shape


def _push_jvp(backend: Backend, encoded: str, arrays: Any, outputs: Any, tangents: Any) -> Sequence[Any]:
    n = num_theta(encoded)
    if any(t is not None for t in tangents[:n]):
        no_rule("forward mode over forward mode")()
    theta, _, constants = split(encoded, arrays, n)
    return backend.call(PUSH, encoded, [*theta, *filled(backend, theta, tangents[n:]), *constants])


def _push_vjp(backend: Backend, encoded: str, arrays: Any, outputs: Any, cotangents: Any, needed: Any) -> Sequence[Any]:
    n = num_theta(encoded)
    if cotangents[1] is not None:
        no_rule("the second derivative of filtered or smoothed quantities")()
    theta, directions, constants = split(encoded, arrays, n)
    bent: list[Any] = [None] * n
    along: list[Any] = [None] * n
    if any(needed[:n]):
        bent = list(backend.call(CURVATURE, encoded, [*theta, *directions, cotangents[0], *constants]))
    if any(needed[n:]):
        spec = replace(Spec.decode(encoded), has_messages=True, messages_vary=False).encode()
        _, messages = backend.call(FORWARD, spec, [*theta, *constants])
        along = list(backend.call(STATISTICS, spec, [*theta, cotangents[0], *constants, messages]))
    return [*bent, *along]


# curvature: second derivatives of the log-likelihoods along a direction


def _curvature(backend: Backend, encoded: str, arrays: Sequence[Array]) -> tuple[Array, ...]:
    xp, n = backend.xp, num_theta(encoded)
    a = unpack(backend, encoded, arrays, n + 1)
    *tangents, scale = a.extras
    emission, _ = a.centred()
    call = a.call_with_tangents(emission, tangents, reverse=False)
    ahead = a.messages(call).values
    back = a.messages(a.call_with_tangents(emission, tangents, reverse=True)).values
    posterior = xp.exp(a.masked(log_normalize(backend, ahead[0] + back[0]), -inf))
    change = ahead[1] + back[1]
    change = change - xp.sum(posterior * change, axis=-1, keepdims=True)
    bent = multiply(backend, posterior * change, scale[:, None, None])
    counts = tuple(xp.zeros_like(w) for w in a.weights)
    if emission.shape[1] > 1:

        def pairs(here: Message, there: Message) -> tuple[Array, ...]:
            _, shares = a.structure.pull(backend, here[0], a.weights, there[2])
            changes = a.structure.edges(backend, EXPECTATION, here, call.weights, there[:2])
            found = []
            for share, (_, change) in zip(shares, changes, strict=True):
                mean = xp.sum(share * change, axis=tuple(range(2, share.ndim)), keepdims=True)
                found.append(share * (change - mean) * xp.reshape(scale, (-1, *[1] * (share.ndim - 1))))
            return tuple(found)

        there = (emission + back[0], call.emission[1] + back[1], posterior)
        counts = sum_over_slots(a, ahead, there, pairs)
    return a.shared((bent[:, 0, :], *counts, bent, at_last(a, bent)))


def _curvature_jvp(backend: Backend, encoded: str, arrays: Any, outputs: Any, tangents: Any) -> Sequence[Any]:
    n = num_theta(encoded)
    if any(t is not None for t in (*tangents[:n], tangents[-1])):
        no_rule("the third derivative of a log-likelihood")()
    theta, extras, constants = split(encoded, arrays, n + 1)
    moves = filled(backend, theta, tangents[n:-1])
    return backend.call(CURVATURE, encoded, [*theta, *moves, extras[-1], *constants])


def _curvature_vjp(
    backend: Backend, encoded: str, arrays: Any, outputs: Any, cotangents: Any, needed: Any
) -> Sequence[Any]:
    n = num_theta(encoded)
    if any(needed[:n]) or needed[-1]:
        no_rule("the third derivative of a log-likelihood")()
    theta, extras, constants = split(encoded, arrays, n + 1)
    directions = filled(backend, theta, cotangents)
    # a Hessian is symmetric
    along = backend.call(CURVATURE, encoded, [*theta, *directions, extras[-1], *constants])
    return [*[None] * n, *along, None]


# pull: cotangents of messages


def _pull(backend: Backend, encoded: str, arrays: Sequence[Array]) -> tuple[Array, ...]:
    xp, a = backend.xp, unpack(backend, encoded, arrays, 1)
    (cotangent,), (values,) = a.extras, a.saved
    emission, _ = a.centred()
    call = a.call(emission, reverse=a.spec.reverse)
    cotangent = a.masked(xp.where(values == -inf, 0.0, cotangent))
    counts: tuple[Array, ...]
    if (whole := a.fused()) is not None and a.weights[0].shape[1] == 1:
        start, counted, change = whole[0].pull(call, values, cotangent)
        counts = (counted,)
    else:
        start, counts, change = pull_messages(call, values, cotangent)
    ends = (xp.zeros_like(start), start) if a.spec.reverse else (start, xp.zeros_like(start))
    return a.shared((ends[0], *counts, a.masked(change), ends[1]))


FORWARD = declare(
    Primitive("forward", _forward, num_theta, _forward_shapes, _forward_differentiable, _forward_jvp, _forward_vjp)
)
BACKWARD = declare(
    Primitive(
        "backward",
        _backward,
        num_theta,
        lambda encoded, shapes: (emission_shape(encoded, shapes),),
        lambda encoded: (True,),
        _backward_jvp,
        _backward_vjp,
    )
)
STATISTICS = declare(
    Primitive(
        "statistics",
        _statistics,
        lambda encoded: num_theta(encoded) + 1,
        theta_shapes,
        lambda encoded: (True,) * num_theta(encoded),
        _statistics_jvp,
        _statistics_vjp,
        num_gradients=num_theta,
    )
)
PUSH = declare(
    Primitive(
        "push",
        _push,
        lambda encoded: 2 * num_theta(encoded),
        _push_shapes,
        lambda encoded: (True, True),
        _push_jvp,
        _push_vjp,
    )
)
CURVATURE = declare(
    Primitive(
        "curvature",
        _curvature,
        lambda encoded: 2 * num_theta(encoded) + 1,
        theta_shapes,
        lambda encoded: (True,) * num_theta(encoded),
        _curvature_jvp,
        _curvature_vjp,
        num_gradients=num_theta,
    )
)
PULL = declare(
    Primitive(
        "pull",
        _pull,
        lambda encoded: num_theta(encoded) + 1,
        theta_shapes,
        lambda encoded: (True,) * num_theta(encoded),
        no_rule("the second derivative of filtered or smoothed quantities"),
        no_rule("the second derivative of filtered or smoothed quantities"),
        num_gradients=num_theta,
    )
)
