"""HMMs on streams: posteriors or states as the frames come in."""

from __future__ import annotations

import json
import os
import time
import warnings
from dataclasses import dataclass
from hashlib import sha256
from math import inf
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

import hmm_functional as hf
from hmm_functional._check import need_count

from .. import io
from .._check import need_frames
from ..hmm import BaseHMM
from ..parametrize import full_precision
from ..scores import HMMPyTorch
from ..semi_markov import HSMM
from .kinds import Kind, kind_of, leaves_of, with_leaves

FORMAT = "pytorch-hmm stream 1"


class StreamStatistics(NamedTuple):
    """What a processor did since it was made, or since its last `reset`."""

    frames_in: int
    frames_out: int
    chunks: int
    seconds: float
    """Spent in `process_chunk` and `flush`."""
    mean_chunk_seconds: float
    worst_chunk_seconds: float
    real_time_factor: float | None
    """Seconds of computing for a second of the stream; None without a `frame_rate`, or before the first frame."""
    num_forced: int
    """Frames whose states were given out before all surviving paths agreed, of Viterbi streams."""


@dataclass
class _Tally:
    frames_in: int = 0
    frames_out: int = 0
    chunks: int = 0
    seconds: float = 0.0
    worst: float = 0.0
    forced: int = 0
    """In streams that have ended."""


