"""Long audio cut at the utterances of its transcript: the best CTC path of all of them, in bounded memory.

2 N + 1 states times the frames of an hour are billions of cells: the path is found piece by piece.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, isnan, isqrt
from typing import Any, NamedTuple

import numpy as np

from .._check import need_count, need_number, need_range
from ..backend import Array, Backend, backend_of, find_backend
from .beam import beam_path
from .ctc import ctc_graph, frames_needed, need_log_probs, need_no_blank

_STEPS = 128
"""Fewest frames of a block."""


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
    skip_score: float | None = None,
    skip_between: bool = False,
    window: int = 30,
) -> CTCSegments:
    """Start and end of each utterance on the best path through all of them in order, argmax p(x, path).

    The path is that of `ctc_align` for all tokens together, but for the blanks before the first utterance and after the
    last one, which may stand for anything: they score `skip_score` a frame, or as the blank does where that is more.

    Args:
        log_probs: (T, V), log p(symbol of frame t), nats; read on the host.
        utterances: U sequences of integers, tokens, each at least one long.
        blank: the symbol that stands for none.
        skip_score: nats a frame of speech that is not transcribed; default the best symbol's of each frame, so that
            leaving out frames gains nothing over reading them well; 0 is free, as in the reference, and draws the
            outer utterances together where frames are unsure; -inf forbids it.
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

    Cost: O(T N) time, in array code, O(sqrt(T) N + T V) memory.

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
    blank, window = need_log_probs(backend, log_probs, blank), need_count("window", window, 1)
    if log_probs.ndim != 2:
        raise ValueError(f"log_probs: expected (T, V), got {tuple(log_probs.shape)}")
    if backend.is_traced(log_probs):
        raise TypeError("log_probs: expected values that can be read, got a traced array; the search depends on them")
    if skip_score is not None:
        need_number("skip_score", skip_score)
        if isnan(skip_score) or skip_score == inf:
            raise ValueError(f"skip_score: expected a number of nats, or -inf, got {skip_score}")
    parts = [
        _tokens(backend, f"utterances[{i}]", part, log_probs.shape[-1], blank) for i, part in enumerate(utterances)
    ]
    if not parts:
        raise ValueError("utterances: expected at least one, got none")
    tokens = np.concatenate(parts)
    needed, num_steps = int(frames_needed(tokens, tokens >= 0)), len(log_probs)
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


def _tokens(backend: Backend, name: str, part: Any, num_symbols: int, blank: int) -> Any:
    source = find_backend(part)
    if source is not None and source.name not in ("numpy", backend.name):
        raise TypeError(f"{name}: expected a list, a NumPy array or an array of {backend.name}, got {source.name}")
    found = np.asarray(part if source is None else source.to_numpy(part))
    if found.ndim != 1 or not found.size:
        raise ValueError(f"{name}: expected at least one token in a row, got shape {found.shape}")
    if found.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected integers, got {found.dtype}")
    need_range(name, found, 0, num_symbols - 1)
    need_no_blank(name, found, found >= 0, blank)
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


def _best_path(frames: Any, tokens: Any, free: Any, blank: int, skip_score: float | None) -> tuple[Any, float]:
    """States (T,) of the best path, or None, and its score; blanks before the tokens `free` may stand for anything."""
    anything = frames.max(1) if skip_score is None else np.maximum(frames[:, blank], skip_score)
    frames = np.concatenate([frames, anything[:, None]], axis=1)
    graph = ctc_graph(tokens, like=frames, blank=blank)
    graph.labels[2 * free] = frames.shape[1] - 1
    found = beam_path(graph, frames, piece=max(_STEPS, isqrt(len(frames))))
    score = float(found.log_joint)
    return (None if score == -inf else found.states), score
