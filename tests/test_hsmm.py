"""Semi-Markov modules: against plain chains, all segmentations and scipy's laws; how they learn, live and refuse."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import scipy.stats
import torch
from torch.nn.utils.rnn import pad_sequence

import hmm_functional as hf
from hmm_functional import durations
from hmm_functional.learning import Priors
from pytorch_hmm import (
    HSMM,
    BaseHMM,
    BernoulliEmission,
    CategoricalDuration,
    CategoricalEmission,
    Duration,
    DurationConstrainedHMM,
    GammaDuration,
    GaussianDuration,
    GaussianEmission,
    GaussianHMM,
    GeometricDuration,
    LinearRegressionEmission,
    MixtureGaussianEmission,
    NegativeBinomialDuration,
    PoissonDuration,
    PoissonEmission,
    ProductEmission,
    StreamingHMMProcessor,
    StudentTEmission,
    UniformDuration,
    match_states,
    pseudo_residuals,
    select_num_states,
    standard_errors,
    to_hmmlearn,
)
from pytorch_hmm.law import parameter
from pytorch_hmm.parametrize import Positive
from tests.helpers.duration_laws import log_law
from tests.helpers.segmentations import Segmentations

NAMES = ("categorical", "poisson", "negative_binomial", "gamma", "gaussian", "geometric", "uniform")
LEARNED = NAMES[:-1]
METHODS = ("em", "viterbi", "stepwise", "gradient")
MEANS = [[-2.0, 0.0], [0.0, 2.0], [2.0, 0.0]]
NO_WAY_OUT = [[0.0, 0.5, 0.5], [0.3, 0.0, 0.7], [0.0, 0.0, 0.0]]


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def made(duration="poisson", longest=6, **options):
    return HSMM(3, 2, longest, duration, means=MEANS, **options)


def drawn(duration="poisson", batch=4, num_steps=40, **options):
    """A model in float64 and sequences from it."""
    model = made(duration, **options).double()
    return model, model.sample(num_steps, batch, rng())[1]


# values


def as_chain(stay, leave, means):
    """A geometric HSMM whose table is long, and the plain chain that it is."""
    kwargs = {"means": means, "initial": [0.5, 0.2, 0.3]}
    law = GeometricDuration(3, 400, self_loops=stay)
    semi = HSMM(3, 2, duration=law, transition=leave, **kwargs).double()
    matrix = np.diag(stay) + (1 - np.array(stay))[:, None] * np.array(leave)
    plain = GaussianHMM(3, 2, transition=matrix, **kwargs).double()
    for module, values in ((law, stay), (semi, None)):  # float32 on the way in
        if values is not None:
            module.self_loops = values
    semi.transition, plain.transition = leave, matrix
    semi.initial = plain.initial = kwargs["initial"]
    return semi, plain


STAY, LEAVE = [0.7, 0.9, 0.4], [[0.0, 0.5, 0.5], [0.25, 0.0, 0.75], [0.6, 0.4, 0.0]]


def test_geometric_durations_are_a_plain_chain():
    semi, plain = as_chain(STAY, LEAVE, MEANS)
    x, lengths = plain.sample(50, 3, rng())[1], [50, 1, 33]
    for one, other in zip(semi.forward_backward(x, lengths), plain.forward_backward(x, lengths), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(semi(x, lengths), plain(x, lengths), rtol=1e-12, atol=1e-10)
    torch.testing.assert_close(semi.filter(x, lengths), plain.filter(x, lengths), rtol=1e-9, atol=1e-9)
    (states, joint), (expected, score) = (model.viterbi_decode(x, lengths) for model in (semi, plain))
    assert torch.equal(states, expected)
    torch.testing.assert_close(joint, score, rtol=1e-12, atol=1e-10)
    torch.testing.assert_close(semi.duration.mean(), 1 / (1 - torch.tensor(STAY).double()), rtol=1e-6, atol=0)


def test_an_em_step_of_geometric_durations_from_the_counts_of_a_plain_chain():
    """By hand: beyond the end a state goes on s / (1 - s) times and leaves once; else the counts are the chain's."""
    semi, plain = as_chain(STAY, LEAVE, MEANS)
    x = plain.sample(60, 2, rng())[1]
    chain = plain.log_initial, plain.log_transition, plain.emission_log_prob(x)
    counts = hf.expected_transitions(*chain).sum(0).detach()
    posteriors = plain.forward_backward(x)[0].detach()
    last, stay = posteriors[:, -1].sum(0), torch.tensor(STAY).double()
    options = {"init": "keep", "num_iterations": 1, "tolerance": 0, "variance_floor": 0.0}
    semi.fit(x, **options)
    plain.fit(x, **options)
    went_on = counts.diagonal() + last * stay / (1 - stay)
    left = counts.sum(-1) - counts.diagonal() + last
    torch.testing.assert_close(semi.duration.self_loops, went_on / (went_on + left), rtol=1e-7, atol=0)
    moves = counts - counts.diagonal().diag_embed()
    torch.testing.assert_close(semi.transition, moves / moves.sum(-1, keepdim=True), rtol=1e-8, atol=1e-10)
    for name in ("initial", "means", "covariances"):
        torch.testing.assert_close(getattr(semi, name), getattr(plain, name), rtol=1e-8, atol=1e-9)


