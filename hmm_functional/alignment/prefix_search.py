"""The most probable labellings of frames scored by a CTC model: greedy, and n-best by a beam over prefixes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf, isfinite, prod
from typing import Any, NamedTuple

import numpy as np

from .._check import broadcast_batch, need_count, need_integers, need_number, need_shape
from ..backend import Array, backend_of
from ..chain import lengths_of
from .ctc import need_log_probs

LanguageModel = Callable[[Any, list[Any]], tuple[Any, Sequence[Any]]]
"""(symbols (P,), states) to (log_p (P, V), states): see `ctc_prefix_search`."""

_SLACK = 1e-3
"""Nats above 0 that a language model's rounding may give."""


class PrefixSearch(NamedTuple):
    """The n best labellings, best first."""

    labels: Array
    """(..., R, L) integers: symbols without blanks, padded with -1."""
    scores: Array
    """(..., R): what they are ordered by, -inf where fewer were found."""
    log_likelihood: Array
    """(..., R): log p(labels given x), without language model and bonus."""
    target_lengths: Array
    """(..., R) integers: symbols of each."""


def ctc_collapse(labels: Array, *, blank: int = 0) -> Array:
    """What a path of a CTC model says: repeats of a symbol are one, blanks are none.

    Args:
        labels: (..., T) integers, the symbol of each frame; negative ones are padding.
        blank: the symbol that stands for none.

    Returns:
        (..., T) int64 (int32 under JAX without x64), left-aligned, padded with -1.

    Raises:
        TypeError: not integers. ValueError: shapes.

    Cost: O(T log T).

    References: Graves et al. 2006, section 3.1.

    Example:
        >>> import torch, hmm_functional as hf
        >>> hf.ctc_collapse(torch.tensor([0, 3, 3, 0, 3, 5]))
        tensor([ 3,  3,  5, -1, -1, -1])
    """
    backend = backend_of(labels=labels)
    xp = backend.xp
    need_integers("labels", xp, labels)
    need_shape("labels", labels.shape, (None,), "(..., T)")
    blank = need_count("blank", blank, 0)
    labels = xp.astype(labels, backend.index_dtype(), copy=False)
    before = xp.concat([xp.full_like(labels[..., :1], -1), labels[..., :-1]], axis=-1)
    is_new = (labels >= 0) & (labels != blank) & (labels != before)
    order = xp.argsort(xp.astype(~is_new, backend.index_dtype()), axis=-1, stable=True)
    return backend.take_along(xp.where(is_new, labels, -1), order, -1)


def ctc_greedy_search(log_probs: Array, *, lengths: Any = None, blank: int = 0) -> Array:
    """The labelling of the best path: argmax of each frame, without repeats and blanks.

    It need not be the most probable labelling, whose probability is a sum over paths: `ctc_prefix_search` finds that.

    Args:
        log_probs: (..., T, V), log p(symbol of frame t), nats.
        lengths: (...) integers 1..T, the frames of right-padded sequences; padding is never read.
        blank: the symbol that stands for none.

    Returns:
        (..., T) int64 (int32 under JAX without x64), padded with -1; ties of a frame go to the lowest symbol. All -1
        where a frame has no possible symbol or holds NaN.

    Raises:
        TypeError: not arrays of one library, or not floating-point. ValueError: shapes, lengths or the blank.

    Cost: O(T V).

    Example:
        >>> import torch, hmm_functional as hf
        >>> hf.ctc_greedy_search(torch.tensor([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8]]).log())
        tensor([ 1, -1, -1])
    """
    lengths, blank = _checked(log_probs, lengths, blank)
    backend = backend_of(log_probs=log_probs)
    xp = backend.xp
    top = xp.max(log_probs, axis=-1)
    labels = xp.astype(xp.argmax(log_probs, axis=-1), backend.index_dtype())
    is_bad = ~(top > -inf)
    if lengths is not None:
        is_valid = backend.arange(log_probs.shape[-2], like=log_probs) < lengths[..., None]
        labels, is_bad = xp.where(is_valid, labels, -1), is_valid & is_bad
    return ctc_collapse(xp.where(xp.any(is_bad, axis=-1)[..., None], -1, labels), blank=blank)


