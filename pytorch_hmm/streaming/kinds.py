"""What a processor calls: how the streams of each kind of model and decoding begin, go on and end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from torch import Tensor

import hmm_functional as hf


class Kind(NamedTuple):
    """One kind of stream."""

    init: Callable[[Any, Tensor, int, int | None], Any]
    """(model, an array as the scores, look-ahead, max_delay) to a state."""
    step: Callable[[Any, Tensor], tuple[Any, tuple[Tensor, Tensor | None]]]
    """(state, scores) to a state, rows, and how long states are expected to last beyond them."""
    flush: Callable[[Any, Any], Tensor | None]
    """(model, state) to rows."""


def kind_of(is_semi_markov: bool, decode: str) -> Kind:
    """The kind of stream of a model and a decoding."""
    return (_SEGMENTS if is_semi_markov else _CHAINS)[decode]


def leaves_of(state: Any) -> list[Tensor]:
    """The tensors of a state, in order."""
    if isinstance(state, Tensor):
        return [state]
    return [leaf for part in state for leaf in leaves_of(part)] if isinstance(state, tuple) else []


def with_leaves(state: Any, leaves: Sequence[Tensor]) -> Any:
    """The same kind of state with other tensors.

    Raises:
        ValueError: too many, too few, or of other ranks.
    """
    ranks, wanted = ([x.ndim for x in xs] for xs in (leaves, leaves_of(state)))
    if ranks != wanted:
        raise ValueError(f"expected tensors of ranks {wanted}, got {ranks}")
    return _filled(state, iter(leaves))


def _filled(state: Any, leaves: Iterator[Tensor]) -> Any:
    if isinstance(state, Tensor):
        return next(leaves)
    return type(state)(*(_filled(part, leaves) for part in state)) if isinstance(state, tuple) else state


def _parts(model: Any, like: Tensor) -> tuple[Tensor, ...]:
    return tuple(x.to(like.dtype) for x in (model.log_initial, model.log_transition, model.log_duration))


def _rows(found: tuple[Any, Tensor]) -> tuple[Any, tuple[Tensor, None]]:
    return found[0], (found[1], None)


def _states(found: tuple[Any, Any]) -> tuple[Any, tuple[Tensor, None]]:
    return found[0], (found[1].states, None)


_CHAIN = Kind(
    lambda model, like, lag, delay: hf.stream_init(model.log_initial, model.log_transition, lag=lag, like=like),
    lambda state, scores: _rows(hf.stream_step(state, scores)),
    lambda model, state: hf.stream_flush(state),
)
_CHAINS = {
    "posterior": _CHAIN,
    "filter": _CHAIN._replace(init=lambda model, like, lag, delay: _CHAIN.init(model, like, 0, delay)),
    "viterbi": Kind(
        lambda model, like, lag, delay: hf.viterbi_stream_init(
            model.log_initial, model.log_transition, max_delay=delay, like=like
        ),
        lambda state, scores: _rows(hf.viterbi_stream_step(state, scores)),
        lambda model, state: hf.viterbi_stream_flush(state).states,
    ),
}
_SEGMENTS = {
    "posterior": Kind(
        lambda model, like, lag, delay: hf.semi_markov_smooth_stream_init(*_parts(model, like), lag=lag),
        lambda state, scores: _rows(hf.semi_markov_smooth_stream_step(state, scores)),
        lambda model, state: hf.semi_markov_smooth_stream_flush(state),
    ),
    "filter": Kind(
        lambda model, like, lag, delay: hf.semi_markov_stream_init(*_parts(model, like)),
        lambda state, scores: hf.semi_markov_stream_step(state, scores),
        lambda model, state: None,
    ),
    "viterbi": Kind(
        lambda model, like, lag, delay: hf.semi_markov_viterbi_stream_init(*_parts(model, like), max_delay=delay),
        lambda state, scores: _states(hf.semi_markov_viterbi_stream_step(state, scores)),
        lambda model, state: hf.semi_markov_viterbi_stream_flush(state, censored=model.censored).states,
    ),
}