LAWS = {
    "categorical": ("uniform", ()),
    "uniform": ("uniform", ()),
    "geometric": ("geometric", (0.7,)),
    "poisson": ("poisson", (2.5,)),
    "negative_binomial": ("negative_binomial", (3.0, 0.4)),
    "gamma": ("gamma", (4.0, 0.8)),
    "gaussian": ("gaussian", (5.0, 3.0)),
}
LAW_MODULES = {
    "categorical": lambda most, least: CategoricalDuration(2, most, least),
    "uniform": lambda most, least: UniformDuration(2, most, least),
    "geometric": lambda most, least: GeometricDuration(2, most, least, self_loops=[0.7] * 2),
    "poisson": lambda most, least: PoissonDuration(2, most, least, rates=[2.5] * 2),
    "negative_binomial": lambda most, least: NegativeBinomialDuration(
        2, most, least, total_counts=[3.0] * 2, probs=[0.4] * 2
    ),
    "gamma": lambda most, least: GammaDuration(2, most, least, shapes=[4.0] * 2, rates=[0.8] * 2),
    "gaussian": lambda most, least: GaussianDuration(2, most, least, means=[5.0] * 2, variances=[3.0] * 2),
}


@pytest.mark.parametrize("name", NAMES)
def test_sampled_durations_follow_the_law(name):
    """States alternate, so that runs are segments; of each sequence as many as surely fit it. Chi-squared."""
    law = LAW_MODULES[name](9, 2)
    model = HSMM(2, 1, duration=law)
    states, _ = model.sample(451, 40, generator=rng())
    lasted = torch.cat([torch.unique_consecutive(row, return_counts=True)[1][:50] for row in states])
    oracle, parameters = LAWS[name]
    expected = np.exp(log_law(oracle, parameters, 2, 9))
    for found in (lasted, law.sample(states[:, ::10].flatten(), rng(1))):
        counts = np.bincount(found.numpy(), minlength=10)[1:]
        assert counts[expected == 0].sum() == 0
        is_some = expected > 0
        assert scipy.stats.chisquare(counts[is_some], counts.sum() * expected[is_some]).pvalue > 1e-3
    steps = np.arange(1, 10)
    mean = expected @ steps
    np.testing.assert_allclose(law.mean().detach(), [mean] * 2, rtol=1e-5)
    np.testing.assert_allclose(law.variance().detach(), [expected @ (steps - mean) ** 2] * 2, rtol=1e-5)
    assert (law.mode() == int(np.argmax(np.round(expected, 12))) + 1).all()


def test_segments_are_the_best_segmentation():
    model, x = drawn()
    lengths = torch.tensor([40, 1, 17, 30])
    found = model.viterbi_segments(x, lengths)
    chain = model.log_initial, model.log_transition, model.log_duration, model.emission_log_prob(x)
    best = hf.semi_markov_viterbi(*chain, lengths=lengths)
    torch.testing.assert_close(found.log_joint, best.log_joint)
    states, joint = model.viterbi_decode(x, lengths)
    assert torch.equal(states, best.states)
    torch.testing.assert_close(joint, best.log_joint)
    for i, end in enumerate(lengths.tolist()):
        count = int(best.is_start[i].sum())
        assert (found.states[i, count:] == -1).all()
        assert (found.starts[i, count:] == -1).all()
        assert (found.durations[i, count:] == -1).all()
        own = [part[i, :count] for part in found[:3]]
        assert own[1].tolist() == best.is_start[i].nonzero()[:, 0].tolist()
        assert torch.equal(own[0].repeat_interleave(own[2]), best.states[i, :end])
        single = model.viterbi_segments(x[i, :end])
        for one, other in zip(single[:3], own, strict=True):
            assert torch.equal(one, other)
    assert found.states.shape[-1] == int(best.is_start.sum(-1).max())
    pairs = model.viterbi_segments(x[None].expand(2, *x.shape), lengths.expand(2, 4))
    assert torch.equal(pairs.durations[1], found.durations)


def test_segments_of_impossible_sequences_and_of_none():
    alone = HSMM(1, 2, 3)  # three frames at most
    x = torch.zeros(2, 5, 2)
    found = alone.viterbi_segments(x, [3, 5])
    assert found.states.tolist() == [[0], [-1]]
    assert found.durations.tolist() == [[3], [-1]]
    assert found.log_joint[1] == -torch.inf
    assert alone.viterbi_segments(x).states.shape == (2, 0)
    assert made().viterbi_segments(x[:0]).states.shape == (0, 0)
    assert made()(x[:0]).shape == (0,)


@pytest.mark.parametrize("censored", [True, False])
def test_duration_posteriors_by_enumeration(censored):
    model = HSMM(2, 1, [3, 4], "poisson", censored=censored, means=[[-0.5], [0.5]]).double()
    x = torch.randn(6, 1, generator=rng()).double()
    parts = (model.log_initial, model.log_transition, model.log_duration, model.emission_log_prob(x))
    oracle = Segmentations(*(part.detach().numpy() for part in parts), censored)
    _, expected, _, ends = (x.astype(float) for x in oracle.counts())
    if censored:
        p = model.log_duration.exp().detach().numpy()
        for k in range(2):
            for seen in range(4):
                if ends[k, seen] > 0:
                    expected[k, seen:] += ends[k, seen] * p[k, seen:] / p[k, seen:].sum()
    np.testing.assert_allclose(model.duration_posteriors(x).detach(), expected, rtol=1e-9, atol=1e-12)
    batch = model.duration_posteriors(torch.stack([x, x]), [6, 3])
    torch.testing.assert_close(batch[0], model.duration_posteriors(x))
    torch.testing.assert_close(batch[1], model.duration_posteriors(x[:3]))


def test_a_model_of_constraints_keeps_them():
    model = DurationConstrainedHMM(3, 2, [2, 3, 1], [4, 3, 5], means=MEANS, censored=False)
    x = made().sample(60, 5, rng())[1]
    found = model.viterbi_segments(x)
    for k, (least, most) in enumerate(zip([2, 3, 1], [4, 3, 5], strict=True)):
        lasted = found.durations[found.states == k]
        assert lasted.min() >= least
        assert lasted.max() <= most
    before = model.log_duration.clone()
    model.fit(x, num_iterations=2, tolerance=0, generator=rng())
    assert torch.equal(model.log_duration, before)
    assert model.num_free_parameters() == made("uniform").num_free_parameters()


