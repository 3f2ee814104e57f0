"""A transcript over frames as a chain, and what is wrong where it has no alignment."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np

from .._check import need_floating, need_shape
from ..backend import Array, Backend, backend_of
from ..chain import Chain, chain_of
from ..transition import Banded, arrays_of, with_weights
from .compiler import graph_edges_of
from .graph import AlignmentGraph, state_scores
from .posteriors import Tokens, tokens_of
from .topology import Topology, token_graph


def one_graph(graph: AlignmentGraph, batch: Any, place: Any) -> AlignmentGraph:
    """One of a batch of graphs."""
    if not batch:
        return graph
    backend = backend_of(log_initial=graph.log_initial)
    transition: Any = graph.log_transition
    (weights,) = arrays_of(transition).values()
    rank = 2 if isinstance(transition, Banded) else 1

    def pick(x: Array, own: int) -> Array:
        shape = tuple(x.shape[x.ndim - own :])
        return backend.xp.broadcast_to(x, (*batch, *shape))[(*place, *[slice(None)] * own)]

    if weights.ndim > rank:
        transition = with_weights(transition, pick(weights, rank + 1))
    return AlignmentGraph(
        pick(graph.log_initial, 1),
        transition,
        pick(graph.log_final, 1),
        pick(graph.labels, 1),
        pick(graph.token_index, 1),
    )


@dataclass(frozen=True)
class Problem:
    """A graph, the scores of its states, and the chain they make."""

    graph: AlignmentGraph
    emission: Array
    chain: Chain
    num_tokens: int
    most_states: int
    """No token has more."""
    has_special: bool
    """Whether a state may have no column."""

    @property
    def backend(self) -> Backend:
        return self.chain.backend

    @property
    def tokens(self) -> Tokens:
        xp, index = self.backend.xp, self.graph.token_index
        shape = (*self.chain.batch_shape, index.shape[-1])
        index = xp.reshape(xp.broadcast_to(index, shape), (-1, shape[-1]))
        return tokens_of(self.chain, index, self.num_tokens, self.most_states)

    def explain(self, scores: Array) -> None:
        """Raise ValueError for a transcript that is longer than its frames, where values can be read.

        Scores tell first whether there is anything to explain.
        """
        backend, chain = self.backend, self.chain
        if backend.is_traced(scores, self.graph.log_initial, chain.lengths) or not backend.is_host(scores):
            return
        is_impossible = backend.to_numpy(scores).reshape(-1) == -inf
        if not is_impossible.any():
            return
        there = backend.to_numpy(chain.lengths)
        for i in np.flatnonzero(is_impossible):
            place = [int(n) for n in np.unravel_index(i, chain.batch_shape)] if chain.batch_shape else []
            explain(one_graph(self.graph, chain.batch_shape, tuple(place)), -inf, int(there[i]), place)


class TooFewFrames(ValueError):
    """A transcript that needs more frames than there are."""

    place: list[int]
    """Of the sequence in its batch."""
    wanted: str
    num_frames: int


def explain(graph: AlignmentGraph, score: Any, num_frames: int, place: list[int]) -> None:
    """Raise TooFewFrames if an impossible alignment has."""
    if float(score) != -inf or (needed := float(fewest_frames(graph))) <= num_frames:
        return
    where = f" of sequence {place[0] if len(place) == 1 else place}" if place else ""
    wanted = f"at least {int(needed)} frames" if needed < inf else "an alignment that ends"
    # set and not given, so that the error can be pickled
    error = TooFewFrames(f"targets: the transcript{where} needs {wanted}, log_emission has {num_frames}")
    error.place, error.wanted, error.num_frames = place, wanted, num_frames
    raise error


def fewest_frames(graph: AlignmentGraph) -> Any:
    """The fewest frames of any alignment (...), on the host; inf where there is none."""
    backend = backend_of(log_initial=graph.log_initial)
    sources, targets, weights = graph_edges_of(graph)
    initial, final = (backend.to_numpy(x) > -inf for x in (graph.log_initial, graph.log_final))
    batch = np.broadcast_shapes(initial.shape[:-1], final.shape[:-1], weights.shape[:-1])
    frames = np.moveaxis(np.where(np.broadcast_to(initial, (*batch, initial.shape[-1])), 1.0, inf), -1, 0).copy()
    cost = np.moveaxis(np.where(weights > -inf, 1.0, inf), -1, 0)
    cost = cost.reshape(*cost.shape, *[1] * (frames.ndim - cost.ndim)) if cost.ndim == 1 else cost
    while True:
        before = frames.copy()
        np.minimum.at(frames, targets, before[sources] + cost)
        if (frames == before).all():
            return np.where(np.moveaxis(np.broadcast_to(final, (*batch, final.shape[-1])), -1, 0), frames, inf).min(0)


def compiled(
    log_emission: Array, targets: Any, target_lengths: Any, topology: Topology | None
) -> tuple[AlignmentGraph, int, int, bool]:
    """The graph, how many tokens, how many states of one at most, and whether a state may have no column."""
    backend = backend_of(log_emission=log_emission)
    need_floating("log_emission", backend.xp, log_emission)
    need_shape("log_emission", log_emission.shape, (None, None), "(..., T, V)")
    if not isinstance(targets, AlignmentGraph):
        graph = token_graph(targets, like=log_emission, target_lengths=target_lengths, topology=topology)
        most_states = max((topology or Topology()).symbols(log_emission.shape[-1])[0])
        return graph, _num_tokens(targets), most_states, False
    if topology is not None or target_lengths is not None:
        raise ValueError("topology, target_lengths: expected none beside a graph, which has its own")
    graph = targets
    backend_of(log_emission=log_emission, targets=graph.labels)
    if backend.is_traced(graph.token_index, graph.labels):
        return graph, int(graph.labels.shape[-1]), int(graph.labels.shape[-1]), True
    tokens = backend.to_numpy(graph.token_index)
    has_special = bool((backend.to_numpy(graph.labels) < 0).any())
    return graph, max(int(tokens.max(initial=-1)) + 1, 1), _most_states(tokens), has_special


def problem_of(
    log_emission: Array, targets: Any, lengths: Any, target_lengths: Any, topology: Topology | None
) -> Problem:
    graph, num_tokens, most_states, has_special = compiled(log_emission, targets, target_lengths, topology)
    emission = state_scores(graph, log_emission)
    chain = chain_of(graph.log_initial, graph.log_transition, emission, lengths=lengths, log_final=graph.log_final)
    if chain.weights[0].shape[1] != 1 and chain.num_steps > 2:
        raise ValueError("targets: expected a graph whose transition does not vary in time")
    return Problem(graph, emission, chain, num_tokens, most_states, has_special)


def _num_tokens(targets: Any) -> int:
    if isinstance(targets, list | tuple):
        parts = (_num_tokens(x) if isinstance(x, list | tuple | np.ndarray) else len(targets) for x in targets)
        return max(parts, default=0)
    return int(targets.shape[-1])


def _most_states(tokens: Any) -> int:
    """The most states (..., S) on the host that share a token."""
    rows = tokens.reshape(-1, tokens.shape[-1]) + 1
    return max((int(np.bincount(row, minlength=2)[1:].max()) for row in rows), default=0) or 1
