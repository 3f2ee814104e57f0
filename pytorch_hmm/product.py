"""Observations of mixed types: groups of features that are independent given the state."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hmm_functional.emissions import Product, ProductParameters

from .emission import Emission
from .parametrize import Parametrized, widened


class ProductEmission(Emission):
    """Groups of features side by side, each with an emission law of its own; independent given the state.

    Args:
        parts: emissions of equally many laws. Observations (..., T, D) of a floating-point dtype hold their features
            in this order; a symbol is one whole number among them.

    Parameters are named by part: "0.means" in `fix` and `fit(frozen=)`; `emission.parts[0].means` reads them.

    Raises:
        ValueError: no parts, parts of different numbers of laws, or one with lags.

    Example:
        >>> import torch
        >>> from pytorch_hmm import BernoulliEmission, EmissionHMM, GaussianEmission
        >>> hmm = EmissionHMM(2, ProductEmission([GaussianEmission(2, obs_dim=3), BernoulliEmission(2)]))
        >>> hmm(torch.tensor([[0.3, -1.0, 0.2, 1.0], [0.1, 0.4, 0.8, 0.0]])).shape
        torch.Size([])
    """

    support = (None, None)
    can_marginalize = True

    def __init__(self, parts: Sequence[Emission]) -> None:
        if not all(isinstance(part, Emission) for part in parts):
            raise TypeError(f"parts: expected emissions, got {[type(part).__name__ for part in parts]}")
        if not parts or len({part.num_laws for part in parts}) != 1:
            raise ValueError(
                f"parts: expected emissions of equally many laws, got {[part.num_laws for part in parts] or 'none'}"
            )
        if len({id(part) for part in parts}) != len(parts):
            raise ValueError("parts: expected emissions of their own, got one twice")
        if any(part.num_lags or len(part.frame_shape) > 1 for part in parts):
            raise ValueError("parts: expected emissions of single frames, without lags")
        self.widths = tuple(sum(part.frame_shape) for part in parts)
        super().__init__(parts[0].num_laws, (sum(max(width, 1) for width in self.widths),))
        self.parts = nn.ModuleList(parts)

    @property
    def are_laws_apart(self) -> bool:  # type: ignore[override]
        """Whether those of all parts have nothing in common."""
        return all(part.are_laws_apart for part in self._emissions)

    def family(self, variance_floor: Any = 0.0, prior: Any = None, missing: str = "propagate") -> Product:
        """The product of the parts' families; `prior` is None or a sequence of one (or None) for each part."""
        priors = [None] * len(self.parts) if prior is None else prior
        if not isinstance(priors, (tuple, list)) or len(priors) != len(self.parts):
            raise ValueError(f"priors.emission: expected one (or None) for each of {len(self.parts)} parts")
        floors: Sequence[Any] = [variance_floor] * len(self.parts)
        if getattr(variance_floor, "shape", ()):
            floors = torch.split(variance_floor, [max(width, 1) for width in self.widths])
        families = []
        for part, floor, own in zip(self._emissions, floors, priors, strict=True):
            options = {"missing": missing} if part.can_marginalize else {}
            families.append(part.family(floor, own, **options))
        return Product(tuple(families), self.widths, missing)

    def values(self) -> ProductParameters:
        """The parts' parameters."""
        return ProductParameters(tuple(part.values() for part in self._emissions))

    def parametrized(self) -> dict[str, Parametrized]:
        """What makes the parameters, by part and name."""
        return {
            f"{i}.{name}": one for i, part in enumerate(self._emissions) for name, one in part.parametrized().items()
        }

    def named(self, values: Any) -> dict[str, Any]:
        """The fields of the parts' parameters by part and name."""
        each = zip(self._emissions, values.parts, strict=True)
        return {f"{i}.{name}": x for i, (part, own) in enumerate(each) for name, x in part.named(own).items()}

    def fixed(self, frozen: Collection[str] = ()) -> Any:
        """Which entries stay, in the form of the family's parameters; those of names in `frozen` all do."""
        named = [
            [name.removeprefix(f"{i}.") for name in frozen if name.startswith(f"{i}.")] for i in range(len(self.parts))
        ]
        found = tuple(part.fixed(names) for part, names in zip(self._emissions, named, strict=True))
        return None if all(mask is None for mask in found) else ProductParameters(found)

    def blank(self) -> Tensor:
        """What stands for frames that are not read, (D,)."""
        each = zip(self._emissions, self.widths, strict=True)
        return torch.cat([torch.as_tensor(part.blank()).expand(max(width, 1)) for part, width in each])

    def check(self, name: str, x: Tensor, is_read: Tensor | None, remedy: str) -> None:
        """Raise ValueError for values outside the support of their part, in frames that are read."""
        start = 0
        for i, (part, values) in enumerate(zip(self._emissions, self._split(x), strict=True)):
            where = f"{name}[..., {start}:{start + max(self.widths[i], 1)}]"
            part.check(where, values, is_read, f"it is part {i} of the emission; {remedy}")
            start += max(self.widths[i], 1)

    def cast(self, x: Tensor, has_nan: bool = False) -> Tensor:
        """Observations in float32 or wider."""
        if not x.is_floating_point():
            raise TypeError(f"x: expected floating-point observations, got {x.dtype}; convert with x.float()")
        seen = torch.where(x.isnan(), self.blank().to(x), x) if has_nan else x
        for part, values in zip(self._emissions, self._split(seen), strict=True):
            part.cast(values, True)
        return widened(x)

    def log_tails(self, x: Tensor, is_strict: bool = False) -> tuple[Tensor, Tensor]:
        """log P(X <= x) and log P(X > x) of each feature under each law, (..., T, K, D)."""
        found = []
        for part, given in zip(self._emissions, self._split(x), strict=True):
            is_nan = given.isnan()
            tails = part.log_tails(
                part.cast(torch.where(is_nan, torch.as_tensor(part.blank()).to(x), given), True), is_strict
            )
            is_nan = is_nan[..., None] if not part.frame_shape else is_nan
            found.append([tail.masked_fill(is_nan[..., None, :], torch.nan) for tail in tails])
        below, above = zip(*found, strict=True)
        return torch.cat(below, -1), torch.cat(above, -1)

    def label(self, frames: Tensor, num_states: int, rng: torch.Generator) -> Tensor:
        """By the part with most features."""
        parts = self._split(frames)
        widest = max(range(len(parts)), key=lambda i: self.widths[i])
        part = self._emissions[widest]
        return part.label(part.cast(parts[widest], True), num_states, rng)

    def sample(self, laws: Tensor, rng: torch.Generator) -> Tensor:
        """Observations (..., D) drawn given the laws (...)."""
        drawn = [part.sample(laws, rng) for part in self._emissions]
        return torch.cat([x if x.ndim > laws.ndim else widened(x.float())[..., None] for x in drawn], -1)

    def initialize(self, frames: Tensor, laws: Tensor, rng: torch.Generator) -> None:
        """Each part from its own features."""
        for part, values in zip(self._emissions, self._split(frames), strict=True):
            part.initialize(part.cast(values, True), laws, rng)

    def arguments(self) -> dict[str, Any]:
        """What the constructor takes to make a module of the same shape, for JSON."""
        return {"parts": list(self._emissions)}

    @property
    def _emissions(self) -> list[Emission]:
        return list(self.parts)  # type: ignore[arg-type]

    def _split(self, x: Tensor) -> list[Tensor]:
        """Each part's features (..., D), or (...) of those that take one number."""
        groups = torch.split(x, [max(width, 1) for width in self.widths], -1)
        return [values[..., 0] if width == 0 else values for values, width in zip(groups, self.widths, strict=True)]
