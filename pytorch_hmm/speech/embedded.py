"""Embedded re-estimation: EM over the graphs of whole transcripts, whose states share the distributions of phones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

import hmm_functional as hf
from hmm_functional import learning
from hmm_functional.alignment import AlignmentGraph
from hmm_functional.backend import backend_of
from hmm_functional.emissions import GaussianMixture, GaussianPrior, MixtureParameters, TiedStates
from hmm_functional.emissions.categorical import dirichlet_log_density, maximize_probabilities

from ..data import padded


class Acoustics(NamedTuple):
    """Distributions ("laws") of frames and of how long states last; L laws, float64."""

    emission: MixtureParameters
    """log weights (L, M), -inf for Gaussians that a law lacks, means (L, M, D) and variances (L, M, D)."""
    log_stay: Tensor
    """(L, 2): log-probabilities of staying in a state for another frame, and of leaving it."""


class Sums(NamedTuple):
    """Expected statistics; they add up over utterances."""

    log_likelihood: Tensor
    emission: Any
    """`GaussianStatistics` of the L M Gaussians."""
    durations: Tensor
    """(L, 2): how often each law's states are stayed in, and left."""

    @property
    def frames(self) -> Tensor:
        """(L,)"""
        return self.durations.sum(-1)


class Batch(NamedTuple):
    """Utterances side by side."""

    x: Tensor
    """(B, T, D), float32"""
    lengths: Tensor
    graph: AlignmentGraph
    """Without weights of staying: labels are columns."""


@dataclass(frozen=True)
class Classes:
    """What laws are believed to be like: each like the Gaussian and the mean duration of its class."""

    means: Tensor
    """(L, D)"""
    variances: Tensor
    """(L, D)"""
    log_stay: Tensor
    """(L, 2)"""
    mean_frames: float
    variance_frames: float
    visits: float

    def gaussians(self, num_mixtures: int) -> GaussianPrior:
        """Of L M Gaussians, as many frames as were given in the joint mode: (S + n v) / (N + n) is the variance."""
        means, variances = (x.repeat_interleave(num_mixtures, 0) for x in (self.means, self.variances))
        # of the density's powers, 2 belong to the inverse gamma and 1 to the mean
        degrees = self.variance_frames - (3.0 if self.mean_frames else 2.0)
        scale = self.variance_frames * variances
        return GaussianPrior(means, self.mean_frames, scale, degrees, has_own_scales=True)

    @property
    def durations(self) -> Tensor:
        """(L, 2), the concentrations of a Dirichlet law."""
        stay, leave = self.log_stay.exp().unbind(-1)
        return 1.0 + self.visits * torch.stack([stay / leave, torch.ones_like(leave)], -1)


