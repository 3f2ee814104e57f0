"""The oracle of trajectories: windows as written-out matrices, normal equations solved by elimination.

Nothing here imports the library.
"""

from __future__ import annotations

import mpmath
import numpy as np


def matrix(window, num_steps):
    """(T, T): row t gives the window's output at frame t."""
    reach = len(window) // 2
    found = np.zeros((num_steps, num_steps))
    for t in range(num_steps):
        for offset, weight in enumerate(window, -reach):
            if 0 <= t + offset < num_steps:
                found[t, t + offset] = weight
    return found


def crosses(window, num_steps):
    """(T,): at which frames a window reaches over an end."""
    reach, steps = len(window) // 2, np.arange(num_steps)
    return (steps < reach) | (steps + reach >= num_steps)


class Trajectory:
    """One feature: means and variances (T, W), windows, edges."""

    def __init__(self, means, variances, windows, edges="truncate"):
        means, variances = np.asarray(means, float), np.asarray(variances, float)
        self.rows = np.concatenate([matrix(window, len(means)) for window in windows])
        precisions = 1 / variances
        for i, window in enumerate(windows):
            if edges == "hts" and i:
                precisions[crosses(window, len(means)), i] = 0.0
        self.precisions, self.means = precisions.T.ravel(), np.where(precisions == 0, 0.0, means).T.ravel()

    def solution(self):
        """(T,)"""
        left = self.rows.T @ (self.precisions[:, None] * self.rows)
        return np.linalg.solve(left, self.rows.T @ (self.precisions * self.means))

    def exact_solution(self, digits=60):
        """(T,), by mpmath."""
        with mpmath.workdps(digits):
            rows, weights = mpmath.matrix(self.rows.tolist()), mpmath.diag(self.precisions.tolist())
            left = rows.T * weights * rows
            right = rows.T * weights * mpmath.matrix(self.means.tolist())
            return np.array([float(x) for x in mpmath.lu_solve(left, right)])

    def log_density(self, c):
        """log N(W c; means, variances) less a constant."""
        return -0.5 * float(self.precisions @ (self.rows @ c - self.means) ** 2)


def solutions(means, variances, windows, edges="truncate", lengths=None):
    """(B, T, D) for means and variances (B, T, W D), 0 past the lengths."""
    size, num_steps, width = means.shape
    dim = width // len(windows)
    found = np.zeros((size, num_steps, dim))
    for b in range(size):
        end = num_steps if lengths is None else lengths[b]
        for d in range(dim):
            parts = (x[b, :end, d::dim] for x in (means, variances))
            found[b, :end, d] = Trajectory(*parts, windows, edges).solution()
    return found


def features(x, windows, edges="truncate"):
    """(T, W D) of x (T, D)."""
    found = []
    for i, window in enumerate(windows):
        y = matrix(window, len(x)) @ x
        if edges == "hts" and i:
            y[crosses(window, len(x))] = 0.0
        found.append(y)
    return np.concatenate(found, -1)
