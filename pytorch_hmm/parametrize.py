"""Free parameters to the values that are read, and back: whatever an optimiser does, the model stays valid."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from math import log
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hmm_functional.emissions.density import COVARIANCE_SHAPES

from ._check import first, need_normalised, parameter_values

CovarianceType = Literal["diag", "spherical", "full", "tied", "tied_diag"]

# the range of variances: features over them, and their gradients, stay finite in float32
_LEAST, _MOST = 1e-12, 1e18
_GUARD = 1e-5


def widened(x: Tensor) -> Tensor:
    """`x` in float32 or wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def full_precision(x: Tensor) -> AbstractContextManager[Any]:
    """A context without autocast on the device of `x`: recursions run in float32 or wider."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


class AssignableModule(nn.Module):
    """A module whose properties can be assigned anything, Parameters too, of which the values are taken."""

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(getattr(type(self), name, None), property):
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)


class Parametrized(nn.Module, ABC):
    """One array of a model: calling it gives the values, made of one free `nn.Parameter`.

    Args:
        words: the shape in letters, for errors.

    Attributes:
        fixed_values: buffer in the shape of the values, NaN where they are free; None without fixed entries. What is
            read there is what it holds, bit for bit, whatever an optimiser does to the free parameter.
    """

    fixed_values: Tensor | None

    def __init__(self, words: str) -> None:
        super().__init__()
        self.words = words
        self.register_buffer("fixed_values", None)

    @property
    def free(self) -> nn.Parameter:
        """The free parameter."""
        return next(self.parameters(recurse=False))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the values."""
        return tuple(self.free.shape)

    @property
    def is_fixed(self) -> Tensor | None:
        """Booleans in the shape of the values: which entries stay; None where all are free."""
        return None if self.fixed_values is None else ~self.fixed_values.isnan()

    def forward(self) -> Tensor:
        """The values, in float32 or wider, differentiable; fixed entries have no gradient."""
        found = self._read()
        if self.fixed_values is None:
            return found
        return torch.where(self.fixed_values.isnan(), found, self.fixed_values.to(found.dtype))

    @torch.no_grad()
    def assign(self, name: str, values: Any) -> None:
        """Take given values, for fixed entries too.

        Raises:
            ValueError: another shape, or values that are none of such a parameter.
        """
        found = self._checked(name, parameter_values(name, values, self.shape, self.words))
        self._write(found, name)
        if self.fixed_values is not None:
            self.fixed_values.copy_(found.where(~self.fixed_values.isnan().cpu(), torch.nan))

    @torch.no_grad()
    def take(self, values: Tensor) -> None:
        """Take what learning found, or what comes nearest to it here; fixed entries stay."""
        found = values.detach().to("cpu", torch.float64)
        if self.fixed_values is not None:
            held = self.fixed_values.to(found)
            found = torch.where(held.isnan(), found, held)
        self._write(self._nearest(found))

    @torch.no_grad()
    def fix(self, name: str, is_fixed: Any) -> None:
        """Keep the entries that `is_fixed` marks, of the shape of the values or one that broadcasts, and free others.

        Raises:
            ValueError: no booleans of such a shape, or entries that cannot be fixed alone.
        """
        try:
            mask = torch.as_tensor(is_fixed, device=self.free.device)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"{name}: expected booleans that broadcast to {self.words}, got {is_fixed!r}") from None
        try:
            mask = mask.expand(self.shape)
        except RuntimeError:
            mask = mask.new_zeros(())
        if mask.dtype != torch.bool or mask.shape != self.shape:
            given = tuple(torch.as_tensor(is_fixed).shape)
            raise ValueError(
                f"{name}: expected booleans that broadcast to {self.words} = {self.shape}, got {mask.dtype} {given}"
            )
        self._need_fixable(name, mask)
        values = self._exact()
        self._write(self._nearest(values.cpu().double()))
        self.fixed_values = values.to(self.forward().dtype).where(mask, torch.nan) if mask.any() else None

    def num_free(self) -> int:
        """Numbers that learning sets."""
        return self.free.numel() if self.fixed_values is None else int(self.fixed_values.isnan().sum())

    @abstractmethod
    def _read(self) -> Tensor:
        """Values of the free parameter."""
        raise NotImplementedError

    def _exact(self) -> Tensor:
        """The values, in as many digits as can be had."""
        return self.forward()

    @abstractmethod
    def _write(self, values: Tensor, name: str = "values") -> None:
        """Set the free parameter to give these values."""
        raise NotImplementedError

    def _checked(self, name: str, values: Tensor) -> Tensor:
        """Values a user gave, float64; ValueError where they are none."""
        return values

    def _nearest(self, values: Tensor) -> Tensor:
        """Values that `_write` takes."""
        return values

    def _need_fixable(self, name: str, mask: Tensor) -> None:
        """ValueError unless these entries can stay while the others move."""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        held = state_dict.get(prefix + "fixed_values")
        own = next(name for name, _ in self.named_parameters(recurse=False))
        if prefix + own in state_dict and (held is None) != (
            self.fixed_values is None
        ):  # a buffer that is not always there
            self.fixed_values = None if held is None else held.to(self.free)
        super()._load_from_state_dict(state_dict, prefix, *rest)


