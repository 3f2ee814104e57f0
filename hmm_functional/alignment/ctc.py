"""Connectionist temporal classification: frames and a shorter sequence of symbols, with blanks between them."""

from __future__ import annotations

from math import nan
from typing import Any

import numpy as np

from .._check import broadcast_batch, need_count, need_floating, need_range, need_shape
from ..backend import Array, Backend, backend_of
from ..chain import lengths_of
from ..likelihood import log_likelihood
from ..structure import gather
from ..transition import Banded
from .forced import ForcedAlignment, forced_align
from .graph import AlignmentGraph, log_of, state_scores
from .topology import targets_of


def ctc_graph(targets: Any, *, like: Array, target_lengths: Any = None, blank: int = 0) -> AlignmentGraph:
    """The paths of a CTC model that say `targets`: a token lasts one frame or more, blanks may stand around it.

    Equal neighbours have a blank between them. The 2 N + 1 states are blank, token 0, blank, ..., token N - 1, blank.

    Args:
        targets: (..., N) integers, symbols: an array, or a list (of lists, of any lengths); N may be 0.
        like: (..., T, V), the scores the graph is for, or any array with their library, device, dtype and V symbols.
        target_lengths: (...) integers 0..N, tokens of each right-padded sequence; padding is never read.
        blank: the symbol that stands for none.

    Returns:
        `AlignmentGraph` of 2 N + 1 states with `Banded` transitions, unweighted.

    Raises:
        TypeError: not integers. ValueError: shapes, or, where values can be read, tokens that are no symbols or the
        blank.

    Cost: O(B N). Works on traced targets.

    References: Graves et al. 2006, section 4.1.

    Example:
        >>> import torch, hmm_functional as hf
        >>> graph = hf.ctc_graph([2, 2, 1], like=torch.zeros(9, 3))
        >>> graph.labels
        tensor([0, 2, 0, 2, 0, 1, 0])
        >>> graph.log_transition.log_bands[0, 2]  # to the next token, without a blank
        tensor([-inf, -inf, -inf, 0., -inf, -inf, -inf])
    """
    backend = backend_of(like=like)
    xp, index = backend.xp, backend.index_dtype()
    targets, numbers = _targets(backend, targets, target_lengths, like, blank)
    num_states = 2 * targets.shape[-1] + 1
    state = xp.astype(backend.arange(num_states, like=like), index)
    token, is_token = xp.clip((state - 1) // 2, min=0), state % 2 == 1
    end = 2 * numbers[..., None]
    is_real = is_token & (state < end)
    shape = tuple(is_real.shape)
    none = backend.full((*targets.shape[:-1], 1), blank, like=like, dtype=index)  # where there is no token at all
    symbol = xp.broadcast_to(gather(backend, xp.concat([targets, none], axis=-1), token), shape)
    labels = xp.where(is_real, symbol, blank)
    after = xp.concat([labels, *[xp.full_like(labels[..., :1], blank)] * 2], axis=-1)[..., 2:]
    moves = (state <= end, state < end, is_token & (state + 2 < end) & (labels != after))
    offsets = (0, 1, 2) if num_states > 1 else (0,)
    bands = xp.stack([xp.broadcast_to(moves[offset], shape) for offset in offsets], axis=-2)
    is_first = (state == 0) | ((state == 1) & is_real)
    is_last = (state == end) | ((state == end - 1) & is_real)
    return AlignmentGraph(
        log_of(backend, is_first, like),
        Banded(log_of(backend, bands, like)[..., None, :, :], offsets),
        log_of(backend, is_last, like),
        labels,
        xp.where(is_real, token, -1),
    )


def ctc_log_likelihood(
    log_probs: Array,
    targets: Any,
    *,
    lengths: Any = None,
    target_lengths: Any = None,
    blank: int = 0,
    kernel: str = "auto",
) -> Array:
    """log p(targets given x): the sum over all paths that say the targets, minus the CTC loss.

    Args:
        log_probs: (..., T, V), log p(symbol of frame t), nats; need not be normalised.
        targets: (..., N) integers 0..V-1 without the blank: an array, or a list (of lists, of any lengths). Batch axes
            broadcast.
        lengths: (...) integers 1..T, the frames of right-padded sequences; padding is never read.
        target_lengths: (...) integers 0..N, the tokens of right-padded targets; padding is never read.
        blank: the symbol that stands for none.
        kernel: as `log_likelihood`.

    Returns:
        (...), nats: minus `torch.nn.functional.ctc_loss(..., reduction="none")`. -inf, with a gradient of zero, where
        there is no path, as where the tokens, and a blank between equal ones, are more than the frames; NaN where a
        symbol of the targets or the blank has NaN in the sequence.

    Raises:
        TypeError: not arrays of one library, or of wrong dtypes. ValueError: shapes or lengths; where values can be
        read, tokens that are no symbols or the blank.

    Gradient: with respect to log_probs the posteriors of the symbols, of any order as of `log_likelihood`. torch's own
    loss gives another one there, posteriors less exp(log_probs), which is right only below a log_softmax; through
    that, with respect to logits, both are equal.

    Cost: O(B T N) time and memory, whatever V.

    References: Graves et al. 2006, equations 5 to 8.

    Example:
        >>> import torch, hmm_functional as hf
        >>> frames = torch.tensor([[0.6, 0.4], [0.6, 0.4]]).log()
        >>> hf.ctc_log_likelihood(frames, [1]).exp()
        tensor(0.6400)
    """
    log_probs, graph, lengths = _prepared(log_probs, targets, lengths, target_lengths, blank)
    scores = state_scores(graph, log_probs)
    return log_likelihood(
        graph.log_initial, graph.log_transition, scores, lengths=lengths, log_final=graph.log_final, kernel=kernel
    )


def ctc_align(
    log_probs: Array,
    targets: Any,
    *,
    lengths: Any = None,
    target_lengths: Any = None,
    blank: int = 0,
    posteriors: bool = False,
    kernel: str = "auto",
) -> ForcedAlignment:
    """The most probable path that says the targets: argmax p(x, path), and what it makes of each frame and token.

    It is `forced_align` over `ctc_graph`, which offers more, such as other methods.

    Args: as `ctc_log_likelihood`.
        posteriors: whether confidences, means and deviations are wanted, which take two more passes; else they are NaN.

    Returns:
        `ForcedAlignment(labels (..., T), log_joint (...), token_index (..., T), start (..., N), ...)`; labels hold the
        blank, too. Exact ties go to the path that ends in the last token rather than a blank, and comes to each of its
        states last. -1, and a log_joint of -inf, where no path is possible; -1 and NaN where the sequence holds NaN.

    Raises: as `ctc_log_likelihood`; ValueError for more tokens than frames, with both numbers, where they can be read.

    Gradient: of `log_joint`, 1 at each frame's label; of confidences as that of posteriors.

    Cost: O(B T N) time and memory.

    References: Graves et al. 2006; torchaudio's `forced_align` gives the same path where it is the only best one.

    Example:
        >>> import torch, hmm_functional as hf
        >>> frames = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]]).log()
        >>> found = hf.ctc_align(frames, [1, 1])
        >>> found.labels, found.start
        (tensor([1, 0, 1]), tensor([0, 2]))
    """
    log_probs, graph, lengths = _prepared(log_probs, targets, lengths, target_lengths, blank)
    backend = backend_of(log_probs=log_probs)
    _need_room(backend, graph, log_probs, lengths)
    found = forced_align(log_probs, graph, lengths=lengths, posteriors=posteriors, kernel=kernel)
    num_tokens = graph.labels.shape[-1] // 2

    def cut(x: Array, fill: float) -> Array:
        """(..., N), of as many tokens as were found to be there."""
        if x.shape[-1] >= num_tokens:
            return x[..., :num_tokens]
        rest = backend.full((*x.shape[:-1], num_tokens - x.shape[-1]), fill, like=x)
        return backend.xp.concat([x, rest], axis=-1)

    times, details, beam = found[3:5], found[5:10], found[10:]
    cuts = (*(cut(x, -1) for x in times), *(cut(x, 0.0 if posteriors else nan) for x in details))
    return ForcedAlignment._make((*found[:3], *cuts, *beam))


def need_log_probs(backend: Backend, log_probs: Array, blank: Any) -> int:
    """The blank, after a check of both; TypeError or ValueError unless they are (..., T, V) and one of V symbols."""
    need_floating("log_probs", backend.xp, log_probs)
    need_shape("log_probs", log_probs.shape, (None, None), "(..., T, V)")
    if log_probs.shape[-2] < 1 or log_probs.shape[-1] < 1:
        raise ValueError(f"log_probs: expected at least one frame and one symbol, got {tuple(log_probs.shape)}")
    return _blank(blank, log_probs.shape[-1])


def need_no_blank(name: str, targets: Any, is_token: Any, blank: int) -> None:
    """ValueError for a blank among the tokens of targets on the host."""
    if (is_token & (targets == blank)).any():
        place = [int(i) for i in np.argwhere(is_token & (targets == blank))[0]]
        raise ValueError(f"{name}: expected no blank ({blank}) among the tokens, got one at {place}")


def frames_needed(targets: Any, is_token: Any) -> Any:
    """The fewest frames (...) of targets (..., N) on the host: one a token, and a blank between equal ones."""
    return is_token.sum(-1) + (is_token[..., 1:] & (targets[..., 1:] == targets[..., :-1])).sum(-1)


def _blank(blank: Any, num_symbols: int) -> int:
    found = need_count("blank", blank, 0)
    need_range("blank", found, 0, num_symbols - 1)
    return found


def _prepared(
    log_probs: Array, targets: Any, lengths: Any, target_lengths: Any, blank: int
) -> tuple[Array, AlignmentGraph, Any]:
    """log_probs in float32 or wider, the graph of the targets, and lengths as an array or None."""
    backend = backend_of(log_probs=log_probs)
    xp = backend.xp
    need_log_probs(backend, log_probs, blank)
    if xp.finfo(log_probs.dtype).bits < 32:
        log_probs = xp.astype(log_probs, xp.float32)  # gradients of a symbol are sums over its states
    graph = ctc_graph(targets, like=log_probs, target_lengths=target_lengths, blank=blank)
    shapes = {"log_probs": tuple(log_probs.shape[:-2]), "targets": tuple(graph.labels.shape[:-1])}
    if lengths is not None:
        lengths = lengths_of(backend, lengths, log_probs.shape[-2], log_probs)
        shapes["lengths"] = tuple(lengths.shape)
    broadcast_batch(shapes)
    return log_probs, graph, lengths


def _targets(backend: Backend, targets: Any, target_lengths: Any, like: Array, blank: int) -> tuple[Array, Array]:
    """Tokens (..., N) and how many of them count (...)."""
    num_symbols = like.shape[-1]
    blank = _blank(blank, num_symbols)
    targets, numbers = targets_of(
        backend, targets, target_lengths, like, num_symbols=num_symbols, fewest=0, may_be_empty=True
    )
    if not backend.is_traced(targets, numbers) and backend.is_host(targets):
        values = np.asarray(backend.to_numpy(targets))
        is_token = np.arange(values.shape[-1]) < backend.to_numpy(numbers)[..., None]
        need_no_blank("targets", values, is_token, blank)
    return targets, numbers


def _need_room(backend: Backend, graph: AlignmentGraph, log_probs: Array, lengths: Any) -> None:
    """ValueError where targets need more frames than there are, if values can be read."""
    bands = graph.log_transition.log_bands
    arrays = [x for x in (graph.labels, bands, lengths) if x is not None]
    if backend.is_traced(*arrays) or not backend.is_host(bands):
        return
    tokens = np.asarray(backend.to_numpy(graph.token_index))[..., 1::2] >= 0
    labels = np.asarray(backend.to_numpy(graph.labels))[..., 1::2]
    numbers = tokens.sum(-1)
    needed = frames_needed(labels, tokens)
    there = np.asarray(log_probs.shape[-2] if lengths is None else backend.to_numpy(lengths))
    numbers, needed, there = np.broadcast_arrays(numbers, needed, there)
    if (needed > there).any():
        place = np.unravel_index(int(np.argmax(needed > there)), needed.shape)
        where = str([int(i) for i in place]) if place else ""
        raise ValueError(
            f"targets{where}: expected at most as many tokens as frames, got {numbers[place]} tokens, which take "
            f"{needed[place]} frames with a blank between equal ones, for {there[place]} frames"
        )
