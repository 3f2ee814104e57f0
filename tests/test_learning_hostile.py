"""What two strangers found: cases where learning gave wrong numbers, or an error that did not say why."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import scipy.stats
import torch

from hmm_functional import emissions, learning
from hmm_functional.emissions import GaussianPrior
from hmm_functional.learning import HMMParameters, Priors
from pytorch_hmm import (
    Batch,
    BernoulliEmission,
    BernoulliHMM,
    CategoricalEmission,
    CategoricalHMM,
    EmissionHMM,
    GaussianEmission,
    GaussianHMM,
    LinearRegressionHMM,
    MixtureGaussianHMM,
    PoissonEmission,
    PoissonHMM,
    ProductEmission,
    pseudo_residuals,
    standard_errors,
)
from pytorch_hmm.emission import Emission
from pytorch_hmm.law import parameter
from pytorch_hmm.parametrize import Positive


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def test_an_autoregression_looks_back_at_frames_that_are_not_counted():
    """Frames of history are marked unobserved; their values are still what later frames are regressed on."""
    g = np.random.default_rng(0)
    x = np.full((1, 200, 1), 500.0)
    for t in range(1, 200):
        x[0, t] = 50.0 + 0.9 * x[0, t - 1] + g.normal()
    own = emissions.RegressionParameters(np.full((1, 1, 1), 0.5), np.full((1, 1), 250.0), np.ones((1, 1, 1)))
    parameters = HMMParameters(np.zeros(1), np.zeros((1, 1)), own)
    is_observed = np.ones((1, 200), bool)
    is_observed[:, 0] = False
    family, values = emissions.LinearRegression(num_lags=1), []
    for _ in range(4):
        parameters, value = learning.em_step(parameters, family, x, is_observed=is_observed)
        values.append(float(value))
    assert (np.diff(values) > -1e-6).all()
    design = np.stack([x[0, :-1, 0], np.ones(199)], 1)
    slope, bias = np.linalg.lstsq(design, x[0, 1:, 0], rcond=None)[0]
    assert parameters.emission.weights.item() == pytest.approx(slope, rel=1e-6)
    assert parameters.emission.biases.item() == pytest.approx(bias, rel=1e-4)


def test_the_floor_of_a_regression_is_a_share_of_what_it_leaves():
    """A smooth series: noise of 1e-4 beneath an oscillation of 1."""
    steps, x = torch.randn(400, generator=rng()).double() * 1e-4, torch.zeros(400, 1).double()
    x[0], x[1] = 0.0, 0.3
    for t in range(2, 400):
        x[t] = 1.9 * x[t - 1] - 0.995 * x[t - 2] + steps[t]
    model = LinearRegressionHMM(1, 1, num_lags=2, history="condition").double()
    model.fit(x, generator=rng(), tolerance=1e-6)
    assert model.covariances.item() == pytest.approx(1e-8, rel=0.2)


def test_only_forecasts_have_residuals_with_lags():
    model = LinearRegressionHMM(2, 1, num_lags=1, history="condition")
    x = 1000.0 + torch.randn(20, 1, generator=rng())
    with pytest.raises(NotImplementedError, match="take 'forecast'"):
        pseudo_residuals(model, x)
    assert pseudo_residuals(model, x, kind="forecast").values[:, 0].isnan().tolist() == [True] + [False] * 19
    inputs = LinearRegressionHMM(2, 1, input_dim=2)
    assert pseudo_residuals(inputs, torch.randn(5, 3, generator=rng())).values.shape == (5, 1)


@pytest.mark.parametrize("part", [CategoricalEmission(2, 3), BernoulliEmission(2), PoissonEmission(2)])
def test_residuals_of_a_product_are_nan_where_a_part_was_not_observed(part):
    model = EmissionHMM(2, ProductEmission([GaussianEmission(2, 1), copy.deepcopy(part)]), missing="nan")
    found = pseudo_residuals(model, torch.tensor([[0.0, 1.0], [0.5, torch.nan]])).values
    assert found.isnan().tolist() == [[False, False], [False, True]]


def test_residuals_of_counts_far_out_are_finite():
    model = PoissonHMM(1, rates=[[1.0]])
    for count in (20, 40):
        found = pseudo_residuals(model, torch.tensor([[float(count)]]))
        p = 0.5 * (scipy.stats.poisson(1.0).sf(count - 1) + scipy.stats.poisson(1.0).sf(count))
        assert found.values.item() == pytest.approx(scipy.stats.norm.isf(p), rel=1e-3)


def test_symbols_in_products_are_checked_as_alone():
    model = EmissionHMM(2, ProductEmission([CategoricalEmission(2, 4), GaussianEmission(2, 1)]))
    with pytest.raises(ValueError, match="whole numbers"):
        model(torch.tensor([[1.9, 0.0]]))
    with pytest.raises(ValueError, match=r"symbols 0\.\.3"):
        model(torch.tensor([[4.0, 0.0]]))


class Waits(Emission):
    """Exponential waiting times, which are above 0."""

    support = (0.0, torch.inf)
    wanted = "waiting times above 0"
    rates = parameter("rates", "rate", "Rates, (K,).")

    def __init__(self, num_laws):
        super().__init__(num_laws, frame_shape=())
        self.rate = Positive(torch.randn(num_laws), "(K,)")

    def family(self, variance_floor=0.0, prior=None):
        return WaitingTimes()

    def values(self):
        return Rates(self.rates)

    def parametrized(self):
        return {"rates": self.rate}

    def label(self, frames, num_states, rng):
        return (frames.argsort().argsort() * num_states) // len(frames)

    def initialize(self, frames, laws, rng):
        self.rate.take(torch.stack([1.0 / frames[laws == k].mean() for k in range(self.num_laws)]))

    def sample(self, laws, rng):
        return torch.empty_like(self.rates[laws]).exponential_(generator=rng) / self.rates[laws]


class Rates(emissions.poisson.PoissonParameters):
    """(K,)"""


class WaitingTimes:
    """log p(x) holds log x, so that zeros in unread frames would show."""

    def log_prob(self, x, parameters):
        return parameters.rates.log() - x[..., None] * parameters.rates + 0.0 * x.log()[..., None]

    def statistics(self, x, posteriors, parameters):
        frames = posteriors.flatten(0, -2)
        return emissions.poisson.PoissonStatistics(frames.sum(0), frames.mT @ x.flatten().to(frames))

    def m_step(self, statistics, parameters):
        return Rates(statistics.counts / statistics.sums)

    def log_prior(self, parameters):
        return 0.0


def test_a_law_of_one_s_own_with_missing_frames_padding_and_in_a_product():
    waits = torch.empty(2, 30).exponential_(generator=rng()).double()
    waits[0, 3] = torch.nan
    model = EmissionHMM(2, Waits(2), missing="nan").double()
    report = model.fit(waits, [30, 20], num_iterations=5, tolerance=0)
    assert (np.diff(report.history) > -1e-9).all()
    model(waits).sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    errors = standard_errors(EmissionHMM(1, Waits(1)).double(), waits[1:, :20])
    assert errors["rates"].shape == (1,)
    mixed = EmissionHMM(2, ProductEmission([Waits(2), GaussianEmission(2, 1)])).double()
    x = torch.stack([waits[1], torch.randn(30, generator=rng()).double()], -1)
    mixed.fit(x, num_iterations=2, tolerance=0, generator=rng())
    with pytest.raises(TypeError, match=r"WaitingTimes.m_step\(statistics, parameters, fixed\)"):
        model.fit(waits, num_iterations=1, tolerance=0, frozen=["rates"])


def test_an_emission_may_serve_two_models():
    emission, x = GaussianEmission(2, 2), torch.tensor([[0.0, torch.nan], [1.0, 2.0]])
    first = EmissionHMM(2, emission, missing="nan")
    before = first(x)
    EmissionHMM(2, emission)
    assert torch.equal(first(x), before)
    first.emission = GaussianEmission(2, 2)
    assert first(x).isfinite()
    with pytest.raises(ValueError, match="got one twice"):
        ProductEmission([emission, emission])


def test_ties_outlive_meta_devices():
    source = GaussianHMM(3, 1, tied_states=[0, 1, 0])
    with torch.device("meta"):
        model = GaussianHMM(3, 1, tied_states=[0, 1, 0])
    model.to_empty(device="cpu")
    model.load_state_dict(source.state_dict())
    x = torch.randn(5, 1, generator=rng())
    assert torch.equal(model(x), source(x))


@pytest.mark.parametrize("leave", [1e-4, 1e-6, 2e-8])
def test_fixing_a_probability_near_one_keeps_what_is_left(leave):
    model = GaussianHMM(2, 1)
    model.log_transition = np.log([[1 - leave, leave], [leave, 1 - leave]])
    before = model.log_transition.detach().clone()
    model.fix("log_transition", torch.eye(2, dtype=torch.bool))
    torch.testing.assert_close(model.log_transition.detach(), before, rtol=0, atol=1e-3)


def test_a_partial_state_keeps_fixed_entries():
    model = GaussianHMM(2, 1, means=[[0.0], [1.0]]).fix("means", [[True], [False]])
    state = {name: x for name, x in model.state_dict().items() if name.startswith("initial")}
    model.load_state_dict(state, strict=False)
    assert model.emission.location.is_fixed.tolist() == [[True], [False]]


@pytest.mark.parametrize("frozen", ["means", ["mean"]])
def test_partial_fit_checks_what_is_frozen(frozen):
    with pytest.raises(ValueError, match="frozen: expected some of"):
        GaussianHMM(2, 1).partial_fit(torch.zeros(3, 1), frozen=frozen)


PRIORS = {
    "negative weight": (lambda: GaussianPrior(0.0, -1.0), "mean_weight: expected numbers of at least 0"),
    "negative scale": (lambda: GaussianPrior(0.0, 1.0, -1.0), "scale: expected numbers of at least 0"),
    "negative degrees": (lambda: GaussianPrior(degrees=-4.0), "degrees: expected numbers of at least 0"),
    "no matrix": (
        lambda: GaussianPrior(scale=torch.tensor([[1.0, 2.0], [2.0, 1.0]])),
        "scale: expected a symmetric, positive semi-definite matrix",
    ),
    "NaN mean": (lambda: GaussianPrior(float("nan")), "mean: expected numbers"),
    "symbols": (lambda: emissions.Categorical(0.5), "concentration: expected numbers of at least 1"),
    "rates": (lambda: emissions.Poisson(0.5, 1.0), "shape: expected numbers of at least 1"),
    "chances": (lambda: emissions.Bernoulli(0.5, 0.5), "ones: expected numbers of at least 1"),
    "weights": (lambda: emissions.GaussianMixture(concentration=0.5), "concentration: expected numbers of at least 1"),
}


@pytest.mark.parametrize("case", PRIORS)
def test_priors_without_a_mode_are_refused(case):
    build, message = PRIORS[case]
    with pytest.raises(ValueError, match=message):
        build()


FORMS = {
    "gaussian number": (lambda: GaussianHMM(2, 2), 3.0, "priors.emission: expected a GaussianPrior, got float"),
    "gaussian mean": (lambda: GaussianHMM(2, 2), GaussianPrior(torch.zeros(3)), "priors.emission.mean"),
    "gaussian scale": (lambda: GaussianHMM(2, 2, "full"), GaussianPrior(scale=2.0), "priors.emission.scale"),
    "mixture parts": (lambda: MixtureGaussianHMM(2, 2, 2), (None, 1.0, 1.0), "expected .*GaussianPrior.*got 3 parts"),
    "mixture shape": (lambda: MixtureGaussianHMM(2, 2, 3), (None, torch.ones(2)), "priors.emission: expected shape"),
    "poisson": (lambda: PoissonHMM(2, 2), GaussianPrior(), r"expected \(shape, rate\), got GaussianPrior"),
    "bernoulli": (lambda: BernoulliHMM(2, 2), 2.0, r"expected \(ones, zeros\), got float"),
    "symbols": (lambda: CategoricalHMM(2, 3), GaussianPrior(), "expected numbers, got GaussianPrior"),
    "product": (
        lambda: EmissionHMM(2, ProductEmission([GaussianEmission(2, 2)])),
        GaussianPrior(),
        "expected one .* for each of 1 parts",
    ),
}


@pytest.mark.parametrize("case", FORMS)
def test_priors_of_another_form_are_named(case):
    build, prior, message = FORMS[case]
    model = build()
    x = model.sample(20, generator=rng())[1]
    with pytest.raises((TypeError, ValueError), match=message):
        model.fit(x, init="keep", priors=Priors(emission=prior))
    with pytest.raises(TypeError, match=r"priors: expected hmm_functional\.learning\.Priors, got int"):
        model.fit(x, init="keep", priors=3)


def test_the_report_tells_likelihood_and_prior_apart():
    model = GaussianHMM(1, 1).double()
    x = torch.randn(50, 1, generator=rng()).double()
    report = model.fit(x, priors=Priors(emission=GaussianPrior(0.0, 3.0, 1.0, 4.0)), generator=rng())
    assert report.log_likelihood == pytest.approx(model(x).item())
    assert report.log_prior != 0
    assert report.history[-1] == pytest.approx(report.log_likelihood + report.log_prior)
    assert len(repr(report)) < 200


def test_probabilities_can_be_assigned_as_such():
    model = GaussianHMM(2, 1)
    model.initial, model.transition = [0.2, 0.8], [[0.9, 0.1], [0.0, 1.0]]
    torch.testing.assert_close(model.log_transition.exp(), torch.tensor([[0.9, 0.1], [0.0, 1.0]]))
    torch.testing.assert_close(model.initial, torch.tensor([0.2, 0.8]))
    symbols, mixture = CategoricalHMM(1, 2), MixtureGaussianHMM(1, 1, 2)
    symbols.probs, mixture.weights = [[0.3, 0.7]], [[0.4, 0.6]]
    torch.testing.assert_close(symbols.log_probs.exp(), torch.tensor([[0.3, 0.7]]))
    torch.testing.assert_close(mixture.log_weights.exp(), torch.tensor([[0.4, 0.6]]))
    with pytest.raises(ValueError, match=r"transition: .*sum to 1"):
        model.transition = [[0.9, 0.2], [0.0, 1.0]]


def test_arguments_that_cannot_be():
    x = torch.randn(6, 2, generator=rng())
    model = GaussianHMM(2, 2)
    for options, error, message in (
        ({"variance_floor": -1.0}, ValueError, "variance_floor: expected numbers of at least 0"),
        ({"generator": 0}, TypeError, "generator: expected a torch.Generator, got int"),
        ({"method": "gradient", "frozen": list(model._parametrized())}, ValueError, "everything is frozen"),
    ):
        with pytest.raises(error, match=message):
            model.fit(x, init="keep", **options)
    model.fit(x, variance_floor=[0.5, 0.5], num_iterations=1, tolerance=0, generator=rng())
    assert model.covariances.min() >= 0.5 - 1e-6
    with pytest.raises(ValueError, match=r"labels: expected integers, states 0\.\.1"):
        model.initialize_from_data(x, labels=torch.full((6,), 5))
    with pytest.raises(ValueError, match="feature 1 never is"):
        GaussianHMM(2, 2, missing="nan").fit(torch.tensor([[0.0, torch.nan]] * 4))
    with pytest.raises(ValueError, match="none is observed"):
        LinearRegressionHMM(2, 1, num_lags=2, history="condition").fit([x[:1, :1], x[:2, :1]], init="keep")
    with pytest.raises(ValueError, match="fixed as a whole"):
        emissions.Gaussian("full").m_step(
            emissions.moments.GaussianStatistics(np.ones(1), np.zeros((1, 2)), np.eye(2)[None]),
            emissions.GaussianParameters(np.zeros((1, 2)), np.eye(2)[None]),
            emissions.GaussianParameters(None, np.array([[[True, False], [False, False]]])),
        )


def test_labels_of_unobserved_frames_name_no_clusters():
    x = torch.cat([torch.zeros(10, 1), torch.full((10, 1), 10.0), torch.full((80, 1), torch.nan)])
    labels = torch.cat([torch.zeros(10), torch.full((10,), -1.0), torch.ones(80)]).long()
    for seed in range(5):
        model = GaussianHMM(2, 1, missing="nan").initialize_from_data(x, labels=labels, generator=rng(seed))
        torch.testing.assert_close(model.means.detach(), torch.tensor([[0.0], [10.0]]), atol=1e-4, rtol=0)


def test_a_start_of_tied_states_finds_as_many_clusters_as_laws():
    x = torch.cat([torch.randn(200, 1, generator=rng()), 10.0 + torch.randn(200, 1, generator=rng(1))])
    for seed in range(5):
        model = GaussianHMM(4, 1, tied_states=[0, 1, 0, 1]).initialize_from_data(x, generator=rng(seed))
        assert sorted(model.means.flatten().round().tolist()) == [0.0, 10.0]


def test_a_start_with_missing_features_keeps_their_spread():
    x = torch.randn(500, 2, generator=rng()) * 10.0
    x[torch.rand(500, generator=rng()) < 0.9, 1] = torch.nan
    model = GaussianHMM(1, 2, missing="nan").initialize_from_data(x, generator=rng())
    assert model.covariances[0, 1] > 50


def test_batches_may_bring_labels_and_weights():
    x = torch.randn(2, 10, 1, generator=rng()).double()
    labels = torch.randint(-1, 2, (2, 10), generator=rng())
    weights = torch.tensor([1.0, 2.0]).double()
    whole, parts = (GaussianHMM(2, 1, means=[[0.0], [1.0]]).double() for _ in range(2))
    options = {"init": "keep", "num_iterations": 3, "tolerance": 0}
    one = whole.fit(x, [10, 7], labels=labels, sample_weights=weights, **options)
    batches = [Batch(x[:1], [10], weights[:1], labels[:1]), Batch(x[1:], [7], weights[1:], labels[1:])]
    other = parts.fit(torch.utils.data.DataLoader(batches, batch_size=None), **options)
    np.testing.assert_allclose(one.history, other.history, rtol=1e-12)


def test_a_subclass_without_a_constructor_is_saved_whole(tmp_path):
    class MyHMM(EmissionHMM):
        """Nothing of its own."""

    model = MyHMM(2, GaussianEmission(2, 1))
    model.save(tmp_path / "model")
    x = torch.randn(4, 1, generator=rng())
    assert torch.equal(MyHMM.load(tmp_path / "model")(x), model(x))


def test_tied_states_are_written_out_for_other_libraries():
    hmmlearn = pytest.importorskip("hmmlearn")
    assert hmmlearn
    from pytorch_hmm import to_hmmlearn

    model = GaussianHMM(3, 1, tied_states=[0, 1, 0]).double()
    x = torch.randn(20, 1, generator=rng()).double()
    assert to_hmmlearn(model).score(x.numpy()) == pytest.approx(model(x).item(), rel=1e-8)
