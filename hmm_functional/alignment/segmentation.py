"""Long audio cut at the utterances of its transcript: the best CTC path of all of them, found in bounded memory.

The states (2 N + 1) times the frames of an hour are billions of cells. Messages are therefore kept between blocks of
frames alone, and only where a path may still be the best: what is left out is bounded from above, and where that might
have won, the search is run again with the score in hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isnan
from typing import Any, NamedTuple

import numpy as np

from .._check import need_count, need_floating, need_range, need_shape
from ..backend import Array, backend_of, find_backend
from ..chain import chain_of
from ..decode import viterbi
from ..kernels.registry import MessageCall
from ..recursion import chain_messages
from ..semiring import MAX
from ..transition import Banded

_OFFSETS = (0, 1, 2)
_SLACK = 200.0
"""Nats below the best bound that a state of the first search may be."""
_ROUNDING = 1e-9
"""By what share of the score rounding may lower the bounds of the best path itself."""
_STEPS = 32
"""Fewest frames of a block."""
_WIDTH = 256
"""Widths of blocks are multiples, so that few index tables are made."""


class CTCSegments(NamedTuple):
    """Where utterances lie in long audio."""

    start: Array
    """(U,) integers: each utterance's first frame."""
    end: Array
    """(U,) integers: one past its last frame."""
    confidence: Array
    """(U,): the least mean of log p(symbol of the path) over a window of frames within the utterance, nats."""
    token_index: Array
    """(T,) integers: which token, counted through all utterances, a frame belongs to; -1 for blanks and speech that is
    not transcribed."""
    log_joint: Array
    """(): score of the path."""


def ctc_segment(
    log_probs: Array,
    utterances: Sequence[Any],
    *,
    blank: int = 0,
    skip_score: float = 0.0,
    skip_between: bool = False,
    window: int = 30,
) -> CTCSegments:
    """Start and end of each utterance on the best path through all of them in order, argmax p(x, path).

    The path is that of `ctc_align` for all tokens together, but for the blanks before the first utterance and after the
    last one, which may stand for anything: they score `skip_score` a frame, or the blank's, what is more.

    Args:
        log_probs: (T, V), log p(symbol of frame t), nats; read on the host.
        utterances: U sequences of integers, tokens, each at least one long.
        blank: the symbol that stands for none.
        skip_score: nats a frame of speech that is not transcribed; 0 is free, -inf forbids it.
        skip_between: whether it may be between utterances, too. This takes longer.
        window: frames over which the confidence takes means.

    Returns:
        `CTCSegments(start (U,), end (U,), confidence (U,), token_index (T,), log_joint ())`. Segments are tight,
        from the first frame of the first token to the last one of the last: blanks around them belong to none. Where no
        path is possible -1, confidence -inf and log_joint -inf; where log_probs holds NaN -1 and NaN. The path is the
        best, exactly, up to rounding in float64, however long the audio.

    Raises:
        TypeError: not a floating-point array, traced, or tokens that are not integers. ValueError: shapes, tokens that
        are no symbols or the blank, an empty utterance, or more tokens than frames, with both numbers.

    Gradient: none.

    Cost: memory O(T + N + sqrt(T) S) for the S states that may be on the best path at a time, at worst 2 N + 1. Time
    O(T S), twice where the first search was too narrow. An hour of clear speech takes seconds, as S is then some
    hundreds.

    References: Kürzinger et al. 2020 (CTC-segmentation), whose topology takes blanks and tokens together; confidence as
    in their section 2.2, over sliding windows.

    Example:
        >>> import numpy as np, hmm_functional as hf
        >>> said = np.array([1, 1, 2, 0, 3, 0, 1, 1])  # the best symbol of each frame
        >>> frames = np.log(np.where(np.arange(4) == said[:, None], 0.97, 0.01))
        >>> found = hf.ctc_segment(frames, [[2], [3]])
        >>> found.start, found.end
        (array([2, 4]), array([3, 5]))
    """
    backend = backend_of(log_probs=log_probs)
    xp = backend.xp
    need_floating("log_probs", xp, log_probs)
    need_shape("log_probs", log_probs.shape, (None, None), "(T, V)")
    num_steps, num_symbols = log_probs.shape[-2:]
    if log_probs.ndim != 2 or num_steps < 1:
        raise ValueError(f"log_probs: expected (T, V) of at least one frame, got {tuple(log_probs.shape)}")
    if backend.is_traced(log_probs):
        raise TypeError("log_probs: expected values that can be read, got a traced array; the search depends on them")
    blank, window = need_count("blank", blank, 0), need_count("window", window, 1)
    need_range("blank", blank, 0, num_symbols - 1)
    if isnan(skip_score) or skip_score == inf:
        raise ValueError(f"skip_score: expected a number of nats, or -inf, got {skip_score}")
    parts = [_tokens(f"utterances[{i}]", part, num_symbols, blank) for i, part in enumerate(utterances)]
    if not parts:
        raise ValueError("utterances: expected at least one, got none")
    tokens = np.concatenate(parts)
    needed = len(tokens) + int((tokens[1:] == tokens[:-1]).sum())
    if needed > num_steps:
        raise ValueError(
            f"utterances: expected at most as many tokens as frames, got {len(tokens)}, which take {needed} frames "
            f"(a blank between equal ones), for {num_steps} frames"
        )
    ends = np.cumsum([len(part) for part in parts])
    frames = np.asarray(backend.to_numpy(log_probs), np.float64)
    if np.isnan(frames).any():
        path, score = None, np.nan
    else:
        free = ends if skip_between else ends[-1:]
        path, score = _best_path(frames, tokens, np.append(0, free), blank, skip_score)
    start, end, confidence, index = _read(frames, tokens, ends, path, blank, window, score)
    dtype = log_probs.dtype if xp.finfo(log_probs.dtype).bits >= 32 else xp.float32

    def given(x: Any, dtype: Any) -> Array:
        return xp.astype(backend.asarray(x, like=log_probs), dtype, copy=False)

    start, end, index = (given(x, backend.index_dtype()) for x in (start, end, index))
    return CTCSegments(start, end, given(confidence, dtype), index, given(np.asarray(score), dtype))


