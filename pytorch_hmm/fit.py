"""Learning of a module's parameters from data: EM, its variants, and gradients, behind one `fit`."""

from __future__ import annotations

import copy
import time
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from hmm_functional._check import need_count
from hmm_functional.learning import Priors

from .data import Source, is_distributed, padded
from .descent import Descent, Trained
from .report import Callback, FitReport, warn_unless_converged

if TYPE_CHECKING:
    from .conditional import ConditionalHMM
    from .hmm import BaseHMM
    from .trainable import TrainableHMM


Method = Literal["em", "gradient", "viterbi", "stepwise"]


Init = Literal["kmeans", "random", "keep"]


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
    warn_unless_converged(report, num_iterations, tolerance)
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
    warn_unless_converged(report, num_iterations, tolerance)
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


def _start(model: TrainableHMM, source: Source, init: Init, generator: torch.Generator | None) -> None:
    """Parameters to start from, of the batches that fit into LARGEST_BATCH together."""
    sequences = list(source.sequences())
    x, lengths = padded([x for x, _ in sequences])
    labels = None
    if any(y is not None for _, y in sequences):
        labels, _ = padded([y for _, y in sequences if y is not None], -1)
    begin = model.initialize_from_data if init == "kmeans" else model.initialize_randomly
    begin(x, lengths, generator=generator, labels=labels)


def _as_the_first(model: BaseHMM) -> None:
    """The parameters of the first process, in all of them."""
    if is_distributed():
        for value in model.state_dict().values():
            torch.distributed.broadcast(value, 0)
