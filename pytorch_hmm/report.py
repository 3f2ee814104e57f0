"""What `fit` says of itself: while it goes on, at its end, and where it did not converge."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from .hmm import BaseHMM


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


def warn_unless_converged(report: FitReport, num_iterations: int, tolerance: float) -> None:
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
