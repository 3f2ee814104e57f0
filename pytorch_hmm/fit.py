"""Learning of a module's parameters from data: EM, its variants, and gradients, behind one `fit`."""

from __future__ import annotations

import copy
import sys
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn.modules.dropout import _DropoutNd

from hmm_functional import learning
from hmm_functional._check import need_count
from hmm_functional.emissions.constraints import need_at_least
from hmm_functional.learning import HMMParameters, Priors, Statistics

from .data import LARGEST_BATCH, Batch, Source, is_distributed, num_processes, padded, sum_of_processes

if TYPE_CHECKING:
    from .conditional import ConditionalHMM
    from .hmm import BaseHMM
    from .trainable import TrainableHMM

AT_ONCE = 2**18
"""Scores of frames, on a CPU, that restarts which go together have between them."""
LEAST_FRAMES = 1e-6
"""Of a state that is not dead."""

_IMPOSSIBLE = (
    "data: a sequence is impossible under the model, log p = -inf; structural zeros, longest durations, labels or "
    "parameters exclude it (model(x) says which)"
)

Method = Literal["em", "gradient", "viterbi", "stepwise"]
Init = Literal["kmeans", "random", "keep"]


class NotConverged(UserWarning):
    """`fit` did all its iterations and the last still gained more than the tolerance."""


@dataclass(frozen=True, repr=False)
class FitReport:
    """What `fit` did."""

    history: list[float]
    """log p(data), weighted, plus the log density of the priors (up to a constant): before each iteration, and at the
    end."""
    stopped: str
    """"converged", "num_iterations" or "callback"."""
    seconds: float
    dead_states: list[int]
    """States that expect less than a millionth of a frame in all the data; they keep the parameters they had."""
    restarts: list[float] = field(default_factory=list)
    """The last of the history of each restart; the best was kept."""
    log_prior: float = 0.0
    """log density of the priors at the end, up to a constant; a part of the history."""

    @property
    def converged(self) -> bool:
        """Whether the last iteration gained less than the tolerance."""
        return self.stopped == "converged"

    @property
    def log_likelihood(self) -> float:
        """log p(data), weighted, at the end: the last of the history less `log_prior`."""
        return self.history[-1] - self.log_prior

    def __repr__(self) -> str:
        ends = f", best of {len(self.restarts)} restarts" if len(self.restarts) > 1 else ""
        dead = f", dead_states={self.dead_states}" if self.dead_states else ""
        first, last = (f"{value:.6g}" for value in (self.history[0], self.history[-1]))
        steps = f"{len(self.history) - 1} iterations from {first} to {last}"
        return f"FitReport({self.stopped}: {steps}{ends}, {self.seconds:.3g} s{dead})"


class Progress(NamedTuple):
    """What callbacks are told after each iteration."""

    iteration: int
    log_likelihood: float
    """Before the iteration."""
    model: BaseHMM
    """With the parameters after it."""


Callback = Callable[[Progress], Any]


