"""The best path of a stream, a chunk at a time: a step is given out as soon as all surviving paths agree on it."""

from __future__ import annotations

from math import inf
from typing import Any, NamedTuple

import numpy as np

from .._check import broadcast_batch, need_count, need_floating, need_shape
from .._types import Viterbi
from ..arrays import fused
from ..backend import Array, Backend, backend_of
from ..chain import Chain, chain_of
from ..edges import structure_from
from ..kernels.layout import CHUNK
from ..kernels.plan import element_of, variant_of
from ..kernels.trellis import pointer_type
from ..structure import Dense, Factored
from . import trellis
from .host import HostStreams, chunk_of, ended
from .posterior import start_of

REGISTERS = 8
"""States up to which compiled code keeps one stream's message in a register, and scales it a step later."""


class ViterbiStreamState(NamedTuple):
    """All that streams know; arrays, besides `max_delay`, which can be saved, moved between devices and batched."""

    log_initial: Array
    """(..., K), as given."""
    log_transition: Any
    """As given."""
    log_message: Array
    """(..., K): log weight of the best path into each state, less `log_scale`; NaN from where a stream holds NaN."""
    log_scale: Array
    """(..., 2): a number as the sum of two, so that it can be long."""
    back_pointers: Array
    """(..., P, K) integers: the best predecessor of each state, of the pending steps; a stream's own come last."""
    origins: Array
    """(..., K) integers: where the best path into each state was at the first pending step."""
    num_steps: Array
    """(...) integers: steps taken."""
    num_committed: Array
    """(...) integers: steps given out. The others are pending."""
    num_forced: Array
    """(...) integers: steps given out before all survivors agreed."""
    max_delay: int | None
    """Steps that may be pending after a chunk, known to a tracer."""

    @property
    def num_pending(self) -> Array:
        """(...) integers: steps taken and not yet given out."""
        return self.num_steps - self.num_committed

    @property
    def log_joint(self) -> Array:
        """(...): log p(x, z) of the best path so far, nats; 0 before the first step, -inf where there is none."""
        return _score(backend_of(state=self.log_message), self, self.log_message)


def viterbi_stream_init(
    log_initial: Array,
    log_transition: Any,
    *,
    max_delay: int | None = None,
    batch_shape: tuple[int, ...] = (),
    like: Array | None = None,
) -> ViterbiStreamState:
    """The state of Viterbi streams before their first step.

    Args:
        log_initial: (..., K), nats.
        log_transition: constant in time: (K, K), (..., 1, K, K) or a structure.
        max_delay: steps that may be pending after a chunk: older ones are forced. Default: any number.
        batch_shape: axes of parallel streams, before those of the parameters.
        like: an array whose dtype and device the state takes; default those of `log_initial`.

    Returns:
        ViterbiStreamState, a pytree in torch and JAX.

    Raises:
        TypeError, ValueError: as `log_likelihood`; ValueError for a time-varying transition.

    Example:
        >>> import torch, hmm_functional as hf
        >>> transition = torch.tensor([[0.9, 0.1], [0.1, 0.9]]).log()
        >>> state = hf.viterbi_stream_init(torch.zeros(2), transition)
        >>> state, states = hf.viterbi_stream_step(state, torch.tensor([[5.0, 0.0], [0.0, 0.5]]))
        >>> states, hf.viterbi_stream_flush(state).states
        (tensor([0]), tensor([0]))
    """
    delay = None if max_delay is None else need_count("max_delay", max_delay, 0)
    backend, initial = start_of(log_initial, log_transition, batch_shape, like)
    batch, num_states = tuple(initial.shape[:-1]), initial.shape[-1]
    backend.register_pytree(
        ViterbiStreamState,
        lambda s: (tuple(s[:-1]), s.max_delay),
        lambda delay, s: ViterbiStreamState._make((*s, delay)),
    )

    def zeros(*shape: int, dtype: Any = None) -> Array:
        return backend.full((*batch, *shape), 0, like=initial, dtype=dtype)

    index = backend.index_dtype()
    pointers = zeros(0, num_states, dtype=getattr(backend.xp, pointer_type(num_states).__name__))
    counts = (zeros(num_states, dtype=index), *(zeros(dtype=index) for _ in range(3)))
    scale = zeros(2, dtype=backend.wide_dtype(initial))
    return ViterbiStreamState._make((initial, log_transition, initial, scale, pointers, *counts, delay))