def ctc_prefix_search(
    log_probs: Array,
    *,
    lengths: Any = None,
    blank: int = 0,
    beam_width: int = 16,
    num_results: int = 1,
    language_model: LanguageModel | None = None,
    language_weight: float = 1.0,
    length_bonus: float = 0.0,
) -> PrefixSearch:
    """The labellings of highest log p(labels given x), each summed over all its alignments, by a beam of prefixes.

    Every frame extends each prefix of the beam by each symbol; equal prefixes are one, whose paths that end in a blank
    and whose paths that do not are summed apart, and the best `beam_width` go on. Scores are exact where the beam has
    room for all prefixes; else those found are lower bounds.

    Args:
        log_probs: (..., T, V), log p(symbol of frame t), nats; read on the host.
        lengths: (...) integers 1..T, the frames of right-padded sequences; padding is never read.
        blank: the symbol that stands for none.
        beam_width: prefixes kept after each frame.
        num_results: R, at most `beam_width`.
        language_model: `language_model(symbols, states)` is asked once of each prefix that enters the beam: `symbols`
            (P,), the last symbols of P prefixes, `blank` for the empty one, and `states`, a list of what it gave for
            those prefixes less that symbol, None for the empty one. It gives log p(next symbol given prefix) (P, V), at
            `blank` log p(nothing follows), and P states of its own. A matrix of bigrams, the blank as start and end, is
            `lambda symbols, states: (bigrams[symbols], states)`.
        language_weight: factor of the language model's log-probabilities.
        length_bonus: nats added for each symbol.

    Returns:
        `PrefixSearch(labels (..., R, L), scores (..., R), log_likelihood (..., R), target_lengths (..., R))`, best
        first; L is the longest found. scores = log_likelihood + language_weight log p(labels) + length_bonus symbols.
        -1 and -inf where fewer are possible; NaN scores where a sequence holds NaN.

    Raises:
        TypeError: not arrays of one library, not floating-point, or traced; a language model that cannot be called.
        ValueError: shapes, lengths, the blank, more results than the beam is wide, or what the language model gives,
        such as log-probabilities above 0.

    Cost: O(B T beam_width V) in NumPy, all sequences of a batch together; memory grows by what enters the beam.

    References: Graves 2012, section 7.5 (prefix search); Hannun et al. 2014, algorithm 1.

    Example:
        >>> import torch, hmm_functional as hf
        >>> frames = torch.tensor([[0.6, 0.4], [0.6, 0.4]]).log()
        >>> found = hf.ctc_prefix_search(frames, num_results=2)
        >>> found.labels, found.log_likelihood.exp()
        (tensor([[ 1],
                [-1]]), tensor([0.6400, 0.3600]))
    """
    lengths, blank = _checked(log_probs, lengths, blank)
    backend = backend_of(log_probs=log_probs)
    xp = backend.xp
    if backend.is_traced(log_probs):
        raise TypeError("log_probs: expected values that can be read, got a traced array; the search depends on them")
    beam_width = need_count("beam_width", beam_width, 1)
    num_results = need_count("num_results", num_results, 1)
    if num_results > beam_width:
        raise ValueError(f"num_results: expected at most beam_width = {beam_width}, got {num_results}")
    for name, value in (("language_weight", language_weight), ("length_bonus", length_bonus)):
        need_number(name, value)
        if not isfinite(value):
            raise ValueError(f"{name}: expected a finite number, got {value}")
    if language_model is not None and not callable(language_model):
        raise TypeError(f"language_model: expected a callable or None, got {type(language_model).__name__}")
    num_steps, num_symbols = log_probs.shape[-2:]
    batch = tuple(log_probs.shape[:-2])
    if lengths is not None:
        batch = broadcast_batch({"log_probs": batch, "lengths": tuple(lengths.shape)})
    size = prod(batch)
    host = np.asarray(backend.to_numpy(log_probs), np.float64)
    frames = np.broadcast_to(host, (*batch, num_steps, num_symbols)).reshape(size, num_steps, num_symbols)
    ends = np.full(size, num_steps) if lengths is None else np.broadcast_to(backend.to_numpy(lengths), batch).ravel()
    hook = None if language_model is None or language_weight == 0 else language_model
    search = _Search(size, num_symbols, blank, beam_width, hook, language_weight, length_bonus)
    with np.errstate(invalid="ignore", divide="ignore"):
        labels, scores, likelihood = search.run(frames, ends, num_results)

    longest = max((len(path) for path in labels), default=0)
    padded = np.full((size * num_results, longest), -1)
    for row, path in zip(padded, labels, strict=True):
        row[: len(path)] = path
    counts = np.array([len(path) for path in labels], np.int64).reshape(*batch, num_results)
    dtype = log_probs.dtype if xp.finfo(log_probs.dtype).bits >= 32 else xp.float32
    index = backend.index_dtype()

    def given(x: Any, dtype: Any) -> Array:
        return xp.astype(backend.asarray(x, like=log_probs), dtype, copy=False)

    return PrefixSearch(
        given(padded.reshape(*batch, num_results, longest), index),
        given(scores.reshape(*batch, num_results), dtype),
        given(likelihood.reshape(*batch, num_results), dtype),
        given(counts, index),
    )


