"""The oracle of Viterbi streams: every survivor with the labels of its whole path, one at a time, by the definitions.

Nothing here imports the library.
"""

from __future__ import annotations

import numpy as np


class Stream:
    """What all streams do with their survivors, which are (score, labels of the pending steps) by key."""

    def __init__(self, max_delay=None):
        self.max_delay, self.num_forced, self.num_steps, self.out = max_delay, 0, 0, []
        self.survivors = {}

    def settle(self):
        """Give out what survivors agree on, and force what waits too long."""
        if not self.survivors:
            self.out += [self.nothing] * (self.num_steps - len(self.out))
            return
        best = self.best()
        while self.survivors[best][1]:
            label = self.survivors[best][1][0]
            agree = all(labels[0] == label for _, labels in self.survivors.values())
            if not agree:
                if self.max_delay is None or len(self.survivors[best][1]) <= self.max_delay:
                    return
                self.num_forced += 1
            self.out.append(label)
            self.survivors = {
                key: (score, labels[1:]) for key, (score, labels) in self.survivors.items() if labels[0] == label
            }

    def flush(self, weights=None):
        """The rest of the best path, with weights of ends by key."""
        ends = {key: score + (0.0 if weights is None else weights(key)) for key, (score, _) in self.survivors.items()}
        ends = {key: score for key, score in ends.items() if score > -np.inf}
        if not ends:
            return [*self.out, *[self.nothing] * (self.num_steps - len(self.out))]
        best = min(ends, key=lambda key: (-ends[key], self.order(key)))
        return [*self.out, *self.survivors[best][1]]


class Chain(Stream):
    """log_initial (K,), log_transition (K, K)."""

    def __init__(self, log_initial, log_transition, max_delay=None):
        super().__init__(max_delay)
        self.initial, self.transition, self.is_new = log_initial, log_transition, True

    nothing = -1

    def take(self, log_emission):
        self.num_steps += len(log_emission)
        for e in log_emission:
            found = {}
            for j in range(len(e)):
                ways = {i: score + self.transition[i, j] for i, (score, _) in self.survivors.items()}
                if self.is_new:
                    score, labels = self.initial[j], ()
                elif ways:
                    i = min(ways, key=lambda i: (-ways[i], i))
                    score, labels = ways[i], self.survivors[i][1]
                else:
                    continue
                if score + e[j] > -np.inf:
                    found[j] = (score + e[j], (*labels, j))
            self.survivors, self.is_new = found, False
        self.settle()

    def order(self, key):
        return key

    def best(self):
        return min(self.survivors, key=lambda key: (-self.survivors[key][0], key))


class Segments(Stream):
    """The same of segments; labels are (state, whether a segment begins)."""

    def __init__(self, log_initial, log_transition, log_duration, max_delay=None):
        super().__init__(max_delay)
        self.initial, self.transition, self.duration = log_initial, log_transition, log_duration
        self.tail = np.logaddexp.accumulate(log_duration[:, ::-1], axis=1)[:, ::-1]
        self.is_new = True

    nothing = (-1, 0)

    def take(self, log_emission):
        self.num_steps += len(log_emission)
        num_states, longest = self.duration.shape
        for e in log_emission:
            found = {}
            for k in range(num_states):
                ended = {}
                for (i, d), (score, _) in self.survivors.items():
                    ended[i, d] = score + self.duration[i, d] + self.transition[i, k]
                if self.is_new:
                    begin = (self.initial[k], ())
                elif ended:
                    # of equal ways the lower state, and of its own the shorter segment
                    key = min(ended, key=lambda key: (-ended[key], key))
                    begin = (ended[key], self.survivors[key][1])
                else:
                    begin = (-np.inf, ())
                found[k, 0] = (begin[0] + e[k], (*begin[1], (k, 1)))
                for d in range(1, longest):
                    if (k, d - 1) in self.survivors:
                        score, labels = self.survivors[k, d - 1]
                        found[k, d] = (score + e[k], (*labels, (k, 0)))
            self.survivors = {key: x for key, x in found.items() if x[0] + self.tail[key] > -np.inf}
            self.is_new = False
        self.settle()

    def order(self, key):
        return key[1], key[0]

    def best(self):
        return min(self.survivors, key=lambda key: (-(self.survivors[key][0] + self.tail[key]), self.order(key)))


def states_of(outputs, counts, num_streams):
    """Lists of each stream's own, from padded outputs (..., m) and how many of each are its own (...)."""
    found = [[] for _ in range(num_streams)]
    for output, count in zip(outputs, counts, strict=True):
        for b, (row, own) in enumerate(zip(output.reshape(num_streams, -1), count.reshape(-1), strict=True)):
            assert (row[own:] == -1).all()
            found[b] += row[:own].tolist()
    return found
