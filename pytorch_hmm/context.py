"""Observations with inputs beside them, which the emissions have no part in."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from .emission import Emission
from .parametrize import Parametrized, widened


class BesideContext(Emission):
    """The emission law of observations that have inputs beside them; its parameters are those of `law`."""

    support = (None, None)
    law: Emission

    def __init__(self, law: Emission, context_dim: int) -> None:
        if not isinstance(law, Emission):
            raise TypeError(f"emission: expected an Emission, got {type(law).__name__}")
        if law.num_lags or len(law.frame_shape) > 1:
            raise ValueError("emission: expected one of single frames, without lags")
        self.width = max(sum(law.frame_shape), 1)
        super().__init__(law.num_laws, (self.width + context_dim,))
        self.law = law

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "law":
                raise
            return getattr(self.law, name)

    def __setattr__(self, name: str, value: Any) -> None:
        law = self.__dict__.get("_modules", {}).get("law")
        if law is not None and isinstance(getattr(type(law), name, None), property):
            setattr(law, name, value)
        else:
            super().__setattr__(name, value)

    @property
    def can_marginalize(self) -> bool:  # type: ignore[override]
        """Whether the law can."""
        return self.law.can_marginalize

    @property
    def are_laws_apart(self) -> bool:  # type: ignore[override]
        """Whether the laws of states are."""
        return self.law.are_laws_apart

    @property
    def num_regressors(self) -> int:  # type: ignore[override]
        """The law's own."""
        return self.law.num_regressors

    def family(self, variance_floor: Any = 0.0, prior: Any = None, **options: str) -> Any:
        """The law's, of its own features."""
        return _OwnFeatures(self.law.family(variance_floor, prior, **options), self._own)

    def values(self) -> Any:
        """The law's."""
        return self.law.values()

    def parametrized(self) -> dict[str, Parametrized]:
        """The law's."""
        return self.law.parametrized()

    def named(self, values: Any) -> dict[str, Any]:
        """The law's."""
        return self.law.named(values)

    def fixed(self, frozen: Collection[str] = ()) -> Any:
        """The law's."""
        return self.law.fixed(frozen)

    def sample(self, laws: Tensor, rng: torch.Generator) -> Tensor:
        """Observations alone."""
        return self.law.sample(laws, rng)

    def initialize(self, frames: Tensor, laws: Tensor, rng: torch.Generator) -> None:
        """From frames as `context` gives them."""
        self.law.initialize(frames, laws, rng)

    def log_prob(self, x: Tensor, **options: str) -> Tensor:
        """log p(x_t given the law), (..., T, num_laws)."""
        return self.law.log_prob(self._own(x), **options)

    def blank(self) -> Tensor:
        """What stands for frames that are not read, (D + P,)."""
        own = torch.as_tensor(self.law.blank(), dtype=torch.get_default_dtype()).expand(self.width)
        return torch.cat([own, own.new_zeros(self.frame_shape[0] - self.width)])

    def check(self, name: str, x: Tensor, is_read: Tensor | None, remedy: str) -> None:
        """Of the observations alone."""
        self.law.check(name, self._first(x), is_read, remedy)

    def context(self, x: Tensor) -> Tensor:
        """What the law takes, without the inputs."""
        return self.law.context(self._own(x))

    def cast(self, x: Tensor, has_nan: bool = False) -> Tensor:
        """Observations and inputs in float32 or wider."""
        if not x.is_floating_point():
            raise TypeError(f"x: expected floating-point observations beside the inputs, got {x.dtype}")
        seen = torch.where(x.isnan(), self.blank().to(x), x) if has_nan else x
        self.law.cast(self._first(seen), True)
        return widened(x)

    def label(self, frames: Tensor, num_states: int, rng: torch.Generator) -> Tensor:
        """The law's."""
        return self.law.label(frames, num_states, rng)

    def label_by_chance(self, frames: Tensor, num_states: int, rng: torch.Generator) -> Tensor:
        """The law's."""
        return self.law.label_by_chance(frames, num_states, rng)

    def arguments(self) -> dict[str, Any]:
        """What the constructor takes to make a module of the same shape, for JSON."""
        return {"law": self.law, "context_dim": self.frame_shape[0] - self.width}

    def _first(self, x: Tensor) -> Tensor:
        """The observations among (..., D + P)."""
        return x[..., : self.width] if self.law.frame_shape else x[..., 0]

    def _own(self, x: Tensor) -> Tensor:
        """The observations as the law takes them."""
        own = self._first(x)
        return own if self.law.frame_shape else self.law.cast(own, True)


@dataclass(frozen=True)
class _OwnFeatures:
    """A family of the observations that `own` takes from what has inputs beside it."""

    emission_family: Any
    own: Callable[[Tensor], Tensor]

    def log_prob(self, observations: Tensor, parameters: Any) -> Tensor:
        """(..., T, K)."""
        return cast(Tensor, self.emission_family.log_prob(self.own(observations), parameters))

    def statistics(self, observations: Tensor, posteriors: Tensor, parameters: Any) -> Any:
        """The family's."""
        return self.emission_family.statistics(self.own(observations), posteriors, parameters)

    def __getattr__(self, name: str) -> Any:  # m_step, log_prior, and what else the family can do
        if name in ("emission_family", "own") or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.emission_family, name)