class _Search:
    """Beams of all sequences (B, P), and the tree of all prefixes met, whose node for a prefix is always the same."""

    def __init__(
        self,
        size: int,
        num_symbols: int,
        blank: int,
        width: int,
        language_model: LanguageModel | None,
        weight: float,
        bonus: float,
    ) -> None:
        self.num_symbols, self.blank, self.width = num_symbols, blank, width
        self.language_model, self.weight, self.bonus = language_model, weight, bonus
        self.symbols, self.parents = [-1] * size, [-1] * size  # the first nodes are the empty prefixes
        self.known: dict[int, int] = {}
        self.told: dict[int, tuple[Any, Any]] = {}
        shape = (size, width)
        self.in_blank, self.in_symbol = np.full(shape, -inf), np.full(shape, -inf)
        self.in_blank[:, 0] = 0.0
        self.node, self.parent, self.last = np.full(shape, -1), np.full(shape, -2), np.full(shape, -1)
        self.node[:, 0] = np.arange(size)
        self.prior = np.zeros(shape)
        """What language model and bonus say of each prefix."""
        self.ahead = np.zeros((*shape, num_symbols if language_model else 1))
        """What they say of the next symbol."""
        if language_model is not None:
            self._ask(np.arange(size))
            self.ahead[:, 0] = [self.told[node][0] for node in range(size)]

    def run(self, frames: Any, ends: Any, num_results: int) -> tuple[list[list[int]], Any, Any]:
        """Labels of each sequence's results, their scores (B, R) and log-likelihoods (B, R)."""
        order = np.argsort(-ends, kind="stable")
        frames, ends = frames[order], ends[order]
        for step in range(int(ends.max(initial=0))):
            self._step(frames[: np.searchsorted(-ends, -step), step])
        likelihood = np.logaddexp(self.in_blank, self.in_symbol)
        scores = likelihood + self.prior
        if self.language_model is not None:
            scores = scores + self.weight * self.ahead[..., self.blank]
        best = np.argsort(-scores, axis=1, kind="stable")[:, :num_results]
        scores, likelihood, node = (np.take_along_axis(x, best, 1) for x in (scores, likelihood, self.node))
        is_nan = np.isnan(frames) & (np.arange(frames.shape[1])[:, None] < ends[:, None, None])
        is_nan = is_nan.any((1, 2))[:, None]
        node = np.where(is_nan | (scores == -inf), -1, node)
        scores, likelihood = np.where(is_nan, np.nan, scores), np.where(is_nan, np.nan, likelihood)
        back = np.argsort(order)
        return [self._path(n) for n in node[back].ravel().tolist()], scores[back], likelihood[back]

    def _path(self, node: int) -> list[int]:
        path = []
        while node >= 0 and self.parents[node] >= 0:
            path.append(self.symbols[node])
            node = self.parents[node]
        return path[::-1]

    def _step(self, frame: Any) -> None:
        """Take the next frame (A, V) of the first A sequences."""
        count, num_symbols = frame.shape
        width, rows = self.width, np.arange(count)[:, None]
        in_blank, in_symbol, node = self.in_blank[:count], self.in_symbol[:count], self.node[:count]
        parent, last, prior = self.parent[:count], self.last[:count], self.prior[:count]
        total = np.logaddexp(in_blank, in_symbol)
        again = frame[rows, last]  # the empty prefix has no last symbol, nor paths that end in it
        to_blank, to_symbol = total + frame[:, self.blank, None], in_symbol + again
        longer = total[:, :, None] + frame[:, None, :]
        longer[rows, np.arange(width), np.where(last < 0, self.blank, last)] = in_blank + again
        longer[:, :, self.blank] = -inf
        # a longer prefix that is in the beam already
        which, child, source = np.nonzero(parent[:, :, None] == node[:, None, :])
        symbol = last[which, child]
        to_symbol[which, child] = np.logaddexp(to_symbol[which, child], longer[which, source, symbol])
        longer[which, source, symbol] = -inf

        ahead = self.bonus + self.weight * self.ahead[:count]
        ranks = np.concatenate(
            [
                np.logaddexp(to_blank, to_symbol) + prior,
                (longer + prior[:, :, None] + ahead).reshape(count, -1),
            ],
            axis=1,
        )
        ranks[np.isnan(ranks)] = -inf
        kept = np.argpartition(-ranks, width - 1, axis=1)[:, :width]
        is_alive = np.take_along_axis(ranks, kept, 1) > -inf
        is_longer = kept >= width
        place, symbol = np.where(is_longer, (kept - width) // num_symbols, kept), (kept - width) % num_symbols
        gone = ~is_alive
        is_new = is_longer & is_alive
        values = np.where(is_longer, longer[rows, place, symbol], to_symbol[rows, place])
        self.in_blank[:count] = np.where(is_longer | gone, -inf, to_blank[rows, place])
        self.in_symbol[:count] = np.where(gone, -inf, values)
        extra = ahead[rows, place, symbol if self.language_model else 0]
        self.prior[:count] = prior[rows, place] + np.where(is_longer, extra, 0.0)
        self.parent[:count] = np.where(gone, -2, np.where(is_longer, node[rows, place], parent[rows, place]))
        self.last[:count] = np.where(is_longer, symbol, last[rows, place])
        found = np.where(gone, -1, node[rows, place])
        found[is_new] = self._nodes(node[rows, place][is_new], symbol[is_new])
        self.node[:count] = found
        if self.language_model is not None:
            following = self.ahead[:count][rows, place]
            for at in zip(*np.nonzero(is_new), strict=True):
                following[at] = self.told[int(found[at])][0]
            self.ahead[:count] = following

    def _nodes(self, parents: Any, symbols: Any) -> list[int]:
        """The nodes of prefixes, made where they are new."""
        found, made = [], []
        for parent, symbol in zip(parents.tolist(), symbols.tolist(), strict=True):
            key = parent * self.num_symbols + symbol
            node = self.known.get(key)
            if node is None:
                node = self.known[key] = len(self.symbols)
                self.symbols.append(symbol)
                self.parents.append(parent)
                made.append(node)
            found.append(node)
        if made and self.language_model is not None:
            self._ask(made)
        return found

    def _ask(self, nodes: Any) -> None:
        """Ask the language model of new prefixes."""
        assert self.language_model is not None
        if not len(nodes):
            return
        symbols = np.array([self.symbols[node] if self.parents[node] >= 0 else self.blank for node in nodes])
        states = [self.told[self.parents[node]][1] if self.parents[node] >= 0 else None for node in nodes]
        rows, after = self.language_model(symbols, states)
        rows = np.asarray(rows, np.float64)
        wanted = (len(nodes), self.num_symbols)
        if rows.shape != wanted or len(after) != len(nodes):
            raise ValueError(
                f"language_model: expected {wanted} log-probabilities and {len(nodes)} states, "
                f"got {rows.shape} and {len(after)}"
            )
        if np.isnan(rows).any():
            raise ValueError("language_model: expected log-probabilities, got NaN")
        if (most := rows.max(initial=-inf)) > _SLACK:
            raise ValueError(f"language_model: expected log-probabilities, at most 0, got {most:.6g}")
        self.told |= {int(node): (row, state) for node, row, state in zip(nodes, rows, after, strict=True)}


def _checked(log_probs: Array, lengths: Any, blank: Any) -> tuple[Any, int]:
    """`lengths` as an array, or None, and `blank`."""
    backend = backend_of(log_probs=log_probs)
    blank = need_log_probs(backend, log_probs, blank)
    if lengths is not None:
        lengths = lengths_of(backend, lengths, log_probs.shape[-2], log_probs)
        broadcast_batch({"log_probs": tuple(log_probs.shape[:-2]), "lengths": tuple(lengths.shape)})
    return lengths, blank
