"""Neural HMMs: what they equal, what they draw, what they learn, what they keep, and what they refuse."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.utils.data import DataLoader

import hmm_functional as hf
from pytorch_hmm import (
    BaseHMM,
    Batch,
    ContextualNeuralHMM,
    GaussianHMM,
    LinearRegressionHMM,
    NeuralHMM,
    NotConverged,
    StreamingHMMProcessor,
    StudentTHMM,
    pseudo_residuals,
    select_num_states,
    standard_errors,
    to_dynamax,
    to_hmmlearn,
    to_pomegranate,
)
from pytorch_hmm.networks import join


def shaken(model, size=0.3, seed=0):
    """A model whose networks are away from their start."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p += size * torch.randn(p.shape, generator=rng)
    return model


class Fixed(nn.Module):
    """The same numbers in every frame, or by the sign of the context."""

    def __init__(self, *values):
        super().__init__()
        self.values = nn.Parameter(torch.tensor(values))

    def forward(self, frames):
        if frames.shape[-1] == 0:
            return self.values[0].expand(*frames.shape[:-1], *self.values.shape[1:])
        return self.values[(frames[..., 0] > 0).long()]


PLAIN = {
    "ergodic": (
        GaussianHMM,
        {"initial": [0.2, 0.5, 0.3], "transition": [[0.7, 0.2, 0.1], [0, 0.5, 0.5], [0.3, 0, 0.7]]},
    ),
    "left_to_right": (GaussianHMM, {"topology": "left_to_right", "self_loop": 0.8}),
    "student t": (StudentTHMM, {"topology": "ergodic", "self_loop": 0.7}),
}


@pytest.mark.parametrize("form", PLAIN)
def test_without_networks_it_is_the_plain_model(form):
    cls, options = PLAIN[form]
    torch.manual_seed(0)
    plain = cls(3, 2, **options)
    own = {"has_end": False} if form == "left_to_right" else {}
    model = NeuralHMM(3, 2, density="student_t" if cls is StudentTHMM else "gaussian", **own, **options)
    model.means, model.covariances = plain.means, plain.covariances = torch.randn(3, 2), torch.rand(3, 2) + 0.5
    x, lengths = torch.randn(4, 9, 2), [9, 5, 7, 1]
    for name in ("forward", "log_prob", "filter", "emission_log_prob", "aic", "bic"):
        found, wanted = (getattr(one, name)(x, lengths) for one in (model, plain))
        assert torch.equal(found, wanted) or form == "left_to_right", name
        torch.testing.assert_close(found, wanted)
    for name in ("forward_backward", "viterbi_decode"):
        for found, wanted in zip(*(getattr(one, name)(x, lengths) for one in (model, plain)), strict=True):
            torch.testing.assert_close(found, wanted)
    assert model.num_free_parameters() == plain.num_free_parameters()


def test_an_untrained_network_changes_nothing():
    torch.manual_seed(0)
    x, context = torch.randn(2, 6, 2), torch.randn(2, 6, 3)
    for kind in ("linear", "mlp", "gru"):
        kinds = {"transition_network": kind, "emission_network": kind}
        model = NeuralHMM(3, 2, 3, 8, variance_floor=0.0, autoregressive=True, **kinds)
        plain = GaussianHMM(3, 2, means=model.means)
        torch.testing.assert_close(model(x, None, context), plain(x))


def test_linear_autoregression_is_the_regression_model():
    rng = np.random.default_rng(0)
    plain = LinearRegressionHMM(2, 2, num_lags=2, input_dim=1, covariance_type="diag").double()
    plain.weights, plain.biases = rng.normal(size=(2, 2, 5)), rng.normal(size=(2, 2))
    plain.covariances = rng.uniform(0.5, 2, size=(2, 2))
    options = {"transition_network": "constant", "emission_network": "linear", "variance_floor": 0.0}
    model = NeuralHMM(2, 2, 1, autoregressive=2, **options).double()
    model.means, model.covariances = plain.biases, plain.covariances
    with torch.no_grad():  # [context, x_{t-1}, x_{t-2}], and no widening
        model.emission_network.weights[:, :2] = plain.weights[..., [4, 0, 1, 2, 3]]
    x, u = torch.tensor(rng.normal(size=(3, 8, 2))), torch.tensor(rng.normal(size=(3, 8, 1)))
    torch.testing.assert_close(model(x, [8, 3, 5], u), plain(torch.cat([x, u], -1), [8, 3, 5]))