class StreamingHMMProcessor(nn.Module):
    """State probabilities or states of one stream, a chunk at a time: those that the whole sequence would have given.

    Args:
        hmm_model: any HMM module. Its initial and transition probabilities are read when a stream starts.
        chunk_size: expected frames a chunk; chunks of any size are accepted.
        overlap: look-ahead in frames: the posterior of a frame waits for `overlap` more and takes account of them.
        decode: "posterior"; "filter" for p(z_t given x_0..t) without waiting, whatever `overlap` is; "viterbi" for the
            states of the best path, each as soon as all paths that can still be the best agree on it.
        frame_rate: frames a second, for the real-time factor.
        max_delay: of "viterbi", frames that may wait after a chunk; older ones are given out as the best path so far
            has them, and what follows goes on from there. Default: any number.

    Attributes:
        expected_remaining: of an `HSMM` that filters, (m, K) for the frames last returned: how many steps each state is
            expected to last beyond them, if it is the one; None before, and of others.
        scores: what turns features into the scores of an `HMMPyTorch` whose number of states is not their width.
            None until such features come; then a linear layer, held here and not by the model, untrained (with a
            UserWarning). A trained module can be assigned instead.

    Raises:
        TypeError: no HMM module, or one that depends on more than observations. ValueError: another argument.

    One processor is one stream of one thread; `StreamingQueue` takes frames of other threads.

    Example:
        >>> import torch
        >>> processor = StreamingHMMProcessor(HMMPyTorch(num_states=5), chunk_size=160, overlap=80)
        >>> [processor.process_chunk(torch.randn(160, 5)).shape[0] for _ in range(3)]
        [80, 160, 160]
        >>> processor.flush().shape
        torch.Size([80, 5])
    """

    def __init__(
        self,
        hmm_model: BaseHMM,
        chunk_size: int = 160,
        overlap: int = 80,
        decode: Literal["posterior", "filter", "viterbi"] = "posterior",
        *,
        frame_rate: float | None = None,
        max_delay: int | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(hmm_model, BaseHMM):
            raise TypeError(f"hmm_model: expected an HMM module of pytorch_hmm, got {type(hmm_model).__name__}")
        if hmm_model._is_conditional:
            kind = type(hmm_model).__name__
            raise TypeError(f"hmm_model: expected a model of observations alone, {kind} depends on inputs or networks")
        if decode not in ("posterior", "filter", "viterbi"):
            raise ValueError(f"decode: expected 'posterior', 'filter' or 'viterbi', got {decode!r}")
        if max_delay is not None and decode != "viterbi":
            raise ValueError(f"max_delay: expected only with decode='viterbi', got {max_delay!r} with {decode!r}")
        if frame_rate is not None and not (isinstance(frame_rate, int | float) and 0 < frame_rate < inf):
            raise ValueError(f"frame_rate: expected frames a second, above 0, got {frame_rate!r}")
        self.hmm_model = hmm_model
        self.chunk_size = need_count("chunk_size", chunk_size, 1)
        self.overlap = need_count("overlap", overlap, 0)
        self.decode = decode
        self.frame_rate = frame_rate
        self.max_delay = None if max_delay is None else need_count("max_delay", max_delay, 0)
        self.scores: nn.Module | None = None
        self.expected_remaining: Tensor | None = None
        self._state: Any = None
        self._recent: Tensor | None = None
        """The frames that the next ones' densities look back at."""
        self._tally = _Tally()

    @torch.no_grad()
    def process_chunk(self, features: Tensor) -> Tensor | None:
        """Take the next frames of the stream.

        Args:
            features: (n, D), any n, also 0; or (n,) integers for a `CategoricalHMM`.

        Returns:
            Of the m frames that became final, in order: (m, K) probabilities, or with "viterbi" (m,) int64 states, -1
            from where the stream is impossible; None while there is none.

        Raises:
            ValueError: a wrong shape, or values the model refuses; the stream stays as it was.

        Cost: O(n K^2 (1 + look-ahead)) time, whatever has gone before.
        """
        begun = time.perf_counter()
        observations = self._scores(features)
        if len(features) == 0:
            return None
        with full_precision(features):
            emission, recent = self._emission(observations)
            state = self._begun(emission) if self._state is None else self._state
            self._state, found = self._kind.step(state, emission)
            self._recent = recent
        rows, self.expected_remaining = found
        self._tally.frames_in += len(features)
        self._tally.chunks += 1
        return self._counted(rows, begun)

    forward = process_chunk

    @torch.no_grad()
    def flush(self) -> Tensor | None:
        """End the stream: (m, K) or (m,) of the frames still waiting, or None; the next chunk starts another.

        A stream may end in any state: what a model says of ends is for whole sequences.
        """
        if self._state is None:
            return None
        begun, state = time.perf_counter(), self._state
        with full_precision(leaves_of(state)[0]):
            rows = self._kind.flush(self.hmm_model, state)
        self._tally.forced += self._forced()
        self._forget()
        return self._counted(rows, begun)

    @torch.no_grad()
    def remaining(self) -> Tensor | None:
        """Of an `HSMM`, p(z_t, r more steps of it given x_0..t) at the last frame, (K, D_max), r from 0; else None.

        None before the first frame, and with "viterbi".
        """
        state = getattr(self._state, "filtering", self._state)
        if not isinstance(state, hf.SemiMarkovStreamState):
            return None
        return hf.semi_markov_remaining(state).exp()  # type: ignore[no-any-return]

    def reset(self) -> None:
        """Forget the stream and the statistics; the next chunk starts another."""
        self._forget()
        self._tally = _Tally()

    @property
    def latency(self) -> int | None:
        """Frames that may wait after a chunk, at most: `overlap`, 0 with "filter", `max_delay` with "viterbi".

        None where nothing bounds them: a Viterbi stream waits until its paths agree.
        """
        return {"posterior": self.overlap, "filter": 0, "viterbi": self.max_delay}[self.decode]

    @property
    def num_waiting(self) -> int:
        """Frames taken and not yet given out."""
        if self._state is None or self.decode == "filter":
            return 0
        if self.decode == "posterior":
            return int(self._state.log_emission.shape[-2])
        return int(self._state.num_pending)

    @property
    def statistics(self) -> StreamStatistics:
        """What was done since the processor was made, or since its last `reset`."""
        tally = self._tally
        factor = None
        if self.frame_rate is not None and tally.frames_in:
            factor = tally.seconds * self.frame_rate / tally.frames_in
        return StreamStatistics(
            tally.frames_in,
            tally.frames_out,
            tally.chunks,
            tally.seconds,
            tally.seconds / max(tally.chunks, 1),
            tally.worst,
            factor,
            tally.forced + self._forced(),
        )

    def save_stream(self, path: str | os.PathLike[str]) -> None:
        """Write the running stream to a file, from which `resume` goes on; an interrupted save leaves what was there.

        The file holds no model: what resumes needs the same one, with the same parameters.

        Raises:
            OSError: the folder does not exist or cannot be written to.
        """
        header = {"format": FORMAT, "stream": json.dumps({**self._described(), **vars(self._tally)})}
        tensors = {} if self._state is None else dict(enumerate(leaves_of(self._state)))
        named = {str(i): x.detach().cpu().contiguous() for i, x in tensors.items()}
        if self._recent is not None:
            named["recent"] = self._recent.detach().cpu().contiguous()
        io.write(path, named, header)

    def resume(self, path: str | os.PathLike[str]) -> None:
        """Go on with the stream that `save_stream` wrote, instead of this one: what comes out is the same to the bit.

        Raises:
            OSError: there is no such file. ValueError: a damaged file, or a stream of another model, of other
                parameters, or of other arguments of the processor.
        """
        device = self.hmm_model.log_initial.device
        tensors, header = io.read(path, device)
        if header.get("format") != FORMAT:
            raise ValueError(f"{path}: expected a stream in the format {FORMAT!r}, got {header.get('format')!r}")
        try:
            described = json.loads(header["stream"])
            tally = _Tally(**{name: described.pop(name) for name in vars(_Tally())})
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: expected a description of the stream in the header, got none: {error}") from None
        for name, wanted in self._described().items():
            if described.get(name) != wanted:
                what = "a stream of this model's parameters" if name == "parameters" else f"{name} {wanted!r}"
                raise ValueError(f"{path}: expected {what}, got those of {name} {described.get(name)!r}")
        recent = tensors.pop("recent", None)
        state = None
        if tensors:
            leaves = [tensors[str(i)] for i in range(len(tensors)) if str(i) in tensors]
            try:
                state = with_leaves(self._begun(self.hmm_model.log_initial), leaves)
            except ValueError as error:
                raise ValueError(f"{path}: its tensors are not those of such a stream: {error}") from None
        self._forget()
        self._state, self._recent, self._tally = state, recent, tally

    def extra_repr(self) -> str:
        """The arguments."""
        given = {"frame_rate": self.frame_rate, "max_delay": self.max_delay}
        others = "".join(f", {name}={value}" for name, value in given.items() if value is not None)
        return f"chunk_size={self.chunk_size}, overlap={self.overlap}, decode={self.decode!r}{others}"

    @property
    def _kind(self) -> Kind:
        return kind_of(isinstance(self.hmm_model, HSMM), self.decode)

    def _begun(self, like: Tensor) -> Any:
        """The state of a stream before its first frame."""
        return self._kind.init(self.hmm_model, like, self.overlap, self.max_delay)

    def _forget(self) -> None:
        self._state = self._recent = self.expected_remaining = None

    def _forced(self) -> int:
        return int(self._state.num_forced) if self._state is not None and self.decode == "viterbi" else 0

    def _counted(self, rows: Tensor | None, begun: float) -> Tensor | None:
        """What is returned, counted: None where there is no frame."""
        found = None
        if rows is not None and rows.shape[0]:
            found = rows if self.decode == "viterbi" else rows.exp()
            self._tally.frames_out += len(found)
        seconds = time.perf_counter() - begun
        self._tally.seconds += seconds
        self._tally.worst = max(self._tally.worst, seconds)
        return found

    def _described(self) -> dict[str, Any]:
        """What a stream that goes on must have alike, as JSON has it."""
        digest = sha256()
        for name, value in self.state_dict().items():
            whole = value.detach().cpu().contiguous()
            digest.update(f"{name} {whole.dtype} {tuple(whole.shape)}".encode())
            digest.update(whole.reshape(-1).view(torch.uint8).numpy().tobytes())
        return {
            "model": type(self.hmm_model).__name__,
            "decode": self.decode,
            "overlap": self.overlap,
            "max_delay": self.max_delay,
            "parameters": digest.hexdigest(),
        }

    def _emission(self, observations: Tensor) -> tuple[Tensor, Tensor | None]:
        """Scores (n, K) of new frames, and the frames to keep for the next ones."""
        model, lags = self.hmm_model, self.hmm_model._num_lags
        if lags == 0:
            return model._emission(observations, None)[0], None
        seen = observations if self._recent is None else torch.cat([self._recent, observations])
        return model._emission(seen, None)[0][len(seen) - len(observations) :], seen[-lags:].clone()

    def _scores(self, features: Tensor) -> Tensor:
        """What the model takes: the features, checked, or the scores made of them."""
        model = self.hmm_model
        rank = len(model.frame_shape) + 1
        if not isinstance(features, Tensor) or features.ndim != rank:
            found = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            words = "(n, D)" if rank == 2 else "(n,)"
            raise ValueError(f"features: expected a tensor {words} of one stream, got {found}")
        if self.scores is None and self._state is None and isinstance(model, HMMPyTorch):
            self.scores = _linear_scores(features, model.num_states)
        if self.scores is None:
            need_frames("features", features, model.frame_shape, is_empty_allowed=True)
            return features
        width = getattr(self.scores, "in_features", features.shape[1])
        need_frames("features", features, (width,), is_empty_allowed=True)
        return self.scores(features)  # type: ignore[no-any-return]


def _linear_scores(features: Tensor, num_states: int) -> nn.Linear | None:
    """An untrained layer from features (n, D) to scores, with a warning; None where D is the number of states."""
    width = features.shape[1]
    if width == num_states:
        return None
    if not features.is_floating_point() or width == 0:
        raise ValueError(f"features: expected floating-point features, got {features.dtype} {tuple(features.shape)}")
    warnings.warn(
        f"features of width {width} for an HMM that takes the scores of {num_states} states: an untrained linear "
        "layer makes scores of them; assign a trained one to the processor's `scores`",
        stacklevel=5,
    )
    return nn.Linear(width, num_states, device=features.device, dtype=features.dtype)
