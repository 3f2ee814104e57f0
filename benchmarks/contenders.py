"""Everyone who is timed, what they enter for, and what they are expected to cost."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from . import array_contenders, mixtures, torch_contenders
from .cells import OPERATIONS, Cell
from .torch_contenders import Timed

OURS, EAGER = "ours", "torch eager"
LEFT_OUT, NOT_QUICK = "left out", "not in a quick run"
CHAIN_OPERATIONS = frozenset(OPERATIONS)
Cost = Callable[[Cell, str, int], tuple[float, float]]


def _free(cell: Cell, operation: str, itemsize: int) -> tuple[float, float]:
    return 0.0, 0.0


@dataclass(frozen=True)
class Contender:
    """`build(problem, operation, dtype)` gives the call to time; `cost` its expected seconds and bytes."""

    name: str
    build: Callable[[Any, str, str], Timed]
    operations: frozenset[str] = CHAIN_OPERATIONS
    cost: Cost = _free
    is_compiled: bool = False
    """Its first call compiles, and is no timing."""
    is_float64_only: bool = False
    is_quick: bool = True
    """Runs in `--quick`."""


def _per_move(**nanoseconds: float) -> Cost:
    """So many nanoseconds for each of B T K^2 moves; memory is no concern."""

    def cost(cell: Cell, operation: str, itemsize: int) -> tuple[float, float]:
        return nanoseconds[operation] * 1e-9 * cell.frames * cell.states**2, 0.0

    return cost


def _loop(cell: Cell, operation: str, itemsize: int) -> tuple[float, float]:
    moves = cell.batch * cell.steps * cell.states**2
    step, move = {
        "log_likelihood": (20e-6, 3e-9),
        "forward_backward": (40e-6, 6e-9),
        "viterbi": (20e-6, 1.5e-9),
        "gradient": (60e-6, 8e-9),
    }[operation]
    seconds = cell.steps * step + moves * move * itemsize / 8
    return seconds, 2.0 * moves * itemsize if operation == "gradient" else 0.0


def _pomegranate(cell: Cell, operation: str, itemsize: int) -> tuple[float, float]:
    moves = cell.batch * cell.steps * cell.states**2
    if operation == "gradient":  # each step's backward copies the gradient of all steps
        return cell.steps * (120e-6 + 0.5e-9 * cell.batch * cell.steps * cell.states), 0.0
    step, move = {"log_likelihood": (30e-6, 2e-10), "forward_backward": (60e-6, 15e-9), "viterbi": (40e-6, 4e-9)}[
        operation
    ]
    # forward_backward also makes pair posteriors
    return cell.steps * step + moves * move, 3.0 * moves * itemsize if operation == "forward_backward" else 0.0


def _torch_struct(cell: Cell, operation: str, itemsize: int) -> tuple[float, float]:
    products = cell.batch * 2.0 ** math.ceil(math.log2(cell.steps - 1)) * cell.states**3
    move = {"log_likelihood": 25e-9, "forward_backward": 40e-9, "viterbi": 10e-9, "gradient": 30e-9}[operation]
    return products * move, 2.0 * products * itemsize


_HMMLEARN_LOG = _per_move(log_likelihood=6.0, forward_backward=13.0, gradient=25.0, viterbi=0.7)
_HMMLEARN_SCALING = _per_move(log_likelihood=0.9, forward_backward=1.9, gradient=3.0)
_DYNAMAX = _per_move(log_likelihood=0.2, forward_backward=0.4, gradient=1.0, viterbi=4.0)
_SUMS = CHAIN_OPERATIONS - {"viterbi"}

CONTENDERS = (
    Contender(OURS, torch_contenders.ours, is_compiled=True),
    Contender("hmmlearn", array_contenders.hmmlearn, cost=_HMMLEARN_LOG, is_float64_only=True),
    Contender(
        "hmmlearn scaling",
        partial(array_contenders.hmmlearn, scaling=True),
        operations=_SUMS,
        cost=_HMMLEARN_SCALING,
        is_float64_only=True,
    ),
    Contender("dynamax", array_contenders.dynamax, cost=_DYNAMAX, is_compiled=True),
    Contender(
        "dynamax two-filter",
        partial(array_contenders.dynamax, smoother="hmm_two_filter_smoother"),
        operations=frozenset({"forward_backward"}),
        cost=_DYNAMAX,
        is_compiled=True,
        is_quick=False,
    ),
    Contender("pomegranate", torch_contenders.pomegranate, cost=_pomegranate, is_quick=False),
    Contender("torch-struct", torch_contenders.torch_struct, cost=_torch_struct, is_quick=False),
    Contender(EAGER, torch_contenders.eager, cost=_loop),
    *(
        Contender(name, build, frozenset({"gmm"}), is_compiled=name in (OURS, "dynamax"), is_float64_only=float64)
        for name, build, float64 in (
            (OURS, mixtures.ours, False),
            ("hmmlearn", mixtures.hmmlearn, True),
            ("scikit-learn", mixtures.scikit_learn, False),
            ("dynamax", mixtures.dynamax, False),
            ("pomegranate", mixtures.pomegranate, False),
            ("torch.distributions", mixtures.distributions, False),
        )
    ),
)
NAMES = tuple(dict.fromkeys(contender.name for contender in CONTENDERS))


def entrants(cell: Cell, operation: str, dtype: str, options: Any) -> tuple[list[Contender], dict[str, str]]:
    """Who runs, and {name: why} of who does not; ours always does, unless `--without` names it."""
    running, skipped = [], {}
    for contender in CONTENDERS:
        if operation not in contender.operations:
            continue
        itemsize = 8 if dtype == "float64" or contender.is_float64_only else 4
        seconds, size = contender.cost(cell, operation, itemsize)
        if options.without and re.search(options.without, contender.name):
            skipped[contender.name] = LEFT_OUT
        elif options.quick and not contender.is_quick:
            skipped[contender.name] = NOT_QUICK
        elif seconds > options.limit_s:
            skipped[contender.name] = f"expected to take {seconds:.3g} s"
        elif size > options.limit_gb * 1e9:
            skipped[contender.name] = f"expected to need {size / 1e9:.3g} GB"
        else:
            running.append(contender)
    return running, skipped
