"""Monotonic alignment of tokens and frames, as text-to-speech models learn it: the best path, and the sum over all."""

from __future__ import annotations

from math import inf
from typing import Any, NamedTuple

from .._check import broadcast_batch, need_count, need_floating, need_integers, need_number, need_shape
from ..backend import Array, Backend, backend_named, backend_of
from ..chain import lengths_of
from ..decode import viterbi
from ..posterior import forward_backward
from ..transition import Banded


class SoftAlignment(NamedTuple):
    """All monotonic alignments, each with its probability."""

    log_posteriors: Array
    """(..., N, T): log p(frame t belongs to token n given x), -inf in the padding."""
    log_likelihood: Array
    """(...): log of the sum over all alignments."""


def monotonic_alignment_search(
    scores: Array, *, lengths: Any = None, target_lengths: Any = None, kernel: str = "auto"
) -> Array:
    """The token of each frame on the monotonic path of highest total score: argmax of p(x, alignment).

    A path starts with token 0, ends with the last one, and goes from a token to itself or the next, so that each has at
    least one frame.

    Args:
        scores: (..., N, T), log-likelihood of frame t under token n, nats; need not be normalised.
        lengths: (...) integers 1..T, the frames of right-padded sequences; padding is never read.
        target_lengths: (...) integers 1..N, their tokens.
        kernel: as `viterbi`.

    Returns:
        (..., T) int64 (int32 under JAX without x64). Of exactly tied paths it is the one whose tokens
        begin last. Padding is -1, and so are all frames where there is no path, as with more tokens than frames, or
        where the sequence holds NaN.

    Raises:
        TypeError: not arrays of one library, or not floating-point. ValueError: shapes or lengths.

    Gradient: none, they are integers.

    Cost: O(B N T) time and memory; the compiled best path of bands on the CPU.

    References: Kim et al. 2020 (Glow-TTS), algorithm 1.

    Example:
        >>> import torch, hmm_functional as hf
        >>> hf.monotonic_alignment_search(torch.tensor([[0.0, 0.0, -9.0, -9.0], [-1.0, -1.0, 0.0, 0.0]]))
        tensor([0, 0, 1, 1])
    """
    initial, transition, emission, final = _chain(scores, target_lengths)
    return viterbi(initial, transition, emission, lengths=lengths, log_final=final, kernel=kernel).states


def soft_monotonic_alignment(
    scores: Array, *, lengths: Any = None, target_lengths: Any = None, kernel: str = "auto"
) -> SoftAlignment:
    """log p(frame t belongs to token n given x) over all monotonic alignments, and the log of their sum.

    With `scores` normalised over the tokens, minus `log_likelihood` is the forward-sum loss; a prior
    (`beta_binomial_prior`) is added to the scores before they are normalised or as it is.

    Args: as `monotonic_alignment_search`.

    Returns:
        `SoftAlignment(log_posteriors (..., N, T), log_likelihood (...))`; both -inf where there is no alignment; NaN
        where the sequence holds NaN.

    Raises: as `monotonic_alignment_search`.

    Gradient: of `log_likelihood`, the posteriors; both are differentiable as those of `forward_backward`.

    Cost: O(B N T) time and memory.

    References: Badlani et al. 2021, equations 2 to 4; Shih et al. 2021 (RAD-TTS).

    Example:
        >>> import torch, hmm_functional as hf
        >>> hf.soft_monotonic_alignment(torch.zeros(2, 3)).log_posteriors.exp()
        tensor([[1.0000, 0.5000, 0.0000],
                [0.0000, 0.5000, 1.0000]])
    """
    initial, transition, emission, final = _chain(scores, target_lengths)
    found = forward_backward(initial, transition, emission, lengths=lengths, log_final=final, kernel=kernel)
    posteriors = backend_of(scores=scores).xp.matrix_transpose(found.log_posteriors)
    return SoftAlignment(posteriors, found.log_likelihood)


def token_durations(tokens: Array, num_tokens: int) -> Array:
    """How many frames each token has.

    Args:
        tokens: (..., T) integers, the token of each frame, as `monotonic_alignment_search` gives it; others than
            0..N-1, such as padding, count for none.
        num_tokens: N.

    Returns:
        (..., N) int64 (int32 under JAX without x64); `expand_states` is the way back.

    Raises:
        TypeError: not integers. ValueError: shapes.

    Cost: O(B N T).

    Example:
        >>> import torch, hmm_functional as hf
        >>> hf.token_durations(torch.tensor([0, 0, 1, 1, 1, -1]), 2)
        tensor([2, 3])
    """
    backend = backend_of(tokens=tokens)
    xp = backend.xp
    need_integers("tokens", xp, tokens)
    need_shape("tokens", tokens.shape, (None,), "(..., T)")
    num_tokens = need_count("num_tokens", num_tokens, 0)
    is_token = tokens[..., None, :] == backend.arange(num_tokens, like=tokens)[:, None]
    return xp.sum(xp.astype(is_token, backend.index_dtype()), axis=-1)


