"""Emission laws as modules: parameters, draws, a start from data, and the family that knows density and learning."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from hmm_functional._check import need_count

from ._check import is_traced, need_support
from .initialize import kmeans, nearest
from .law import Law
from .law import parameter as parameter
from .parametrize import widened


class Emission(Law):
    """What states emit: `num_laws` laws of one form, each with parameters of its own.

    A subclass gives `family`, `values`, `parametrized`, `sample` and `initialize`, and says in `support`, `wanted` and
    `cast` what observations it takes.

    Args:
        num_laws: K, or fewer where states share laws.
        frame_shape: shape of one observation: (D,), or () for symbols.
    """

    support: tuple[float | None, float | None] = (-torch.inf, torch.inf)
    """Observations lie strictly between these; None is no bound, and an infinite one excludes infinity."""
    wanted = "finite observations"
    """The same in words."""
    can_marginalize = False
    """Whether single features may be missing."""
    are_laws_apart = False
    """Whether the laws have nothing in common, so that those of several models can lie side by side."""
    num_lags = 0
    """How many frames before it the density of a frame looks at."""
    num_regressors = 0
    """How many of the features that `context` gives are regressors, at its end."""

    def __init__(self, num_laws: int, frame_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.num_laws = need_count("num_laws", num_laws, 1)
        self.frame_shape = frame_shape

    @abstractmethod
    def family(self, variance_floor: Any = 0.0, prior: Any = None) -> Any:
        """The family of `hmm_functional.emissions`, or one of your own.

        Args:
            variance_floor: least variance, for Gaussian families.
            prior: what is believed of the parameters, in the form of the family's own; None is nothing.

        Where `can_marginalize` it also takes `missing`, "propagate" or "marginalize" as functions do.
        """

    @abstractmethod
    def sample(self, laws: Tensor, rng: torch.Generator) -> Tensor:
        """Observations (..., T, *frame_shape) drawn given the laws (..., T) of one or more sequences."""

    @abstractmethod
    def initialize(self, frames: Tensor, laws: Tensor, rng: torch.Generator) -> None:
        """Set the parameters from frames (N, *frame_shape) and their laws (N,), fixed entries excepted."""

    def log_prob(self, x: Tensor, **options: str) -> Tensor:
        """log p(x_t given the law), (..., T, num_laws), nats, of observations (..., T, *frame_shape).

        Args:
            options: `missing`, where `can_marginalize`.
        """
        return self.family(**options).log_prob(x, self.values())  # type: ignore[no-any-return]

    def blank(self) -> Any:
        """What stands for frames that are not read, padding and missing ones: a number within the support."""
        low, high = self.support
        return 0.0 if (low is None or low < 0) and (high is None or high > 0) else 1.0 if low == 0 else low

    def check(self, name: str, x: Tensor, is_read: Tensor | None, remedy: str) -> None:
        """Raise ValueError for values outside the support, in frames (..., T) that are read; NaN is one.

        Args:
            name, remedy: what the error says.
        """
        need_support(name, x, len(self.frame_shape), self.support, is_read, self.wanted, remedy)

    def log_tails(self, x: Tensor, is_strict: bool = False) -> tuple[Tensor, Tensor]:
        """log P(X <= x) and log P(X > x) under each law, (..., T, num_laws, D) each; D is 1 for symbols.

        Args:
            is_strict: P(X < x) and P(X >= x) instead.
        """
        raise NotImplementedError(f"{type(self).__name__} gives no distribution function (log_tails)")

    def context(self, x: Tensor) -> Tensor:
        """What `label` and `initialize` take of each frame of observations (..., T, *frame_shape); default itself."""
        return x

    def cast(self, x: Tensor, has_nan: bool = False) -> Tensor:
        """Observations in the dtype that scores are computed in.

        Args:
            has_nan: whether NaN stood for unobserved frames, which are `blank` now.
        """
        if not x.is_floating_point():
            raise TypeError(f"x: expected floating-point observations, got {x.dtype}; convert with x.float()")
        return widened(x)

    def label(self, frames: Tensor, num_states: int, rng: torch.Generator) -> Tensor:
        """A state (N,) for each of the frames (N, *frame_shape), like ones together."""
        return kmeans(frames.double(), num_states, rng)

    def label_by_chance(self, frames: Tensor, num_states: int, rng: torch.Generator) -> Tensor:
        """The same by chance: the state of the nearest of K frames drawn by chance."""
        chosen = torch.randperm(len(frames), generator=rng, device=rng.device)[:num_states].to(frames.device)
        if frames.ndim == 1 or len(chosen) < num_states:
            return torch.randint(num_states, frames.shape[:1], generator=rng, device=rng.device).to(frames.device)
        points = frames.double()
        deviations = points.std(0, correction=0)
        points = points / deviations.where(deviations > 0, 1.0)
        return nearest(points, points[chosen])

    def arguments(self) -> dict[str, Any]:
        """What the constructor takes to make a module of the same shape, for JSON."""
        return {"num_laws": self.num_laws}


class FeatureEmission(Emission):
    """Laws of D numbers; observations (..., T, D)."""

    def __init__(self, num_laws: int, obs_dim: int) -> None:
        super().__init__(num_laws, (need_count("obs_dim", obs_dim, 1),))
        self.obs_dim = obs_dim

    def arguments(self) -> dict[str, Any]:
        """What the constructor takes to make a module of the same shape, for JSON."""
        return {**super().arguments(), "obs_dim": self.obs_dim}

    def extra_repr(self) -> str:
        """The arguments that shape it."""
        return f"obs_dim={self.obs_dim}"


class CountEmission(FeatureEmission):
    """Laws of D whole numbers that are independent of each other, every one by a law with one parameter."""

    def cast(self, x: Tensor, has_nan: bool = False) -> Tensor:
        """Observations as floating-point numbers."""
        if x.is_complex():
            raise TypeError(f"x: expected real numbers, got {x.dtype}")
        if not is_traced(x) and x.is_floating_point() and (x != x.round()).any():
            raise ValueError(f"x: expected {self.wanted}, got fractions")
        return widened(x) if x.is_floating_point() else x.to(torch.get_default_dtype())

    def _means_of(self, frames: Tensor, laws: Tensor) -> Tensor:
        """The mean of each law's frames, (num_laws, D), drawn to that of all with the weight of one frame."""
        frames = frames.double()
        counts = torch.bincount(laws, minlength=self.num_laws)[:, None]
        sums = frames.new_zeros(self.num_laws, self.obs_dim).index_add_(0, laws, frames)
        return (sums + frames.mean(0)) / (counts + 1)


def normal_log_tails(gaps: Tensor) -> tuple[Tensor, Tensor]:
    """log P(X <= x) and log P(X > x) of observations so many standard deviations above the mean."""
    return torch.special.log_ndtr(gaps), torch.special.log_ndtr(-gaps)


def of_emission(name: str, meaning: str) -> Any:
    """A property that a module's emission holds, readable and assignable."""

    def read(self: Any) -> Any:
        return getattr(self.emission, name)

    def write(self: Any, value: Any) -> None:
        setattr(self.emission, name, value)

    return property(read, write, doc=meaning)