def viterbi_stream_step(
    state: ViterbiStreamState, log_emission_chunk: Array, lengths: Any = None
) -> tuple[ViterbiStreamState, Array]:
    """Take the next steps of streams; give the states of those that all surviving paths agree on.

    Args:
        state: from `viterbi_stream_init` or the step before.
        log_emission_chunk: (..., n, K), nats, any n.
        lengths: (...) integers 0..n: the steps of each stream in this chunk, so that streams begin, pause and end when
            they like; default n.

    Returns:
        `(state, states (..., m) int64)`, in order from the first step not yet given out; m is the most of the batch,
        and streams that give out fewer are padded with -1. `num_committed` says how many each has given out.

        Where a path was -1 offline, because there is none or a step holds NaN, the steps that are still pending and
        all later ones are -1; those given out before cannot be called back.

        Where more than `max_delay` steps are pending after the chunk, the older ones are forced: they are given out as
        the best path so far has them, and of the survivors only those through them go on, so that the whole output is
        one path. `num_forced` counts the steps on which the survivors left did not agree. What is forced depends on
        the chunks, and on nothing where every chunk is one step.

    Raises:
        TypeError, ValueError: as `log_likelihood`; TypeError for traced arrays.

    Ties: as `viterbi`; the concatenated states are its states, however a stream is cut, if no step was forced.

    Cost: O(n K^2) time for a dense transition, and O(K) a pending step when any is given out, whatever has gone before;
    2 bytes for each state and pending step. On the host, without gradients.

    References: Šrámek, Brejová and Vinař 2007, "On-line Viterbi algorithm".

    Example:
        >>> import torch, hmm_functional as hf
        >>> state = hf.viterbi_stream_init(torch.zeros(2), torch.zeros(2, 2))
        >>> state, states = hf.viterbi_stream_step(state, torch.tensor([[0.0, 1.0], [2.0, 0.0], [0.0, 1.0]]))
        >>> states, state.num_pending
        (tensor([1, 0]), tensor(1))
    """
    backend, batch, ends = chunk_of(state.log_message, log_emission_chunk, lengths)
    host = _Streams(state, backend, batch)
    if log_emission_chunk.shape[-2]:
        emission = host.flat(backend.stop_gradient(log_emission_chunk), 2)
        chain = chain_of(state.log_initial, state.log_transition, log_emission_chunk[..., :1, :])
        host.take(chain, emission, ends)
    states = host.give_out()
    return host.state(), host.back(states)


def viterbi_stream_flush(state: ViterbiStreamState, is_ending: Any = None, log_final: Array | None = None) -> Viterbi:
    """The states of the steps still pending, and log p(x, z) of the whole path, where streams end.

    Args:
        state: from `viterbi_stream_step`.
        is_ending: (...) booleans, which streams; default all.
        log_final: (..., K), log weight of ending in each state; default zeros.

    Returns:
        `Viterbi(states (..., P), log_joint (...))`: padded behind with -1, as those of streams that do not end.
        log_joint is -inf where there is no path, NaN where a stream holds NaN, 0 before the first step; of streams
        that do not end it is what it would be. The state may go on taking steps, as if not asked;
        `viterbi_stream_reset` begins streams anew.

    Raises:
        TypeError, ValueError: as `log_likelihood`.

    Cost: O(P) time.

    Example:
        >>> import torch, hmm_functional as hf
        >>> hf.viterbi_stream_flush(hf.viterbi_stream_init(torch.zeros(2), torch.zeros(2, 2)))
        Viterbi(states=tensor([], dtype=torch.int64), log_joint=tensor(0.))
    """
    backend = backend_of(state=state.log_message, log_final=log_final)
    message, num_states = state.log_message, state.log_message.shape[-1]
    batch = tuple(message.shape[:-1])
    if log_final is not None:
        need_floating("log_final", backend.xp, log_final)
        need_shape("log_final", log_final.shape, (num_states,), f"(..., K) with K = {num_states} as in the state")
        batch = broadcast_batch({"state": batch, "log_final": tuple(log_final.shape[:-1])})
        message = message + log_final
    ending = ended(is_ending, batch, "is_ending")
    host = _Streams(state, backend, batch)
    final = np.broadcast_to(backend.to_numpy(message), (*batch, num_states)).reshape(host.size, num_states)
    states = host.rest(final, ending.reshape(-1))
    return Viterbi(host.back(states), _score(backend, state, message))


