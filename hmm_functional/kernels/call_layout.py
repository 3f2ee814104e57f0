"""A call of the recursion in the terms of compiled code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..backend import Array
from . import compiled, layout, plan, threads
from .job import Job, execute
from .memory import contiguous, host, kind_of, strides
from .registry import MessageCall

TYPES = {"f32": np.float32, "f64": np.float64}


class Layout:
    """A call in the terms of compiled code."""

    def __init__(self, call: MessageCall, *, is_for_one: bool = False) -> None:
        """`is_for_one`: one thread is to do all sequences, since others have other work."""
        self.call = call
        self._is_for_one = is_for_one
        self.like = call.emission[0]
        self.batch, self.num_steps, self.num_states = self.like.shape
        self.io = kind_of(self.like)
        self.structure = plan.variant_of(call.structure)
        self.element = plan.element_of(self.io, self.structure, self.num_states)
        self.has_tangent = len(call.emission) == 2
        weights = call.weights[0]
        if self.has_tangent:
            weights = tuple(call.backend.xp.broadcast_arrays(*weights))
        self.weights = weights
        self.is_shared = weights[0].shape[0] == 1
        self.is_constant = weights[0].shape[1] == 1
        self.can_share = self.is_shared and self.is_constant and not self.has_tangent
        self.lengths = None if call.lengths is None else host(call.lengths).astype(np.int64, copy=False)
        self.threads = threads.available()
        self.job = Job()
        self._describe()

    def plans(self) -> list[plan.Plan]:
        return plan.plans(
            self.structure,
            self.can_share,
            self.lengths,
            self.batch,
            self.num_steps,
            self.num_states,
            self.element,
            1 if self._is_for_one else self.threads,
        )

    def jobs(self, module: str, *variant: Any, is_log: bool = False, reverse: bool = False) -> list[Job]:
        """Jobs of a kernel, one for each plan, without scratch."""
        found = []
        for tasks in self.plans():
            job = self.job.copy()
            if reverse:
                self.turn(job)
            job.start(tasks)
            # one task prepares its weights by itself, except where they lie by sums into states
            is_prepared = self.can_share and (tasks.lanes or job.num_tasks > 1 or module == "backward")
            if self.structure == "dense" and is_prepared:
                self.prepare(job, tasks.lanes, is_log)
            job.entry = compiled.entry(module, self.element, self.io, tasks.lanes, self.structure, *variant)
            sizes = plan.sizes(job.fields, tasks.lanes, self.structure, self.element, tasks.largest, is_prepared)
            if module == "viterbi":
                row = sizes.rows // layout.CHUNK
                code_bytes = {"u8": 1, "u16": 2, "i32": 4}[variant[0]]
                segment = plan.segment_of(self.num_steps, row, code_bytes)
                job.fields[layout.SEGMENT] = segment
                size = plan.viterbi_scratch(sizes, self.element, self.num_steps, segment, code_bytes)
            else:
                size = plan.messages_scratch(sizes, self.element)
            job.scratch(size, self.threads)
            found.append(job)
        return found

    def execute(self, jobs: Sequence[Job]) -> None:
        """Run jobs side by side, on as many threads as the work is worth."""
        execute(jobs, self.threads if self.work > plan.SERIAL_WORK else 1)

    @property
    def work(self) -> int:
        """Elementary operations of a pass."""
        return plan.work(self.call.structure, self.batch, self.num_steps, self.num_states)

    def turn(self, job: Job) -> None:
        """The other direction of travel."""
        fields = job.fields
        fields[layout.REVERSE] = 1 - fields[layout.REVERSE]
        fields[layout.WEIGHTS_FROM], fields[layout.WEIGHTS_TO] = fields[layout.WEIGHTS_TO], fields[layout.WEIGHTS_FROM]
        if self.structure != "dense":
            self._describe_edges(job, bool(fields[layout.REVERSE]))

    def _describe(self) -> None:
        call, job, fields = self.call, self.job, self.job.fields
        fields[layout.NUM_STEPS], fields[layout.NUM_STATES] = self.num_steps, self.num_states
        fields[layout.REVERSE], fields[layout.INCLUDE_EMISSION] = int(call.reverse), int(call.include_emission)
        together = call.backend.xp.broadcast_arrays
        emission = [_rows(x) for x in (together(*call.emission) if self.has_tangent else call.emission)]
        if len(emission) == 2 and strides(emission[0]) != strides(emission[1]):
            emission = [contiguous(x) for x in emission]
        job.point(layout.EMISSION, emission[0])
        fields[layout.EMISSION_BATCH], fields[layout.EMISSION_STEP], _ = strides(emission[0])
        job.point_rows(layout.INITIAL, layout.INITIAL_BATCH, call.initial[0])
        if self.has_tangent:
            job.point(layout.TANGENT, emission[1])
            job.point(layout.INITIAL_TANGENT, contiguous(call.initial[1]))
        if self.lengths is None:
            job.keep(layout.LENGTHS, np.full(self.batch, self.num_steps, np.int64))
        else:
            job.point(layout.LENGTHS, np.ascontiguousarray(self.lengths))
        weights = list(self.weights)
        if self.has_tangent and strides(weights[0]) != strides(weights[1]):
            weights = [contiguous(w) for w in weights]
        elif self.structure != "dense":
            weights = [_rows(w) for w in weights]
        by_batch, by_slot, *by_base = strides(weights[0])
        job.point(layout.WEIGHTS, weights[0])
        fields[layout.WEIGHTS_BATCH] = 0 if self.is_shared else by_batch
        fields[layout.WEIGHTS_SLOT] = 0 if self.is_constant else by_slot
        fields[layout.IS_VARYING] = int(not self.is_constant)
        if self.has_tangent:
            job.point(layout.WEIGHTS_TANGENT, weights[1])
        if self.structure == "dense":
            fields[layout.WEIGHTS_FROM], fields[layout.WEIGHTS_TO] = by_base[::-1] if call.reverse else by_base
        else:
            self._describe_edges(job, call.reverse)

    def _describe_edges(self, job: Job, reverse: bool) -> None:
        structure: Any = self.call.structure
        sources, targets = (host(x) for x in structure.tables[:2])
        into = structure._out if reverse else structure._into
        if reverse:
            sources, targets = targets, sources
        job.fields[layout.NUM_EDGES] = len(sources)
        tables = (sources, targets, *(host(x) for x in into[:3]))
        places = (layout.EDGE_SOURCE, layout.EDGE_TARGET, layout.EDGE_ORDER, layout.EDGE_START, layout.EDGE_COUNT)
        for field, table in zip(places, tables, strict=True):
            job.keep(field, np.ascontiguousarray(table, np.int64))
        sign = -1 if reverse else 1
        offsets = np.array(sorted(sign * o for o in structure.offsets), np.int64)
        job.keep(layout.OFFSETS, offsets)
        job.fields[layout.NUM_OFFSETS] = len(offsets)

    def prepare(self, job: Job, lanes: bool, is_log: bool) -> None:
        """The matrix in the layout of the tasks, once for all of them."""
        size = self.num_states * layout.padded(self.num_states, plan.LANES[self.element])
        job.keep(layout.MATRIX, np.empty(size, TYPES[self.element]))
        job.keep(layout.TINY, np.empty(self.num_states + 1, np.int64))
        job.keep(layout.SHIFT, np.empty(1))
        first = job.copy()
        first.count_tasks(1)
        first.entry = compiled.entry("matrix", self.element, self.io, lanes, is_log)
        execute([first], 1)


def _rows(x: Array) -> Array:
    """`x`, copied unless its last axis is contiguous in memory."""
    return x if strides(x)[-1] == 1 or x.shape[-1] == 1 else contiguous(x)