class Numbers(Parametrized):
    """Finite numbers, which an optimiser moves as they are.

    Args:
        start: the values to start from.

    Attributes:
        values: parameter.
    """

    def __init__(self, start: Tensor, words: str) -> None:
        super().__init__(words)
        self.values = nn.Parameter(start)

    def _read(self) -> Tensor:
        return widened(self.values)

    def _write(self, values: Tensor, name: str = "values") -> None:
        self.values.copy_(values)

    def _checked(self, name: str, values: Tensor) -> Tensor:
        if values.isinf().any():
            raise ValueError(f"{name}: expected finite numbers, got inf at {first(values.isinf())}")
        return values


class Positive(Parametrized):
    """Numbers above 0.

    Args:
        start: their logs to start from.
        least: smaller ones, and 0, become this; without it 0 is refused.

    Attributes:
        logs: parameter.
    """

    def __init__(self, start: Tensor, words: str, least: float | None = None) -> None:
        super().__init__(words)
        self.least = least
        self.logs = nn.Parameter(start)

    def _read(self) -> Tensor:
        return widened(self.logs).exp()

    def _write(self, values: Tensor, name: str = "values") -> None:
        self.logs.copy_(values.log())

    def _nearest(self, values: Tensor) -> Tensor:
        return values.clamp_min(torch.finfo(torch.float32).tiny if self.least is None else self.least)

    def _checked(self, name: str, values: Tensor) -> Tensor:
        is_bad = (values <= 0 if self.least is None else values < 0) | values.isinf()
        if is_bad.any():
            at, words = first(is_bad), "numbers above 0" if self.least is None else "finite numbers from 0"
            raise ValueError(f"{name}: expected {words}, got {float(values[at]):.6g} at {at}")
        return self._nearest(values)


class UnitInterval(Parametrized):
    """Probabilities that stand for themselves; 0 and 1 become numbers as near as the dtype lets be told from them.

    Args:
        start: their logits to start from.

    Attributes:
        logits: parameter.
    """

    def __init__(self, start: Tensor, words: str) -> None:
        super().__init__(words)
        self.logits = nn.Parameter(start)

    def _read(self) -> Tensor:
        return widened(self.logits).sigmoid()

    def _write(self, values: Tensor, name: str = "values") -> None:
        self.logits.copy_(values.logit())

    def _nearest(self, values: Tensor) -> Tensor:
        least = 1e-12 if self.logits.dtype == torch.float64 else 1e-7
        return values.clamp(least, 1 - least)

    def _checked(self, name: str, values: Tensor) -> Tensor:
        is_bad = (values < 0) | (values > 1)
        if is_bad.any():
            at = first(is_bad)
            raise ValueError(f"{name}: expected probabilities in [0, 1], got {float(values[at]):.6g} at {at}")
        return self._nearest(values)


