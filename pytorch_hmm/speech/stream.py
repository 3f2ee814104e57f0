"""`python -m pytorch_hmm stream`: raw samples on standard input, states on standard output as they become final."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Self, TextIO

import numpy as np
import torch
from torch import Tensor

from ..hmm import BaseHMM
from ..scores import HMMPyTorch
from ..streaming import StreamingHMMProcessor
from .aligner import PhoneAligner
from .console import let_go
from .features import DeltaStream, FeatureSettings, FeatureStream


class StreamError(Exception):
    """The model or the settings cannot be used; the message is one line."""


@dataclass(frozen=True)
class StreamOptions:
    """What the command line asks for."""

    model: Path
    rate: int = 16_000
    decode: str = "viterbi"
    chunk: int = 16
    """Frames decoded at once."""
    look_ahead: int = 20
    """Frames a posterior waits for."""
    max_delay: int | None = 200
    """Frames after which a state of the best path is final at the latest; None for no limit."""
    features: str | None = None
    """Of a model that was saved without: "mfcc" or "log_mel"."""
    deltas: bool = False
    changes: bool = False
    """Whether a line comes with another state only, not with every frame."""

    @classmethod
    def of(cls, given: argparse.Namespace) -> StreamOptions:
        """From the command line.

        Raises:
            StreamError: an argument that makes no sense.
        """
        for name, value, least in (
            ("rate", given.rate, 1),
            ("chunk", given.chunk, 1),
            ("look-ahead", given.look_ahead, 0),
            ("max-delay", given.max_delay, 0),
        ):
            if value is not None and value < least:
                raise StreamError(f"--{name}: expected at least {least}, got {value}")
        for name, value, decode in (
            ("look-ahead", given.look_ahead, "posterior"),
            ("max-delay", given.max_delay, "viterbi"),
        ):
            if value is not None and given.decode != decode:
                raise StreamError(f"--{name}: expected only with --decode {decode}, got {value} with {given.decode}")
        return cls(
            given.model,
            given.rate,
            given.decode,
            given.chunk,
            cls.look_ahead if given.look_ahead is None else given.look_ahead,
            cls.max_delay if given.max_delay is None else given.max_delay or None,
            given.features,
            given.deltas,
            given.changes,
        )


class Source(NamedTuple):
    """A model, and how it came to its observations."""

    hmm: BaseHMM
    names: list[str]
    """Of the states; several may have one."""
    settings: FeatureSettings
    delta_window: int
    """Frames to each side that slopes are taken over; 0 where features have none."""
    mean: Tensor
    scale: Tensor


def load_source(options: StreamOptions) -> Source:
    """The model of a file: an aligner's phones, each after any other, or any HMM that was saved.

    Raises:
        StreamError: there is none, or its features are not known.
    """
    path = options.model
    try:
        if PhoneAligner.is_file(path):
            if options.features is not None or options.deltas:
                raise StreamError(f"--features, --deltas: expected neither, {path} says what its model was trained on")
            return Source(*PhoneAligner.load(path).phone_loop())
        hmm = BaseHMM.load(path)
    except OSError as error:
        raise StreamError(f"--model: {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise StreamError(f"--model: {error}") from None
    if options.features is None:
        raise StreamError(f"--features: expected mfcc or log_mel, {path} does not say what its model was trained on")
    width = hmm.frame_shape[0] if len(hmm.frame_shape) == 1 else 0
    if width == 0 or (options.deltas and width % 3) or isinstance(hmm, HMMPyTorch):
        raise StreamError(f"--model: {path} holds a {type(hmm).__name__} of frames {hmm.frame_shape}, not of features")
    count = width // 3 if options.deltas else width
    mels = max(40, count) if options.features == "mfcc" else count
    try:
        settings = FeatureSettings(options.rate, options.features, num_mels=mels, num_coefficients=count)  # type: ignore[arg-type]
    except ValueError as error:
        raise StreamError(f"--rate: {error}") from None
    names = [str(state) for state in range(hmm.num_states)]
    return Source(hmm, names, settings, 2 if options.deltas else 0, torch.zeros(width), torch.ones(width))


def run(options: StreamOptions, source: BinaryIO | None = None, sink: TextIO | None = None) -> int:
    """Decode 16-bit little-endian samples until they end, or Ctrl-C (130, after what came till then).

    Raises:
        StreamError: see `load_source`, settings that do not fit the model, or a WAV file instead of samples.
    """
    if source is None:
        if sys.stdin is None:
            raise StreamError("expected samples on standard input, which is closed")
        source = sys.stdin.buffer
    if sink is None:
        if sys.stdout is None:
            raise StreamError("expected to print on standard output, which is closed")
        sink = sys.stdout
    decoder = Decoder(load_source(options), options)
    try:
        with _Interruptible() as interruptible:
            for samples in _samples(source, decoder.chunk_samples, interruptible, options.rate):
                _print(decoder.push(samples), sink)
            _print(decoder.flush(), sink)
    except BrokenPipeError:  # nobody reads on: nothing is left to do
        let_go(sink)
    except OSError as error:
        let_go(sink)
        raise StreamError(f"cannot read samples or print states: {error.strerror or error}") from None
    return 130 if interruptible.is_asked else 0


class _Interruptible:
    """Ctrl-C ends reading, and does not break in while a chunk is decoded; the second one does."""

    def __init__(self) -> None:
        self.is_asked = self.is_reading = False
        self._before: Any = None

    def __enter__(self) -> Self:
        with suppress(ValueError):  # other threads get no signals
            self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _ask(self, *_: object) -> None:
        is_again, self.is_asked = self.is_asked, True
        if self.is_reading or is_again:  # lines that nobody reads may wait for ever to be written
            raise KeyboardInterrupt

    def read(self, source: BinaryIO, most: int) -> bytes:
        """The next bytes, as soon as there are some; none at the end, or when asked to stop."""
        read = getattr(source, "read1", source.read)
        try:
            self.is_reading = True
            return b"" if self.is_asked else read(most)
        except KeyboardInterrupt:
            return b""
        finally:
            self.is_reading = False


class Decoder:
    """From samples to lines of text: time in seconds, state, and its probability unless paths are decoded."""

    def __init__(self, source: Source, options: StreamOptions) -> None:
        if options.rate != source.settings.sample_rate:
            wanted = source.settings.sample_rate
            raise StreamError(f"--rate: the model takes {wanted} samples a second, got {options.rate}")
        try:
            self._processor = StreamingHMMProcessor(
                source.hmm,
                options.chunk,
                options.look_ahead,
                options.decode,  # type: ignore[arg-type]
                frame_rate=1 / source.settings.frame_shift,
                max_delay=options.max_delay if options.decode == "viterbi" else None,
            )
        except (TypeError, ValueError) as error:
            raise StreamError(str(error)) from None
        self._source, self._options = source, options
        self._features = FeatureStream(source.settings)
        self._deltas = DeltaStream(source.delta_window) if source.delta_window else None
        self._waiting = torch.zeros(0, len(source.mean))
        self._num_frames = 0
        self._last: str | None = None
        groups = {name: n for n, name in enumerate(dict.fromkeys(source.names))}
        self._groups, self._group_of = list(groups), torch.tensor([groups[name] for name in source.names])

    @property
    def chunk_samples(self) -> int:
        """Samples of a chunk of frames."""
        return self._options.chunk * self._source.settings.hop_samples

    def push(self, samples: Any) -> list[str]:
        """Lines of the states that became final with the next samples (n,)."""
        frames = self._features.push(samples)
        self._take(frames if self._deltas is None else self._deltas.push(frames))
        lines: list[str] = []
        while len(self._waiting) >= (count := self._options.chunk):
            chunk, self._waiting = self._waiting[:count], self._waiting[count:]
            lines += self._lines(self._decoded(chunk))
        return lines

    def flush(self) -> list[str]:
        """Lines of all that still waited."""
        frames = self._features.flush()
        if self._deltas is not None:
            frames = torch.cat([self._deltas.push(frames), self._deltas.flush()])
        self._take(frames)
        lines = self._lines(self._decoded(self._waiting)) if len(self._waiting) else []
        self._waiting = self._waiting[:0]
        return lines + self._lines(self._processor.flush())

    def _decoded(self, frames: Tensor) -> Tensor | None:
        try:
            return self._processor.process_chunk(frames)
        except ValueError as error:  # of counts, or zeros and ones
            raise StreamError(f"--model: does not take {self._source.settings.kind} features: {error}") from None

    def _take(self, frames: Tensor) -> None:
        if len(frames):
            self._waiting = torch.cat([self._waiting, (frames - self._source.mean) / self._source.scale])

    def _lines(self, found: Tensor | None) -> list[str]:
        if found is None:
            return []
        if found.ndim == 1:
            names = [self._source.names[int(state)] if state >= 0 else "-" for state in found]
            extra = [""] * len(names)
        else:
            grouped = found.new_zeros(len(found), len(self._groups)).index_add_(1, self._group_of, found)
            best = grouped.max(1)
            names = [self._groups[int(group)] for group in best.indices]
            extra = [f"\t{value:.4f}" for value in best.values.tolist()]
        lines = []
        for name, more in zip(names, extra, strict=True):
            if not self._options.changes or name != self._last:
                lines.append(f"{self._num_frames * self._source.settings.frame_shift:.3f}\t{name}{more}")
            self._last = name
            self._num_frames += 1
        return lines


def _samples(source: BinaryIO, count: int, interruptible: _Interruptible, rate: int) -> Iterator[Any]:
    """Pieces of at most `count` samples, each as soon as it is there; half a sample at the end is none."""
    rest, is_raw = b"", False
    while piece := interruptible.read(source, 2 * count):
        rest += piece
        if not is_raw:
            if len(rest) < 12 and any(magic.startswith(rest[:4]) for magic in _WAV):
                continue
            if rest[:4] in _WAV and rest[8:12] == b"WAVE":
                raise StreamError(
                    "expected raw samples on standard input, got a WAV file: "
                    f"`ffmpeg -i FILE -f s16le -ac 1 -ar {rate} -` makes them; "
                    "where it has 16 bits, one channel and a header of 44 bytes, `tail -c +45 FILE` does"
                )
            is_raw = True
        whole = len(rest) // 2 * 2
        samples, rest = rest[:whole], rest[whole:]
        yield np.frombuffer(samples, "<i2").astype(np.float32) / 32768
    if len(rest) % 2 and not interruptible.is_asked and sys.stderr is not None:
        sys.stderr.write("pytorch_hmm: an odd number of bytes came: the last one, half a sample, is left out\n")


_WAV = (b"RIFF", b"RF64")
"""What WAV files begin with."""


def _print(lines: list[str], sink: TextIO) -> None:
    if lines:
        sink.write("\n".join(lines) + "\n")
        sink.flush()
