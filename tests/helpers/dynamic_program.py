"""The oracle for long sequences: plain forward, backward and Viterbi loops in extended precision.

Messages are not normalised: 64 bits of mantissa keep them to 1e-12 nats at T = 100,000. No import of the library.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tests.helpers.enumeration import NEG_INF, WIDE, log_sum, time_slots


@dataclass(frozen=True)
class DynamicProgram:
    log_likelihood: np.longdouble
    log_filtered: np.ndarray  # (T, K)
    log_posteriors: np.ndarray  # (T, K)
    expected_transitions: np.ndarray  # (K, K)
    states: np.ndarray  # (T,)
    log_joint: np.longdouble


def log_sum_columns(matrix):
    """logsumexp over the rows of a (K, K) matrix whose entries are not NaN."""
    top = matrix.max(axis=0)
    top = np.where(np.isneginf(top), WIDE(0), top)
    return np.log(np.exp(matrix - top).sum(axis=0)) + top


def dynamic_program(log_initial, log_transition, log_emission, log_final=None):
    """All quantities of one possible sequence; arguments as those of `Enumeration`."""
    emission = np.asarray(log_emission, WIDE)
    num_steps, num_states = emission.shape
    slots = time_slots(log_transition, num_steps)
    final = np.zeros(num_states, WIDE) if log_final is None else np.asarray(log_final, WIDE)
    with np.errstate(divide="ignore"):
        forward = np.empty_like(emission)
        forward[0] = np.asarray(log_initial, WIDE) + emission[0]
        for t in range(1, num_steps):
            forward[t] = log_sum_columns(forward[t - 1][:, None] + slots[t - 1]) + emission[t]
        backward = np.empty_like(emission)
        backward[-1] = final
        for t in range(num_steps - 1, 0, -1):
            backward[t - 1] = log_sum_columns((slots[t - 1] + emission[t] + backward[t]).T)
        log_likelihood = log_sum(forward[-1] + final)
        log_filtered = forward - log_sum(forward, axis=1)[:, None]
        arriving = (emission[1:] + backward[1:])[:, None, :]
        pairs = forward[:-1, :, None] + slots + arriving - log_likelihood
        counts = np.exp(pairs).sum(axis=0)
    states, log_joint = best_path(log_initial, slots, emission, final)
    posteriors = forward + backward - log_likelihood
    return DynamicProgram(log_likelihood, log_filtered, posteriors, counts, states, log_joint)


def best_path(log_initial, slots, emission, final):
    """Viterbi; numpy's argmax takes the first maximum, the tie rule of the contract."""
    num_steps, num_states = emission.shape
    score = np.asarray(log_initial, WIDE) + emission[0]
    came_from = np.zeros((num_steps, num_states), np.int64)
    for t in range(1, num_steps):
        candidates = score[:, None] + slots[t - 1]
        came_from[t] = candidates.argmax(axis=0)
        score = candidates.max(axis=0) + emission[t]
    states = np.full(num_steps, -1, np.int64)
    log_joint = (score + final).max()
    if log_joint > NEG_INF:
        states[-1] = (score + final).argmax()
        for t in range(num_steps - 1, 0, -1):
            states[t - 1] = came_from[t, states[t]]
    return states, log_joint