def viterbi_stream_reset(state: ViterbiStreamState, is_ended: Any = None) -> ViterbiStreamState:
    """The state with streams at their beginning again, those of `is_ended` (...), default all; others go on.

    Returns:
        ViterbiStreamState; pending steps of streams that begin anew are lost unless flushed before.

    Raises:
        TypeError, ValueError: `is_ended` holds no booleans of the streams.

    Example:
        >>> import torch, hmm_functional as hf
        >>> state = hf.viterbi_stream_init(torch.zeros(2), torch.zeros(2, 2), batch_shape=(2,))
        >>> state, _ = hf.viterbi_stream_step(state, torch.zeros(2, 3, 2))
        >>> hf.viterbi_stream_reset(state, [True, False]).num_steps
        tensor([0, 3])
    """
    backend = backend_of(state=state.log_message)
    batch = tuple(state.log_message.shape[:-1])
    host = _Streams(state, backend, batch)
    host.reset(ended(is_ended, batch, "is_ended").reshape(-1))
    return host.state()


def _score(backend: Backend, state: ViterbiStreamState, message: Array) -> Array:
    xp = backend.xp
    total = xp.sum(state.log_scale, axis=-1)
    best = xp.max(message, axis=-1)
    found = xp.where(best == -inf, -inf, xp.astype(total + xp.astype(best, total.dtype), state.log_initial.dtype))
    return xp.where(state.num_steps == 0, xp.zeros_like(found), found)


