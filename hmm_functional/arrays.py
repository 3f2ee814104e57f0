"""How the chain's primitives take their arrays: a chain as flat arrays and a string, and back by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from math import prod
from typing import Any, NoReturn

from .backend import Array, Backend
from .backend.protocol import Shape, batch_size
from .chain import Chain
from .edges import structure_from
from .kernels.registry import Fused, MessageCall, Messages, check_name, select
from .numerics import centre
from .recursion import chain_messages
from .semiring import EXPECTATION, LOG, Message
from .structure import WORKSPACE, Structure


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
    meets: bool = False
    """Whether `forward` leaves messages, for `statistics` alone, that meet in the middle of each sequence."""

    def encode(self) -> str:
        """The Spec as a string."""
        words = (self.key, self.kernel, *(str(int(v)) for v in tuple(vars(self).values())[2:]))
        return "|".join(words)

    @staticmethod
    @lru_cache(maxsize=1024)
    def decode(encoded: str) -> Spec:
        """The Spec that `encode` wrote."""
        key, kernel, *words = encoded.split("|")
        kinds = (bool if field.type == "bool" else int for field in fields(Spec)[2:])
        values: list[Any] = [kind(int(word)) for kind, word in zip(kinds, words, strict=True)]
        return Spec(key, kernel, *values)


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

    def fused(self) -> tuple[Fused, MessageCall] | None:
        """Whole quantities from the kernel that serves this chain, if it has them, and the call they take."""
        if self.backend.form((*self.extras, *self.saved)) is None:
            return None
        theta = (*self.theta[:-2], self.emission, self.final)
        lengths = self.lengths if self.spec.is_ragged else None
        return _fused(self.backend, self.structure, theta, lengths, self.spec.kernel)

    def messages(self, call: MessageCall) -> Messages:
        return chain_messages(call, self.spec.kernel)

    def shared(self, gradients: Sequence[Array]) -> tuple[Array, ...]:
        """Gradients of theta (B, ...), summed over the batch where it shares an array."""
        xp = self.backend.xp
        parts = zip(self.theta, gradients, strict=True)
        return tuple(xp.sum(g, axis=0, keepdims=True) if x.shape[0] == 1 and g.shape[0] != 1 else g for x, g in parts)


def unpack(backend: Backend, encoded: str, arrays: Sequence[Array], num_extras: int = 0) -> Unpacked:
    """A primitive's arrays by name."""
    spec = Spec.decode(encoded)
    n = spec.num_weights + 3
    theta, extras, rest = tuple(arrays[:n]), tuple(arrays[n : n + num_extras]), tuple(arrays[n + num_extras :])
    tables = tuple(t[0, ...] for t in rest[1 : 1 + spec.num_tables])
    structure = structure_from(spec.key, tables)
    lengths = backend.xp.broadcast_to(rest[0], (batch_size(x.shape[0] for x in arrays),))
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


def fused(chain: Chain, kernel: str) -> tuple[Fused, MessageCall] | None:
    """Whole quantities from the kernel that serves the chain, if it has them, and the call they take."""
    check_name(kernel)
    theta = (chain.initial, *chain.weights, chain.emission, chain.final)
    return _fused(chain.backend, chain.structure, theta, chain.lengths if chain.is_ragged else None, kernel)


def fused_values(chain: Chain, kernel: str) -> tuple[Fused, MessageCall] | None:
    """The same for a chain of which no derivative is asked, else None."""
    if chain.backend.records((chain.initial, *chain.weights, chain.emission, chain.final)):
        check_name(kernel)
        return None
    return fused(chain, kernel)


def _fused(
    backend: Backend, structure: Structure, theta: Sequence[Array], lengths: Array | None, kernel: str
) -> tuple[Fused, MessageCall] | None:
    weights = tuple((w,) for w in theta[1:-2])
    call = MessageCall(backend, LOG, structure, weights, (theta[0],), (theta[-2],), lengths)
    found = select(kernel, call).fused
    return None if found is None else (found, call)


def num_theta(encoded: str) -> int:
    """How many arrays theta is."""
    return Spec.decode(encoded).num_weights + 3


def emission_shape(encoded: str, shapes: Sequence[Shape]) -> Shape:
    """(B, T, K), from the shapes of a primitive's arrays."""
    return (batch_size(shape[0] for shape in shapes), *shapes[Spec.decode(encoded).num_weights + 1][1:])


def theta_shapes(encoded: str, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    """The shapes of theta, which gradients share."""
    return tuple(shapes[: num_theta(encoded)])


def split(encoded: str, arrays: Sequence[Array], num_extras: int = 0) -> tuple[list[Array], list[Array], list[Array]]:
    """theta, extras and constants (lengths and tables, without what was saved)."""
    spec, n = Spec.decode(encoded), num_theta(encoded)
    rest = list(arrays[n + num_extras :])
    return list(arrays[:n]), list(arrays[n : n + num_extras]), rest[: 1 + spec.num_tables]


def filled(backend: Backend, arrays: Sequence[Array], tangents: Sequence[Any]) -> list[Array]:
    """Tangents, zeros where there is none."""
    return [backend.xp.zeros_like(x) if t is None else t for x, t in zip(arrays, tangents, strict=False)]


def no_rule(what: str) -> Callable[..., NoReturn]:
    """A rule that raises: `what` has none."""

    def rule(*arguments: Any) -> NoReturn:
        raise NotImplementedError(
            f"{what} is not implemented; differentiate a plain recursion of your own, or use JAX, which derives it"
        )

    return rule


def at_last(a: Unpacked, x: Array) -> Array:
    """(B, T, K) at each sequence's last step."""
    if not a.spec.is_ragged:
        return x[:, -1, :]
    return a.backend.take_along(x, (a.lengths - 1)[:, None, None], 1)[:, 0, :]


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
            return tuple(xp.sum(p, axis=tuple(range(1, p.ndim))) for p in found)
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
