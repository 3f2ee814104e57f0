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

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import inf, prod
from typing import Any, NoReturn

from .backend import Array, Backend, Primitive
from .backend.protocol import Shape, declare
from .chain import Chain
from .kernels.registry import MessageCall, Messages, check_name
from .numerics import accurate_sum, centre, log_normalize, logsumexp, multiply, softmax
from .recursion import chain_messages, pull_messages
from .semiring import EXPECTATION, LOG, Message
from .structure import WORKSPACE, Structure, structure_from


@dataclass(frozen=True)
class Spec:
    """What a primitive needs to know beside its arrays, as a string for operators of array libraries."""

    key: str
    kernel: str
    is_ragged: bool
    num_weights: int
    num_tables: int
    reverse: bool = False
    has_messages: bool = True
    """Whether `forward` returns messages, or the log-likelihood alone."""
    messages_vary: bool = False
    """Whether `forward`'s messages are to be differentiated."""
    has_counts: bool = True
    """Whether `statistics` sums transition counts, or leaves zeros."""

    num_best: int = 1
    """Paths a sequence, for the primitives that return paths."""

    def encode(self) -> str:
        """The Spec as a string."""
        words = (self.key, self.kernel, *(str(int(v)) for v in tuple(vars(self).values())[2:]))
        return "|".join(words)

    @staticmethod
    @lru_cache(maxsize=1024)
    def decode(encoded: str) -> Spec:
        """The Spec that `encode` wrote."""
        key, kernel, *words = encoded.split("|")
        n = [int(word) for word in words]
        return Spec(key, kernel, bool(n[0]), n[1], n[2], bool(n[3]), bool(n[4]), bool(n[5]), bool(n[6]), n[7])


@dataclass(frozen=True)
class Unpacked:
    """A primitive's arrays by name: theta, what else it is differentiated by, and constants."""

    backend: Backend
    spec: Spec
    structure: Structure
    theta: tuple[Array, ...]
    extras: tuple[Array, ...]
    lengths: Array
    saved: tuple[Array, ...]

    @property
    def weights(self) -> tuple[Array, ...]:
        return self.theta[1:-2]

    @property
    def emission(self) -> Array:
        return self.backend.xp.broadcast_to(self.theta[-2], (self.lengths.shape[0], *self.theta[-2].shape[1:]))

    @property
    def final(self) -> Array:
        return self.theta[-1]

    def masked(self, x: Array, value: float = 0.0) -> Array:
        """(B, T, ...) with `value` in the padding."""
        if not self.spec.is_ragged:
            return x
        ok = self.steps() < self.lengths[:, None]
        return self.backend.xp.where(ok if x.ndim == 2 else ok[..., None], x, value)

    def is_last(self) -> Array:
        return self.steps() == self.lengths[:, None] - 1

    def steps(self) -> Array:
        """(1, T): 0..T-1."""
        return self.backend.arange(self.emission.shape[1], like=self.emission)[None, :]

    def centred(self) -> tuple[Array, Array]:
        """`numerics.centre` of the emissions, 0 in the padding."""
        return centre(self.backend, self.masked(self.emission))

    def call(self, emission: Array, *, reverse: bool = False, last_only: bool = False) -> MessageCall:
        """Forward messages with their emission, or reversed ones without."""
        return MessageCall(
            backend=self.backend,
            semiring=LOG,
            structure=self.structure,
            weights=tuple((w,) for w in self.weights),
            initial=(self.final if reverse else self.theta[0],),
            emission=(emission,),
            lengths=self.lengths if self.spec.is_ragged else None,
            reverse=reverse,
            include_emission=not reverse,
            last_only=last_only,
        )

    def call_with_tangents(self, emission: Array, tangents: Sequence[Array], *, reverse: bool) -> MessageCall:
        """The same in the expectation semiring, along `tangents` of theta."""
        start = (self.final, tangents[-1]) if reverse else (self.theta[0], tangents[0])
        return replace(
            self.call(emission, reverse=reverse),
            semiring=EXPECTATION,
            weights=tuple(zip(self.weights, tangents[1:-2], strict=True)),
            initial=tuple(self.backend.xp.broadcast_arrays(*start)),
            emission=(emission, self.masked(tangents[-2])),
        )

    def messages(self, call: MessageCall) -> Messages:
        return chain_messages(call, self.spec.kernel)

    def shared(self, gradients: Sequence[Array]) -> tuple[Array, ...]:
        """Gradients of theta (B, ...), summed over the batch where it shares an array."""
        xp = self.backend.xp
        parts = zip(self.theta, gradients, strict=True)
        return tuple(xp.sum(g, axis=0, keepdims=True) if x.shape[0] == 1 and g.shape[0] > 1 else g for x, g in parts)


