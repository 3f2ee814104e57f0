"""What is timed: shapes, and the same random arrays for every contender."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

OPERATIONS = ("log_likelihood", "forward_backward", "viterbi", "gradient")
SELF_LOOP = 0.85
"""Of the left-to-right model: 300 states fit into 2000 steps."""


@dataclass(frozen=True)
class Cell:
    """B sequences of at most T steps over K states; a mixture has M components of D features a state."""

    batch: int
    steps: int
    states: int
    kind: str = "dense"
    shortest: int = 0
    components: int = 0
    features: int = 0

    @property
    def name(self) -> str:
        sizes = [self.batch, self.steps, self.states, self.components, self.features]
        prefix = "" if self.kind == "dense" else f"{self.kind}-"
        return prefix + "x".join(str(size) for size in sizes if size)

    @property
    def operations(self) -> tuple[str, ...]:
        return ("gmm",) if self.kind == "gmm" else OPERATIONS

    @property
    def lengths(self) -> Any:
        """(B,), evenly drawn where ragged; one sequence is as long as the array."""
        if self.kind != "ragged":
            return np.full(self.batch, self.steps)
        lengths = np.random.default_rng(1).integers(self.shortest, self.steps + 1, self.batch)
        lengths[0] = self.steps
        return lengths

    @property
    def frames(self) -> int:
        """Valid steps of all sequences."""
        return int(self.lengths.sum())

    @property
    def moves(self) -> int:
        """Transitions out of all states in one step: K^2, or K times the bands."""
        return self.states * (2 if self.kind == "banded" else self.states)


CELLS = (
    Cell(32, 1000, 10),
    Cell(1, 100_000, 5),
    Cell(8, 500, 64),
    Cell(64, 200, 256),
    Cell(1, 2000, 5),
    Cell(256, 100, 50),
    Cell(4, 2000, 1000),
    Cell(8, 2000, 300, "banded"),
    Cell(128, 2000, 20, "ragged", shortest=50),
    Cell(32, 1000, 10, "gmm", components=3, features=80),
)

QUICK_CELLS = (
    Cell(32, 1000, 10),
    Cell(1, 10_000, 5),
    Cell(8, 500, 64),
    Cell(16, 50, 256),
    Cell(1, 2000, 5),
    Cell(64, 100, 50),
    Cell(4, 20, 1000),
    Cell(8, 500, 300, "banded"),
    Cell(32, 500, 20, "ragged", shortest=50),
    Cell(32, 250, 10, "gmm", components=3, features=80),
)


@dataclass(frozen=True)
class Problem:
    """Inputs in NumPy float64, nats. Padding of `log_emission` is 0."""

    cell: Cell
    log_initial: Any
    log_transition: Any
    log_emission: Any
    log_bands: Any = None
    """(2, K), stay and go on, where the transition is banded; `log_transition` is then the dense form."""

    @property
    def lengths(self) -> Any:
        return self.cell.lengths

    @property
    def valid(self) -> Any:
        """(B, T) booleans."""
        return np.arange(self.cell.steps) < self.lengths[:, None]

    def probabilities(self) -> tuple[Any, Any]:
        """p(z_0) (K,) and p(z_{t+1} given z_t) (K, K)."""
        return np.exp(self.log_initial), np.exp(self.log_transition)

    def with_end_state(self) -> tuple[Any, Any, Any]:
        """probabilities and log_emission of K + 1 states, the last of which takes all padding and changes no score.

        For libraries that know no lengths: every state goes to it with weight 1, it stays with weight 1, and it
        emits padding alone.
        """
        size = self.cell.states
        initial, transition = (np.pad(p, (0, 1)) for p in self.probabilities())
        transition[:, size] = 1.0
        emission = np.where(self.valid[..., None], self.log_emission, -np.inf)
        return initial, transition, np.concatenate([emission, self.end_emission()], -1)

    def end_emission(self) -> Any:
        """log_emission of the end state, (B, T, 1)."""
        return np.where(self.valid, -np.inf, 0.0)[..., None]

    def bands_of(self, matrix: Any) -> Any:
        """(2, K), the entries of a (K, K) matrix where `log_bands` has its own; 0 beyond the last state."""
        return np.stack([np.diag(matrix), np.append(np.diag(matrix, 1), 0.0)])

    def sequences(self) -> list[Any]:
        """log_emission of each sequence, (T_b, K), without padding."""
        return [x[:n] for x, n in zip(self.log_emission, self.lengths, strict=True)]

    def padded(self, rows: list[Any], fill: float = 0.0) -> Any:
        """(B, T, ...) of the sequences' own rows."""
        out = np.full((self.cell.batch, self.cell.steps, *rows[0].shape[1:]), fill)
        for target, row in zip(out, rows, strict=True):
            target[: len(row)] = row
        return out


@dataclass(frozen=True)
class Mixture:
    """Inputs of the mixture cell in NumPy float64."""

    cell: Cell
    observations: Any
    weights: Any
    means: Any
    variances: Any


def problem_of(cell: Cell) -> Problem | Mixture:
    """The seeded inputs of a cell."""
    rng = np.random.default_rng(0)
    if cell.kind == "gmm":
        shape = (cell.states, cell.components, cell.features)
        return Mixture(
            cell,
            rng.standard_normal((cell.batch, cell.steps, cell.features)),
            rng.dirichlet(np.ones(cell.components), cell.states),
            rng.standard_normal(shape),
            rng.uniform(0.5, 2.0, shape),
        )
    log_emission = 2.0 * rng.standard_normal((cell.batch, cell.steps, cell.states))
    if cell.kind == "banded":
        bands = np.stack([np.full(cell.states, SELF_LOOP), np.full(cell.states, 1.0 - SELF_LOOP)])
        bands[:, -1] = (1.0, 0.0)
        transition = np.diag(bands[0]) + np.diag(bands[1, :-1], 1)
        with np.errstate(divide="ignore"):
            initial, transition, bands = (np.log(p) for p in (np.eye(cell.states)[0], transition, bands))
        return Problem(cell, initial, transition, log_emission, bands)
    log_emission[np.arange(cell.steps) >= cell.lengths[:, None]] = 0.0
    initial = np.log(_probabilities(rng, (cell.states,)))
    return Problem(cell, initial, np.log(_probabilities(rng, (cell.states, cell.states))), log_emission)


def _probabilities(rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
    weights = rng.standard_exponential(shape)
    return weights / weights.sum(-1, keepdims=True)
