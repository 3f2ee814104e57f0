"""What "add" and "multiply" mean along the chain.

A message is a tuple of components, each (..., K), or (..., k, K) for the k best. To multiply is to add in the log
domain, component by component, in every semiring here; what differs is the sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Protocol

from .backend import Array, Backend
from .numerics import logsumexp, softmax

Message = tuple[Array, ...]


class Semiring(Protocol):
    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def zeros(self) -> tuple[float, ...]:
        """The additive identity, component by component."""

    @property
    def depth(self) -> int:
        """Axes of a component between the batch axes and the states: 1 for the k best, else 0."""

    def add(self, backend: Backend, terms: Message) -> Message:
        """Sum over the axis before the last."""

    def normalise(self, backend: Backend, message: Message) -> tuple[Message, Message]:
        """The message scaled to a maximum near 0, and the scale taken out, with the axes of the message kept."""

    def lift(self, backend: Backend, message: Message) -> Message:
        """Components (..., K) as components of a message of this semiring."""


@dataclass(frozen=True)
class LogSemiring:
    """(logsumexp, +): sums over paths."""

    name: str = "log"
    zeros: tuple[float, ...] = (-inf,)
    depth: int = 0

    def add(self, backend: Backend, terms: Message) -> Message:
        return (logsumexp(backend, terms[0], axis=-2),)

    def normalise(self, backend: Backend, message: Message) -> tuple[Message, Message]:
        scale = backend.pivot(message[0], -1)
        return (message[0] - scale,), (scale,)

    def lift(self, backend: Backend, message: Message) -> Message:
        return message


@dataclass(frozen=True)
class MaxSemiring(LogSemiring):
    """(max, +): the best path."""

    name: str = "max"

    def add(self, backend: Backend, terms: Message) -> Message:
        return (backend.xp.max(terms[0], axis=-2),)


@dataclass(frozen=True)
class KMaxSemiring:
    """(the k largest, +): the k best paths; a component is (..., k, K), sorted, -inf where there are fewer."""

    num_best: int
    name: str = "k-max"
    zeros: tuple[float, ...] = (-inf,)
    depth: int = 1

    def add(self, backend: Backend, terms: Message) -> Message:
        xp, (x,) = backend.xp, terms
        # (..., k, sources, K) to (..., sources * k, K): ties go to the lower source, then to its better path
        x = xp.reshape(_swap(xp, x, -3, -2), (*x.shape[:-3], x.shape[-3] * x.shape[-2], x.shape[-1]))
        return (xp.sort(x, axis=-2, descending=True)[..., : self.num_best, :],)

    def normalise(self, backend: Backend, message: Message) -> tuple[Message, Message]:
        scale = backend.pivot(message[0], (-2, -1))
        return (message[0] - scale,), (scale,)

    def lift(self, backend: Backend, message: Message) -> Message:
        best = message[0][..., None, :]
        shape = (*best.shape[:-2], self.num_best - 1, best.shape[-1])
        return (backend.xp.concat([best, backend.full(shape, -inf, like=best)], axis=-2),)


@dataclass(frozen=True)
class ExpectationSemiring:
    """Pairs (log p, tangent): the log semiring and the derivative of its log along one direction.

    Sums weigh the tangents by the terms' shares (Eisner 2002; Li and Eisner 2009, with r divided by p).
    Tangents are centred at every step: adding one number to all states of a step changes no consumer.
    """

    name: str = "expectation"
    zeros: tuple[float, ...] = (-inf, 0.0)
    depth: int = 0

    def add(self, backend: Backend, terms: Message) -> Message:
        x, tangent = terms
        share = softmax(backend, x, axis=-2)
        return logsumexp(backend, x, axis=-2), backend.xp.sum(share * tangent, axis=-2)

    def normalise(self, backend: Backend, message: Message) -> tuple[Message, Message]:
        x, tangent = message
        scale = backend.pivot(x, -1)
        mean = backend.xp.sum(softmax(backend, x) * tangent, axis=-1, keepdims=True)
        return (x - scale, tangent - mean), (scale, mean)

    def lift(self, backend: Backend, message: Message) -> Message:
        return message


LOG = LogSemiring()
MAX = MaxSemiring()
EXPECTATION = ExpectationSemiring()


def _swap(xp: object, x: Array, a: int, b: int) -> Array:
    axes = list(range(x.ndim))
    axes[a], axes[b] = axes[b], axes[a]
    return xp.permute_dims(x, tuple(axes))  # type: ignore[attr-defined]
