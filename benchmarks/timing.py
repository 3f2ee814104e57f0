"""Contenders timed in turns, so that whatever else the machine does falls on all of them."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

SHORTEST_S = 5e-3
"""A sample repeats its call for at least so long."""

SHORT_S = 0.05
"""A call shorter than this is made once before each sample."""

LONGEST_S = 5.0
"""A call longer than this is timed once."""

MIN_SAMPLES = 3


@dataclass
class Lane:
    """One contender's samples: seconds a call, by round."""

    call: Callable[[], Any]
    first_s: float
    """Of the first call, already made."""
    is_compiled: bool
    samples: dict[int, float] = field(default_factory=dict)
    spent_s: float = 0.0
    repeats: int = 1
    is_short: bool = False

    @property
    def median_s(self) -> float:
        return statistics.median(self.samples.values())


def alternate(lanes: dict[str, Lane], budget_s: float, max_rounds: int = 25) -> None:
    """Fill the lanes' samples, a round at a time, until the budget is spent.

    A lane leaves when it has three samples and has spent twice its share of the budget; a lane far behind the
    fastest, or that needs many seconds a call, has one sample.
    """
    gc.collect()
    gc.disable()
    try:
        _alternate(lanes, budget_s, max_rounds)
    finally:
        gc.enable()


def _alternate(lanes: dict[str, Lane], budget_s: float, max_rounds: int) -> None:
    share = 2.0 * budget_s / len(lanes)
    fastest = min(lane.first_s for lane in lanes.values())
    for lane in lanes.values():
        # a first call may also wait for pages of its library, and any for those that the one before gave back
        seconds = _seconds(lane.call, 1, is_short=False)
        seconds = min(seconds, _seconds(lane.call, 1, is_short=False) if lane.is_compiled else lane.first_s)
        lane.repeats, lane.is_short = max(1, math.ceil(SHORTEST_S / seconds)), seconds < SHORT_S
        if seconds > min(max(share / 3, 3 * fastest), LONGEST_S):
            lane.samples[0], lane.spent_s = seconds, math.inf
    start = time.perf_counter()
    for turn in range(max_rounds):
        racing = [lane for lane in lanes.values() if lane.spent_s < share or len(lane.samples) < MIN_SAMPLES]
        racing = [lane for lane in racing if lane.spent_s < math.inf]
        if not racing or (turn >= MIN_SAMPLES and time.perf_counter() - start > budget_s):
            break
        for lane in racing:
            seconds = _seconds(lane.call, lane.repeats, is_short=lane.is_short)
            lane.samples[turn] = seconds / lane.repeats
            lane.spent_s += seconds


def ratio(slow: Lane, fast: Lane) -> float:
    """Median over the rounds both ran of slow / fast; of the medians, where no round had both."""
    both = slow.samples.keys() & fast.samples.keys()
    if not both:
        return slow.median_s / fast.median_s
    return statistics.median(slow.samples[turn] / fast.samples[turn] for turn in both)


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """What a call returns, and its seconds."""
    start = time.perf_counter()
    out = call()
    return out, time.perf_counter() - start


def _seconds(call: Callable[[], Any], repeats: int, *, is_short: bool) -> float:
    if is_short:  # the last contender's threads may still be spinning
        call()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return time.perf_counter() - start
