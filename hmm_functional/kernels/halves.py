"""Few long sequences on several threads: the forward and the backward pass at once, whole or meeting in the middle."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..backend import Array
from . import compiled, layout, plan
from .call_layout import Layout
from .job import execute
from .memory import empty_like, host


def can_meet(made: Layout) -> bool:
    """Whether the halves of each sequence are worth two threads: constant weights, and one length for all."""
    is_regular = made.lengths is None or made.batch == 1
    return is_regular and made.is_constant and made.leaves_threads_idle


def meet(made: Layout, final: Array, likelihood: Array) -> None:
    """Log-likelihoods (B,): forward over the first half, backward over the second, joined over the step between."""
    call, batch, num_states = made.call, made.batch, made.num_states
    num_steps = made.num_steps if made.lengths is None else int(made.lengths[0])
    half, emission = num_steps // 2, call.emission[0]
    ahead = replace(call, emission=(emission[:, :half, :],), lengths=None)
    behind = replace(call, emission=(emission[:, half:num_steps, :],), initial=(final,), reverse=True, lengths=None)
    totals, lasts, jobs = [], [], []
    for part in (ahead, behind):
        one = Layout(part)
        totals.append(np.empty(batch))
        lasts.append(empty_like(emission, (batch, num_states), made.io))
        one.job.point(layout.TOTAL, totals[-1])
        one.job.point(layout.LAST, lasts[-1])
        jobs += one.jobs("messages", False)
    execute(jobs, made.threads)
    between = empty_like(emission, (batch, 2, num_states), made.io)
    between[...] = 0.0
    join = Layout(replace(call, initial=(lasts[0],), emission=(between,), lengths=None))
    found = np.empty(batch)
    join.job.point_rows(layout.FINAL, layout.FINAL_BATCH, lasts[1])
    join.job.point(layout.LOG_LIKELIHOOD, found)
    join.job.point(layout.TOTAL, np.empty(batch))
    execute(join.jobs("messages", False), 1)
    host(likelihood)[...] = totals[0] + totals[1] + found


def smooth(made: Layout, final: Array, likelihood: Array, posteriors: Array) -> None:
    """Log posteriors (B, T, K) and log-likelihoods (B,): both passes at once, then their rows together."""
    call = made.call
    later = empty_like(posteriors, made.like.shape, made.io)
    back = Layout(replace(call, initial=(final,), reverse=True, include_emission=False))
    back.job.point(layout.VALUES, later)
    back.job.point(layout.TOTAL, np.empty(made.batch))
    made.job.point_rows(layout.FINAL, layout.FINAL_BATCH, final)
    made.job.point(layout.LOG_LIKELIHOOD, likelihood)
    made.job.point(layout.TOTAL, np.empty(made.batch))
    made.job.point(layout.VALUES, posteriors)
    execute([*made.jobs("messages", False), *back.jobs("messages", False)], made.threads)
    job = made.job.copy()
    job.point(layout.MESSAGES, posteriors)
    job.point(layout.COTANGENT, later)
    job.point(layout.TICKET, np.zeros(1, np.int64))
    job.num_tasks = made.batch * -(-made.num_steps // (16 * layout.CHUNK))
    job.fields[layout.NUM_TASKS] = job.num_tasks
    job.scratch(plan.join_scratch(made.num_states, made.element), made.threads)
    job.entry = compiled.entry("join", made.element, made.io)
    execute([job], made.threads)
