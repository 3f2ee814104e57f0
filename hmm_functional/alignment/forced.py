"""Forced alignment: the frames of each token of a transcript, how sure they are, and how sure their boundaries."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Any, NamedTuple

import numpy as np

from .._check import broadcast_batch, need_floating, need_shape
from ..backend import Array, Backend, backend_of
from ..chain import Chain, chain_of, lengths_of
from ..decode import log_joint, viterbi
from ..likelihood import backward_pass, forward_pass
from ..numerics import logsumexp
from ..transition import Banded, with_weights
from .beam import beam_path
from .compiler import graph_edges_of
from .graph import AlignmentGraph, running_sum, state_scores
from .posteriors import Piece, Tokens, masses, own_posteriors, state_posteriors, tokens_of
from .topology import Topology, token_graph

_METHODS = ("viterbi", "posterior")
_CACHED = 2**17
"""Elements of the arrays that pieces of the time axis are worked through with."""


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
            one. Sequences are then gone through piece by piece, in memory that does not grow with T S. With `inf`
            nothing is given up and the result is exact. The result says in `pruned` and `log_bound` what was given up;
            if log_bound <= log_joint it is exact for certain, and else it may be. Not where calls are traced.
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
        if not beam >= 0:
            raise ValueError(f"beam: expected at least 0 nats, got {beam}")
        return _align_in_pieces(log_emission, targets, lengths, target_lengths, topology, beam, kernel)
    posteriors = posteriors is None or posteriors
    made = _problem(log_emission, targets, lengths, target_lengths, topology)
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
        sums = _sums(made, piece, flat_index, start, end)
        details = [
            chain.unflatten(x) for x in _moments(backend, sums, flat_index, start, end, xp.reshape(scores, (-1,)))
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
    graph, num_tokens, _, has_special = _compiled(log_emission, targets, target_lengths, topology)
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
        own = _one(graph, batch, place)
        end = int(ends[place])
        path = beam_path(own, emission[(*place, slice(0, end), slice(None))], beam, kernel)
        if path.log_bound == -inf:
            _explain(own, backend.to_numpy(path.log_joint), end, list(place))
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


def _one(graph: AlignmentGraph, batch: Any, place: Any) -> AlignmentGraph:
    """One of a batch of graphs."""
    if not batch:
        return graph
    backend = backend_of(log_initial=graph.log_initial)
    transition: Any = graph.log_transition
    weights = transition.log_bands if isinstance(transition, Banded) else transition.log_weights
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
    made = _problem(log_emission, targets, lengths, target_lengths, topology)
    backend, xp = made.backend, made.backend.xp
    piece = _whole(made.chain, kernel)
    p = state_posteriors(backend, piece)
    found = masses(backend, piece, p, made.tokens, made.chain.lengths if made.chain.is_ragged else None)
    is_nan = xp.any(xp.isnan(p[..., 0]) & made.chain.is_valid(), axis=1)[:, None, None]
    return BoundaryPosteriors(*(made.chain.unflatten(xp.where(is_nan, xp.nan, x)) for x in found))


@dataclass(frozen=True)
class _Problem:
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
            _explain(_one(self.graph, chain.batch_shape, tuple(place)), -inf, int(there[i]), place)


def _explain(graph: AlignmentGraph, score: Any, num_frames: int, place: list[int]) -> None:
    """Raise ValueError if an impossible alignment has too few frames."""
    if float(score) != -inf or (needed := float(fewest_frames(graph))) <= num_frames:
        return
    where = f" of sequence {place[0] if len(place) == 1 else place}" if place else ""
    what = f"at least {int(needed)} frames" if needed < inf else "an alignment that ends"
    raise ValueError(f"targets: the transcript{where} needs {what}, log_emission has {num_frames}")


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


def _compiled(
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


def _problem(
    log_emission: Array, targets: Any, lengths: Any, target_lengths: Any, topology: Topology | None
) -> _Problem:
    graph, num_tokens, most_states, has_special = _compiled(log_emission, targets, target_lengths, topology)
    emission = state_scores(graph, log_emission)
    chain = chain_of(graph.log_initial, graph.log_transition, emission, lengths=lengths, log_final=graph.log_final)
    if chain.weights[0].shape[1] != 1 and chain.num_steps > 2:
        raise ValueError("targets: expected a graph whose transition does not vary in time")
    return _Problem(graph, emission, chain, num_tokens, most_states, has_special)


def _num_tokens(targets: Any) -> int:
    if isinstance(targets, list | tuple):
        parts = (_num_tokens(x) if isinstance(x, list | tuple | np.ndarray) else len(targets) for x in targets)
        return max(parts, default=0)
    return int(targets.shape[-1])


def _most_states(tokens: Any) -> int:
    """The most states (..., S) on the host that share a token."""
    rows = tokens.reshape(-1, tokens.shape[-1]) + 1
    return max((int(np.bincount(row, minlength=2)[1:].max()) for row in rows), default=0) or 1


def _whole(chain: Chain, kernel: str) -> Piece:
    _, messages = forward_pass(chain, kernel, has_messages=True)
    return Piece(0, messages, backward_pass(chain, kernel), chain.emission)


def _total(backend: Backend, piece: Piece) -> Array:
    """The logsumexp (B, t, 1) of messages + behind, 0 where all are -inf."""
    total = logsumexp(backend, piece.messages + piece.behind, keepdims=True)
    return backend.xp.where(total == -inf, 0.0, total)


def _most_expected(made: _Problem, piece: Piece, lengths: Any, kernel: str) -> tuple[Array, Array]:
    """The possible path with the largest sum of posteriors, and its log p(x, z)."""
    backend, xp, graph = made.backend, made.backend.xp, made.graph
    log_posteriors = backend.stop_gradient(piece.messages + piece.behind - _total(backend, piece))
    # an alignment of possible states and transitions is possible, however small its posteriors
    gain = xp.where(log_posteriors == -inf, -inf, xp.exp(log_posteriors))
    open_ = [xp.where(x == -inf, -inf, xp.zeros_like(x)) for x in (graph.log_initial, graph.log_final)]
    (name,) = ("log_bands",) if hasattr(graph.log_transition, "log_bands") else ("log_weights",)
    weights = getattr(graph.log_transition, name)
    transition = with_weights(graph.log_transition, xp.where(weights == -inf, -inf, xp.zeros_like(weights)))
    states, _ = viterbi(
        open_[0], transition, made.chain.unflatten(gain), lengths=lengths, log_final=open_[1], kernel=kernel
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


def segments(backend: Backend, token_index: Array, num_tokens: int) -> tuple[Array, Array]:
    """The first frame of each token and the one after its last, (B, N) each, -1 for tokens without any; of (B, T)."""
    xp, index = backend.xp, backend.index_dtype()
    num_steps = token_index.shape[-1]
    if not backend.is_traced(token_index) and backend.is_host(token_index):
        return _read_segments(backend, token_index, num_tokens)
    numbers = xp.astype(backend.arange(num_tokens, like=token_index), index)
    steps = xp.astype(backend.arange(num_steps, like=token_index), index)[:, None]
    is_own = token_index[..., None] == numbers
    start = xp.min(xp.where(is_own, steps, num_steps), axis=1)
    end = xp.max(xp.where(is_own, steps + 1, -1), axis=1)
    return xp.where(end < 0, -1, start), end


def _read_segments(backend: Backend, token_index: Array, num_tokens: int) -> tuple[Array, Array]:
    tokens = backend.to_numpy(token_index)
    edge = np.full((len(tokens), 1), -1)
    changes = np.diff(tokens, axis=1, prepend=edge, append=edge) != 0
    found = np.full((2, len(tokens), num_tokens), -1)
    for times, is_there, shift in zip(found, (changes[:, :-1], changes[:, 1:]), (0, 1), strict=True):
        row, step = np.nonzero(is_there & (tokens >= 0))
        times[row, tokens[row, step]] = step + shift
    start, end = (backend.xp.astype(backend.asarray(x, like=token_index), backend.index_dtype()) for x in found)
    return start, end


class _Sums(NamedTuple):
    """What is summed over steps, moments about the alignment's own boundaries."""

    own: Array
    """(B, T): the posterior of each frame's token."""
    starts: tuple[Array, Array, Array]
    """(B, N): the mass of each token's start, its first and second moments."""
    ends: tuple[Array, Array, Array]


