"""Best alignments piece by piece: in memory that grows with pieces, not frames, times states; and with a beam.

Each piece of the time axis is a chain of its own over a window of states. Only scores at the pieces' ends are kept; the
way back traces one piece after the other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf
from typing import Any, NamedTuple

import numpy as np

from ..arrays import chain_arrays, unpack
from ..backend import Array, Backend, backend_of
from ..chain import chain_of
from ..decode import log_joint, viterbi
from ..semiring import MAX
from ..transition import Banded, Sparse
from .compiler import graph_edges_of
from .graph import ANY, FREE, AlignmentGraph, log_of, state_scores

PIECE = 128
"""Frames from one pruning to the next."""
_ROUND = 64
"""Windows are multiples of so many states, so that few shapes occur."""


class BeamPath(NamedTuple):
    """The best path of one sequence that the beam left."""

    states: Any
    """(T,) integers on the host, -1 where there is none."""
    log_joint: Array
    """log p(x, states)."""
    pruned: float
    """Share of the steps' states that were not looked at because of the beam."""
    log_bound: float
    """No path that was pruned has a higher log p(x, z); -inf where none was."""


@dataclass(frozen=True)
class _Window:
    """Steps start..stop-1 over states low..high-1."""

    start: int
    stop: int
    low: int
    high: int
    before: Any
    """(high - low,) scores of the step before on the host; None for the first piece."""

    def leading_to(self, end: int, ahead: int, back: int) -> _Window:
        """Those of the states from which the last step's `end` can be reached."""
        steps = self.stop - self.start
        low, high = max(self.low, end - ahead * steps), min(self.high, end + back * steps + 1)
        before = None if self.before is None else self.before[low - self.low : high - self.low]
        return _Window(self.start, self.stop, low, high, before)


