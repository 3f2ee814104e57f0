"""What states a symbol has, where silences may stand, and the graph of a plain sequence of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from .._check import broadcast_batch, need_count, need_range, need_shape
from ..backend import Array, Backend, backend_of
from ..chain import integers_of
from ..structure import gather
from ..transition import Banded
from .graph import AlignmentGraph, log_of, running_sum, weigh_graph

_PLACES = ("ends", "words", "tokens")


@dataclass(frozen=True)
class Topology:
    """How symbols become states, and where silences may stand.

    Args:
        states: states of a symbol, one number for all or one each: the fewest frames it lasts.
        is_tied: whether all states of symbol v are scored by column v; else state s of symbol v has a column of its
            own, that of symbol v's first state and s more: columns lie symbol after symbol.
        silence: the symbol of silences, which may or may not be spoken; None for none.
        silence_at: "ends", before the first token and after the last; "words", there and between words; "tokens",
            there and between any two tokens. A plain sequence of tokens is one word.
        self_loop: probability of staying in a state for another frame, in [0, 1], one number or one a column; default
            None, which weighs all alignments alike.

    Raises:
        TypeError, ValueError: settings that make no sense; the message says which.
    """

    states: int | Sequence[int] = 1
    is_tied: bool = False
    silence: int | None = None
    silence_at: str = "words"
    self_loop: float | Sequence[float] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.states, Sequence | np.ndarray) or np.ndim(self.states) == 0:
            object.__setattr__(self, "states", need_count("states", self.states, 1))
        else:
            object.__setattr__(self, "states", tuple(need_count("states", n, 1) for n in self.states))
            if not self.states:
                raise ValueError("states: expected a number, or one for each symbol, got none")
        if self.silence is not None:
            object.__setattr__(self, "silence", need_count("silence", self.silence, 0))
        if self.silence_at not in _PLACES:
            raise ValueError(f"silence_at: expected one of {', '.join(map(repr, _PLACES))}, got {self.silence_at!r}")
        if self.self_loop is not None:
            try:
                found = np.asarray(self.self_loop, np.float64)
            except (TypeError, ValueError):
                raise TypeError(f"self_loop: expected a number, or one a column, got {self.self_loop!r}") from None
            if found.ndim > 1 or not bool(np.all((found >= 0) & (found <= 1))):
                raise ValueError(f"self_loop: expected probabilities in [0, 1], got {self.self_loop}")
            object.__setattr__(self, "self_loop", tuple(found.tolist()) if found.ndim else float(found))

    def symbols(self, num_columns: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """States of each symbol, and the column of its first one.

        Raises:
            ValueError: the columns do not fit, or the silence is no symbol.
        """
        if isinstance(self.states, int):
            share = 1 if self.is_tied else self.states
            if num_columns % share:
                raise ValueError(
                    f"log_emission: expected {share} columns for each symbol, a multiple of {share}, got {num_columns}"
                )
            counts: tuple[int, ...] = (self.states,) * (num_columns // share)
        else:
            counts = tuple(self.states)
            wanted = len(counts) if self.is_tied else sum(counts)
            if num_columns != wanted:
                raise ValueError(f"log_emission: expected {wanted} columns as the topology has, got {num_columns}")
        if self.silence is not None and self.silence >= len(counts):
            raise ValueError(f"silence: expected a symbol in 0..{len(counts) - 1}, got {self.silence}")
        if self.is_tied:
            return counts, tuple(range(len(counts)))
        return counts, (0, *accumulate(counts[:-1]))

    def weigh(self, graph: AlignmentGraph, like: Array) -> AlignmentGraph:
        """The graph with weights of staying and leaving, for emissions `like` (..., T, V)."""
        if self.self_loop is None:
            return graph
        num_columns = int(like.shape[-1])
        if not isinstance(self.self_loop, float) and len(self.self_loop) != num_columns:
            raise ValueError(f"self_loop: expected one number or {num_columns}, got {len(self.self_loop)}")
        backend = backend_of(like=like)
        stay = backend.asarray(np.broadcast_to(self.self_loop, (num_columns,)).copy(), like=like)
        return weigh_graph(graph, backend.xp.astype(stay, like.dtype))


def token_graph(
    targets: Any, *, like: Array, target_lengths: Any = None, topology: Topology | None = None
) -> AlignmentGraph:
    """The alignments of plain sequences of tokens, in order, each at least as long as it has states.

    Args:
        targets: (..., N) integers, symbols: an array, or a list (of lists, which need not be of one length).
        like: (..., T, V), the emissions the graph is for, or any array with their library, device, dtype and V columns.
        target_lengths: (...) integers, tokens of each right-padded sequence, at least 1, or 0 where there are silences;
            default N.
        topology: default one state a symbol, no silence.

    Returns:
        `AlignmentGraph` with `Banded` transitions.

    Raises:
        TypeError: not integers. ValueError: shapes, or, where values can be read, tokens that are no symbols.

    Cost: O(B S), and O(B S N) where symbols differ in their number of states. Works on traced targets.

    Example:
        >>> import torch, hmm_functional as hf
        >>> hf.token_graph([2, 0], like=torch.zeros(4, 3)).labels
        tensor([2, 0])
    """
    topology = need_topology(topology)
    backend = backend_of(like=like)
    xp = backend.xp
    counts, first = topology.symbols(like.shape[-1])
    targets, numbers = targets_of(
        backend, targets, target_lengths, like, num_symbols=len(counts), fewest=int(topology.silence is None)
    )
    most = targets.shape[-1]
    token, number = _elements(backend, topology, numbers, most, like)
    symbol = _symbols(backend, targets, token, topology.silence)
    pause = 0 if topology.silence is None else counts[topology.silence]

    place, is_real, within, length = _states(backend, counts, symbol, token, number, pause)
    index = backend.index_dtype()
    symbol = backend.take_along(symbol, place, -1)
    labels = gather(backend, backend.asarray(first, like=like), symbol)
    labels = xp.astype(labels if topology.is_tied else labels + within, index)
    of_token = backend.take_along(xp.broadcast_to(token, (*place.shape[:-1], token.shape[-1])), place, -1)
    of_token = xp.astype(xp.where(is_real, of_token, -1), index)

    state = backend.arange(place.shape[-1], like=like)
    total = xp.sum(xp.astype(is_real, index), axis=-1, keepdims=True)
    is_first, is_final = xp.broadcast_to(state == 0, is_real.shape) & is_real, state == total - 1
    rows, offsets = [is_real, state + 1 < total], [0, 1]
    if pause:
        has_tokens = (number > 1)[..., None]
        is_first = is_first | (has_tokens & (state == pause))
        is_final = is_final | (has_tokens & (state == total - 1 - pause))
        if topology.silence_at == "tokens":
            is_end = (within == length - 1) & (of_token >= 0)
            rows.append(is_end & (place + 2 < number[..., None]))
            offsets.append(1 + pause)
    bands = log_of(backend, xp.stack([xp.broadcast_to(row, is_real.shape) for row in rows], axis=-2), like)
    graph = AlignmentGraph(
        log_of(backend, is_first, like),
        Banded(bands[..., None, :, :], tuple(offsets)),
        log_of(backend, is_final, like),
        labels,
        of_token,
    )
    return topology.weigh(graph, like)


def need_topology(topology: Any) -> Topology:
    """A topology, by default one state a symbol and no silence; TypeError for anything else."""
    if topology is not None and not isinstance(topology, Topology):
        raise TypeError(f"topology: expected a Topology or None, got {type(topology).__name__}")
    return topology or Topology()


def targets_of(
    backend: Backend,
    targets: Any,
    target_lengths: Any,
    like: Array,
    *,
    num_symbols: int,
    fewest: int,
    may_be_empty: bool = False,
) -> tuple[Array, Array]:
    """Tokens (..., N) and how many of them count (...), as integers on the device of `like`; padding is 0.

    Raises:
        TypeError: not integers, or of another library. ValueError: shapes, a length outside fewest..N, a token outside
        0..num_symbols-1, where values can be read.
    """
    xp, index = backend.xp, backend.index_dtype()
    if isinstance(targets, list | tuple):
        targets, found = _padded(targets)
        if target_lengths is None:
            target_lengths = found
    targets = integers_of(backend, "targets", targets, like)
    need_shape("targets", targets.shape, (None,), "(..., N) integers")
    most = int(targets.shape[-1])
    if most < 1 and not may_be_empty:
        raise ValueError(f"targets: expected at least one token, got shape {tuple(targets.shape)}")
    if target_lengths is None:
        numbers = backend.full(tuple(targets.shape[:-1]), most, like=like, dtype=index)
    else:
        numbers = integers_of(backend, "target_lengths", target_lengths, like)
        batch = broadcast_batch({"targets": tuple(targets.shape[:-1]), "target_lengths": tuple(numbers.shape)})
        numbers = xp.broadcast_to(numbers, batch)
    is_token = backend.arange(most, like=like) < numbers[..., None]
    targets = xp.where(is_token, targets, 0)
    if not backend.is_traced(targets, numbers) and backend.is_host(targets):
        need_range("target_lengths", backend.to_numpy(numbers), fewest, most)
        need_range("targets", backend.to_numpy(targets), 0, num_symbols - 1)
    return targets, numbers


def _padded(targets: Sequence[Any]) -> tuple[Any, Any]:
    """Lists of integers, of any nesting, as one array with padding of 0, and their lengths."""
    if not targets or not any(isinstance(item, list | tuple | np.ndarray) for item in targets):
        found = np.asarray(targets if len(targets) else np.zeros(0, np.int64))
        return found, np.asarray(len(targets))
    parts = [_padded(item) if isinstance(item, list | tuple) else (np.asarray(item), None) for item in targets]
    rows = [row for row, _ in parts]
    if len({row.ndim for row in rows}) > 1 or rows[0].ndim == 0:
        raise ValueError("targets: expected a list of integers or of lists of them, got lists of different depths")
    if len({row.shape[:-1] for row in rows}) > 1:
        raise ValueError("targets: expected batches of one shape, got lists of different lengths above the last level")
    numbers = [np.full(row.shape[:-1], row.shape[-1]) if n is None else n for row, n in parts]
    most = max(row.shape[-1] for row in rows)
    rows = [np.concatenate([row, np.zeros((*row.shape[:-1], most - row.shape[-1]), row.dtype)], -1) for row in rows]
    return np.stack(rows), np.stack(numbers)


def _elements(backend: Backend, topology: Topology, numbers: Array, most: int, like: Array) -> tuple[Array, Array]:
    """Tokens and silences in order: the token of each element (..., M), -1 for a silence; how many there are (...)."""
    xp, index = backend.xp, backend.index_dtype()
    if topology.silence is None:
        return xp.astype(backend.arange(most, like=like), index), numbers
    if topology.silence_at == "tokens":
        place = xp.astype(backend.arange(2 * most + 1, like=like), index)
        return xp.where(place % 2 == 1, place // 2, -1), 2 * numbers + 1
    place = xp.astype(backend.arange(most + 2, like=like), index)
    token = xp.where(place <= numbers[..., None], place - 1, -1)
    return token, numbers + 1 + xp.astype(numbers > 0, index)


def _symbols(backend: Backend, targets: Array, token: Array, silence: int | None) -> Array:
    xp = backend.xp
    place = xp.clip(token, min=0, max=targets.shape[-1] - 1)
    found = backend.take_along(targets, xp.broadcast_to(place, (*targets.shape[:-1], token.shape[-1])), -1)
    return found if silence is None else xp.where(token < 0, silence, found)


def _states(
    backend: Backend, counts: tuple[int, ...], symbol: Array, token: Array, number: Array, pause: int
) -> tuple[Array, Array, Array, Array]:
    """The element of each state (..., S), whether it is one, which of the element's it is and how many these are."""
    xp, index = backend.xp, backend.index_dtype()
    elements = backend.arange(symbol.shape[-1], like=symbol)
    length = xp.astype(gather(backend, backend.asarray(counts, like=symbol), symbol), index)
    length = xp.where(elements < number[..., None], length, 0)
    ends = running_sum(backend, length)
    is_uniform = min(counts) == max(counts)
    if is_uniform:
        num_states = symbol.shape[-1] * counts[0]
    elif not backend.is_traced(ends) and backend.is_host(ends):
        num_states = max(int(backend.to_numpy(ends[..., -1]).max(initial=1)), 1)
    else:
        num_states = symbol.shape[-1] * max(counts)
    state = xp.astype(backend.arange(num_states, like=symbol), index)
    is_real = state < ends[..., -1:]
    if is_uniform:
        place = xp.broadcast_to(state // counts[0], is_real.shape)
    else:
        place = xp.sum(xp.astype(ends[..., None, :] <= state[:, None], index), axis=-1)
    place = xp.clip(xp.minimum(place, number[..., None] - 1), min=0)
    own = backend.take_along(length, place, -1)
    within = state - (backend.take_along(ends, place, -1) - own)
    return place, is_real, xp.minimum(within, own - 1), own
