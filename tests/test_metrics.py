"""Metrics: known answers, peers, parts against the whole, what is empty, and what does not fit."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

import hmm_functional as hf
from pytorch_hmm import metrics
from pytorch_hmm.metrics import boundaries, cepstrum

seeds = st.integers(0, 2**32 - 1)


def floats(values):
    return [float(v) for v in values]


# distortion


def test_distortion_by_hand():
    assert math.isclose(cepstrum.DECIBELS, 10 / math.log(10) * math.sqrt(2))
    x, y = torch.zeros(2, 3), torch.tensor([[7.0, 3.0, 4.0], [7.0, 0.0, 1.0]])
    assert math.isclose(metrics.mel_cepstral_distortion(x, y), cepstrum.DECIBELS * (5 + 1) / 2)
    own = cepstrum.DECIBELS * (math.sqrt(49 + 25) + math.sqrt(50)) / 2
    assert math.isclose(metrics.mel_cepstral_distortion(x, y, include_c0=True), own)
    assert math.isclose(metrics.mel_cepstral_distortion(x, y, has_c0=False), own)
    # Kubichek's form: 10 / ln 10 times the root of twice the sum of squares
    kubichek = 10 / math.log(10) * np.mean(np.sqrt(2 * (y[:, 1:].double().numpy() ** 2).sum(-1)))
    assert math.isclose(metrics.mel_cepstral_distortion(x, y), kubichek)


def test_warped_distortion():
    rng = np.random.default_rng(0)
    y = rng.normal(size=(9, 5))
    x = np.repeat(y, [1, 3, 1, 2, 1, 1, 4, 1, 1], axis=0)
    assert metrics.mel_cepstral_distortion(x, y, is_warped=True) == 0
    x = x + rng.normal(size=x.shape)
    path = hf.dtw(x[:, 1:], y[:, 1:], step_pattern="symmetric1").path
    i, j = path[path[:, 0] >= 0].T
    expected = cepstrum.DECIBELS * np.linalg.norm(x[i, 1:] - y[j, 1:], axis=1).mean()
    assert math.isclose(metrics.mel_cepstral_distortion(x, y, is_warped=True), expected)


@given(seeds, st.booleans())
@settings(max_examples=15)
def test_distortions_of_batches_and_parts(seed, is_warped):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(2, 3, 6, 4))
    lengths = rng.integers(1, 7, size=3)
    ends = rng.integers(1, 7, size=3) if is_warped else lengths
    for b in range(3):
        x[b, lengths[b] :] = np.nan
        y[b, ends[b] :] = np.nan
    more = {"predicted_lengths": ends} if is_warped else {}
    found = metrics.mel_cepstral_distortion(x, y, lengths=lengths, is_warped=is_warped, **more)
    whole, first, second = (metrics.MelCepstralDistortion(is_warped=is_warped) for _ in range(3))
    whole.update(x, y, lengths, *more.values())
    for b in range(3):
        one, other = x[b, : lengths[b]], y[b, : ends[b]]
        alone = metrics.mel_cepstral_distortion(one, other, is_warped=is_warped)
        assert math.isclose(found[b], alone, rel_tol=1e-12)
        assert math.isclose((first, second)[b % 2](one, other), alone, rel_tol=1e-12)
    first.merge(second)
    assert math.isclose(first.compute(), whole.compute(), rel_tol=1e-12)


def test_distortion_of_broken_frames_and_its_gradient():
    x, y = torch.randn(2, 4, 3), torch.randn(2, 4, 3)
    broken = x.clone()
    broken[0, 1, 2] = torch.nan
    for is_warped in (False, True):
        found = metrics.mel_cepstral_distortion(broken, y, is_warped=is_warped)
        assert found.isnan().tolist() == [True, False]
    y = x.clone().requires_grad_()
    metrics.mel_cepstral_distortion(x, y).sum().backward()
    assert y.grad.eq(0).all()  # where nothing differs


# pitch


def test_pitch_by_hand():
    reference = [100.0, 100.0, 100.0, 0.0, 0.0, 200.0]
    predicted = [120.0, 121.0, 100.0, 0.0, 50.0, 0.0]
    found = metrics.pitch_errors(reference, predicted)
    assert math.isclose(found.rmse, math.sqrt((400 + 441) / 3))
    logs = math.log(1.2) ** 2 + math.log(1.21) ** 2
    assert math.isclose(found.log_rmse, math.sqrt(logs / 3))
    assert math.isclose(found.cents, 1200 * math.sqrt((math.log2(1.2) ** 2 + math.log2(1.21) ** 2) / 3))
    # 20 % exactly is not gross
    assert floats(found[3:]) == pytest.approx([1 / 3, 2 / 6, 3 / 6])
    assert metrics.pitch_errors([100.0], [200.0]).cents == pytest.approx(1200)
    apart = metrics.pitch_errors([100.0, 90.0], [110.0, 80.0], reference_voiced=[1, 0], predicted_voiced=[1, 1])
    assert floats(apart[:1] + apart[3:]) == [10.0, 0.0, 0.5, 0.5]


def test_pitch_where_nothing_is_voiced():
    found = metrics.pitch_errors([0.0, 0.0], [0.0, 100.0])
    assert [math.isnan(v) for v in found] == [True] * 4 + [False] * 2
    assert floats(found[4:]) == [0.5, 0.5]
    assert all(math.isnan(v) for v in metrics.PitchError().compute())


@given(seeds)
@settings(max_examples=15)
def test_pitch_of_batches_and_parts(seed):
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(80, 300, size=(2, 4, 7)) * (rng.random((2, 4, 7)) < 0.7)
    lengths = rng.integers(1, 8, size=4)
    for b in range(4):
        x[b, lengths[b] :] = np.nan
    found = metrics.pitch_errors(x, y, lengths=lengths)
    whole, parts = metrics.PitchError(), metrics.PitchError()
    whole.update(x, y, lengths)
    joined = [], []
    for b in range(4):
        one, other = x[b, : lengths[b]], y[b, : lengths[b]]
        alone = metrics.pitch_errors(one, other)
        np.testing.assert_allclose([v[b] for v in found], floats(alone), rtol=1e-12)
        parts.update(one, other)
        joined[0].append(one)
        joined[1].append(other)
    at_once = floats(metrics.pitch_errors(*(np.concatenate(part) for part in joined)))
    np.testing.assert_allclose(floats(whole.compute()), at_once, rtol=1e-12)
    np.testing.assert_allclose(floats(parts.compute()), at_once, rtol=1e-12)


# boundaries


def most_matches(reference, predicted, tolerance):
    """The size of the largest matching, by the Hungarian method."""
    if not len(reference) or not len(predicted):
        return 0
    near = np.abs(np.subtract.outer(reference, predicted)) <= tolerance + boundaries.SLACK
    return int(near[linear_sum_assignment(near, maximize=True)].sum())


@given(seeds, st.integers(0, 12), st.integers(0, 12), st.sampled_from([0.0, 0.01, 0.02, 0.2]))
def test_matching_is_the_largest(seed, size, other, tolerance):
    rng = np.random.default_rng(seed)
    r, p = (
        rng.integers(0, 40, size=n) / 100 for n in (size, other)
    )  # unsorted, on a grid: gaps equal to the tolerance
    pairs = metrics.match_boundaries(r, p, tolerance)
    assert len(pairs) == most_matches(r, p, tolerance)
    assert len(set(pairs[:, 0])) == len(set(pairs[:, 1])) == len(pairs)
    assert (np.abs(r[pairs[:, 0]] - p[pairs[:, 1]]) <= tolerance + boundaries.SLACK).all()


def test_boundaries_by_hand():
    found = metrics.boundary_scores([0.1, 0.2, 0.3, 0.4], [0.12, 0.13, 0.31, 0.5, 0.6])
    # one of two near 0.1, and 0.3
    assert floats(found[:3]) == pytest.approx([2 / 5, 2 / 4, 4 / 9])
    hits, over = 50.0, 25.0  # Räsänen's per cents
    far, side = math.hypot(100 - hits, over), (-over + hits - 100) / math.sqrt(2)
    assert math.isclose(found.r_value, 1 - (abs(far) + abs(side)) / 200)
    assert float(found.over_segmentation) == 0.25
    # the nearest is not always to be taken: 0.11 would leave 0.09 or 0.12 alone
    assert len(metrics.match_boundaries([0.10, 0.12], [0.09, 0.11], 0.011)) == 2
    # 20 ms in floating point
    assert 0.5 - 0.48 > 0.02
    assert len(metrics.match_boundaries([0.5], [0.48], 0.02)) == 1
    assert len(metrics.match_boundaries([0.5], [0.4799], 0.02)) == 0
    assert len(metrics.match_boundaries([30], [28], 2)) == 1
    assert len(metrics.match_boundaries([30], [28], 1)) == 0


def test_boundaries_of_none():
    nothing = metrics.boundary_scores([], [])
    assert all(math.isnan(v) for v in nothing)
    missed = metrics.boundary_scores([0.1], [])
    assert math.isnan(missed.precision)
    assert floats(missed[1:3]) == [0.0, 0.0]
    metric = metrics.BoundaryScore(tolerance=0.05)
    assert math.isnan(metric.compute().f1)
    metric.update([0.1], [])
    metric.update([[0.1, 0.2], []], [torch.tensor([0.14]), np.array([0.3])])
    assert floats(metric.compute()[:3]) == pytest.approx([1 / 2, 1 / 3, 2 / 5])
    metric.reset()
    assert math.isnan(metric.compute().recall)
    rows = metrics.boundary_scores([[0.1, 0.2], [0.3]], [[0.1], [0.3]])
    assert rows.recall.tolist() == [0.5, 1.0]


def test_boundaries_by_number():
    assert float(metrics.alignment_accuracy([0.1, 0.2, 0.3], [0.12, 0.25, 0.3])) == pytest.approx(2 / 3)
    assert float(metrics.alignment_accuracy([0.1, 0.2], [0.2, 0.1])) == 0  # a matching would take both
    assert math.isnan(metrics.alignment_accuracy([], []))


# frames, segments, durations


def test_frames_and_segments_by_hand():
    labels = torch.tensor([[0, 1, 1, 2], [3, 3, -1, 5]])
    found = torch.tensor([[0, 1, 2, 9], [3, 0, 0, 5]])
    assert metrics.frame_accuracy(labels, found, lengths=[3, 4]).tolist() == pytest.approx([2 / 3, 2 / 3])
    metric = metrics.FrameAccuracy()
    assert float(metric(labels, found, [3, 4])) == pytest.approx(4 / 6)
    assert float(metric(labels[0], labels[0])) == 1.0  # of this batch alone
    assert float(metric.compute()) == pytest.approx(8 / 10)
    assert math.isnan(metrics.frame_accuracy([-1, -1], [0, 0]))
    segments = [[0.0, 2.0], [2.0, 3.0], [3.0, 3.0], [5.0, 5.0]]
    others = [[0.0, 1.0], [4.0, 5.0], [3.0, 3.0], [6.0, 6.0]]
    assert float(metrics.segment_iou(segments, others)) == pytest.approx((1 / 2 + 0 + 1 + 0) / 4)
    assert metrics.segment_iou([segments, others], [others, others], lengths=[1, 4]).tolist() == [0.5, 1.0]


@given(seeds)
@settings(max_examples=15)
def test_durations_are_numpys(seed):
    rng = np.random.default_rng(seed)
    x, y = rng.gamma(2.0, 5.0, size=(2, 3, 9))
    lengths = rng.integers(2, 10, size=3)
    found = metrics.duration_errors(x, y, lengths=lengths)
    metric, other = metrics.DurationError(), metrics.DurationError()
    metric.update(x[:2], y[:2], lengths[:2])
    other.update(x[2:], y[2:], lengths[2:])
    metric.merge(other)

    def expected(a, b):
        gap = b - a
        return [np.sqrt((gap**2).mean()), np.abs(gap).mean(), gap.mean(), np.corrcoef(a, b)[0, 1]]

    rows = [(x[b, : lengths[b]], y[b, : lengths[b]]) for b in range(3)]
    for b, row in enumerate(rows):
        np.testing.assert_allclose([v[b] for v in found], expected(*row), rtol=1e-8, atol=1e-10)
    joined = expected(*(np.concatenate(part) for part in zip(*rows, strict=True)))
    np.testing.assert_allclose(floats(metric.compute()), joined, rtol=1e-8, atol=1e-10)


def test_durations_that_do_not_vary():
    for size in range(2, 30):  # sums of a constant leave rounding errors
        found = metrics.duration_errors([0.1] * size, np.arange(size))
        assert math.isnan(found.correlation)
    assert float(found.bias) == pytest.approx(14 - 0.1)


# what all share


def test_states_add_up_over_processes():
    first, second = metrics.FrameAccuracy(), metrics.FrameAccuracy()
    first.update([0, 1], [0, 0])
    second.update([1, 1, 1], [1, 1, 1])
    first.state += second.state  # as all_reduce does
    assert float(first.compute()) == pytest.approx(4 / 5)
    assert first.state.dtype == torch.float64
    with pytest.raises(TypeError, match="expected FrameAccuracy, got SegmentIoU"):
        first.merge(metrics.SegmentIoU())


def test_many_small_errors_add_up():
    metric = metrics.MelCepstralDistortion(has_c0=False)
    x = torch.full((1, 100_000, 1), 1e-3)
    for _ in range(20):
        metric.update(torch.zeros_like(x), x)
    assert math.isclose(metric.compute(), cepstrum.DECIBELS * float(x[0, 0, 0]), rel_tol=1e-12)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: metrics.frame_accuracy([0.5], [0]), TypeError, "reference: expected integers"),
        (lambda: metrics.frame_accuracy([0, 1], [0]), ValueError, "predicted: expected the shape of reference"),
        (lambda: metrics.frame_accuracy([[0, 1]], [[0, 1]], lengths=[3]), ValueError, "lengths"),
        (lambda: metrics.frame_accuracy("ab", [0]), TypeError, "reference"),
        (lambda: metrics.mel_cepstral_distortion([1.0], [1.0]), ValueError, r"\(..., T, D\)"),
        (
            lambda: metrics.mel_cepstral_distortion([[1.0]], [[1.0]], predicted_lengths=1),
            ValueError,
            "predicted_lengths",
        ),
        (lambda: metrics.pitch_errors([-1.0], [1.0]), ValueError, "reference: expected finite frequencies"),
        (lambda: metrics.pitch_errors([1.0], [np.nan]), ValueError, "predicted: expected finite frequencies"),
        (lambda: metrics.pitch_errors([0.0], [1.0], reference_voiced=[1]), ValueError, "reference_voiced"),
        (lambda: metrics.segment_iou([[1.0, 0.0]], [[0.0, 1.0]]), ValueError, "none before its start"),
        (lambda: metrics.segment_iou([[1.0]], [[1.0]]), ValueError, r"\(..., S, 2\)"),
        (lambda: metrics.boundary_scores([[0.1]], [[0.1], [0.2]]), ValueError, "a list of 1 sequences"),
        (lambda: metrics.boundary_scores([np.nan], [0.1]), ValueError, "finite"),
        (lambda: metrics.match_boundaries([0.1], [0.1], -1), ValueError, "tolerance"),
        (lambda: metrics.match_boundaries([0.1], [0.1], "1"), TypeError, "tolerance"),
        (lambda: metrics.alignment_accuracy([0.1], []), ValueError, "expected 1 boundaries"),
        (lambda: metrics.pesq_score([0.0], [0.0], 44100), ValueError, "8000 or 16000"),
        (lambda: metrics.pesq_score([0.0], [0.0], 8000, band="wb"), ValueError, "band"),
    ],
)
def test_what_does_not_fit(call, error, words):
    with pytest.raises(error, match=words):
        call()


# libraries


def noisy_speech(rate, noise):
    rng = np.random.default_rng(0)
    time = np.arange(rate * 2) / rate
    speech = np.sin(2 * np.pi * 150 * time) * (1 + np.sin(2 * np.pi * 3 * time)) + 0.1 * rng.normal(size=len(time))
    return speech, speech + noise * rng.normal(size=len(time))


def test_stoi():
    pystoi = pytest.importorskip("pystoi")
    clean, noisy = noisy_speech(10_000, 1.0)
    found = metrics.stoi_score(torch.from_numpy(np.stack([clean, clean])), np.stack([clean, noisy]), 10_000)
    assert found[0] > 0.999
    assert float(found[1]) == pystoi.stoi(clean, noisy, 10_000)
    metric = metrics.STOI(10_000)
    metric.update(clean, clean)
    metric.update(clean, noisy)
    assert float(metric.compute()) == pytest.approx(float(found.mean()))


def test_pesq():
    pesq = pytest.importorskip("pesq")
    clean, noisy = noisy_speech(16_000, 0.5)
    found = metrics.pesq_score(clean, noisy, 16_000)
    assert float(found) == pytest.approx(pesq.pesq(16_000, clean, noisy, "wb"))
    assert metrics.pesq_score(clean, clean, 16_000, band="nb") > 4.4
    metric = metrics.PESQ(16_000)
    metric.update(clean, noisy)
    assert float(metric.compute()) == pytest.approx(float(found))


@pytest.mark.parametrize("name", ["pesq", "pystoi"])
def test_a_missing_library_is_named_with_its_extra(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    score = {"pesq": metrics.pesq_score, "pystoi": metrics.stoi_score}[name]
    with pytest.raises(ModuleNotFoundError, match=rf"{name} is not installed.*pytorch-hmm\[metrics\]"):
        score([0.0], [0.0], 16_000)


def test_pitch_of_trackers_that_have_nan_where_unvoiced():
    """Such as librosa's pyin, which tells voicing apart."""
    one, other = [100.0, math.nan, 120.0, math.nan], [100.0, 90.0, math.nan, math.nan]
    said = {"reference_voiced": [True, False, True, False], "predicted_voiced": [True, True, False, False]}
    found = metrics.pitch_errors(one, other, **said)
    assert [float(x) for x in found] == [0.0, 0.0, 0.0, 0.0, 0.5, 0.5]
    with pytest.raises(ValueError, match="predicted: expected finite positive frequencies in the frames of"):
        metrics.pitch_errors(one, other, reference_voiced=said["reference_voiced"], predicted_voiced=[True] * 4)


@pytest.mark.parametrize("threshold", [-0.1, math.nan, math.inf])
def test_thresholds_that_are_none(threshold):
    with pytest.raises(ValueError, match="threshold: expected a number of at least 0"):
        metrics.pitch_errors([100.0], [100.0], threshold=threshold)
    with pytest.raises(ValueError, match="threshold: expected a number of at least 0"):
        metrics.PitchError(threshold=threshold)


def test_cepstra_without_a_coefficient_that_counts():
    with pytest.raises(
        ValueError, match=r"reference: expected \(..., T, D\) with a coefficient that counts, got \(2, 1\)"
    ):
        metrics.mel_cepstral_distortion(torch.zeros(2, 1), torch.zeros(2, 1))
    with pytest.raises(ValueError, match="reference: expected"):
        metrics.mel_cepstral_distortion(torch.zeros(3), torch.zeros(3), is_warped=True)


def test_no_frames_have_no_accuracy():
    assert math.isnan(metrics.frame_accuracy([], []))