# learning


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_em_climbs(name, dtype):
    _, x = drawn(name)
    for censored in (True, False):
        model = made(name, censored=censored).to(dtype)
        report = model.fit(x.to(dtype), num_iterations=8, tolerance=0, generator=rng())
        gains = np.diff(report.history)
        assert (gains[:-1] >= -1e-8).all()
        assert gains[-1] >= (-1e-8 if dtype == torch.float64 else -1e-2)  # the last is that of what the module holds
        assert report.history[-1] > report.history[0]
        torch.testing.assert_close(model.log_duration.exp().sum(-1), torch.ones(3, dtype=dtype))
        assert report.log_likelihood == pytest.approx(model(x.to(dtype)).sum().item(), abs=1e-2)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NAMES)
def test_every_method_learns_every_law(name, method):
    _, x = drawn(name)
    model = made(name).double()
    report = model.fit(x, method=method, num_iterations=5, tolerance=0, generator=rng())
    assert np.isfinite(report.history).all()
    assert report.history[-1] > report.history[0]
    assert all(p.isfinite().all() for p in model.parameters())
    assert report.dead_states == []


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", LEARNED)
def test_fixed_and_frozen_durations_stay_bit_for_bit(name, method):
    _, x = drawn(name)
    for is_frozen in (True, False):
        model = made(name)
        names = [key for key in model._parametrized() if key.startswith("duration_")]
        before = {key: getattr(model.duration, key.removeprefix("duration_")).clone() for key in names}
        if not is_frozen:
            for key in names:
                mask = torch.zeros(before[key].shape, dtype=torch.bool)
                mask[0] = True
                model.fix(key, mask)
        frozen = names if is_frozen else ()
        model.fit(x.float(), method=method, init="keep", num_iterations=3, tolerance=0, frozen=frozen)
        for key in names:
            after = getattr(model.duration, key.removeprefix("duration_"))
            assert torch.equal(after[0], before[key][0])
            if is_frozen:
                assert torch.equal(after, before[key])
            else:
                assert not torch.equal(after[1:], before[key][1:])
        model.fit(x.float(), method=method, num_iterations=1, tolerance=0, frozen=frozen, generator=rng())
        assert all(torch.equal(getattr(model.duration, k.removeprefix("duration_"))[0], before[k][0]) for k in names)


@pytest.mark.parametrize("frozen", ["duration_total_counts", "duration_probs"])
def test_one_of_two_parameters_of_a_law_may_be_frozen(frozen):
    _, x = drawn("negative_binomial")
    model = made("negative_binomial").double()
    model.fit(x, num_iterations=2, tolerance=0, generator=rng())
    before = [model.duration.total_counts.clone(), model.duration.probs.clone()]
    report = model.fit(x, init="keep", num_iterations=4, tolerance=0, frozen=[frozen])
    assert (np.diff(report.history) >= -1e-8).all()
    stays = frozen == "duration_total_counts"
    assert torch.equal(model.duration.total_counts, before[0]) == stays
    assert torch.equal(model.duration.probs, before[1]) != stays


@pytest.mark.parametrize("is_frozen", [True, False])
def test_a_negative_binomial_whose_total_count_stays_one_learns_as_a_geometric_law(is_frozen):
    _, x = drawn("negative_binomial")
    law = NegativeBinomialDuration(3, 6, total_counts=[1.0] * 3, probs=[0.3, 0.5, 0.6])
    one = HSMM(3, 2, duration=law, means=MEANS).double()
    other = HSMM(3, 2, duration=GeometricDuration(3, 6, self_loops=[0.3, 0.5, 0.6]), means=MEANS).double()
    options = {"init": "keep", "num_iterations": 4, "tolerance": 0}
    if not is_frozen:
        one.fix("duration_total_counts")
    found = one.fit(x, frozen=["duration_total_counts"] if is_frozen else [], **options)
    np.testing.assert_allclose(found.history, other.fit(x, **options).history, rtol=1e-10)
    torch.testing.assert_close(one.duration.probs, other.duration.self_loops, rtol=1e-7, atol=1e-9)


def test_transitions_between_segments_can_be_fixed():
    _, x = drawn()
    model = made(transition=NO_WAY_OUT).double()
    mask = [[False, True, False], [False, False, False], [True, True, True]]
    for method in METHODS:
        model.transition = NO_WAY_OUT
        model.fix("log_transition", mask)
        model.fit(x, method=method, num_iterations=2, tolerance=0, generator=rng())
        assert model.transition[0].tolist() == [0.0, 0.5, 0.5]
        assert model.transition[2].tolist() == [0.0, 0.0, 0.0]
        assert model.transition[1, 1] == 0
        assert abs(model.transition[1, 0].item() - 0.3) > 1e-4
        assert model.transition[1].sum().item() == pytest.approx(1.0)
    model.fix("log_transition")
    assert model.transition[0].tolist() == [0.0, 0.5, 0.5]


