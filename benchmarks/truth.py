"""Who is right: an independent NumPy float64 computation in the log domain, and how far an answer is from it."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from .cells import Mixture, Problem

LARGEST_SEARCH = 1_000_000_000
"""Max-adds above which the best path is the best that any contender found."""

TOLERANCE = {
    "float64": {"log_likelihood": 1e-9, "forward_backward": 1e-6, "viterbi": 1e-9, "gradient": 1e-6, "gmm": 1e-9},
    "float32": {"log_likelihood": 1e-4, "forward_backward": 1e-3, "viterbi": 1e-4, "gradient": 1e-3, "gmm": 1e-4},
}
"""Largest `error` of a right answer."""

ERROR_OF = {
    "log_likelihood": "relative, of the worst sequence",
    "forward_backward": "absolute, of the worst posterior probability (or relative, of a log-likelihood, if larger)",
    "viterbi": "relative shortfall of the returned path's log p(x, z), of the worst sequence",
    "gradient": "largest difference of each gradient over its largest entry",
    "gmm": "relative to 1 + the magnitude of the log-density",
}


class Truth:
    """The answers of one problem, each computed when first asked for."""

    def __init__(self, problem: Problem | Mixture) -> None:
        self.problem = problem
        self.best_seen: Any = None

    @cached_property
    def filtered(self) -> tuple[Any, Any]:
        """log p(z_t given x_0..t) (B, T, K) and log p(x) (B,)."""
        p = self.problem
        messages = np.empty_like(p.log_emission)
        scales = np.empty(p.log_emission.shape[:2])
        message = p.log_initial
        for t in range(p.cell.steps):
            message = message + p.log_emission[:, t]
            scales[:, t] = _logsumexp(message)
            message = message - scales[:, t, None]
            messages[:, t] = message
            message = self._step(message, forward=True)
        return messages, np.where(p.valid, scales, 0.0).sum(1)

    @cached_property
    def backward(self) -> Any:
        """log p(x after t given z_t) up to a scale a step, (B, T, K)."""
        p = self.problem
        out = np.zeros_like(p.log_emission)
        for t in range(p.cell.steps - 2, -1, -1):
            message = self._step(p.log_emission[:, t + 1] + out[:, t + 1], forward=False)
            message = message - message.max(-1, keepdims=True)
            out[:, t] = np.where(p.valid[:, t + 1, None], message, 0.0)
        return out

    @cached_property
    def posteriors(self) -> Any:
        """p(z_t given x), (B, T, K); 0 in the padding."""
        joint = self.filtered[0] + self.backward
        return np.exp(joint - _logsumexp(joint)[..., None]) * self.problem.valid[..., None]

    @cached_property
    def gradient(self) -> tuple[Any, Any, Any]:
        """Of the summed log p(x): expected starts (K,), moves (K, K) or (2, K), and posteriors (B, T, K)."""
        p = self.problem
        source, target = self.filtered[0][:, :-1], (p.log_emission + self.backward)[:, 1:]
        target = target - target.max(-1, keepdims=True)
        valid = p.valid[:, 1:, None]
        if p.log_bands is not None:
            stay = source + p.log_bands[0] + target
            go = (source + p.log_bands[1])[..., :-1] + target[..., 1:]
            scale = np.logaddexp(_logsumexp(stay), _logsumexp(go))[..., None]
            counts = np.zeros_like(p.log_bands)
            counts[0] = (np.exp(stay - scale) * valid).sum((0, 1))
            counts[1, :-1] = (np.exp(go - scale) * valid).sum((0, 1))
            return self.posteriors[:, 0].sum(0), counts, self.posteriors
        left, right, transition = np.exp(source), np.exp(target), np.exp(p.log_transition)
        scale = ((left @ transition) * right).sum(-1, keepdims=True)
        size = p.cell.states
        pairs = (left * valid / scale).reshape(-1, size).T @ right.reshape(-1, size)
        return self.posteriors[:, 0].sum(0), transition * pairs, self.posteriors

    @cached_property
    def best_score(self) -> Any:
        """The largest log p(x, z), (B,); None where searching for it takes too long."""
        p = self.problem
        if p.cell.frames * p.cell.moves > LARGEST_SEARCH:
            return None
        message = p.log_initial + p.log_emission[:, 0]
        for t in range(1, p.cell.steps):
            if p.log_bands is None:
                moved = (message[:, :, None] + p.log_transition).max(1)
            else:
                moved = message + p.log_bands[0]
                moved[:, 1:] = np.maximum(moved[:, 1:], (message + p.log_bands[1])[:, :-1])
            message = np.where(p.valid[:, t, None], moved + p.log_emission[:, t], message)
        return message.max(-1)

    def path_score(self, states: Any) -> Any:
        """log p(x, z) of paths (B, T), (B,)."""
        p = self.problem
        path = np.where(p.valid, states, 0).astype(np.int64)
        if path.min() < 0 or path.max() >= p.cell.states:
            return np.full(p.cell.batch, -np.inf)
        emitted = np.take_along_axis(p.log_emission, path[..., None], -1)[..., 0]
        moved = p.log_transition[path[:, :-1], path[:, 1:]]
        total = p.log_initial[path[:, 0]] + np.where(p.valid, emitted, 0.0).sum(1)
        return total + np.where(p.valid[:, 1:], moved, 0.0).sum(1)

    @cached_property
    def mixture(self) -> Any:
        """log p(x_t given z_t = k), (B, T, K)."""
        p = self.problem
        out = np.empty((p.cell.batch, p.cell.steps, p.cell.states))
        for k in range(p.cell.states):
            parts = [
                np.log(weight)
                - 0.5 * (np.log(2 * np.pi * variance).sum() + ((p.observations - mean) ** 2 / variance).sum(-1))
                for weight, mean, variance in zip(p.weights[k], p.means[k], p.variances[k], strict=True)
            ]
            out[..., k] = np.logaddexp.reduce(parts)
        return out

    def errors(self, operation: str, answers: dict[str, Any]) -> dict[str, float]:
        """How far each contender's answer is off, as `ERROR_OF` says; inf for NaN."""
        if operation == "viterbi":
            answers = {name: self.path_score(states) for name, states in answers.items()}
            if self.best_score is None and answers:
                seen = [] if self.best_seen is None else [self.best_seen]
                self.best_seen = np.max([*answers.values(), *seen], axis=0)
        return {name: self._error(operation, answer) for name, answer in answers.items()}

    def _error(self, operation: str, answer: Any) -> float:
        if operation == "log_likelihood":
            value = _relative(answer, self.filtered[1])
        elif operation == "forward_backward":
            posteriors, likelihood = answer
            gap = np.abs(np.where(self.problem.valid[..., None], posteriors, 0.0) - self.posteriors).max()
            value = max(gap, _relative(likelihood, self.filtered[1])) if np.isfinite(gap) else np.inf
        elif operation == "viterbi":
            best = self.best_seen if self.best_score is None else self.best_score
            value = ((best - answer) / np.abs(best)).max()
        elif operation == "gradient":
            pairs = zip(answer, self.gradient, strict=True)
            value = max(np.abs(np.nan_to_num(x, nan=np.inf) - y).max() / np.abs(y).max() for x, y in pairs)
        else:
            value = (np.abs(answer - self.mixture) / (1.0 + np.abs(self.mixture))).max()
        return float(value) if np.isfinite(value) else float("inf")

    def _step(self, message: Any, *, forward: bool) -> Any:
        """logsumexp over one step's transitions, (B, K)."""
        p = self.problem
        with np.errstate(divide="ignore"):
            if p.log_bands is not None:
                stay, go = p.log_bands
                out = message + stay
                if forward:
                    out[:, 1:] = np.logaddexp(out[:, 1:], (message + go)[:, :-1])
                else:
                    out[:, :-1] = np.logaddexp(out[:, :-1], go[:-1] + message[:, 1:])
                return out
            matrix = p.log_transition if forward else p.log_transition.T
            top = message.max(-1, keepdims=True)
            total = np.exp(message - top) @ self._matrix[forward]
            if total.min() < 1e-250:
                return np.logaddexp.reduce(message[:, :, None] + matrix, axis=1)
            return np.log(total) + top

    @cached_property
    def _matrix(self) -> tuple[Any, Any]:
        matrix = np.exp(self.problem.log_transition)
        return np.ascontiguousarray(matrix.T), matrix


def _logsumexp(x: Any) -> Any:
    top = x.max(-1, keepdims=True)
    return np.log(np.exp(x - top).sum(-1)) + top[..., 0]


def _relative(x: Any, y: Any) -> float:
    return float((np.abs(x - y) / np.abs(y)).max())
