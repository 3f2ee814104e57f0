"""Learning of a module's parameters from data: EM, its variants, and gradients, behind one `fit`."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from hmm_functional import learning
from hmm_functional._check import need_count
from hmm_functional.learning import HMMParameters, Priors, Statistics

from ._check import first, lengths_like, need_frames

if TYPE_CHECKING:
    from .emission import EmissionHMM

Method = Literal["em", "gradient", "viterbi", "stepwise"]
Init = Literal["kmeans", "random", "keep"]

LEAST_SHARE = 1e-6
"""Of each feature's variance, the least variance of a Gaussian unless another is given."""
LARGEST_BATCH = 2**22
"""Numbers of observations that a list of sequences is padded to batches of."""


class NotConverged(UserWarning):
    """`fit` did all its iterations and the last still gained more than the tolerance."""


@dataclass(frozen=True)
class FitReport:
    """What `fit` did."""

    history: list[float]
    """log p(data), weighted, plus the log density of the priors: before each iteration, and at the end."""
    stopped: str
    """"converged", "num_iterations" or "callback"."""
    seconds: float
    dead_states: list[int]
    """States that expect less than a millionth of a frame in all the data; they keep the parameters they had."""
    restarts: list[float] = field(default_factory=list)
    """The last of the history of each restart; the best was kept."""

    @property
    def converged(self) -> bool:
        """Whether the last iteration gained less than the tolerance."""
        return self.stopped == "converged"

    @property
    def log_likelihood(self) -> float:
        """The last of the history."""
        return self.history[-1]


class Progress(NamedTuple):
    """What callbacks are told after each iteration."""

    iteration: int
    log_likelihood: float
    """Before the iteration."""
    model: EmissionHMM
    """With the parameters after it."""


Callback = Callable[[Progress], Any]


class Batch(NamedTuple):
    """Sequences that are computed together."""

    x: Tensor
    lengths: Tensor | None
    weights: Tensor | None
    labels: Tensor | None


def fit(
    model: EmissionHMM,
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
    """The free function behind `EmissionHMM.fit`, which has the defaults and says what it does."""
    started = time.perf_counter()
    for name, value, known in (("method", method, get_args(Method)), ("init", init, get_args(Init))):
        if value not in known:
            raise ValueError(f"{name}: expected one of {', '.join(map(repr, known))}, got {value!r}")
    need_count("num_iterations", num_iterations, 0)
    need_count("num_restarts", num_restarts, 1)
    if not tolerance >= 0:
        raise ValueError(f"tolerance: expected a number of at least 0, got {tolerance}")
    if num_restarts > 1 and init == "keep":
        raise ValueError("num_restarts: expected 1 with init='keep', whose restarts would all be the same")
    known_names = tuple(model._weights())
    if isinstance(frozen, str) or not set(frozen) <= set(known_names):
        raise ValueError(f"frozen: expected some of {', '.join(map(repr, known_names))}, got {frozen!r}")
    if priors is not None:
        learning.need_concentrations(priors, model.num_states)
    source = Source(model, data, lengths, sample_weights, labels)
    best: tuple[FitReport, dict[str, Any]] | None = None
    ends = []
    for _ in range(num_restarts):
        if init != "keep":
            held = _held(model, frozen)
            _start(model, source, init, generator)
            model.load_state_dict(held, strict=False)
        _as_the_first(model)
        run = _Run(model, source, num_iterations, tolerance, priors, variance_floor, frozen, callbacks, progress)
        if method == "gradient":
            history, stopped = run.by_gradient(0.05 if learning_rate is None else learning_rate)
        elif method == "stepwise":
            history, stopped = run.stepwise(0.7 if learning_rate is None else learning_rate)
        else:
            history, stopped = run.by_em(method)
        run.close()
        ends.append(history[-1])
        report = FitReport(history, stopped, time.perf_counter() - started, run.dead_states(), ends)
        if best is None or not history[-1] <= best[0].history[-1]:
            best = report, {name: value.clone() for name, value in model.state_dict().items()}
    assert best is not None
    report, state = best
    if num_restarts > 1:
        model.load_state_dict(state)
    if report.stopped == "num_iterations" and tolerance > 0 and num_iterations > 0:
        gain = report.history[-1] - report.history[-2]
        warnings.warn(
            f"fit: not converged after {num_iterations} iterations, the last gained {gain:.3g} nats of "
            f"{report.history[-1]:.6g}; raise num_iterations, or the tolerance of {tolerance:g}",
            NotConverged,
            stacklevel=3,
        )
    return report


class Source:
    """Batches of checked sequences, in the order given, as often as they are asked for.

    Args:
        data: a tensor (..., T, *frame); a list of tensors (T_i, *frame); or anything that gives batches each time it is
            iterated over, as a DataLoader does: tensors, or tuples (x, lengths).
    """

    def __init__(self, model: EmissionHMM, data: Any, lengths: Any, weights: Any, labels: Any) -> None:
        self._model = model
        self._batches: list[Batch] | None = None
        if isinstance(data, Tensor):
            shape = tuple(data.shape[: data.ndim - self._rank])
            weights = None if weights is None else self._weights(weights, shape[:-1])
            if labels is not None and (not isinstance(labels, Tensor) or tuple(labels.shape) != shape):
                raise ValueError(f"labels: expected an integer tensor of shape {shape}, a state or -1 for each frame")
            self._batches = [self._checked(data, lengths, weights, labels)]
        elif isinstance(data, list | tuple) and not any(isinstance(item, tuple) for item in data):
            if lengths is not None:
                raise ValueError("lengths: expected None with a list of sequences, which have lengths of their own")
            self._batches = self._of_list(data, weights, labels)
        elif isinstance(data, Iterable):
            if iter(data) is data:
                raise TypeError("data: expected something that can be iterated over again, got an iterator")
            for name, value in (("lengths", lengths), ("sample_weights", weights), ("labels", labels)):
                if value is not None:
                    raise ValueError(f"{name}: expected None with batches, which hold (x, lengths)")
            self._loader = data
        else:
            raise TypeError(f"data: expected a tensor, a list of tensors or batches, got {type(data).__name__}")

    @property
    def _rank(self) -> int:
        return len(self._model.frame_shape)

    def __iter__(self) -> Iterator[Batch]:
        if self._batches is not None:
            yield from self._batches
            return
        count = 0
        for item in self._loader:
            x, lengths = item if isinstance(item, list | tuple) and len(item) == 2 else (item, None)
            if isinstance(x, list | tuple) and len(x) == 1:
                x = x[0]
            count += 1
            yield self._checked(x, lengths, None, None)
        if not count:
            raise ValueError("data: expected at least one batch, got none")

    def sequences(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Sequences without padding, (T_i, *frame), and their labels, of as many batches as LARGEST_BATCH holds."""
        size = 0
        for batch in self:
            shape = batch.x.shape[: batch.x.ndim - self._rank]
            flat = batch.x.reshape(-1, *batch.x.shape[len(shape) - 1 :])
            labels = None if batch.labels is None else batch.labels.reshape(-1, shape[-1])
            ends = [shape[-1]] * len(flat) if batch.lengths is None else batch.lengths.reshape(-1).tolist()
            for i, end in enumerate(ends):
                yield flat[i, :end], None if labels is None else labels[i, :end]
            size += batch.x.numel()
            if size > LARGEST_BATCH:
                return

    def frames(self) -> Iterator[Tensor]:
        """The same sequences alone."""
        return (x for x, _ in self.sequences())

    def least_variances(self) -> Tensor | float:
        """LEAST_SHARE of the features' variances (D,) in those frames; a constant feature counts as the mean one."""
        if self._rank == 0:
            return 0.0
        frames = torch.cat(list(self.frames())).double()
        frames = frames[~frames.isnan().any(-1)]
        count = _sum_of_processes(torch.tensor(float(len(frames)), device=frames.device, dtype=frames.dtype))
        mean = _sum_of_processes(frames.sum(0)) / count.clamp_min(1.0)
        variances = _sum_of_processes((frames - mean).square().sum(0)) / count.clamp_min(1.0)
        # rounding of the data themselves is no variance
        is_some = variances > (1e-7 * mean).square()
        others = variances[is_some].mean() if is_some.any() else variances.new_ones(())
        return LEAST_SHARE * variances.where(is_some, others)

    def _checked(self, x: Any, lengths: Any, weights: Tensor | None, labels: Tensor | None) -> Batch:
        need_frames("data", x, self._model.frame_shape)
        if labels is not None:
            num_states = self._model.num_states
            if lengths is not None:  # what padding holds is not read
                steps = torch.arange(labels.shape[-1], device=labels.device)
                labels = labels.where(steps < torch.as_tensor(lengths, device=labels.device)[..., None], -1)
            if labels.is_floating_point() or bool(((labels < -1) | (labels >= num_states)).any()):
                raise ValueError(f"labels: expected integers, states 0..{num_states - 1} or -1 where unknown")
        if lengths is not None:
            shape = tuple(x.shape[: x.ndim - self._rank])
            lengths = lengths_like(lengths, x, shape[:-1], shape[-1])
        return Batch(x, lengths, weights, labels)

    def _weights(self, weights: Any, shape: tuple[int, ...]) -> Tensor:
        found = torch.as_tensor(weights)
        if tuple(found.shape) != shape:
            raise ValueError(f"sample_weights: expected one a sequence, shape {shape}, got {tuple(found.shape)}")
        is_bad = ~((found >= 0) & (found < inf))
        if is_bad.any():
            at = first(is_bad)
            raise ValueError(f"sample_weights: expected numbers from 0, got {float(found[at])} at {at}")
        if not found.any():
            raise ValueError("sample_weights: expected one above 0 at least, got zeros alone")
        return found

    def _of_list(self, data: Sequence[Any], weights: Any, labels: Any) -> list[Batch]:
        """Padded batches of sequences of like length, the longest first."""
        if not data:
            raise ValueError("data: expected at least one sequence, got none")
        for i, x in enumerate(data):
            need_frames(f"data[{i}]", x, self._model.frame_shape)
            if x.ndim != 1 + self._rank:
                raise ValueError(f"data[{i}]: expected one sequence (T, ...), got {tuple(x.shape)}")
        if weights is not None:
            weights = self._weights(weights, (len(data),))
        if labels is not None and [len(y) for y in labels] != [len(x) for x in data]:
            raise ValueError("labels: expected one tensor of states for each sequence, as long as it")
        order = sorted(range(len(data)), key=lambda i: -len(data[i]))
        found, start = [], 0
        while start < len(order):
            longest = data[order[start]]
            count = max(1, LARGEST_BATCH // max(1, longest.numel()))
            chosen = order[start : start + count]
            x, ends = padded([data[i] for i in chosen])
            found.append(
                self._checked(
                    x,
                    None if bool((ends == ends[0]).all()) else ends,
                    None if weights is None else weights[chosen],
                    None if labels is None else padded([labels[i] for i in chosen], -1)[0],
                )
            )
            start += count
        return found


def padded(sequences: Sequence[Tensor], value: float = 0.0) -> tuple[Tensor, Tensor]:
    """Sequences as one tensor (B, T, ...), `value` in the padding, and their lengths (B,)."""
    lengths = torch.tensor([len(x) for x in sequences], device=sequences[0].device)
    return torch.nn.utils.rnn.pad_sequence(list(sequences), batch_first=True, padding_value=value), lengths


def _held(model: EmissionHMM, frozen: Collection[str]) -> dict[str, Tensor]:
    """The part of the model's state that belongs to frozen parameters."""
    ours = {id(weight) for name, weight in model._weights().items() if name in frozen}
    names = [name for name, weight in model.named_parameters() if id(weight) in ours]
    owners = tuple(name.rpartition(".")[0] + "." for name in names if "." in name)
    state = model.state_dict()
    return {key: value.clone() for key, value in state.items() if key in names or key.startswith(owners)}


def _start(model: EmissionHMM, source: Source, init: Init, generator: torch.Generator | None) -> None:
    """Parameters to start from, of the batches that fit into LARGEST_BATCH together."""
    sequences = list(source.sequences())
    x, lengths = padded([x for x, _ in sequences])
    labels = None
    if any(y is not None for _, y in sequences):
        labels, _ = padded([y for _, y in sequences if y is not None], -1)
    begin = model.initialize_from_data if init == "kmeans" else model.initialize_randomly
    begin(x, lengths, generator=generator, labels=labels)


class _Run:
    """One training of a model."""

    def __init__(
        self,
        model: EmissionHMM,
        source: Source,
        num_iterations: int,
        tolerance: float,
        priors: Priors | None,
        variance_floor: Any,
        frozen: Collection[str],
        callbacks: Sequence[Callback],
        progress: bool,
    ) -> None:
        self._model, self._source = model, source
        self._num_iterations, self._tolerance = num_iterations, tolerance
        self._priors, self._callbacks = priors, callbacks
        self._frozen = {*frozen, *(() if model.learnable else ("log_initial", "log_transition"))}
        if variance_floor is None:
            variance_floor = source.least_variances()
        self._family = model._family(variance_floor, None if priors is None else priors.emission)
        self._bar = _bar(num_iterations) if progress else None
        self._occupied: Tensor | None = None

    @torch.no_grad()
    def by_em(self, method: str) -> tuple[list[float], str]:
        """Each iteration an E-step over all data and an M-step."""
        parameters, history, stopped = self._begin(), [], "num_iterations"
        for iteration in range(self._num_iterations + 1):
            is_last = iteration == self._num_iterations
            statistics = self._statistics(parameters, method)
            history.append(self._objective(statistics.log_likelihood, parameters))
            if self._has_converged(history):
                stopped = "converged"
                break
            if is_last:
                break
            parameters = self._maximize(statistics, parameters)
            self._assign(parameters)
            if self._tell(iteration, history[-1]):
                history.append(self._objective(self._statistics(parameters, method).log_likelihood, parameters))
                stopped = "callback"
                break
        if self._is_rounded(parameters):  # what the module holds is not what was computed with
            parameters = self._parameters()
            history[-1] = self._objective(self._statistics(parameters, method).log_likelihood, parameters)
        return history, stopped

    @torch.no_grad()
    def stepwise(self, power: float) -> tuple[list[float], str]:
        """An M-step after each batch, from running statistics; an iteration is a pass over the batches."""
        if not 0.5 < power <= 1:
            raise ValueError(f"learning_rate: expected a power above 0.5 and up to 1 for 'stepwise', got {power}")
        parameters, history, stopped = self._begin(), [], "num_iterations"
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
            self._assign(parameters)
            if self._has_converged(history):
                stopped = "converged"
                break
            if self._tell(iteration, history[-1]):
                stopped = "callback"
                break
        parameters = self._parameters()
        history.append(self._objective(self._statistics(parameters, "em").log_likelihood, parameters))
        return history, stopped

    def by_gradient(self, rate: float) -> tuple[list[float], str]:
        """Adam on -log p(data) a frame; each iteration a pass over the batches."""
        named = self._model._weights()
        held = {id(named[name]) for name in self._frozen}
        weights = [p for p in self._model.parameters() if p.requires_grad and id(p) not in held]
        optimiser = torch.optim.Adam(weights, lr=rate)
        shares = sum(1 for _ in self._source) * _num_processes()
        history: list[float] = []
        stopped, best, state = "num_iterations", -inf, {}
        for iteration in range(self._num_iterations):
            total = 0.0
            before = {name: value.clone() for name, value in self._model.state_dict().items()}
            for batch in self._source:
                optimiser.zero_grad()
                loss, frames = self._loss(batch)
                (loss - self._live_prior() / shares).backward()
                count = _sum_of_processes(torch.tensor(float(frames), dtype=torch.float64))
                for p in weights:
                    if p.grad is not None:
                        p.grad.copy_(_sum_of_processes(p.grad) / count.to(p.grad))
                optimiser.step()
                total -= float(_sum_of_processes(loss.detach().double()))
            with torch.no_grad():
                history.append(self._objective(torch.tensor(total), self._parameters()))
            if history[-1] > best:
                best, state = history[-1], before
            # a step too far is no convergence
            if self._has_converged(history) and history[-1] >= history[-2]:
                stopped = "converged"
                break
            if self._tell(iteration, history[-1]):
                stopped = "callback"
                break
        with torch.no_grad():
            parameters = self._parameters()
            value = self._objective(self._statistics(parameters, "em").log_likelihood, parameters)
            if value < best:  # the best of all steps is kept
                self._model.load_state_dict(state)
                parameters = self._parameters()
                value = self._objective(self._statistics(parameters, "em").log_likelihood, parameters)
            history.append(value)
        return history, stopped

    def dead_states(self) -> list[int]:
        """States that the last E-step found no frame for."""
        if self._occupied is None:
            return []
        return [int(k) for k in (self._occupied < 1e-6).nonzero()[:, 0]]

    def _parameters(self) -> HMMParameters:
        """The model's parameters in float64 (float32 where there is no other)."""
        model = self._model
        emission = model._emission_parameters()
        own = type(emission)(*(_wide(x) for x in emission))
        return HMMParameters(_wide(model.log_initial), _wide(model.log_transition), own)

    def _begin(self) -> HMMParameters:
        """The parameters at hand, variances raised to the floor."""
        parameters = self._parameters()
        if "covariances" not in self._frozen and hasattr(self._family, "bounded"):
            parameters = parameters._replace(emission=self._family.bounded(parameters.emission))
        return parameters

    def _is_rounded(self, parameters: HMMParameters) -> bool:
        """Whether the module's dtype holds fewer digits."""
        return bool(self._model.initial_distribution.logits.dtype != parameters.log_initial.dtype)

    def _assign(self, parameters: HMMParameters) -> None:
        model = self._model
        for name in ("log_initial", "log_transition"):
            if name not in self._frozen:
                setattr(model, name, getattr(parameters, name))
        for name, value in parameters.emission._asdict().items():
            if name not in self._frozen:
                setattr(model, name, model._storable(name, value))

    def _maximize(self, statistics: Statistics, parameters: HMMParameters) -> HMMParameters:
        found = learning.maximize(statistics, parameters, self._family, priors=self._priors)
        emission = found.emission._replace(
            **{n: v for n, v in parameters.emission._asdict().items() if n in self._frozen}
        )
        kept = {name: getattr(parameters, name) for name in ("log_initial", "log_transition") if name in self._frozen}
        return found._replace(emission=emission, **kept)

    def _statistics(self, parameters: HMMParameters, method: str) -> Statistics:
        found: Statistics | None = None
        for batch in self._source:
            one = self._of_batch(batch, parameters, method)
            found = one if found is None else learning.add(found, one)
        assert found is not None
        found = self._of_all(found)
        self._occupied = found.initial + found.transitions.sum(0)
        return found

    def _of_batch(self, batch: Batch, parameters: HMMParameters, method: str) -> Statistics:
        model = self._model
        x, lengths, is_missing = model._prepare(batch.x, batch.lengths, "data")
        x = _wide(x) if x.is_floating_point() else x
        device = parameters.log_initial.device
        return learning.expected_statistics(
            parameters,
            self._family,
            x,
            lengths=lengths,
            weights=None if batch.weights is None else batch.weights.to(device),
            is_observed=None if is_missing is None else ~is_missing,
            is_allowed=self._allowed(batch, device),
            method=method,
        )

    def _allowed(self, batch: Batch, device: torch.device) -> Tensor | None:
        """(..., T, K): the state of the label, or all; None without labels."""
        if batch.labels is None:
            return None
        labels = batch.labels.to(device)[..., None]
        return (labels < 0) | (labels == torch.arange(self._model.num_states, device=device))

    def _of_all(self, found: Statistics) -> Statistics:
        """Statistics of all processes together, checked."""
        found = learning.each(_sum_of_processes, found)
        if not torch.isfinite(found.log_likelihood):
            raise ValueError(
                "data: a sequence is impossible under the model, log p = -inf; structural zeros, labels or parameters "
                "exclude it (model(x) says which)"
            )
        return found

    def _loss(self, batch: Batch) -> tuple[Tensor, int]:
        model = self._model
        is_allowed = self._allowed(batch, batch.x.device)
        if is_allowed is None:
            likelihood = model(batch.x, batch.lengths)
        else:
            likelihood = model._restricted(batch.x, batch.lengths, is_allowed)
        weights = 1.0 if batch.weights is None else batch.weights.to(likelihood)
        num_steps = batch.x.shape[batch.x.ndim - len(model.frame_shape) - 1]
        frames = num_steps * likelihood.numel() if batch.lengths is None else int(batch.lengths.sum())
        loss = -(likelihood * weights).sum()
        if not torch.isfinite(_sum_of_processes(loss.detach())):
            raise ValueError("data: a sequence is impossible under the model, log p = -inf")
        return loss, frames

    def _live_prior(self) -> Any:
        """log density of the module's parameters before any data, differentiable."""
        model = self._model
        live = HMMParameters(model.log_initial, model.log_transition, model._emission_parameters())
        return learning.log_prior(live, self._family, self._priors)

    def close(self) -> None:
        """End the progress bar."""
        if self._bar is not None:
            self._bar.close()

    def _objective(self, log_likelihood: Tensor, parameters: HMMParameters) -> float:
        return float(log_likelihood) + float(learning.log_prior(parameters, self._family, self._priors))

    def _has_converged(self, history: list[float]) -> bool:
        return len(history) > 1 and self._tolerance > 0 and history[-1] - history[-2] < self._tolerance

    def _tell(self, iteration: int, value: float) -> bool:
        """Callbacks; whether one of them said False, which stops."""
        if self._bar is not None:
            self._bar.update()
            self._bar.set_postfix_str(f"{value:.6g} nats")
        told = Progress(iteration, value, self._model)
        return any([callback(told) is False for callback in self._callbacks])


class Online:
    """Running statistics of a model that learns from data as they come; see `EmissionHMM.partial_fit`."""

    def __init__(self) -> None:
        self._running: Statistics | None = None
        self._parameters: HMMParameters | None = None
        self._steps = 0
        self._frames = 0.0

    @torch.no_grad()
    def update(self, model: EmissionHMM, source: Source, power: float, options: dict[str, Any]) -> float:
        """An M-step from the statistics so far and those of new data; log p(new data) before it."""
        if not 0.5 < power <= 1:
            raise ValueError(f"power: expected a number above 0.5 and up to 1, got {power}")
        run = _Run(model, source, 1, 0.0, callbacks=(), progress=False, **options)
        parameters = run._begin()
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
        run._assign(run._maximize(learning.scale(found, self._frames), parameters))
        return value


def _wide(x: Tensor) -> Tensor:
    """float64 where the device has it."""
    return x.detach() if x.device.type == "mps" else x.detach().double()


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _sum_of_processes(x: Tensor) -> Tensor:
    """`x` summed over the processes of torch.distributed, where there are several."""
    if not _is_distributed():
        return x
    found = x.clone()
    torch.distributed.all_reduce(found)
    return found


def _num_processes() -> int:
    return int(torch.distributed.get_world_size()) if _is_distributed() else 1


def _as_the_first(model: EmissionHMM) -> None:
    """The parameters of the first process, in all of them."""
    if _is_distributed():
        for value in model.state_dict().values():
            torch.distributed.broadcast(value, 0)


def _bar(total: int) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, desc="fit")
