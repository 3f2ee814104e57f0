"""All warping paths of small grids, counted out."""

from __future__ import annotations

import mpmath
import numpy as np

STEPS = {
    "symmetric1": {(1, 1): 1, (0, 1): 1, (1, 0): 1},
    "symmetric2": {(1, 1): 2, (0, 1): 1, (1, 0): 1},
    "asymmetric": {(1, 0): 1, (1, 1): 1, (1, 2): 1},
}


def warping_paths(rows, columns, pattern, *, open_begin=False, open_end=False, allowed=None):
    """Lists of (i, j, weight), from the first pair to the last."""
    allowed = np.ones((rows, columns), bool) if allowed is None else allowed

    def onward(path):
        i, j, _ = path[-1]
        if i == rows - 1 and (j == columns - 1 or open_end):
            yield path
        for (a, b), weight in STEPS[pattern].items():
            if i + a < rows and j + b < columns and allowed[i + a, j + b]:
                yield from onward([*path, (i + a, j + b, weight)])

    for j in range(columns if open_begin else 1):
        if allowed[0, j]:
            yield from onward([(0, j, 1)])


def cost(path, costs):
    return sum(weight * costs[i, j] for i, j, weight in path)


def soft(costs, gamma, pattern="symmetric1", allowed=None):
    """The soft cost and the expected weight of each cell, in 40 digits."""
    with mpmath.workdps(40):
        paths = list(warping_paths(*costs.shape, pattern, allowed=allowed))
        weights = [mpmath.exp(-mpmath.mpf(float(cost(path, costs))) / gamma) for path in paths]
        total = mpmath.fsum(weights)
        visits = np.zeros(costs.shape)
        if total == 0:
            return np.inf, visits
        for path, weight in zip(paths, weights, strict=True):
            for i, j, factor in path:
                visits[i, j] += factor * float(weight / total)
        return float(-gamma * mpmath.log(total)), visits


def window_of(rows, columns, window):
    """(N, M) booleans, from the definitions with 1-based indices."""
    i, j = np.mgrid[1 : rows + 1, 1 : columns + 1]
    if window is None:
        return np.ones((rows, columns), bool)
    if window == "itakura":
        return (j < 2 * i) & (i <= 2 * j) & (i >= rows - 1 - 2 * (columns - j)) & (j > columns - 1 - 2 * (rows - i))
    name, radius = window
    if name == "sakoe_chiba":
        return abs(i - j) <= radius
    line = (i - 1) * (columns - 1) / max(rows - 1, 1)
    return abs(j - 1 - line) <= radius + 1e-9
