"""HMMs on streams: posteriors as the frames come in, with a fixed look-ahead."""

from __future__ import annotations

import warnings
from typing import Literal

import torch
from torch import Tensor, nn

import hmm_functional as hf
from hmm_functional._check import need_count

from ._check import need_frames
from .hmm import BaseHMM
from .parametrize import full_precision
from .scores import HMMPyTorch
from .semi_markov import HSMM


class StreamingHMMProcessor(nn.Module):
    """State probabilities of one stream, a chunk at a time: those that the whole sequence would have given.

    Args:
        hmm_model: any HMM module. Its initial and transition probabilities are read when a stream starts.
        chunk_size: expected frames a chunk; chunks of any size are accepted.
        overlap: look-ahead in frames: the posterior of a frame waits for `overlap` more and takes account of them.
        decode: "posterior", or "filter" for p(z_t given x_0..t) without waiting, whatever `overlap` is; an `HSMM` takes
            only "filter".

    Attributes:
        expected_remaining: of an `HSMM`, (m, K) for the frames last returned: how many steps each state is expected to
            last beyond them, if it is the one; None before, and of others.
        scores: what turns features into the scores of an `HMMPyTorch` whose number of states is not their width.
            None until such features come; then a linear layer, held here and not by the model, untrained (with a
            UserWarning). A trained module can be assigned instead.

    Example:
        >>> import torch
        >>> processor = StreamingHMMProcessor(HMMPyTorch(num_states=5), chunk_size=160, overlap=80)
        >>> [processor.process_chunk(torch.randn(160, 5)).shape[0] for _ in range(3)]
        [80, 160, 160]
        >>> processor.flush().shape
        torch.Size([80, 5])
    """

    def __init__(
        self,
        hmm_model: BaseHMM,
        chunk_size: int = 160,
        overlap: int = 80,
        decode: Literal["posterior", "filter"] = "posterior",
    ) -> None:
        super().__init__()
        if not isinstance(hmm_model, BaseHMM):
            raise TypeError(f"hmm_model: expected an HMM module of pytorch_hmm, got {type(hmm_model).__name__}")
        if hmm_model._is_conditional:
            kind = type(hmm_model).__name__
            raise TypeError(f"hmm_model: expected a model of observations alone, {kind} depends on inputs or networks")
        if decode not in ("posterior", "filter"):
            raise ValueError(f"decode: expected 'posterior' or 'filter', got {decode!r}")
        if isinstance(hmm_model, HSMM) and decode != "filter":
            raise ValueError(f"decode: expected 'filter' of an HSMM, got {decode!r}")
        self.hmm_model = hmm_model
        self.chunk_size = need_count("chunk_size", chunk_size, 1)
        self.overlap = need_count("overlap", overlap, 0)
        self.decode = decode
        self.scores: nn.Module | None = None
        self.expected_remaining: Tensor | None = None
        self._state: hf.StreamState | hf.SemiMarkovStreamState | None = None
        self._recent: Tensor | None = None
        """The frames that the next ones' densities look back at."""

    @torch.no_grad()
    def process_chunk(self, features: Tensor) -> Tensor | None:
        """Take the next frames of the stream.

        Args:
            features: (n, D), any n, also 0; or (n,) integers for a `CategoricalHMM`.

        Returns:
            (m, K), probabilities of the m frames that became final, in order; None while there is none.

        Raises:
            ValueError: a wrong shape, or values the model refuses; the stream stays as it was.

        Cost: O(n K^2 (1 + look-ahead)) time, whatever has gone before.
        """
        observations = self._scores(features)
        if len(features) == 0:
            return None
        model, state = self.hmm_model, self._state
        with full_precision(features):
            emission, recent = self._emission(observations)
            if isinstance(model, HSMM):
                if not isinstance(state, hf.SemiMarkovStreamState):
                    parts = (model.log_initial, model.log_transition, model.log_duration)
                    state = hf.semi_markov_stream_init(*(x.to(emission.dtype) for x in parts))
                self._state, found = hf.semi_markov_stream_step(state, emission)
                rows, self.expected_remaining = found
            else:
                if not isinstance(state, hf.StreamState):
                    lag = 0 if self.decode == "filter" else self.overlap
                    state = hf.stream_init(model.log_initial, model.log_transition, lag=lag, like=emission)
                self._state, rows = hf.stream_step(state, emission)
            self._recent = recent
        return _probabilities(rows)

    forward = process_chunk

    @torch.no_grad()
    def flush(self) -> Tensor | None:
        """End the stream: probabilities (m, K) of the frames still waiting, or None; the next chunk starts another."""
        if not isinstance(self._state, hf.StreamState):
            self.reset()
            return None
        with full_precision(self._state.log_predicted):
            rows = hf.stream_flush(self._state)
        self.reset()
        return _probabilities(rows)

    @torch.no_grad()
    def remaining(self) -> Tensor | None:
        """Of an `HSMM`, p(z_t, r more steps of it given x_0..t) at the last frame, (K, D_max), r from 0; else None."""
        if not isinstance(self._state, hf.SemiMarkovStreamState):
            return None
        return hf.semi_markov_remaining(self._state).exp()  # type: ignore[no-any-return]

    def reset(self) -> None:
        """Forget the stream; the next chunk starts another."""
        self._state = self._recent = self.expected_remaining = None

    def _emission(self, observations: Tensor) -> tuple[Tensor, Tensor | None]:
        """Scores (n, K) of new frames, and the frames to keep for the next ones."""
        model, lags = self.hmm_model, self.hmm_model._num_lags
        if lags == 0:
            return model._emission(observations, None)[0], None
        seen = observations if self._recent is None else torch.cat([self._recent, observations])
        return model._emission(seen, None)[0][len(seen) - len(observations) :], seen[-lags:].clone()

    def extra_repr(self) -> str:
        """The arguments."""
        return f"chunk_size={self.chunk_size}, overlap={self.overlap}, decode={self.decode!r}"

    def _scores(self, features: Tensor) -> Tensor:
        """What the model takes: the features, checked, or the scores made of them."""
        model = self.hmm_model
        rank = len(model.frame_shape) + 1
        if not isinstance(features, Tensor) or features.ndim != rank:
            found = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            words = "(n, D)" if rank == 2 else "(n,)"
            raise ValueError(f"features: expected a tensor {words} of one stream, got {found}")
        if self.scores is None and self._state is None and isinstance(model, HMMPyTorch):
            self.scores = _linear_scores(features, model.num_states)
        if self.scores is None:
            need_frames("features", features, model.frame_shape, is_empty_allowed=True)
            return features
        width = getattr(self.scores, "in_features", features.shape[1])
        need_frames("features", features, (width,), is_empty_allowed=True)
        return self.scores(features)  # type: ignore[no-any-return]


def _linear_scores(features: Tensor, num_states: int) -> nn.Linear | None:
    """An untrained layer from features (n, D) to scores, with a warning; None where D is the number of states."""
    width = features.shape[1]
    if width == num_states:
        return None
    if not features.is_floating_point() or width == 0:
        raise ValueError(f"features: expected floating-point features, got {features.dtype} {tuple(features.shape)}")
    warnings.warn(
        f"features of width {width} for an HMM that takes the scores of {num_states} states: an untrained linear "
        "layer makes scores of them; assign a trained one to the processor's `scores`",
        stacklevel=5,
    )
    return nn.Linear(width, num_states, device=features.device, dtype=features.dtype)


def _probabilities(log_rows: Tensor) -> Tensor | None:
    return log_rows.exp() if log_rows.shape[-2] else None