def fit(
    model: TrainableHMM,
    data: Any,
    lengths: Any,
    *,
    method: Method,
    num_iterations: int,
    tolerance: float,
    init: Init,
    num_restarts: int,
    sample_weights: Any,
    labels: Any,
    priors: Priors | None,
    variance_floor: Any,
    frozen: Collection[str],
    learning_rate: float | None,
    callbacks: Sequence[Callback],
    progress: bool,
    generator: torch.Generator | None,
) -> FitReport:
    """The free function behind `TrainableHMM.fit`, which has the defaults and says what it does."""
    started = time.perf_counter()
    _need_options(generator, num_iterations, tolerance, method=(method, get_args(Method)), init=(init, get_args(Init)))
    need_count("num_restarts", num_restarts, 1)
    if num_restarts > 1 and init == "keep":
        raise ValueError("num_restarts: expected 1 with init='keep', whose restarts would all be the same")
    source = Source(model, data, lengths, sample_weights, labels)
    run = model._training(model, source, num_iterations, tolerance, priors, variance_floor, frozen, callbacks, progress)
    size = run.restarts_at_once() if method in ("em", "viterbi") else 1
    groups = [min(size, num_restarts - start) for start in range(0, num_restarts, size)]
    best: tuple[Trained, dict[str, Any]] | None = None
    ends: list[float] = []
    for count in groups:
        starts = []
        for _ in range(count):
            if init != "keep":
                held = {name: copy.deepcopy(model._parametrized()[name].state_dict()) for name in frozen}
                _start(model, source, init, generator)
                for name, state in held.items():
                    model._parametrized()[name].load_state_dict(state)
            _as_the_first(model)
            starts.append(run.begin())
        if method == "gradient":
            found = [run.by_gradient(0.05 if learning_rate is None else learning_rate)]
        elif method == "stepwise":
            found = [run.stepwise(0.7 if learning_rate is None else learning_rate)]
        else:
            found = run.by_em(method, starts)
        ends += [one.history[-1] for one in found]
        for one in found:
            if best is None or not one.history[-1] <= best[0].history[-1]:
                if one.parameters is not None:
                    run.assign(one.parameters)
                best = one, {name: value.clone() for name, value in model.state_dict().items()}
    run.close()
    assert best is not None
    if num_restarts > 1:
        model.load_state_dict(best[1])
    history, stopped, dead = best[0].history, best[0].stopped, best[0].dead_states
    report = FitReport(history, stopped, time.perf_counter() - started, dead, ends, run.log_prior())
    _warn_unless_converged(report, num_iterations, tolerance)
    return report


def descend(
    model: ConditionalHMM,
    data: Any,
    lengths: Any,
    inputs: dict[str, Any],
    *,
    num_iterations: int,
    tolerance: float,
    init: Init,
    learning_rate: float,
    sample_weights: Any,
    callbacks: Sequence[Callback],
    progress: bool,
    generator: torch.Generator | None,
) -> FitReport:
    """The free function behind `ConditionalHMM.fit`, which has the defaults and says what it does."""
    started = time.perf_counter()
    _need_options(generator, num_iterations, tolerance, init=(init, ("kmeans", "keep")))
    source = Source(model, data, lengths, sample_weights, None, inputs)
    if init != "keep":
        sequences: list[Tensor] = []
        counts: list[Tensor] = []
        for batch in source.first_batches():  # in one pass: a loader may shuffle
            sequences += [x for x, _ in source.apart(batch)]
            if (found := model._num_states_of(batch)) is not None:
                counts.append(found)
        x, ends = padded(sequences)
        known = torch.cat(counts) if counts else None
        model.initialize_from_data(x, ends, state_lengths=known, generator=generator)
    _as_the_first(model)
    run = Descent(model, source, num_iterations, tolerance, callbacks, progress)
    end = run.by_gradient(learning_rate)
    run.close()
    report = FitReport(end.history, end.stopped, time.perf_counter() - started, end.dead_states)
    _warn_unless_converged(report, num_iterations, tolerance)
    return report


def _need_options(
    generator: Any, num_iterations: int, tolerance: float, **choices: tuple[str, tuple[str, ...]]
) -> None:
    """Raise where an argument of `fit` is none."""
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator: expected a torch.Generator, got {type(generator).__name__}")
    for name, (value, known) in choices.items():
        if value not in known:
            raise ValueError(f"{name}: expected one of {', '.join(map(repr, known))}, got {value!r}")
    need_count("num_iterations", num_iterations, 0)
    if not tolerance >= 0:
        raise ValueError(f"tolerance: expected a number of at least 0, got {tolerance}")


def _warn_unless_converged(report: FitReport, num_iterations: int, tolerance: float) -> None:
    if report.stopped == "num_iterations" and tolerance > 0 and num_iterations > 0:
        gain = report.history[-1] - report.history[-2]
        warnings.warn(
            f"fit: not converged after {num_iterations} iterations, the last changed {gain:+.3g} nats of "
            f"{report.history[-1]:.6g}; raise num_iterations, or the tolerance of {tolerance:g}",
            NotConverged,
            stacklevel=_depth(),
        )


def _depth() -> int:
    """`stacklevel` of a warning of the caller's that names the line outside of this package."""
    frame, depth = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals["__name__"].partition(".")[0] == __package__:
        frame, depth = frame.f_back, depth + 1
    return depth


def _start(model: TrainableHMM, source: Source, init: Init, generator: torch.Generator | None) -> None:
    """Parameters to start from, of the batches that fit into LARGEST_BATCH together."""
    sequences = list(source.sequences())
    x, lengths = padded([x for x, _ in sequences])
    labels = None
    if any(y is not None for _, y in sequences):
        labels, _ = padded([y for _, y in sequences if y is not None], -1)
    begin = model.initialize_from_data if init == "kmeans" else model.initialize_randomly
    begin(x, lengths, generator=generator, labels=labels)


class Trained(NamedTuple):
    """The end of one training."""

    history: list[float]
    stopped: str
    dead_states: list[int]
    parameters: HMMParameters | None
    """What was found, in float64; None where the model holds it."""


class Descent:
    """Training of a model by gradients: the loop, when it stops, and who is told."""

    _model: Any

    def __init__(
        self,
        model: TrainableHMM | ConditionalHMM,
        source: Source,
        num_iterations: int,
        tolerance: float,
        callbacks: Sequence[Callback],
        progress: bool,
    ) -> None:
        self._model, self._source = model, source
        self._num_iterations, self._tolerance = num_iterations, tolerance
        self._callbacks = callbacks
        self._bar = _bar(num_iterations) if progress else None

    def by_gradient(self, rate: float) -> Trained:
        """Adam on -log p(data) a frame; each iteration a pass over the batches.

        Where modules drop out, what the steps come from are likelihoods of thinned networks: then each iteration begins
        with another pass, without gradients, that scores the whole ones, so that all of the history is alike.
        """
        weights = self._weights()
        if not weights:
            raise ValueError("method: expected something to learn, everything is frozen or not learnable")
        optimiser = torch.optim.Adam(weights, lr=rate)
        history: list[float] = []
        stopped, best, state = "num_iterations", -inf, {}
        is_thinned = _is_thinned(self._model)
        for iteration in range(self._num_iterations):
            total = self._value() if is_thinned else 0.0
            before = {name: value.clone() for name, value in self._model.state_dict().items()}
            for batch in self._source:
                optimiser.zero_grad()
                loss, frames = self._loss(batch)
                (loss - self._live_prior()).backward()
                count = sum_of_processes(torch.tensor(float(frames), dtype=torch.float64))
                for p in weights:
                    if p.grad is not None:
                        p.grad.copy_(sum_of_processes(p.grad) / count.to(p.grad))
                optimiser.step()
                if not is_thinned:
                    total -= float(sum_of_processes(_wide(loss)))
            history.append(total + self.log_prior())
            if history[-1] > best:
                best, state = history[-1], before
            # a step too far is no convergence
            if self._has_converged(history) and history[-1] >= history[-2]:
                stopped = "converged"
                break
            if self._tell(iteration, history[-1]):
                stopped = "callback"
                break
        found = self._end(history, stopped)
        if found.history[-1] < best:  # the best of all steps is kept
            self._model.load_state_dict(state)
            found = self._end(history[:-1], stopped)
        return found

    def close(self) -> None:
        """End the progress bar."""
        if self._bar is not None:
            self._bar.close()

    def log_prior(self) -> float:
        """log density of the model's parameters before any data, up to a constant."""
        return 0.0

    def _live_prior(self) -> Any:
        """A batch's share of the same, differentiable."""
        return 0.0

    def _weights(self) -> list[torch.nn.Parameter]:
        """What is learned."""
        return [p for p in self._model.parameters() if p.requires_grad]

    def _likelihood(self, batch: Batch) -> Tensor:
        """log p(x) of each sequence, (...)."""
        return self._model(batch.x, batch.lengths, **(batch.inputs or {}))  # type: ignore[no-any-return]

    def _loss(self, batch: Batch) -> tuple[Tensor, int]:
        """-log p(batch), weighted, and how many frames it has."""
        likelihood = self._likelihood(batch)
        weights = 1.0 if batch.weights is None else batch.weights.to(likelihood)
        loss = -(likelihood * weights).sum()
        if not torch.isfinite(sum_of_processes(loss.detach())):
            raise ValueError(_IMPOSSIBLE)
        return loss, self._model._num_frames(batch.x, batch.lengths)

    @torch.no_grad()
    def _value(self) -> float:
        """log p(data), weighted, of whole networks."""
        with _whole(self._model):
            return -sum(float(sum_of_processes(_wide(self._loss(batch)[0]))) for batch in self._source)

    @torch.no_grad()
    def _end(self, history: list[float], stopped: str) -> Trained:
        """What became of the model that is at hand."""
        total, occupied = 0.0, torch.zeros(self._model.num_states, dtype=torch.float64)
        with _whole(self._model):
            for batch in self._source:
                inputs = batch.inputs or {}
                posteriors, likelihood = self._model.forward_backward(batch.x, batch.lengths, **inputs)
                weights = torch.ones_like(likelihood) if batch.weights is None else batch.weights.to(likelihood)
                total += float((_wide(likelihood) * weights).sum())
                found = _wide(posteriors).sum(-2) * weights[..., None]
                found = found.reshape(-1, found.shape[-1]).sum(0)
                occupied[: len(found)] += found.cpu()
        history.append(float(sum_of_processes(torch.tensor(total, dtype=torch.float64))))
        occupied = sum_of_processes(occupied)
        return self._ended(history, stopped, occupied if self._model._has_own_states else occupied.new_empty(0))

    def _ended(self, history: list[float], stopped: str, occupied: Tensor) -> Trained:
        if stopped == "num_iterations" and self._has_converged(history) and history[-1] >= history[-2]:
            stopped = "converged"
        return Trained(history, stopped, [int(k) for k in (occupied < LEAST_FRAMES).nonzero()[:, 0]], None)

    def _has_converged(self, history: list[float]) -> bool:
        return len(history) > 1 and self._tolerance > 0 and history[-1] - history[-2] < self._tolerance

    def _tell(self, iteration: int, value: float) -> bool:
        """Callbacks; whether one of them said False, which stops."""
        if self._bar is not None:
            self._bar.update()
            self._bar.set_postfix_str(f"{value:.6g} nats")
        told = Progress(iteration, value, self._model)
        return any([callback(told) is False for callback in self._callbacks])


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
        return learning.each(lambda x: _wide(x).clone(), self._model._live())  # type: ignore[no-any-return]

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
        x = _wide(x) if x.is_floating_point() else x
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
            raise ValueError(_IMPOSSIBLE)
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


def _wide(x: Tensor) -> Tensor:
    """float64 where the device has it."""
    return x.detach() if x.device.type == "mps" else x.detach().double()


@contextmanager
def _whole(model: torch.nn.Module) -> Iterator[None]:
    """Nothing drops out; each module has its own mode again behind it."""
    modes = [(one, one.training) for one in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for one, mode in modes:
            one.training = mode


def _is_thinned(model: torch.nn.Module) -> bool:
    """Whether modules of torch in it drop out, in the mode that it is in."""
    parts = [one for one in model.modules() if one.training]
    shares = [one.p for one in parts if isinstance(one, _DropoutNd)]
    shares += [one.dropout for one in parts if isinstance(one, torch.nn.RNNBase | torch.nn.MultiheadAttention)]
    return any(share > 0 for share in shares)


def _as_the_first(model: BaseHMM) -> None:
    """The parameters of the first process, in all of them."""
    if is_distributed():
        for value in model.state_dict().values():
            torch.distributed.broadcast(value, 0)


def _bar(total: int) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, desc="fit")