def test_data_of_every_form_are_the_same_data():
    _, x = drawn()
    data = [x[i, : 20 + 5 * i] for i in range(4)]
    lengths = torch.tensor([len(y) for y in data])
    loader = torch.utils.data.DataLoader([(y[None], [len(y)]) for y in data], batch_size=None)
    found = []
    for given in ((data,), (pad_sequence(data, True, torch.nan), lengths), (loader,)):
        model = made().double()
        model.fit(*given, init="keep", num_iterations=4, tolerance=0)
        found.append(model.state_dict())
    for other in found[1:]:
        for key, value in found[0].items():
            torch.testing.assert_close(value, other[key], rtol=1e-8, atol=1e-8)
    twice, weighted = made().double(), made().double()
    twice.fit([data[0], data[0], data[2]], init="keep", num_iterations=3, tolerance=0)
    options = {"init": "keep", "num_iterations": 3, "tolerance": 0}
    weighted.fit(data, sample_weights=[2.0, 0.0, 1.0, 0.0], variance_floor=0.0, **options)
    torch.testing.assert_close(twice.duration.rates, weighted.duration.rates, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(twice.means, weighted.means, rtol=1e-7, atol=1e-9)


def test_known_states_give_the_durations_that_were_seen():
    """Every state known, no end cut off: shares of the runs, counted by hand."""
    labels = torch.tensor([0, 0, 1, 2, 2, 2, 0, 1, 1, 1, 2, 0, 0])
    x = torch.tensor(MEANS)[labels].double() + 0.1 * torch.randn(13, 2, generator=rng())
    model = made("categorical", censored=False).double()
    for method in ("em", "viterbi"):
        model.fit(x, labels=labels, method=method, init="keep", num_iterations=1, tolerance=0)
        expected = torch.zeros(3, 6).double()
        expected[0, [0, 1]] = torch.tensor([1 / 3, 2 / 3]).double()
        expected[1:, [0, 2]] = 0.5
        torch.testing.assert_close(model.duration.log_probs.exp(), expected)
        torch.testing.assert_close(model.transition, torch.tensor([[0, 1, 0], [0, 0, 1], [1, 0, 0]]).double())
        model = made("categorical", censored=False).double()
    priors = Priors(duration=2.0)
    model.fit(x, labels=labels, init="keep", num_iterations=1, tolerance=0, priors=priors)
    torch.testing.assert_close(model.duration.log_probs[0].exp(), torch.tensor([2, 3, 1, 1, 1, 1]).double() / 9)
    some = labels.where(torch.arange(13) % 3 == 0, -1)
    model = made().double()
    report = model.fit(x, labels=some, num_iterations=5, tolerance=0, generator=rng())
    assert (np.diff(report.history) >= -1e-8).all()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0.5, r"priors.duration: expected numbers of at least 1, got 0\.5"),
        (torch.full((3, 5), 2.0), r"priors.duration: expected shape \(3, 6\) or one before, got \(3, 5\)"),
        ([[2.0] * 6, [0.0] * 6, [2.0] * 6], "priors.duration: expected numbers of at least 1, got 0"),
    ],
)
def test_priors_of_durations_that_are_none(value, message):
    _, x = drawn("categorical")
    with pytest.raises(ValueError, match=message):
        made("categorical").fit(x, priors=Priors(duration=value))


def test_priors_of_durations():
    _, x = drawn("categorical")
    found = []
    for value in (3.0, torch.full((3, 6), 3.0), np.full((3, 6), 3.0), [[3.0] * 6] * 3):
        model = made("categorical").double()
        report = model.fit(x, priors=Priors(duration=value), init="keep", num_iterations=4, tolerance=0)
        assert (np.diff(report.history) >= -1e-8).all()
        assert report.log_prior < 0
        found.append(model.duration.log_probs)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])
    for model in (made(), GaussianHMM(3, 2)):  # it would be taken for one that counts
        with pytest.raises(ValueError, match=r"priors\.duration: expected none of a"):
            model.fit(x, priors=Priors(duration=2.0))


def test_restarts_find_what_one_start_does_not():
    _, x = drawn(batch=6)
    for method in ("em", "viterbi", "gradient"):
        options = {"init": "random", "method": method, "num_iterations": 3, "tolerance": 0, "generator": rng(3)}
        model = made().double()
        report = model.fit(x, num_restarts=3, **options)
        assert len(set(report.restarts)) == 3
        assert report.history[-1] == max(report.restarts)
        if method != "viterbi":
            assert model(x).sum().item() == pytest.approx(report.log_likelihood, abs=1e-6)


def test_zeros_that_were_learned_do_not_outlive_a_new_start():
    """Durations above the data's length get exactly nothing, which is no structural zero."""

    def runs(*lasted):
        levels = torch.cat([torch.full((n,), 4.0 if i % 2 else -4.0) for i, n in enumerate(lasted)])
        return (levels + 0.3 * torch.randn(len(levels), generator=rng()))[:, None]

    short, long = [runs(6, 6), runs(5, 6)], [runs(10, 9), runs(9, 10)]
    model = HSMM(2, 1, 12, censored=False)
    model.fit(short, num_iterations=5, tolerance=0, generator=rng())
    assert (model.duration.log_probs[:, 7:] == -torch.inf).all()
    model.fit(long, num_iterations=5, tolerance=0, generator=rng())
    fresh = HSMM(2, 1, 12, censored=False)
    fresh.fit(long, num_iterations=5, tolerance=0, generator=rng())
    torch.testing.assert_close(model(long[0]), fresh(long[0]))
    assert model.viterbi_segments(long[0]).durations.tolist() == [10, 9]


EMISSIONS = {
    "gaussian": lambda: GaussianEmission(3, 2, "full"),
    "tied": lambda: GaussianEmission(3, 2, "tied"),
    "mixture": lambda: MixtureGaussianEmission(3, 2, 2),
    "student_t": lambda: StudentTEmission(3, 2),
    "categorical": lambda: CategoricalEmission(3, 4),
    "poisson": lambda: PoissonEmission(3, 2),
    "bernoulli": lambda: BernoulliEmission(3, 2),
    "regression": lambda: LinearRegressionEmission(3, 2, num_lags=1),
    "product": lambda: ProductEmission([GaussianEmission(3, 2), CategoricalEmission(3, 4)]),
}


