"""The parts of the aligner's training: counts against enumeration, priors, splitting, silence, slopes, classes."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.stats
import torch

from hmm_functional.emissions import Gaussian, GaussianMixture, GaussianParameters, GaussianPrior, MixtureParameters
from hmm_functional.learning import Priors
from pytorch_hmm import GaussianHMM
from pytorch_hmm.speech.compile import compile_words, fewest_frames, inventory_of
from pytorch_hmm.speech.corpus import Word
from pytorch_hmm.speech.deltas import add_deltas, cmvn, delta
from pytorch_hmm.speech.embedded import Acoustics, Classes, make_batches, posteriors_of
from pytorch_hmm.speech.phones import ARPABET, PhoneSet, UnknownPhone
from pytorch_hmm.speech.settings import AlignerSettings
from pytorch_hmm.speech.training import silence_shares, split


def acoustics(num_laws, dim, seed=0):
    rng = np.random.default_rng(seed)
    stay = rng.uniform(0.3, 0.8, num_laws)
    return Acoustics(
        MixtureParameters(
            torch.zeros(num_laws, 1, dtype=torch.float64),
            torch.tensor(rng.standard_normal((num_laws, 1, dim))),
            torch.tensor(rng.uniform(0.5, 2.0, (num_laws, 1, dim))),
        ),
        torch.tensor(np.stack([stay, 1 - stay], -1)).log(),
    )


def enumerated(x, ways, model):
    """log p(x), posteriors (T, L), and stays and leaves (L, 2), summed over all paths through all sequences of laws."""
    means, variances = (p[:, 0].numpy() for p in model.emission[1:])
    stay, leave = model.log_stay.exp().numpy().T
    density = scipy.stats.norm.pdf(x[:, None], means, np.sqrt(variances)).prod(-1)
    num_steps, total = len(x), 0.0
    posteriors, durations = np.zeros(density.shape), np.zeros((len(means), 2))
    for laws in ways:
        for cuts in itertools.combinations(range(1, num_steps), len(laws) - 1):
            frames = np.diff([0, *cuts, num_steps])
            path = np.repeat(laws, frames)
            p = density[np.arange(num_steps), path].prod()
            for law, n in zip(laws, frames, strict=True):
                p *= stay[law] ** (n - 1) * leave[law]
            total += p
            posteriors[np.arange(num_steps), path] += p
            for law, n in zip(laws, frames, strict=True):
                durations[law] += [p * (n - 1), p]
    return math.log(total), posteriors / total, durations / total


@pytest.mark.parametrize("pauses", ["never", "always"])
def test_expected_counts_are_those_of_all_paths(pauses):
    settings = AlignerSettings(states=2, pauses=pauses)
    words = [Word("w", (("AA",), ("S",))), "AA"]
    inventory = inventory_of(settings, [words])
    assert inventory.phones == ("AA", "S", "SIL")
    size = inventory.num_symbols * 2
    laws = tuple([0, 1, 2, 2, 3, 4, *[5] * (size - 6)])  # the states of S share one
    model = acoustics(6, 2)
    x = [torch.randn(n, 2, generator=torch.Generator().manual_seed(n)) for n in (8, 7)]
    like = torch.zeros(1, size, dtype=torch.float64)
    graphs = [compile_words(settings, inventory, words, like)[0] for _ in x]
    silence = [[], [3, 4]] if pauses == "always" else [[]]
    ways = [
        [*a, *first, *b, 0, 1, *c]
        for first in ([0, 1], [2, 2])
        for a, b, c in itertools.product(silence, repeat=3)
        if len([*a, *b, *c]) + 4 <= 8
    ]
    expected = [enumerated(one.double().numpy(), [w for w in ways if len(w) <= len(one)], model) for one in x]
    for batch in make_batches(x, graphs, 8192), make_batches(x, graphs, 1):
        likelihood = 0.0
        durations = np.zeros((6, 2))
        for part in batch:
            found, posteriors, counts = posteriors_of(part, laws, model, 1.0)
            likelihood, durations = likelihood + float(found.sum()), durations + counts.numpy()
            for row, n in zip(posteriors, part.lengths.tolist(), strict=True):
                want = next(one for one in expected if len(one[1]) == n)
                np.testing.assert_allclose(row[:n], want[1], atol=1e-9)
                assert not row[n:].any()
        assert likelihood == pytest.approx(sum(one[0] for one in expected), rel=1e-9)
        np.testing.assert_allclose(durations, sum(one[2] for one in expected), atol=1e-9)


def test_an_acoustic_scale_weighs_densities_alone():
    settings = AlignerSettings(states=1, pauses="never")
    inventory = inventory_of(settings, [["AA", "S"]])
    laws = tuple(range(inventory.num_symbols))
    model = acoustics(len(laws), 2)
    graph, _ = compile_words(settings, inventory, ["AA", "S"], torch.zeros(1, len(laws), dtype=torch.float64))
    (batch,) = make_batches([torch.randn(6, 2)], [graph], 99)
    flat, posteriors, _ = posteriors_of(batch, laws, model, 1e-12)
    stay, leave = model.log_stay[:2].exp().unbind(-1)
    paths = torch.stack([stay[0] ** (k - 1) * leave[0] * stay[1] ** (5 - k) * leave[1] for k in range(1, 6)])
    assert float(flat) == pytest.approx(float(paths.sum().log()))
    np.testing.assert_allclose(posteriors[0, :, 0], [float(paths[t:].sum() / paths.sum()) for t in range(6)], atol=1e-9)


def test_priors_with_scales_of_their_own_are_priors_of_each():
    rng = np.random.default_rng(0)
    x, shares = torch.tensor(rng.standard_normal((40, 2))), torch.tensor(rng.dirichlet(np.ones(3), 40))
    start = GaussianParameters(torch.zeros(3, 2).double(), torch.ones(3, 2).double())
    mean, scale = torch.tensor(rng.standard_normal((3, 2))), torch.tensor(rng.uniform(1, 9, (3, 2)))
    prior = GaussianPrior(mean, 4.0, scale, 6.0, has_own_scales=True)
    together = Gaussian("diag", 0.0, prior)
    found = together.m_step(together.statistics(x, shares, start), start)
    density = 0.0
    for k in range(3):
        own = Gaussian("diag", 0.0, GaussianPrior(mean[k], 4.0, scale[k], 6.0))
        one = GaussianParameters(*(p[k : k + 1] for p in start))
        alone = own.m_step(own.statistics(x, shares[:, k : k + 1], one), one)
        torch.testing.assert_close(found.means[k], alone.means[0])
        torch.testing.assert_close(found.covariances[k], alone.covariances[0])
        density += own.log_prior(GaussianParameters(*(p[k : k + 1] for p in found)))
    torch.testing.assert_close(together.log_prior(found), density)
    hmm = GaussianHMM(3, 2).double()
    hmm.fit(x, init="keep", num_iterations=1, tolerance=0, priors=Priors(emission=prior))
    full = Gaussian("full", 0.0, prior)
    begin = GaussianParameters(start.means, torch.eye(2).double().expand(3, 2, 2))
    statistics = full.statistics(x, shares, begin)
    with pytest.raises(ValueError, match="prior: expected 'diag' covariances beside has_own_scales, got 'full'"):
        full.m_step(statistics, begin)
    with pytest.raises(ValueError, match="scale: expected numbers of at least 0"):
        GaussianPrior(mean, 4.0, -scale, 6.0, has_own_scales=True)


def test_class_beliefs_weigh_as_many_frames_as_they_say():
    half = torch.full((1, 2), 0.5).double().log()
    classes = Classes(torch.tensor([[2.0]]).double(), torch.tensor([[3.0]]).double(), half, 10.0, 50.0, 10.0)
    family = GaussianMixture("diag", 0.0, classes.gaussians(1))
    x = torch.randn(30, 1, generator=torch.Generator().manual_seed(0)).double()
    start = MixtureParameters(torch.zeros(1, 1).double(), torch.zeros(1, 1, 1).double(), torch.ones(1, 1, 1).double())
    found = family.m_step(family.statistics(x, torch.ones(30, 1).double(), start), start)
    mean = (x.sum() + 10 * 2.0) / 40
    variance = ((x - mean).square().sum() + 10 * (2.0 - mean) ** 2 + 50 * 3.0) / 80
    torch.testing.assert_close(found.means.flatten(), mean[None])
    torch.testing.assert_close(found.covariances.flatten(), variance[None])
    torch.testing.assert_close(classes.durations, torch.tensor([[11.0, 11.0]]).double())


def test_the_heaviest_gaussians_are_halved():
    model = Acoustics(
        MixtureParameters(
            torch.tensor([[0.3, 0.7], [1.0, 0.0]]).double().log(),
            torch.tensor([[[0.0], [5.0]], [[1.0], [9.0]]]).double(),
            torch.tensor([[[1.0], [4.0]], [[1.0], [1.0]]]).double(),
        ),
        torch.tensor([[0.5, 0.5]]).double().log().expand(2, 2),
    )
    weights, means, variances = split(model, [3, 1]).emission
    torch.testing.assert_close(weights.exp(), torch.tensor([[0.3, 0.35, 0.35], [1.0, 0.0, 0.0]]).double())
    torch.testing.assert_close(means[0, :, 0], torch.tensor([0.0, 4.6, 5.4]).double())
    torch.testing.assert_close(variances[0, :, 0], torch.tensor([1.0, 4.0, 4.0]).double())
    assert means[1, 0, 0] == 1.0


def test_silence_is_the_quiet_state():
    rng = np.random.default_rng(0)
    is_quiet = [np.repeat([True, False, True], [20, 60, 15]), np.repeat([False, True], [30, 10])]
    levels = [torch.tensor(np.where(q, -9.0, -3.0) + rng.standard_normal(len(q))) for q in is_quiet]
    for share, quiet in zip(silence_shares(levels), is_quiet, strict=True):
        np.testing.assert_array_equal(share > 0.5, quiet)
    assert silence_shares([torch.zeros(5)])[0].tolist() == [0.5] * 5


def test_slopes_are_those_of_least_squares():
    x = torch.randn(9, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for window in (1, 2, 3):
        edge = np.pad(x.numpy(), ((window, window), (0, 0)), mode="edge")
        steps = np.arange(2 * window + 1)
        wanted = [[np.polyfit(steps, edge[t : t + 2 * window + 1, d], 1)[0] for d in range(3)] for t in range(9)]
        np.testing.assert_allclose(delta(x, window), wanted, atol=1e-12)
    whole = add_deltas(x)
    assert whole.shape == (9, 9)
    torch.testing.assert_close(whole[:, 6:], delta(delta(x)))
    with pytest.raises(ValueError, match=r"x: expected shape \(T, D\) with at least one frame"):
        delta(torch.zeros(0, 3))


def test_each_speaker_has_his_own_mean_and_variance():
    rng = torch.Generator().manual_seed(0)
    features = {name: 3.0 * i + (i + 1) * torch.randn(50, 2, generator=rng) for i, name in enumerate("abc")}
    features["c"][:, 1] = 7.0
    found = cmvn(features, {"a": "x", "b": "x", "c": "y"})
    both = torch.cat([found["a"], found["b"]])
    torch.testing.assert_close(both.mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(both.std(0, correction=0), torch.ones(2))
    assert found["a"].mean() < -0.3
    torch.testing.assert_close(found["c"][:, 0].std(correction=0), torch.tensor(1.0))
    assert not found["c"][:, 1].any()  # what never changes


def test_classes_of_phones():
    phones = PhoneSet()
    assert [phones.name(p) for p in ("AH0", "ah1", "sil", "PAU", "ZH", "h#")] == ["AH", "AH", "SIL", "SIL", "ZH", "SIL"]
    assert phones.class_of("er2") == "vowel"
    assert phones.class_of("sp") == "silence"
    assert phones.class_names() == ["silence", "approximant", "fricative", "nasal", "stop", "vowel"]
    assert len(ARPABET) >= 39
    own = PhoneSet({"ʃ": "fricative", "*": "other"}, silence="_")
    assert [own.class_of(p) for p in ("ʃ", "a1", "_")] == ["fricative", "other", "silence"]
    with pytest.raises(UnknownPhone, match="unknown phone 'q'; known: _ a"):
        PhoneSet({"a": "x"}, silence="_").need_known(["a", "q"])
    with pytest.raises(ValueError, match="classes: expected a class for each phone"):
        PhoneSet({})
    with pytest.raises(TypeError, match="classes: expected names"):
        PhoneSet({"a": 1})


def test_the_shortest_alignment_takes_the_shortest_pronunciations():
    words = [Word("a", (("AA", "S"), ("S",))), "SIL"]
    assert fewest_frames(AlignerSettings(), words) == 6
