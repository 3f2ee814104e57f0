"""Streams of segments: look-ahead against all segmentations, whatever lag, laws, batch and chunks there are."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import torch

import hmm_functional as hf
from hmm_functional.streaming import semi_markov_posterior
from tests.helpers.backends import LIBRARIES
from tests.helpers.models import random_log
from tests.helpers.segmentations import Segmentations

STEPS, STATES = 6, 2


def streamed(library, parts, emission, lag, sizes, batch=(), step=hf.semi_markov_smooth_stream_step):
    """Posteriors of all steps, and how many came out with each chunk, the flush last."""
    state = hf.semi_markov_smooth_stream_init(*map(library.array, parts), lag=lag, batch_shape=batch)
    rows, start = [], 0
    for size in sizes:
        state, found = step(state, library.array(emission[..., start : start + size, :]))
        rows.append(library.numpy(found))
        start += size
    rows.append(library.numpy(hf.semi_markov_smooth_stream_flush(state)))
    return np.concatenate(rows, axis=-2), [x.shape[-2] for x in rows]


def smoothed(parts, emission, lag):
    """p(z_t given x_0..t+lag), by enumeration."""
    rows = [
        Segmentations(*parts, emission[: t + lag + 1], censored=True).counts()[0][t].astype(float)
        for t in range(len(emission))
    ]
    return np.array(rows)


def model(rng, longest, zeros=0.2):
    return [random_log(rng, shape, zeros=zeros) for shape in ((STATES,), (STATES, STATES), (STATES, longest))]


@pytest.mark.parametrize(
    ("name", "lag", "longest"),
    [
        ("torch", 1, 4),
        ("torch", 2, 1),
        ("numpy", 2, 6),
        ("torch", 3, 3),
        ("torch", 4, 2),
        ("numpy", 9, 4),
        ("jax", 3, 2),
    ],
)
def test_look_ahead_is_that_of_all_segmentations(name, lag, longest):
    """Of two streams with parameters of their own; the second becomes impossible."""
    rng, library = np.random.default_rng(10 * lag + longest), LIBRARIES[name]
    own = [model(rng, longest, zeros=0.0 if i else 0.2) for i in range(2)]
    emission = rng.normal(size=(2, STEPS, STATES)) * 3
    emission[0, :, 0] += 700.0
    emission[1, 4] = -np.inf
    parts = [np.stack([x[i] for x in own]) for i in range(3)]
    parts[1] = parts[1][:, None]
    compiled = jax.jit(hf.semi_markov_smooth_stream_step) if name == "jax" else hf.semi_markov_smooth_stream_step
    sizes = (6,) if name == "jax" else (3, 3)
    actual, counts = streamed(library, parts, emission, lag, sizes, step=compiled)
    assert counts == list(np.diff([0, *(max(sum(sizes[: i + 1]) - lag, 0) for i in range(len(sizes))), 6]))
    assert np.isfinite(actual[0]).any(-1).all()
    for i in range(2):
        expected = smoothed(own[i], emission[i], lag)
        np.testing.assert_allclose(np.exp(actual[i]), expected, rtol=1e-11, atol=1e-300)
    assert (actual[1, 4 - lag if lag < 4 else 0 :] == -np.inf).all()  # all whose window cannot be
    if name == "jax":
        return
    alone, _ = streamed(library, own[0], np.stack([emission[0]] * 3), lag, (1, 4, 1), batch=(3,))
    np.testing.assert_allclose(np.exp(alone), np.exp(actual[[0, 0, 0]]), rtol=1e-12, atol=1e-300)


def test_hugely_negative_scores_are_looked_at_exactly():
    """What has e^-800,000 of the weight until its look-ahead comes is not lost, nor are its digits."""
    rng = np.random.default_rng(0)
    parts, emission = model(rng, 3, zeros=0.0), rng.normal(size=(5, STATES))
    emission[:3, 0] -= 4e5
    emission[3:, 1] -= 8e5
    emission[1] -= 1e9
    for lag in (1, 2, 4):
        actual, _ = streamed(LIBRARIES["torch"], parts, emission, lag, (2, 3))
        np.testing.assert_allclose(np.exp(actual), smoothed(parts, emission, lag), rtol=1e-8, atol=1e-300)


def test_scores_of_one_precision_keep_their_digits():
    """In float32 by array code, 80 steps ahead, far from zero and far below a state that cannot be: as in float64."""
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(*s, generator=generator).log_softmax(-1) for s in ((4,), (4, 4), (4, 6))]
    parts[0][3] = parts[1][:3, 3] = -torch.inf
    emission = torch.randn(100, 4, generator=generator).mul(16).round() / 8
    emission[:, 3] += 60
    found = []
    for shift, dtype in ((0.0, torch.float64), (0.0, torch.float32), (-(2.0**17), torch.float32)):
        given = [x.to(dtype).requires_grad_() for x in parts]  # so that no compiled code runs
        state = hf.semi_markov_smooth_stream_init(*given, lag=80)
        state, rows = hf.semi_markov_smooth_stream_step(state, (emission + shift).to(dtype))
        assert rows.requires_grad
        found.append(torch.cat([rows, hf.semi_markov_smooth_stream_flush(state)], -2).detach().double().exp())
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(found[2], found[1], rtol=0, atol=1e-6)


def test_windows_go_in_pieces(monkeypatch):
    rng = np.random.default_rng(0)
    parts, emission = model(rng, 3, zeros=0.0), rng.normal(size=(2, 10, STATES)) * 3
    whole, _ = streamed(LIBRARIES["torch"], parts, emission, 3, (10,), batch=(2,))
    monkeypatch.setattr(semi_markov_posterior, "WORKSPACE", 2000)
    calls = []
    passed = semi_markov_posterior.segments.backward_pass
    monkeypatch.setattr(
        semi_markov_posterior.segments, "backward_pass", lambda *a: calls.append(a[4].shape[0]) or passed(*a)
    )
    pieces, _ = streamed(LIBRARIES["torch"], parts, emission, 3, (10,), batch=(2,))
    assert len(calls) > 2
    np.testing.assert_array_equal(pieces, whole)


@pytest.mark.parametrize("longest", [1, 3])
@pytest.mark.parametrize("is_compiled", [True, False])
def test_what_is_no_number_stays_in_its_stream_and_windows(longest, is_compiled):
    rng = np.random.default_rng(0)
    parts = [torch.from_numpy(x).requires_grad_(not is_compiled) for x in model(rng, longest, zeros=0.0)]
    emission = torch.from_numpy(rng.normal(size=(2, 8, STATES)))

    def run(x):
        state = hf.semi_markov_smooth_stream_init(*parts, lag=2, batch_shape=(2,))
        state, rows = hf.semi_markov_smooth_stream_step(state, x)
        return torch.cat([rows, hf.semi_markov_smooth_stream_flush(state)], -2).detach()

    clean = run(emission)
    emission[0, 5, 1] = torch.nan
    found = run(emission)
    torch.testing.assert_close(found[1], clean[1], rtol=1e-12, atol=0)
    torch.testing.assert_close(found[0, :3], clean[0, :3], rtol=1e-12, atol=0)
    assert found[0, 3:].isnan().all()


def test_derivatives_of_look_ahead():
    rng = np.random.default_rng(0)
    given = [torch.from_numpy(x) for x in (*model(rng, 3, zeros=0.0), rng.normal(size=(4, STATES)))]

    def rows(*x):
        state = hf.semi_markov_smooth_stream_init(*x[:3], lag=2)
        state, found = hf.semi_markov_smooth_stream_step(state, x[3])
        return torch.cat([found, hf.semi_markov_smooth_stream_flush(state)])

    leaves = [x.clone().requires_grad_() for x in given]
    torch.testing.assert_close(rows(*leaves).detach(), rows(*given), rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(rows, leaves)
    given[2][0, 1] = given[3][2, 0] = -torch.inf
    found = torch.autograd.grad(rows(*(x.requires_grad_() for x in given)).exp().square().sum(), given)
    assert all(x.isfinite().all() for x in found)