@pytest.mark.parametrize("kind", EMISSIONS)
def test_every_emission(kind, tmp_path):
    torch.manual_seed(0)
    model = HSMM(3, max_duration=5, duration="gamma", emission=EMISSIONS[kind]()).double()
    _, x = model.sample(30, 4, rng())
    report = model.fit(x, num_iterations=4, tolerance=0, generator=rng())
    assert (np.diff(report.history) >= -1e-8).all()
    posteriors, value = model.forward_backward(x)
    torch.testing.assert_close(posteriors.sum(-1), torch.ones(4, 30).double())
    # p(x) of a prefix is that of what the filter has seen
    torch.testing.assert_close(model.filter(x)[:, 11], model.forward_backward(x[:, :12])[0][:, -1])
    model.save(tmp_path / "model")
    assert torch.equal(HSMM.load(tmp_path / "model")(x), value)
    processor = StreamingHMMProcessor(model, decode="filter")
    rows = torch.cat([processor.process_chunk(part) for part in x[0].split(7)])
    torch.testing.assert_close(rows, model.filter(x[0]))


@pytest.mark.parametrize("kind", EMISSIONS)
def test_samples_of_states_without_a_way_out_end(kind):
    torch.manual_seed(0)
    model = HSMM(3, max_duration=4, emission=EMISSIONS[kind](), topology="left_to_right", min_duration=2)
    states, x = model.sample(30, 5, rng())
    assert states.shape == (5, 30)
    assert x.shape == (5, 30, *model.frame_shape)
    assert (x[states == -1] == 0).all()
    for row in states:
        runs, lasted = torch.unique_consecutive(row, return_counts=True)
        assert runs.tolist() == [0, 1, 2, -1]
        assert lasted[:3].min() >= 2
        assert lasted[:3].max() <= 4


def test_tied_states_share_laws_and_not_durations():
    model = HSMM(3, 2, 6, "poisson", tied_states=[0, 1, 0]).double()
    _, x = drawn()
    report = model.fit(x, num_iterations=4, tolerance=0, generator=rng())
    assert (np.diff(report.history) >= -1e-8).all()
    assert model.means.shape == (2, 2)
    scores = model.emission_log_prob(x)
    assert torch.equal(scores[..., 0], scores[..., 2])
    assert model.duration.rates[0] != model.duration.rates[2]


def test_missing_frames_and_features():
    model = made(missing="nan").double()
    _, x = drawn()
    holes = x.clone()
    holes[0, 5:9] = torch.nan
    holes[1, :, 1] = torch.nan
    # an unobserved feature is integrated out: what is left is a model of the other
    alone = HSMM(3, 1, 6, "poisson", means=[row[:1] for row in MEANS]).double()
    torch.testing.assert_close(model(holes)[1], alone(x[1, :, :1]))
    report = model.fit(holes, num_iterations=4, tolerance=0, generator=rng())
    assert (np.diff(report.history) >= -1e-8).all()
    rows = model.filter(holes)
    torch.testing.assert_close(rows.sum(-1), torch.ones(4, 40).double())


def test_left_to_right_in_parts_of_known_ends():
    """Each state once, the last ending with the sequence: what the data were made of is found."""
    model = HSMM(3, 1, 20, "gaussian", topology="left_to_right", censored=False).double()
    lasted = torch.tensor([[8, 12, 10], [10, 11, 7], [9, 15, 8], [7, 13, 12]])
    rows = [torch.arange(3.0).repeat_interleave(one)[:, None].double() * 4 for one in lasted]
    data = [x + 0.5 * torch.randn(x.shape, generator=rng()) for x in rows]
    model.fit(data, num_iterations=30, generator=rng())
    for x, one in zip(data, lasted, strict=True):
        assert model.viterbi_segments(x).durations.tolist() == one.tolist()
        assert model.viterbi_segments(x).states.tolist() == [0, 1, 2]
    torch.testing.assert_close(model.duration.mean(), lasted.double().mean(0), rtol=1e-2, atol=0)
    assert model(torch.zeros(61, 1).double()) == -torch.inf  # three states of twenty frames at most
    for method in METHODS:
        with pytest.raises(ValueError, match=r"a sequence is impossible under the model.*longest durations"):
            HSMM(3, 1, 9, topology="left_to_right", censored=False).fit(data, method=method)


def test_one_state():
    """It cannot follow itself: a sequence is one segment, so durations are the lengths of the data."""
    data = [torch.randn(n, 2, generator=rng(n)) for n in (4, 7, 7, 5)]
    model = HSMM(1, 2, 9, censored=False)
    model.fit(data, num_iterations=2, tolerance=0, generator=rng())
    expected = torch.zeros(1, 9)
    expected[0, [3, 4, 6]] = torch.tensor([0.25, 0.25, 0.5])
    torch.testing.assert_close(model.duration.log_probs.exp(), expected)
    torch.testing.assert_close(model.means[0], torch.cat(data).mean(0))
    assert model(torch.zeros(10, 2)) == -torch.inf
    states, _ = model.sample(12, generator=rng())
    assert set(states.tolist()) == {0, -1}
    assert model.num_free_parameters() == 8 + 4


@pytest.mark.parametrize("censored", [True, False])
def test_one_frame_and_durations_longer_than_the_data(censored):
    model = made(longest=50, censored=censored).double()
    x = torch.tensor([[[0.3, 0.1]], [[1.0, -1.0]]]).double()
    scores = model.emission_log_prob(x)[:, 0] - np.log(3)
    expected = scores if censored else scores + model.log_duration[:, 0]
    torch.testing.assert_close(model(x), expected.logsumexp(-1))
    torch.testing.assert_close(model.forward_backward(x)[0][:, 0], expected.softmax(-1))
    torch.testing.assert_close(model.filter(x)[:, 0], scores.softmax(-1))
    assert model.viterbi_segments(x).durations.tolist() == [[1], [1]]
    assert np.isfinite(model.fit(x, num_iterations=2, tolerance=0, generator=rng()).history).all()


