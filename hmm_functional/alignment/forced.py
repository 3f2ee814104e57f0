"""Forced alignment: the frames of each token of a transcript, how sure they are, and how sure their boundaries."""

from __future__ import annotations

from math import inf
from typing import Any, NamedTuple

import numpy as np

from .._check import broadcast_batch, need_number
from ..backend import Array, Backend, backend_of
from ..chain import Chain, lengths_of
from ..decode import log_joint, viterbi
from ..likelihood import backward_pass, forward_pass
from ..transition import arrays_of, with_weights
from .beam import beam_path
from .graph import AlignmentGraph
from .posteriors import Piece, masses, state_posteriors
from .problem import Problem, compiled, explain, one_graph, problem_of
from .segments import moments, segments, sums_of
from .topology import Topology

_METHODS = ("viterbi", "posterior")


class ForcedAlignment(NamedTuple):
    """One alignment of a transcript, by frames and by tokens; N tokens, those of all alternatives counted.

    Tokens that the alignment leaves out, and padding, have -1 as start and end and 0 elsewhere. What is said of
    uncertainty is of all alignments together; means and deviations of a token are those given that it is said.
    """

    labels: Array
    """(..., T) integers: the column that scored each frame, the best one for a wildcard; -1 in the padding."""
    log_joint: Array
    """(...): log p(x, alignment), nats."""
    token_index: Array
    """(..., T) integers: the token of each frame, -1 for silences between tokens and in the padding."""
    start: Array
    """(..., N) integers: the first frame of each token."""
    end: Array
    """(..., N) integers: the frame after its last one."""
    confidence: Array
    """(..., N): the posterior probability that a frame is the token's, mean over its frames."""
    start_mean: Array
    """(..., N): mean of the posterior of `start`, frames."""
    start_deviation: Array
    """(..., N): standard deviation of the posterior of `start`, frames."""
    end_mean: Array
    """(..., N): mean of the posterior of `end`, frames."""
    end_deviation: Array
    """(..., N): standard deviation of the posterior of `end`, frames."""
    pruned: Array
    """(...): the share of the steps' states that were not looked at because of a beam, 0 without."""
    log_bound: Array
    """(...): no alignment that a beam pruned has a higher log p(x, z); -inf where none was."""


class BoundaryPosteriors(NamedTuple):
    """Where tokens begin and end, given x."""

    start: Array
    """(..., T, N): p(token n begins at frame t). Sums over t to the probability that the token is said."""
    end: Array
    """(..., T, N): p(frame t is the last of token n)."""


