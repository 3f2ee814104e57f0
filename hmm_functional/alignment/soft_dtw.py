"""Soft dynamic time warping: all warping paths at once, weighed by their costs, and so differentiable."""

from __future__ import annotations

from math import inf, nan, prod
from numbers import Real
from typing import Any

from ..backend import Array
from ..lattice import TOTAL, VISITS, Spec
from ..pairwise import distances
from .dtw import need_pattern
from .pairs import Pairs, pairs_of, pairs_of_costs


def soft_dtw(
    x: Array,
    y: Array,
    *,
    gamma: float = 1.0,
    step_pattern: str = "symmetric1",
    window: Any = None,
    lengths: Any = None,
    target_lengths: Any = None,
    kernel: str = "auto",
) -> Array:
    """-gamma log of the sum over warping paths of exp(-cost / gamma), costs being sums of squared Euclidean distances.

    Args:
        x: (..., N, D); its batch axes broadcast with those of y.
        y: (..., M, D).
        gamma: positive; towards 0 it is the cost of the cheapest path.
        step_pattern, window, lengths, target_lengths, kernel: as `dtw`; "symmetric1" is Cuturi and Blondel's.

    Returns:
        (...); it may be negative. inf where no path is allowed, with a gradient of zero; NaN where frames within the
        lengths are not finite.

    Raises:
        TypeError: not floating-point arrays of one library. ValueError: shapes, lengths, or options that do not fit.

    Gradient: of x and y, by the expected alignment (`soft_dtw_alignment`); second order and forward mode too, third
        order raises.

    Cost: O(N M D) time, O(B N M) memory; sums in float64 where there is one.

    References: Cuturi and Blondel 2017, algorithms 1 and 2; second order: Mensch and Blondel 2018.

    Example:
        >>> import torch, hmm_functional as hf
        >>> hf.soft_dtw(torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [1.0]]), gamma=0.1)
        tensor(-9.0796e-06)
    """
    pairs = pairs_of(x, y, lengths, target_lengths, window, kernel)
    return _value(pairs, _squares(pairs, kernel), need_gamma(gamma), _spec(step_pattern, kernel))


def soft_dtw_from_costs(
    costs: Array,
    *,
    gamma: float = 1.0,
    step_pattern: str = "symmetric1",
    window: Any = None,
    lengths: Any = None,
    target_lengths: Any = None,
    kernel: str = "auto",
) -> Array:
    """The same of given local costs.

    Args: as `soft_dtw`, but for
        costs: (..., N, M) of any sign, inf where a pair is forbidden.

    Returns: as `soft_dtw`; NaN where a cost within the lengths is NaN or -inf.

    Raises: as `soft_dtw`.

    Gradient: the expected alignment.

    Cost: O(N M) time.

    Example:
        >>> import torch, hmm_functional as hf
        >>> hf.soft_dtw_from_costs(torch.zeros(2, 2))  # three paths
        tensor(-1.0986)
    """
    pairs = pairs_of_costs(costs, lengths, target_lengths, window, kernel)
    return _value(pairs, pairs.arrays[0], need_gamma(gamma), _spec(step_pattern, kernel))


def soft_dtw_alignment(
    x: Array,
    y: Array,
    *,
    gamma: float = 1.0,
    step_pattern: str = "symmetric1",
    window: Any = None,
    lengths: Any = None,
    target_lengths: Any = None,
    kernel: str = "auto",
) -> Array:
    """The expected alignment: p(i, j are paired) where a path has probability in proportion to exp(-cost / gamma).

    Args: as `soft_dtw`.

    Returns:
        (..., N, M), each cell's probability times the weight of the step into it (1 but for "symmetric2"); 0 in the
        padding, outside the window, and where no path is allowed. NaN as `soft_dtw`.

    Raises: as `soft_dtw`.

    Gradient: first order.

    Cost: O(N M D) time.

    References: Cuturi and Blondel 2017, algorithm 2.

    Example:
        >>> import torch, hmm_functional as hf
        >>> hf.soft_dtw_alignment(torch.zeros(2, 1), torch.zeros(2, 1))
        tensor([[1.0000, 0.3333],
                [0.3333, 1.0000]])
    """
    pairs = pairs_of(x, y, lengths, target_lengths, window, kernel)
    backend, xp = pairs.backend, pairs.backend.xp
    scores = -_squares(pairs, kernel) / need_gamma(gamma)
    size = prod(pairs.batch)
    scores = xp.broadcast_to(scores, (size, *scores.shape[1:]))
    ones = backend.full((size,), 1.0, like=scores)
    spec = _spec(step_pattern, kernel).encode()
    (found,) = backend.call(VISITS, spec, [scores, ones, pairs.bounds, pairs.corners])
    return pairs.unflatten(xp.where(pairs.is_bad[:, None, None], nan, found))


def soft_dtw_divergence(
    x: Array,
    y: Array,
    *,
    gamma: float = 1.0,
    window: Any = None,
    lengths: Any = None,
    target_lengths: Any = None,
    kernel: str = "auto",
) -> Array:
    """soft_dtw(x, y) less the mean of soft_dtw(x, x) and soft_dtw(y, y): 0 where x is y, and not negative.

    Args: as `soft_dtw`.

    Returns:
        (...); inf where no path is allowed, NaN as `soft_dtw`.

    Raises: as `soft_dtw`.

    Gradient: as `soft_dtw`.

    Cost: three times `soft_dtw`.

    References: Blondel, Mensch and Vert 2021, equation 7; that it is never negative is shown there for another local
        cost, and seen for this one.

    Example:
        >>> import torch, hmm_functional as hf
        >>> hf.soft_dtw_divergence(torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [1.0]]))
        tensor(0.)
    """
    same: dict[str, Any] = {"gamma": gamma, "window": window, "kernel": kernel}
    between = soft_dtw(x, y, lengths=lengths, target_lengths=target_lengths, **same)
    own = soft_dtw(x, x, lengths=lengths, target_lengths=lengths, **same)
    other = soft_dtw(y, y, lengths=target_lengths, target_lengths=target_lengths, **same)
    return between - (own + other) / 2


def need_gamma(gamma: Any) -> float:
    """A positive number."""
    if not isinstance(gamma, Real) or isinstance(gamma, bool):
        raise TypeError(f"gamma: expected a positive number, got {type(gamma).__name__}")
    found = float(gamma)
    if not 0 < found < inf:
        raise ValueError(f"gamma: expected a positive number, got {gamma}")
    return found


def _spec(step_pattern: str, kernel: str) -> Spec:
    need_pattern(step_pattern)
    return Spec(step_pattern, kernel)


def _squares(pairs: Pairs, kernel: str) -> Array:
    return distances(pairs.backend, *pairs.arrays, metric="squared", kernel=kernel)


def _value(pairs: Pairs, costs: Array, gamma: float, spec: Spec) -> Array:
    backend, xp = pairs.backend, pairs.backend.xp
    (total,) = backend.call(TOTAL, spec.encode(), [-costs / gamma, pairs.bounds, pairs.corners])
    return pairs.unflatten(xp.where(pairs.is_bad, nan, -gamma * total))
