"""HMMs as layers of larger networks."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

import hmm_functional as hf
from hmm_functional._check import need_count

from ._check import lengths_like, need_frames, need_support
from .hmm import Topology
from .parametrize import full_precision, widened
from .scores import HMMPyTorch


class HMMLayer(nn.Module):
    """Aligns features with hidden states, softly: a linear layer scores the states, forward-backward weighs them.

    Args:
        num_states: K.
        learnable_transitions: whether initial and transition probabilities take gradients.
        feature_dim: F; None takes it from the first features seen, as torch's Lazy modules do (until then the
            layer can be moved, converted, saved and loaded, but not trained).
        topology: "left_to_right" or "ergodic".

    Attributes:
        scores: the linear layer F to K.
        hmm: the chain, an `HMMPyTorch`.

    Example:
        >>> import torch
        >>> layer = HMMLayer(num_states=50)
        >>> aligned, posteriors = layer(torch.randn(2, 100, 256))
        >>> aligned.shape, posteriors.shape
        (torch.Size([2, 100, 256]), torch.Size([2, 100, 50]))
    """

    def __init__(
        self,
        num_states: int,
        learnable_transitions: bool = True,
        feature_dim: int | None = None,
        topology: Topology | None = "left_to_right",
    ) -> None:
        super().__init__()
        self.hmm = HMMPyTorch(num_states, topology=topology, learnable=learnable_transitions)
        self.scores: nn.Module
        if feature_dim is None:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Lazy modules are a new feature")
                self.scores = nn.LazyLinear(num_states)
        else:
            self.scores = nn.Linear(need_count("feature_dim", feature_dim, 1), num_states)

    def forward(self, features: Tensor, lengths: Any = None) -> tuple[Tensor, Tensor]:
        """Features as their states see them, and p(z_t given features).

        Args:
            features: (..., T, F), finite.
            lengths: (...) integers 1..T, for right-padded sequences; padding may hold anything.

        Returns:
            aligned (..., T, F): the mean of each state (its frames weighted by their posteriors, within the sequence),
            mixed by the frame's own posteriors. posteriors (..., T, K). Both are 0 in padding.

        Raises:
            ValueError: a wrong shape, an empty sequence, or NaN and infinities within the lengths.

        Cost: O(B T K (K + F)) time, O(B T (K + F)) memory.
        """
        if isinstance(features, Tensor) and features.ndim < 2:
            raise ValueError(f"features: expected shape (..., T, F), got {tuple(features.shape)}")
        width = getattr(self.scores, "in_features", 0) or features.shape[-1]
        need_frames("features", features, (width,))
        shape = features.shape[:-1]
        is_read: Tensor | None = None
        if lengths is not None:
            lengths = lengths_like(lengths, features, tuple(shape[:-1]), shape[-1])
            is_read = torch.arange(shape[-1], device=features.device) < lengths[..., None]
        bounds = (-torch.inf, torch.inf)
        need_support("features", features, 1, bounds, is_read, "finite features", "pass lengths= if it is padding")
        if is_read is not None:
            features = torch.where(is_read[..., None], features, 0)
        log_posteriors = self.hmm._call(hf.forward_backward, self.scores(features), lengths).log_posteriors
        posteriors = log_posteriors.exp()
        # weights of the frames in a state's mean, from logs: a state hardly visited has a mean, and a gradient, too
        is_visited = log_posteriors.amax(-2, keepdim=True) > -torch.inf
        weights = log_posteriors.where(is_visited, 0.0).softmax(-2).where(is_visited, 0.0)
        with full_precision(features):
            means = weights.mT @ widened(features).to(weights.dtype)
            aligned = posteriors @ means
        return aligned.to(features.dtype), posteriors
