"""What all alignments together say of tokens: where each begins and ends, and how sure a path's segments are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import exp, inf, log
from typing import Any, NamedTuple

from ..backend import Array, Backend
from ..chain import Chain


@dataclass(frozen=True)
class Piece:
    """Messages of steps begin..end-1 of a chain, each row up to a factor."""

    begin: int
    messages: Array
    """(B, t, S): forward, with the steps' own emissions."""
    behind: Array
    """(B, t, S): reversed, without them."""
    emission: Array
    """(B, t, S)"""
    before: Array | None = None
    """(B, 1, S): the forward message of the step before; None where there is none."""
    after: tuple[Array, Array] | None = None
    """(B, 1, S): the reversed message and the emission of the step after."""

    @property
    def num_steps(self) -> int:
        return int(self.messages.shape[1])

    def split(self, most: int) -> Iterator[Piece]:
        """The same in pieces of at most `most` steps."""
        if self.num_steps <= most:
            yield self
            return
        for start in range(0, self.num_steps, most):
            stop = min(start + most, self.num_steps)
            is_last = stop == self.num_steps
            yield Piece(
                self.begin + start,
                self.messages[:, start:stop, :],
                self.behind[:, start:stop, :],
                self.emission[:, start:stop, :],
                self.messages[:, start - 1 : start, :] if start else self.before,
                self.after if is_last else (self.behind[:, stop : stop + 1, :], self.emission[:, stop : stop + 1, :]),
            )


@dataclass(frozen=True)
class Ways:
    """The transitions at one end of each token: into its first state, or out of its last one."""

    state: Array
    """(B, N): that state."""
    others: tuple[Array, ...]
    """Each (B, 1, N): states of other tokens that transitions come from, or go to."""
    gains: tuple[Array, ...]
    """Each (B, 1, N): what their log weights are above that of staying in the state; -inf where there is none."""


@dataclass(frozen=True)
class Tokens:
    """The tokens of a chain's states."""

    exists: Array
    """(B, N): 1 where the token has states, else 0."""
    states: Array
    """(B, N, M): its states, one of them again and again where it has fewer than M."""
    counts: Array
    """(B, N, M): 1 where `states` tells a state for the first time, else 0."""
    into: Ways
    out_of: Ways


def tokens_of(chain: Chain, token_index: Array, num_tokens: int, most_states: int) -> Tokens:
    """The tokens (B, S) of a chain, whose transition is constant and `Edges`; each has at most so many states."""
    backend, xp = chain.backend, chain.backend.xp
    weights = (chain.weights[0][:, 0, :],)
    dtype, size = weights[0].dtype, chain.num_states
    numbers = backend.arange(num_tokens, like=token_index)
    is_own = token_index[:, None, :] == numbers[:, None]
    states = backend.arange(size, like=token_index)
    first = xp.min(xp.where(is_own, states, size - 1), axis=-1)
    last = xp.max(xp.where(is_own, states, 0), axis=-1)
    turned, parts = chain.structure.transposed(backend, ((weights[0],),))
    sides = ((first, chain.structure, weights), (last, turned, (parts[0][0],)))
    found = []
    for state, structure, own in sides:
        weight, other = structure.incoming(backend, own, xp.permute_dims(state, (1, 0)))
        weight, other = (xp.permute_dims(x, (1, 0, 2)) for x in (weight, other))
        found.append(_ways(backend, state, other, weight, token_index, numbers))
    inside = first[..., None] + backend.arange(most_states, like=token_index)
    counts = xp.astype(inside <= last[..., None], dtype)
    exists = xp.astype(xp.any(is_own, axis=-1), dtype)
    return Tokens(exists, xp.minimum(inside, last[..., None]), counts, *found)


def state_posteriors(backend: Backend, piece: Piece) -> Array:
    """p(z_t given x) of a piece's steps, (B, t, S), 0 where nothing is possible."""
    xp = backend.xp
    joint = piece.messages + piece.behind
    p = _exp(backend, joint - backend.pivot(joint, -1))
    total = xp.sum(p, axis=-1, keepdims=True)
    return p / xp.where(total == 0, 1.0, total)


def own_posteriors(backend: Backend, p: Array, tokens: Tokens, token_index: Array) -> Array:
    """The posterior (B, t) of the token that each frame (B, t) was given, any number where it was given none."""
    xp = backend.xp
    place = xp.clip(token_index, min=0)[..., None]
    states, counts = (backend.take_along(x, place, -2) for x in (tokens.states, tokens.counts))
    return xp.sum(backend.take_along(p, states, -1) * counts, axis=-1)