def _sums(made: _Problem, piece: Piece, token_index: Array, start: Array, end: Array) -> _Sums:
    """The sums over a piece's steps."""
    backend, xp, tokens = made.backend, made.backend.xp, made.tokens
    width = max(token_index.shape[0] * made.chain.num_states, 1)
    own: list[Array] = []
    found: list[Array] = []
    for part in piece.split(piece.num_steps if backend.is_traced(token_index) else max(_CACHED // width, 1)):
        p = state_posteriors(backend, part)
        own.append(own_posteriors(backend, p, tokens, token_index[:, part.begin : part.begin + part.num_steps]))
        mass = masses(backend, part, p, tokens, made.chain.lengths if made.chain.is_ragged else None)
        steps = xp.astype(part.begin + backend.arange(part.num_steps, like=p), p.dtype)[:, None]
        sums = []
        for x, about in ((mass.begins, start), (mass.ends, end - 1)):
            away = steps - xp.astype(about, p.dtype)[:, None, :]
            first = x * away
            sums += [xp.sum(y, axis=1) for y in (x, first, first * away)]
        found = [a + b for a, b in zip(found, sums, strict=True)] if found else sums
    return _Sums(xp.concat(own, axis=1), tuple(found[:3]), tuple(found[3:]))


def _confidence(backend: Backend, own: Array, token_index: Array, start: Array, end: Array) -> Array:
    """The mean (B, N) of each token's posteriors (B, T) over its segment."""
    xp = backend.xp
    own = xp.where(token_index < 0, 0.0, own)
    if (dtype := backend.wide_dtype(own)) is not None:
        sums = running_sum(backend, xp.astype(xp.concat([xp.zeros_like(own[:, :1]), own], axis=1), dtype))
        until, since = (backend.take_along(sums, xp.clip(x, min=0), -1) for x in (end, start))
        total = xp.astype(until - since, own.dtype)
    else:  # differences of sums would cost precision
        steps = backend.arange(own.shape[1], like=start)[:, None]
        inside = (steps >= start[:, None, :]) & (steps < end[:, None, :])
        total = xp.sum(xp.where(inside, own[..., None], 0.0), axis=1)
    return total / xp.clip(xp.astype(end - start, own.dtype), min=1.0)


def _moments(backend: Backend, sums: _Sums, token_index: Array, start: Array, end: Array, scores: Array) -> list[Array]:
    """Confidence, and mean and standard deviation of start and of end, (B, N) each."""
    xp = backend.xp
    dtype = sums.own.dtype
    is_there = end >= 0
    found = [_confidence(backend, sums.own, token_index, start, end)]
    for (mass, first, second), about in ((sums.starts, start), (sums.ends, end)):
        mass = xp.where(mass > 0, mass, 1.0)
        mean = first / mass
        variance = second / mass - mean * mean
        is_wide = variance > 0
        found += [
            xp.astype(about, dtype) + mean,
            xp.where(is_wide, xp.sqrt(xp.where(is_wide, variance, 1.0)), 0.0),
        ]
    is_nan = xp.isnan(scores)[:, None]
    return [xp.where(is_nan, xp.nan, xp.where(is_there, x, 0.0)) for x in found]
