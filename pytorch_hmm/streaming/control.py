"""How many frames to take at a time, so that results come in time."""

from __future__ import annotations

from math import inf

from hmm_functional._check import need_count


class AdaptiveChunks:
    """Chooses the size of chunks so that the oldest frame of each is done after a target latency.

    The latency of n frames is the time until they are there, n / frame_rate, the look-ahead, and the time to compute
    them. Small chunks wait less and cost more a frame. The next size is what would meet the target at the cost a frame
    measured lately, at most twice or half of the last one, and the same one where it is within 5 % of it. Since a cost
    a frame falls as chunks grow, sizes approach the one that fits from one side. Where computing does not keep
    up with the frames, chunks grow, and smaller ones are not tried again soon.

    Args:
        target: seconds.
        frame_rate: frames a second.
        look_ahead: frames that results wait for anyway, such as a processor's `latency`.
        start: frames of the first chunk.
        smallest, largest: bounds of what is chosen.

    Raises:
        ValueError: an argument out of range; or a target that the look-ahead alone exceeds.

    Example:
        >>> chunks = AdaptiveChunks(target=0.2, frame_rate=100.0, start=160)
        >>> for _ in range(20):
        ...     size = chunks.update(chunks.chunk_size, 0.002 + 1e-4 * chunks.chunk_size)
        >>> size, round(chunks.latency, 2)
        (20, 0.2)
    """

    def __init__(
        self,
        target: float,
        frame_rate: float,
        *,
        look_ahead: int = 0,
        start: int = 160,
        smallest: int = 1,
        largest: int = 1600,
    ) -> None:
        for name, value in (("target", target), ("frame_rate", frame_rate)):
            if not (isinstance(value, int | float) and 0 < value < inf):
                raise ValueError(f"{name}: expected a number above 0, got {value!r}")
        self.target, self.frame_rate = float(target), float(frame_rate)
        self.look_ahead = need_count("look_ahead", look_ahead, 0)
        self.smallest = need_count("smallest", smallest, 1)
        self.largest = need_count("largest", largest, self.smallest)
        self._room = self.target - self.look_ahead / self.frame_rate
        if self._room <= 0:
            least = self.look_ahead / self.frame_rate
            raise ValueError(f"target: expected more than the look-ahead's {least:g} s, got {target!r}")
        self.chunk_size = min(max(need_count("start", start, 1), self.smallest), self.largest)
        self._cost = 0.0
        """Seconds a frame, lately."""
        self._floor = 0.0
        """Sizes that did not keep up."""

    @property
    def latency(self) -> float:
        """Seconds from a chunk's first frame to its results, at the present size and the cost measured lately."""
        return (self.look_ahead + self.chunk_size) / self.frame_rate + self._cost * self.chunk_size

    def update(self, num_frames: int, seconds: float) -> int:
        """Take account of a chunk, and give the size of the next.

        Args:
            num_frames: frames that it had.
            seconds: that computing it took.

        Raises:
            ValueError: no frames, or no time that is one.
        """
        need_count("num_frames", num_frames, 1)
        if not 0 <= seconds < inf:
            raise ValueError(f"seconds: expected a time, got {seconds!r}")
        cost = seconds / num_frames
        self._cost = cost if self._cost == 0.0 else self._cost + _SHARE * (cost - self._cost)
        self._floor *= _FORGETTING
        if self._cost * self.frame_rate > _LOAD:
            self._floor = max(self._floor, 1.5 * self.chunk_size)
        wanted = max(self._room / (1.0 / self.frame_rate + self._cost), self._floor)
        wanted = min(max(wanted, 0.5 * self.chunk_size), 2.0 * self.chunk_size)
        if abs(wanted - self.chunk_size) > 0.05 * self.chunk_size:
            self.chunk_size = min(max(round(wanted), self.smallest), self.largest)
        return self.chunk_size


_SHARE = 0.25
"""Of a new measurement in the cost."""
_LOAD = 0.9
"""Of the time between frames, above which computing counts as not keeping up."""
_FORGETTING = 0.999