class _Streams(HostStreams):
    """Viterbi streams."""

    def __init__(self, state: ViterbiStreamState, backend: Backend, batch: tuple[int, ...]) -> None:
        super().__init__(backend, batch, state.log_message)
        self.given = state
        self.message, scale, pointers, self.origins, self.num_steps, self.num_committed, self.num_forced = (
            self.flat(x, rank) for x, rank in zip(state[2:-1], (1, 1, 2, 1, 0, 0, 0), strict=True)
        )
        self.scale = scale.astype(np.float64).sum(-1)
        self.pointers = np.ascontiguousarray(pointers.swapaxes(0, 1))

    @property
    def num_pending(self) -> Any:
        return self.num_steps - self.num_committed

    def take(self, chain: Chain, emission: Any, lengths: Any) -> None:
        """Steps (B, n, K) of emissions."""
        if isinstance(chain.structure, Factored):
            chain = chain.with_dense_transition()
        dtype, scaling = _arithmetic(chain, self.size)
        weights = self.backend.to_numpy(self.backend.stop_gradient(chain.weights[0]))[:, 0]
        if len(weights) > 1:  # of their own batch axes
            weights = np.broadcast_to(
                weights.reshape((*chain.batch_shape, *weights.shape[1:])), (*self.batch, *weights.shape[1:])
            ).reshape(self.size, *weights.shape[1:])
        moves = trellis.Moves(_on_host(chain, self.backend), weights, self.size, dtype)
        initial = self.flat(self.given.log_initial, 1).astype(dtype, copy=False)
        passed = trellis.forward(
            moves,
            scaling,
            initial,
            self.message.astype(dtype, copy=False),
            self.origins,
            emission.astype(dtype, copy=False),
            lengths,
            self.num_steps,
            self.num_pending,
        )
        pending = self.num_pending
        self.pointers = trellis.window(self.pointers, passed.pointers, pending, lengths)
        self.message, self.origins = passed.message, passed.origins
        self.scale, self.num_steps = self.scale + passed.scale, self.num_steps + lengths

    def give_out(self) -> Any:
        """(B, m) of the steps that are final now."""
        found = trellis.commit(
            self.message, self.origins, self.pointers, self.num_steps, self.num_pending, self.given.max_delay
        )
        self.message, self.origins = found.message, found.origins
        self.num_forced = self.num_forced + found.forced
        self.num_committed = self.num_committed + found.count
        self.drop()
        return found.states

    def drop(self) -> None:
        """Leave out rows that no stream waits for."""
        self.pointers = self.pointers[len(self.pointers) - int(self.num_pending.max(initial=0)) :]

    def rest(self, final: Any, is_ending: Any) -> Any:
        """(B, m) of all pending steps, with the weights `final` of the last one's states."""
        is_possible = (final > -inf).any(-1) & ~np.isnan(final).any(-1)
        best = np.where(final > -inf, final, -inf).argmax(-1)
        alone = np.zeros(final.shape, bool)
        traced = trellis.trace(self.pointers, alone, best, is_ending, self.num_pending)
        path = np.where(is_possible, traced.path, -1)
        return trellis.rows_of(path, self.num_pending, np.where(is_ending, self.num_pending, 0))

    def reset(self, is_ended: Any) -> None:
        """Begin streams anew."""
        which = is_ended[:, None]
        self.message = np.where(which, self.flat(self.given.log_initial, 1), self.message)
        self.scale = np.where(is_ended, 0.0, self.scale)
        self.num_steps, self.num_committed, self.num_forced = (
            np.where(is_ended, 0, x) for x in (self.num_steps, self.num_committed, self.num_forced)
        )
        self.drop()

    def state(self) -> ViterbiStreamState:
        """These streams as a state."""
        given = self.given
        pointers = self.pointers.swapaxes(0, 1)
        rest = (self.origins.astype(np.int64, copy=False), self.num_steps, self.num_committed, self.num_forced)
        initial, shape = given.log_initial, (*self.batch, given.log_initial.shape[-1])
        if tuple(initial.shape) != shape:
            initial = self.backend.xp.broadcast_to(initial, shape)
        parts = (self.back(self.message), self.scale_back(self.scale), self.back(pointers), *map(self.back, rest))
        return ViterbiStreamState._make((initial, given.log_transition, *parts, given.max_delay))


def _on_host(chain: Chain, backend: Backend) -> Any:
    """The structure with its tables on the host."""
    structure: Any = chain.structure
    if isinstance(structure, Dense):
        return structure
    return structure_from(structure.key, tuple(backend.to_numpy(table) for table in structure.tables))


def _arithmetic(chain: Chain, size: int) -> tuple[Any, trellis.Scaling]:
    """What `viterbi` computes in, and when it scales: so that paths that differ by rounding alone win alike."""
    io = np.dtype(str(chain.emission.dtype).rpartition(".")[2])
    if fused(chain, "auto") is None:
        return io, trellis.Scaling(1, 0, True)
    element = element_of("f32" if io == np.float32 else "f64", variant_of(chain.structure), chain.num_states)
    dtype = np.float32 if element == "f32" else np.float64
    is_small = isinstance(chain.structure, Dense) and chain.num_states <= REGISTERS and size == 1
    if is_small and dtype == np.float64:
        return dtype, trellis.Scaling(CHUNK, 0, False)
    return dtype, trellis.Scaling(CHUNK, CHUNK - 1, True)
