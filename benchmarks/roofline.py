"""The least time a cell can take on this machine: its bytes over bandwidth, or its multiply-adds over peak."""

from __future__ import annotations

import time
from typing import Any

import torch

from .cells import Cell

ITEMSIZE = {"float64": 8, "float32": 4}


def measure(before: dict[str, Any] | None = None) -> dict[str, Any]:
    """Bytes a second of the better of a large sum and a large copy, and multiply-adds a second of matrix products.

    The larger of these and what was measured before.
    """
    x = torch.ones(32 * 2**20, dtype=torch.float64)
    y = torch.empty_like(x)
    size = x.numel() * x.element_size()
    bandwidth = max(size / _best(x.sum), 2 * size / _best(lambda: y.copy_(x)))
    peak = {}
    for dtype in ITEMSIZE:
        matrix = torch.randn(1536, 1536, dtype=getattr(torch, dtype))
        out = torch.empty_like(matrix)
        peak[dtype] = 1536**3 / _best(lambda m=matrix, o=out: torch.mm(m, m, out=o))
    if before is not None:
        bandwidth = max(bandwidth, before["bytes_per_s"])
        peak = {dtype: max(value, before["multiply_adds_per_s"][dtype]) for dtype, value in peak.items()}
    return {"bytes_per_s": bandwidth, "multiply_adds_per_s": peak, "threads": torch.get_num_threads()}


def least_seconds(cell: Cell, operation: str, dtype: str, machine: dict[str, Any]) -> float:
    """The larger of the two bounds.

    forward_backward: two passes, each reading log_emission, and its result written. viterbi: read once, int64 states
    written, max-adds counted as multiply-adds. gradient: two passes, K^2 counts a step, its result written. A mixture:
    B T K M 2D multiply-adds of a matrix product, observations read, densities written.
    """
    itemsize, frames = ITEMSIZE[dtype], cell.frames
    emission, moves = frames * cell.states * itemsize, frames * cell.moves
    size, work = {
        "log_likelihood": (emission, moves),
        "forward_backward": (3 * emission, 2 * moves),
        "viterbi": (emission + 8 * frames, moves),
        "gradient": (3 * emission, 3 * moves),
        "gmm": (
            frames * (cell.features + cell.states) * itemsize,
            frames * cell.states * cell.components * 2 * cell.features,
        ),
    }[operation]
    return max(size / machine["bytes_per_s"], work / machine["multiply_adds_per_s"][dtype])


def _best(call: Any, calls: int = 8) -> float:
    call()
    seconds = []
    for _ in range(calls):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
