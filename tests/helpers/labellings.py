"""Oracles of alignment: all paths of symbols, and all ways to share frames among tokens, one by one."""

from __future__ import annotations

import itertools
from collections import defaultdict

import numpy as np

from tests.helpers.enumeration import NEG_INF, WIDE, all_paths, log_sum


def collapsed(path, blank=0):
    """What a path of symbols says (Graves et al. 2006, section 3.1)."""
    return tuple(symbol for symbol, _ in itertools.groupby(path) if symbol != blank)


class Labellings:
    """One sequence of log_probs (T, V): every labelling, with all its paths."""

    def __init__(self, log_probs, blank=0):
        log_probs = np.asarray(log_probs, WIDE)
        num_steps, num_symbols = log_probs.shape
        paths = all_paths(num_steps, num_symbols)
        weights = log_probs[np.arange(num_steps), paths].sum(axis=1)
        self.paths = defaultdict(list)
        for path, weight in zip(paths.tolist(), weights, strict=True):
            self.paths[collapsed(path, blank)].append((weight, tuple(path)))

    def log_likelihood(self, targets):
        return log_sum([weight for weight, _ in self.paths.get(tuple(targets), [])])

    def best_score(self, targets):
        return max((weight for weight, _ in self.paths.get(tuple(targets), [])), default=NEG_INF)

    def ranked(self):
        """(log-likelihood, labelling) of all that are possible, best first."""
        found = [(self.log_likelihood(labels), labels) for labels in self.paths]
        return sorted((x for x in found if x[0] > NEG_INF), key=lambda x: -x[0])


def all_alignments(num_tokens, num_frames):
    """Every monotonic alignment (P, T): the token of each frame, each at least once."""
    found = []
    for cuts in itertools.combinations(range(1, num_frames), num_tokens - 1):
        found.append(np.searchsorted(cuts, np.arange(num_frames), side="right"))
    return np.array(found, np.int64).reshape(-1, num_frames)


class Alignments:
    """One sequence of scores (N, T): every monotonic alignment."""

    def __init__(self, scores):
        scores = np.asarray(scores, WIDE)
        self.num_tokens, num_frames = scores.shape
        self.paths = all_alignments(self.num_tokens, num_frames)
        self.weights = scores[self.paths, np.arange(num_frames)].sum(axis=1)
        self.log_likelihood = log_sum(self.weights)

    @property
    def best(self):
        """The best path, of equal ones the one whose tokens begin last; -1 where there is none."""
        if self.log_likelihood == NEG_INF:
            return np.full(self.paths.shape[1], -1)
        top = self.paths[self.weights == self.weights.max()]
        return top[np.lexsort(top.T)[0]]

    @property
    def log_posteriors(self):
        rows = [
            [log_sum(self.weights[self.paths[:, t] == n]) for t in range(self.paths.shape[1])]
            for n in range(self.num_tokens)
        ]
        return np.array(rows, WIDE) - (0 if self.log_likelihood == NEG_INF else self.log_likelihood)
