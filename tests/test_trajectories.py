"""From an HSMM to frames: durations, states and features of an utterance."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pytorch_hmm import (
    HSMM,
    CategoricalEmission,
    GaussianEmission,
    GaussianHMM,
    MixtureGaussianEmission,
    PoissonDuration,
    choose_durations,
    generate_trajectory,
)
from tests.helpers.trajectories import solutions

WINDOWS = ((1,), (-0.5, 0, 0.5))


def model(**options):
    found = HSMM(3, 4, 20, "gaussian", topology="left_to_right", **options)
    found.duration.means = [4.0, 9.0, 6.0]
    found.duration.variances = [1.0, 4.0, 2.0]
    found.means = torch.arange(12.0).reshape(3, 4)
    found.covariances = torch.linspace(0.5, 2.0, 12).reshape(3, 4)
    return found


def test_mean_durations_follow_the_rate():
    hsmm = model()
    assert choose_durations(hsmm).tolist() == [4, 9, 6]
    assert choose_durations(hsmm, rate=2.0).sum() == 10
    assert choose_durations(hsmm, total=26).tolist() == [5, 13, 8]  # what is added goes by the variances


def test_modes_and_states_asked_for():
    hsmm = model()
    states = torch.tensor([[1, 1, 0], [2, -1, -1]])
    assert choose_durations(hsmm, states, how="mode").tolist() == [[9, 9, 4], [6, 0, 0]]
    assert choose_durations(hsmm, states, how="mode", rate=3.0).sum(-1).tolist() == [7, 2]
    assert choose_durations(hsmm, states).tolist() == [[9, 9, 4], [6, 0, 0]]


def test_sampled_durations_follow_the_law():
    from scipy.stats import chisquare, poisson

    hsmm = HSMM(1, 1, None, PoissonDuration(1, 12, rates=[3.0]))
    states = torch.zeros(5000, dtype=torch.int64)
    drawn = choose_durations(hsmm, states, how="sample", generator=torch.Generator().manual_seed(0))
    expected = poisson.pmf(np.arange(12), 3.0)
    counts = np.bincount(drawn.numpy() - 1, minlength=12)
    observed, wanted = np.append(counts[:8], counts[8:].sum()), np.append(expected[:8], expected[8:].sum())
    assert chisquare(observed, 5000 * wanted / wanted.sum()).pvalue > 1e-3


def test_features_are_those_of_the_normal_equations():
    hsmm = model().double()
    found = generate_trajectory(hsmm, WINDOWS, durations=torch.tensor([2, 3, 1]))
    assert found.states.tolist() == [0, 0, 1, 1, 1, 2]
    frames = found.states.numpy()
    means, variances = hsmm.means.detach().numpy()[frames], hsmm.covariances.detach().numpy()[frames]
    np.testing.assert_allclose(
        found.features.detach().numpy(), solutions(means[None], variances[None], WINDOWS)[0], atol=1e-9
    )


def test_utterances_of_several_lengths():
    hsmm = model().double()
    both = generate_trajectory(hsmm, WINDOWS, torch.tensor([[0, 1, 2], [2, 0, -1]]), rate=1.5)
    alone = generate_trajectory(hsmm, WINDOWS, torch.tensor([2, 0]), rate=1.5)
    size = len(alone.features)
    assert size < both.features.shape[1]
    torch.testing.assert_close(both.features[1, :size], alone.features)
    assert not both.features[1, size:].any()
    assert (both.states[1, size:] == -1).all()


def test_the_heaviest_component_speaks():
    means = torch.arange(12.0).reshape(2, 3, 2)
    emission = MixtureGaussianEmission(2, 2, 3)
    emission.means, emission.log_weights = means, torch.tensor([[0.2, 0.5, 0.3], [0.6, 0.2, 0.2]]).log()
    hsmm = HSMM(2, None, 5, "uniform", emission=emission, topology="left_to_right")
    found = generate_trajectory(hsmm, [(1,)], durations=torch.tensor([1, 2]))
    torch.testing.assert_close(found.features, torch.stack([means[0, 1], means[1, 0], means[1, 0]]))


@pytest.mark.parametrize("form", ["spherical", "tied_diag"])
def test_other_variances_and_shared_laws(form):
    emission = GaussianEmission(2, 2, form, means=[[0.0, 0.0], [1.0, 1.0]])
    hsmm = HSMM(3, None, 5, "uniform", emission=emission, topology="left_to_right", tied_states=[0, 1, 0])
    found = generate_trajectory(hsmm, WINDOWS[:1], durations=torch.tensor([1, 1, 2])).features
    assert found.tolist() == [[0.0, 0.0], [1.0, 1.0], [0.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"how": "median"}, ValueError, "how: expected 'mean', 'mode' or 'sample', got 'median'"),
        ({"states": torch.tensor([3])}, ValueError, "states: expected integers 0..2"),
        ({"states": torch.tensor([0.0])}, ValueError, "states: expected integers"),
        ({"states": torch.tensor([0, -1, 1])}, ValueError, "states: expected -1 after the last state"),
        ({"rate": 0.0}, ValueError, "rate: expected a positive number"),
        ({"rate": 2.0, "total": 9}, ValueError, "rate: expected none beside total"),
        ({"total": 2}, ValueError, "total: expected at least 3"),
        ({"rate": "fast"}, TypeError, "rate: expected a number, got str"),
    ],
)
def test_bad_arguments(arguments, error, words):
    with pytest.raises(error, match=words):
        choose_durations(model(), **arguments)


def test_emissions_without_a_trajectory():
    with pytest.raises(TypeError, match=r"model: expected Gaussians or their mixtures.*CategoricalEmission"):
        generate_trajectory(HSMM(2, None, 5, emission=CategoricalEmission(2, 3)), WINDOWS)
    with pytest.raises(TypeError, match="of 'full'"):
        generate_trajectory(HSMM(2, 2, 5, covariance_type="full"), WINDOWS)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"durations": torch.tensor([1, 1, 1]), "rate": 2.0}, "durations: expected them, or how, rate and total"),
        ({"durations": torch.tensor([1, 1, 1]), "how": "nonsense"}, "durations: expected them, or how"),
        ({"durations": torch.tensor([2, 2]), "states": torch.tensor([1, -1])}, "durations: expected 0 where"),
        ({"durations": torch.tensor([2]), "states": [7]}, "states: expected integers 0..2"),
        ({"durations": torch.tensor([2, 1, -1])}, "durations: expected at least 0"),
        ({"durations": torch.tensor([2, 1])}, r"durations: expected shape \(..., N\) with N = 3"),
        ({"durations": [2, 1]}, r"durations: expected shape \(..., N\) with N = 3"),
    ],
)
def test_bad_durations(arguments, words):
    with pytest.raises(ValueError, match=words):
        generate_trajectory(model(), WINDOWS, **arguments)


def test_states_may_be_a_list():
    assert generate_trajectory(model(), WINDOWS, [2, 0], durations=torch.tensor([1, 2])).states.tolist() == [2, 0, 0]


def test_durations_seen_once_are_scaled_alike():
    hsmm = model()
    hsmm.duration.means, hsmm.duration.variances = [4.0, 8.0, 12.0], [1e-2, 1e-2, 1e-2]  # each on one duration
    assert choose_durations(hsmm, rate=2.0).tolist() == [2, 4, 6]
    assert choose_durations(hsmm, total=48).tolist() == [8, 16, 24]


def test_segments_of_the_best_path_expand_to_it():
    import hmm_functional as hf

    hsmm = HSMM(3, 2, 10, "poisson")
    x, lengths = torch.randn(2, 20, 2), [20, 7]
    found = hsmm.viterbi_segments(x, lengths)
    assert torch.equal(hf.expand_states(found.states, found.durations), hsmm.viterbi_decode(x, lengths)[0])


def test_features_have_gradients():
    hsmm = model()
    generate_trajectory(hsmm, WINDOWS).features.sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in (hsmm.emission.location.values, hsmm.emission.covariance.factor))


def test_other_models_have_no_durations():
    with pytest.raises(TypeError, match=r"model: expected an HSMM.*got GaussianHMM"):
        generate_trajectory(GaussianHMM(3, 4), WINDOWS)