class LogProbabilities(Parametrized):
    """Log-probabilities along the last axis, from free logits; entries that are exactly zero stay so.

    Args:
        log_probabilities: the values to start from; its last axis sums to one.
        learnable: whether the logits take gradients.

    Attributes:
        logits: parameter of the same shape.
        is_possible: buffer of the same shape; False marks a probability of exactly zero, whatever its logit.
        is_allowed: buffer of the same shape; False marks zeros that were given, not learned: they are structural, and a
            new start keeps them.

    Entries that are not fixed share what the fixed ones of their row leave.
    """

    is_possible: Tensor
    is_allowed: Tensor

    def __init__(self, log_probabilities: Tensor, words: str, learnable: bool = True) -> None:
        super().__init__(words)
        shape = log_probabilities.shape
        self.logits = nn.Parameter(torch.zeros(shape), requires_grad=learnable)
        self.register_buffer("is_possible", torch.ones(shape, dtype=torch.bool))
        with torch.no_grad():
            self._write(log_probabilities)
        self.register_buffer("is_allowed", self.is_possible.clone())

    @torch.no_grad()
    def assign(self, name: str, values: Any) -> None:
        """Take given values; -inf is a zero that stays one."""
        super().assign(name, values)
        self.is_allowed.copy_(self.is_possible)

    def _read(self) -> Tensor:
        return self._of(widened(self.logits))

    def _exact(self) -> Tensor:
        if self.logits.device.type == "mps":
            return self.forward()
        found = self._of(self.logits.double())  # a share of 1 - 1e-6 is not told from others in float32
        return (
            found if self.fixed_values is None else found.where(self.fixed_values.isnan(), self.fixed_values.double())
        )

    def _of(self, logits: Tensor) -> Tensor:
        """Log-probabilities of free logits."""
        if self.fixed_values is None:
            return torch.where(self.is_possible, logits, -torch.inf).log_softmax(-1)
        held = self.fixed_values.to(logits.dtype)
        is_free = self.is_possible & held.isnan()
        has_any = is_free.any(-1, keepdim=True)
        shares = torch.where(is_free | ~has_any, logits, -torch.inf).log_softmax(-1)
        exact = held if held.device.type == "mps" else held.double()
        taken = torch.where(held.isnan(), -torch.inf, exact).exp().sum(-1, keepdim=True)
        return torch.where(is_free, shares + (1.0 - taken).clamp_min(0.0).log().to(shares.dtype), -torch.inf)

    def _write(self, values: Tensor, name: str = "values") -> None:
        is_possible = values > -torch.inf
        self.is_possible.copy_(is_possible)
        self.logits.copy_(values.where(is_possible, 0.0))

    def _checked(self, name: str, values: Tensor) -> Tensor:
        need_normalised(name, values.exp(), "these are logs: pass weights.log_softmax(-1)")
        return values

    def num_free(self) -> int:
        """Free parameters: in each row one fewer than its allowed entries that are not fixed."""
        is_free = self.is_allowed if self.is_fixed is None else self.is_allowed & ~self.is_fixed
        return int((is_free.sum(-1) - 1).clamp_min(0).sum())

    @torch.no_grad()
    def start(self, counts: Tensor) -> None:
        """Take shares of counts (one added to each) among the allowed entries."""
        weights = (counts + 1.0).to(self.is_allowed.device) * self.is_allowed
        self.take((weights / weights.sum(-1, keepdim=True).clamp_min(1.0)).log())

    @torch.no_grad()
    def sample(self, rows: Tensor, rng: torch.Generator) -> Tensor:
        """One entry of the last axis drawn for each of the `rows` (...), which index the first of two axes."""
        chances = self.forward().exp().to(rng.device)
        drawn = torch.empty_like(rows)
        for k in range(len(chances)):  # never (..., V)
            is_row = rows == k
            count = int(is_row.sum())
            if count:
                found = torch.multinomial(chances[k], count, replacement=True, generator=rng)
                drawn[is_row] = found.to(drawn.device)
        return drawn