def test_online_learning_climbs():
    _, x = drawn("negative_binomial", batch=12)
    model = made("negative_binomial").double()
    model.initialize_from_data(x[:4], generator=rng())
    before = model(x).sum().item()
    for _ in range(3):
        for part in x.split(4):
            model.partial_fit(part)
    assert model(x).sum().item() > before


def test_parameters_are_found_again_within_their_standard_errors():
    law = PoissonDuration(2, 12, rates=[2.0, 5.0])
    true = HSMM(2, 1, duration=law, means=[[-1.0], [1.0]]).double()
    _, x = true.sample(300, 10, rng())
    model = copy.deepcopy(true)
    model.fit(x, init="keep", num_iterations=500, tolerance=1e-8)
    errors = standard_errors(model, x)
    for name, found, expected in (
        ("duration_rates", model.duration.rates, law.rates),
        ("means", model.means, true.means),
        ("covariances", model.covariances, true.covariances),
    ):
        gap = (found - expected).abs() / errors[name]
        assert (errors[name] > 0).all()
        assert (gap < 4).all(), name
        assert (errors[name] < 0.5).all()
    assert (errors["transition"] == 0).all()  # of two states each leads to the other


# what modules do


@pytest.mark.parametrize("name", NAMES)
def test_life_of_a_module(name, tmp_path):
    model = made(name, min_duration=[1, 2, 3])
    _, x = drawn()
    x = x.float()
    model.fit(x, num_iterations=2, tolerance=0, generator=rng())
    value = model(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), value)
    fresh = made(name, min_duration=[1, 2, 3])
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(x), value)
    model.save(tmp_path / "model")
    for cls in (HSMM, BaseHMM):
        again = cls.load(tmp_path / "model")
        assert torch.equal(again(x), value)
        assert type(again.duration) is type(model.duration)
        assert repr(again) == repr(model)
    wide = copy.deepcopy(model).double()
    assert wide(x.double()).dtype == torch.float64
    torch.testing.assert_close(wide(x.double()).float(), value, rtol=1e-5, atol=1e-3)
    for dtype in (torch.float16, torch.bfloat16):
        narrow = copy.deepcopy(model).to(dtype)
        found = narrow(x.to(dtype))
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, value, rtol=5e-2, atol=0)
        torch.testing.assert_close(narrow.log_duration.exp().sum(-1), torch.ones(3), rtol=1e-5, atol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(model(x), value, rtol=1e-5, atol=1e-3)
    with torch.no_grad():
        assert not model.filter(x).requires_grad
        assert not model.duration_posteriors(x).requires_grad


@pytest.mark.parametrize("name", NAMES)
def test_compiled_and_functional(name):
    model, x = drawn(name)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), model(x))
    given = dict(model.named_parameters())
    slopes = torch.func.grad(lambda p: torch.func.functional_call(model, p, (x,)).sum())(given)
    model(x).sum().backward()
    for key, p in given.items():
        torch.testing.assert_close(slopes[key], p.grad, msg=key)
    torch.testing.assert_close(torch.vmap(model)(x), model(x))


@pytest.mark.parametrize("name", LEARNED)
@pytest.mark.parametrize("topology", [None, "left_to_right"])
def test_gradients_are_finite_and_those_of_differences(name, topology):
    model = HSMM(2, 1, 5, name, topology=topology, min_duration=[1, 2]).double()
    x = torch.randn(2, 7, 1, generator=rng()).double()
    weights = [p for p in model.parameters() if p.requires_grad]
    for function in (model, model.filter, model.duration_posteriors):
        model.zero_grad()
        function(x)[..., :1].sum().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in weights)
    for p in model.duration.parameters():
        model.zero_grad()
        model(x).sum().backward()
        slope, flat = p.grad.flatten()[0].item(), p.detach().flatten().clone()
        values = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                p.copy_((flat + step * (torch.arange(len(flat)) == 0)).reshape(p.shape))
                values.append(model(x).sum().item())
                p.copy_(flat.reshape(p.shape))
        assert slope == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-4, abs=1e-6)


class Shifted(Duration):
    """A law of the user's own, Poisson."""

    def __init__(self, num_states, max_duration, min_duration=1):
        super().__init__(num_states, max_duration, min_duration)
        self.own = Positive(torch.zeros(num_states), "(K,)")

    rates = parameter("rates", "own", "Mean number of steps beyond the least.")

    def family(self, concentration=1.0):
        return durations.Poisson(self.max_duration, self.min_duration)

    def values(self):
        return durations.PoissonParameters(self.rates)

    def parametrized(self):
        return {"rates": self.own}


def test_laws_of_ones_own_and_laws_that_are_given(tmp_path):
    _, x = drawn()
    mine, plain = HSMM(3, 2, duration=Shifted(3, 6), means=MEANS).double(), made().double()
    plain.duration.rates = mine.duration.rates
    torch.testing.assert_close(mine(x), plain(x))
    for model in (mine, plain):
        model.fit(x, num_iterations=3, tolerance=0, generator=rng())
    torch.testing.assert_close(mine.duration.rates, plain.duration.rates)
    mine.save(tmp_path / "mine")
    assert torch.equal(HSMM.load(tmp_path / "mine")(x), mine(x))
    law = NegativeBinomialDuration(3, [4, 5, 6], 2, total_counts=[1.0, 2.0, 3.0], probs=[0.1, 0.2, 0.3])
    model = HSMM(3, 2, duration=law, means=MEANS)
    assert model.duration is law
    torch.testing.assert_close(law.probs, torch.tensor([0.1, 0.2, 0.3]))
    model.save(tmp_path / "given")
    again = HSMM.load(tmp_path / "given").duration
    assert (again.max_duration, again.min_duration) == ((4, 5, 6), 2)
    assert torch.equal(again.total_counts, law.total_counts)


