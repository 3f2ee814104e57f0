"""Monotonic alignment: known answers, torch's forward-sum loss, the prior against scipy, contracts, errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

import hmm_functional as hf
from tests.helpers.backends import LIBRARIES, as_numpy

SCORES = np.random.default_rng(0).normal(size=(3, 4, 9))
LENGTHS, TARGET_LENGTHS = np.array([9, 6, 3]), np.array([4, 2, 4])


def glow(scores):
    """Kim et al. 2020, algorithm 1, as written there, on one sequence (N, T); None where N > T."""
    num_tokens, num_frames = scores.shape
    q = np.full((num_tokens, num_frames), -np.inf)
    q[0, 0] = scores[0, 0]
    for j in range(1, num_frames):
        for i in range(min(num_tokens, j + 1)):
            q[i, j] = max(q[i - 1, j - 1] if i else -np.inf, q[i, j - 1]) + scores[i, j]
    if q[-1, -1] == -np.inf:
        return None
    path = np.empty(num_frames, np.int64)
    path[-1] = num_tokens - 1
    for j in range(num_frames - 2, -1, -1):
        i = path[j + 1]
        path[j] = i - 1 if i and q[i - 1, j] >= q[i, j] else i
    return path


@pytest.mark.parametrize("library", ["numpy", "torch", "jax", "strict"])
def test_all_libraries_follow_the_published_algorithm(library):
    one = LIBRARIES[library]
    options = {"lengths": one.array(LENGTHS), "target_lengths": one.array(TARGET_LENGTHS)}
    tokens = one.call("monotonic_alignment_search", one.array(SCORES), **options)
    durations = one.numpy(hf.token_durations(tokens, 4))
    tokens = one.numpy(tokens)
    for b, (length, count) in enumerate(zip(LENGTHS, TARGET_LENGTHS, strict=True)):
        expected = glow(SCORES[b, :count, :length])
        np.testing.assert_array_equal(tokens[b, :length], -1 if expected is None else expected)
        assert (tokens[b, length:] == -1).all()
    assert tokens[2].tolist() == [-1] * 9  # 4 tokens, 3 frames
    assert durations.sum(-1).tolist() == [9, 6, 0]
    soft = as_numpy(one, one.call("soft_monotonic_alignment", one.array(SCORES), **options))
    expected = hf.soft_monotonic_alignment(SCORES, lengths=LENGTHS, target_lengths=TARGET_LENGTHS)
    for x, y in zip(soft, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(np.exp(soft.log_posteriors[0]).sum(0), 1.0, rtol=1e-12)


def test_a_large_one_follows_the_published_algorithm():
    scores = np.random.default_rng(1).normal(size=(60, 400)).astype(np.float32)
    found = hf.monotonic_alignment_search(torch.from_numpy(scores))
    np.testing.assert_array_equal(found.numpy(), glow(scores.astype(np.float64)))
    np.testing.assert_array_equal(hf.expand_states(torch.arange(60), hf.token_durations(found, 60)), found)


def test_the_forward_sum_is_torchs_ctc_without_blanks():
    """Badlani et al. 2021: the tokens are the distinct symbols 1..N, and the blank, 0, is impossible."""
    scores = torch.from_numpy(SCORES).requires_grad_()
    found = hf.soft_monotonic_alignment(scores.log_softmax(-2), lengths=[9, 6, 9], target_lengths=[4, 2, 3])
    symbols = torch.nn.functional.pad(scores.log_softmax(-2), (0, 0, 1, 0), value=-1e4)
    loss = torch.nn.functional.ctc_loss(
        symbols.permute(2, 0, 1),
        torch.arange(1, 5).expand(3, 4),
        torch.tensor([9, 6, 9]),
        torch.tensor([4, 2, 3]),
        reduction="none",
    )
    torch.testing.assert_close(found.log_likelihood, -loss)
    (gradient,) = torch.autograd.grad(found.log_likelihood.sum(), scores)
    (expected,) = torch.autograd.grad(-loss.sum(), scores)
    torch.testing.assert_close(gradient[0], expected[0], rtol=1e-9, atol=1e-9)


def test_derivatives():
    scores = torch.from_numpy(SCORES[:2, :3, :5]).requires_grad_()

    def value(x):
        return hf.soft_monotonic_alignment(x, lengths=[5, 4], target_lengths=[3, 2]).log_likelihood

    def posteriors(x):
        return hf.soft_monotonic_alignment(x).log_posteriors.exp()

    assert torch.autograd.gradcheck(value, scores)
    assert torch.autograd.gradgradcheck(value, scores)
    assert torch.autograd.gradcheck(posteriors, scores)
    (gradient,) = torch.autograd.grad(hf.soft_monotonic_alignment(scores).log_likelihood.sum(), scores)
    torch.testing.assert_close(gradient, posteriors(scores))
    impossible = torch.zeros(3, 2, dtype=torch.float64).requires_grad_()
    found = hf.soft_monotonic_alignment(impossible)
    assert found.log_likelihood == -torch.inf
    assert (found.log_posteriors == -torch.inf).all()
    assert (torch.autograd.grad(found.log_likelihood, impossible)[0] == 0).all()


def test_ties_go_to_tokens_that_begin_last():
    assert hf.monotonic_alignment_search(np.zeros((3, 6))).tolist() == [0, 0, 0, 0, 1, 2]


def test_nan_stays_in_its_sequence():
    scores = SCORES.copy()
    scores[0, 1, 2] = np.nan
    scores[1, 2:] = np.nan
    options = {"lengths": [9, 6, 9], "target_lengths": [4, 2, 4]}
    found = hf.monotonic_alignment_search(scores, **options)
    assert (found[0] == -1).all()
    np.testing.assert_array_equal(found[1:], hf.monotonic_alignment_search(SCORES, **options)[1:])
    soft = hf.soft_monotonic_alignment(scores, **options)
    assert np.isnan(soft.log_likelihood).tolist() == [True, False, False]
    assert not np.isnan(soft.log_posteriors[1:]).any()


@pytest.mark.parametrize("library", ["numpy", "torch", "jax"])
def test_prior_is_scipys_beta_binomial(library):
    one = LIBRARIES[library]
    lengths, target_lengths = [7, 4], [5, 3]
    like = one.array(np.zeros(1))
    found = one.numpy(
        hf.beta_binomial_prior(5, 7, scale=0.7, lengths=lengths, target_lengths=target_lengths, like=like)
    )
    assert found.shape == (2, 5, 7)
    for b, (length, count) in enumerate(zip(lengths, target_lengths, strict=True)):
        expected = np.full((5, 7), -np.inf)
        for t in range(length):
            law = stats.betabinom(count - 1, 0.7 * (t + 1), 0.7 * (length - t))
            expected[:count, t] = law.logpmf(np.arange(count))
        np.testing.assert_allclose(found[b], expected, rtol=1e-9, atol=1e-10)
    whole = hf.beta_binomial_prior(300, 2000, like=torch.zeros(1))
    assert whole.dtype == torch.float32
    torch.testing.assert_close(whole.double().logsumexp(0).exp(), torch.ones(2000).double(), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: hf.monotonic_alignment_search(SCORES[0, 0]), ValueError, r"scores: expected shape \(\.\.\., N, T\)"),
        (lambda: hf.monotonic_alignment_search(SCORES[:, :0]), ValueError, "scores: expected at least one token"),
        (lambda: hf.monotonic_alignment_search(SCORES.astype(int)), TypeError, "scores: expected a floating-point"),
        (lambda: hf.monotonic_alignment_search([[0.0]]), TypeError, "scores: expected an array"),
        (
            lambda: hf.monotonic_alignment_search(SCORES, target_lengths=[5, 1, 1]),
            ValueError,
            r"target_lengths: expected values in 1\.\.4, got 5",
        ),
        (lambda: hf.monotonic_alignment_search(SCORES, lengths=[0, 1, 1]), ValueError, "lengths: .* at least 1, got 0"),
        (lambda: hf.soft_monotonic_alignment(SCORES, target_lengths=[1, 1]), ValueError, "batch axes"),
        (lambda: hf.token_durations(SCORES, 3), TypeError, "tokens: expected an integer dtype"),
        (lambda: hf.beta_binomial_prior(3, 4, scale="1"), TypeError, "scale: expected a number, got str"),
        (lambda: hf.beta_binomial_prior(3, 4, scale=0.0), ValueError, "scale: expected a positive number"),
        (lambda: hf.beta_binomial_prior(3, 4, lengths=[5]), ValueError, r"lengths: .* in 1\.\.4"),
    ],
)
def test_errors_say_what_was_wanted(call, error, message):
    with pytest.raises(error, match=message):
        call()
