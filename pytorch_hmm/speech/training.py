"""From a flat start to mixtures: broad classes, phones, states of phones, more Gaussians; each a stage of plain EM."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import reduce
from math import inf
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hmm_functional.emissions import Gaussian, GaussianParameters, MixtureParameters
from hmm_functional.learning import HMMParameters, add, expected_statistics, maximize
from hmm_functional.posterior import forward_backward

from ..data import padded
from .embedded import Acoustics, Batches, Classes, Estimator, Sums, of_like_length
from .settings import AlignerSettings

_SPLIT = 0.2
"""Standard deviations that the halves of a Gaussian begin apart from where it was (The HTK Book, section 10.6)."""
_SILENCE_FRAMES = 2**18
"""Frames whose energies are looked at side by side."""


class TrainingStep(NamedTuple):
    """What callbacks are told after each iteration of EM."""

    stage: str
    """"classes", "phones", "states" or "mixtures"."""
    iteration: int
    """Of all stages, from 1."""
    of: int
    """How many there will be, as far as is known: how many Gaussians there are frames for shows later."""
    log_likelihood: float
    """log p(features given transcripts) a frame, nats, before the iteration."""
    objective: float
    """The same of all frames, plus the log density of the parameters; what no iteration of a stage lowers but those of
    "classes", whose acoustic scale changes."""
    acoustic_scale: float


class Inventory(NamedTuple):
    """Which columns the emissions have: `states` each of the phones that were heard, then of the classes."""

    phones: tuple[str, ...]
    classes: tuple[str, ...]
    class_of: tuple[int, ...]
    """The class of each phone."""
    states: int

    @property
    def num_symbols(self) -> int:
        """Phones and classes."""
        return len(self.phones) + len(self.classes)

    def by_class(self) -> tuple[int, ...]:
        """(V,): one law a class."""
        symbols = (*self.class_of, *range(len(self.classes)))
        return tuple(law for law in symbols for _ in range(self.states))

    def class_of_laws(self, laws: Sequence[int]) -> list[int]:
        """(L,), of laws (V,) of columns."""
        found = dict(zip(laws, self.by_class(), strict=True))
        return [found[law] for law in range(len(found))]


class Trained(NamedTuple):
    """What training came to."""

    estimator: Estimator
    model: Acoustics
    sums: Sums
    """Statistics before the last M-step."""
    steps: list[TrainingStep]


def silence_shares(energies: Sequence[Tensor]) -> list[Tensor]:
    """p(frame t is silence), (T,) each, of one speaker's utterances: the quieter state of two in log energy (T,)."""
    values = torch.cat(list(energies)).to(torch.float64)
    # NumPy's: torch's refuses more than 2^24 values, 46 hours
    low, high = (torch.tensor(x) for x in np.quantile(values.numpy(), [0.1, 0.9]))
    spread = values.var(correction=0)
    if not spread > 0:
        return [torch.full((len(x),), 0.5, dtype=torch.float64) for x in energies]
    groups = [sorted(group) for group in of_like_length([len(x) for x in energies], _SILENCE_FRAMES)]

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for group in groups:
            x, lengths = padded([energies[i].to(torch.float64) for i in group])
            yield x[..., None], lengths

    half = torch.full((2,), 0.5, dtype=torch.float64).log()
    transition = torch.tensor([[0.9, 0.1], [0.1, 0.9]], dtype=torch.float64).log()
    start = GaussianParameters(torch.stack([low, high])[:, None], (0.25 * spread).expand(2, 1).clone())
    model, family = HMMParameters(half, transition, start), Gaussian("diag", float(0.01 * spread))
    for _ in range(20):
        sums = [expected_statistics(model, family, x, lengths=lengths) for x, lengths in batches()]
        model = maximize(add(*sums), model, family)
    quiet = int(model.emission.means[:, 0].argmin())
    found = {}
    for group, (x, lengths) in zip(groups, batches(), strict=True):
        emission = family.log_prob(x, model.emission)
        own = forward_backward(model.log_initial, model.log_transition, emission, lengths=lengths).log_posteriors.exp()
        found.update({i: row[:n, quiet].clone() for i, row, n in zip(group, own, lengths.tolist(), strict=True)})
    return [found[i] for i in range(len(energies))]


