"""Pseudo-residuals: standard normal numbers where the model is right."""

from __future__ import annotations

from math import log, pi
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

import hmm_functional as hf

from .emission import Emission
from .parametrize import full_precision
from .trainable import TrainableHMM


class PseudoResiduals(NamedTuple):
    """Of each feature of each frame, (..., T, D), or (..., T) of symbols; NaN in padding and where not observed.

    Of regressions D are the features that have a law, without the inputs.
    """

    lower: Tensor
    """Where the probability of a smaller observation lies on the standard normal scale."""
    upper: Tensor
    """The same with the observation's own; equal to `lower` where observations are continuous."""

    @property
    def values(self) -> Tensor:
        """Middles, on the scale of probabilities: standard normal under the model, as near as whole numbers can be."""
        # on the side of the smaller tail, which holds its digits
        sign = torch.where(self.lower + self.upper > 0, -1.0, 1.0)
        logs = [torch.special.log_ndtr(sign * x) for x in (self.lower, self.upper)]
        middle = sign * _quantile(torch.logaddexp(*logs) - log(2.0))
        return torch.where(self.lower == self.upper, self.lower, middle)


@torch.no_grad()
def pseudo_residuals(
    model: TrainableHMM, x: Tensor, lengths: Any = None, *, kind: Literal["ordinary", "forecast"] = "ordinary"
) -> PseudoResiduals:
    """How far out in its distribution under the model each observation lies, on the standard normal scale.

    Args:
        model: with emissions whose distribution functions are known (`Emission.log_tails`).
        x, lengths: as the model takes them; symbols count as ordered.
        kind: "ordinary" gives each frame given all others, which finds outliers; "forecast" given those before it.

    Raises:
        ValueError: an unknown kind. NotImplementedError: emissions without distribution functions, semi-Markov models,
        and "ordinary" residuals of emissions with lags, whose frames enter the densities of later ones.

    Cost: O(B T K (K + D)).

    References: Zucchini and MacDonald 2009, section 6.2.

    Example:
        >>> from pytorch_hmm import GaussianHMM
        >>> hmm = GaussianHMM(1, 1, means=[[0.0]], covariances=[[4.0]])
        >>> pseudo_residuals(hmm, torch.tensor([[2.0], [-4.0]])).values.flatten().round(decimals=6)
        tensor([ 1., -2.], dtype=torch.float64)
    """
    if kind not in ("ordinary", "forecast"):
        raise ValueError(f"kind: expected 'ordinary' or 'forecast', got {kind!r}")
    if model._is_conditional:
        name = type(model).__name__
        raise NotImplementedError(f"model: residuals of a model that depends on inputs, {name}, are not known here")
    if model._duration_family() is not None:
        raise NotImplementedError("model: pseudo-residuals of semi-Markov models are not known here")
    if kind == "ordinary" and model.emission.num_lags:
        raise NotImplementedError("kind: 'ordinary' residuals of emissions with lags are not known; take 'forecast'")
    with full_precision(model.log_initial):
        x, lengths, is_missing = model._prepare(x, lengths)
        emission = model._emission_log_prob(x)
        if is_missing is not None:
            emission = hf.mask_emission(emission, ~is_missing)
        emission = emission.double()
        initial, transition = model.log_initial.double(), model.log_transition.double()
        ends = None if lengths is None else lengths[..., None]
        filtered = hf.forward(initial, transition, emission, lengths=lengths).log_filtered
        others = _moved(filtered[..., :-1, :], transition)
        others = torch.cat([initial.expand_as(filtered[..., :1, :]), others], -2)
        if kind == "ordinary":
            steps = torch.arange(x.shape[emission.ndim - 2], device=x.device).expand(emission.shape[:-1])
            turned = steps.flip(-1) if ends is None else torch.where(steps < ends, ends - 1 - steps, steps)
            index = turned[..., None].expand_as(emission)
            flat = torch.zeros_like(initial)
            back = hf.forward(flat, transition.mT, emission.gather(-2, index), lengths=lengths).log_filtered
            later = _moved(back.gather(-2, index)[..., 1:, :], transition.mT)
            later = torch.cat([later, flat.expand_as(filtered[..., :1, :])], -2)
            if ends is not None:
                later = torch.where((steps == ends - 1)[..., None], 0.0, later)
            others = others + later
        weights = others.softmax(-1)
        if ends is not None:
            weights = weights.where((torch.arange(weights.shape[-2], device=x.device) < ends)[..., None], torch.nan)
        if is_missing is not None:
            weights = weights.where(~is_missing[..., None], torch.nan)
        if (laws := model.laws) is not None:
            pooled = weights.new_zeros(*weights.shape[:-1], model.emission.num_laws)
            weights = pooled.index_add_(-1, laws, weights)
        log_weights = weights.log()[..., None]
        lower, upper = (_quantiles(model.emission, x, log_weights, is_strict) for is_strict in (True, False))
    if not model.frame_shape:
        lower, upper = lower[..., 0], upper[..., 0]
    return PseudoResiduals(lower, upper)


def _quantiles(emission: Emission, x: Tensor, log_weights: Tensor, is_strict: bool) -> Tensor:
    """Of observations under the mixture of laws that log_weights (..., T, K, 1) make, (..., T, D)."""
    below, above = (torch.logsumexp(tail.double() + log_weights, -2) for tail in emission.log_tails(x, is_strict))
    # each half of the line from its own tail, which holds its digits
    return torch.where(below < above, _quantile(below), -_quantile(above)).where(~below.isnan(), torch.nan)


def _quantile(log_p: Tensor) -> Tensor:
    """z with log of the standard normal distribution function log_p, by Newton steps; below 0 is all that is asked."""
    log_p = log_p.clamp_max(-0.5)
    z = torch.where(log_p > -5.0, torch.special.ndtri(log_p.exp()), -(-2.0 * log_p).sqrt())
    for _ in range(6):
        log_cdf = torch.special.log_ndtr(z)
        slope = (-0.5 * z * z - 0.5 * log(2 * pi) - log_cdf).exp()
        z = torch.where(z.isfinite(), z - (log_cdf - log_p) / slope, z)
    return z


def _moved(log_probs: Tensor, log_transition: Tensor) -> Tensor:
    """log of probabilities (..., T, K) a step later."""
    return torch.logsumexp(log_probs[..., :, None] + log_transition, -2)
