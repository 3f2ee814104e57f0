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