class Trainer:
    """Runs the stages over batches of utterances.

    Args:
        quiet: p(silence) of each frame of each utterance, in the order of `features`.
        tell: is called after each iteration.
    """

    def __init__(
        self,
        settings: AlignerSettings,
        inventory: Inventory,
        batches: Batches,
        features: Sequence[Tensor],
        quiet: Sequence[Tensor],
        tell: Callable[[TrainingStep], Any] | None = None,
    ) -> None:
        self._settings, self._inventory, self._batches, self._tell = settings, inventory, batches, tell
        self._frames = sum(len(q) for q in quiet)
        self._whole = _moments(features, (torch.ones_like(q) for q in quiet))
        self._floor = settings.variance_floor * self._whole.covariances[0].clamp_min(1e-6)
        self._quiet = _moments(features, quiet)
        self._loud = _moments(features, (1.0 - q for q in quiet))
        self._steps: list[TrainingStep] = []
        self._planned = (2 * len(settings.acoustic_scales) + 2) * settings.iterations

    def run(self) -> Trained:
        """All stages."""
        settings = self._settings
        estimator, model = self._classes()
        laws, rows = self._laws_of_phones()
        estimator, model = self._refresh(estimator, model, laws, rows)
        model, sums = self._stage("phones", estimator, model, settings.iterations)
        laws, rows = self._laws_of_states(estimator, sums)
        estimator, model = self._refresh(estimator, model, laws, rows)
        model, sums = self._stage("states", estimator, model, settings.iterations)
        while (wanted := self._wanted(sums, model)) is not None:
            self._planned = len(self._steps) + settings.iterations * self._rounds_left(sums, model)
            estimator, model = self._refresh(estimator, model, estimator.laws, None)
            model = split(model, wanted)
            model, sums = self._stage("mixtures", estimator, model, settings.iterations)
        return Trained(estimator, model, sums, self._steps)

    def _classes(self) -> tuple[Estimator, Acoustics]:
        """One distribution a class, of the most likely start. Silence keeps the quiet frames' while the scale grows."""
        settings, count = self._settings, len(self._inventory.classes)
        estimator = Estimator(self._inventory.by_class(), self._floor)  # laws are classes
        means = torch.cat([self._quiet.means, self._loud.means.expand(count - 1, -1)])
        spread = torch.cat([self._quiet.covariances, self._loud.covariances.expand(count - 1, -1)])
        zeros = torch.zeros(count, 1, dtype=torch.float64)
        emission = MixtureParameters(zeros, means[:, None], spread.maximum(self._floor)[:, None])
        model = Acoustics(emission, self._even_durations(count))
        found = []
        for first in settings.acoustic_scales:
            annealed = model
            for i in range(settings.iterations):
                scale = first ** (1.0 - i / settings.iterations)
                annealed, _ = self._step("classes", estimator, annealed, scale, held=(0,))
            annealed, sums = self._stage("classes", estimator, annealed, settings.iterations)
            found.append((float(sums.log_likelihood), annealed))
        return estimator, max(found, key=lambda one: one[0])[1]

    def _even_durations(self, count: int) -> Tensor:
        """(count, 2): all states of all transcripts last equally long."""
        num_states = sum(int(graph.token_index.ge(0).sum()) for graph in self._batches.graphs)
        leave = min(0.5, num_states / self._frames)
        return torch.tensor([[1.0 - leave, leave]], dtype=torch.float64).log().expand(count, 2)

    def _stage(self, name: str, estimator: Estimator, model: Acoustics, count: int) -> tuple[Acoustics, Sums]:
        """`count` iterations, and the statistics of the last."""
        for _ in range(count):
            model, sums = self._step(name, estimator, model)
        return model, sums

    def _step(
        self, stage: str, estimator: Estimator, model: Acoustics, scale: float = 1.0, held: tuple[int, ...] = ()
    ) -> tuple[Acoustics, Sums]:
        sums = estimator.sums(self._batches, model, scale=scale)
        total = float(sums.log_likelihood)
        number = len(self._steps) + 1
        objective = total + estimator.log_prior(model)
        step = TrainingStep(stage, number, max(self._planned, number), total / self._frames, objective, scale)
        self._steps.append(step)
        if self._tell is not None:
            self._tell(step)
        return estimator.maximize(sums, model, held), sums

    def _laws_of_phones(self) -> tuple[tuple[int, ...], list[int]]:
        """One law a phone and one a class; the row of the class laws that each begins as."""
        symbols, states = self._inventory.num_symbols, self._inventory.states
        rows = [*self._inventory.class_of, *range(len(self._inventory.classes))]
        return tuple(law for law in range(symbols) for _ in range(states)), rows

    def _laws_of_states(self, estimator: Estimator, sums: Sums) -> tuple[tuple[int, ...], list[int]]:
        """A law for each state of phones with enough frames for that; the row of the phones' laws each begins as."""
        states, need = self._inventory.states, self._settings.frames_per_gaussian
        laws: list[int] = []
        rows: list[int] = []
        for symbol in range(self._inventory.num_symbols):
            own = estimator.laws[symbol * states]
            is_apart = symbol < len(self._inventory.phones) and float(sums.frames[own]) >= states * need
            for state in range(states):
                if is_apart or state == 0:
                    rows.append(own)
                laws.append(len(rows) - 1)
        return tuple(laws), rows

    def _refresh(
        self, estimator: Estimator, model: Acoustics, laws: tuple[int, ...], rows: list[int] | None
    ) -> tuple[Estimator, Acoustics]:
        """An estimator whose beliefs are the classes as they are now aligned; `rows` of the model begin its laws."""
        settings, inventory, count = self._settings, self._inventory, len(self._inventory.classes)
        whole = (x.expand(count, -1)[:, None] for x in self._whole)
        zeros = torch.zeros(count, 1, dtype=torch.float64)
        start = Acoustics(MixtureParameters(zeros, *whole), self._even_durations(count))
        found = estimator.pooled(self._batches, model, inventory.class_of_laws(estimator.laws), start)
        place = inventory.class_of_laws(laws)
        classes = Classes(
            found.emission.means[place, 0],
            found.emission.covariances[place, 0],
            found.log_stay[place].clamp(max=0.0),
            settings.mean_prior,
            settings.variance_prior,
            settings.duration_prior,
        )
        if rows is not None:
            model = Acoustics(MixtureParameters(*(x[rows] for x in model.emission)), model.log_stay[rows])
        return Estimator(laws, self._floor, classes), model

    def _wanted(self, sums: Sums, model: Acoustics) -> list[int] | None:
        """How many Gaussians each law gets next, twice as many at the most; None where no law gets more."""
        now = (model.emission.log_weights > -inf).sum(-1).tolist()
        most = self._most(sums)
        wanted = [max(n, min(2 * n, m)) for n, m in zip(now, most, strict=True)]
        return wanted if wanted != now else None

    def _most(self, sums: Sums) -> list[int]:
        room = (sums.frames / self._settings.frames_per_gaussian).floor().clamp(1, self._settings.max_mixtures)
        return [int(n) for n in room.tolist()]

    def _rounds_left(self, sums: Sums, model: Acoustics) -> int:
        now = (model.emission.log_weights > -inf).sum(-1).tolist()
        return max(math.ceil(math.log2(max(m / n, 1.0))) for n, m in zip(now, self._most(sums), strict=True))


