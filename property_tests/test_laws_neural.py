"""Neural HMMs: likelihoods are sums over all paths of densities worked out elsewhere; batches, padding, pieces."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats
from torch import nn

from property_tests.strategies import seeds
from pytorch_hmm import ContextualNeuralHMM, NeuralHMM
from pytorch_hmm.networks import RecurrentNetwork

KINDS = ("linear", "mlp", "gru")


class Table(nn.Module):
    """tanh of a linear map, written out again below."""

    def __init__(self, num_inputs, num_states, num_outputs, seed):
        super().__init__()
        rng = np.random.default_rng(seed)
        self.weights = nn.Parameter(torch.tensor(rng.normal(size=(num_inputs, num_states * num_outputs))))
        self.offsets = nn.Parameter(torch.tensor(rng.normal(size=(num_states * num_outputs,))))
        self.shape = num_states, num_outputs

    def forward(self, frames):
        return (frames @ self.weights + self.offsets).tanh().unflatten(-1, self.shape)

    def by_numpy(self, frames):
        weights, offsets = (x.detach().numpy() for x in (self.weights, self.offsets))
        return np.tanh(frames @ weights + offsets).reshape(*frames.shape[:-1], *self.shape)


@st.composite
def tables(draw):
    """A float64 model around two tables, observations (T, D), and a context (T, C), (C,) or None."""
    num_states, dim, num_steps = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 4))
    kind = draw(st.sampled_from(["frame", "sequence", "none"]))
    lags, seed = draw(st.sampled_from([0, 1, 2])), draw(seeds)
    topology = draw(st.sampled_from([None, "ergodic", "left_to_right"]))
    width = (0 if kind == "none" else 3) + lags * dim
    exits = 2 if topology == "left_to_right" else num_states
    model = NeuralHMM(
        num_states,
        dim,
        None if kind == "none" else 3,
        transition_network=Table(width, num_states, exits, seed),
        emission_network=Table(width, num_states, dim * draw(st.sampled_from([1, 2])), seed + 1),
        topology=topology,
        has_end=draw(st.booleans()) if topology == "left_to_right" else None,
        autoregressive=lags,
        density=draw(st.sampled_from(["gaussian", "student_t"])),
    ).double()
    rng = np.random.default_rng(seed)
    model.means, model.covariances = rng.normal(size=(num_states, dim)), rng.uniform(0.5, 2, size=(num_states, dim))
    if model.density == "student_t":
        model.degrees_of_freedom = rng.uniform(1, 9, size=num_states)
    with torch.no_grad():
        model.centre.copy_(torch.tensor(rng.normal(size=dim)))
        model.scale.copy_(torch.tensor(rng.uniform(0.5, 2, size=dim)))
        model.transition_distribution.logits += torch.tensor(rng.normal(size=(num_states, exits)))
    x = rng.normal(size=(num_steps, dim))
    context = {"frame": rng.normal(size=(num_steps, 3)), "sequence": rng.normal(size=3), "none": None}[kind]
    return model, x, context


def passed(context):
    return {} if context is None else {"context": torch.as_tensor(context)}


def by_enumeration(model, x, context):
    """log p(x, path) of every path, by scipy."""
    num_steps, dim = x.shape
    num_states = model.num_states
    centre, scale = model.centre.numpy(), model.scale.numpy()
    rows = []
    for t in range(num_steps):
        known = [] if context is None else [context if context.ndim == 1 else context[t]]
        for lag in range(1, model.num_lags + 1):
            known.append((x[t - lag] - centre) / scale if t >= lag else np.zeros(dim))
        rows.append(np.concatenate([*known, np.zeros(0)]))
    frames = np.stack(rows)
    free = model.transition_distribution.logits.detach().numpy()
    free = np.where(model.transition_distribution.is_possible.numpy(), free, -np.inf)
    moves = special.log_softmax(free + model.transition_network.module.by_numpy(frames), axis=-1)
    found = model.emission_network.module.by_numpy(frames)
    means = model.means.detach().numpy() + scale * found[..., :dim]
    widening = np.exp(found[..., dim:]) if found.shape[-1] > dim else np.ones(found.shape)
    variances = model.covariances.detach().numpy() * widening + model.variance_floor * scale**2
    joint = {}
    for path in itertools.product(range(num_states), repeat=num_steps):
        value = model.log_initial.detach().numpy()[path[0]]
        for t, k in enumerate(path):
            if model.density == "gaussian":
                value += stats.norm.logpdf(x[t], means[t, k], np.sqrt(variances[t, k])).sum()
            else:
                degrees = float(model.degrees_of_freedom[k].detach())
                value += stats.multivariate_t.logpdf(x[t], means[t, k], np.diag(variances[t, k]), df=degrees)
            if t + 1 < num_steps:
                if model.topology == "left_to_right":
                    step = path[t + 1] - k
                    value += moves[t, k, step] if step in (0, 1) else -np.inf
                else:
                    value += moves[t, k, path[t + 1]]
        if model.has_end:
            value += moves[-1, path[-1], 1] if path[-1] == num_states - 1 else -np.inf
        joint[path] = value
    return joint


@given(data=st.data())
def test_every_path_is_summed(data):
    model, x, context = data.draw(tables())
    joint = by_enumeration(model, x, context)
    paths, values = np.array(list(joint)), np.array(list(joint.values()))
    total = special.logsumexp(values)
    seen, inputs = torch.tensor(x), passed(context)
    np.testing.assert_allclose(model(seen, **inputs).detach(), total, rtol=1e-9)
    states, score = model.viterbi_decode(seen, **inputs)
    posteriors, likelihood = model.forward_backward(seen, **inputs)
    if total == -np.inf:  # too short for its end
        assert (states == -1).all()
        assert (posteriors == 0).all()
        return
    np.testing.assert_allclose(score.detach(), values.max(), rtol=1e-9)
    np.testing.assert_allclose(joint[tuple(states.tolist())], values.max(), rtol=1e-9)
    shares = np.exp(values - total)
    wanted = [[shares[paths[:, t] == k].sum() for k in range(model.num_states)] for t in range(len(x))]
    np.testing.assert_allclose(posteriors.detach(), wanted, atol=1e-9)
    np.testing.assert_allclose(likelihood.detach(), total, rtol=1e-9)


@st.composite
def networks(draw, **given):
    """A float64 model of built-in networks away from their start, and its inputs by name: (3, 6, ...)."""
    torch.manual_seed(draw(seeds))
    topology = draw(st.sampled_from([None, "left_to_right"]))
    own = topology is not None and draw(st.booleans())
    kinds = KINDS[1:] if own else KINDS
    lags, has_context = draw(st.sampled_from([(0, True), (1, False), (1, True), (2, True)]))
    options = {
        "transition_network": draw(st.sampled_from(["constant", *kinds])),
        "emission_network": draw(st.sampled_from(kinds)),
        "has_end": draw(st.booleans()) if topology else None,
        "state_dim": 2 if own else None,
        "density": draw(st.sampled_from(["gaussian", "student_t"])),
    }
    size = draw(st.integers(1, 3))
    model = NeuralHMM(
        size, 2, 3 if has_context else None, 4, topology=topology, autoregressive=lags, **{**options, **given}
    ).double()
    with torch.no_grad():
        for p in model.parameters():
            p += 0.5 * torch.randn_like(p)
        model.centre += torch.randn_like(model.centre)
        model.scale *= 1 + torch.rand_like(model.scale)
    inputs = {}
    if has_context:
        inputs["context"] = torch.randn(3, 6, 3) if draw(st.booleans()) else torch.randn(3, 3)
    if own:
        inputs |= {"state_context": torch.randn(3, size, 2), "state_lengths": torch.randint(1, size + 1, (3,))}
    inputs = {name: x.double() if x.is_floating_point() else x for name, x in inputs.items()}
    return model, torch.randn(3, 6, 2, dtype=torch.float64), inputs


def of_one(inputs, i, length):
    """What belongs to one sequence, without padding."""
    found = dict(inputs)
    if found.get("context") is not None:
        found["context"] = found["context"][i][:length] if found["context"].ndim == 3 else found["context"][i]
    if "state_context" in found:
        count = int(found["state_lengths"][i])
        found["state_context"], found["state_lengths"] = found["state_context"][i, :count], torch.tensor(count)
    return found


def spoilt(inputs, lengths):
    """The same with NaN and infinities in all padding."""
    found = dict(inputs)
    if found.get("context") is not None and found["context"].ndim == 3:
        is_padding = torch.arange(6) >= lengths[:, None]
        found["context"] = found["context"].masked_fill(is_padding[..., None], torch.nan)
    if "state_context" in found:
        is_padding = torch.arange(found["state_context"].shape[1]) >= found["state_lengths"][:, None]
        found["state_context"] = found["state_context"].masked_fill(is_padding[..., None], torch.inf)
    return found


@given(data=st.data())
def test_a_batch_is_its_sequences_whatever_its_padding(data):
    model, x, inputs = data.draw(networks())
    lengths = torch.tensor([6, *data.draw(st.lists(st.integers(1, 6), min_size=2, max_size=2))])
    dirty = x.masked_fill((torch.arange(6) >= lengths[:, None])[..., None], torch.nan)
    whole = spoilt(inputs, lengths)
    values = model(dirty, lengths, **whole)
    posteriors, _ = model.forward_backward(dirty, lengths, **whole)
    states, scores = model.viterbi_decode(dirty, lengths, **whole)
    filtered = model.filter(dirty, lengths, **whole)
    for i, length in enumerate(lengths.tolist()):
        own = of_one(inputs, i, length)
        count = int(own.get("state_lengths", model.num_states))
        part = x[i, :length]
        torch.testing.assert_close(values[i], model(part, **own))
        torch.testing.assert_close(posteriors[i, :length, :count], model.forward_backward(part, **own)[0])
        torch.testing.assert_close(filtered[i, :length, :count], model.filter(part, **own))
        path, score = model.viterbi_decode(part, **own)
        assert torch.equal(states[i, :length], path)
        torch.testing.assert_close(scores[i], score)
        assert (posteriors[i, length:] == 0).all()
        assert (posteriors[i, :, count:] == 0).all()
    values.where(values > -torch.inf, 0.0).sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@given(data=st.data())
def test_pieces_are_the_whole(data):
    model, x, inputs = data.draw(networks())
    lengths = torch.tensor([6, 5, 6])
    leaves = [x.requires_grad_(), *(v.requires_grad_() for v in inputs.values() if v.is_floating_point())]
    leaves += [p for p in model.parameters() if p.requires_grad]

    def values_and_gradients(workspace):
        model.workspace = workspace
        found = model(x, lengths, **inputs)
        reachable = found.where(found > -torch.inf, 0.0).sum()
        return found, torch.autograd.grad(reachable, leaves, allow_unused=True)

    whole = values_and_gradients(2**30)
    for workspace in (1, 3 * model.num_states * 20):
        found = values_and_gradients(workspace)
        torch.testing.assert_close(found[0], whole[0], rtol=1e-12, atol=1e-12)
        for a, b in zip(found[1], whole[1], strict=True):
            # what a piece does not use has a gradient of 0, or none
            torch.testing.assert_close(*(torch.zeros(()) if g is None else g for g in (a, b)), rtol=1e-10, atol=1e-10)


@settings(max_examples=8)
@given(data=st.data())
def test_gradients_are_differences(data):
    model, x, inputs = data.draw(networks(emission_network=data.draw(st.sampled_from(KINDS[1:]))))
    model.workspace = data.draw(st.sampled_from([1, 2**30]))
    names, weights = zip(*((name, p) for name, p in model.named_parameters() if p.numel() <= 24), strict=True)
    names, weights = names[:6], weights[:6]
    named = [name for name, v in inputs.items() if v.is_floating_point()]

    def value(x, *given):
        own = dict(zip(named, given, strict=False))
        parts = dict(zip(names, given[len(named) :], strict=True))
        found = torch.func.functional_call(model, parts, (x[:1, :4],), {**first(inputs), **first(own)})
        return found.where(found > -torch.inf, 0.0)

    def first(values):
        return {name: v[:1, :4] if v.ndim == 3 and name == "context" else v[:1] for name, v in values.items()}

    arrays = [x, *(inputs[name] for name in named), *weights]
    assert torch.autograd.gradcheck(value, [a.detach().requires_grad_() for a in arrays], fast_mode=True)


def test_second_derivatives_and_transforms():
    torch.manual_seed(0)
    model = NeuralHMM(2, 1, 2, 3, autoregressive=True).double()
    for p in model.parameters():
        p.data += 0.3 * torch.randn_like(p)
    x, context = torch.randn(2, 4, 1).double(), torch.randn(2, 4, 2).double()
    for workspace in (1, 2**30):
        model.workspace = workspace
        assert torch.autograd.gradgradcheck(
            lambda x, c: model(x, context=c), [x.requires_grad_(), context.requires_grad_()], fast_mode=True
        )
    (wanted,) = torch.autograd.grad(model(x, context=context).sum(), x)
    model.workspace = 1
    found = torch.func.grad(lambda x: model(x, context=context.detach()).sum())(x.detach())
    torch.testing.assert_close(found, wanted)


@given(data=st.data())
def test_leading_axes_are_a_batch(data):
    model, x, inputs = data.draw(networks())
    flat = model(x[:2], **{name: v[:2] for name, v in inputs.items()})
    deep = model(x[:2, None], [[6], [6]], **{name: v[:2, None] for name, v in inputs.items()})
    torch.testing.assert_close(deep[:, 0], flat)


@given(data=st.data())
def test_what_comes_later_is_not_seen(data):
    """A frame moves its own scores, and those of as many frames behind it as the model looks back, all with a GRU."""
    model, x, inputs = data.draw(networks(transition_network="constant"))
    inputs.pop("state_lengths", None)
    changed = x.clone()
    changed[:, 2] += 1.0
    before, after = (model.emission_log_prob(v, **inputs) for v in (x, changed))
    is_moved = (before - after).abs().amax((0, 2)) > 1e-12
    assert not is_moved[:2].any()
    assert is_moved[2]
    has_memory = isinstance(model.emission_network, RecurrentNetwork) and model.num_lags > 0
    assert has_memory or not is_moved[3 + model.num_lags :].any()


@pytest.mark.parametrize("lags", [0, 1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_what_came_before_is_seen(kind, lags):
    """As many frames back as the model looks, all with a GRU; wide, since a few rectified units may all be silent."""
    torch.manual_seed(0)
    model = NeuralHMM(3, 2, 3, 64, autoregressive=lags, emission_network=kind, transition_network="constant").double()
    with torch.no_grad():
        for p in model.parameters():
            p += 0.3 * torch.randn_like(p)
    x, context = torch.randn(1, 8, 2).double(), torch.randn(1, 8, 3).double()
    changed = x.clone()
    changed[:, 2] += 1.0
    gap = model.emission_log_prob(x, context=context) - model.emission_log_prob(changed, context=context)
    last = 7 if kind == "gru" and lags else 2 + lags
    assert (gap.abs().amax((0, 2)) > 1e-12).tolist() == [2 <= t <= last for t in range(8)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("topology", [None, "left_to_right"])
def test_densities_integrate_to_one(kind, topology):
    """Over x_0 and x_1, whose density looks at x_0, on a grid; with an end over lengths, too."""
    torch.manual_seed(1)
    model = NeuralHMM(
        2,
        1,
        2,
        3,
        transition_network=kind,
        emission_network=kind,
        topology=topology,
        autoregressive=True,
        has_end=False if topology else None,
    ).double()
    for p in model.parameters():
        p.data += 0.5 * torch.randn_like(p)
    grid = torch.linspace(-12, 12, 241, dtype=torch.float64)
    pairs = torch.cartesian_prod(grid, grid)[..., None]
    context = torch.randn(2, 2, dtype=torch.float64)
    with torch.no_grad():
        total = model(pairs, context=context.expand(len(pairs), 2, 2)).exp().sum() * 0.1**2
    torch.testing.assert_close(total, torch.tensor(1.0).double(), rtol=1e-6, atol=0)


def test_lengths_and_frames_together_integrate_to_one():
    """A first state whose way on depends on x: all utterances of 1, 2, ... frames, on a coarse grid."""
    torch.manual_seed(3)
    model = NeuralHMM(1, 1, None, 3, topology="left_to_right", autoregressive=True, self_loop=0.2).double()
    for p in model.parameters():
        p.data += 0.3 * torch.randn_like(p)
    grid = torch.linspace(-6, 6, 17, dtype=torch.float64)
    total, kept = 0.0, []
    with torch.no_grad():
        for length in (1, 2, 3, 4):
            x = torch.cartesian_prod(*[grid] * length).reshape(-1, length, 1)
            kept.append(float(model(x).exp().sum()) * 0.75**length)
            total += kept[-1]
    rest = kept[-1] / (1 - kept[-1] / kept[-2]) * kept[-1] / kept[-2]  # a geometric tail
    assert kept[-1] < 0.05
    assert abs(total + rest - 1) < 2e-3


@given(seed=seeds, by_frame=st.tuples(st.booleans(), st.booleans(), st.booleans()))
def test_a_contextual_model_is_a_neural_one(seed, by_frame):
    torch.manual_seed(seed)
    model = ContextualNeuralHMM(2, 2, 5, 3, 1, embedding_dim=2, hidden_dim=4).double()
    for p in model.parameters():
        p.data += 0.5 * torch.randn_like(p)
    plain = NeuralHMM(2, 2, 6, 4).double()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("embedding")})
    shapes = [(2, 5) if one else (2,) for one in by_frame]
    phonemes = torch.randint(5, shapes[0])
    linguistic, prosody = (torch.randn(*shape, n).double() for shape, n in zip(shapes[1:], (3, 1), strict=True))
    parts = [model.embedding.weight[phonemes], linguistic, prosody]
    context = torch.cat([p if p.ndim == 3 else p[:, None].expand(-1, 5, -1) for p in parts], -1)
    x, lengths = torch.randn(2, 5, 2).double(), torch.tensor([5, 2])
    if by_frame[0]:
        phonemes[1, 2:] = -9
    found = model(x, lengths, phonemes=phonemes, linguistic=linguistic, prosody=prosody)
    torch.testing.assert_close(found, plain(x, lengths, context))
