"""Published and hand-computed answers, the hard cases of the numerics design, and defects seen in peers."""

from __future__ import annotations

import itertools
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import torch

import hmm_functional as hf
from tests.helpers.backends import JAX, LIBRARIES, NUMPY, TORCH, as_numpy
from tests.helpers.dynamic_program import dynamic_program
from tests.helpers.models import log_of

LIBRARY_NAMES = ("numpy", "torch", "jax")
TABLE = {13: -3813.09, 39: -11534.97, 80: -23655.10}


def wrong_phone(num_features):
    """The table's model: left to right, one state's mean shifted by +3 after its data were drawn."""
    num_states, num_steps = 20, 200
    random = np.random.RandomState(0)
    means = random.randn(num_states, num_features)
    states = np.minimum(np.arange(num_steps) * num_states // num_steps, num_states - 1)
    frames = means[states] + random.randn(num_steps, num_features)
    means[7] += 3
    square = ((frames[:, None] - means) ** 2).sum(axis=-1)
    log_emission = -0.5 * square - 0.5 * num_features * np.log(2 * np.pi)
    transition = 0.9 * np.eye(num_states) + 0.1 * np.eye(num_states, k=1)
    transition[-1, -1] = 1
    return log_of(np.eye(num_states)[0]), log_of(transition), log_emission


def single(parts):
    return [np.asarray(x, np.float32) for x in parts]


@pytest.mark.parametrize("library", LIBRARY_NAMES)
@pytest.mark.parametrize("num_features", TABLE)
@pytest.mark.parametrize("kernel", ["auto", "reference", "parallel"])
def test_table_in_float64(library, num_features, kernel):
    library = LIBRARIES[library]
    parts = [library.array(x) for x in wrong_phone(num_features)]
    value = float(library.call("log_likelihood", *parts, kernel=kernel))
    assert round(value, 2) == TABLE[num_features]
    assert value == pytest.approx(float(dynamic_program(*wrong_phone(num_features)).log_likelihood), rel=1e-13)


@pytest.mark.parametrize("library", LIBRARY_NAMES)
@pytest.mark.parametrize("num_features", TABLE)
@pytest.mark.parametrize("kernel", ["auto", "reference", "parallel"])
def test_table_in_float32(library, num_features, kernel):
    library, inputs = LIBRARIES[library], single(wrong_phone(num_features))
    value = library.call("log_likelihood", *(library.array(x) for x in inputs), kernel=kernel)
    exact = float(dynamic_program(*inputs).log_likelihood)
    size = max(abs(exact), np.abs(inputs[2]).max(axis=1).sum())
    assert abs(float(value) - exact) <= 1e-6 * size
    assert abs(float(value) - TABLE[num_features]) <= 1e-6 * size + 0.005


@pytest.mark.parametrize("library", LIBRARY_NAMES)
def test_table_in_every_structure(library):
    library = LIBRARIES[library]
    initial, transition, emission = wrong_phone(80)
    bands = library.array(np.stack([np.diagonal(transition), np.append(np.diagonal(transition, 1), 0.0)]))
    edges = np.argwhere(np.isfinite(transition))
    sparse = hf.Sparse(library.array(transition[tuple(edges.T)]), edges[:, 0], edges[:, 1], 20)
    for given in (hf.Banded(bands, (0, 1)), sparse):
        value = library.call("log_likelihood", library.array(initial), given, library.array(emission))
        assert round(float(value), 2) == TABLE[80]


@pytest.mark.parametrize("library", LIBRARY_NAMES)
def test_posteriors_of_the_table_at_300_features_in_float32(library):
    library, inputs = LIBRARIES[library], single(wrong_phone(300))
    result = library.call("forward_backward", *(library.array(x) for x in inputs))
    exact = dynamic_program(*inputs)
    error = np.exp(library.numpy(result.log_posteriors)) - np.exp(exact.log_posteriors).astype(np.float64)
    assert np.abs(error).max() <= 1e-4
    size = max(abs(float(exact.log_likelihood)), np.abs(inputs[2]).max(axis=1).sum())
    assert abs(float(result.log_likelihood) - float(exact.log_likelihood)) <= 1e-6 * size


def test_float32_posteriors_over_a_hundred_thousand_steps():
    """Emissions of tens of nats: un-normalised messages would reach -3e6."""
    rng = np.random.default_rng(0)
    transition = np.log(rng.dirichlet(np.ones(5), size=5))
    inputs = single((np.log(np.full(5, 0.2)), transition, -30 + 10 * rng.standard_normal((100_000, 5))))
    exact = dynamic_program(*inputs)
    given = [TORCH.array(x) for x in inputs]
    result = hf.forward_backward(*given)
    error = np.exp(result.log_posteriors.numpy()) - np.exp(exact.log_posteriors).astype(np.float64)
    assert np.abs(error).max() <= 1e-5
    size = max(abs(float(exact.log_likelihood)), np.abs(inputs[2]).max(axis=1).sum())
    assert abs(float(result.log_likelihood) - float(exact.log_likelihood)) <= 1e-6 * size
    best = hf.viterbi(*given)
    assert abs(float(best.log_joint) - float(exact.log_joint)) <= 1e-6 * size
    assert np.mean(best.states.numpy() == exact.states) > 0.9999  # near-ties may fall otherwise in float32


def test_magnitudes_against_mpmath():
    """Weights of 1e-4 to 1e6 nats in one chain, against sums with 60 digits."""
    mpmath.mp.dps = 60
    rng = np.random.default_rng(4)
    parts = [rng.standard_normal(s) * 10 ** rng.uniform(-4, 6, s) for s in ((3,), (3, 3), (4, 3))]
    weights = []
    for path in itertools.product(range(3), repeat=4):
        terms = [parts[0][path[0]], *(parts[1][i, j] for i, j in itertools.pairwise(path))]
        terms += [parts[2][t, z] for t, z in enumerate(path)]
        weights.append(mpmath.fsum(mpmath.mpf(float(x)) for x in terms))
    top = max(weights)
    exact = float(top + mpmath.log(mpmath.fsum(mpmath.exp(w - top) for w in weights)))
    largest = max(np.abs(x).max() for x in parts)
    for library in LIBRARIES.values():
        value = library.call("log_likelihood", *(library.array(x) for x in parts))
        assert abs(float(value) - exact) <= 1e-12 * largest


# Worked examples, in exact fractions


def log_fractions(rows):
    return log_of(np.vectorize(float)(np.array(rows, dtype=object)))


def exact_chain(initial, transition, emission):
    """Filtered and smoothed probabilities and the total, in fractions, by summing over all paths."""
    num_steps, num_states = len(emission), len(initial)
    joint = {}
    for path in itertools.product(range(num_states), repeat=num_steps):
        weight = initial[path[0]]
        for i, j in itertools.pairwise(path):
            weight *= transition[i][j]
        for t, z in enumerate(path):
            weight *= emission[t][z]
        joint[path] = weight
    total = sum(joint.values())
    smoothed = [
        [sum(w for path, w in joint.items() if path[t] == z) / total for z in range(num_states)]
        for t in range(num_steps)
    ]
    return smoothed, total, joint


def filtered_by_prefix(initial, transition, emission):
    return [exact_chain(initial, transition, emission[: t + 1])[0][-1] for t in range(len(emission))]


HALF, TENTH = Fraction(1, 2), Fraction(1, 10)
# Russell and Norvig, Artificial Intelligence, section 14.2: rain, seen through an umbrella.
UMBRELLA = ([HALF, HALF], [[7 * TENTH, 3 * TENTH], [3 * TENTH, 7 * TENTH]], {True: [9 * TENTH, 2 * TENTH]})
UMBRELLA[2][False] = [TENTH, 8 * TENTH]


def run_umbrella(library, days):
    initial, transition, seen = UMBRELLA
    emission = [seen[day] for day in days]
    given = [library.array(log_fractions(x)) for x in (initial, transition, emission)]
    return given, (initial, transition, emission)


@pytest.mark.parametrize("library", LIBRARIES)
def test_umbrella_world(library):
    """The book's and Wikipedia's numbers, to the digits printed, and the exact fractions to 1e-15."""
    library = LIBRARIES[library]
    given, exact = run_umbrella(library, [True, True, False, True, True])
    smoothed, total, _ = exact_chain(*exact)
    filtered = np.exp(library.numpy(library.call("forward", *given).log_filtered))
    result = as_numpy(library, library.call("forward_backward", *given))
    posteriors = np.exp(result.log_posteriors)
    np.testing.assert_allclose(filtered[:, 0], [0.8182, 0.8834, 0.1907, 0.7308, 0.8673], atol=5e-5)
    np.testing.assert_allclose(posteriors[:, 0], [0.8673, 0.8204, 0.3075, 0.8204, 0.8673], atol=5e-5)
    np.testing.assert_allclose(posteriors, np.array(smoothed, dtype=float), rtol=1e-14)
    np.testing.assert_allclose(filtered, np.array(filtered_by_prefix(*exact), dtype=float), rtol=1e-14)
    assert float(result.log_likelihood) == pytest.approx(np.log(float(total)), rel=1e-15)
    two_days, _ = run_umbrella(library, [True, True])
    lagged = library.numpy(library.call("smooth_fixed_lag", *two_days, lag=1))
    np.testing.assert_allclose(np.exp(lagged[:, 0]), [0.883, 0.883], atol=5e-4)
    ahead = np.exp(library.numpy(library.call("forecast", *two_days, num_steps=30)))
    assert ahead[0, 0] == pytest.approx(0.7 * 0.8834 + 0.3 * 0.1166, abs=5e-5)
    np.testing.assert_allclose(ahead[-1], [0.5, 0.5], atol=1e-11)  # 0.4^30 from the stationary distribution


@pytest.mark.parametrize("library", LIBRARIES)
def test_occasionally_dishonest_casino(library):
    """Durbin, Eddy, Krogh and Mitchison, Biological Sequence Analysis, section 3.2: a fair and a loaded die."""
    library = LIBRARIES[library]
    transition = [[Fraction(95, 100), Fraction(5, 100)], [TENTH, 9 * TENTH]]
    dice = {face: [Fraction(1, 6), HALF if face == 6 else TENTH] for face in range(1, 7)}
    rolls = [3, 1, 6, 6, 6, 4, 6, 6, 2]
    exact = ([HALF, HALF], transition, [dice[face] for face in rolls])
    smoothed, total, joint = exact_chain(*exact)
    given = [library.array(log_fractions(x)) for x in exact]
    result = as_numpy(library, library.call("forward_backward", *given))
    np.testing.assert_allclose(np.exp(result.log_posteriors), np.array(smoothed, dtype=float), rtol=1e-13)
    assert float(result.log_likelihood) == pytest.approx(
        float(mpmath.log(mpmath.mpf(total.numerator) / total.denominator))
    )
    best = as_numpy(library, library.call("viterbi", *given))
    path = max(joint, key=joint.get)
    assert best.states.tolist() == list(path)
    assert float(np.exp(best.log_joint)) == pytest.approx(float(joint[path]), rel=1e-13)
    p = [w / total for w in joint.values()]
    entropy = -sum(float(x) * np.log(float(x)) for x in p)
    assert float(library.call("posterior_entropy", *given)) == pytest.approx(entropy, rel=1e-12)
    counts = library.numpy(library.call("expected_transitions", *given))
    switches = sum(float(w / total) * sum(i != j for i, j in itertools.pairwise(z)) for z, w in joint.items())
    assert counts[0, 1] + counts[1, 0] == pytest.approx(switches, rel=1e-12)
    # 0.05 / (0.05 + 0.1) of the rolls are loaded.
    stationary = np.exp(library.numpy(library.call("stationary", given[1])))
    np.testing.assert_allclose(stationary, [2 / 3, 1 / 3], rtol=1e-12)


@pytest.mark.parametrize("library", LIBRARIES)
def test_doctor_and_villagers(library):
    """Wikipedia, Viterbi algorithm: healthy, healthy, fever, with probability 0.01512."""
    library = LIBRARIES[library]
    parts = [[0.6, 0.4], [[0.7, 0.3], [0.4, 0.6]], [[0.5, 0.1], [0.4, 0.3], [0.1, 0.6]]]
    best = as_numpy(library, library.call("viterbi", *(library.array(log_of(x)) for x in parts)))
    assert best.states.tolist() == [0, 0, 1]
    assert float(np.exp(best.log_joint)) == pytest.approx(0.01512, rel=1e-14)


# Defects seen in peers: each of these went wrong somewhere


def impossible(library):
    """Two steps that only state 0 and then only state 1 explain, and no way from one to the other."""
    parts = (log_of([0.5, 0.5]), log_of(np.eye(2)), log_of([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]))
    return [library.array(x) for x in parts]


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("kernel", ["auto", "reference", "parallel"])
def test_impossible_sequence(library, kernel):
    """dynamax: 0.0; pomegranate: NaN posteriors; hmmlearn: an invalid path."""
    library = LIBRARIES[library]
    given = impossible(library)
    result = as_numpy(library, library.call("forward_backward", *given, kernel=kernel))
    assert result.log_likelihood == -np.inf
    assert np.isneginf(result.log_posteriors).all()
    best = as_numpy(library, library.call("viterbi", *given, kernel=kernel))
    assert best.log_joint == -np.inf
    assert best.states.tolist() == [-1, -1, -1]
    filtered = as_numpy(library, library.call("forward", *given, kernel=kernel))
    np.testing.assert_array_equal(np.exp(filtered.log_filtered), [[1, 0], [1, 0], [0, 0]])
    assert library.numpy(library.call("posterior_entropy", *given, kernel=kernel)) == 0
    np.testing.assert_array_equal(library.numpy(library.call("expected_transitions", *given, kernel=kernel)), 0)
    assert np.isneginf(library.numpy(library.call("pair_posteriors", *given, kernel=kernel))).all()
    several = as_numpy(library, library.call("viterbi_k_best", *given, k=2))
    assert (several.states == -1).all()
    assert np.isneginf(several.log_joint).all()
    samples = library.call("sample_posterior", *given, rng=library.rng(0), num_samples=3)
    np.testing.assert_array_equal(library.numpy(samples), -1)
    np.testing.assert_array_equal(library.numpy(library.call("posterior_decode", *given)), -1)


@pytest.mark.parametrize("library", LIBRARIES)
def test_weights_below_any_stand_in_for_minus_infinity(library):
    """torch-struct takes -1e5 for -inf: log Z = -1,199,996.5 comes back as -399,996.6.

    Here twelve steps of -1e5 each are the only way, beside edges that are truly forbidden.
    """
    library = LIBRARIES[library]
    rng = np.random.default_rng(0)
    emission = -1e5 + rng.standard_normal((12, 3))
    transition = np.where(np.eye(3, k=-1) > 0, -np.inf, rng.standard_normal((3, 3)))
    start = np.array([0.0, -np.inf, -1e5])
    exact = dynamic_program(start, transition, emission)
    given = [library.array(x) for x in (start, transition, emission)]
    value = float(library.call("log_likelihood", *given))
    assert value < -1.19e6
    assert abs(value - float(exact.log_likelihood)) <= 1e-12 * 1.2e6
    posteriors = library.numpy(library.call("forward_backward", *given).log_posteriors)
    finite = np.isfinite(exact.log_posteriors)
    np.testing.assert_array_equal(np.isfinite(posteriors), finite)
    np.testing.assert_allclose(posteriors[finite], exact.log_posteriors[finite].astype(float), rtol=0, atol=1e-9)


@pytest.mark.parametrize("library", LIBRARIES)
def test_length_below_the_padded_size(library):
    """distrax: all-zero posteriors."""
    library = LIBRARIES[library]
    given, _ = run_umbrella(library, [True, True, False, True, True])
    cut, _ = run_umbrella(library, [True, True])
    result = as_numpy(library, library.call("forward_backward", *given, lengths=np.array(2)))
    expected = as_numpy(library, library.call("forward_backward", *cut))
    np.testing.assert_allclose(result.log_posteriors[:2], expected.log_posteriors, atol=1e-15)
    np.testing.assert_allclose(np.exp(result.log_posteriors[:2]).sum(axis=-1), 1, rtol=1e-14)
    assert result.log_likelihood == pytest.approx(expected.log_likelihood, rel=1e-15)


@pytest.mark.parametrize("library", LIBRARY_NAMES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_same_matrix_as_time_varying(library, dtype):
    """dynamax: NaN."""
    library = LIBRARIES[library]
    initial, transition, emission = wrong_phone(39)
    repeated = np.repeat(transition[None], len(emission) - 1, axis=0)
    constant, varying = (
        as_numpy(library, library.call("forward_backward", *(library.array(x, dtype) for x in (initial, m, emission))))
        for m in (transition, repeated)
    )
    relative = 1e-12 if dtype is np.float64 else 1e-6
    np.testing.assert_allclose(varying.log_likelihood, constant.log_likelihood, rtol=relative)
    np.testing.assert_allclose(np.exp(varying.log_posteriors), np.exp(constant.log_posteriors), atol=100 * relative)


@pytest.mark.parametrize("library", LIBRARY_NAMES)
def test_entropy_with_forbidden_edges(library):
    """torch-struct: NaN. A left-to-right chain without emissions: T - 1 choose where to go, in exact numbers."""
    library = LIBRARIES[library]
    parts = (log_of([1.0, 0.0]), log_of([[0.5, 0.5], [0.0, 1.0]]), np.zeros((4, 2)))
    # Leave after 1, 2 or 3 steps with 1/2, 1/4, 1/8, or never with 1/8.
    entropy = (1 / 2 + 2 / 4 + 3 / 8 + 3 / 8) * np.log(2)
    value = library.call("posterior_entropy", *(library.array(x) for x in parts))
    assert float(value) == pytest.approx(entropy, rel=1e-14)


def test_gradients_with_zeros_and_padding_are_finite():
    """Masking after computing gives NaN gradients beside a right value."""
    initial, transition, emission = (TORCH.array(x).requires_grad_() for x in wrong_phone(13))
    padded = torch.cat([emission, torch.full((7, 20), torch.nan, dtype=torch.float64)])
    given = (initial, transition, torch.stack([padded, padded]))
    for name in ("log_likelihood", "posterior_entropy"):
        value = getattr(hf, name)(*given, lengths=[200, 3]).sum()
        for gradient in torch.autograd.grad(value, (initial, transition, emission)):
            assert torch.isfinite(gradient).all()
    posteriors = hf.forward_backward(*given, lengths=[200, 3]).log_posteriors
    value = torch.exp(posteriors)[..., 7].sum()
    for gradient in torch.autograd.grad(value, (initial, transition, emission)):
        assert torch.isfinite(gradient).all()
        assert gradient.abs().max() > 0


@pytest.mark.parametrize("library", LIBRARY_NAMES)
def test_one_state_and_one_step(library):
    library = LIBRARIES[library]
    emission = np.array([[-3.0], [-4.5], [2.0]])
    given = [library.array(x) for x in (np.array([0.25]), np.array([[-0.5]]), emission)]
    result = as_numpy(library, library.call("forward_backward", *given))
    assert result.log_likelihood == pytest.approx(0.25 - 3 - 4.5 + 2 - 1, rel=1e-15)
    np.testing.assert_allclose(result.log_posteriors, 0, atol=1e-15)
    np.testing.assert_array_equal(library.numpy(library.call("viterbi", *given).states), 0)
    assert abs(float(library.call("posterior_entropy", *given))) < 1e-15
    start = library.array(log_of([0.25, 0.75]))
    for transition in (np.zeros((2, 2)), np.zeros((0, 2, 2)), np.zeros((1, 2, 2))):
        args = (start, library.array(transition), library.array(log_of([[0.5, 0.1]])))
        assert float(library.call("log_likelihood", *args)) == pytest.approx(np.log(0.2), rel=1e-14)
        assert library.call("pair_posteriors", *args).shape == (0, 2, 2)
        np.testing.assert_array_equal(library.numpy(library.call("expected_transitions", *args)), np.zeros((2, 2)))


# hmmlearn as a peer, where it is right


def test_hmmlearn_categorical():
    from hmmlearn.hmm import CategoricalHMM

    rng = np.random.default_rng(0)
    peer = CategoricalHMM(n_components=3)
    peer.startprob_ = rng.dirichlet(np.ones(3))
    peer.transmat_ = rng.dirichlet(np.ones(3), size=3)
    peer.emissionprob_ = rng.dirichlet(np.ones(5), size=3)
    symbols, lengths = rng.integers(0, 5, size=60), [25, 35]
    emission = np.zeros((2, 35, 3))
    scored = np.log(peer.emissionprob_.T)[symbols]
    emission[0, :25], emission[1] = scored[:25], scored[25:]
    assert_equals_peer(peer, symbols[:, None], lengths, emission)


def test_hmmlearn_gaussian():
    from hmmlearn.hmm import GaussianHMM

    rng = np.random.default_rng(1)
    peer = GaussianHMM(n_components=3, covariance_type="diag")
    peer.n_features = 2
    peer.startprob_ = rng.dirichlet(np.ones(3))
    peer.transmat_ = rng.dirichlet(np.ones(3), size=3)
    peer.means_, peer.covars_ = rng.standard_normal((3, 2)), rng.uniform(0.5, 2, size=(3, 2))
    variances = np.stack([np.diag(c) for c in peer.covars_])
    frames, lengths = rng.standard_normal((60, 2)), [25, 35]
    square = (frames[:, None] - peer.means_) ** 2 / variances
    scored = -0.5 * (square + np.log(2 * np.pi * variances)).sum(axis=-1)
    emission = np.zeros((2, 35, 3))
    emission[0, :25], emission[1] = scored[:25], scored[25:]
    assert_equals_peer(peer, frames, lengths, emission)


def assert_equals_peer(peer, data, lengths, emission):
    given = [NUMPY.array(x) for x in (np.log(peer.startprob_), np.log(peer.transmat_), emission)]
    result = hf.forward_backward(*given, lengths=lengths)
    kept = np.arange(35) < np.array(lengths)[:, None]
    assert result.log_likelihood.sum() == pytest.approx(peer.score(data, lengths), rel=1e-12)
    np.testing.assert_allclose(np.exp(result.log_posteriors)[kept], peer.predict_proba(data, lengths), atol=1e-12)
    best = hf.viterbi(*given, lengths=lengths)
    score, states = peer.decode(data, lengths)
    np.testing.assert_array_equal(best.states[kept], states)
    np.testing.assert_array_equal(peer.predict(data, lengths), states)
    assert best.log_joint.sum() == pytest.approx(score, rel=1e-12)


def test_eager_jax_equals_compiled():
    given = [JAX.array(x) for x in wrong_phone(13)]
    for name in ("log_likelihood", "viterbi"):
        eager, compiled = as_numpy(JAX, JAX.eager(name, *given)), as_numpy(JAX, JAX.call(name, *given))
        pairs = zip(eager, compiled, strict=True) if isinstance(eager, tuple) else [(eager, compiled)]
        for one, other in pairs:
            np.testing.assert_allclose(one, other, rtol=1e-14)