def beam_path(
    graph: AlignmentGraph, log_emission: Array, beam: float = inf, kernel: str = "auto", piece: int | None = None
) -> BeamPath:
    """The best path of a graph without batch axes over emissions (T, V).

    States are pruned every `piece` frames, default `PIECE`, that are more than `beam` nats below the best one there.
    """
    piece = PIECE if piece is None else piece
    backend = backend_of(log_emission=log_emission)
    num_steps, num_states = log_emission.shape[0], graph.labels.shape[-1]
    sources, targets, weights = graph_edges_of(graph)
    away = targets - sources
    ahead, back = max(int(away.max(initial=0)), 0), max(int(-away.min(initial=0)), 0)
    initial, final = (backend.to_numpy(x) for x in (graph.log_initial, graph.log_final))
    (begins,), (ends,) = np.nonzero(initial > -inf), np.nonzero(final > -inf)
    if not len(begins) or not len(ends):
        return _no_path(log_emission, num_steps, 0.0, -inf)
    best_weight = max(float(weights.max(initial=-inf)), 0.0)
    rest = _rest(backend, graph, log_emission, best_weight) + float(final.max())

    def window(low: int, high: int, start: int, stop: int) -> tuple[int, int]:
        """What can be reached from states low..high-1 by the end of a piece, and can still reach an end."""
        steps = stop - start
        low, high = low - back * steps, high + ahead * steps
        # the first step is the one before the piece, which has a frame more to go
        low = max(low, 0, int(ends[0]) - ahead * (num_steps - start))
        return min(low, num_states - 1), min(high, num_states)

    windows: list[_Window] = []
    whole = kept = (int(begins[0]), int(begins[-1]) + 1)
    before, offset, bound, seen, there = None, 0.0, -inf, 0, 0
    for start in range(0, num_steps, piece):
        stop = min(start + piece, num_steps)
        whole = window(*whole, start, stop)
        low, high = window(*kept, start, stop)
        high = max(min(low - (low - high) // _ROUND * _ROUND, num_states), low + 1)
        seen, there = (
            seen + (stop - start) * (min(high, whole[1]) - low),
            there + (stop - start) * (whole[1] - whole[0]),
        )
        own = None if before is None else before[low:high].copy()
        windows.append(_Window(start, stop, low, high, own))
        last, scale = _last(backend, graph, log_emission, windows[-1], kernel)
        if np.isnan(last).any():
            return _no_path(log_emission, num_steps, 0.0, -inf, value=np.nan)
        top = last.max()
        if top == -inf:
            return _no_path(log_emission, num_steps, 1.0 - min(seen / there, 1.0), bound)
        offset += scale + float(top)
        last = last - top
        if stop < num_steps:
            is_out = (last < -beam) & (last > -inf)
            if is_out.any():
                bound = max(bound, float(last[is_out].max()) + offset + float(rest[stop]))
                last[is_out] = -inf
            (alive,) = np.nonzero(last > -inf)
            kept = (low + int(alive[0]), low + int(alive[-1]) + 1)
        before = np.full(num_states, -inf)
        before[low:high] = last
    states, score = _trace(backend, graph, log_emission, windows, (ahead, back), kernel)
    return BeamPath(states, score, max(1.0 - seen / there, 0.0) if bound > -inf else 0.0, bound)


def _no_path(log_emission: Array, num_steps: int, pruned: float, bound: float, value: float = -inf) -> BeamPath:
    backend = backend_of(log_emission=log_emission)
    return BeamPath(np.full(num_steps, -1), backend.full((), value, like=log_emission), pruned, bound)


def _rest(backend: Backend, graph: AlignmentGraph, log_emission: Array, best_weight: float) -> Any:
    """What no path gains more than from step t on, (T + 1,), but for the weight of its end."""
    columns = np.unique(backend.to_numpy(graph.labels))
    scores = backend.to_numpy(log_emission).astype(np.float64)
    top = scores.max(-1) if ANY in columns else scores[:, columns[columns >= 0]].max(-1, initial=-inf)
    top = np.maximum(top, 0.0) if FREE in columns else top
    return np.append(np.cumsum((top + best_weight)[::-1])[::-1], 0.0)


def _chain(
    backend: Backend, graph: AlignmentGraph, log_emission: Array, window: _Window, final: Array
) -> tuple[Array, Any, Array, Array]:
    """Arguments of the chain functions for one piece; its first step is the step before, if there is one."""
    xp, part = backend.xp, slice(window.low, window.high)
    transition: Any = graph.log_transition
    if isinstance(transition, Banded):
        near = [o for o, offset in enumerate(transition.offsets) if abs(offset) < window.high - window.low]
        bands = xp.stack([transition.log_bands[..., o, part] for o in near], axis=-2)
        transition = Banded(bands, tuple(transition.offsets[o] for o in near))
    else:
        sources, targets = (x.values - window.low for x in (transition.sources, transition.targets))
        size = window.high - window.low
        (inside,) = np.nonzero((np.minimum(sources, targets) >= 0) & (np.maximum(sources, targets) < size))
        weights = xp.take(transition.log_weights, backend.asarray(inside, like=transition.log_weights), axis=-1)
        transition = Sparse(weights, sources[inside], targets[inside], size)
    own = graph._replace(labels=graph.labels[part])
    emission = state_scores(own, log_emission[window.start : window.stop, :])
    if window.before is None:
        return graph.log_initial[part], transition, emission, final
    before = xp.astype(backend.asarray(window.before, like=emission), emission.dtype)
    return before, transition, xp.concat([xp.zeros_like(emission[:1, :]), emission], axis=0), final


def _last(
    backend: Backend, graph: AlignmentGraph, log_emission: Array, window: _Window, kernel: str
) -> tuple[Any, float]:
    """Scores of the best paths into each state of the window at the piece's last step, and what to add to all."""
    xp = backend.xp
    none = xp.zeros_like(graph.log_final[window.low : window.high])
    arguments = _chain(backend, graph, backend.stop_gradient(log_emission), window, none)
    chain = chain_of(*arguments[:3], log_final=none)
    arrays = chain_arrays(chain, kernel)
    a = unpack(backend, arrays.spec.encode(), [*map(backend.stop_gradient, arrays.theta), *arrays.constants])
    emission, tops = a.centred()
    found = a.messages(replace(a.call(emission), semiring=MAX, last_only=True))
    scale = float(backend.to_numpy(found.total)[0]) + float(backend.to_numpy(tops).astype(np.float64).sum())
    return backend.to_numpy(found.last[0])[0].astype(np.float64), scale


def _trace(
    backend: Backend,
    graph: AlignmentGraph,
    log_emission: Array,
    windows: list[_Window],
    reach: tuple[int, int],
    kernel: str,
) -> tuple[Any, Array]:
    """The best path through the windows, from the last one back, and its score.

    Args:
        reach: states that a path may go on or back by in a step.
    """
    xp = backend.xp
    states = np.full(log_emission.shape[0], -1)
    scores = []
    end: int | None = None
    for window in reversed(windows):
        if end is not None:
            window = window.leading_to(end, *reach)
        size = window.high - window.low
        if end is None:
            final = graph.log_final[window.low : window.high]
        else:
            final = log_of(backend, backend.arange(size, like=log_emission) == end - window.low, graph.log_final)
        arguments = _chain(backend, graph, log_emission, window, final)
        constant = [backend.stop_gradient(x) if backend.is_array(x) else x for x in arguments]
        path, best = viterbi(*constant[:3], log_final=constant[3], kernel=kernel)
        found = backend.to_numpy(path)
        if found[0] < 0:
            return np.full(len(states), -1), backend.full((), float(best), like=log_emission)
        # what came before is weighed in its own piece
        begin = arguments[0] if window.before is None else xp.zeros_like(arguments[0])
        ending = final if end is None else xp.zeros_like(final)
        scores.append(log_joint(begin, arguments[1], arguments[2], states=path, log_final=ending))
        if window.before is not None:
            end, found = window.low + int(found[0]), found[1:]
        states[window.start : window.stop] = window.low + found
    return states, xp.sum(xp.stack(scores))