def forced_align(
    log_emission: Array,
    targets: Any,
    *,
    lengths: Any = None,
    target_lengths: Any = None,
    topology: Topology | None = None,
    method: str = "viterbi",
    posteriors: bool | None = None,
    beam: float | None = None,
    kernel: str = "auto",
) -> ForcedAlignment:
    """Which frames are which token's: the best alignment z of a transcript by p(x, z), or by posteriors.

    Args:
        log_emission: (..., T, V), log p(x_t given column v), nats; log-probabilities of a network serve as well.
        targets: (..., N) integers, symbols: an array, or a list (of lists, which need not be of one length); or an
            `AlignmentGraph`, of `transcript_graph` for words, alternatives, gaps and wildcards.
        lengths: (...) integers 1..T, the valid frames of right-padded sequences; padding is never read.
        target_lengths: (...) integers, the tokens of right-padded `targets`.
        topology: states of symbols, and silences; default one state a symbol, no silence. Not with a graph.
        method: "viterbi", the alignment of highest log p(x, z); or "posterior", the possible alignment with the most
            frames in their right state on average: it maximises the sum over t of p(z_t given x).
        posteriors: whether confidences, means and deviations are wanted, which take two more passes; else they are
            NaN. Default True, and False with a beam, which does not give them.
        beam: nats: every 128 frames, states are given up whose best alignment so far is so much worse than the best
            one. Sequences are then gone through piece by piece, in memory that grows every 128 frames by the states
            that are left. With `inf` nothing is given up and the result is exact. The result says in `pruned` and
            `log_bound` what was given up; if log_bound <= log_joint it is exact for certain, and else it may be. Not
            where calls are traced.
        kernel: as in `log_likelihood`.

    Returns:
        `ForcedAlignment`. Where no alignment is possible log_joint is -inf and labels, tokens and times are -1; a
        sequence holding NaN has log_joint NaN, labels and times -1, and NaN for what is said of its tokens.

    Raises:
        TypeError: arrays. ValueError: shapes, tokens that are no symbols; or, where values can be read, a transcript
        that needs more frames than there are, with both numbers.

    Gradient: of `log_joint`, 1 for each score along the alignment; of confidences, means and deviations as that of
    posteriors. The alignment itself is constant.

    Cost: O(B T S) time and memory for S states; three passes, and O(B T N) for what is said of tokens.

    References: Rabiner 1989, III.B; the posterior method is optimal accuracy decoding (Käll, Krogh and Sonnhammer 2005)
    of states.

    Example:
        >>> import torch, hmm_functional as hf
        >>> scores = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6], [0.1, 0.9], [0.1, 0.9]]).log()
        >>> found = hf.forced_align(scores, [0, 1])
        >>> found.labels, found.start, found.end
        (tensor([0, 0, 1, 1, 1]), tensor([0, 2]), tensor([2, 5]))
        >>> found.confidence, found.start_deviation[1]
        (tensor([0.9372, 0.8636]), tensor(0.7272))
    """
    if method not in _METHODS:
        raise ValueError(f"method: expected one of {', '.join(map(repr, _METHODS))}, got {method!r}")
    if beam is not None:
        if method != "viterbi" or posteriors:
            raise ValueError("beam: expected none where posteriors are wanted, a beam follows the best alignment alone")
        need_number("beam", beam)
        if not beam >= 0:
            raise ValueError(f"beam: expected at least 0 nats, got {beam}")
        return _align_in_pieces(log_emission, targets, lengths, target_lengths, topology, beam, kernel)
    posteriors = posteriors is None or posteriors
    made = problem_of(log_emission, targets, lengths, target_lengths, topology)
    graph, chain, backend = made.graph, made.chain, made.backend
    xp = backend.xp
    is_needed = posteriors or method == "posterior"
    piece = _whole(chain, kernel) if is_needed else None
    if method == "viterbi":
        states, scores = viterbi(
            graph.log_initial,
            graph.log_transition,
            made.emission,
            lengths=lengths,
            log_final=graph.log_final,
            kernel=kernel,
        )
    else:
        assert piece is not None
        states, scores = _most_expected(made, piece, lengths, kernel)
    made.explain(scores)
    labels, token_index = _frames(backend, graph, log_emission, states, chain.batch_shape, made.has_special)
    flat_index = xp.reshape(token_index, (-1, chain.num_steps))
    start, end = segments(backend, flat_index, made.num_tokens)
    details = _unknown(backend, chain.batch_shape, made.num_tokens, scores)
    if posteriors:
        assert piece is not None
        found_ = sums_of(made, piece, flat_index, start, end)
        details = [
            chain.unflatten(x) for x in moments(backend, found_, flat_index, start, end, xp.reshape(scores, (-1,)))
        ]
    start, end = chain.unflatten(start), chain.unflatten(end)
    none = xp.zeros_like(backend.stop_gradient(scores))
    return ForcedAlignment._make((labels, scores, token_index, start, end, *details, none, none - inf))


def _frames(
    backend: Backend, graph: AlignmentGraph, log_emission: Array, states: Array, batch: Any, has_special: bool
) -> tuple[Array, Array]:
    """The columns and tokens (..., T) of a path's frames."""
    xp = backend.xp
    is_state = states >= 0
    place = xp.where(is_state, states, 0)
    found = []
    for x in (graph.labels, graph.token_index):
        x = xp.broadcast_to(x, (*batch, x.shape[-1]))
        found.append(xp.where(is_state, backend.take_along(x, place, -1), -1))
    labels, token_index = found
    if has_special:
        best = xp.astype(xp.argmax(backend.stop_gradient(log_emission), axis=-1), backend.index_dtype())
        labels = xp.where(is_state & (labels < 0), best, labels)
    return labels, token_index


