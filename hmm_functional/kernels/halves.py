"""Few long sequences on twice the threads: both directions at once, meeting in the middle.

Each sequence is cut in two. First one thread goes forward over the early half and another backward over the late half;
what they say of the transition between the halves gives the likelihood. Then each goes on over the other's half, along
the messages that it left there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..backend import Array
from . import layout
from .call_layout import Layout
from .job import execute, handed
from .memory import empty_like, host
from .registry import MessageCall


@dataclass(frozen=True)
class Cut:
    """A sequence, or some of one length, in two halves: steps 0..middle-1 and middle..end-1."""

    which: slice
    """Of the batch."""
    middle: int
    end: int
    early: MessageCall
    """Forward over the early half."""
    late: MessageCall
    """Backward over the late half."""
    between: MessageCall
    """Forward over two steps without emissions, from the last early to the first late one."""


Met = tuple[Cut, Array, Array]
"""A cut, and the last messages, (1, K) each, of its early and of its late half."""


def cuts(made: Layout, final: Array, *, together: bool = False) -> list[Cut]:
    """Every sequence of a forward call in two halves, or all of them together."""
    if together:
        return [_cut(made, final, slice(0, made.batch))]
    return [_cut(made, final, slice(b, b + 1)) for b in range(made.batch)]


def _cut(made: Layout, final: Array, which: slice) -> Cut:
    call = made.call
    end = made.num_steps if made.lengths is None else int(made.lengths[which.start])
    middle = max(1, end // 2)

    def own(x: Array) -> Array:
        return x[which, ...] if x.shape[0] > 1 else x

    def slots(first: int, last: int) -> Any:
        weights = tuple(own(w) for w in call.weights[0])
        return (weights if made.is_constant else tuple(w[:, first:last, ...] for w in weights),)

    emission = own(call.emission[0])
    nothing = handed(empty_like(emission, (emission.shape[0], 2, made.num_states), made.io))
    nothing[...] = 0.0
    whole = replace(call, initial=(own(call.initial[0]),), lengths=None)
    return Cut(
        which=which,
        middle=middle,
        end=end,
        early=replace(whole, emission=(emission[:, :middle, :],), weights=slots(0, middle - 1)),
        late=replace(
            whole,
            initial=(own(final),),
            emission=(emission[:, middle:end, :],),
            weights=slots(middle, end - 1),
            reverse=True,
        ),
        between=replace(whole, emission=(nothing,), weights=slots(middle - 1, middle)),
    )


def meet(made: Layout, final: Array, likelihood: Array, messages: Array | None = None, form: int = 0) -> list[Met]:
    """Log-likelihoods (B,), and messages (B, T, K), forward ones of the early and reversed ones of the late half."""
    found: list[Met] = []
    jobs, scales = [], []
    # sequences that together have no thread to spare share the readings of their matrix
    together = messages is None and made.lengths is None and 2 * made.batch > made.threads
    for cut in cuts(made, final, together=together):
        count = cut.which.stop - cut.which.start
        totals = np.empty((2, count))
        lasts = [handed(empty_like(made.like, (count, made.num_states), made.io)) for _ in range(2)]
        steps = (slice(0, cut.middle), slice(cut.middle, cut.end))
        for i, call in enumerate((cut.early, cut.late)):
            half = Layout(call, is_for_one=together)
            half.job.keep(layout.TOTAL, totals[i])
            half.job.point(layout.LAST, lasts[i])
            if messages is not None:
                half.job.point(layout.VALUES, messages[cut.which, steps[i], :])
                half.job.fields[layout.TAGGED] = form
            jobs += half.jobs("messages", False)
        found.append((cut, *lasts))
        scales.append(totals)
    execute(jobs, made.threads)
    for (cut, early, late), totals in zip(found, scales, strict=True):
        between = Layout(replace(cut.between, initial=(early,)))
        between.job.point_rows(layout.FINAL, layout.FINAL_BATCH, late)
        between.job.point(layout.LOG_LIKELIHOOD, likelihood[cut.which])
        between.job.keep(layout.EARLIER, totals)
        between.job.fields[layout.EARLIER_BATCH] = totals.shape[1]
        between.job.keep(layout.TOTAL, np.empty(totals.shape[1]))
        execute(between.jobs("messages", False), 1)
    return found


def go_on(cut: Cut, early: Array, late: Array, messages: Array, values: Array) -> list[Layout]:
    """The passes over the other's half, from the last messages `early` and `late`, (1, K) each, into `values`."""
    found = []
    for steps, call, start in (
        (slice(0, cut.middle), cut.early, _moved(replace(cut.between, initial=(late,), reverse=True))),
        (slice(cut.middle, cut.end), cut.late, _moved(replace(cut.between, initial=(early,)))),
    ):
        half = Layout(call)
        half.job.point_rows(layout.INITIAL, layout.INITIAL_BATCH, start)
        half.job.point(layout.MESSAGES, messages[cut.which, steps, :])
        half.job.point(layout.VALUES, values[cut.which, steps, :])
        found.append(half)
    return found


def _moved(call: MessageCall) -> Array:
    """The message on the other side of the transition."""
    made = Layout(call)
    found = handed(empty_like(made.like, (1, made.num_states), made.io))
    made.job.point(layout.LAST, found)
    made.job.keep(layout.TOTAL, np.empty(1))
    execute(made.jobs("messages", False), 1)
    return found


def pairs_between(cut: Cut, early: Array, late: Array, scale: Any) -> Any:
    """Posterior probabilities of the transitions from the early to the late half, times `scale`, as a slot of weights.

    What is impossible stays 0, however large the scale.
    """
    structure: Any = cut.between.structure
    here, there = (host(x)[0].astype(np.float64) for x in (early, late))
    weights = host(cut.between.weights[0][0])[0, 0]
    if len(structure.tables) == 0:
        scores = here[:, None] + weights + there
    else:
        sources, targets = (host(x) for x in structure.tables[:2])
        scores = here[sources] + weights + there[targets]
    top = scores.max()
    if top == -np.inf:
        return np.zeros_like(scores)
    found = np.exp(scores - top)
    return found / found.sum() * np.where(found == 0, 0.0, scale)