@dataclass(frozen=True)
class Estimator:
    """The two steps of EM for laws that columns of the graphs share.

    Args:
        laws: (V,), the law of each column.
        floor: (D,), the least variances.
        classes: prior beliefs; None for maximum likelihood.
    """

    laws: tuple[int, ...]
    floor: Tensor
    classes: Classes | None = None

    def family(self, num_mixtures: int) -> GaussianMixture:
        """The emissions of the L laws."""
        prior = None if self.classes is None else self.classes.gaussians(num_mixtures)
        return GaussianMixture("diag", self.floor, prior)

    def sums(self, batches: Iterable[Batch], model: Acoustics, *, scale: float = 1.0) -> Sums:
        """Statistics of all utterances under the model, whose log-densities count `scale` times."""
        family = self.family(model.emission.means.shape[1])

        def of_batch(batch: Batch) -> Sums:
            found, posteriors, durations = posteriors_of(batch, self.laws, model, scale)
            return Sums(found.sum(), family.statistics(batch.x.to(posteriors), posteriors, model.emission), durations)

        return reduce(learning.add, map(of_batch, batches))

    def pooled(self, batches: Iterable[Batch], model: Acoustics, pools: Sequence[int], start: Acoustics) -> Acoustics:
        """One Gaussian for each pool of laws, that of most likelihood where the model places the frames.

        Args:
            pools: (L,), the pool of each law.
            start: what pools without frames are like.
        """
        family = TiedStates(GaussianMixture("diag", self.floor), tuple(pools))
        index = torch.tensor(pools)

        def of_batch(batch: Batch) -> Sums:
            found, posteriors, durations = posteriors_of(batch, self.laws, model, 1.0)
            emission = family.statistics(batch.x.to(posteriors), posteriors, start.emission)
            return Sums(found.sum(), emission, torch.zeros_like(start.log_stay).index_add_(0, index, durations))

        sums = reduce(learning.add, map(of_batch, batches))
        return Estimator((), self.floor).maximize(sums, start)

    def maximize(self, sums: Sums, model: Acoustics, held: Sequence[int] = ()) -> Acoustics:
        """The M-step; the laws that are `held` keep their frames' distribution."""
        fixed = None
        if held:
            mask = torch.zeros(len(model.log_stay), 1, dtype=torch.bool)
            mask[list(held)] = True
            fixed = MixtureParameters(mask, mask[..., None], mask[..., None])
        family = self.family(model.emission.means.shape[1])
        emission = family.m_step(sums.emission, model.emission, fixed)
        backend = backend_of(durations=sums.durations)
        concentration: Any = 1.0 if self.classes is None else self.classes.durations
        return Acoustics(emission, maximize_probabilities(backend, sums.durations, model.log_stay, concentration))

    def log_prior(self, model: Acoustics) -> float:
        """log density of the model under the beliefs, up to a constant."""
        if self.classes is None:
            return 0.0
        own = self.family(model.emission.means.shape[1]).log_prior(model.emission)
        return float(own + dirichlet_log_density(model.log_stay, self.classes.durations))


def posteriors_of(batch: Batch, laws: Sequence[int], model: Acoustics, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """log-likelihoods (B,), posteriors of laws (B, T, L), and how often states of each are stayed in, and left (L, 2).

    All are gradients of the log-likelihood: staying and leaving share a law's frames, n = a + b, and the derivative by
    the probability p of staying is a / p - b / (1 - p).
    """
    with torch.no_grad():
        scores = scale * GaussianMixture().log_prob(batch.x.to(model.emission.means), model.emission)
    stay = model.log_stay[:, 0].exp()
    scores.requires_grad_()
    stay.requires_grad_()
    graph = hf.weigh_graph(with_laws(batch.graph, laws), stay)
    found = hf.log_likelihood(
        graph.log_initial,
        graph.log_transition,
        hf.state_scores(graph, scores),
        lengths=batch.lengths,
        log_final=graph.log_final,
    )
    posteriors, slope = torch.autograd.grad(found.sum(), (scores, stay))
    frames, p = posteriors.sum((0, 1)), stay.detach()
    stays = (p * ((1.0 - p) * slope + frames)).clamp_min(0.0).minimum(frames)
    return found.detach(), posteriors, torch.stack([stays, frames - stays], -1)


def with_laws(graph: AlignmentGraph, laws: Sequence[int]) -> AlignmentGraph:
    """A graph whose states are scored by the laws of their columns."""
    return graph._replace(labels=torch.tensor(laws)[graph.labels])


class Batches:
    """Batches of features that are put side by side each time they are gone through, so that none is held."""

    def __init__(self, features: Sequence[Tensor], groups: Sequence[Sequence[int]], graphs: Sequence[AlignmentGraph]):
        self._features, self._groups = features, groups
        self.graphs = [hf.stack_graphs([graphs[i] for i in group]) for group in groups]
        """Of each batch."""

    def __iter__(self) -> Iterator[Batch]:
        for group, graph in zip(self._groups, self.graphs, strict=True):
            yield Batch(*padded([self._features[i] for i in group]), graph)


def make_batches(features: Sequence[Tensor], graphs: Sequence[AlignmentGraph], batch_frames: int) -> Batches:
    """Utterances of like length together, at most `batch_frames` frames with their padding, or one utterance."""
    return Batches(features, of_like_length([len(x) for x in features], batch_frames), graphs)


def of_like_length(lengths: Sequence[int], most: int) -> list[list[int]]:
    """Places of sequences in groups of like length, at most so many frames with their padding, or one sequence."""
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if groups and (len(groups[-1]) + 1) * lengths[i] <= most:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups
