"""The oracle of alignments: every way a transcript may be said and laid over the frames, written out one by one.

Nothing here imports the library; a transcript is given in plain tuples:
("token", column, ...) with one state a column; ("any", score, states), ("free", score, states);
("skip", item, p or None); ("or", items, probabilities or None); a list is a sequence. Words are the items
of the outermost list.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from math import comb

import numpy as np

from tests.helpers.enumeration import WIDE, log_sum


@dataclass(frozen=True)
class Said:
    """One way to say a transcript: its tokens as (index, word, states), a state being (column or kind, score)."""

    tokens: tuple
    log_weight: float


def _log(p):
    with np.errstate(divide="ignore"):
        return WIDE(0) if p is None else np.log(WIDE(p))


def ways(item, counter, word):
    """All ways to say an item; tokens are numbered in the order in which they are written."""
    if isinstance(item, list):
        parts = [ways(part, counter, word) for part in item]
        return [
            Said(sum((way.tokens for way in choice), ()), sum((way.log_weight for way in choice), WIDE(0)))
            for choice in itertools.product(*parts)
        ]
    kind, *rest = item
    if kind == "skip":
        said, p = ways(rest[0], counter, word), rest[1]
        spoken = [Said(w.tokens, w.log_weight + (_log(1 - p) if p is not None else 0)) for w in said]
        return [*spoken, Said((), _log(p))]
    if kind == "or":
        given = rest[1] or [None] * len(rest[0])
        return [
            Said(w.tokens, w.log_weight + _log(p))
            for part, p in zip(rest[0], given, strict=True)
            for w in ways(part, counter, word)
        ]
    states = [(column, 0.0) for column in rest] if kind == "token" else [(kind, rest[0])] * rest[1]
    return [Said(((next(counter), word, tuple(states)),), WIDE(0))]


def say(transcript, *, are_words):
    """All ways to say a transcript."""
    counter = itertools.count()
    parts = [ways(item, counter, i if are_words else 0) for i, item in enumerate(transcript)]
    return [
        Said(sum((way.tokens for way in choice), ()), sum((way.log_weight for way in choice), WIDE(0)))
        for choice in itertools.product(*parts)
    ]


def with_silences(said, silence, places):
    """A way to say a transcript with each choice of silences; `silence` holds its columns."""
    tokens = said.tokens
    gaps = range(len(tokens) + 1)

    def may_pause(gap):
        if gap in (0, len(tokens)):
            return True
        return places == "tokens" or (places == "words" and tokens[gap - 1][1] != tokens[gap][1])

    open_gaps = [gap for gap in gaps if may_pause(gap)] if silence else []
    for count in range(len(open_gaps) + 1):
        for chosen in itertools.combinations(open_gaps, count):
            parts = []
            for gap in gaps:
                if gap in chosen:
                    parts.append((-1, None, tuple((column, 0.0) for column in silence)))
                if gap < len(tokens):
                    parts.append(tokens[gap])
            yield tuple(parts)


class Alignments:
    """All alignments of a transcript over emissions (T, V).

    Args:
        log_emission: (T, V).
        transcript: as above.
        are_words: whether items are words; else all are of one.
        silence: columns of a silence's states, or None.
        places: "ends", "words" or "tokens".
        self_loop: (V,) probabilities, or None.
    """

    def __init__(self, log_emission, transcript, *, are_words=True, silence=None, places="words", self_loop=None):
        emission = np.asarray(log_emission, WIDE)
        num_steps = len(emission)
        weights, labels, tokens = [], [], []
        for said in say(transcript, are_words=are_words):
            for parts in with_silences(said, silence, places):
                states = [(index, *state) for index, _, own in parts for state in own]
                if not states or len(states) > num_steps:
                    continue
                for cuts in itertools.combinations(range(1, num_steps), len(states) - 1):
                    durations = np.diff([0, *cuts, num_steps])
                    path = np.repeat(np.arange(len(states)), durations)
                    terms, columns = said.log_weight, []
                    for t, s in enumerate(path):
                        _, column, score = states[s]
                        best = int(np.argmax(emission[t]))
                        if column == "any":
                            terms = terms + emission[t, best] + score
                        elif column == "free":
                            terms = terms + WIDE(score)
                        else:
                            terms = terms + emission[t, column]
                        columns.append(best if isinstance(column, str) else column)
                    if self_loop is not None:
                        for (_, column, _), d in zip(states, durations, strict=True):
                            if not isinstance(column, str):
                                terms = terms + (d - 1) * _log(self_loop[column]) + _log(1 - self_loop[column])
                    weights.append(terms)
                    labels.append(columns)
                    tokens.append([states[s][0] for s in path])
        self.num_steps = num_steps
        self.weights = np.array(weights, WIDE)
        self.labels = np.array(labels, np.int64).reshape(-1, num_steps)
        self.tokens = np.array(tokens, np.int64).reshape(-1, num_steps)

    @property
    def log_likelihood(self):
        return log_sum(self.weights) if len(self.weights) else WIDE(-np.inf)

    @property
    def best(self):
        """Index of the best alignment."""
        return int(np.argmax(self.weights))

    @property
    def probabilities(self):
        return np.exp(self.weights - self.log_likelihood)

    def token_posteriors(self, token):
        """p(frame t belongs to the token given x), (T,)."""
        return self.probabilities @ (self.tokens == token)

    def boundaries(self, token):
        """p(the token begins before frame t), p(it ends before it), t = 0..T, given x and that it is said."""
        found = np.zeros((2, self.num_steps + 1), WIDE)
        for p, row in zip(self.probabilities, self.tokens, strict=True):
            inside = np.flatnonzero(row == token)
            if len(inside):
                found[0, inside[0]] += p
                found[1, inside[-1] + 1] += p
        return found / found.sum(1, keepdims=True)

    def deviations(self, token):
        """Means and standard deviations in frames of where the token begins and ends."""
        frames = np.arange(self.num_steps + 1)
        found = []
        for p in self.boundaries(token):
            mean = p @ frames
            found.append((mean, np.sqrt(p @ (frames - mean) ** 2)))
        return found


def count_alignments(num_states, num_steps):
    """How many ways there are to lay a plain sequence of states over the frames."""
    return comb(num_steps - 1, num_states - 1)