def test_constraints_are_saved(tmp_path):
    model = DurationConstrainedHMM(3, 2, [2, 1, 1], 5, censored=False, tied_states=[0, 1, 0], topology="left_to_right")
    model.save(tmp_path / "model")
    x = torch.zeros(2, 9, 2)
    for cls in (DurationConstrainedHMM, HSMM, BaseHMM):
        again = cls.load(tmp_path / "model")
        assert isinstance(again, DurationConstrainedHMM)
        assert not again.censored
        assert torch.equal(again(x), model(x))
    with pytest.raises(ValueError, match="expected GaussianHMM"):
        GaussianHMM.load(tmp_path / "model")


def test_fixed_entries_and_ends_are_saved(tmp_path):
    model = made(transition=NO_WAY_OUT).fix("duration_rates", [True, False, False])
    assert model.num_free_parameters() == 2 + 2 + 6 + 6 + 2
    model.save(tmp_path / "model")
    again = HSMM.load(tmp_path / "model")
    assert again.num_free_parameters() == model.num_free_parameters()
    torch.testing.assert_close(again.transition, torch.tensor(NO_WAY_OUT))
    assert again.duration.parametrized()["rates"].is_fixed.tolist() == [True, False, False]


def test_streams_say_what_the_filter_says_and_how_long():
    model, x = drawn("gamma")
    x = x[0]
    processor = StreamingHMMProcessor(model, decode="filter")
    assert processor.remaining() is None
    assert processor.expected_remaining is None
    rows = processor.process_chunk(x[:15])
    left = processor.expected_remaining
    assert rows.shape == left.shape == (15, 3)
    for other in (copy.deepcopy(processor), pickle.loads(pickle.dumps(processor))):
        torch.testing.assert_close(other.process_chunk(x[15:]), model.filter(x)[15:])
    assert processor.process_chunk(x[:0]) is None
    joint = processor.remaining()
    assert joint.shape == (3, 6)
    torch.testing.assert_close(joint.sum(-1), rows[-1])
    mean = joint @ torch.arange(6).double() / joint.sum(-1)
    torch.testing.assert_close(mean, left[-1])
    torch.testing.assert_close(rows, model.filter(x)[:15])
    assert processor.flush() is None
    assert processor.remaining() is None
    torch.testing.assert_close(processor.process_chunk(x[:15]), rows)


def test_which_number_of_states_and_which_state():
    true = HSMM(2, 1, 8, "poisson", means=[[-2.0], [2.0]])
    data = [true.sample(40, generator=rng(n))[1] for n in range(4)]
    options = {"generator": rng(), "num_iterations": 10}
    for criterion in ("cross_validation", "bic"):
        found = select_num_states(lambda k: HSMM(k, 1, 8, "poisson"), data, [2, 3], criterion=criterion, **options)
        assert found.num_states == 2
    other = HSMM(2, 1, 8, "poisson", means=[[2.0], [-2.0]])
    assert match_states(other, true, data[0]).tolist() == [1, 0]
    x, n = data[0], true.num_free_parameters()
    assert n == 1 + 0 + 2 + 2 + 2
    assert true.aic(x).item() == pytest.approx(2 * n - 2 * true(x).item(), rel=1e-6)
    assert true.bic(x).item() == pytest.approx(n * np.log(40) - 2 * true(x).item(), rel=1e-6)
    with pytest.raises(ValueError, match="a sequence is impossible"):  # one state of eight frames at most
        select_num_states(lambda k: HSMM(k, 1, 8, "poisson"), data, [1], **options)


def test_what_plain_chains_alone_can_do_is_refused():
    model, x = drawn()
    with pytest.raises(NotImplementedError, match="pseudo-residuals of semi-Markov models"):
        pseudo_residuals(model, x)
    with pytest.raises(TypeError, match=r"model: expected a module .* got HSMM"):
        to_hmmlearn(model)
    with pytest.raises(NotImplementedError, match="HSMM: posterior_entropy is for states without durations"):
        model._call(hf.posterior_entropy, x, None)
    with pytest.raises(AttributeError):
        model.log_duration = torch.zeros(3, 6)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"self_loop": 0.5}, ValueError, "self_loop: expected none"),
        ({"max_duration": None}, ValueError, "max_duration: expected a number of steps, got None"),
        ({"max_duration": 0}, ValueError, "max_duration: expected an integer of at least 1, got 0"),
        ({"max_duration": [3, 4]}, ValueError, "max_duration: expected a number or 3, one for each state, got 2"),
        ({"max_duration": 2.5}, TypeError, "max_duration: expected an integer, got float"),
        ({"min_duration": 7}, ValueError, "min_duration: expected at most max_duration = 6, got 7"),
        ({"duration": "weibull"}, ValueError, "duration: expected one of 'categorical', .* got 'weibull'"),
        ({"duration": PoissonDuration}, ValueError, "duration: expected one of .* or a Duration"),
        ({"duration": PoissonDuration(3, 6)}, ValueError, "duration: expected it to hold max_duration"),
        (
            {"duration": PoissonDuration(2, 6), "max_duration": None},
            ValueError,
            "duration: expected laws of 3 states, got 2",
        ),
        ({"obs_dim": None}, ValueError, "obs_dim: expected a number of features, or an emission, got neither"),
        ({"emission": GaussianEmission(2, 2)}, ValueError, "emission: expected 3 laws, got 2"),
        ({"emission": GaussianEmission(3, 3)}, ValueError, r"obs_dim: expected the emission's, frames \(3,\), got 2"),
        (
            {"emission": GaussianEmission(3, 2), "means": MEANS},
            ValueError,
            "emission: expected it to hold .* means and covariances",
        ),
        ({"topology": "ring"}, ValueError, "topology: expected None, 'left_to_right' or 'ergodic', got 'ring'"),
        ({"topology": "ergodic", "transition": NO_WAY_OUT}, ValueError, "topology: expected either"),
        ({"transition": [[1 / 3] * 3] * 3}, ValueError, "transition: expected zeros on the diagonal"),
        (
            {"transition": [[0, 0, 0], [0.5, 0, 0.4], [0.5, 0.5, 0]]},
            ValueError,
            r"transition: expected probabilities that sum to 1, row 1 sums to 0\.9",
        ),
        ({"states": 3}, TypeError, "states"),
    ],
)
def test_what_is_no_model_is_named(change, error, message):
    given = {"num_states": 3, "obs_dim": 2, "max_duration": 6, **change}
    with pytest.raises(error, match=message):
        HSMM(**given)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("transition", [[1 / 3] * 3] * 3, "^transition: expected zeros on the diagonal"),
        ("transition", [[0, 1.5, -0.5], [1, 0, 0], [1, 0, 0]], r"^transition: expected probabilities in \[0, 1\]"),
        ("transition", [[0, 0, 0], [1, 0, 0], [0.4, 0.5, 0]], r"^transition: .* row 2 sums to 0\.9"),
        ("log_transition", np.full((3, 3), np.log(1 / 3)), "^log_transition: expected zeros on the diagonal"),
        ("initial", [0.5, 0.2, 0.2], r"^initial: expected probabilities that sum to 1, they sum to 0\.9"),
        ("means", [[0.0, 0.0]], "^means: expected shape"),
    ],
)
def test_what_cannot_be_assigned(name, value, message):
    model = made()
    with pytest.raises(ValueError, match=message):
        setattr(model, name, value)