def test_an_utterance_has_its_length():
    """All states emit alike: what is left is the number of trials until K successes."""
    model = NeuralHMM(3, 1, topology="left_to_right", self_loop=0.6).double()
    model.means = torch.zeros(3, 1)
    for length in (1, 2, 3, 4, 9):
        x = torch.randn(length, 1, dtype=torch.float64)
        wanted = stats.nbinom.logpmf(length - 3, 3, 0.4) + stats.norm.logpdf(x.numpy()).sum()
        np.testing.assert_allclose(model(x).detach(), wanted, rtol=1e-6)


def test_drawn_lengths_follow_the_model():
    model = NeuralHMM(3, 1, topology="left_to_right", self_loop=0.6)
    states, x, lengths = model.sample(80, 4000, generator=torch.Generator().manual_seed(0))
    assert states.shape == x.shape[:2] == (4000, int(lengths.max()))
    bins = np.arange(3, 16)
    counts = np.array([(lengths == n).sum() for n in bins] + [(lengths > bins[-1]).sum()])
    chances = np.append(stats.nbinom.pmf(bins - 3, 3, 0.4), stats.nbinom.sf(bins[-1] - 3, 3, 0.4))
    assert stats.chisquare(counts, 4000 * chances).pvalue > 0.001
    is_read = torch.arange(x.shape[1]) < lengths[:, None]
    assert (states[~is_read] == -1).all()
    assert (x[~is_read] == 0).all()
    last = states.gather(1, lengths[:, None] - 1)
    assert (last == 2).all()
    assert (states[:, 0] == 0).all()


def test_utterances_that_go_on_are_cut():
    model = NeuralHMM(2, 1, topology="left_to_right", self_loop=0.999)
    states, x, lengths = model.sample(5, 3, generator=torch.Generator().manual_seed(0))
    assert lengths.tolist() == [5, 5, 5]
    assert x.shape == (3, 5, 1)
    assert [v.shape for v in model.sample(5)] == [(5,), (5, 1), ()]
    forever = NeuralHMM(2, 1, topology="left_to_right", has_end=False, self_loop=0.1)
    states, x = forever.sample(6, 50, generator=torch.Generator().manual_seed(0))
    assert (states.diff(dim=1) >= 0).all()
    assert states[:, -1].min() == 1


def test_drawn_states_and_frames_follow_the_model():
    """Transitions and densities that a context changes; frames that depend on the one before."""
    moves = Fixed([[2.0, 0.0], [0.0, 1.0]], [[-1.0, 0.5], [0.3, 0.0]])
    shifts = Fixed([[-1.0, 0.4], [1.0, 0.0]], [[2.0, -0.5], [0.0, 0.8]])
    options = {"transition_network": moves, "emission_network": shifts, "initial": [0.3, 0.7]}
    count, context = 20_000, torch.tensor([[-1.0], [1.0], [-1.0]])
    for density in ("gaussian", "student_t"):
        model = NeuralHMM(2, 1, 1, density=density, **options)
        model.means, model.covariances = [[0.5], [-0.5]], [[0.5], [2.0]]
        rng = torch.Generator().manual_seed(1)
        states, x = model.sample(3, count, rng, context=context.expand(count, 3, 1))
        log_move = (torch.full((2, 2), 0.5).log() + moves.values[[0, 1]]).double().softmax(-1).detach()
        joint = torch.tensor([0.3, 0.7]).double()[:, None, None] * log_move[0][:, :, None] * log_move[1][None]
        places = states[:, 0] * 4 + states[:, 1] * 2 + states[:, 2]
        assert stats.chisquare(torch.bincount(places, minlength=8), count * joint.flatten()).pvalue > 0.001
        for t, sign in enumerate((0, 1, 0)):
            for k in range(2):
                own = x[states[:, t] == k, t, 0].numpy()
                shift, widening = shifts.values[sign, k].tolist()
                mean = [0.5, -0.5][k] + shift
                spread = np.sqrt([0.5, 2.0][k] * np.exp(widening) + 1e-4)
                law = stats.norm(mean, spread) if density == "gaussian" else stats.t(5, mean, spread)
                assert stats.kstest(own, law.cdf).pvalue > 0.001