class Masses(NamedTuple):
    """p(token n begins at step t), p(it ends with step t), given x: (B, t, N) each."""

    begins: Array
    ends: Array


def masses(backend: Backend, piece: Piece, p: Array, tokens: Tokens, lengths: Array | None) -> Masses:
    """Where tokens begin and end: the share of the ways from, or to, other tokens in the posterior of a state.

    Nothing is taken from anything, so that a boundary far from where a token may begin weighs nothing even in float32.

    Args:
        piece: the messages.
        p: their posteriors, of `state_posteriors`.
        tokens: the tokens.
        lengths: (B,), or None where all sequences end with the last step of the last piece.
    """
    xp = backend.xp
    into, out_of = tokens.into, tokens.out_of
    exists = tokens.exists[:, None, :]
    certain = xp.zeros_like(exists) + 1.0

    rows = [x for x in (piece.before, piece.messages[:, :-1, :]) if x is not None and x.shape[1]]
    parts = [_share(backend, (row,), into) for row in rows]
    if piece.before is None:
        parts = [certain, *parts]
    begins = xp.concat(parts, axis=1) * backend.take_along(p, into.state[:, None, :], -1) * exists

    pairs = [(piece.emission[:, 1:, :], piece.behind[:, 1:, :]), *([] if piece.after is None else [piece.after])]
    parts = [_share(backend, pair, out_of) for pair in pairs if pair[0].shape[1]]
    if piece.after is None:
        parts = [*parts, certain]
    leaves = xp.concat(parts, axis=1)
    steps = (piece.begin + backend.arange(piece.num_steps, like=p))[:, None]
    if lengths is not None:
        leaves = xp.where(steps == lengths[:, None, None] - 1, 1.0, leaves)
    ends = leaves * backend.take_along(p, out_of.state[:, None, :], -1) * exists
    if lengths is None:
        return Masses(begins, ends)
    is_valid = steps < lengths[:, None, None]
    return Masses(xp.where(is_valid, begins, 0.0), xp.where(is_valid, ends, 0.0))


def _ways(backend: Backend, state: Array, other: Array, weight: Array, token_index: Array, numbers: Array) -> Ways:
    """Ways (B, N, D), of which at most one is a state's to itself, by what they are above that one."""
    xp = backend.xp
    crosses = backend.take_along(token_index[:, None, :], other, -1) != numbers[:, None]
    stay = _finite(xp, xp.max(xp.where(crosses, -inf, weight), axis=-1, keepdims=True))
    gains = xp.where(crosses, weight - stay, -inf)
    # the way to itself goes last, and out
    order = xp.argsort(xp.astype(crosses & (weight > -inf), backend.index_dtype()), axis=-1, descending=True)
    width = max(int(weight.shape[-1]) - 1, 1)
    gains, other = (backend.take_along(x, order, -1)[..., :width] for x in (gains, other))
    return Ways(state, *(tuple(x[:, None, :, d] for d in range(width)) for x in (other, gains)))


def _share(backend: Backend, terms: Sequence[Array], ways: Ways) -> Array:
    """The share (B, t, N) of ways from or to other tokens in all ways at a state, of log terms (B, t, S)."""
    xp = backend.xp
    own = [_finite(xp, backend.take_along(x, ways.state[:, None, :], -1)) for x in terms]
    odds: Any = 0.0
    high = -_lowest(xp, terms[0])
    for other, gain in zip(ways.others, ways.gains, strict=True):
        above: Any = gain
        for x, y in zip(terms, own, strict=True):
            above = above + (backend.take_along(x, other, -1) - y)
        odds = odds + _exp(backend, xp.clip(above, max=high))
    return odds / (1.0 + odds)


def _finite(xp: Any, x: Array) -> Array:
    """The lowest finite number in the place of -inf, so that nothing is above it by more than it is above nothing."""
    return xp.clip(x, min=float(xp.finfo(x.dtype).min))


def _exp(backend: Backend, x: Array) -> Array:
    """exp; 0 for numbers near and below the smallest normal one.

    Array libraries take up to eighty times as long for numbers below it. What is taken off is less than what rounding
    takes off numbers above 1e-30.
    """
    xp = backend.xp
    low = _lowest(xp, x)
    return xp.clip(xp.exp(xp.clip(x, min=low)) - exp(low + 1e-3), min=0.0)


def _lowest(xp: Any, x: Array) -> float:
    return log(float(xp.finfo(x.dtype).smallest_normal)) + 1.0
