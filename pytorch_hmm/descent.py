"""Learning by gradients: the loop over batches, when it stops, and who is told."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import inf
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.modules.dropout import _DropoutNd

from hmm_functional.learning import HMMParameters

from .data import Batch, Source, sum_of_processes
from .report import Callback, Progress

if TYPE_CHECKING:
    from .conditional import ConditionalHMM
    from .trainable import TrainableHMM


LEAST_FRAMES = 1e-6
"""Of a state that is not dead."""


IMPOSSIBLE = (
    "data: a sequence is impossible under the model, log p = -inf; structural zeros, longest durations, labels or "
    "parameters exclude it (model(x) says which)"
)


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
                    total -= float(sum_of_processes(wide(loss)))
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
            raise ValueError(IMPOSSIBLE)
        return loss, self._model._num_frames(batch.x, batch.lengths)

    @torch.no_grad()
    def _value(self) -> float:
        """log p(data), weighted, of whole networks."""
        with whole(self._model):
            return -sum(float(sum_of_processes(wide(self._loss(batch)[0]))) for batch in self._source)

    @torch.no_grad()
    def _end(self, history: list[float], stopped: str) -> Trained:
        """What became of the model that is at hand."""
        total, occupied = 0.0, torch.zeros(self._model.num_states, dtype=torch.float64)
        with whole(self._model):
            for batch in self._source:
                inputs = batch.inputs or {}
                posteriors, likelihood = self._model.forward_backward(batch.x, batch.lengths, **inputs)
                weights = torch.ones_like(likelihood) if batch.weights is None else batch.weights.to(likelihood)
                total += float((wide(likelihood) * weights).sum())
                found = wide(posteriors).sum(-2) * weights[..., None]
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


def wide(x: Tensor) -> Tensor:
    """float64 where the device has it."""
    return x.detach() if x.device.type == "mps" else x.detach().double()


@contextmanager
def whole(model: torch.nn.Module) -> Iterator[None]:
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


def _bar(total: int) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, desc="fit")
