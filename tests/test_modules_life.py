"""What happens to modules: training, copies, devices and dtypes, autocast, compilation."""

from __future__ import annotations

import copy
import io
import pickle

import numpy as np
import pytest
import torch

import hmm_functional as hf
from pytorch_hmm import CategoricalHMM, GaussianHMM, HMMLayer, HMMPyTorch, MixtureGaussianHMM
from tests.test_modules import COVARIANCES, LENGTHS, kinds, models


def assert_valid(model):
    """Probabilities that sum to one, covariances with a Cholesky factor."""
    for name in ("log_initial", "log_transition", "log_weights", "log_probs"):
        if hasattr(model, name):
            p = getattr(model, name).exp()
            torch.testing.assert_close(p.sum(-1), torch.ones(p.shape[:-1]))
            assert (p >= 0).all()
    if hasattr(model, "covariances"):
        covariances = model.covariances
        assert covariances.isfinite().all()
        if model.covariance_type in ("full", "tied"):
            torch.testing.assert_close(covariances, covariances.mT)
            assert (torch.linalg.cholesky_ex(covariances).info == 0).all()
        else:
            assert (covariances > 0).all()


@pytest.mark.parametrize("dim", [2, 40])
@pytest.mark.parametrize("covariance_type", COVARIANCES)
def test_wild_steps_leave_a_model(covariance_type, dim):
    torch.manual_seed(0)
    model = MixtureGaussianHMM(3, dim, 2, covariance_type, topology="left_to_right")
    x = torch.randn(2, 5, dim)
    optimiser = torch.optim.SGD(model.parameters(), lr=1e3)
    for _ in range(3):
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        optimiser.step()
        assert_valid(model)
        value = model(x)
        assert not value.isnan().any()
        value.sum().backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())


def train(model, x, *, steps, lr, lengths=None, **options):
    optimiser = torch.optim.Adam(model.parameters(), lr=lr, **options)
    values = []
    for _ in range(steps):
        optimiser.zero_grad()
        loss = -model(x, lengths).mean()
        loss.backward()
        optimiser.step()
        values.append(-loss.item())
    return values


@pytest.mark.parametrize("covariance_type", COVARIANCES)
def test_training_raises_the_likelihood(covariance_type):
    torch.manual_seed(1)
    true = GaussianHMM(3, 2, covariance_type, means=[[-3.0, 0.0], [0.0, 3.0], [3.0, 0.0]], topology="ergodic")
    _, x = true.sample(40, 6)
    lengths = [40, 30, 20, 40, 10, 5]
    model = GaussianHMM(3, 2, covariance_type)
    values = train(model, x, steps=30, lr=0.05, lengths=lengths)
    assert values[-1] > values[0] + 5
    assert np.mean(np.diff(values) > 0) > 0.9
    assert_valid(model)


def test_structural_zeros_stay():
    torch.manual_seed(2)
    model = MixtureGaussianHMM(4, 2, 2, topology="left_to_right", weights=[[1.0, 0.0]] + [[0.5, 0.5]] * 3)
    train(model, torch.randn(4, 20, 2), steps=10, lr=1.0, weight_decay=0.1)
    expected = hf.left_to_right(4).isneginf()
    assert (model.log_transition.isneginf() == expected).all()
    assert model.log_initial.tolist() == [0.0] + [-float("inf")] * 3
    assert model.log_weights[0].tolist() == [0.0, -float("inf")]
    assert (model.log_transition[~expected] != hf.left_to_right(4)[~expected]).any()


def test_what_is_not_learnable_stays():
    torch.manual_seed(3)
    model = GaussianHMM(3, 1, transition=np.full((3, 3), 1 / 3), learnable=False)
    before = model.log_transition.clone()
    train(model, torch.randn(2, 9, 1), steps=3, lr=0.1)
    assert torch.equal(model.log_transition, before)
    model.initialize_from_data(torch.randn(2, 9, 1))
    assert torch.equal(model.log_transition, before)


@pytest.mark.parametrize("covariance_type", COVARIANCES)
def test_start_from_data_in_order(covariance_type):
    """Equal parts of left-to-right sequences are found, and both of each part's clusters."""
    rng = torch.Generator().manual_seed(4)
    centres = torch.tensor([[-8.0, 0.0], [0.0, 8.0], [8.0, 0.0]])
    part = torch.arange(30) // 10
    side = torch.randint(2, (4, 30), generator=rng)
    offset = torch.stack([torch.zeros(4, 30), 4.0 * side - 2.0], -1)
    x = centres[part] + offset + 0.5 * torch.randn(4, 30, 2, generator=rng)
    model = MixtureGaussianHMM(3, 2, 2, covariance_type, topology="left_to_right")
    start = model(x).mean()
    assert model.initialize_from_data(x) is model
    found = model.means.detach()
    found = found.gather(1, found[..., 1:].argsort(1).expand_as(found))
    expected = torch.stack([centres, centres], 1) + torch.tensor([[0.0, -2.0], [0.0, 2.0]])
    torch.testing.assert_close(found, expected, rtol=0, atol=0.5)
    assert (model.viterbi_decode(x)[0] == part).all()
    assert model(x).mean() > start + 100
    assert (model.log_transition.isneginf() == hf.left_to_right(3).isneginf()).all()
    assert model.log_transition[0, 0].exp().item() == pytest.approx(37 / 42)  # 36 stays, 4 moves, one more of each
    values = train(model, x, steps=10, lr=0.01)
    assert values[-1] > values[0]