def beta_binomial_prior(
    num_tokens: int,
    num_frames: int,
    *,
    scale: float = 1.0,
    lengths: Any = None,
    target_lengths: Any = None,
    like: Array | None = None,
) -> Array:
    """log p(token n given frame t): beta-binomial laws whose mean goes along the diagonal.

    For frame t = 1..T it is BetaBinomial(N - 1, scale t, scale (T - t + 1)), which sums to one over the N tokens.

    Args:
        num_tokens: N.
        num_frames: T.
        scale: how narrow the laws are; above 0.
        lengths: (...) integers 1..T, frames of each sequence.
        target_lengths: (...) integers 1..N, tokens of each sequence.
        like: an array whose library, dtype and device the result takes; default torch's defaults.

    Returns:
        (..., N, T), nats, -inf in the padding; (N, T) without lengths.

    Raises:
        TypeError, ValueError: counts, lengths, or a scale that is not positive.

    Cost: O(B N T).

    References: Shih et al. 2021, appendix; Badlani et al. 2021, section 3.2 (there over N + 1 values, of which N are
        used).

    Example:
        >>> import hmm_functional as hf
        >>> hf.beta_binomial_prior(2, 3).exp()
        tensor([[0.7500, 0.5000, 0.2500],
                [0.2500, 0.5000, 0.7500]])
    """
    num_tokens, num_frames = need_count("num_tokens", num_tokens, 1), need_count("num_frames", num_frames, 1)
    need_number("scale", scale)
    if not 0 < scale < inf:
        raise ValueError(f"scale: expected a positive number, got {scale}")
    if like is None:
        torch = backend_named("torch")
        like = torch.xp.asarray(0.0, dtype=torch.xp.get_default_dtype())
    backend = backend_of(like=like)
    need_floating("like", backend.xp, like)
    xp, dtype = backend.xp, backend.wide_dtype(like) or like.dtype
    frames = _sizes(backend, num_frames, lengths, "lengths", like)
    tokens = _sizes(backend, num_tokens, target_lengths, "target_lengths", like)
    broadcast_batch({"lengths": frames.shape[:-2], "target_lengths": tokens.shape[:-2]})
    token, frame = backend.arange(num_tokens, like=like)[:, None], backend.arange(num_frames, like=like)[None, :]
    is_valid = (token < tokens) & (frame < frames)
    # the last is one of padding, too, which must not leave the functions' domain
    k, n = (xp.astype(x, dtype) for x in (xp.minimum(token, tokens - 1), tokens - 1))
    t, most = (xp.astype(x, dtype) for x in (xp.minimum(frame, frames - 1), frames))
    a, b = scale * (t + 1.0), scale * (most - t)
    log_choose = backend.log_gamma(n + 1.0) - backend.log_gamma(k + 1.0) - backend.log_gamma(n - k + 1.0)
    found = log_choose + _log_beta(backend, k + a, n - k + b) - _log_beta(backend, a, b)
    return xp.astype(xp.where(is_valid, found, -inf), like.dtype)


def _log_beta(backend: Backend, a: Array, b: Array) -> Array:
    return backend.log_gamma(a) + backend.log_gamma(b) - backend.log_gamma(a + b)


def _sizes(backend: Backend, most: int, lengths: Any, name: str, like: Array) -> Array:
    """`lengths` as (..., 1, 1), `most` where there are none."""
    if lengths is None:
        return backend.full((1, 1), most, like=like, dtype=backend.index_dtype())
    return lengths_of(backend, lengths, most, like, name=name)[..., None, None]


def _chain(scores: Array, target_lengths: Any) -> tuple[Array, Banded, Array, Array]:
    """The tokens as states of a band: log_initial, log_transition, log_emission, log_final."""
    backend = backend_of(scores=scores)
    xp = backend.xp
    need_floating("scores", xp, scores)
    need_shape("scores", scores.shape, (None, None), "(..., N, T)")
    num_tokens, num_frames = scores.shape[-2:]
    if num_tokens < 1 or num_frames < 1:
        raise ValueError(f"scores: expected at least one token and one frame, got {tuple(scores.shape)}")
    token = backend.arange(num_tokens, like=scores)
    zeros = backend.full((num_tokens,), 0.0, like=scores)
    last, emission = token == num_tokens - 1, xp.matrix_transpose(scores)
    if target_lengths is not None:
        counts = lengths_of(backend, target_lengths, num_tokens, scores, name="target_lengths")
        broadcast_batch({"scores": tuple(scores.shape[:-2]), "target_lengths": tuple(counts.shape)})
        last = token == counts[..., None] - 1
        emission = xp.where(token < counts[..., None, None], emission, -inf)
    bands = backend.full((2, num_tokens), 0.0, like=scores)
    initial, final = xp.where(token == 0, zeros, -inf), xp.where(last, zeros, -inf)
    return initial, Banded(bands, (0, 1)), emission, final