def _tokens(name: str, part: Any, num_symbols: int, blank: int) -> Any:
    backend = find_backend(part)
    found = np.asarray(part if backend is None else backend.to_numpy(part))
    if found.ndim != 1 or not found.size:
        raise ValueError(f"{name}: expected at least one token in a row, got shape {found.shape}")
    if found.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected integers, got {found.dtype}")
    need_range(name, found, 0, num_symbols - 1)
    if (found == blank).any():
        raise ValueError(
            f"{name}: expected no blank ({blank}) among the tokens, got one at {int(np.argmax(found == blank))}"
        )
    return found.astype(np.int64)


def _read(frames: Any, tokens: Any, ends: Any, path: Any, blank: int, window: int, score: float) -> tuple[Any, ...]:
    """start, end, confidence (U,) and token_index (T,) of a path of states (T,), or None."""
    if path is None:
        none, bad = np.full(len(ends), -1), np.full(len(ends), score)
        return none, none, bad, np.full(len(frames), -1)
    index = np.where(path % 2 == 1, path // 2, -1)
    labels = np.where(index < 0, blank, tokens[index])
    first, last = np.append(0, ends[:-1]), ends - 1
    steps, spoken = np.nonzero(index >= 0)[0], index[index >= 0]
    start = steps[np.searchsorted(spoken, first, side="left")]
    end = steps[np.searchsorted(spoken, last, side="right") - 1] + 1
    sums = np.append(0.0, np.cumsum(frames[np.arange(len(frames)), labels]))
    confidence = [np.min(_means(sums[a : b + 1], window)) for a, b in zip(start, end, strict=True)]
    return start, end, np.array(confidence), index


def _means(sums: Any, window: int) -> Any:
    """Means over all windows, from cumulative sums; over all frames where these are fewer."""
    width = min(window, len(sums) - 1)
    return (sums[width:] - sums[:-width]) / width


@dataclass(frozen=True)
class _Chain:
    """The states of all tokens, and frames less what the best symbol of each would score: no term is above 0."""

    frames: Any
    """(T, V + 1): the last column scores the blanks that may stand for anything."""
    labels: Any
    """(S,): the column of each state."""
    bands: Any
    """(3, S)"""
    ahead: Any
    """(S,): no path's score after a state is above this."""


def _best_path(frames: Any, tokens: Any, free: Any, blank: int, skip_score: float) -> tuple[Any, float]:
    """States (T,) of the best path, or None, and its score."""
    num_symbols = frames.shape[1]
    beside = np.maximum(frames[:, blank], skip_score)
    top = np.maximum(frames.max(1), beside)
    if (top == -inf).any():
        return None, -inf
    frames = np.concatenate([frames, beside[:, None]], 1) - top[:, None]
    labels = np.full(2 * len(tokens) + 1, blank)
    labels[1::2], labels[2 * free] = tokens, num_symbols
    bands = np.zeros((3, len(labels)))
    bands[2, ::2] = -inf
    bands[2, 1:-2:2][tokens[1:] == tokens[:-1]] = -inf
    best = np.append(0.0, np.cumsum(frames.max(0)[tokens][::-1]))[::-1]  # of the tokens from n on
    chain = _Chain(frames, labels, bands, best[(np.arange(len(labels)) + 1) // 2])
    found, score, lost = _search(chain, None)
    if score < lost:
        found, score, _ = _search(chain, score - _ROUNDING * (1.0 + abs(score)))
    return found, score + float(top.sum())


Message = list[tuple[int, Any]]
"""Scores of states, as (first state, scores) of intervals; all others have none."""


def _search(chain: _Chain, bar: float | None) -> tuple[Any, float, float]:
    """The best path among the states kept, its score, and a bound of what left them.

    Kept are states whose bound reaches `bar`, or, without one, is not _SLACK below the best.
    """
    num_steps, num_states = len(chain.frames), len(chain.labels)
    length = max(_STEPS, int(num_steps**0.5))
    starts = list(range(0, num_steps - 1, length))
    lost = -inf
    message: Message = [(0, chain.frames[0, chain.labels[:2]])]
    kept: list[Message] = []
    for first in starts:
        message, out = _prune(chain, message, bar, length, num_steps - 1 - first)
        lost = max(lost, out)
        kept.append(message)
        last = min(first + length, num_steps - 1)
        message = _advance(chain, message, first, last)
    score, state = -inf, -1
    for low, part in message:
        for at in range(max(low, num_states - 2), low + len(part)):
            if part[at - low] > score:
                score, state = float(part[at - low]), at
    if state < 0:
        return None, -inf, lost
    path = np.empty(num_steps, np.int64)
    path[-1] = state
    for first, message in zip(reversed(starts), reversed(kept), strict=True):
        last = min(first + length, num_steps - 1)
        path[first : last + 1] = _trace(chain, message, first, last, int(path[last]))
    return path, score, lost


def _prune(chain: _Chain, message: Message, bar: float | None, length: int, left: int) -> tuple[Message, float]:
    """What of a message goes on, as intervals that `length` frames do not join, and the bound of what does not."""
    if not message:
        return [], -inf
    low = np.concatenate([np.arange(low, low + len(part)) for low, part in message])
    scores = np.concatenate([part for _, part in message])
    # states whose tokens are too many for the frames that are left cannot end
    scores = np.where(low < len(chain.labels) - 2 - 2 * left, -inf, scores)
    bounds = scores + chain.ahead[low]
    least = bounds.max() - _SLACK if bar is None else bar
    is_kept = (bounds >= least) & (scores > -inf)
    lost = float(np.where(is_kept, -inf, bounds).max())
    low, scores = low[is_kept], scores[is_kept]
    if not len(low):
        return [], lost
    found = []
    for places in np.split(np.arange(len(low)), np.nonzero(np.diff(low) > 2 * length)[0] + 1):
        begin, end = int(low[places[0]]), int(low[places[-1]]) + 1
        part = np.full(end - begin, -inf)
        part[low[places] - begin] = scores[places]
        found.append((begin, part))
    return found, lost


def _window(chain: _Chain, high: int, width: int) -> tuple[int, int]:
    """At least `width` states, a multiple of _WIDTH, to high - 1 if there are so many."""
    width = min(len(chain.labels), -(-width // _WIDTH) * _WIDTH)
    high = max(high, width)
    return high - width, high


def _given(chain: _Chain, low: int, part: Any, first: int, last: int, ends: tuple[int, int]) -> tuple[Any, Any, Any]:
    """Initial scores, bands and emissions of a chain over frames first..last whose first message is `part`."""
    begin, end = ends
    initial = np.full(end - begin, -inf)
    cut = part[max(0, begin - low) : end - low]
    place = max(low - begin, 0)
    initial[place : place + len(cut)] = cut
    emission = np.zeros((last - first + 1, end - begin))
    emission[1:] = chain.frames[first + 1 : last + 1, chain.labels[begin:end]]
    return initial, chain.bands[:, begin:end], emission


def _advance(chain: _Chain, message: Message, first: int, last: int) -> Message:
    """The message of frame `last` from that of frame `first`."""
    if not message:
        return []
    reach = 2 * (last - first)
    width = max(len(part) for _, part in message) + reach
    ends = [_window(chain, min(low + len(part) + reach, len(chain.labels)), width) for low, part in message]
    given = (_given(chain, low, part, first, last, end) for (low, part), end in zip(message, ends, strict=True))
    initial, bands, emission = (np.stack(x) for x in zip(*given, strict=True))
    made = chain_of(initial, Banded(bands[:, None], _OFFSETS), emission)
    call = MessageCall(
        backend=made.backend,
        semiring=MAX,
        structure=made.structure,
        weights=tuple((w,) for w in made.weights),
        initial=(made.initial,),
        emission=(made.emission,),
        lengths=None,
        last_only=True,
    )
    found = chain_messages(call)
    return [(end[0], x) for end, x in zip(ends, found.last[0] + found.total[:, None], strict=True)]


def _trace(chain: _Chain, message: Message, first: int, last: int, state: int) -> Any:
    """States of frames first..last of the best path to `state`."""
    low, part = next(item for item in reversed(message) if item[0] <= state)
    ends = _window(chain, state + 1, 2 * (last - first) + 1)
    initial, bands, emission = _given(chain, low, part, first, last, ends)
    final = np.where(np.arange(*ends) == state, 0.0, -inf)
    return viterbi(initial, Banded(bands, _OFFSETS), emission, log_final=final).states + ends[0]
