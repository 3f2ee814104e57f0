"""CTC and monotonic alignment against all paths one by one, and CTC against torch's loss."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import hmm_functional as hf
import hmm_functional.alignment.beam as beam
import hmm_functional.alignment.segmentation as segmentation
from property_tests.strategies import seeds
from tests.helpers.backends import LIBRARIES, as_numpy
from tests.helpers.labellings import Alignments, Labellings, collapsed

NAMES = ["numpy", "torch"]  # the others are held to these in tests/, JAX compiles for each shape


def random_scores(rng, shape, *, zeros=0.0, spread=1.0, is_rounded=False):
    x = rng.normal(size=shape) * spread
    x = np.round(x) if is_rounded else x
    x[rng.random(shape) < zeros] = -np.inf
    return x


@st.composite
def problems(draw, most_steps=5):
    """log_probs (B, T, V), lengths, targets (B, N) with repeats, target_lengths, blank."""
    size, num_steps, num_symbols = draw(st.integers(1, 3)), draw(st.integers(1, most_steps)), draw(st.integers(2, 3))
    num_tokens = draw(st.integers(0, 4))
    rng = np.random.default_rng(draw(seeds))
    blank = int(rng.integers(num_symbols))
    spread, zeros = draw(st.sampled_from([(1.0, 0.0), (30.0, 0.2), (1000.0, 0.0)]))
    log_probs = random_scores(rng, (size, num_steps, num_symbols), spread=spread, zeros=zeros)
    others = np.delete(np.arange(num_symbols), blank)
    targets = rng.choice(others, (size, num_tokens))
    lengths = rng.integers(1, num_steps + 1, size)
    target_lengths = rng.integers(0, num_tokens + 1, size)
    log_probs[np.arange(num_steps) >= lengths[:, None]] = np.nan  # never read
    targets[np.arange(num_tokens) >= target_lengths[:, None]] = -7
    return log_probs, lengths, targets, target_lengths, blank


@pytest.mark.parametrize("library", NAMES)
@given(problem=problems())
def test_ctc_equals_the_sum_and_the_best_of_all_paths(library, problem):
    log_probs, lengths, targets, target_lengths, blank = problem
    one = LIBRARIES[library]
    given_ = one.array(log_probs), one.array(targets)
    options = {"lengths": one.array(lengths), "target_lengths": one.array(target_lengths), "blank": blank}
    found = one.numpy(hf.ctc_log_likelihood(*given_, **options))
    for b, (length, count) in enumerate(zip(lengths, target_lengths, strict=True)):
        frames, said = log_probs[b, :length], targets[b, :count]
        every = Labellings(frames, blank)
        scale = max(1.0, np.abs(frames[np.isfinite(frames)]).max(initial=0.0)) * length
        np.testing.assert_allclose(found[b], float(every.log_likelihood(said)), rtol=0, atol=1e-12 * scale)
        needed = count + int((said[1:] == said[:-1]).sum())
        if needed > length:
            assert found[b] == -np.inf
            with pytest.raises(ValueError, match=rf"{needed} frames.*for {length} frames"):
                hf.ctc_align(one.array(frames), one.array(said), blank=blank)
            continue
        best = hf.ctc_align(one.array(frames), one.array(said), blank=blank)
        best = best._replace(**{name: one.numpy(x) for name, x in best._asdict().items() if x is not None})
        np.testing.assert_allclose(best.log_joint, float(every.best_score(said)), rtol=0, atol=1e-12 * scale)
        if best.log_joint == -np.inf:
            for x in (best.labels, best.token_index, best.start, best.end):
                np.testing.assert_array_equal(x, -1)
            continue
        assert collapsed(best.labels.tolist(), blank) == tuple(said.tolist())
        np.testing.assert_allclose(frames[np.arange(length), best.labels].sum(), best.log_joint, rtol=1e-12)
        for token, (start, end) in enumerate(zip(best.start, best.end, strict=True)):
            np.testing.assert_array_equal(np.flatnonzero(best.token_index == token), np.arange(start, end))
            np.testing.assert_array_equal(best.labels[start:end], said[token])
        np.testing.assert_array_equal(best.token_index == -1, best.labels == blank)


@given(seed=seeds, size=st.integers(1, 4), num_steps=st.integers(1, 12), num_symbols=st.integers(2, 6))
def test_ctc_equals_torchs_loss_and_its_gradient_of_logits(seed, size, num_steps, num_symbols):
    rng = np.random.default_rng(seed)
    num_tokens, blank = int(rng.integers(1, num_steps + 1)), int(rng.integers(num_symbols))
    logits = torch.from_numpy(rng.normal(size=(size, num_steps, num_symbols)) * 3).requires_grad_()
    targets = torch.from_numpy(rng.choice(np.delete(np.arange(num_symbols), blank), (size, num_tokens)))
    lengths = torch.from_numpy(rng.integers(1, num_steps + 1, size))
    target_lengths = torch.from_numpy(rng.integers(0, num_tokens + 1, size))
    weights = torch.from_numpy(rng.normal(size=size))
    mine = hf.ctc_log_likelihood(
        logits.log_softmax(-1), targets, lengths=lengths, target_lengths=target_lengths, blank=blank
    )
    theirs = -torch.nn.functional.ctc_loss(
        logits.log_softmax(-1).transpose(0, 1), targets, lengths, target_lengths, blank, "none", zero_infinity=False
    )
    torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)
    is_possible = theirs > -torch.inf
    (gradient,) = torch.autograd.grad((weights * mine).where(is_possible, 0.0).sum(), logits, retain_graph=True)
    theirs = torch.nn.functional.ctc_loss(
        logits.log_softmax(-1).transpose(0, 1), targets, lengths, target_lengths, blank, "none", zero_infinity=True
    )
    (expected,) = torch.autograd.grad((-weights * theirs).sum(), logits)
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-9)
    if not is_possible.all():
        (gradient,) = torch.autograd.grad(mine[~is_possible].sum(), logits)
        assert (gradient == 0).all()


@given(problem=problems(most_steps=4), data=st.data())
def test_prefix_search_with_room_for_all_finds_all(problem, data):
    log_probs, lengths, _, _, blank = problem
    one, num_results = LIBRARIES["torch"], data.draw(st.integers(1, 6))
    found = as_numpy(
        one,
        hf.ctc_prefix_search(
            one.array(log_probs), lengths=one.array(lengths), blank=blank, beam_width=200, num_results=num_results
        ),
    )
    for b, length in enumerate(lengths):
        every = Labellings(log_probs[b, :length], blank)
        ranked = every.ranked()[:num_results]
        scale = np.abs(log_probs[b, :length][np.isfinite(log_probs[b, :length])]).max(initial=1.0) * length
        expected = np.full(num_results, -np.inf)
        expected[: len(ranked)] = [float(x) for x, _ in ranked]
        np.testing.assert_allclose(found.scores[b], expected, rtol=0, atol=1e-12 * scale)
        np.testing.assert_array_equal(found.scores[b], found.log_likelihood[b])
        said = [tuple(row[:n].tolist()) for row, n in zip(found.labels[b], found.target_lengths[b], strict=True)]
        assert len(set(said[: len(ranked)])) == len(ranked)
        for labels, score, row in zip(said, expected, found.labels[b], strict=True):
            assert (row[len(labels) :] == -1).all()
            if score > -np.inf:
                np.testing.assert_allclose(float(every.log_likelihood(labels)), score, rtol=0, atol=1e-12 * scale)
            else:
                assert labels == ()


@given(seed=seeds, num_steps=st.integers(1, 4), weight=st.sampled_from([0.5, 1.0, 3.0]), bonus=st.floats(-2, 2))
def test_prefix_search_weighs_the_language_model(seed, num_steps, weight, bonus):
    rng = np.random.default_rng(seed)
    log_probs, bigrams = random_scores(rng, (num_steps, 3)), -np.abs(random_scores(rng, (3, 3), zeros=0.1))
    told = []

    def language_model(symbols, states):
        told.extend((*(state or ()), int(symbol)) for symbol, state in zip(symbols, states, strict=True))
        return bigrams[symbols], told[-len(states) :]

    def score(labels):
        ends = (0, *labels, 0)
        return weight * sum(bigrams[a, b] for a, b in pairwise(ends)) + bonus * len(labels)

    found = hf.ctc_prefix_search(
        log_probs,
        beam_width=100,
        num_results=100,
        language_model=language_model,
        language_weight=weight,
        length_bonus=bonus,
    )
    assert len(set(told)) == len(told)  # asked once of each
    assert all(path[0] == 0 and 0 not in path[1:] for path in told)  # states are those of the prefix less a symbol
    expected = sorted((float(x + score(labels)) for x, labels in Labellings(log_probs).ranked()), reverse=True)
    expected = [x for x in expected if x > -np.inf]
    np.testing.assert_allclose(found.scores[: len(expected)], expected, rtol=1e-10, atol=1e-10)
    assert (found.scores[len(expected) :] == -np.inf).all()


@given(seed=seeds, num_steps=st.integers(1, 12), width=st.integers(1, 6))
def test_a_narrow_beam_gives_lower_bounds(seed, num_steps, width):
    log_probs = random_scores(np.random.default_rng(seed), (num_steps, 3), spread=3.0)
    found = hf.ctc_prefix_search(log_probs, beam_width=width, num_results=width)
    for labels, count, score in zip(found.labels, found.target_lengths, found.log_likelihood, strict=True):
        if score > -np.inf:
            assert score <= hf.ctc_log_likelihood(log_probs, labels[:count]) + 1e-9


@pytest.mark.parametrize("library", NAMES)
@given(
    seed=seeds, size=st.integers(1, 3), num_frames=st.integers(1, 7), num_tokens=st.integers(1, 5), ties=st.booleans()
)
def test_monotonic_alignment_equals_all_alignments(library, seed, size, num_frames, num_tokens, ties):
    rng = np.random.default_rng(seed)
    one = LIBRARIES[library]
    scores = random_scores(rng, (size, num_tokens, num_frames), zeros=0.1, is_rounded=ties)
    lengths, target_lengths = rng.integers(1, num_frames + 1, size), rng.integers(1, num_tokens + 1, size)
    scores[np.arange(num_tokens) >= target_lengths[:, None]] = np.nan  # never read
    np.moveaxis(scores, 2, 1)[np.arange(num_frames) >= lengths[:, None]] = np.nan
    options = {"lengths": one.array(lengths), "target_lengths": one.array(target_lengths)}
    tokens = one.numpy(hf.monotonic_alignment_search(one.array(scores), **options))
    soft = as_numpy(one, hf.soft_monotonic_alignment(one.array(scores), **options))
    durations = one.numpy(hf.token_durations(one.array(tokens), num_tokens))
    for b, (length, count) in enumerate(zip(lengths, target_lengths, strict=True)):
        every = Alignments(scores[b, :count, :length])
        np.testing.assert_array_equal(tokens[b, :length], every.best)
        np.testing.assert_array_equal(tokens[b, length:], -1)
        np.testing.assert_array_equal(durations[b], [(tokens[b] == n).sum() for n in range(num_tokens)])
        np.testing.assert_allclose(soft.log_likelihood[b], float(every.log_likelihood), rtol=0, atol=1e-12)
        expected = np.full((num_tokens, num_frames), -np.inf)
        expected[:count, :length] = every.log_posteriors.astype(float)
        np.testing.assert_allclose(np.exp(soft.log_posteriors[b]), np.exp(expected), rtol=0, atol=1e-12)


@pytest.mark.parametrize("is_narrow", [False, True])
@given(seed=seeds, data=st.data())
def test_segmentation_is_the_best_path_of_all_states_at_once(is_narrow, seed, data):
    """However the search is cut into blocks of frames and windows of states."""
    rng = np.random.default_rng(seed)
    num_utterances, room = data.draw(st.integers(1, 3)), data.draw(st.integers(0, 30))
    skip_between, skip_score = data.draw(st.booleans()), data.draw(st.sampled_from([None, 0.0, -1.5, -np.inf]))
    utterances = [rng.integers(1, 4, rng.integers(1, 3)) for _ in range(num_utterances)]
    tokens = np.concatenate(utterances)
    num_steps = len(tokens) + int((tokens[1:] == tokens[:-1]).sum()) + room
    log_probs = random_scores(rng, (num_steps, 4), spread=data.draw(st.sampled_from([1.0, 5.0])))
    if data.draw(st.booleans()):
        log_probs -= np.logaddexp.reduce(log_probs, axis=1, keepdims=True)
    ends = np.cumsum([len(x) for x in utterances])
    with pytest.MonkeyPatch.context() as patch:
        if is_narrow:
            patch.setattr(segmentation, "_STEPS", 1)
            patch.setattr(beam, "_ROUND", data.draw(st.integers(1, 4)))
        found = hf.ctc_segment(log_probs, utterances, skip_score=skip_score, skip_between=skip_between, window=3)

    graph = hf.ctc_graph(tokens, like=log_probs)
    is_free = np.isin(np.arange(len(graph.labels)), 2 * np.append(0, ends if skip_between else ends[-1:]))
    scores = hf.state_scores(graph, log_probs)
    anything = log_probs.max(1)[:, None] if skip_score is None else skip_score
    scores = np.where(is_free, np.maximum(scores, anything), scores)
    best = hf.viterbi(graph.log_initial, graph.log_transition, scores, log_final=graph.log_final)
    np.testing.assert_allclose(found.log_joint, best.log_joint, rtol=1e-12, atol=1e-9)
    index = graph.token_index[best.states]
    np.testing.assert_array_equal(found.token_index, index)
    for u, end in enumerate(ends):
        mine = np.flatnonzero((index >= end - len(utterances[u])) & (index < end))
        assert (found.start[u], found.end[u]) == (mine[0], mine[-1] + 1)
        labels = np.where(index < 0, 0, tokens[index])
        said = log_probs[np.arange(num_steps), labels][mine[0] : mine[-1] + 1]
        width = min(3, len(said))
        expected = min(said[i : i + width].mean() for i in range(len(said) - width + 1))
        np.testing.assert_allclose(found.confidence[u], expected, rtol=1e-9, atol=1e-9)