def split(model: Acoustics, wanted: Sequence[int]) -> Acoustics:
    """Laws with more Gaussians: the heaviest of each are halved, the halves moved apart.

    Args:
        wanted: Gaussians of each law, at least as many as it has and at most twice as many.
    """
    (weights, means, variances), size = model.emission, max(wanted)
    num_laws, old, dim = means.shape
    shift = _SPLIT * variances.sqrt()
    new_weights = torch.full((num_laws, size), -inf, dtype=weights.dtype)
    new_means = means[:, :1].expand(num_laws, size, dim).clone()
    new_variances = variances[:, :1].expand(num_laws, size, dim).clone()
    for law, count in enumerate(wanted):
        present = [m for m in range(old) if float(weights[law, m]) > -inf]
        halved = sorted(present, key=lambda m: (-float(weights[law, m]), m))[: count - len(present)]
        parts = [(m, -1.0 if m in halved else 0.0) for m in present] + [(m, 1.0) for m in sorted(halved)]
        for place, (m, sign) in enumerate(parts):
            new_weights[law, place] = weights[law, m] - (torch.tensor(2.0).log() if m in halved else 0.0)
            new_means[law, place] = means[law, m] + sign * shift[law, m]
            new_variances[law, place] = variances[law, m]
    return Acoustics(MixtureParameters(new_weights, new_means, new_variances), model.log_stay)


def _moments(features: Sequence[Tensor], weights: Iterable[Tensor]) -> GaussianParameters:
    """Mean and variances (1, D) of all frames under weights (T,)."""
    dim = features[0].shape[-1]
    family = Gaussian("diag", 0.0)
    start = GaussianParameters(torch.zeros(1, dim, dtype=torch.float64), torch.ones(1, dim, dtype=torch.float64))
    sums = (
        family.statistics(x.to(torch.float64), w[:, None].to(torch.float64), start)
        for x, w in zip(features, weights, strict=True)
    )
    return family.m_step(reduce(add, sums), start)
