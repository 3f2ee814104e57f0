"""Learning of models with a family: EM and its variants, by the statistics of batches."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hmm_functional import learning
from hmm_functional.emissions.constraints import need_at_least
from hmm_functional.learning import HMMParameters, Priors, Statistics

from .data import LARGEST_BATCH, Batch, Source, num_processes, sum_of_processes
from .descent import IMPOSSIBLE, LEAST_FRAMES, Descent, Trained, wide
from .report import Callback

if TYPE_CHECKING:
    from .trainable import TrainableHMM


AT_ONCE = 2**18
"""Scores of frames, on a CPU, that restarts which go together have between them."""


class Training(Descent):
    """Training of a model with a family by any method; models whose chain is another kind have one of their own."""

    _model: TrainableHMM
    _shares: int | None = None

    def __init__(
        self,
        model: TrainableHMM,
        source: Source,
        num_iterations: int,
        tolerance: float,
        priors: Priors | None,
        variance_floor: Any,
        frozen: Collection[str],
        callbacks: Sequence[Callback],
        progress: bool,
    ) -> None:
        known = tuple(model._parametrized())
        if isinstance(frozen, str) or not set(frozen) <= set(known):
            raise ValueError(f"frozen: expected some of {', '.join(map(repr, known))}, got {frozen!r}")
        if priors is not None:
            learning.need_concentrations(priors, model.num_states)
        super().__init__(model, source, num_iterations, tolerance, callbacks, progress)
        self._priors = priors
        self._frozen = {*frozen, *(() if model.learnable else ("log_initial", "log_transition"))}
        if variance_floor is None:
            variance_floor = source.least_variances()
        elif not isinstance(variance_floor, int | float):
            variance_floor = torch.as_tensor(variance_floor, dtype=torch.float64)
        need_at_least("variance_floor", variance_floor, 0.0)
        self._family = model._family(variance_floor, None if priors is None else priors.emission)
        self._durations = model._duration_family(1.0 if priors is None else priors.duration)
        self._fixed = model._fixed(self._frozen)

    def restarts_at_once(self) -> int:
        """How many go together: as many as share the cost of calls and do not outgrow caches.

        More than one only where every state has parameters of its own, and nothing looks at each step.
        """
        is_watched = bool(self._callbacks) or self._bar is not None
        has_own = self._model.emission.are_laws_apart and self._model.tied_states is None
        has_prior = self._priors is not None and self._priors.emission is not None
        has_fixed = self._fixed is not None and self._fixed.emission is not None
        frames = self._source.num_frames()
        if self._durations is not None or not has_own or is_watched or has_prior or has_fixed or frames is None:
            return 1
        on_host = self._model.initial_distribution.logits.device.type == "cpu"
        return max(1, (AT_ONCE if on_host else LARGEST_BATCH) // (frames * self._model.num_states))

    @torch.no_grad()
    def by_em(self, method: str, starts: list[HMMParameters]) -> list[Trained]:
        """Each iteration an E-step over all data and an M-step, from all starts at once."""
        current, live = list(starts), list(range(len(starts)))
        histories: list[list[float]] = [[] for _ in starts]
        stopped, dead = ["num_iterations"] * len(starts), [list[int]() for _ in starts]
        for iteration in range(self._num_iterations + 1):
            models = learning.together([current[r] for r in live])
            statistics = self._statistics(models, method)
            values, occupied = statistics.log_likelihood.reshape(-1), self._occupied(statistics)
            for i, r in enumerate(live):
                histories[r].append(self._objective(values[i], current[r]))
                dead[r] = [int(k) for k in (occupied[i] < LEAST_FRAMES).nonzero()[:, 0]]
            done = [r for r in live if self._has_converged(histories[r])]
            for r in done:
                stopped[r] = "converged"
            if iteration == self._num_iterations or len(done) == len(live):
                break
            found = learning.apart(self._maximize(statistics, models))
            for i, r in enumerate(live):
                if r not in done:
                    current[r] = found[i]
            live = [r for r in live if r not in done]
            if len(starts) == 1:
                self.assign(current[0])
                if self._tell(iteration, histories[0][-1]):
                    last = self._statistics(current[0], method)
                    histories[0].append(self._objective(last.log_likelihood, current[0]))
                    stopped[0] = "callback"
                    break
        for r, parameters in enumerate(current):
            if self._is_rounded(parameters):  # what the module holds is not what was computed with
                self.assign(parameters)
                rounded = self._parameters()
                histories[r][-1] = self._objective(self._statistics(rounded, method).log_likelihood, rounded)
        return [Trained(*one) for one in zip(histories, stopped, dead, current, strict=True)]

    @torch.no_grad()
    def stepwise(self, power: float) -> Trained:
        """An M-step after each batch, from running statistics; an iteration is a pass over the batches."""
        if not 0.5 < power <= 1:
            raise ValueError(f"learning_rate: expected a power above 0.5 and up to 1 for 'stepwise', got {power}")
        parameters, history, stopped = self.begin(), [], "num_iterations"
        running: Statistics | None = None
        num_batches = sum(1 for _ in self._source)
        step = 0
        for iteration in range(self._num_iterations):
            total = 0.0
            for batch in self._source:
                found = self._of_all(self._of_batch(batch, parameters, "em"))
                total += float(found.log_likelihood)
                found = learning.scale(found, num_batches)  # as if all the data were like this batch
                share = 1.0 if running is None or num_batches == 1 else (step + 2.0) ** -power
                running = found if running is None else learning.interpolate(running, found, share)
                step += 1
                moved = self._maximize(running, parameters)
                if hasattr(self._family, "moved"):
                    emission = self._family.moved(running.emission, parameters.emission, moved.emission)
                    running = running._replace(emission=emission)
                parameters = moved
            history.append(self._objective(torch.tensor(total, dtype=torch.float64), parameters))
            self.assign(parameters)
            if self._has_converged(history):
                stopped = "converged"
                break
            if self._tell(iteration, history[-1]):
                stopped = "callback"
                break
        return self._end(history, stopped)

    @torch.no_grad()
    def _end(self, history: list[float], stopped: str) -> Trained:
        """What became of the model that is at hand."""
        parameters = self._parameters()
        statistics = self._statistics(parameters, "em")
        history.append(self._objective(statistics.log_likelihood, parameters))
        return self._ended(history, stopped, self._occupied(statistics)[0])

    @staticmethod
    def _occupied(statistics: Statistics) -> Tensor:
        """Expected frames of each state, (R, K)."""
        found: Tensor = statistics.initial + statistics.transitions.sum(-2)
        return found.reshape(-1, found.shape[-1])

    def _parameters(self) -> HMMParameters:
        """The model's parameters in float64 (float32 where there is no other)."""
        return learning.each(lambda x: wide(x).clone(), self._model._live())  # type: ignore[no-any-return]

    def begin(self) -> HMMParameters:
        """The parameters at hand, variances raised to the floor."""
        parameters = self._parameters()
        if not hasattr(self._family, "bounded"):
            return parameters
        bounded = self._family.bounded(parameters.emission)
        if self._fixed is not None:
            bounded = learning.keep(self._fixed.emission, parameters.emission, bounded)
        return parameters._replace(emission=bounded)

    def _is_rounded(self, parameters: HMMParameters) -> bool:
        """Whether the module's dtype holds fewer digits."""
        return bool(self._model.initial_distribution.logits.dtype != parameters.log_initial.dtype)

    def assign(self, parameters: HMMParameters) -> None:
        values = self._model._named(parameters)
        for name, one in self._model._parametrized().items():
            if name not in self._frozen:
                one.take(values[name])

    def _maximize(self, statistics: Statistics, parameters: HMMParameters) -> HMMParameters:
        options = {"priors": self._priors, "fixed": self._fixed, "duration": self._durations}
        return learning.maximize(statistics, parameters, self._family, **options)

    def _statistics(self, parameters: HMMParameters, method: str) -> Statistics:
        found: Statistics | None = None
        for batch in self._source:
            one = self._of_batch(batch, parameters, method)
            found = one if found is None else learning.add(found, one)
        assert found is not None
        found = self._of_all(found)
        frames = getattr(found.emission, "counts", None)
        if frames is not None and not frames.sum() > 0:
            raise ValueError("data: expected frames to learn from, none is observed (or all are only conditioned upon)")
        return found

    def _of_batch(self, batch: Batch, parameters: HMMParameters, method: str) -> Statistics:
        model = self._model
        x, lengths, is_missing = model._prepare(batch.x, batch.lengths, "data")
        x = wide(x) if x.is_floating_point() else x
        device, shape = parameters.log_initial.device, tuple(x.shape[: x.ndim - len(model.frame_shape)])
        return learning.expected_statistics(
            parameters,
            self._family,
            x,
            lengths=lengths,
            weights=None if batch.weights is None else batch.weights.to(device),
            is_observed=None if is_missing is None else ~is_missing,
            is_allowed=model._ending(self._allowed(batch, device), shape, lengths),
            method=method,
            duration=self._durations,
            censored=model.censored,
        )

    def _allowed(self, batch: Batch, device: torch.device) -> Tensor | None:
        """(..., T, K): the state of the label, or all; None without labels."""
        if batch.labels is None:
            return None
        labels = batch.labels.to(device)[..., None]
        return (labels < 0) | (labels == torch.arange(self._model.num_states, device=device))

    def _of_all(self, found: Statistics) -> Statistics:
        """Statistics of all processes together, checked."""
        found = learning.each(sum_of_processes, found)
        if not torch.isfinite(found.log_likelihood).all():
            raise ValueError(IMPOSSIBLE)
        return found

    def _likelihood(self, batch: Batch) -> Tensor:
        is_allowed = self._allowed(batch, batch.x.device)
        if is_allowed is None:
            return super()._likelihood(batch)
        return self._model._restricted(batch.x, batch.lengths, is_allowed)

    def _weights(self) -> list[torch.nn.Parameter]:
        named = self._model._parametrized()
        held = {id(named[name].free) for name in self._frozen}
        return [p for p in super()._weights() if id(p) not in held]

    def _live_prior(self) -> Any:
        """A batch's share of the log density of the module's parameters before any data, differentiable."""
        if self._shares is None:
            self._shares = sum(1 for _ in self._source) * num_processes()
        return self._prior_of(self._model._live()) / self._shares

    @torch.no_grad()
    def log_prior(self) -> float:
        """log density of the model's parameters before any data, up to a constant."""
        return float(self._prior_of(self._parameters()))

    def _prior_of(self, parameters: HMMParameters) -> Any:
        """log density of parameters before any data, up to a constant."""
        return learning.log_prior(parameters, self._family, self._priors, self._durations)

    def _objective(self, log_likelihood: Tensor, parameters: HMMParameters) -> float:
        return float(log_likelihood) + float(self._prior_of(parameters))