def _align_in_pieces(
    log_emission: Array,
    targets: Any,
    lengths: Any,
    target_lengths: Any,
    topology: Topology | None,
    beam: float,
    kernel: str,
) -> ForcedAlignment:
    """`forced_align` with a beam, one sequence after the other."""
    graph, num_tokens, _, has_special = compiled(log_emission, targets, target_lengths, topology)
    backend = backend_of(log_emission=log_emission)
    xp = backend.xp
    if backend.is_traced(log_emission, graph.log_initial, graph.labels):
        raise ValueError("beam: expected none in a traced call, whose windows would depend on data")
    num_steps = log_emission.shape[-2]
    ends = None if lengths is None else lengths_of(backend, lengths, num_steps, log_emission)
    shapes = {"log_emission": log_emission.shape[:-2], "targets": graph.labels.shape[:-1]}
    batch = broadcast_batch(shapes if ends is None else {**shapes, "lengths": ends.shape})
    ends = np.broadcast_to(num_steps if ends is None else backend.to_numpy(ends), batch)
    emission = xp.broadcast_to(log_emission, (*batch, *log_emission.shape[-2:]))
    paths, states = [], np.full((*batch, num_steps), -1)
    for place in np.ndindex(*batch):
        own = one_graph(graph, batch, place)
        end = int(ends[place])
        path = beam_path(own, emission[(*place, slice(0, end), slice(None))], beam, kernel)
        if path.log_bound == -inf:
            explain(own, backend.to_numpy(path.log_joint), end, list(place))
        states[(*place, slice(0, end))] = path.states
        paths.append(path)

    def numbers(x: Any) -> Array:
        found = backend.asarray(np.array(x, np.float64).reshape(batch), like=log_emission)
        return xp.astype(found, paths[0].log_joint.dtype)

    scores = xp.reshape(xp.stack([path.log_joint for path in paths]), batch)
    found = xp.astype(backend.asarray(states, like=log_emission), backend.index_dtype())
    labels, token_index = _frames(backend, graph, emission, found, batch, has_special)
    start, end_ = segments(backend, xp.reshape(token_index, (-1, num_steps)), num_tokens)
    start, end_ = (xp.reshape(x, (*batch, num_tokens)) for x in (start, end_))
    pruned, bound = (numbers([getattr(path, name) for path in paths]) for name in ("pruned", "log_bound"))
    details = _unknown(backend, batch, num_tokens, scores)
    return ForcedAlignment._make((labels, scores, token_index, start, end_, *details, pruned, bound))


def _unknown(backend: Backend, batch: Any, num_tokens: int, like: Array) -> list[Array]:
    return [backend.full((*batch, num_tokens), float("nan"), like=like)] * 5


def boundary_posteriors(
    log_emission: Array,
    targets: Any,
    *,
    lengths: Any = None,
    target_lengths: Any = None,
    topology: Topology | None = None,
    kernel: str = "auto",
) -> BoundaryPosteriors:
    """p(token n begins at frame t given x), and p(frame t is its last), summed over all alignments.

    Args: as `forced_align`.

    Returns:
        `BoundaryPosteriors(start (..., T, N), end (..., T, N))`; 0 in the padding and where no alignment is possible,
        NaN for a sequence holding NaN.

    Raises: as `forced_align`; no error is made of a transcript that is too long.

    Gradient: as that of posteriors.

    Cost: two passes, O(B T S) time and memory, and O(B T N) for the result.

    Example:
        >>> import torch, hmm_functional as hf
        >>> hf.boundary_posteriors(torch.zeros(3, 2), [0, 1]).start
        tensor([[1.0000, 0.0000],
                [0.0000, 0.5000],
                [0.0000, 0.5000]])
    """
    made = problem_of(log_emission, targets, lengths, target_lengths, topology)
    backend, xp = made.backend, made.backend.xp
    piece = _whole(made.chain, kernel)
    p = state_posteriors(backend, piece)
    found = masses(backend, piece, p, made.tokens, made.chain.lengths if made.chain.is_ragged else None)
    is_nan = xp.any(xp.isnan(p[..., 0]) & made.chain.is_valid(), axis=1)[:, None, None]
    return BoundaryPosteriors(*(made.chain.unflatten(xp.where(is_nan, xp.nan, x)) for x in found))


def _whole(chain: Chain, kernel: str) -> Piece:
    _, messages = forward_pass(chain, kernel, has_messages=True)
    return Piece(0, messages, backward_pass(chain, kernel), chain.emission)


def _most_expected(made: Problem, piece: Piece, lengths: Any, kernel: str) -> tuple[Array, Array]:
    """The possible path with the largest sum of posteriors, and its log p(x, z)."""
    backend, xp, graph = made.backend, made.backend.xp, made.graph
    # an alignment of possible states and transitions is possible, however small its posteriors
    is_impossible = piece.messages + piece.behind == -inf
    gain = xp.where(is_impossible, -inf, backend.stop_gradient(state_posteriors(backend, piece)))
    (weights,) = arrays_of(graph.log_transition).values()
    initial, weights, final = (
        xp.where(x == -inf, -inf, xp.zeros_like(x)) for x in (graph.log_initial, weights, graph.log_final)
    )
    transition = with_weights(graph.log_transition, weights)
    states, _ = viterbi(
        initial, transition, made.chain.unflatten(gain), lengths=lengths, log_final=final, kernel=kernel
    )
    scores = log_joint(
        graph.log_initial,
        graph.log_transition,
        made.emission,
        states=states,
        lengths=lengths,
        log_final=graph.log_final,
    )
    return states, scores
