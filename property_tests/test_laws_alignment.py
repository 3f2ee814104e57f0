"""Laws of alignment graphs and forced alignment, for all transcripts that hypothesis thinks of."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

import hmm_functional as hf
from tests.helpers.alignments import Alignments

SYMBOLS = 4
tokens = st.integers(1, SYMBOLS - 1)
seeds = st.integers(0, 2**32 - 1)
places = st.sampled_from([None, "ends", "words", "tokens"])


def both(strategy, users, oracles):
    return strategy.map(lambda x: (users(x), oracles(x)))


token = both(tokens, lambda v: v, lambda v: ("token", v))
items = st.recursive(
    token,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from([None, 0.0, 0.3, 1.0])).map(
            lambda x: (hf.Skippable(x[0][0], x[1]), ("skip", x[0][1], x[1]))
        ),
        st.lists(inner, min_size=1, max_size=2).map(lambda x: ([a for a, _ in x], [b for _, b in x])),
        st.lists(inner, min_size=1, max_size=2).map(
            lambda x: (hf.Alternatives([a for a, _ in x]), ("or", [b for _, b in x], None))
        ),
    ),
    max_leaves=4,
)
transcripts = st.lists(items, min_size=1, max_size=3).map(lambda x: ([a for a, _ in x], [b for _, b in x]))


def is_word(plain):
    kind = plain[0] if isinstance(plain, tuple) else "list"
    return is_word(plain[1]) if kind == "skip" else kind in ("list", "or")


def log_likelihood(graph, emission):
    states = hf.state_scores(graph, emission)
    return hf.log_likelihood(graph.log_initial, graph.log_transition, states, log_final=graph.log_final)


@given(transcripts, places, seeds)
def test_any_transcript_is_the_sum_over_what_it_stands_for(transcript, place, seed):
    written, plain = transcript
    emission = np.random.default_rng(seed).normal(size=(5, SYMBOLS))
    silence = None if place is None else 0
    topology = hf.Topology(silence=silence, silence_at=place or "words")
    oracle = Alignments(
        emission,
        plain,
        are_words=any(is_word(item) for item in plain),
        silence=None if place is None else [0],
        places=place or "words",
    )
    graph = hf.transcript_graph(written, like=emission, topology=topology)
    wanted = float(oracle.log_likelihood)
    got = log_likelihood(graph, emission)
    assert (got == wanted) or abs(got - wanted) < 1e-10
    if wanted == -np.inf:
        return
    found = hf.forced_align(emission, graph)
    assert abs(found.log_joint - float(oracle.weights.max())) < 1e-10
    for n in np.flatnonzero(found.start >= 0):
        frames = np.arange(found.start[n], found.end[n])
        (start, deviation), (end, end_deviation) = oracle.deviations(n)
        wanted = [oracle.token_posteriors(n)[frames].mean(), start, deviation, end, end_deviation]
        got = [x[n] for x in found[5:10]]
        # standard deviations are roots: an error of 1e-16 in a variance of 0 is one of 1e-8 in them
        np.testing.assert_allclose(got, np.array(wanted, np.float64), rtol=0, atol=1e-6)


@given(st.lists(tokens, min_size=1, max_size=4), places, st.integers(1, 3), seeds)
def test_symbols_may_be_renamed(targets, place, states, seed):
    rng = np.random.default_rng(seed)
    emission = rng.normal(size=(16, SYMBOLS * states))
    order = rng.permutation(SYMBOLS)
    topology = hf.Topology(states=states, silence=None if place is None else 0, silence_at=place or "words")
    renamed = hf.Topology(states=states, silence=None if place is None else int(order[0]), silence_at=place or "words")
    moved = np.empty_like(emission).reshape(16, SYMBOLS, states)
    moved[:, order] = emission.reshape(16, SYMBOLS, states)
    one = hf.forced_align(emission, targets, topology=topology)
    other = hf.forced_align(moved.reshape(16, -1), order[np.array(targets)], topology=renamed)
    np.testing.assert_array_equal(one.token_index, other.token_index)
    np.testing.assert_allclose(one.log_joint, other.log_joint, rtol=0, atol=1e-10)
    np.testing.assert_allclose(one.confidence, other.confidence, rtol=0, atol=1e-10)


@given(st.lists(tokens, min_size=1, max_size=5), st.integers(0, 4), seeds)
def test_segments_tile_the_frames_and_padding_is_not_read(targets, extra, seed):
    rng = np.random.default_rng(seed)
    num_steps = len(targets) + int(rng.integers(0, 6))
    emission = rng.normal(size=(num_steps, SYMBOLS))
    alone = hf.forced_align(emission, targets)
    assert alone.start[0] == 0
    assert alone.end[-1] == num_steps
    np.testing.assert_array_equal(alone.start[1:], alone.end[:-1])
    np.testing.assert_allclose(alone.start_deviation[1:], alone.end_deviation[:-1], rtol=0, atol=1e-7)
    assert ((alone.confidence >= 0) & (alone.confidence <= 1 + 1e-12)).all()
    padded = np.concatenate([emission, np.full((extra, SYMBOLS), np.nan)])
    more = np.concatenate([targets, np.full(extra, 99)]).astype(np.int64)
    found = hf.forced_align(padded, more, lengths=num_steps, target_lengths=len(targets))
    for one, other in zip(alone, found, strict=True):
        size = one.shape[-1:] or ()
        np.testing.assert_allclose(other[..., : size[0]] if size else other, one, rtol=0, atol=1e-9)
