"""Transcripts with words, silences, alternatives and gaps as graphs: which token may follow which, and how it weighs.

The positions of a transcript's tokens are the states of an automaton without empty transitions (Glushkov 1961), each
then drawn out into the states of its symbol.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, log
from typing import Any, NamedTuple

import numpy as np

from ..backend import Array, backend_of
from ..edges import MOST_BANDS
from ..transition import Banded, Sparse
from .graph import ANY, FREE, AlignmentGraph
from .topology import Topology, need_topology
from .transcript import Alternatives, Skippable, Transcript, Wildcard, is_token, transcript_tokens, words_of

Weights = dict[int, float]
"""Log weights by place."""


class _Part(NamedTuple):
    """What a part of a transcript begins and ends with, and the log weight of its being empty."""

    first: Weights
    last: Weights
    empty: float = -inf


_NOTHING = _Part({}, {}, 0.0)


class _Automaton:
    """Which token of a transcript may follow which, of all that are written in it."""

    def __init__(self) -> None:
        self.symbols: list[Any] = []
        self.words: list[int] = []
        self.follow: dict[int, Weights] = {}
        """By the later token, what may come before it."""

    def item(self, item: Any, word: int) -> _Part:
        """A token, or anything made of tokens."""
        if is_token(item) or isinstance(item, Wildcard):
            place = len(self.symbols)
            self.symbols.append(item)
            self.words.append(word)
            return _Part({place: 0.0}, {place: 0.0})
        if isinstance(item, Skippable):
            return _skippable(self.item(item.item, word), item.probability)
        if isinstance(item, Alternatives):
            weights = item.probabilities or [1.0] * len(item.pronunciations)
            parts = [_weighed(self.item(way, word), p) for way, p in zip(item.pronunciations, weights, strict=True)]
            first, last = (_union(*(getattr(part, name) for part in parts)) for name in ("first", "last"))
            return _Part(first, last, _add(part.empty for part in parts))
        whole = _NOTHING
        for part in item:
            whole = self.join(whole, self.item(part, word))
        return whole

    def join(self, before: _Part, after: _Part) -> _Part:
        """One part after the other."""
        for place, w in after.first.items():
            self.follow[place] = _union(self.follow.get(place, {}), _shifted(before.last, w))
        return _Part(
            _union(before.first, _shifted(after.first, before.empty)),
            _union(_shifted(before.last, after.empty), after.last),
            before.empty + after.empty,
        )


def transcript_graph(transcript: Transcript, *, like: Array, topology: Topology | None = None) -> AlignmentGraph:
    """The alignments of a transcript of words, pronunciations, gaps and wildcards.

    Args:
        transcript: tokens in order, `[3, 1, 4]`; or words in order, `[[3, 1], [4]]`, if any item is a list or
            `Alternatives`, where a token on its own is a word. `Alternatives([[3, 1], [3]])` is a word said one way or
            another, `Skippable(x)` is x or nothing, `Wildcard()` is anything. They nest.
        like: (..., T, V), the emissions the graph is for, or any array with their library, device, dtype and V columns.
        topology: states of symbols, and where silences may stand; default one state a symbol, no silence.

    Returns:
        `AlignmentGraph` without batch axes. Its transition is `Banded` where transitions have at most 16 different
        lengths, which kernels serve best, else `Sparse`. The log-likelihood is the log of the sum over all transcripts
        it stands for, times what they weigh.

    Raises:
        TypeError, ValueError: something in the transcript is no item, a token is no symbol, or there is neither token
        nor silence; the message says where.

    Cost: O(N), more where many neighbouring items may be missing: of n of them each follows each.

    References: Glushkov 1961 (positions as states).

    Example:
        >>> import torch, hmm_functional as hf
        >>> words = [[3, 1], hf.Alternatives([[2], [2, 2]])]
        >>> graph = hf.transcript_graph(words, like=torch.zeros(1, 4), topology=hf.Topology(silence=0))
        >>> graph.labels, graph.token_index
        (tensor([0, 3, 1, 0, 2, 2, 2, 0]), tensor([-1,  0,  1, -1,  2,  3,  4, -1]))
    """
    topology = need_topology(topology)
    num_columns = int(like.shape[-1])
    counts, columns = topology.symbols(num_columns)
    words = words_of(transcript)
    for i, symbol in enumerate(transcript_tokens(transcript).symbols):
        if symbol >= len(counts):
            raise ValueError(f"transcript: expected symbols 0..{len(counts) - 1}, got {symbol} as token {i}")

    made, whole = _Automaton(), _NOTHING
    for i, word in enumerate(words):
        whole = made.join(whole, made.item(word, i))
    if not made.symbols and topology.silence is None:
        raise ValueError("transcript: expected at least one token, or a silence in the topology, got none")
    positions = _positions(made, whole, topology)
    return _drawn_out(positions, topology, counts, columns, like)


class _Position(NamedTuple):
    symbol: Any
    token: int
    """-1 for a silence."""
    before: Weights
    """Log weights of what may come before, by position, -1 for the beginning."""
    final: float


def _positions(made: _Automaton, whole: _Part, topology: Topology) -> list[_Position]:
    """Tokens and silences in order.

    A silence stands before a token, or at the end, and takes the ways there that may pause. Tokens with the same ways,
    as alternatives have, share one, so that no silence follows another and each pause is counted once.
    """
    num_tokens = len(made.symbols)
    ways = [dict(made.follow.get(i, {})) for i in range(num_tokens)]
    for i, w in whole.first.items():
        ways[i][-1] = w
    ways.append({**whole.last, **({-1: whole.empty} if whole.empty > -inf else {})})
    ways = [{i: w for i, w in way.items() if w > -inf} for way in ways]

    def may_pause(before: int, after: int) -> bool:
        if before < 0 or after == num_tokens:
            return topology.silence is not None
        at = topology.silence_at if topology.silence is not None else "ends"
        return at == "tokens" or (at == "words" and made.words[before] != made.words[after])

    silences: dict[Any, dict[int, float]] = {}
    relative: dict[Any, list[tuple[int, float]]] = {}
    silence_of: dict[int, Any] = {}
    for after, way in enumerate(ways):
        paused = sorted((before, w) for before, w in way.items() if may_pause(before, after))
        if paused:
            base = paused[0][1]
            silence_of[after] = key = tuple((before, round(w - base, 12)) for before, w in paused)
            relative.setdefault(key, [(before, w - base) for before, w in paused])
            silences.setdefault(key, {})[after] = base
    order: list[Any] = sorted([*range(num_tokens), *silences], key=lambda x: _rank(x, silences))
    place = {-1: -1} | {x: i for i, x in enumerate(order)}
    found = []
    for x in order:
        if isinstance(x, tuple):
            before = {place[i]: w for i, w in relative[x]}
            found.append(_Position(topology.silence, -1, before, silences[x].get(num_tokens, -inf)))
            continue
        before = {place[i]: w for i, w in ways[x].items()}
        if x in silence_of:
            before[place[silence_of[x]]] = silences[silence_of[x]][x]
        found.append(_Position(made.symbols[x], x, before, ways[-1].get(x, -inf)))
    return found


def _rank(x: Any, silences: dict[Any, dict[int, float]]) -> tuple[int, bool]:
    """Tokens in order, each after its silence."""
    return (min(silences[x]), False) if isinstance(x, tuple) else (x, True)


def _drawn_out(
    positions: Sequence[_Position],
    topology: Topology,
    counts: Sequence[int],
    columns: Sequence[int],
    like: Array,
) -> AlignmentGraph:
    """The graph of states, from that of positions."""
    lengths = [p.symbol.states if isinstance(p.symbol, Wildcard) else counts[p.symbol] for p in positions]
    ends = np.cumsum(lengths)
    begins, num_states = ends - lengths, int(ends[-1])
    labels, bonus = np.zeros(num_states, np.int64), np.zeros(num_states)
    initial, final = np.full((2, num_states), -inf)
    ways = []
    for i, (symbol, _, before, last) in enumerate(positions):
        inside = slice(begins[i], ends[i])
        if isinstance(symbol, Wildcard):
            labels[inside], bonus[inside] = (ANY if symbol.is_relative else FREE), symbol.score
        else:
            labels[inside] = columns[symbol] + (0 if topology.is_tied else np.arange(lengths[i]))
        initial[begins[i]], final[ends[i] - 1] = before.get(-1, -inf), last
        ways += [(ends[j] - 1, begins[i], w) for j, w in before.items() if j >= 0]
    state = np.arange(num_states)
    inner = np.setdiff1d(state, ends - 1)
    between = np.array(ways, np.float64).reshape(-1, 3)
    sources = np.concatenate([state, inner, between[:, 0].astype(np.int64)])
    targets = np.concatenate([state, inner + 1, between[:, 1].astype(np.int64)])
    weights = np.concatenate([np.zeros(num_states + len(inner)), between[:, 2]])
    tokens = np.repeat([p.token for p in positions], lengths)
    # what a wildcard adds to a frame's score is a weight of coming there
    edges = (sources, targets, weights + bonus[targets])
    return topology.weigh(_graph(initial + bonus, edges, final, labels, tokens, like), like)


def stack_graphs(graphs: Sequence[AlignmentGraph]) -> AlignmentGraph:
    """Graphs of different transcripts as one batch of them, padded with states that cannot be reached.

    Args:
        graphs: B graphs without batch axes, of one library; `Banded` and `Sparse` may meet. Their values are read, so
            gradients of weights do not pass.

    Returns:
        `AlignmentGraph` with a batch axis of B: `Banded`, if transitions have at most 16 different lengths in all
        graphs together, else `Sparse` with the edges of all, -inf where a graph lacks one.

    Raises:
        ValueError: no graph, or one that is a batch.

    Cost: O(B S) for `Banded`, O(B E) for `Sparse`.

    Example:
        >>> import torch, hmm_functional as hf
        >>> like = torch.zeros(1, 4)
        >>> graphs = [hf.transcript_graph(words, like=like) for words in ([[3], [1, 2]], [[0]])]
        >>> hf.stack_graphs(graphs).token_index
        tensor([[ 0,  1,  2],
                [ 0, -1, -1]])
    """
    if not graphs:
        raise ValueError("graphs: expected at least one, got none")
    for graph in graphs:
        if graph.labels.ndim != 1:
            raise ValueError(f"graphs: expected graphs without batch axes, got labels of {tuple(graph.labels.shape)}")
    like = graphs[0].log_initial
    backend = backend_of(**{f"graphs[{i}]": graph.log_initial for i, graph in enumerate(graphs)})
    most = max(graph.labels.shape[-1] for graph in graphs)

    def padded(name: str, value: float) -> Any:
        rows = [backend.to_numpy(getattr(graph, name)) for graph in graphs]
        # what pads a graph is scored by one of its own columns: scores of others would only cost precision
        return np.stack(
            [np.pad(x, (0, most - len(x)), constant_values=x[-1] if name == "labels" else value) for x in rows]
        )

    lists = [graph_edges_of(graph) for graph in graphs]
    keys = np.unique(np.concatenate([sources * most + targets for sources, targets, _ in lists]))
    weights = np.full((len(graphs), len(keys)), -inf)
    for row, (sources, targets, own) in zip(weights, lists, strict=True):
        row[np.searchsorted(keys, sources * most + targets)] = own
    return _graph(
        padded("log_initial", -inf),
        (keys // most, keys % most, weights),
        padded("log_final", -inf),
        padded("labels", 0),
        padded("token_index", -1),
        like,
    )


def graph_edges_of(graph: AlignmentGraph) -> tuple[Any, Any, Any]:
    """Sources, targets and weights (..., E) of a graph's edges on the host, but for those that are -inf throughout."""
    transition = graph.log_transition
    if isinstance(transition, Banded):
        backend = backend_of(log_bands=transition.log_bands)
        bands = backend.to_numpy(transition.log_bands)
        bands = bands if bands.ndim == 2 else bands[..., 0, :, :]
        num_states = bands.shape[-1]
        sources = np.tile(np.arange(num_states), len(transition.offsets))
        targets = sources + np.repeat(transition.offsets, num_states)
        weights = bands.reshape(*bands.shape[:-2], -1)
        is_edge = (targets >= 0) & (targets < num_states)
    else:
        backend = backend_of(log_weights=transition.log_weights)
        sources, targets = transition.sources.values, transition.targets.values
        weights = backend.to_numpy(transition.log_weights)
        weights = weights if weights.ndim == 1 else weights[..., 0, :]
        is_edge = np.ones(len(sources), bool)
    is_edge &= (weights.reshape(-1, len(sources)) > -inf).any(0)
    return sources[is_edge], targets[is_edge], weights[..., is_edge]


