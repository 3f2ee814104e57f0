"""What the modules refuse, and whether the message says what to do."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pytorch_hmm import CategoricalHMM, GaussianHMM, HMMLayer, HMMPyTorch, MixtureGaussianHMM, StreamingHMMProcessor

NAN, INF = float("nan"), float("inf")
EYE = [[1.0, 0.0], [0.0, 1.0]]


def frames(*shape):
    return torch.zeros(shape)


CONSTRUCTORS = {
    "negative initial": (
        lambda: HMMPyTorch(2, initial=[1.5, -0.5]),
        r"initial: expected probabilities.*-0.5 at \(1,\)",
    ),
    "unnormalised initial": (lambda: HMMPyTorch(2, initial=[0.5, 0.4]), "initial: .*sum to 0.9; divide"),
    "unnormalised transition": (lambda: HMMPyTorch(2, transition=[[1, 0], [0.5, 0.6]]), "row 1 sums to 1.1; divide"),
    "empty row": (lambda: HMMPyTorch(2, transition=[[1, 0], [0, 0]]), "transition: .*row 1 sums to 0"),
    "infinite": (lambda: HMMPyTorch(2, initial=[INF, 0]), "initial: expected probabilities"),
    "NaN transition": (lambda: HMMPyTorch(2, transition=[[1, 0], [NAN, 0]]), r"transition: .*NaN at \(1, 0\)"),
    "shape of initial": (lambda: HMMPyTorch(2, initial=[1.0]), r"initial: expected shape \(K,\) = \(2,\), got \(1,\)"),
    "shape of transition": (lambda: HMMPyTorch(2, transition=np.ones(2)), r"\(K, K\) = \(2, 2\), got \(2,\)"),
    "words": (lambda: HMMPyTorch(2, initial="uniform"), "initial: expected numbers"),
    "no states": (lambda: HMMPyTorch(0), "num_states: .*at least 1, got 0"),
    "self_loop above 1": (
        lambda: GaussianHMM(2, 1, topology="ergodic", self_loop=1.5),
        r"self_loop: .*\[0, 1\], got 1.5",
    ),
    "self_loop below 0": (lambda: GaussianHMM(2, 1, topology="left_to_right", self_loop=-0.1), "self_loop"),
    "self_loop alone": (lambda: GaussianHMM(2, 1, self_loop=0.5), "self_loop: expected only with topology="),
    "topology": (lambda: GaussianHMM(2, 1, topology="ring"), "topology: expected None, 'left_to_right' or 'ergodic'"),
    "both": (lambda: GaussianHMM(2, 1, topology="ergodic", transition=EYE), "either topology or transition"),
    "missing": (lambda: GaussianHMM(2, 1, missing="skip"), "missing: expected 'raise' or 'nan', got 'skip'"),
    "covariance_type": (lambda: GaussianHMM(2, 1, "banded"), "covariance_type: expected one of 'diag', 'spherical'"),
    "no features": (lambda: GaussianHMM(2, 0), "obs_dim: .*at least 1"),
    "no mixtures": (lambda: MixtureGaussianHMM(2, 1, 0), "num_mixtures: .*at least 1"),
    "means' shape": (lambda: GaussianHMM(2, 1, means=[0.0, 1.0]), r"means: expected shape \(K, D\) = \(2, 1\)"),
    "infinite means": (lambda: GaussianHMM(1, 1, means=[[INF]]), "means: expected finite"),
    "zero variance": (lambda: GaussianHMM(1, 2, covariances=[[1.0, 0.0]]), r"covariances: .*got 0 at \(0, 1\)"),
    "negative variance": (lambda: GaussianHMM(1, 1, covariances=[[-1.0]]), "covariances: expected variances"),
    "not symmetric": (lambda: GaussianHMM(1, 2, "tied", covariances=[[1, 0.5], [0.1, 1]]), r"symmetric.*C \+ C.mT"),
    "not definite": (
        lambda: GaussianHMM(1, 2, "full", covariances=[[[1, 2], [2, 1]]]),
        "positive definite.*add to the d",
    ),
    "singular": (lambda: GaussianHMM(1, 2, "tied", covariances=[[1, 1], [1, 1]]), "positive definite"),
    "covariances' shape": (lambda: GaussianHMM(1, 2, "full", covariances=EYE), r"'full' = \(1, 2, 2\), got \(2, 2\)"),
    "weights": (lambda: MixtureGaussianHMM(1, 1, 2, weights=[[0.5, 0.6]]), "weights: .*row 0 sums to 1.1"),
    "probs": (lambda: CategoricalHMM(1, 2, probs=[[0.5, 0.6]]), "probs: .*row 0 sums to 1.1"),
    "no symbols": (lambda: CategoricalHMM(1, 0), "num_symbols"),
    "layer topology": (lambda: HMMLayer(2, topology="ring"), "topology"),
    "layer width": (lambda: HMMLayer(2, feature_dim=0), "feature_dim"),
    "decode": (
        lambda: StreamingHMMProcessor(HMMPyTorch(2), decode="smooth"),
        "'posterior', 'filter' or 'viterbi', got 'smooth'",
    ),
    "max_delay": (lambda: StreamingHMMProcessor(HMMPyTorch(2), max_delay=3), "only with decode='viterbi'"),
    "frame_rate": (lambda: StreamingHMMProcessor(HMMPyTorch(2), frame_rate=0), "frame_rate: .*above 0, got 0"),
    "chunk_size": (lambda: StreamingHMMProcessor(HMMPyTorch(2), chunk_size=0), "chunk_size"),
    "overlap": (lambda: StreamingHMMProcessor(HMMPyTorch(2), overlap=-1), "overlap"),
}


@pytest.mark.parametrize("case", CONSTRUCTORS)
def test_constructors(case):
    build, message = CONSTRUCTORS[case]
    with pytest.raises(ValueError, match=message):
        build()


ASSIGNMENTS = {
    "log_initial": ([0.5, 0.5], r"log_initial: .*sum to 3.*pass weights.log_softmax\(-1\)"),
    "log_transition": (np.zeros((2, 3)), r"log_transition: expected shape \(K, K\) = \(2, 2\), got \(2, 3\)"),
    "log_weights": ([[0.0, NAN], [0.0, -INF]], "log_weights: .*NaN"),
    "means": (np.zeros((2, 2)), r"means: expected shape \(K, M, D\)"),
    "covariances": (np.zeros((2, 2, 1)), "covariances: expected variances"),
}


@pytest.mark.parametrize("name", ASSIGNMENTS)
def test_assignments(name):
    value, message = ASSIGNMENTS[name]
    model = MixtureGaussianHMM(2, 1, 2)
    before = {key: part.clone() for key, part in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        setattr(model, name, value)
    torch.testing.assert_close(dict(model.state_dict()), before)  # nothing was half taken


def test_nan_names_the_frame():
    model, x = GaussianHMM(2, 3), frames(2, 20, 3)
    x[1, 17, 2] = NAN
    for method in (model, model.log_prob, model.forward_backward, model.viterbi_decode, model.filter, model.aic):
        with pytest.raises(ValueError, match=r"x\[1, 17\]: expected finite.*got nan in feature 2; .*missing='nan'"):
            method(x)
    with pytest.raises(ValueError, match=r"x\[1, 17\]"):
        model.emission_log_prob(x)
    with pytest.raises(ValueError, match=r"x\[17\]"):
        model(x[1])
    with pytest.raises(ValueError, match=r"x\[1, 17\]"):
        model(x, [3, 18])
    assert model(x, [20, 17]).isfinite().all()


@pytest.mark.parametrize("value", [INF, -INF])
def test_infinite_observations(value):
    x = frames(1, 4, 2)
    x[0, 2, 1] = value
    for missing in ("raise", "nan"):
        with pytest.raises(ValueError, match=r"x\[0, 2\]: expected finite observations, got -?inf"):
            GaussianHMM(2, 2, missing=missing)(x)


def test_scores_may_be_minus_infinity_alone():
    x = frames(1, 4, 2)
    x[0, 2, 1] = -INF
    assert HMMPyTorch(2)(x).isfinite().all()
    x[0, 2, 1] = INF
    with pytest.raises(ValueError, match=r"x\[0, 2\]: expected log scores below inf, got inf in feature 1"):
        HMMPyTorch(2)(x)
    x[0, 2, 1] = NAN
    with pytest.raises(ValueError, match=r"x\[0, 2\].*got nan"):
        HMMPyTorch(2)(x)


@pytest.mark.parametrize("symbol", [-1, 3])
def test_symbols_out_of_range(symbol):
    model, x = CategoricalHMM(2, 3), torch.zeros(2, 5, dtype=torch.int64)
    x[1, 3] = symbol
    with pytest.raises(ValueError, match=rf"x\[1, 3\]: expected symbols 0..2, got {symbol}; "):
        model(x)
    assert model(x, [5, 3]).isfinite().all()


def test_observation_dtypes():
    with pytest.raises(TypeError, match=r"x: expected integer symbols, got torch.float32"):
        CategoricalHMM(2, 3)(frames(1, 4))
    with pytest.raises(ValueError, match="whole numbers"):
        CategoricalHMM(2, 3, missing="nan")(torch.tensor([0.5, 1.0]))
    with pytest.raises(TypeError, match=r"x: expected floating-point observations, got torch.int64"):
        GaussianHMM(2, 3)(torch.zeros(4, 3, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"x: expected a torch.Tensor \(..., T, 3\), got ndarray"):
        GaussianHMM(2, 3)(np.zeros((4, 3)))


def test_observation_shapes():
    with pytest.raises(ValueError, match=r"x: expected shape \(..., T, 3\), got \(1, 4, 2\)"):
        GaussianHMM(2, 3)(frames(1, 4, 2))
    with pytest.raises(ValueError, match=r"x: expected shape \(..., T, 3\), got \(3,\)"):
        GaussianHMM(2, 3)(frames(3))
    for model, x in ((GaussianHMM(2, 3), frames(2, 0, 3)), (CategoricalHMM(2, 3), frames(0).long())):
        with pytest.raises(ValueError, match="at least one frame, got an empty sequence"):
            model(x)


def test_lengths():
    model, x = GaussianHMM(2, 1), frames(2, 4, 1)
    with pytest.raises(ValueError, match=r"lengths\[1\]: expected 1..4, got 0; leave empty sequences out"):
        model(x, [4, 0])
    with pytest.raises(ValueError, match=r"lengths\[0\]: expected 1..4, got 5"):
        model(x, torch.tensor([5, 1]))
    with pytest.raises(ValueError, match=r"lengths: expected one a sequence, shape \(2,\), got \(3,\)"):
        model(x, [1, 2, 3])
    with pytest.raises(ValueError, match=r"shape \(\), got \(1,\)"):
        model(x[0], [4])
    with pytest.raises(TypeError, match=r"lengths: expected integers, got torch.float32"):
        model(x, [1.0, 2.0])


def test_sampling_arguments():
    with pytest.raises(ValueError, match="num_steps"):
        GaussianHMM(2, 1).sample(0)
    with pytest.raises(TypeError, match=r"rng|generator"):
        GaussianHMM(2, 1).sample(3, generator=np.random.default_rng())


def test_layer_features():
    layer, x = HMMLayer(2, feature_dim=3), frames(2, 5, 3)
    with pytest.raises(ValueError, match=r"features: expected shape \(..., T, 3\), got \(2, 5, 4\)"):
        layer(frames(2, 5, 4))
    with pytest.raises(ValueError, match=r"features: expected shape \(..., T, F\), got \(3,\)"):
        HMMLayer(2)(frames(3))
    with pytest.raises(TypeError, match=r"features: expected a torch.Tensor"):
        layer([[1.0]])
    with pytest.raises(ValueError, match=r"features: .*empty sequence"):
        layer(frames(2, 0, 3))
    x[1, 4, 0] = NAN
    with pytest.raises(ValueError, match=r"features\[1, 4\]: expected finite"):
        layer(x)
    aligned, posteriors = layer(x, [5, 4])
    assert aligned.isfinite().all()
    assert posteriors.isfinite().all()


def test_initialisation_needs_a_frame():
    with pytest.raises(ValueError, match="at least one observed frame"):
        GaussianHMM(2, 1, missing="nan").initialize_from_data(torch.full((1, 3, 1), NAN))


def test_streams():
    processor = StreamingHMMProcessor(GaussianHMM(2, 3), overlap=1)
    with pytest.raises(TypeError, match="hmm_model: expected an HMM module of pytorch_hmm, got Linear"):
        StreamingHMMProcessor(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"features: expected shape \(..., T, 3\), got \(4, 2\)"):
        processor.process_chunk(frames(4, 2))
    with pytest.raises(ValueError, match=r"features: expected a tensor \(n, D\) of one stream, got \(1, 4, 3\)"):
        processor.process_chunk(frames(1, 4, 3))
    x = frames(4, 3)
    x[2, 1] = NAN
    with pytest.raises(ValueError, match=r"x\[2\]: expected finite"):
        processor.process_chunk(x)
    assert processor.flush() is None  # nothing was taken