class Online:
    """Running statistics of a model that learns from data as they come; see `TrainableHMM.partial_fit`."""

    def __init__(self) -> None:
        self._running: Statistics | None = None
        self._parameters: HMMParameters | None = None
        self._steps = 0
        self._frames = 0.0

    @torch.no_grad()
    def update(self, model: TrainableHMM, source: Source, power: float, options: dict[str, Any]) -> float:
        """An M-step from the statistics so far and those of new data; log p(new data) before it."""
        if not 0.5 < power <= 1:
            raise ValueError(f"power: expected a number above 0.5 and up to 1, got {power}")
        run = model._training(model, source, 1, 0.0, callbacks=(), progress=False, **options)
        parameters = run.begin()
        found = run._statistics(parameters, "em")
        value, frames = float(found.log_likelihood), float(found.initial.sum() + found.transitions.sum())
        found = learning.scale(found, 1.0 / frames)
        if self._running is not None:
            running, before = self._running, self._parameters
            if before is not None and hasattr(run._family, "moved"):
                moved = run._family.moved(running.emission, before.emission, parameters.emission)
                running = running._replace(emission=moved)
            found = learning.interpolate(running, found, (self._steps + 1.0) ** -power)
        self._running, self._parameters = found, parameters
        self._steps, self._frames = self._steps + 1, self._frames + frames
        # priors count against all frames seen
        run.assign(run._maximize(learning.scale(found, self._frames), parameters))
        return value