def _graph(
    initial: Any, edges: tuple[Any, Any, Any], final: Any, labels: Any, tokens: Any, like: Array
) -> AlignmentGraph:
    """A graph as arrays like `like`, from arrays on the host."""
    backend = backend_of(like=like)
    xp, index = backend.xp, backend.index_dtype()
    sources, targets, weights = edges
    num_states = labels.shape[-1]
    offsets, place = np.unique(targets - sources, return_inverse=True)

    def numbers(x: Any) -> Array:
        return xp.astype(backend.asarray(x, like=like), like.dtype)

    transition: Any
    if len(offsets) <= MOST_BANDS:
        bands = np.full((*weights.shape[:-1], len(offsets), num_states), -inf)
        bands[..., place, sources] = weights
        transition = Banded(numbers(bands[..., None, :, :]), tuple(offsets.tolist()))
    else:
        transition = Sparse(numbers(weights[..., None, :]), sources, targets, num_states)
    integers = (xp.astype(backend.asarray(x, like=like), index) for x in (labels, tokens))
    return AlignmentGraph(numbers(initial), transition, numbers(final), *integers)


def _skippable(part: _Part, probability: float | None) -> _Part:
    said = _weighed(part, 1.0 if probability is None else 1.0 - probability)
    missing = 0.0 if probability is None else _log(probability)
    return said._replace(empty=_add((said.empty, missing)))


def _weighed(part: _Part, probability: float) -> _Part:
    """The part with a weight, which its beginning carries."""
    w = _log(probability)
    return _Part(_shifted(part.first, w), part.last, part.empty + w)


def _union(*weights: Weights) -> Weights:
    found: Weights = {}
    for part in weights:
        for position, w in part.items():
            found[position] = _add((found.get(position, -inf), w))
    return found


def _shifted(weights: Weights, by: float) -> Weights:
    return {position: w + by for position, w in weights.items()} if by > -inf else {}


def _add(weights: Any) -> float:
    return float(np.logaddexp.reduce(list(weights)))


def _log(p: float) -> float:
    return log(p) if p > 0 else -inf
