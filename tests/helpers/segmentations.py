"""The oracle of semi-Markov models: every quantity of one sequence from all segmentations, by the definitions.

Nothing here imports the library.
"""

from __future__ import annotations

import itertools

import numpy as np

from tests.helpers.enumeration import NEG_INF, WIDE, log_sum


def segmentations(num_steps, num_states, longest):
    """All ((state, duration), ...) whose durations sum to num_steps, each at most `longest`."""
    if num_steps == 0:
        yield ()
        return
    for duration in range(1, min(num_steps, longest) + 1):
        for state in range(num_states):
            for rest in segmentations(num_steps - duration, num_states, longest):
                yield ((state, duration), *rest)


class Segmentations:
    """log_initial (K,), log_transition (K, K), log_duration (K, D), log_emission (T, K)."""

    def __init__(self, log_initial, log_transition, log_duration, log_emission, censored):
        initial, transition, duration, emission = (
            np.asarray(x, WIDE) for x in (log_initial, log_transition, log_duration, log_emission)
        )
        self.num_steps, self.num_states = emission.shape
        self.longest, self.censored = duration.shape[1], censored
        self.all = list(segmentations(self.num_steps, self.num_states, self.longest))
        weights = []
        for segments in self.all:
            weight, t = initial[segments[0][0]], 0
            for i, (state, length) in enumerate(segments):
                weight = weight + sum(emission[t : t + length, state], WIDE(0))
                t += length
                if i + 1 < len(segments):
                    weight = weight + duration[state, length - 1] + transition[state, segments[i + 1][0]]
                elif censored:
                    weight = weight + log_sum(duration[state, length - 1 :])
                else:
                    weight = weight + duration[state, length - 1]
            weights.append(weight)
        self.weights = np.array(weights, WIDE)
        self.log_likelihood = log_sum(self.weights)

    @property
    def probabilities(self):
        if np.isneginf(self.log_likelihood):
            return np.zeros(len(self.weights), WIDE)
        return np.exp(self.weights - self.log_likelihood)

    def counts(self):
        """Posteriors (T, K), completed durations (K, D), transitions (K, K), last segments (K, D)."""
        posteriors = np.zeros((self.num_steps, self.num_states), WIDE)
        durations = np.zeros((self.num_states, self.longest), WIDE)
        ends, moves = np.zeros_like(durations), np.zeros((self.num_states,) * 2, WIDE)
        for p, segments in zip(self.probabilities, self.all, strict=True):
            t = 0
            for i, (state, length) in enumerate(segments):
                posteriors[t : t + length, state] += p
                t += length
                is_last = i + 1 == len(segments)
                if is_last:
                    ends[state, length - 1] += p
                if not (is_last and self.censored):
                    durations[state, length - 1] += p
            for (a, _), (b, _) in itertools.pairwise(segments):
                moves[a, b] += p
        return posteriors, durations, moves, ends

    def best(self):
        """The highest weight, and the segmentations that have it."""
        top = self.weights.max(initial=NEG_INF)
        return top, [s for s, w in zip(self.all, self.weights, strict=True) if w >= top - 1e-12 * max(1, abs(top))]