@pytest.mark.parametrize("kind", ["linear", "mlp", "gru"])
def test_autoregressive_draws_are_fed_back(kind):
    """The residuals of what was drawn, by the density of the same model, are standard normal."""
    torch.manual_seed(0)
    kinds = {"transition_network": "constant", "emission_network": kind}
    model = shaken(NeuralHMM(1, 1, 2, 4, autoregressive=2, **kinds).double(), 0.7)
    with torch.no_grad():
        model.centre.fill_(0.3)
        model.scale.fill_(1.5)
    context = torch.randn(2000, 6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    _, x = model.sample(6, 2000, torch.Generator().manual_seed(2), context=context)
    x.requires_grad_()
    scores = model.emission_log_prob(x, context=context)[..., 0]
    for t in range(6):  # log N has slope -(x - m) / v and curvature -1 / v
        (slope,) = torch.autograd.grad(scores[:, t].sum(), x, create_graph=True)
        (curve,) = torch.autograd.grad(slope[:, t].sum(), x, retain_graph=True)
        z = -slope[:, t, 0] / (-curve[:, t, 0]).sqrt()
        assert stats.kstest(z.detach().numpy(), "norm").pvalue > 0.001
    before = scores[:, -1].sum()
    (seen,) = torch.autograd.grad(before, x)
    assert (seen[:, 4] != 0).double().mean() > 0.25  # where no rectifier is shut


def test_states_of_an_encoder():
    """Sentences of 4, 2 and 3 states in one batch; each alone is the same, and so are models of fixed states."""
    torch.manual_seed(0)
    options = {"topology": "left_to_right", "autoregressive": True}
    model = shaken(NeuralHMM(6, 2, None, 8, state_dim=5, **options))
    states, counts, lengths = torch.randn(3, 4, 5), [4, 2, 3], [9, 9, 5]
    x = torch.randn(3, 9, 2)
    inputs = {"state_context": states.requires_grad_(), "state_lengths": counts}
    found = model(x, lengths, **inputs)
    found.sum().backward()
    assert (states.grad[1, 2:] == 0).all()
    assert (states.grad[1, :2] != 0).any()
    alone = NeuralHMM(3, 2, None, 8, **options)
    with torch.no_grad():  # learned vectors in the place of given ones
        for name in ("transition_network", "emission_network"):
            own, given = getattr(alone, name), getattr(model, name)
            own.load_state_dict({k: v for k, v in given.state_dict().items() if "reader" not in k}, strict=False)
            own.learned.copy_(given.reader(states[2, :3]))
        alone.means, alone.covariances = model.means.expand(3, 2), model.covariances.expand(3, 2)
        alone.transition = model.transition.expand(3, 2)
    torch.testing.assert_close(found[2], alone(x[2, :5]))
    paths, _ = model.viterbi_decode(x, lengths, **inputs)
    assert [int(paths[i, n - 1]) for i, n in enumerate(lengths)] == [3, 1, 2]
    drawn, _, ends = model.sample(200, 3, torch.Generator().manual_seed(0), **inputs)
    assert [int(drawn[i, n - 1]) for i, n in enumerate(ends)] == [3, 1, 2]
    forever = NeuralHMM(6, 2, None, 8, state_dim=5, has_end=False, **options)
    drawn, _ = forever.sample(60, 3, torch.Generator().manual_seed(0), **inputs)
    assert drawn[:, -1].tolist() == [3, 1, 2]
    posteriors, likelihood = forever.forward_backward(x, lengths, **inputs)
    assert likelihood.isfinite().all()
    assert (posteriors[1, :, 2:] == 0).all()


def utterances(seed=0):
    """Frames that follow a context, and the frame before."""
    rng = torch.Generator().manual_seed(seed)
    context = torch.randn(12, 20, 2, generator=rng)
    x = torch.zeros(12, 20, 1)
    for t in range(20):
        x[:, t] = 0.5 * x[:, t - 1] * (t > 0) + context[:, t, :1].sin() + 0.2 * torch.randn(12, 1, generator=rng)
    return 3.0 * x + 50.0, context, torch.randint(10, 21, (12,), generator=rng)


@pytest.mark.parametrize("topology", ["ergodic", "left_to_right"])
def test_fit_raises_the_likelihood(topology):
    torch.manual_seed(0)
    x, context, lengths = utterances()
    model = NeuralHMM(2, 1, 2, 16, topology=topology, autoregressive=True)
    told = []
    report = model.fit(
        x, lengths, context=context, num_iterations=40, tolerance=0, learning_rate=0.03, callbacks=[told.append]
    )
    assert len(report.history) == 41
    assert [one.iteration for one in told] == list(range(40))
    assert told[0].model is model
    assert report.log_likelihood == pytest.approx(float(model(x, lengths, context).detach().double().sum()), rel=1e-6)
    assert report.dead_states == []
    plain = GaussianHMM(2, 1, topology=topology)
    if topology == "ergodic":  # what the start has without networks
        assert plain.fit(x, lengths, num_iterations=20, tolerance=0).log_likelihood < report.log_likelihood - 100
    assert report.log_likelihood > report.history[0] + 100
    again = model.fit(x, lengths, context=context, init="keep", num_iterations=0)
    assert again.history == [pytest.approx(report.log_likelihood, rel=1e-6)]


def test_fit_takes_tensors_lists_and_loaders():
    x, context, lengths = utterances()
    lists = [x[i, :n] for i, n in enumerate(lengths)], [context[i, :n] for i, n in enumerate(lengths)]
    options = {"num_iterations": 3, "tolerance": 0, "learning_rate": 0.01, "init": "keep"}
    found = []
    for start in range(4):
        torch.manual_seed(0)
        model = shaken(NeuralHMM(2, 1, 2, 4))
        if start == 0:
            report = model.fit(x, lengths, context=context, **options)
        elif start == 1:
            report = model.fit(lists[0], context=lists[1], **options)
        elif start == 2:
            report = model.fit([(x, lengths, {"context": context})], **options)
        else:
            report = model.fit([Batch(x, lengths, torch.ones(12), None, {"context": context})], **options)
        found.append(report.history)
    for history in found[1:]:
        np.testing.assert_allclose(history, found[0], rtol=1e-5)

    def collate(items):
        return torch.stack([a for a, _ in items]), None, {"context": torch.stack([c for _, c in items])}

    data = list(zip(x, context, strict=True))
    loader = DataLoader(data, batch_size=5, shuffle=True, collate_fn=collate)
    report = NeuralHMM(2, 1, 2, 4).fit(loader, num_iterations=8, tolerance=0, learning_rate=0.01)
    assert report.history[-1] > report.history[0]
    with pytest.warns(NotConverged):
        NeuralHMM(2, 1, 2, 4).fit(x, context=context, num_iterations=2, tolerance=1e-9)


def test_fit_takes_one_sequence_alone():
    torch.manual_seed(0)
    x = torch.randn(30, 1)
    model = NeuralHMM(2, 1)
    report = model.fit(x, num_iterations=1, tolerance=0)
    assert report.log_likelihood == pytest.approx(float(model(x).detach()), rel=1e-5)
    assert report.dead_states == []


def test_utterances_of_a_list_have_states_of_their_own():
    torch.manual_seed(0)
    x, states = [torch.randn(n, 1) for n in (20, 12, 16)], [torch.randn(n, 3) for n in (7, 4, 5)]
    model = NeuralHMM(9, 1, None, 4, topology="left_to_right", state_dim=3)
    report = model.fit(x, state_context=states, num_iterations=2, tolerance=0)
    alone = [float(model(a, state_context=y).detach()) for a, y in zip(x, states, strict=True)]
    assert report.log_likelihood == pytest.approx(sum(alone), rel=1e-5)
    options = {"num_iterations": 0, "init": "keep"}
    fewer = model.fit(x, state_context=states, state_lengths=[2, 2, 2], **options)
    alone = [float(model(a, state_context=y[:2]).detach()) for a, y in zip(x, states, strict=True)]
    assert fewer.log_likelihood == pytest.approx(sum(alone), rel=1e-5)
    with pytest.raises(ValueError, match=r"state_lengths\[1\]: expected at most the 4 states of its own, got 5"):
        model.fit(x, state_context=states, state_lengths=[7, 5, 5], **options)


def test_a_start_pairs_utterances_and_states_of_a_loader_that_shuffles(monkeypatch):
    counts = [1, 2, 3, 4, 5, 6]
    passes = []

    class Shuffled:
        """Another order each time."""

        def __iter__(self):
            passes.append(len(passes))
            for n in counts[len(passes) :] + counts[: len(passes)]:
                yield torch.randn(3 * n, 1), None, {"state_context": torch.randn(n, 2)}

    torch.manual_seed(0)
    model = NeuralHMM(6, 1, None, 4, topology="left_to_right", state_dim=2)
    begin, given = model.initialize_from_data, []

    def spy(x, ends, *, state_lengths=None, generator=None):
        given.append((ends, state_lengths))
        return begin(x, ends, state_lengths=state_lengths, generator=generator)

    monkeypatch.setattr(model, "initialize_from_data", spy)
    model.fit(Shuffled(), num_iterations=0, tolerance=0)
    ((ends, found),) = given
    assert ends.tolist() == [3 * n for n in found.tolist()]
    assert sorted(found.tolist()) == counts
    assert len(passes) == 2  # for the start, and the end


def test_contexts_of_a_list_are_as_long_as_their_sequences():
    x = [torch.randn(n, 1) for n in (12, 9)]
    model = NeuralHMM(2, 1, 3, 4)
    options = {"num_iterations": 0, "tolerance": 0}
    with pytest.raises(ValueError, match=r"context\[1\]: expected one for each of 9 frames, got shape \(5, 3\)"):
        model.fit(x, context=[torch.randn(12, 3), torch.randn(5, 3)], **options)
    with pytest.raises(ValueError, match=r"context\[1\]: expected one a sequence, as the first, got shape \(9, 3\)"):
        model.fit(x, context=[torch.randn(3), torch.randn(9, 3)], **options)
    model.fit(x, context=[torch.randn(3), torch.randn(3)], **options)
    phonemes = ContextualNeuralHMM(2, 1, 5, prosody_dim=2, hidden_dim=4)
    given = {"phonemes": [torch.ones(12).long(), torch.ones(5).long()], "prosody": [torch.randn(2), torch.randn(2)]}
    with pytest.raises(ValueError, match=r"phonemes\[1\]: expected one for each of 9 frames, got shape \(5,\)"):
        phonemes.fit(x, **given, **options)
    given["phonemes"][1] = torch.ones(9).long()
    phonemes.fit(x, **given, **options)


def test_weights_and_utterances_of_an_encoder_are_learned():
    x, _, lengths = utterances()
    torch.manual_seed(0)
    states, counts = torch.randn(12, 5, 3), torch.randint(2, 6, (12,))
    model = NeuralHMM(9, 1, None, 8, topology="left_to_right", autoregressive=True, state_dim=3)
    inputs = {"state_context": states, "state_lengths": counts}
    model.initialize_from_data(x, lengths, state_lengths=counts)
    going_on = float(model.transition[0, 1].detach())
    assert going_on == pytest.approx((int(counts.sum()) + 1) / (int(lengths.sum()) + 2), rel=1e-5)
    weights = torch.tensor([1.0] * 6 + [0.0] * 6)
    options = {"num_iterations": 15, "tolerance": 0, "learning_rate": 0.01}
    report = model.fit(x, lengths, sample_weights=weights, **inputs, **options)
    assert report.history[-1] > report.history[0]
    assert report.log_likelihood == pytest.approx(float(model(x, lengths, **inputs)[:6].sum().detach()), rel=1e-5)


def test_the_history_is_that_of_whole_networks():
    """With dropout, too, each entry is what the model scores in eval mode before the pass, and the best is kept."""
    x, context, lengths = utterances()
    torch.manual_seed(0)
    model = shaken(NeuralHMM(2, 1, 2, 8, autoregressive=True, dropout=0.5))
    seen = []

    def note(progress):
        progress.model.eval()
        seen.append(float(progress.model(x, lengths, context).detach().sum()))
        progress.model.train()

    model.initialize_from_data(x, lengths)
    shaken(model)
    options = {"num_iterations": 6, "tolerance": 0, "learning_rate": 0.3, "init": "keep"}
    report = model.fit(x, lengths, context=context, callbacks=[note], **options)
    assert model.training
    np.testing.assert_allclose(report.history[1:6], seen[:5], rtol=1e-5)
    model.eval()
    kept = float(model(x, lengths, context).detach().sum())
    assert kept == pytest.approx(max(*report.history, *seen), rel=1e-5)
    assert report.log_likelihood == pytest.approx(kept, rel=1e-5)


def test_a_start_is_that_of_the_parts():
    torch.manual_seed(0)
    x = torch.cat([torch.full((6, 1), 10.0), torch.full((6, 1), 30.0)]) + 0.1 * torch.randn(12, 1)
    model = shaken(NeuralHMM(2, 1, 1, 4, topology="left_to_right"))
    model.initialize_from_data(x)
    torch.testing.assert_close(model.means.detach(), torch.tensor([[10.0], [30.0]]), rtol=0.2, atol=0)
    torch.testing.assert_close(model.centre, x.mean(0))
    torch.testing.assert_close(model.scale, x.std(0, correction=0))
    # five stays and one step of each, one added to both
    torch.testing.assert_close(model.transition.detach(), torch.tensor([[6.0, 2.0]] * 2) / 8)
    constant = NeuralHMM(2, 1, topology="left_to_right")
    constant.load_state_dict(model.state_dict(), strict=False)
    torch.testing.assert_close(model(x, None, torch.randn(12, 1)), constant(x), rtol=1e-2, atol=0)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"context_dim": 3, "transition_network": "linear", "emission_network": "gru", "density": "student_t"},
        {"context_dim": 3, "topology": "left_to_right", "autoregressive": 2, "hidden_dim": 8, "missing": "raise"},
        {"topology": "left_to_right", "state_dim": 4, "has_end": False, "hidden_dim": 8},
        {"context_dim": 3, "transition": [[0.5, 0.5], [0.0, 1.0]], "learnable": False, "missing": "nan"},
    ],
)
def test_what_is_saved_is_loaded(tmp_path, options):
    torch.manual_seed(0)
    model = shaken(NeuralHMM(2, 2, **options)).double()
    x = torch.randn(3, 6, 2).double()
    model.initialize_from_data(x)
    model = shaken(model)
    inputs = {"context": torch.randn(3, 6, 3).double()} if model.context_dim else {}
    if model.state_dim:
        inputs["state_context"] = torch.randn(3, 2, 4).double()
    path = tmp_path / "model.safetensors"
    model.save(path)
    found = BaseHMM.load(path)
    assert repr(found) == repr(model)
    assert torch.equal(found(x, **inputs), model(x, **inputs))
    assert found.num_free_parameters() == model.num_free_parameters()
    assert (found.learnable, found.missing) == (model.learnable, model.missing)


