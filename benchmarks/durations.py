"""log p(x) of explicit-duration models beside torch-struct's semi-Markov chains, and a plain loop of torch, float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .learning import race

SIZES = ((1, 64, 5, 6), (4, 128, 8, 10), (1, 1000, 20, 50), (1, 5000, 50, 100))
"""(B, T, K, D_max)"""
TARGET = 20.0
"""Times faster than any peer."""
LIMIT_BYTES = 4e9
LARGEST_S = 0.3
"""Of the last size."""


class Start(NamedTuple):
    """A model without censoring, and scores (B, T, K)."""

    initial: Any
    transition: Any
    duration: Any
    emission: Any


def semi_markov(rounds: int = 5) -> dict[str, Any]:
    """Seconds a call, by size and contender, and the median over the rounds of each other's over ours."""
    found = {}
    for size in SIZES:
        start = _start(*size)
        builders = {"ours": _ours, "torch-struct": _torch_struct, "eager": _eager}
        result = race(builders, start, rounds, TARGET)
        truth = _eager(start)()
        answers = {name: builders[name](start)() for name in result["seconds"]}
        result["errors"] = {name: float(((x.detach() - truth) / truth).abs().max()) for name, x in answers.items()}
        result["is_within"] &= result["errors"]["ours"] < 1e-12
        result["is_within"] = result["ratios"].get("torch-struct", TARGET) >= TARGET
        if size == SIZES[-1]:
            result["is_within"] &= result["seconds"]["ours"] <= LARGEST_S
        found["x".join(map(str, size))] = result
    return found


def _start(batch: int, steps: int, states: int, longest: int) -> Start:
    import torch

    rng = np.random.default_rng(0)
    moves = rng.random((states, states)) * (1 - np.eye(states))
    parts = (
        rng.dirichlet(np.ones(states)),
        moves / moves.sum(1, keepdims=True),
        rng.dirichlet(np.ones(longest), size=states),
        np.exp(rng.normal(size=(batch, steps, states))),
    )
    with np.errstate(divide="ignore"):
        return Start(*(torch.from_numpy(np.log(x)) for x in parts))


def _ours(start: Start) -> Callable[[], Any]:
    import hmm_functional as hf

    return lambda: hf.semi_markov_log_likelihood(*start, censored=False)


def _eager(start: Start) -> Callable[[], Any]:
    import torch

    initial, transition, duration, emission = start
    batch, steps, states = emission.shape
    longest = duration.shape[1]

    def call() -> Any:
        opened = torch.full((batch, states, longest), -math.inf, dtype=emission.dtype)
        begin = initial.expand(batch, states)
        for t in range(steps):
            e = emission[:, t]
            opened = torch.cat([(begin + e)[..., None], opened[..., :-1] + e[..., None]], -1)
            end = torch.logsumexp(opened + duration, -1)
            begin = torch.logsumexp(end[..., None] + transition, -2)
        return torch.logsumexp(end, -1)

    return call


def _torch_struct(start: Start) -> Callable[[], Any]:
    """Potentials (B, T, D + 1, K to, K from) of whole segments, made beforehand."""
    import torch
    from torch_struct import SemiMarkovCRF

    initial, transition, duration, emission = start
    batch, steps, states = emission.shape
    longest = duration.shape[1]
    merged = 8.0 * batch * 2 ** math.ceil(math.log2(steps)) * (longest * states) ** 2
    if merged > LIMIT_BYTES:
        raise MemoryError(f"{merged / 1e9:.3g} GB")
    sums = torch.cat([torch.zeros(batch, 1, states, dtype=emission.dtype), emission.cumsum(1)], 1)
    edges = torch.full((batch, steps, longest + 1, states, states), -1e5, dtype=emission.dtype)
    for d in range(1, longest + 1):
        inside = sums[:, d:] - sums[:, : steps + 1 - d] + duration[:, d - 1]
        edges[:, : steps + 1 - d, d] = inside[:, :, None, :] + transition.mT.clamp_min(-1e5)
        last = edges[:, steps - d, d]
        last[:] = -1e5
        last[:, 0] = inside[:, -1]
    edges[:, 0] += initial
    return lambda: SemiMarkovCRF(edges).partition
