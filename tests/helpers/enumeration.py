"""The oracle: every quantity of one sequence from all K^T paths, in extended precision, by the definitions.

Nothing here imports the library; sums are over explicit paths, so no recursion over time is shared with it.
"""

from __future__ import annotations

import itertools
from functools import cached_property, lru_cache

import numpy as np

WIDE = np.longdouble
NEG_INF = WIDE(-np.inf)


def log_sum(values, axis=None):
    """logsumexp in extended precision; -inf for an empty sum."""
    values = np.asarray(values, WIDE)
    top = np.max(values, axis=axis, keepdims=True, initial=NEG_INF)
    top = np.where(np.isneginf(top), WIDE(0), top)
    with np.errstate(divide="ignore"):
        total = np.log(np.sum(np.exp(values - top), axis=axis, keepdims=True)) + top
    return total[()].reshape(()) if axis is None else np.squeeze(total, axis=axis)


def time_slots(log_transition, num_steps):
    """A (K, K), (1, K, K) or (T-1, K, K) transition as one matrix for each of the T-1 slots."""
    log_transition = np.asarray(log_transition, WIDE)
    num_states = log_transition.shape[-1]
    if log_transition.ndim == 3 and log_transition.shape[0] != 1:
        return log_transition[: num_steps - 1]
    return np.broadcast_to(log_transition, (max(num_steps - 1, 0), num_states, num_states))


@lru_cache(maxsize=64)
def all_paths(num_steps, num_states):
    """All paths (K^T, T), the last step varying fastest."""
    return np.array(list(itertools.product(range(num_states), repeat=num_steps)), dtype=np.int64)


class Enumeration:
    """One sequence: log_initial (K,), log_transition (K, K) or (T-1 or 1, K, K), log_emission (T, K), log_final."""

    def __init__(self, log_initial, log_transition, log_emission, log_final=None):
        self.num_steps, self.num_states = np.shape(log_emission)
        self.constant = np.ndim(log_transition) == 2 or np.shape(log_transition)[0] == 1
        self.matrix = np.asarray(log_transition, WIDE).reshape(-1, self.num_states, self.num_states)
        slots = time_slots(log_transition, self.num_steps)
        initial, emission = np.asarray(log_initial, WIDE), np.asarray(log_emission, WIDE)
        self.paths = all_paths(self.num_steps, self.num_states)
        steps = np.arange(self.num_steps)
        terms = emission[steps, self.paths]
        terms[:, 0] += initial[self.paths[:, 0]]
        terms[:, 1:] += slots[steps[:-1], self.paths[:, :-1], self.paths[:, 1:]]
        self.prefix = np.cumsum(terms, axis=1)  # log weight of each path's first t + 1 steps
        final = 0 if log_final is None else np.asarray(log_final, WIDE)[self.paths[:, -1]]
        self.weights = self.prefix[:, -1] + final

    @cached_property
    def has_nan(self):
        return bool(np.isnan(self.weights).any())

    @cached_property
    def log_likelihood(self):
        return WIDE(np.nan) if self.has_nan else log_sum(self.weights)

    @property
    def impossible(self):
        return bool(np.isneginf(self.log_likelihood))

    def _grouped(self, weights, labels, num_labels):
        """log of the normalised weight of each label; all -inf when there is no weight at all."""
        if np.isnan(weights).any():
            return np.full(num_labels, WIDE(np.nan))
        groups = np.stack([log_sum(weights[labels == label]) for label in range(num_labels)])
        total = log_sum(weights)
        return np.full(num_labels, NEG_INF) if np.isneginf(total) else groups - total

    def state_given(self, step, until):
        """log p(z_step given x_0..until), without log_final."""
        stride = self.num_states ** (self.num_steps - 1 - until)  # one path for each prefix
        return self._grouped(self.prefix[::stride, until], self.paths[::stride, step], self.num_states)

    @property
    def log_filtered(self):
        return np.stack([self.state_given(t, t) for t in range(self.num_steps)])

    def log_smoothed(self, lag):
        """log p(z_t given x_0..min(t + lag, T - 1)). Taken without log_final, as streams have none."""
        return np.stack([self.state_given(t, min(t + lag, self.num_steps - 1)) for t in range(self.num_steps)])

    @cached_property
    def log_posteriors(self):
        rows = [self._grouped(self.weights, self.paths[:, t], self.num_states) for t in range(self.num_steps)]
        return np.stack(rows)

    @cached_property
    def log_pairs(self):
        """log p(z_t, z_{t+1} given x), (T-1, K, K)."""
        k = self.num_states
        labels = self.paths[:, :-1] * k + self.paths[:, 1:]
        rows = [self._grouped(self.weights, labels[:, t], k * k) for t in range(self.num_steps - 1)]
        return np.array(rows, WIDE).reshape(self.num_steps - 1, k, k)

    @property
    def expected_transitions(self):
        if self.has_nan:  # a single step has no transitions, and NaN values all the same
            return np.full((self.num_states, self.num_states), WIDE(np.nan))
        return np.exp(self.log_pairs).sum(axis=0)

    @cached_property
    def _best_first(self):
        """Order of the possible paths: best first; ties by last state, then the state before it, and so on."""
        keys = [self.paths[:, t] for t in range(self.num_steps)] + [-self.weights]
        order = np.lexsort(keys)
        return order[: int(np.sum(self.weights > NEG_INF))]

    def k_best(self, k):
        """states (k, T), log_joint (k,); -1 and -inf where there are fewer than k paths."""
        states = np.full((k, self.num_steps), -1, np.int64)
        scores = np.full(k, NEG_INF)
        if self.has_nan:
            return states, np.full(k, WIDE(np.nan))
        best = self._best_first[:k]
        states[: len(best)], scores[: len(best)] = self.paths[best], self.weights[best]
        return states, scores

    @property
    def viterbi(self):
        states, scores = self.k_best(1)
        return states[0], scores[0]

    @property
    def path_probabilities(self):
        """p(z given x) of each of `paths`; zeros for an impossible sequence."""
        return np.zeros(len(self.paths)) if self.impossible else np.exp(self.weights - self.log_likelihood)

    @property
    def entropy(self):
        if self.has_nan:
            return WIDE(np.nan)
        possible = self.weights > NEG_INF
        if not possible.any():
            return WIDE(0)
        log_p = self.weights[possible] - self.log_likelihood
        return -np.sum(np.exp(log_p) * log_p)

    def log_joint(self, path):
        match = (self.paths == np.asarray(path)).all(axis=1)
        return self.weights[match][0]

    def forecast(self, num_steps):
        """log p(z_{T-1+h} given x), h = 1..num_steps, normalised, by enumerating the paths of h more steps."""
        assert self.constant, "no transition is given beyond the last slot of a time-varying one"
        last = self.state_given(self.num_steps - 1, self.num_steps - 1)
        rows = []
        for h in range(1, num_steps + 1):
            ahead = all_paths(h + 1, self.num_states)
            weights = last[ahead[:, 0]] + self.matrix[0][ahead[:, :-1], ahead[:, 1:]].sum(axis=1)
            rows.append(self._grouped(weights, ahead[:, -1], self.num_states))
        return np.stack(rows)