def test_start_from_data_without_order():
    torch.manual_seed(5)
    centres = torch.tensor([[-10.0, 0.0], [0.0, 0.01], [10.0, 0.02]])  # the second feature has another unit
    states = torch.randint(3, (5, 40))
    x = centres[states] + torch.tensor([1.0, 0.001]) * torch.randn(5, 40, 2)
    x[0, 3] = torch.nan
    model = GaussianHMM(3, 2, missing="nan", topology="ergodic")
    model.initialize_from_data(x, [40, 40, 40, 20, 1], generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.means.detach().sort(0).values, centres, rtol=0, atol=0.4)
    again = GaussianHMM(3, 2, missing="nan", topology="ergodic")
    again.initialize_from_data(x, [40, 40, 40, 20, 1], generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(again.means, model.means)


def test_start_from_symbols():
    x = torch.tensor([[0, 0, 0, 1, 2, 2, 2, 2], [0, 0, 3, 3, -1, -1, -1, -1]])
    model = CategoricalHMM(2, 4, topology="left_to_right").initialize_from_data(x, [8, 4])
    expected = torch.tensor([[6.0, 2.0, 1.0, 1.0], [1.0, 1.0, 5.0, 3.0]])
    torch.testing.assert_close(model.log_probs.exp(), expected / expected.sum(-1, keepdim=True))
    ergodic = CategoricalHMM(2, 4).initialize_from_data(x, [8, 4], generator=torch.Generator().manual_seed(1))
    assert (ergodic.log_probs[0] != ergodic.log_probs[1]).any()
    assert_valid(ergodic)


@pytest.mark.parametrize("covariance_type", COVARIANCES)
def test_start_from_poor_data(covariance_type):
    """Constant features, fewer frames than states, fewer than components: valid, and it can be trained."""
    for x in (torch.zeros(1, 6, 2), torch.randn(1, 2, 2), torch.full((2, 3, 2), 1e4)):
        for topology in ("left_to_right", "ergodic"):
            model = MixtureGaussianHMM(3, 2, 4, covariance_type, topology=topology).initialize_from_data(x)
            assert_valid(model)
            value = model(x).sum()
            value.backward()
            assert value.isfinite()
            assert all(p.grad.isfinite().all() for p in model.parameters())


@kinds
def test_copies(kind):
    model, x = models()[kind]
    model.log_initial = torch.tensor([0.5, 0.5, 0.0]).log()
    expected = model(x, LENGTHS)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(twin(x, LENGTHS), expected, rtol=0, atol=0)
        twin.log_initial = torch.tensor([1.0, 0.0, 0.0]).log()
    torch.testing.assert_close(model(x, LENGTHS), expected, rtol=0, atol=0)
    torch.manual_seed(9)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other, _ = models()[kind]
    other.load_state_dict(torch.load(file, weights_only=True))
    torch.testing.assert_close(other(x, LENGTHS), expected, rtol=0, atol=0)
    assert other.log_initial[2] == -torch.inf  # the zeros' mask travels


@kinds
def test_double(kind):
    model, x = models()[kind]
    single = model(x, LENGTHS)
    model.double()
    if x.is_floating_point():
        x = x.double()
    assert model(x, LENGTHS).dtype == torch.float64
    torch.testing.assert_close(model(x, LENGTHS).float(), single)
    assert model.forward_backward(x)[0].dtype == torch.float64


@kinds
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(kind, dtype):
    """Scores and recursions are those of float32, from float32 inputs and from half ones."""
    model, x = models()[kind]
    rounded = x.to(dtype).float() if x.is_floating_point() else x
    half = x.to(dtype) if x.is_floating_point() else x
    with torch.autocast("cpu", dtype=dtype):
        value, from_half = model(x, LENGTHS), model(half, LENGTHS)
        posteriors, _ = model.forward_backward(half)
        scores = model.viterbi_decode(half)[1]
    torch.testing.assert_close(value, model(x, LENGTHS), rtol=0, atol=0)
    torch.testing.assert_close(from_half, model(rounded, LENGTHS), rtol=0, atol=0)
    assert posteriors.dtype == scores.dtype == value.dtype == torch.float32
    value.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_half_parameters():
    model = GaussianHMM(2, 3, "full").half()
    assert model(torch.randn(4, 3).half()).dtype == torch.float32
    assert model.covariances.dtype == model.log_transition.dtype == torch.float32


def test_layer_under_autocast():
    layer = HMMLayer(3, feature_dim=4)
    x = torch.randn(2, 6, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        aligned, posteriors = layer(x)
        halves = layer(x.bfloat16())
    assert aligned.dtype == posteriors.dtype == torch.float32
    assert halves[0].dtype == torch.bfloat16
    assert halves[1].dtype == torch.float32
    torch.testing.assert_close(posteriors.sum(-1), torch.ones(2, 6))


@kinds
def test_compiled(kind):
    model, x = models()[kind]
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    lengths = torch.tensor(LENGTHS)
    torch.testing.assert_close(compiled(x, lengths), model(x, lengths))
    compiled(x, lengths).sum().backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model(x, lengths).sum().backward()
    torch.testing.assert_close([p.grad for p in model.parameters()], gradients)


def test_compiled_methods():
    torch.compiler.reset()
    model, x = models()["mixture"]
    for method in (model.forward_backward, model.viterbi_decode):
        torch.testing.assert_close(torch.compile(method, backend="aot_eager", fullgraph=True)(x), method(x))
    layer = HMMLayer(3, feature_dim=2)
    torch.testing.assert_close(torch.compile(layer, backend="aot_eager", fullgraph=True)(x), layer(x))


def test_values_are_not_read_while_traced():
    model, x = models()["gaussian"]
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert compiled(torch.full_like(x, torch.nan)).isnan().all()
    assert torch.func.vmap(lambda one: model(one))(torch.full_like(x, torch.nan)).isnan().all()
    torch.testing.assert_close(torch.func.vmap(lambda one: model(one))(x), model(x))


def test_functional_call():
    model, x = models()["mixture"]
    parameters = dict(model.named_parameters())

    def loss(parameters):
        return -torch.func.functional_call(model, parameters, (x, torch.tensor(LENGTHS))).mean()

    found = torch.func.grad(loss)(parameters)
    loss(parameters).backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(found[name], p.grad)


@pytest.mark.parametrize("covariance_type", COVARIANCES)
def test_gradients(covariance_type):
    torch.manual_seed(6)
    model = MixtureGaussianHMM(2, 2, 2, covariance_type, topology="left_to_right").double()
    x = torch.randn(2, 4, 2, dtype=torch.float64)
    names, values = zip(*model.named_parameters(), strict=True)

    def value(*parameters):
        return torch.func.functional_call(model, dict(zip(names, parameters, strict=True)), (x, torch.tensor([4, 2])))

    assert torch.autograd.gradcheck(value, values)


def test_lazy_layer():
    torch.manual_seed(7)
    layer = HMMLayer(3).double().to("cpu")
    assert isinstance(layer.scores, torch.nn.LazyLinear)
    empty = copy.deepcopy(layer).state_dict()
    x = torch.randn(2, 6, 4, dtype=torch.float64)
    aligned, posteriors = layer(x)
    assert aligned.dtype == torch.float64
    assert layer.scores.in_features == 4
    (aligned.sum() + posteriors.square().sum()).backward()
    assert all(p.grad is not None for p in layer.parameters())
    assert all(p.grad.isfinite().all() for p in layer.parameters())
    fresh = HMMLayer(3)
    fresh.load_state_dict(layer.state_dict())  # a materialised state into a lazy layer
    torch.testing.assert_close(fresh(x.float())[1], posteriors.float())
    HMMLayer(3).load_state_dict(empty)  # a lazy one into a lazy one
    for twin in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)):
        torch.testing.assert_close(twin(x)[0], aligned, rtol=0, atol=0)
    unseen = pickle.loads(pickle.dumps(HMMLayer(3)))
    assert unseen(x.float())[0].shape == x.shape


def test_layer_gradients():
    torch.manual_seed(8)
    layer = HMMLayer(3, feature_dim=2).double()
    x = torch.randn(2, 4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: layer(x, [4, 2]), (x,))


def test_layer_is_finite_where_states_are_hardly_visited():
    layer = HMMLayer(3, feature_dim=1, topology="ergodic")
    with torch.no_grad():
        layer.scores.weight.copy_(torch.tensor([[0.0], [100.0], [3e4]]))
    x = torch.rand(1, 50, 1).requires_grad_()
    aligned, posteriors = layer(x)
    (aligned.square().sum() + posteriors.square().sum()).backward()
    assert x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


def test_scripting_fails_cleanly():
    """The guide tries torch.jit.script and goes on without it."""
    with pytest.raises(Exception), pytest.warns():  # noqa: B017, PT011
        torch.jit.script(HMMPyTorch(2))
