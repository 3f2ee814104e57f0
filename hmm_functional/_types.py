"""The results functions return: NamedTuples of arrays, pytrees in torch and JAX."""

from __future__ import annotations

from typing import Any, NamedTuple

Array = Any


class Forward(NamedTuple):
    """`log_filtered` (..., T, K): log p(z_t given x_0..t); `log_likelihood` (...)."""

    log_filtered: Array
    log_likelihood: Array


class ForwardBackward(NamedTuple):
    """`log_posteriors` (..., T, K): log p(z_t given x); `log_likelihood` (...)."""

    log_posteriors: Array
    log_likelihood: Array


class Viterbi(NamedTuple):
    """`states` (..., T), or (..., k, T) for the k best; `log_joint` (...) or (..., k): log p(x, states)."""

    states: Array
    log_joint: Array


class SemiMarkovPosterior(NamedTuple):
    """What is expected of segments given the observations."""

    log_posteriors: Array
    """(..., T, K): log p(z_t given x)."""
    expected_durations: Array
    """(..., K, D_max): numbers of segments that lasted d + 1 steps and are complete."""
    expected_transitions: Array
    """(..., K, K): numbers of changes of segment."""
    log_likelihood: Array
    """(...)"""
    expected_ends: Array
    """(..., K, D_max): probabilities of the last segment's state and the steps seen of it."""


class SemiMarkovViterbi(NamedTuple):
    """`states` (..., T); `is_start` (..., T), where segments begin; `log_joint` (...): log p(x, segmentation)."""

    states: Array
    is_start: Array
    log_joint: Array


class SemiMarkovPath(NamedTuple):
    """`states` (..., T); `is_start` (..., T), where segments begin."""

    states: Array
    is_start: Array


class ExpandedChain(NamedTuple):
    """A semi-Markov model as a plain chain of N substates; emissions of these are `log_emission[..., states]`."""

    log_initial: Array
    """(N,)"""
    log_transition: Any
    """(N, N), `Banded` or `Sparse`."""
    log_final: Array
    """(N,): log weight of a segment's end after each substate, for sequences that end with a segment."""
    states: Array
    """(N,) integers: the state of each substate."""
