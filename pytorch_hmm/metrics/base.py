"""What every metric class shares: sums over all that was seen, from which its value follows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Generic, Self, TypeVar

import torch
from torch import Tensor

T = TypeVar("T", bound=tuple[Tensor, ...])


class Metric(ABC, Generic[T]):
    """Accumulates over batches: `update`, then `compute`; a part of the data in each process, then `merge`.

    The state is sums in float64 and nothing else, so that update in parts equals update at once, and the states of
    several processes add up: `torch.distributed.all_reduce(metric.state)` leaves the state of all. Before anything was
    seen, values are NaN.
    """

    def __init__(self, totals: type[T]) -> None:
        self._type = totals
        self.state = torch.zeros(len(totals._fields), dtype=torch.float64)  # type: ignore[attr-defined]
        """(S,) float64: the sums, which may be saved, summed and assigned."""

    @abstractmethod
    def update(self, *args: Any, **kwargs: Any) -> None:
        """Add a batch."""

    @abstractmethod
    def compute(self) -> Any:
        """The value over all that was added."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Add a batch; the value of that batch alone."""
        before = self.state
        self.reset()
        try:
            self.update(*args, **kwargs)
            return self.compute()
        finally:
            self.state = before + self.state

    def reset(self) -> None:
        """Forget all."""
        self.state = torch.zeros_like(self.state)

    def merge(self, *others: Self) -> None:
        """Add what other metrics of the same kind have seen.

        Raises:
            TypeError: a metric of another kind.
        """
        for other in others:
            if type(other) is not type(self):
                raise TypeError(f"others: expected {type(self).__name__}, got {type(other).__name__}")
        for other in others:
            self.state = self.state + other.state.to(self.state.device)

    def _add(self, totals: T) -> None:
        sums = [torch.as_tensor(x, dtype=torch.float64).detach().sum().cpu() for x in totals]
        self.state = self.state + torch.stack(sums).to(self.state.device)

    def _totals(self) -> T:
        return self._type(*self.state.unbind())

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


def share(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole, NaN where there is nothing."""
    return torch.where(whole > 0, part / whole.clamp_min(1e-300), torch.nan)
