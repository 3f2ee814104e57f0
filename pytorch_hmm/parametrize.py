"""Free parameters to probabilities and covariances, and back: whatever an optimiser does, the model stays valid."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from math import log, prod
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


class LogProbabilities(nn.Module):
    """Log-probabilities along the last axis, from free logits; entries that are exactly zero stay so.

    Args:
        log_probabilities: the values to start from; its last axis sums to one.
        learnable: whether the logits take gradients.

    Attributes:
        logits: parameter of the same shape.
        is_possible: buffer of the same shape; False marks a probability of exactly zero, whatever its logit.
    """

    is_possible: Tensor

    def __init__(self, log_probabilities: Tensor, learnable: bool = True) -> None:
        super().__init__()
        shape = log_probabilities.shape
        self.logits = nn.Parameter(torch.zeros(shape), requires_grad=learnable)
        self.register_buffer("is_possible", torch.ones(shape, dtype=torch.bool))
        self._copy(log_probabilities)

    def forward(self) -> Tensor:
        """The log-probabilities, in float32 or wider, differentiable."""
        logits = widened(self.logits)
        return torch.where(self.is_possible, logits, -torch.inf).log_softmax(-1)

    def assign(self, name: str, log_probabilities: Any, words: str) -> None:
        """Take given log-probabilities; -inf is a zero that stays one.

        Raises:
            ValueError: a wrong shape, NaN, or rows whose exp does not sum to one.
        """
        found = parameter_values(name, log_probabilities, tuple(self.logits.shape), words)
        need_normalised(name, found.exp(), "these are logs: pass weights.log_softmax(-1)")
        self._copy(found)

    def num_free(self) -> int:
        """Free parameters: one fewer a row than its possible entries."""
        return int(self.is_possible.sum()) - prod(self.is_possible.shape[:-1])

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

    @torch.no_grad()
    def _copy(self, log_probabilities: Tensor) -> None:
        is_possible = log_probabilities > -torch.inf
        self.is_possible.copy_(is_possible)
        self.logits.copy_(log_probabilities.where(is_possible, 0.0))


class Covariance(nn.Module):
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
        super().__init__()
        if covariance_type not in COVARIANCE_SHAPES:
            known = ", ".join(map(repr, COVARIANCE_SHAPES))
            raise ValueError(f"covariance_type: expected one of {known}, got {covariance_type!r}")
        self.covariance_type = covariance_type
        self.obs_dim = obs_dim
        self.is_matrix = covariance_type in ("full", "tied")
        sizes = {**dict(zip("KM", shape, strict=False)), "D": obs_dim}
        axes = [axis for axis in COVARIANCE_SHAPES[covariance_type] if axis in sizes]
        self.words = f"({', '.join(axes)}{',' * (len(axes) == 1)}) for {covariance_type!r}"
        self.factor = nn.Parameter(torch.zeros(tuple(sizes[axis] for axis in axes)))
        self.register_buffer("guard", torch.tensor(0.0))
        start = torch.ones(self.factor.shape, dtype=torch.float64)
        self._copy(start * torch.eye(obs_dim) if self.is_matrix else start)

    def forward(self) -> Tensor:
        """The covariances, in float32 or wider, differentiable."""
        factor = widened(self.factor)
        low, high = log(_LEAST), log(_MOST)
        if not self.is_matrix:
            return factor.clamp(low, high).exp()
        diagonal = factor.diagonal(dim1=-2, dim2=-1).clamp(low / 2, high / 2).exp()
        lower = factor.tril(-1).clamp(-(_MOST**0.5), _MOST**0.5) + diagonal.diag_embed()
        with full_precision(lower):
            product = lower @ lower.mT
        return product + (product.diagonal(dim1=-2, dim2=-1) * self.guard).diag_embed()

    def assign(self, name: str, covariances: Any) -> None:
        """Take given covariances.

        Raises:
            ValueError: a wrong shape, a variance outside 1e-12..1e18, a matrix that is not symmetric, not positive
                definite, or so close to singular that rounding would make it so.
        """
        found = parameter_values(name, covariances, tuple(self.factor.shape), self.words)
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
        self._copy(found, name)

    def nearest(self, covariances: Tensor) -> Tensor:
        """Covariances that `assign` takes, of the same variances: correlations drawn to zero as far as has to be.

        In float32 a matrix may be too close to singular that float64 can still invert.
        """
        found = covariances.detach().double().clamp(-_MOST, _MOST)
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
        size = self.factor.numel()
        return size // (self.obs_dim**2) * (self.obs_dim * (self.obs_dim + 1) // 2) if self.is_matrix else size

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

    @torch.no_grad()
    def _copy(self, covariances: Tensor, name: str = "covariances") -> None:
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
