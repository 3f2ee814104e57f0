"""Starts for learning: which state each frame belongs to, and the moments of the frames of each."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

_SUBSET = 50_000


class Moments(NamedTuple):
    """Of C clusters: `counts` (C,), `means` (C, D), `covariances` in the shape of their type with (C,) leading."""

    counts: Tensor
    means: Tensor
    covariances: Tensor


def uniform_segments(steps: Tensor, ends: Tensor, num_states: Any) -> Tensor:
    """State of each step (..., T) where every sequence spends equal time in all states, in their order.

    Args:
        num_states: K, or (..., 1) integers.
    """
    found: Tensor = (steps * num_states // ends[..., None]).clamp_max(num_states - 1)
    return found


def count_transitions(states: Tensor, num_states: int) -> tuple[Tensor, Tensor]:
    """How often paths (B, T) start in a state, (K,), and go from one to another, (K, K); -1 is no state."""
    first = torch.bincount(states[:, 0][states[:, 0] >= 0], minlength=num_states)
    source, target = states[:, :-1], states[:, 1:]
    is_pair = (source >= 0) & (target >= 0)
    pairs = (source * num_states + target)[is_pair]
    return first, torch.bincount(pairs, minlength=num_states**2).reshape(num_states, num_states)


def kmeans(points: Tensor, num_clusters: int, rng: torch.Generator, *, num_iterations: int = 20) -> Tensor:
    """Cluster (N,) of each of the points (N, D), distances taken in each feature's own standard deviation.

    Cost: O(N C D) a pass; centres come from at most 50,000 of the points.

    References: Arthur and Vassilvitskii 2007 (the seeding); Lloyd 1982.
    """
    deviations = points.std(0, correction=0)
    scaled = points / deviations.where(deviations > 0, 1.0)
    chosen = torch.randperm(len(points), generator=rng, device=rng.device)[:_SUBSET].to(points.device)
    subset = scaled[chosen]
    centres = _seed(subset, num_clusters, rng)
    for _ in range(num_iterations):
        centres = _move(subset, nearest(subset, centres), centres)
    return nearest(scaled, centres)


def split(points: Tensor, num_clusters: int, *, num_iterations: int = 5) -> Tensor:
    """Cluster (N,) of each of the points (N, D): the widest cluster is split in two until there are enough.

    References: Linde, Buzo and Gray 1980. No chance is involved.
    """
    labels = torch.zeros(len(points), dtype=torch.int64, device=points.device)
    if len(points) == 0:
        return labels
    centres = points.mean(0, keepdim=True)
    for count in range(1, num_clusters):
        spread = torch.zeros(count, device=points.device, dtype=points.dtype)
        spread.index_add_(0, labels, (points - centres[labels]).square().sum(1))
        widest = int(spread.argmax())
        step = 0.5 * points[labels == widest].std(0, correction=0)
        centres = torch.cat([centres, (centres[widest] + step)[None]])
        centres[widest] -= step
        for _ in range(num_iterations):
            labels = nearest(points, centres)
            centres = _move(points, labels, centres)
    return labels


def moments(points: Tensor, labels: Tensor, fallback: Tensor, covariance_type: str) -> Moments:
    """Counts, means and covariances of clusters, each drawn to the data's own variances with the weight of one point.

    Args:
        points: (N, D).
        labels: (N,) in 0..C-1.
        fallback: (C, D), means of clusters without a point.
        covariance_type: as in `Covariance`.
    """
    num_clusters, obs_dim = fallback.shape
    counts = torch.bincount(labels, minlength=num_clusters)
    means = _move(points, labels, fallback)
    variances = points.var(0, correction=0)
    floor = 1e-6 * variances.mean()
    variances = variances.clamp_min(floor if floor > 0 else 1.0)
    residuals = points - means[labels]
    total = (counts + 1).to(points.dtype)
    if covariance_type in ("full", "tied"):
        scatter = torch.stack([residuals[labels == c].mT @ residuals[labels == c] for c in range(num_clusters)])
        if covariance_type == "tied":
            return Moments(counts, means, (scatter.sum(0) + variances.diag()) / (len(points) + 1))
        return Moments(counts, means, (scatter + variances.diag()) / total[:, None, None])
    squares = points.new_zeros(num_clusters, obs_dim).index_add_(0, labels, residuals.square())
    if covariance_type == "tied_diag":
        return Moments(counts, means, (squares.sum(0) + variances) / (len(points) + 1))
    found = (squares + variances) / total[:, None]
    return Moments(counts, means, found.mean(1) if covariance_type == "spherical" else found)


def best_names(overlaps: Tensor) -> Tensor:
    """The permutation (K,) of columns that makes the sum of overlaps (K, K) beside the rows largest.

    References: Kuhn 1955, by scipy.
    """
    from scipy.optimize import linear_sum_assignment

    _, names = linear_sum_assignment(-overlaps.cpu().numpy())
    return torch.as_tensor(names, device=overlaps.device)


def nearest(points: Tensor, centres: Tensor) -> Tensor:
    """The centre (N,) nearest to each point; ties go to the first."""
    return torch.cat([torch.cdist(part, centres).argmin(1) for part in torch.split(points, 65_536)])


def _move(points: Tensor, labels: Tensor, centres: Tensor) -> Tensor:
    """The mean of each cluster; a cluster without a point keeps its centre."""
    counts = torch.bincount(labels, minlength=len(centres))[:, None]
    sums = torch.zeros_like(centres).index_add_(0, labels, points)
    return torch.where(counts > 0, sums / counts.clamp_min(1), centres)


def _seed(points: Tensor, num_clusters: int, rng: torch.Generator) -> Tensor:
    """Centres drawn one after the other, each with the chance of its squared distance from those before."""
    found = points[:1]
    distances = torch.cdist(points, found).square()[:, 0]
    for _ in range(num_clusters - 1):
        total = distances.double().cumsum(0)
        aim = torch.rand((), generator=rng, device=rng.device).to(points.device) * total[-1]
        chosen = torch.searchsorted(total, aim).clamp_max(len(points) - 1)
        found = torch.cat([found, points[chosen][None]])
        distances = torch.minimum(distances, torch.cdist(points, found[-1:]).square()[:, 0])
    return found
