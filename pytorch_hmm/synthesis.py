"""From a semi-Markov model to speech parameters: durations, frames' states, and the trajectory they make."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

import hmm_functional as hf

from .gaussian import GaussianEmission
from .mixture import MixtureGaussianEmission
from .semi_markov import HSMM

How = Literal["mean", "mode", "sample"]


class Trajectory(NamedTuple):
    """What `generate_trajectory` made."""

    features: Tensor
    """(..., T, D): static features, 0 past a sequence's end."""
    states: Tensor
    """(..., T) int64: the state of every frame, -1 past the end."""
    durations: Tensor
    """(..., N) int64: frames of each of the states asked for."""


@torch.no_grad()
def choose_durations(
    model: HSMM,
    states: Tensor | None = None,
    *,
    how: How = "mean",
    rate: float = 1.0,
    total: Any = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """How many frames each state of an utterance lasts.

    Args:
        model: whose duration law says how long.
        states: (..., N) integers, -1 for padding; default 0, 1, ..., K - 1, as of a left-to-right model.
        how: "mean" shares out what the rate or `total` leaves by the variances (see `scale_durations`), each of at
            least a tenth of its mean, since those of few examples are none; "mode" takes the most probable duration of
            each and "sample" draws them, all scaled alike.
        rate: speaking rate, 2.0 is twice as fast.
        total: frames of each utterance, instead of a rate.
        generator: source of randomness of "sample"; default torch's global one.

    Returns:
        (..., N) int64, at least one frame a state, 0 in the padding. Scaled ones know no longest and shortest duration.

    Raises:
        ValueError: arguments that are none of these, or states outside 0..K-1.
    """
    if how not in ("mean", "mode", "sample"):
        raise ValueError(f"how: expected 'mean', 'mode' or 'sample', got {how!r}")
    states = _checked(model, states)
    is_state, index = states >= 0, states.clamp_min(0)
    if how == "mean":
        means, variances = model.duration.mean()[index], model.duration.variance()[index]
        variances = torch.maximum(variances, 0.1 * means)
    else:
        found = model.duration.mode()[index] if how == "mode" else model.duration.sample(index, generator)
        if rate == 1.0 and total is None:
            return found.where(is_state, 0)
        means = variances = found.double()
    scaled: Tensor = hf.scale_durations(means, variances, total=total, rate=rate, lengths=is_state.sum(-1))
    return scaled


def generate_trajectory(
    model: HSMM,
    windows: Any,
    states: Tensor | None = None,
    *,
    how: How = "mean",
    rate: float = 1.0,
    total: Any = None,
    durations: Tensor | None = None,
    global_variance: hf.GlobalVariance | None = None,
    edges: str = "truncate",
    generator: torch.Generator | None = None,
) -> Trajectory:
    """The most probable features of an utterance: durations, the states of its frames, and `hmm_functional.mlpg`.

    Args:
        model: with Gaussian emissions, or mixtures (of which the heaviest component speaks), "diag", "spherical" or
            "tied_diag", of static and dynamic features as `hmm_functional.apply_windows` gives them.
        windows, global_variance, edges: as `hmm_functional.mlpg`.
        states, how, rate, total, generator: as `choose_durations`.
        durations: (..., N) integers to take instead of `how`, `rate` and `total`; 0 in the padding.

    Raises:
        TypeError: other emissions. ValueError: as `choose_durations` and `mlpg`.

    Gradient: of the features, in means and covariances, without `global_variance`.

    References: Tokuda et al. 2000; Zen et al. 2007 (semi-Markov models).

    Example:
        >>> import torch
        >>> hsmm = HSMM(3, obs_dim=2, max_duration=9, duration="gaussian", topology="left_to_right")
        >>> generate_trajectory(hsmm, [(1,), (-0.5, 0, 0.5)], rate=2.0).features.shape
        torch.Size([8, 1])
    """
    states = _checked(model, states)
    means, variances = _moments(model)
    if durations is None:
        durations = choose_durations(model, states, how=how, rate=rate, total=total, generator=generator)
    elif (how, rate, total) != ("mean", 1.0, None):
        raise ValueError("durations: expected them, or how, rate and total, got both")
    else:
        durations = torch.as_tensor(durations, device=states.device)
    frames = hf.expand_states(states.clamp_min(0), durations)
    if bool(((durations > 0) & (states < 0)).any()):
        raise ValueError("durations: expected 0 where states are -1, got more")
    laws, ends = model._laws_of(frames.clamp_min(0)), (frames >= 0).sum(-1)
    features = hf.mlpg(
        means[laws], variances[laws], windows, edges=edges, lengths=ends, global_variance=global_variance
    )
    return Trajectory(features, frames, durations)


def _checked(model: HSMM, states: Any) -> Tensor:
    """States (..., N) of utterances, -1 in the padding; all in order by default."""
    if not isinstance(model, HSMM):
        raise TypeError(f"model: expected an HSMM, whose states say how long they last, got {type(model).__name__}")
    device = model.initial_distribution.logits.device
    if states is None:
        return torch.arange(model.num_states, device=device)
    found = torch.as_tensor(states, device=device)
    if found.is_floating_point() or not bool(((found >= -1) & (found < model.num_states)).all()):
        raise ValueError(f"states: expected integers 0..{model.num_states - 1}, or -1 in the padding, got others")
    is_state = found >= 0
    if not bool((is_state[..., :-1] | ~is_state[..., 1:]).all()) or not bool(is_state[..., :1].all()):
        raise ValueError("states: expected -1 after the last state alone")
    return found


def _moments(model: HSMM) -> tuple[Tensor, Tensor]:
    """Means and variances of each law, (num_laws, D)."""
    emission = model.emission
    kinds = ("diag", "spherical", "tied_diag")
    if not isinstance(emission, GaussianEmission | MixtureGaussianEmission) or emission.covariance_type not in kinds:
        kind = getattr(emission, "covariance_type", None)
        raise TypeError(
            f"model: expected Gaussians or their mixtures, with covariances of {', '.join(map(repr, kinds))}, got "
            f"{type(emission).__name__}" + (f" of {kind!r}" if kind else "")
        )
    means, variances = emission.means, emission.covariances
    if emission.covariance_type == "spherical":
        variances = variances[..., None]
    variances = variances.expand(means.shape)
    if isinstance(emission, MixtureGaussianEmission):
        best = emission.log_weights.argmax(-1)
        rows = torch.arange(len(best), device=best.device)
        return means[rows, best], variances[rows, best]
    return means, variances
