"""The modules are the functions: same values, whatever the model, the batch, the chunks and the optimiser."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import hmm_functional as hf
from property_tests.strategies import cuts, seeds
from pytorch_hmm import CategoricalHMM, GaussianHMM, HMMLayer, HMMPyTorch, MixtureGaussianHMM, StreamingHMMProcessor

COVARIANCES = ("diag", "spherical", "full", "tied", "tied_diag")
TOPOLOGIES = (None, "left_to_right", "ergodic")


@st.composite
def modules(draw, *, kind=None, missing=None):
    """A module in float64 with random parameters, structural zeros among them."""
    kind = draw(st.sampled_from(["scores", "gaussian", "mixture", "categorical"])) if kind is None else kind
    num_states, dim = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    covariance_type = draw(st.sampled_from(COVARIANCES))
    options = {
        "topology": draw(st.sampled_from(TOPOLOGIES)),
        "missing": draw(st.sampled_from(["raise", "nan"])) if missing is None else missing,
    }
    torch.manual_seed(draw(seeds))
    model = {
        "scores": lambda: HMMPyTorch(num_states, **options),
        "gaussian": lambda: GaussianHMM(num_states, dim, covariance_type, **options),
        "mixture": lambda: MixtureGaussianHMM(num_states, dim, draw(st.integers(1, 3)), covariance_type, **options),
        "categorical": lambda: CategoricalHMM(num_states, dim, **options),
    }[kind]()
    with torch.no_grad():
        for p in model.parameters():
            p += torch.randn_like(p)
    return model.double()


@st.composite
def batches(draw, model):
    """Observations (*batch, T, ...) for a module, and lengths or None."""
    rng = torch.Generator().manual_seed(draw(seeds))
    shape = (*draw(st.sampled_from([(), (1,), (3,), (2, 2)])), draw(st.integers(1, 7)))
    if isinstance(model, CategoricalHMM):
        x = torch.randint(model.num_symbols, shape, generator=rng)
    else:
        x = 3 * torch.randn(*shape, *model.frame_shape, generator=rng, dtype=torch.float64)
        if model.missing == "nan":
            x[torch.rand(shape, generator=rng) < 0.3] = torch.nan
    lengths = None
    if draw(st.booleans()):
        lengths = torch.randint(1, shape[-1] + 1, shape[:-1], generator=rng)
    return x, lengths


def chain(model):
    return model.log_initial, model.log_transition


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@given(data=st.data())
def test_every_method_is_its_function(data):
    model = data.draw(modules())
    x, lengths = data.draw(batches(model))
    emission = model.emission_log_prob(x, lengths)
    arguments = (*chain(model), emission)
    smoothed = hf.forward_backward(*arguments, lengths=lengths)
    close(model(x, lengths), hf.log_likelihood(*arguments, lengths=lengths))
    close(model.log_prob(x, lengths), model(x, lengths))
    posteriors, log_likelihood = model.forward_backward(x, lengths)
    close(posteriors, smoothed.log_posteriors.exp())
    close(log_likelihood, smoothed.log_likelihood)
    close(model.filter(x, lengths), hf.forward(*arguments, lengths=lengths).log_filtered.exp())
    close(model.viterbi_decode(x, lengths), tuple(hf.viterbi(*arguments, lengths=lengths)))


@given(data=st.data())
def test_scores_are_the_emissions(data):
    model = data.draw(modules(missing="raise"))
    x, _ = data.draw(batches(model))
    found = model.emission_log_prob(x)
    if isinstance(model, HMMPyTorch):
        expected = x
    elif isinstance(model, CategoricalHMM):
        expected = hf.categorical_log_prob(x, model.log_probs)
    else:
        last = (model.means, model.covariances)
        form = {"covariance_type": model.covariance_type}
        if isinstance(model, MixtureGaussianHMM):
            expected = hf.gmm_log_likelihood(x, model.log_weights, *last, **form)
        else:
            expected = hf.gaussian_log_prob(x, *last, **form)
    close(found, expected)


@given(data=st.data())
def test_each_sequence_for_itself(data):
    model = data.draw(modules())
    x, lengths = data.draw(batches(model))
    together = model(x, lengths)
    for index in np.ndindex(*together.shape):
        one = x[index] if lengths is None else x[index][: int(lengths[index])]
        close(together[index], model(one))


@given(data=st.data())
def test_assigned_values_are_read_back(data):
    """Reading every constrained value and assigning it to a fresh module gives the same module."""
    model = data.draw(modules(missing="raise"))
    x, lengths = data.draw(batches(model))
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for p in twin.parameters():
            p.normal_()
    for name in ("log_initial", "log_transition", "means", "covariances", "log_weights", "log_probs"):
        if hasattr(model, name):
            setattr(twin, name, getattr(model, name))
            torch.testing.assert_close(getattr(twin, name), getattr(model, name), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(twin(x, lengths), model(x, lengths), rtol=1e-9, atol=1e-9)


@given(data=st.data())
def test_state_travels(data):
    model = data.draw(modules())
    x, lengths = data.draw(batches(model))
    expected = model(x, lengths)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for part in other.state_dict().values():
            part.zero_()
    other.load_state_dict(model.state_dict())
    for twin in (other, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x, lengths), expected)


@given(data=st.data(), seed=seeds, lr=st.sampled_from([1e-3, 1.0, 1e3]))
def test_any_step_leaves_a_model(data, seed, lr):
    """SGD along random gradients: rows sum to one, zeros stay zeros, covariances are positive definite."""
    model = data.draw(modules(missing="raise")).to(data.draw(st.sampled_from([torch.float32, torch.float64])))
    zeros = [part.log_initial.isneginf() for part in (model,)] + [model.log_transition.isneginf()]
    optimiser = torch.optim.SGD(model.parameters(), lr=lr)
    torch.manual_seed(seed)
    for _ in range(2):
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        optimiser.step()
    for name in ("log_initial", "log_transition", "log_weights", "log_probs"):
        if hasattr(model, name):
            total = getattr(model, name).exp().sum(-1)
            torch.testing.assert_close(total, torch.ones_like(total))
    assert torch.equal(model.log_initial.isneginf(), zeros[0])
    assert torch.equal(model.log_transition.isneginf(), zeros[1])
    if hasattr(model, "covariances"):
        covariances = model.covariances
        if model.covariance_type in ("full", "tied"):
            assert (torch.linalg.cholesky_ex(covariances).info == 0).all()
        else:
            assert (covariances > 0).all()
        assert covariances.isfinite().all()
    if not isinstance(model, HMMPyTorch):
        _, x = model.sample(5, 2, torch.Generator().manual_seed(0))
        assert not model(x).isnan().any()


@given(data=st.data(), seed=seeds)
def test_a_gradient_step_raises_the_likelihood(data, seed):
    model = data.draw(modules(missing="raise"))
    x, lengths = data.draw(batches(model))
    value = model(x, lengths).mean()
    before = [p.detach().clone() for p in model.parameters()]
    gradients = torch.autograd.grad(value, list(model.parameters()), allow_unused=True)
    norm = sum((g.square().sum() for g in gradients if g is not None), torch.zeros(())).sqrt()
    if norm < 1e-6:
        return
    for exponent in range(3, 12):  # along the gradient it rises, if the step is short enough
        with torch.no_grad():
            for p, old, g in zip(model.parameters(), before, gradients, strict=True):
                p.copy_(old if g is None else old + 10.0**-exponent * g / norm)
            if model(x, lengths).mean() > value:
                return
    pytest.fail("no step along the gradient raises the likelihood")


@given(data=st.data(), overlap=st.integers(0, 9), decode=st.sampled_from(["posterior", "filter"]))
def test_streams_are_the_whole(data, overlap, decode):
    model = data.draw(modules())
    rng = torch.Generator().manual_seed(data.draw(seeds))
    num_steps = data.draw(st.integers(1, 16))
    if isinstance(model, CategoricalHMM):
        x = torch.randint(model.num_symbols, (num_steps,), generator=rng)
    else:
        x = torch.randn(num_steps, *model.frame_shape, generator=rng, dtype=torch.float64)
    processor = StreamingHMMProcessor(model, chunk_size=4, overlap=overlap, decode=decode)
    rows, taken, given = [], 0, 0
    lag = 0 if decode == "filter" else overlap
    for part in torch.split(x, data.draw(cuts(num_steps))):
        found = processor.process_chunk(part)
        taken += len(part)
        given += 0 if found is None else len(found)
        assert given == max(taken - lag, 0)
        rows.append(found)
    rows.append(processor.flush())
    whole = torch.cat([part for part in rows if part is not None])
    arguments = (*chain(model), model.emission_log_prob(x))
    expected = hf.forward(*arguments).log_filtered if lag == 0 else hf.smooth_fixed_lag(*arguments, lag=lag)
    close(whole, expected.exp())


@given(data=st.data(), seed=seeds, width=st.integers(1, 3), topology=st.sampled_from(TOPOLOGIES))
def test_layers_mix_the_means_of_states(data, seed, width, topology):
    torch.manual_seed(seed)
    num_states, num_steps = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 6))
    layer = HMMLayer(num_states, feature_dim=width, topology=topology).double()
    features = torch.randn(2, num_steps, width, dtype=torch.float64)
    lengths = torch.randint(1, num_steps + 1, (2,))
    aligned, posteriors = layer(features, lengths)
    close(posteriors, layer.hmm.forward_backward(layer.scores(features), lengths)[0])
    occupancy = posteriors.sum(1)
    means = torch.einsum("btk,btf->bkf", posteriors, features) / occupancy.clamp_min(1e-300)[..., None]
    close(aligned, posteriors @ means)
    # what is aligned keeps the sequence's sum
    kept = torch.arange(num_steps) < lengths[:, None]
    close(aligned.sum(1), (features * kept[..., None]).sum(1))