@pytest.mark.parametrize(
    ("law", "name", "value", "message"),
    [
        (PoissonDuration, "rates", [-1.0, 2.0, 3.0], r"rates: expected finite numbers from 0, got -1 at \(0,\)"),
        (PoissonDuration, "rates", [1.0, 2.0], r"rates: expected shape \(K,\) = \(3,\), got \(2,\)"),
        (GeometricDuration, "self_loops", [0.5, 1.5, 0.5], r"self_loops: expected probabilities in \[0, 1\], got 1\.5"),
        (GammaDuration, "shapes", [0.0, 1.0, 1.0], "shapes: expected numbers above 0"),
        (GaussianDuration, "variances", [0.0, 1.0, 1.0], "variances: expected numbers above 0"),
        (GaussianDuration, "means", [np.nan, 1.0, 1.0], r"means: expected numbers, got NaN at \(0,\)"),
        (NegativeBinomialDuration, "probs", [-0.1, 0.5, 0.5], r"probs: expected probabilities in \[0, 1\]"),
        (CategoricalDuration, "log_probs", np.zeros((3, 6)), "log_probs: expected -inf outside"),
        (
            CategoricalDuration,
            "log_probs",
            [[-np.inf] + [0.0] * 5] * 3,
            "log_probs: expected probabilities that sum to",
        ),
    ],
)
def test_what_is_no_parameter_of_a_law_is_named(law, name, value, message):
    one = law(3, 6, 2)
    with pytest.raises(ValueError, match=message):
        setattr(one, name, value)
    with pytest.raises(ValueError, match=message):
        law(3, 6, 2, **{name: value})


def test_names_of_duration_parameters():
    model, x = drawn("negative_binomial")
    known = "'duration_total_counts', 'duration_probs'"
    with pytest.raises(ValueError, match=f"name: expected one of .*{known}, got 'probs'"):
        model.fix("probs")
    with pytest.raises(ValueError, match=f"frozen: expected some of .*{known}"):
        model.fit(x, frozen=["probs"])
    with pytest.raises(RuntimeError, match="duration"):
        model.load_state_dict(made("gamma").state_dict())


@pytest.mark.parametrize("censored", [True, False])
def test_whole_utterances_end_in_the_last_state(censored, tmp_path):
    torch.manual_seed(0)
    options = {"topology": "left_to_right", "censored": censored}
    free = HSMM(3, 1, 6, "gamma", **options).double()
    whole = HSMM(3, 1, 6, "gamma", reaches_end=True, **options).double()
    whole.load_state_dict(free.state_dict())
    x, lengths = torch.randn(4, 9, 1, dtype=torch.float64), [9, 7, 5, 2]
    posteriors, likelihood = free.forward_backward(x, lengths)
    last = posteriors[torch.arange(4), torch.tensor(lengths) - 1, 2]
    torch.testing.assert_close(whole(x, lengths), likelihood + last.log())  # p(x) p(the last state given x)
    assert whole(x, lengths)[3] == -torch.inf  # two frames for three states
    states, _ = whole.viterbi_decode(x[:3], lengths[:3])
    assert [int(states[i, lengths[i] - 1]) for i in range(3)] == [2, 2, 2]
    torch.testing.assert_close(whole.filter(x, lengths), free.filter(x, lengths))
    for method in ("em", "gradient"):
        report = whole.fit(x[:3], lengths[:3], method=method, init="keep", num_iterations=5, tolerance=0)
        assert report.history[-1] > report.history[0]
        torch.testing.assert_close(report.log_likelihood, whole(x[:3], lengths[:3]).sum().item(), rtol=1e-9, atol=0)
    whole.save(tmp_path / "model")
    assert torch.equal(HSMM.load(tmp_path / "model")(x[:3], lengths[:3]), whole(x[:3], lengths[:3]))


def test_models_without_an_end_cannot_reach_it():
    with pytest.raises(ValueError, match="reaches_end: expected a state without a way out"):
        HSMM(3, 1, 6, reaches_end=True)(torch.zeros(4, 1))
