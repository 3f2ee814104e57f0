"""Dynamic time warping: the cheapest way of running through two sequences together."""

from __future__ import annotations

from math import inf, nan, prod
from typing import Any, NamedTuple

from ..backend import Array
from ..lattice import PATH, STEPS, Spec
from ..numerics import multiply
from ..pairwise import norms
from .pairs import Pairs, pairs_of, pairs_of_costs


class DTW(NamedTuple):
    """The cheapest way through two sequences."""

    distance: Array
    """(...): the sum of local costs along the path, each times its step's weight."""
    path: Array
    """(..., L, 2) integers: frames of x and y met together, from the first pair on, then -1."""


def dtw(
    x: Array,
    y: Array,
    *,
    step_pattern: str = "symmetric2",
    window: Any = None,
    open_begin: bool = False,
    open_end: bool = False,
    normalize: bool = False,
    lengths: Any = None,
    target_lengths: Any = None,
    kernel: str = "auto",
) -> DTW:
    """The cheapest warping path between x and y: the least sum of weighted Euclidean distances of the frames it pairs.

    Args:
        x: (..., N, D); its batch axes broadcast with those of y.
        y: (..., M, D).
        step_pattern: "symmetric1" and "symmetric2" step on in x, in y or in both, "asymmetric" by one frame of x and
            none, one or two of y. A pair's distance counts once, twice after a step in both of "symmetric2".
        window: None; ("sakoe_chiba", r), pairs with |i - j| <= r; ("slanted_band", r), within r of the line between
            the corners; "itakura", the parallelogram of slopes 1/2 and 2.
        open_begin: begin anywhere in y ("asymmetric" only).
        open_end: end anywhere in y, where the distance a unit of `normalize` is the least (not "symmetric1").
        normalize: divide the distance by the sum of weights: the frames of x and y passed ("symmetric2"), or of x
            ("asymmetric").
        lengths, target_lengths: (...) integers 1..N and 1..M, valid frames of right-padded x and y.
        kernel: "auto", "reference", or "numba".

    Returns:
        `DTW(distance (...), path (..., L, 2) int64)`, L = N + M - 1, or N for "asymmetric". Ties go to the step in
        both, then in y, then in x; for "asymmetric" to the least in y. Where no path is allowed the distance is inf
        and the path -1; where frames within the lengths are not finite, NaN and -1.

    Raises:
        TypeError: not floating-point arrays of one library. ValueError: shapes, lengths, or options that do not fit.

    Gradient: that of the path's own distances, any order; a distance of 0 gives 0.

    Cost: O(N M D) time (O(N r D) in a band), N M bytes a thread; sums in float64 where there is one.

    References: Sakoe and Chiba 1978 (symmetric2 is their P = 0); Itakura 1975; Giorgino 2009, Journal of Statistical
        Software 31(7), whose names these are; open ends: Tormene et al. 2009.

    Example:
        >>> import torch, hmm_functional as hf
        >>> hf.dtw(torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0.0], [3.0]])).path.tolist()
        [[0, 0], [1, 0], [2, 1], [-1, -1]]
    """
    pairs = pairs_of(x, y, lengths, target_lengths, window, kernel)
    return _found(pairs, _spec(step_pattern, open_begin, open_end, normalize, kernel), normalize)


def dtw_from_costs(
    costs: Array,
    *,
    step_pattern: str = "symmetric2",
    window: Any = None,
    open_begin: bool = False,
    open_end: bool = False,
    normalize: bool = False,
    lengths: Any = None,
    target_lengths: Any = None,
    kernel: str = "auto",
) -> DTW:
    """The cheapest warping path through given local costs.

    Args: as `dtw`, but for
        costs: (..., N, M) of any sign, inf where a pair is forbidden.

    Returns: as `dtw`; NaN where a cost within the lengths is NaN or -inf.

    Raises: as `dtw`.

    Gradient: each step's weight along the path.

    Cost: O(N M) time.

    Example:
        >>> import torch, hmm_functional as hf
        >>> hf.dtw_from_costs(torch.tensor([[0.0, 1.0], [1.0, 2.0]])).distance
        tensor(3.)
    """
    pairs = pairs_of_costs(costs, lengths, target_lengths, window, kernel)
    return _found(pairs, _spec(step_pattern, open_begin, open_end, normalize, kernel), normalize)


def _spec(step_pattern: str, open_begin: bool, open_end: bool, normalize: bool, kernel: str) -> Spec:
    need_pattern(step_pattern)
    if open_begin and step_pattern != "asymmetric":
        raise ValueError(f'open_begin: expected step_pattern "asymmetric", got {step_pattern!r}')
    for name, flag in (("open_end", open_end), ("normalize", normalize)):
        if flag and step_pattern == "symmetric1":
            raise ValueError(f'{name}: expected "symmetric2" or "asymmetric", the weights of "symmetric1" vary by path')
    return Spec(step_pattern, kernel, bool(open_begin), bool(open_end))


def need_pattern(step_pattern: Any) -> None:
    """Raise ValueError unless it is one of STEPS."""
    if not isinstance(step_pattern, str) or step_pattern not in STEPS:
        raise ValueError(f"step_pattern: expected one of {', '.join(map(repr, STEPS))}, got {step_pattern!r}")


def _found(pairs: Pairs, spec: Spec, normalize: bool) -> DTW:
    backend, xp = pairs.backend, pairs.backend.xp
    grid = [backend.stop_gradient(a) for a in pairs.arrays]
    if len(grid) == 1:
        grid = [-grid[0]]
    (path,) = backend.call(PATH, spec.encode(), [*grid, pairs.bounds, pairs.corners])
    size = prod(pairs.batch)
    path = xp.broadcast_to(path, (size, *path.shape[1:]))
    is_cell = path[..., 0] >= 0
    cells = xp.where(is_cell[..., None], path, 0)
    costs = _costs(pairs, cells)
    steps = xp.sum(cells[:, 1:, :] - cells[:, :-1, :], axis=-1)
    ones = xp.ones_like(steps[:, :1]) if steps.shape[1] else xp.ones_like(cells[:, :1, 0])
    weights = xp.concat([ones, steps if spec.pattern == "symmetric2" else xp.ones_like(steps)], axis=1)
    weights = xp.where(is_cell, weights, 0)
    distance = xp.sum(multiply(backend, xp.astype(weights, costs.dtype), costs), axis=-1)
    if normalize:
        total = xp.sum(weights, axis=-1) + (1 if spec.pattern == "symmetric2" else 0)
        distance = distance / xp.astype(xp.where(is_cell[:, 0], total, 1), costs.dtype)
    distance = xp.where(is_cell[:, 0], distance, inf)
    distance = xp.where(pairs.is_bad, nan, distance)
    path = xp.where(pairs.is_bad[:, None, None], -1, path)
    return DTW(pairs.unflatten(distance), pairs.unflatten(path, is_floating=False))


def _costs(pairs: Pairs, cells: Array) -> Array:
    """Local costs (B, L) of cells (B, L, 2)."""
    backend, xp = pairs.backend, pairs.backend.xp
    if len(pairs.arrays) == 1:
        (costs,) = pairs.arrays
        places = cells[..., 0] * costs.shape[2] + cells[..., 1]
        return backend.take_along(xp.reshape(costs, (costs.shape[0], -1)), places, 1)
    rows, columns = (backend.take_along(a, cells[..., i : i + 1], 1) for i, a in enumerate(pairs.arrays))
    return norms(backend, rows - columns)