def unpack(backend: Backend, encoded: str, arrays: Sequence[Array], num_extras: int = 0) -> Unpacked:
    """A primitive's arrays by name."""
    spec = Spec.decode(encoded)
    n = spec.num_weights + 3
    theta, extras, rest = tuple(arrays[:n]), tuple(arrays[n : n + num_extras]), tuple(arrays[n + num_extras :])
    tables = tuple(t[0, ...] for t in rest[1 : 1 + spec.num_tables])
    structure = structure_from(spec.key, tables)
    lengths = backend.xp.broadcast_to(rest[0], (max(x.shape[0] for x in arrays),))
    return Unpacked(backend, spec, structure, theta, extras, lengths, rest[1 + spec.num_tables :])


@dataclass(frozen=True)
class ChainArrays:
    """A chain as the primitives take it."""

    spec: Spec
    theta: tuple[Array, ...]
    constants: tuple[Array, ...]


def chain_arrays(chain: Chain, kernel: str) -> ChainArrays:
    """A chain as the primitives take it."""
    check_name(kernel)
    tables = tuple(table[None, ...] for table in chain.structure.tables)
    spec = Spec(chain.structure.key, kernel, chain.is_ragged, len(chain.weights), len(tables))
    return ChainArrays(spec, (chain.initial, *chain.weights, chain.emission, chain.final), (chain.lengths, *tables))


def _num_theta(encoded: str) -> int:
    return Spec.decode(encoded).num_weights + 3


def emission_shape(encoded: str, shapes: Sequence[Shape]) -> Shape:
    """(B, T, K), from the shapes of a primitive's arrays."""
    return (max(shape[0] for shape in shapes), *shapes[Spec.decode(encoded).num_weights + 1][1:])


