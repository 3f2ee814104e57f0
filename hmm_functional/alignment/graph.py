"""Chains whose states are the parts of a transcript, and the scores of their states."""

from __future__ import annotations

from math import inf
from typing import Any, NamedTuple

from .._check import broadcast_batch, need_floating, need_integers, need_shape
from ..backend import Array, Backend, backend_of
from ..structure import gather
from ..transition import Banded, with_weights

ANY = -1
"""The label of a state that is scored by the best column of each frame."""
FREE = -2
"""The label of a state that is scored 0 in each frame, whatever the columns say."""


class AlignmentGraph(NamedTuple):
    """A chain of S states whose paths are the alignments of a transcript: one, or a batch of them.

    A token is entered at its first state alone, and no path comes back to one that it left. States that only pad a
    batch cannot be reached.
    """

    log_initial: Array
    """(..., S): log weight of beginning in each state."""
    log_transition: Any
    """`Banded` or `Sparse` over S states, with weights (..., 1, O, S) or (..., 1, E)."""
    log_final: Array
    """(..., S): log weight of ending in each state."""
    labels: Array
    """(..., S) integers: the column of the emissions that scores each state, or `ANY`, or `FREE`."""
    token_index: Array
    """(..., S) integers: the token each state belongs to, -1 for a silence or blank between tokens."""


def state_scores(graph: AlignmentGraph, log_emission: Array) -> Array:
    """log p(x_t given the state) of the states of a graph, from the scores of the symbols.

    Args:
        graph: S states.
        log_emission: (..., T, V), nats; its batch axes broadcast with the graph's.

    Returns:
        (..., T, S): the columns that score the states.

    Raises:
        TypeError: not floating-point arrays of one library. ValueError: shapes, or a label that is no column, where
        values can be read.

    Gradient: a state's goes to its column; that of a state of label `ANY` to the best one, the first among equals.

    Cost: O(B T S) time and memory, O(B T V) time where there may be states of label `ANY`.

    Example:
        >>> import torch, hmm_functional as hf
        >>> graph = hf.token_graph([2, 0, 2], like=torch.zeros(4, 3))
        >>> hf.state_scores(graph, torch.tensor([[0.1, 0.2, 0.3]]))
        tensor([[0.3000, 0.1000, 0.3000]])
    """
    backend = backend_of(log_emission=log_emission, labels=graph.labels)
    xp = backend.xp
    need_floating("log_emission", xp, log_emission)
    need_shape("log_emission", log_emission.shape, (None, None), "(..., T, V)")
    need_integers("graph.labels", xp, graph.labels)
    labels = graph.labels
    batch = broadcast_batch({"log_emission": log_emission.shape[:-2], "graph": labels.shape[:-1]})
    may_be_special = True
    if not backend.is_traced(labels) and backend.is_host(labels):
        values = backend.to_numpy(labels)
        if values.size and not FREE <= values.min() <= values.max() < log_emission.shape[-1]:
            raise ValueError(
                f"log_emission: expected a column for each label {max(values.min(), 0)}..{values.max()} of the graph, "
                f"got {log_emission.shape[-1]}"
            )
        may_be_special = bool(values.size and values.min() < 0)
    columns = xp.clip(labels, min=0) if may_be_special else labels
    if labels.ndim == 1:
        found = gather(backend, log_emission, columns)
    else:
        log_emission = xp.broadcast_to(log_emission, (*batch, *log_emission.shape[-2:]))
        found = backend.take_along(log_emission, columns[..., None, :], -1)
    if not may_be_special:
        return found
    best = xp.argmax(backend.stop_gradient(log_emission), axis=-1, keepdims=True)
    best = backend.take_along(log_emission, best, -1)
    labels = labels[..., None, :]
    return xp.where(labels == ANY, best, xp.where(labels == FREE, 0.0, found))


def weigh_graph(graph: AlignmentGraph, self_loop: Array) -> AlignmentGraph:
    """The graph with log weights of staying in a state and of leaving it, as its column says.

    Args:
        graph: S states.
        self_loop: (V,), the probability of staying in a state that column v scores, in [0, 1]. States without a column
            keep their weights.

    Returns:
        The same graph: log self_loop is added to each state's edge to itself, log(1 - self_loop) to all others that
        leave it and to its `log_final`.

    Gradient: of `self_loop`.
    """
    backend = backend_of(self_loop=self_loop, labels=graph.labels)
    xp = backend.xp
    columns = xp.clip(graph.labels, min=0)
    p = gather(backend, self_loop, columns)
    stay, leave = (xp.where(graph.labels < 0, 0.0, backend.log(x)) for x in (p, 1.0 - p))
    transition = graph.log_transition
    if isinstance(transition, Banded):
        rows = [(stay if offset == 0 else leave)[..., None, :] for offset in transition.offsets]
        bands = transition.log_bands + xp.concat(rows, axis=-2)[..., None, :, :]
        return graph._replace(log_transition=with_weights(transition, bands), log_final=graph.log_final + leave)
    sources = backend.asarray(transition.sources.values, like=stay)
    is_loop = backend.asarray(transition.sources.values == transition.targets.values, like=stay)
    edges = xp.where(is_loop, gather(backend, stay, sources), gather(backend, leave, sources))
    weights = transition.log_weights + edges[..., None, :]
    return graph._replace(log_transition=with_weights(transition, weights), log_final=graph.log_final + leave)


def log_of(backend: Backend, is_possible: Array, like: Array) -> Array:
    """0 where possible, else -inf, with the dtype of `like`."""
    xp = backend.xp
    zeros = backend.full(tuple(is_possible.shape), 0.0, like=like)
    return xp.where(is_possible, zeros, -inf)