def test_a_contextual_model_is_saved_and_one_with_own_modules_is_not(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "model.safetensors"
    model = shaken(ContextualNeuralHMM(2, 2, 7, 3, embedding_dim=4, hidden_dim=8))
    model.save(path)
    inputs = {"phonemes": torch.randint(7, (3, 5)), "linguistic": torch.randn(3, 3)}
    x = torch.randn(3, 5, 2)
    assert torch.equal(ContextualNeuralHMM.load(path)(x, **inputs), model(x, **inputs))
    own = NeuralHMM(2, 2, emission_network=Fixed([[0.0, 0.0], [1.0, 1.0]]))
    with pytest.raises(ValueError, match="emission_network: expected a network made here to save, got a Fixed"):
        own.save(path)
    again = NeuralHMM(2, 2, emission_network=Fixed([[5.0, 0.0], [1.0, 1.0]]))
    again.load_state_dict(own.state_dict())
    assert torch.equal(again(x), own(x))


def test_unobserved_frames_are_left_out():
    torch.manual_seed(0)
    model = shaken(NeuralHMM(2, 2, 1, 4, missing="nan"))
    x, context = torch.randn(7, 2), torch.randn(7, 1)
    emission = model.emission_log_prob(x, context=context)
    x[3, 1] = torch.nan
    found = model.emission_log_prob(x, context=context)
    assert (found[3] == 0).all()
    assert torch.equal(found[:3], emission[:3])
    arguments = model.chain_arguments(x, context=context)
    torch.testing.assert_close(hf.log_likelihood(**arguments), model(x, context=context))
    assert hf.viterbi_k_best(**arguments, k=2).states.shape == (2, 7)


def test_autocast_and_half_precision():
    torch.manual_seed(0)
    x, context = torch.randn(2, 8, 4), torch.randn(2, 8, 3)
    for kind in ("mlp", "gru"):
        model = shaken(NeuralHMM(3, 4, 3, 16, transition_network=kind, emission_network=kind, autoregressive=True), 0.1)
        wanted = model(x, None, context)
        for workspace in (1, 2**30):
            model.workspace = workspace
            model.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                found = model(x, None, context)
            found.sum().backward()
            assert found.dtype == torch.float32
            torch.testing.assert_close(found, wanted, rtol=2e-2, atol=0)
            assert not torch.equal(found, wanted)
            assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
        half = model.to(torch.bfloat16)(x, None, context)
        assert half.dtype == torch.float32
        torch.testing.assert_close(half, wanted, rtol=5e-2, atol=0)


class Dropped(nn.Module):
    """Drops what it sees by chance."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.5), nn.Linear(4, 2), nn.Unflatten(-1, (2, 1)))

    def forward(self, frames):
        return self.inner(frames)


def test_pieces_are_made_again_by_the_same_chance():
    torch.manual_seed(0)
    model = NeuralHMM(2, 1, 2, emission_network=Dropped(), transition_network="constant").double()
    model.workspace = 1
    x, context = torch.randn(1, 5, 1).double(), torch.randn(1, 5, 2).double().requires_grad_()

    def value(context):
        torch.manual_seed(3)
        return model(x, context=context)

    torch.manual_seed(5)
    state = torch.get_rng_state()
    assert torch.autograd.gradcheck(value, (context,))
    found = value(context)
    after = torch.get_rng_state()
    found.backward()
    assert torch.equal(torch.get_rng_state(), after)
    assert not torch.equal(after, state)


def test_hidden_gradients_are_refused():
    class Hidden(Fixed):
        def forward(self, frames):
            return super().forward(frames) + hidden

    hidden = torch.ones((), requires_grad=True)
    model = NeuralHMM(2, 1, emission_network=Hidden([[0.0], [1.0]]), autoregressive=True)
    model.workspace = 1
    with pytest.raises(ValueError, match="expected gradients for its arguments alone"):
        model(torch.randn(5, 1))


MEMORY = """
    import torch
    from pytorch_hmm import NeuralHMM
    from tests.helpers.memory import peak
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = NeuralHMM(40, 40, hidden_dim=64, topology="left_to_right", autoregressive=True)
    model.workspace = {workspace}
    x = torch.randn(8, 400, 40)
    (-model(x[:1, :60]).mean()).backward()
    model.zero_grad()
    before = peak()
    (-model(x).mean()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    print(peak() - before)
"""


def test_one_part_alone_is_not_copied():
    past = torch.randn(2, 5, 3)
    assert join(torch.zeros(1, 0), past).data_ptr() == past.data_ptr()
    assert join(torch.zeros(1, 0)).shape == (1, 0)


def test_training_keeps_nothing_for_each_state_and_feature():
    """One array of frames, states and hidden numbers has 33 MB, and the whole needs a dozen of them."""
    array = 8 * 400 * 40 * 64 * 4
    used = []
    for workspace in (2**20, 2**40):
        code = textwrap.dedent(MEMORY.format(workspace=workspace))
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        used.append(int(ran.stdout))
    assert used[0] < 3 * array
    assert used[1] > 5 * array  # the bound tells the two apart


BAD = {
    "has_end": (lambda: NeuralHMM(2, 1, has_end=True), "has_end: expected topology='left_to_right' with it, got None"),
    "state_dim": (lambda: NeuralHMM(2, 1, state_dim=3), "state_dim: expected topology='left_to_right'"),
    "density": (lambda: NeuralHMM(2, 1, density="cauchy"), "density: expected 'gaussian' or 'student_t', got 'cauchy'"),
    "kind": (lambda: NeuralHMM(2, 1, 3, emission_network="cnn"), "emission_network: expected one of 'constant'"),
    "nothing to see": (lambda: NeuralHMM(2, 1, transition_network="mlp"), "transition_network: expected 'constant'"),
    "linear states": (
        lambda: NeuralHMM(2, 1, state_dim=2, topology="left_to_right", emission_network="linear"),
        "emission_network: expected 'mlp', 'gru' or a module with state_dim, got 'linear'",
    ),
    "missing": (lambda: NeuralHMM(2, 1, autoregressive=True, missing="nan"), "missing: expected 'raise'"),
    "floor": (lambda: NeuralHMM(2, 1, variance_floor=-1.0), "variance_floor: expected a number from 0"),
    "dropout": (lambda: NeuralHMM(2, 1, dropout=1.0), "dropout: expected a number from 0 and below 1, got 1.0"),
    "both": (
        lambda: NeuralHMM(2, 1, topology="left_to_right", transition=[[0.5, 0.5], [0.0, 1.0]]),
        "topology: expected either topology or transition",
    ),
    "initial": (
        lambda: NeuralHMM(3, 1, state_dim=2, topology="left_to_right", initial=[0.0, 0.5, 0.5]),
        "initial: expected None with state_dim",
    ),
    "shared row": (
        lambda: setattr(NeuralHMM(4, 1, state_dim=2, topology="left_to_right"), "transition", [[0.5, 0.5]] * 4),
        r"transition: expected shape \(1 row that all states share, 2\) = \(1, 2\), got \(4, 2\)",
    ),
    "degrees": (lambda: NeuralHMM(2, 1).fix("degrees_of_freedom"), "name: expected one of 'log_initial'"),
}


@pytest.mark.parametrize("case", BAD)
def test_models_that_are_none(case):
    make, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        make()


def test_calls_that_do_not_fit():
    x, context = torch.randn(2, 5, 1), torch.randn(2, 5, 3)
    model = NeuralHMM(2, 1, 3, 4)
    cases = [
        (TypeError, {}, r"context: expected a floating-point tensor of shape \(2, 5, 3\) or \(2, 3\), got NoneType"),
        (TypeError, {"context": torch.ones(2, 3).long()}, "context: expected a floating-point tensor"),
        (ValueError, {"context": context[:1]}, r"context: expected shape \(2, 5, 3\) or \(2, 3\), got \(1, 5, 3\)"),
        (ValueError, {"context": context.log()}, r"context\[\d, \d\]: expected finite numbers"),
        (TypeError, {"contexts": context}, "contexts: expected context, state_context or state_lengths alone"),
        (ValueError, {"context": context, "state_context": context}, "expected None without state_dim"),
    ]
    for error, inputs, message in cases:
        with pytest.raises(error, match=message):
            model(x, **inputs)
    with pytest.raises(TypeError, match="autoregressive: expected an integer, got float"):
        NeuralHMM(2, 1, autoregressive=2.7)
    with pytest.raises(ValueError, match="context: expected None without context_dim"):
        NeuralHMM(2, 1)(x, context=context)
    with pytest.raises(AttributeError, match="expected density='student_t'"):
        NeuralHMM(2, 1).degrees_of_freedom = [1.0, 1.0]
    own = NeuralHMM(2, 1, 3, emission_network=nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"emission_network: expected it to give shape .*\(2, 5, 2, 1\) or"):
        own(x, None, context)
    with pytest.raises(TypeError, match="hmm_model: expected a model of observations alone"):
        StreamingHMMProcessor(model)
    states = NeuralHMM(3, 1, state_dim=2, topology="left_to_right", hidden_dim=4)
    for given, message in (
        ({}, r"state_context: expected a tensor \(\.\.\., K, E\) with K in 1\.\.3"),
        ({"state_context": torch.randn(2, 4, 2)}, "state_context: expected a tensor"),
        ({"state_context": torch.randn(1, 3, 2)}, r"state_context: expected shape \(2, 3, 2\), got \(1, 3, 2\)"),
        ({"state_context": torch.randn(2, 3, 2), "state_lengths": [4, 1]}, r"state_lengths\[0\]: expected 1\.\.3"),
    ):
        with pytest.raises(ValueError, match=message):
            states(x, **given)
    phonemes = ContextualNeuralHMM(2, 1, 5, 0, 2, hidden_dim=4)
    for error, given, message in (
        (
            ValueError,
            {"phonemes": torch.full((2,), 5), "prosody": torch.ones(2, 2)},
            r"expected integers 0\.\.4, got 5",
        ),
        (TypeError, {"phonemes": torch.ones(2, 5)}, "phonemes: expected an integer tensor"),
        (TypeError, {"phonemes": torch.ones(2).long()}, "prosody: expected a floating-point tensor"),
        (TypeError, {"context": context}, "context: expected phonemes, linguistic and prosody in its place"),
    ):
        with pytest.raises(error, match=message):
            phonemes(x, **given)


def test_fits_that_do_not_fit():
    x, context = torch.randn(2, 5, 1), torch.randn(2, 5, 3)
    model = NeuralHMM(2, 1, 3, 4)
    for error, options, message in (
        (ValueError, {"init": "random"}, "init: expected one of 'kmeans', 'keep'"),
        (TypeError, {"generator": 3}, "generator: expected a torch.Generator"),
        (ValueError, {"tolerance": -1.0}, "tolerance: expected a number of at least 0"),
    ):
        with pytest.raises(error, match=message):
            model.fit(x, context=context, **options)
    with pytest.raises(ValueError, match="context: expected 2, one for each sequence, got 1"):
        model.fit(list(x), context=[context[0]])
    with pytest.raises(ValueError, match="context: expected None with batches"):
        model.fit([(x, None)], context=context)
    for batch in ((x, None, {"context": context}), Batch(x, inputs={"context": context})):
        for method in ("em", "gradient"):
            with pytest.raises(
                ValueError, match="data: expected batches without inputs, fit of GaussianHMM takes none"
            ):
                GaussianHMM(2, 1).fit([batch], method=method)
    short = NeuralHMM(6, 1, topology="left_to_right")
    with pytest.raises(ValueError, match="data: a sequence is impossible under the model"):
        short.fit(x)


def test_what_takes_observations_alone_names_the_model():
    x, model = torch.randn(6, 1), NeuralHMM(2, 1)
    for error, call in (
        (NotImplementedError, lambda: pseudo_residuals(model, x)),
        (TypeError, lambda: standard_errors(model, x)),
        (TypeError, lambda: select_num_states(lambda k: NeuralHMM(k, 1), [x, x], [1, 2])),
        (TypeError, lambda: to_hmmlearn(model)),
        (TypeError, lambda: to_dynamax(model)),
        (TypeError, lambda: to_pomegranate(model)),
    ):
        with pytest.raises(error, match="NeuralHMM"):
            call()