class Covariance(Parametrized):
    """Covariances of Gaussians from free parameters: logs of variances, or Cholesky factors.

    Args:
        shape: axes of independent Gaussians, (K,) or (K, M).
        obs_dim: D.
        covariance_type: "diag" (*shape, D), "spherical" shape, "full" (*shape, D, D), "tied" (D, D), "tied_diag" (D,).

    Attributes:
        factor: parameter of that shape: log variances; for full and tied the Cholesky factor below the diagonal and
            the log of its diagonal on it.
        guard: buffer, a share of each variance that the factor does not account for, so that covariances remain
            positive definite after rounding. Assignment subtracts it: values read are the values assigned.
    """

    guard: Tensor

    def __init__(self, shape: tuple[int, ...], obs_dim: int, covariance_type: CovarianceType) -> None:
        if covariance_type not in COVARIANCE_SHAPES:
            known = ", ".join(map(repr, COVARIANCE_SHAPES))
            raise ValueError(f"covariance_type: expected one of {known}, got {covariance_type!r}")
        sizes = {**dict(zip("KM", shape, strict=False)), "D": obs_dim}
        axes = [axis for axis in COVARIANCE_SHAPES[covariance_type] if axis in sizes]
        super().__init__(f"({', '.join(axes)}{',' * (len(axes) == 1)}) for {covariance_type!r}")
        self.covariance_type = covariance_type
        self.obs_dim = obs_dim
        self.is_matrix = covariance_type in ("full", "tied")
        self.is_shared = covariance_type.startswith("tied")
        self.factor = nn.Parameter(torch.zeros(tuple(sizes[axis] for axis in axes)))
        self.register_buffer("guard", torch.tensor(0.0))
        start = torch.ones(self.factor.shape, dtype=torch.float64)
        with torch.no_grad():
            self._write(start * torch.eye(obs_dim) if self.is_matrix else start)

    def _read(self) -> Tensor:
        factor = widened(self.factor)
        low, high = log(_LEAST), log(_MOST)
        if not self.is_matrix:
            return factor.clamp(low, high).exp()
        diagonal = factor.diagonal(dim1=-2, dim2=-1).clamp(low / 2, high / 2).exp()
        lower = factor.tril(-1).clamp(-(_MOST**0.5), _MOST**0.5) + diagonal.diag_embed()
        with full_precision(lower):
            product = lower @ lower.mT
        return product + (product.diagonal(dim1=-2, dim2=-1) * self.guard).diag_embed()

    def _checked(self, name: str, values: Tensor) -> Tensor:
        found = values
        variances = found.diagonal(dim1=-2, dim2=-1) if self.is_matrix else found
        is_bad = ~((variances >= _LEAST * (1 - 1e-5)) & (variances <= _MOST * (1 + 1e-5)))
        if is_bad.any():
            at = first(is_bad)
            raise ValueError(
                f"{name}: expected variances within 1e-12..1e18, got {float(variances[at]):.6g} at {at}; "
                "scale the observations"
            )
        if self.is_matrix and not torch.allclose(found, found.mT, rtol=1e-5, atol=0.0):
            raise ValueError(f"{name}: expected symmetric matrices; take (C + C.mT) / 2")
        return found

    def _nearest(self, values: Tensor) -> Tensor:
        # of the same variances, correlations drawn to zero as far as has to be: in float32 a matrix may be too close to
        # singular that float64 can still invert
        found = values.clamp(-_MOST, _MOST)
        if not self.is_matrix:
            return found.clamp_min(_LEAST)
        found = 0.5 * (found + found.mT)
        given = found.diagonal(dim1=-2, dim2=-1)
        variances = given.clamp_min(_LEAST)
        found = found + (variances - given).diag_embed()
        scale = variances.rsqrt()
        least = torch.linalg.eigvalsh(found * scale[..., :, None] * scale[..., None, :])[..., 0]
        wanted = 4 * self._rounding()
        share = ((wanted - least) / (1 - least)).clamp(0.0, 1.0).nan_to_num(1.0)[..., None, None]
        lifted: Tensor = (1 - share) * found + share * variances.diag_embed()
        return lifted

    def _rounding(self) -> float:
        """How far rounding moves the eigenvalues of a correlation matrix, at most."""
        return float(8 * torch.finfo(widened(self.factor).dtype).eps * self.obs_dim**0.5)

    def num_free(self) -> int:
        """Free parameters: the entries on and below the diagonal of each matrix, each variance otherwise."""
        size = super().num_free()
        return size // (self.obs_dim**2) * (self.obs_dim * (self.obs_dim + 1) // 2) if self.is_matrix else size

    def deviations(self) -> Tensor:
        """Standard deviations of the features, in a shape that broadcasts with (*shape, D)."""
        found = self.forward()
        if self.is_matrix:
            found = found.diagonal(dim1=-2, dim2=-1)
        return found.sqrt()[..., None] if self.covariance_type == "spherical" else found.sqrt()

    @torch.no_grad()
    def scale_noise(self, noise: Tensor, index: tuple[Tensor, ...]) -> Tensor:
        """Standard normal noise (..., D) given the covariances at `index`, a (...) tensor for each axis of `shape`."""
        covariances = self.forward()
        if self.covariance_type == "tied":
            factor: Tensor = torch.linalg.cholesky(covariances)
            return noise @ factor.mT
        if self.covariance_type == "tied_diag":
            return noise * covariances.sqrt()
        if not self.is_matrix:
            deviations = covariances.sqrt()[index]
            return noise * (deviations[..., None] if self.covariance_type == "spherical" else deviations)
        factors = torch.linalg.cholesky(covariances)  # one at a time below: never (..., D, D)
        scaled, places = torch.empty_like(noise), torch.stack(index, -1)
        for place in places.flatten(0, -2).unique(dim=0):  # type: ignore[no-untyped-call]
            chosen = (places == place).all(-1)
            scaled[chosen] = noise[chosen] @ factors[tuple(place)].mT
        return scaled

    def _need_fixable(self, name: str, mask: Tensor) -> None:
        if self.is_matrix and bool((mask != mask[..., :1, :1]).any()):
            raise ValueError(f"{name}: expected whole matrices to be fixed, or none of their entries")

    def _write(self, values: Tensor, name: str = "covariances") -> None:
        covariances = values
        if not self.is_matrix:
            self.factor.copy_(covariances.log())
            return
        variances = covariances.diagonal(dim1=-2, dim2=-1)
        scale = variances.rsqrt()
        smallest = torch.linalg.eigvalsh(covariances * scale[..., :, None] * scale[..., None, :]).min().item()
        needed = self._rounding()
        if not smallest > 2 * needed:
            raise ValueError(
                f"{name}: expected positive definite matrices, the smallest eigenvalue among their correlation "
                f"matrices is {smallest:.3g}, below {2 * needed:.3g}; add to the diagonals"
            )
        guard = self.guard.fill_(min(max(_GUARD, needed), smallest / 2)).item()  # as the buffer's dtype holds it
        factor = torch.linalg.cholesky(covariances - (variances * guard / (1 + guard)).diag_embed())
        logs = factor.diagonal(dim1=-2, dim2=-1).log()
        self.factor.copy_(factor.tril(-1) + logs.diag_embed())
