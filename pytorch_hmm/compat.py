"""The `create_...` functions of the older pytorch_hmm library, as thin aliases of builders.

They return probabilities, torch tensors whose rows sum to one, where builders return logs. The self-loop that is
stated is kept exactly, and the rest is shared in proportion to the other arguments; the older functions divided rows
by their sums, self-loops too, so that 0.5 could become 0.56.

| older name | here |
|---|---|
| `create_transition_matrix`, `create_left_to_right_matrix` | `left_to_right`, `ergodic` |
| `create_skip_state_matrix` | `left_to_right(skip=(...))` |
| `create_phoneme_aware_transitions` | `from_durations` |
| `create_prosody_aware_transitions` | `prosodic` of `left_to_right` |
| `create_duration_constrained_matrix` | `duration_constrained` |

Not here, since they did not mean what they said:

- `create_hierarchical_transitions` added the probabilities of levels to one step and divided by the sum: no level could
  be told from another. `hierarchical` has units, and a transition between them.
- `create_attention_based_transitions` and `AdaptiveTransitionMatrix` made modules, the first with attention over all
  steps, future ones too. `InputDrivenHMM` has transitions that depend on inputs.
- `create_gaussian_observation_model` drew random means: `GaussianHMM`, and `initialize_from_data`.
- `create_speech_hmm` and `create_korean_tts_hmm` chose a class by name: `MixtureGaussianHMM(num_states, obs_dim)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from typing import Any, Literal

import torch
from torch import Tensor

import hmm_functional as hf
from hmm_functional._check import need_count

TransitionType = Literal["ergodic", "left_to_right", "left_to_right_skip", "circular"]


def create_transition_matrix(
    num_states: int,
    transition_type: TransitionType = "ergodic",
    self_loop_prob: float = 0.5,
    forward_prob: float = 0.4,
    skip_prob: float = 0.1,
    device: Any = "cpu",
) -> Tensor:
    """`ergodic` or `left_to_right` as probabilities, (K, K).

    Args:
        num_states: K.
        transition_type: "ergodic"; "left_to_right"; "left_to_right_skip", which also goes on by two; "circular",
            whose last state goes on to the first.
        self_loop_prob: probability of staying.
        forward_prob, skip_prob: in what proportion steps and skips share the rest, where there are skips.
        device: of the result.

    Example:
        >>> create_transition_matrix(3, "circular", self_loop_prob=0.75)
        tensor([[0.7500, 0.2500, 0.0000],
                [0.0000, 0.7500, 0.2500],
                [0.2500, 0.0000, 0.7500]])
    """
    like = torch.empty((), device=device)
    if transition_type == "ergodic":
        found = hf.ergodic(num_states, self_loop=self_loop_prob, like=like)
    elif transition_type in ("left_to_right", "circular"):
        is_cyclic = transition_type == "circular" and num_states > 1
        found = hf.left_to_right(num_states, self_loop=self_loop_prob, cyclic=is_cyclic, like=like)
    elif transition_type == "left_to_right_skip":
        return create_skip_state_matrix(num_states, self_loop_prob, forward_prob, skip_prob).to(device)
    else:
        known = "'ergodic', 'left_to_right', 'left_to_right_skip' or 'circular'"
        raise ValueError(f"transition_type: expected {known}, got {transition_type!r}")
    return _exp(found)


def create_left_to_right_matrix(num_states: int, self_loop_prob: float = 0.7, device: Any = "cpu") -> Tensor:
    """`left_to_right` as probabilities, (K, K).

    Example:
        >>> create_left_to_right_matrix(2, 0.5)
        tensor([[0.5000, 0.5000],
                [0.0000, 1.0000]])
    """
    return create_transition_matrix(num_states, "left_to_right", self_loop_prob, device=device)


def create_skip_state_matrix(
    num_states: int,
    self_loop_prob: float = 0.6,
    forward_prob: float = 0.3,
    skip_prob: float = 0.1,
    max_skip: int = 2,
) -> Tensor:
    """`left_to_right` with skips as probabilities, (K, K).

    Args:
        num_states: K.
        self_loop_prob: probability of staying.
        forward_prob, skip_prob: in what proportion steps and skips share the rest.
        max_skip: how far a skip may lead; one by s states has a weight of 1 / s among skips. What would lead beyond
            the last state is a step.

    Example:
        >>> create_skip_state_matrix(4)[0]
        tensor([0.6000, 0.3000, 0.1000, 0.0000])
    """
    most = need_count("max_skip", max_skip, 1)
    if not (forward_prob >= 0 and skip_prob >= 0 and forward_prob + skip_prob > 0):
        raise ValueError(f"skip_prob: expected shares from 0, not both 0, got {forward_prob} and {skip_prob}")
    weights = [1.0 / s for s in range(2, most + 1)]
    share = (1.0 - self_loop_prob) * skip_prob / (forward_prob + skip_prob)
    skips = [share * w / sum(weights) for w in weights]
    return _exp(hf.left_to_right(num_states, self_loop=self_loop_prob, skip=skips or 0.0))


def create_phoneme_aware_transitions(phoneme_durations: Sequence[float], duration_variance: float = 0.0) -> Tensor:
    """`from_durations` as probabilities, (K, K): a state a phoneme, self_loop = 1 - 1 / mean.

    Args:
        phoneme_durations: mean durations in frames, at least 1.
        duration_variance: 0; the older library added noise of that size to self-loops. A self-loop has the variance
            its mean gives it: see `negative_binomial_chain` or semi-Markov models for others.

    Example:
        >>> create_phoneme_aware_transitions([4.0, 10.0])
        tensor([[0.7500, 0.2500],
                [0.0000, 1.0000]])
    """
    if duration_variance != 0:
        raise ValueError(
            f"duration_variance: expected 0, a self-loop's variance follows from its mean, got {duration_variance}; "
            "see hmm_functional.negative_binomial_chain"
        )
    return _exp(hf.from_durations(phoneme_durations))


def create_prosody_aware_transitions(
    f0_contour: Tensor,
    energy_contour: Tensor,
    num_states: int,
    *,
    self_loop_prob: float = 0.7,
    f0_weight: float = log(0.8 / 1.2),
    energy_weight: float = log(1.1),
) -> Tensor:
    """`prosodic` transitions of `left_to_right` as probabilities, (T-1, K, K): a rise of F0 hurries, energy lingers.

    Args:
        f0_contour, energy_contour: (T,), standardised here; the change of F0 from the frame before counts.
        num_states: K.
        self_loop_prob: probability of staying where both are 0.
        f0_weight, energy_weight: change of the log odds of staying a standard deviation; by default what the older
            library took beyond its thresholds.

    Slot t holds the transition from frame t to t + 1; the older function gave T matrices, of which the first had none.
    """
    for name, contour in (("f0_contour", f0_contour), ("energy_contour", energy_contour)):
        if not isinstance(contour, Tensor):
            raise TypeError(f"{name}: expected a tensor (T,), got {type(contour).__name__}")
    if f0_contour.ndim != 1 or f0_contour.shape != energy_contour.shape:
        shapes = tuple(f0_contour.shape), tuple(energy_contour.shape)
        raise ValueError(f"f0_contour, energy_contour: expected shape (T,), got {shapes[0]} and {shapes[1]}")
    for name, contour in (("f0_contour", f0_contour), ("energy_contour", energy_contour)):
        if not contour.is_floating_point() or not contour.isfinite().all():
            raise ValueError(f"{name}: expected finite floating-point numbers; interpolate F0 where there is no voice")
    f0, energy = _standardised(f0_contour), _standardised(energy_contour)
    features = torch.stack([torch.diff(f0, prepend=f0[:1]), energy], -1)
    base = hf.left_to_right(num_states, self_loop=self_loop_prob, like=features)
    return _exp(hf.prosodic(base, features, features.new_tensor([f0_weight, energy_weight])))


def create_duration_constrained_matrix(
    num_states: int, min_duration: int = 1, max_duration: int | None = None, device: Any = "cpu"
) -> Tensor:
    """`duration_constrained` as probabilities, (K D, K D) with D = max_duration substates a state, one a step.

    Args:
        num_states: K.
        min_duration: shortest stay; after it a state ends with probability 0.3 a step.
        max_duration: D, the longest stay; default three times the shortest.
        device: of the result.

    The last state goes through its substates and stays in the last of them. `duration_constrained` says which state
    each substate stands for, has durations of any law, and `log_final`, which holds the last state to them, too.

    Example:
        >>> create_duration_constrained_matrix(2, 1, 2)
        tensor([[0.0000, 0.7000, 0.3000, 0.0000],
                [0.0000, 0.0000, 1.0000, 0.0000],
                [0.0000, 0.0000, 0.0000, 1.0000],
                [0.0000, 0.0000, 0.0000, 1.0000]])
    """
    shortest = need_count("min_duration", min_duration, 1)
    longest = need_count("max_duration", 3 * shortest if max_duration is None else max_duration, shortest)
    steps = torch.arange(longest, device=device)
    passed = (steps - shortest + 1).clamp_min(0)  # chances to end before this one
    law = passed * log(0.7) + torch.where(steps < longest - 1, log(0.3), 0.0)
    chain = hf.duration_constrained(num_states, shortest, log_duration=law.to(torch.get_default_dtype()))
    found = _exp(chain.log_transition)[:-1, :-1]  # without what outlasts the last state
    found[-1, -1] = 1.0
    return found


def _standardised(x: Tensor) -> Tensor:
    """Less the mean, over the standard deviation; zeros for a constant."""
    gaps, size = x - x.mean(), x.std(correction=0)
    return torch.where(size > 0, gaps / torch.where(size > 0, size, 1.0), 0.0)


def _exp(log_probs: Tensor) -> Tensor:
    return log_probs.exp()
