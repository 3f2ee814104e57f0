"""Which implementation of `chain_messages` serves a call.

A kernel computes messages; it may also fuse the few quantities of `Fused`, which are otherwise composed of messages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..backend import Array, Backend
from ..semiring import Message, Semiring
from ..structure import Structure, Weights


@dataclass(frozen=True)
class MessageCall:
    """One call of `chain_messages`."""

    backend: Backend
    semiring: Semiring
    structure: Structure
    weights: Weights
    """Components (B or 1, T-1 or 1, *base)."""
    initial: Message
    """Components (B or 1, K)."""
    emission: Message
    """Components (B, T, K)."""
    lengths: Array | None
    """(B,), or None where all are T."""
    reverse: bool = False
    include_emission: bool = True
    """Whether a step's message holds its own emission, or only what the other steps predict of it."""
    last_only: bool = False

    @property
    def num_steps(self) -> int:
        return int(self.emission[0].shape[1])


@dataclass(frozen=True)
class Messages:
    """What `chain_messages` returns."""

    values: Message
    """Components (B, T, K), or (B, T, k, K), each step scaled to a maximum near 0; empty if last_only."""
    scales: Message
    """Components (B, T): the log scales taken out of the message with its emission; empty if last_only."""
    total: Array
    """(B,): sum of the scales, in float64 where there is one."""
    last: Message
    """Components (B, K): the message of the last step in the direction of travel, emission included."""


@dataclass(frozen=True)
class Fused:
    """Whole quantities that a kernel computes without the messages between them, for constant or varying weights.

    Each takes the forward call in the log semiring, its emissions neither masked nor centred, and the final weights.
    """

    meets: Callable[[MessageCall, bool], bool]
    """(call, is_recorded): whether the call's passes are to meet in the middle of its sequences, on twice the
    threads."""
    forward: Callable[..., tuple[Array, ...]]
    """(call, final, has_messages, is_normalised=False, meets=False): log-likelihoods (B,), and forward messages
    (B, T, K) where wanted, each row scaled to a maximum near 0 or to a sum of 1; where passes meet, `statistics` alone
    can read the messages."""
    smooth: Callable[[MessageCall, Array], tuple[Array, Array]]
    """(call, final): log posteriors (B, T, K) and log-likelihoods (B,)."""
    statistics: Callable[..., tuple[Array, Array | None]]
    """(call, final, messages, scale, has_counts, meets=False): posteriors times scale; counts of constant weights,
    times scale."""
    best_path: Callable[[MessageCall, Array], tuple[Array, Array]]
    """(call, final): states (B, T) and scores (B,)."""
    pull: Callable[[MessageCall, Array, Array], tuple[Array, Array, Array]]
    """`recursion.pull_messages`, constant weights: (call, values, cotangent) to those of the initial message, of the
    weights, and of the emissions."""


@dataclass(frozen=True)
class Kernel:
    """A named implementation; of those that support a call, the highest priority serves `kernel="auto"`."""

    name: str
    priority: Callable[[MessageCall], int]
    unsupported: Callable[[MessageCall], str | None]
    """Why it cannot serve the call, or None."""
    messages: Callable[[MessageCall], Messages]
    fused: Fused | None = None


_KERNELS: dict[str, Kernel] = {}
_registrations = 0


def register(kernel: Kernel) -> None:
    """Make `kernel` available by its name."""
    global _registrations
    _registrations += 1
    _KERNELS[kernel.name] = kernel


def registrations() -> int:
    """How often a kernel was registered: what was chosen before the last time may not be chosen again."""
    return _registrations


def names() -> tuple[str, ...]:
    """The names `kernel=` takes, besides "auto"."""
    return tuple(_KERNELS)


def check_name(name: Any) -> None:
    """Raise ValueError unless `name` is "auto" or a registered kernel's."""
    if not isinstance(name, str) or (name != "auto" and name not in _KERNELS):
        known = ", ".join(repr(n) for n in ("auto", *_KERNELS))
        raise ValueError(f"kernel: expected one of {known}, got {name!r}")


def select(name: str, call: MessageCall) -> Kernel:
    """The kernel that serves `call`.

    Raises:
        ValueError: there is no kernel `name`, or it cannot serve the call; the message says why.
    """
    check_name(name)
    if name != "auto":
        if (reason := _KERNELS[name].unsupported(call)) is not None:
            raise ValueError(f"kernel: {name!r} cannot serve this call: {reason}")
        return _KERNELS[name]
    able = [kernel for kernel in _KERNELS.values() if kernel.unsupported(call) is None]
    return max(able, key=lambda kernel: kernel.priority(call))