def _theta_shapes(encoded: str, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    return tuple(shapes[: _num_theta(encoded)])


def _split(encoded: str, arrays: Sequence[Array], num_extras: int = 0) -> tuple[list[Array], list[Array], list[Array]]:
    """theta, extras and constants (lengths and tables, without what was saved)."""
    spec, n = Spec.decode(encoded), _num_theta(encoded)
    rest = list(arrays[n + num_extras :])
    return list(arrays[:n]), list(arrays[n : n + num_extras]), rest[: 1 + spec.num_tables]


def _filled(backend: Backend, arrays: Sequence[Array], tangents: Sequence[Any]) -> list[Array]:
    return [backend.xp.zeros_like(x) if t is None else t for x, t in zip(arrays, tangents, strict=False)]


def no_rule(what: str) -> Callable[..., NoReturn]:
    """A rule that raises: `what` has none."""

    def rule(*arguments: Any) -> NoReturn:
        raise NotImplementedError(
            f"{what} is not implemented; differentiate a plain recursion of your own, or use JAX, which derives it"
        )

    return rule


# forward: log-likelihoods and messages


def _forward(backend: Backend, encoded: str, arrays: Sequence[Array]) -> tuple[Array, ...]:
    xp, a = backend.xp, unpack(backend, encoded, arrays)
    emission, top = a.centred()
    found = a.messages(a.call(emission, last_only=not a.spec.has_messages))
    end = logsumexp(backend, found.last[0] + a.final)
    total = found.total + accurate_sum(backend, top) + end
    log_likelihood = xp.where(end == -inf, -inf, xp.astype(total, emission.dtype))
    if not a.spec.has_messages:
        return (log_likelihood,)
    return log_likelihood, found.values[0]


def _forward_shapes(encoded: str, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    shape = emission_shape(encoded, shapes)
    return ((shape[0],), shape) if Spec.decode(encoded).has_messages else ((shape[0],),)


def _forward_differentiable(encoded: str) -> tuple[bool, ...]:
    spec = Spec.decode(encoded)
    return (True, spec.messages_vary) if spec.has_messages else (True,)


def _forward_jvp(backend: Backend, encoded: str, arrays: Any, outputs: Any, tangents: Any) -> Sequence[Any]:
    theta, _, constants = _split(encoded, arrays)
    change, moved = backend.call(PUSH, encoded, [*theta, *_filled(backend, theta, tangents), *constants])
    return change, moved if Spec.decode(encoded).messages_vary else None


def _forward_vjp(
    backend: Backend, encoded: str, arrays: Any, outputs: Any, cotangents: Any, needed: Any
) -> Sequence[Any]:
    theta, _, constants = _split(encoded, arrays)
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
    theta, _, constants = _split(encoded, arrays)
    reverse = replace(Spec.decode(encoded), reverse=True).encode()
    return backend.call(PUSH, reverse, [*theta, *_filled(backend, theta, tangents), *constants])[1:]


def _backward_vjp(
    backend: Backend, encoded: str, arrays: Any, outputs: Any, cotangents: Any, needed: Any
) -> Sequence[Any]:
    if cotangents[0] is None:
        return [None] * _num_theta(encoded)
    theta, _, constants = _split(encoded, arrays)
    reverse = replace(Spec.decode(encoded), reverse=True).encode()
    return backend.call(PULL, reverse, [*theta, cotangents[0], *constants, outputs[0]])


# statistics: the gradient of the log-likelihoods


def _statistics(backend: Backend, encoded: str, arrays: Sequence[Array]) -> tuple[Array, ...]:
    xp, a = backend.xp, unpack(backend, encoded, arrays, 1)
    (scale,), (messages,) = a.extras, a.saved
    emission, _ = a.centred()
    (predicted,) = a.messages(a.call(emission, reverse=True)).values
    posterior = xp.exp(a.masked(log_normalize(backend, messages + predicted), -inf))
    posterior = multiply(backend, posterior, scale[:, None, None])
    counts = tuple(xp.zeros_like(w) for w in a.weights)
    if a.spec.has_counts and emission.shape[1] > 1:

        def pairs(here: Message, there: Message) -> tuple[Array, ...]:
            return a.structure.pull(backend, here[0], a.weights, there[0])[1]

        counts = sum_over_slots(a, (messages,), (posterior,), pairs)
    return a.shared((posterior[:, 0, :], *counts, posterior, _at_last(a, posterior)))


def _statistics_jvp(backend: Backend, encoded: str, arrays: Any, outputs: Any, tangents: Any) -> Sequence[Any]:
    theta, (scale,), constants = _split(encoded, arrays, 1)
    found: list[Any] = [0.0] * len(theta)
    if any(t is not None for t in tangents[:-1]):
        moves = _filled(backend, theta, tangents[:-1])
        found = list(backend.call(CURVATURE, encoded, [*theta, *moves, scale, *constants]))
    if tangents[-1] is not None:
        saved = arrays[len(theta) + 1 + len(constants) :]
        rescaled = backend.call(STATISTICS, encoded, [*theta, tangents[-1], *constants, *saved])
        found = [f + r for f, r in zip(found, rescaled, strict=True)]
    return found


def _statistics_vjp(
    backend: Backend, encoded: str, arrays: Any, outputs: Any, cotangents: Any, needed: Any
) -> Sequence[Any]:
    theta, (scale,), constants = _split(encoded, arrays, 1)
    directions = _filled(backend, theta, cotangents)
    found: list[Any] = [None] * len(theta)
    if any(needed[:-1]):
        found = list(backend.call(CURVATURE, encoded, [*theta, *directions, scale, *constants]))
    change = backend.call(PUSH, encoded, [*theta, *directions, *constants])[0] if needed[-1] else None
    return [*found, change]


# push: derivatives of log-likelihoods and messages along a direction


def _push(backend: Backend, encoded: str, arrays: Sequence[Array]) -> tuple[Array, ...]:
    xp, n = backend.xp, _num_theta(encoded)
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
    n = _num_theta(encoded)
    if any(t is not None for t in tangents[:n]):
        no_rule("forward mode over forward mode")()
    theta, _, constants = _split(encoded, arrays, n)
    return backend.call(PUSH, encoded, [*theta, *_filled(backend, theta, tangents[n:]), *constants])


def _push_vjp(backend: Backend, encoded: str, arrays: Any, outputs: Any, cotangents: Any, needed: Any) -> Sequence[Any]:
    n = _num_theta(encoded)
    if cotangents[1] is not None:
        no_rule("the second derivative of filtered or smoothed quantities")()
    theta, directions, constants = _split(encoded, arrays, n)
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
    xp, n = backend.xp, _num_theta(encoded)
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
    return a.shared((bent[:, 0, :], *counts, bent, _at_last(a, bent)))


def _curvature_jvp(backend: Backend, encoded: str, arrays: Any, outputs: Any, tangents: Any) -> Sequence[Any]:
    n = _num_theta(encoded)
    if any(t is not None for t in (*tangents[:n], tangents[-1])):
        no_rule("the third derivative of a log-likelihood")()
    theta, extras, constants = _split(encoded, arrays, n + 1)
    moves = _filled(backend, theta, tangents[n:-1])
    return backend.call(CURVATURE, encoded, [*theta, *moves, extras[-1], *constants])


def _curvature_vjp(
    backend: Backend, encoded: str, arrays: Any, outputs: Any, cotangents: Any, needed: Any
) -> Sequence[Any]:
    n = _num_theta(encoded)
    if any(needed[:n]) or needed[-1]:
        no_rule("the third derivative of a log-likelihood")()
    theta, extras, constants = _split(encoded, arrays, n + 1)
    directions = _filled(backend, theta, cotangents)
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
    start, counts, change = pull_messages(call, values, cotangent)
    ends = (xp.zeros_like(start), start) if a.spec.reverse else (start, xp.zeros_like(start))
    return a.shared((ends[0], *counts, a.masked(change), ends[1]))


# Sums over the T-1 slots between steps


def _at_last(a: Unpacked, x: Array, empty: float = 0.0) -> Array:
    """(B, T, K) at each sequence's last step."""
    if not a.spec.is_ragged:
        return x[:, -1, :]
    xp = a.backend.xp
    found = xp.where(a.is_last()[..., None], x, empty)
    return xp.sum(found, axis=1) if empty == 0 else xp.max(found, axis=1)


def sum_over_slots(
    a: Unpacked,
    here: Message,
    there: Message,
    pairs: Callable[[Message, Message], tuple[Array, ...]],
    *,
    is_per_sequence: bool = False,
) -> tuple[Array, ...]:
    """Sums of `pairs` over neighbouring steps, in pieces of the time axis, so that no T x K x K array is made.

    Args:
        here, there: (B, T, K) each, read at a transition's first and second step.
        pairs: takes pieces (B, slots, K) of them; gives, for each weight array, (B, slots, *base).
        is_per_sequence: give (B,), instead of sums over the slots where one slot serves all, and over the batch where
            it shares the weights.
    """
    backend, xp = a.backend, a.backend.xp
    here, there = tuple(v[:, :-1, :] for v in here), tuple(v[:, 1:, :] for v in there)
    batch, num_slots, _ = here[0].shape
    is_constant = a.weights[0].shape[1] == 1

    def total(here: Message, there: Message) -> tuple[Array, ...]:
        found = pairs(here, there)
        if a.spec.is_ragged and not is_constant:  # slots past a length may hold anything
            ok = (a.steps() < a.lengths[:, None])[:, 1:]
            found = tuple(xp.where(xp.reshape(ok, (*ok.shape, *[1] * (p.ndim - 2))), p, 0.0) for p in found)
        if is_per_sequence:
            return tuple(xp.sum(xp.reshape(p, (p.shape[0], -1)), axis=-1) for p in found)
        if is_constant:
            found = tuple(xp.sum(p, axis=1, keepdims=True) for p in found)
        if a.weights[0].shape[0] == 1:
            found = tuple(xp.sum(p, axis=0, keepdims=True) for p in found)
        return found

    largest = max(prod(w.shape[2:]) for w in a.weights)
    length = max(1, max(WORKSPACE, prod(here[0].shape)) // max(1, batch * largest))
    if not is_constant or length >= num_slots:
        return total(here, there)
    whole = num_slots // length * length

    def pieces(v: Array) -> Array:
        v = xp.reshape(v[:, :whole, :], (batch, whole // length, length, v.shape[2]))
        return xp.permute_dims(v, (1, 0, 2, 3))

    def step(sums: Any, piece: Any) -> tuple[Any, None]:
        return tuple(s + p for s, p in zip(sums, total(*piece), strict=True)), None

    sums: Any = (xp.zeros_like(here[0][:, 0, 0]),) if is_per_sequence else tuple(xp.zeros_like(w) for w in a.weights)
    sums, _ = backend.scan(step, sums, (tuple(pieces(v) for v in here), tuple(pieces(v) for v in there)))
    if whole < num_slots:
        rest = total(tuple(v[:, whole:, :] for v in here), tuple(v[:, whole:, :] for v in there))
        sums = tuple(s + p for s, p in zip(sums, rest, strict=True))
    return tuple(sums)


# entropy of the states given the observations


def _entropy(backend: Backend, encoded: str, arrays: Sequence[Array]) -> tuple[Array, ...]:
    """H(z) = H(z_last) + sum of H(z_t given z_{t+1}, x_0..t): terms that are all positive, so none cancel."""
    xp, a = backend.xp, unpack(backend, encoded, arrays)
    emission, _ = a.centred()
    call = a.call(emission)
    (messages,), (back,) = a.messages(call).values, a.messages(a.call(emission, reverse=True)).values
    log_posterior = a.masked(log_normalize(backend, messages + back), -inf)
    last = _at_last(a, log_posterior, -inf)
    entropy = -xp.sum(multiply(backend, xp.exp(last), last), axis=-1)
    if emission.shape[1] == 1:
        return (entropy,)
    slots = a.structure.prepare(backend, LOG, call.weights, 0)
    (predicted,) = a.structure.contract(backend, LOG, (messages[:, :-1, :],), slots)
    predicted = xp.where(predicted == -inf, 0.0, predicted)
    predicted = xp.concat([predicted[:, :1, :], predicted], axis=1)  # the first row is not read

    def terms(here: Message, there: Message) -> tuple[Array, ...]:
        _, (pair,) = a.structure.pull(backend, here[0], a.weights, there[0])
        ((log_share,),) = a.structure.edges(backend, LOG, here, call.weights, there[1:])
        return (-multiply(backend, pair, log_share),)

    (conditional,) = sum_over_slots(a, (messages,), (xp.exp(log_posterior), -predicted), terms, is_per_sequence=True)
    return (entropy + conditional,)


def _entropy_vjp(
    backend: Backend, encoded: str, arrays: Any, outputs: Any, cotangents: Any, needed: Any
) -> Sequence[Any]:
    """H = L - theta . dL/dtheta, so that dH/dtheta = -(d2L/dtheta2) theta."""
    theta, _, constants = _split(encoded, arrays)
    found = backend.call(CURVATURE, encoded, [*theta, *_finite(backend, theta), cotangents[0], *constants])
    return [-f for f in found]


def _entropy_jvp(backend: Backend, encoded: str, arrays: Any, outputs: Any, tangents: Any) -> Sequence[Any]:
    xp = backend.xp
    theta, _, constants = _split(encoded, arrays)
    size = theta[-2].shape[0]
    whole = [xp.broadcast_to(x, (size, *x.shape[1:])) for x in theta]
    ones = backend.full((size,), 1.0, like=theta[-2])
    bent = backend.call(CURVATURE, encoded, [*whole, *_finite(backend, whole), ones, *constants])
    moves = _filled(backend, theta, tangents)
    return [-sum(xp.sum(xp.reshape(b * v, (size, -1)), axis=-1) for b, v in zip(bent, moves, strict=True))]


def _finite(backend: Backend, theta: Sequence[Array]) -> list[Array]:
    """theta as a direction: emissions centred, which changes no curvature, and 0 where nothing can move."""
    xp = backend.xp
    moved = [*theta[:-2], centre(backend, theta[-2])[0], theta[-1]]
    return [xp.where(xp.abs(x) < inf, x, 0.0) for x in moved]


FORWARD = declare(
    Primitive("forward", _forward, _num_theta, _forward_shapes, _forward_differentiable, _forward_jvp, _forward_vjp)
)
BACKWARD = declare(
    Primitive(
        "backward",
        _backward,
        _num_theta,
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
        lambda encoded: _num_theta(encoded) + 1,
        _theta_shapes,
        lambda encoded: (True,) * _num_theta(encoded),
        _statistics_jvp,
        _statistics_vjp,
        num_gradients=_num_theta,
    )
)
PUSH = declare(
    Primitive(
        "push",
        _push,
        lambda encoded: 2 * _num_theta(encoded),
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
        lambda encoded: 2 * _num_theta(encoded) + 1,
        _theta_shapes,
        lambda encoded: (True,) * _num_theta(encoded),
        _curvature_jvp,
        _curvature_vjp,
        num_gradients=_num_theta,
    )
)
PULL = declare(
    Primitive(
        "pull",
        _pull,
        lambda encoded: _num_theta(encoded) + 1,
        _theta_shapes,
        lambda encoded: (True,) * _num_theta(encoded),
        no_rule("the second derivative of filtered or smoothed quantities"),
        no_rule("the second derivative of filtered or smoothed quantities"),
        num_gradients=_num_theta,
    )
)
ENTROPY = declare(
    Primitive(
        "entropy",
        _entropy,
        _num_theta,
        lambda encoded, shapes: ((emission_shape(encoded, shapes)[0],),),
        lambda encoded: (True,),
        _entropy_jvp,
        _entropy_vjp,
    )
)
