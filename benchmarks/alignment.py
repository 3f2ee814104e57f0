"""Alignment on the CPU: CTC beside torch's loss, monotonic search beside a plain Numba one, warping beside dtw-python.

    python -m benchmarks.alignment [threads]

Contenders take turns; times are milliseconds on the clock, medians, with ours over theirs as the median of ratios.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from statistics import median
from typing import Any

import numba
import numpy as np
import torch

import hmm_functional as hf


def measure(name: str, mine: Callable[[], Any], theirs: Callable[[], Any] | None = None, repeats: int = 11) -> None:
    calls = [mine] if theirs is None else [mine, theirs]
    times: list[list[float]] = [[] for _ in calls]
    for i in range(repeats + 2):
        for call, spent in zip(calls, times, strict=True):
            before = time.perf_counter()
            call()
            if i >= 2:
                spent.append(1e3 * (time.perf_counter() - before))
    line = f"{name:58s} {median(times[0]):9.1f}"
    if theirs is not None:
        ratio = median(b / a for a, b in zip(*times, strict=True))
        line += f"   other {median(times[1]):9.1f}   {ratio:5.1f} times as fast"
    print(line, flush=True)


@numba.njit(parallel=True, fastmath=False)
def plain_search(scores: Any) -> Any:
    """Kim et al. 2020, algorithm 1, in place, a sequence a thread, as text-to-speech code has it."""
    batch, num_tokens, num_frames = scores.shape
    found = np.empty((batch, num_frames), np.int64)
    for b in numba.prange(batch):
        q = scores[b]
        for j in range(num_frames):
            for i in range(max(0, num_tokens + j - num_frames), min(num_tokens, j + 1)):
                stay = q[i, j - 1] if i != j else -1e9
                move = (0.0 if j == 0 else -1e9) if i == 0 else q[i - 1, j - 1]
                q[i, j] += max(stay, move)
        i = num_tokens - 1
        for j in range(num_frames - 1, -1, -1):
            found[b, j] = i
            if i != 0 and (i == j or q[i, j - 1] < q[i - 1, j - 1]):
                i -= 1
    return found


def ctc(batch: int, num_steps: int, num_symbols: int, num_tokens: int) -> None:
    logits = torch.randn(batch, num_steps, num_symbols, requires_grad=True)
    targets = torch.randint(1, num_symbols, (batch, num_tokens))
    lengths, counts = torch.full((batch,), num_steps), torch.full((batch,), num_tokens)

    def mine() -> None:
        torch.autograd.grad(hf.ctc_log_likelihood(logits.log_softmax(-1), targets).sum(), logits)

    def theirs() -> None:
        frames = logits.log_softmax(-1).transpose(0, 1)
        loss = torch.nn.functional.ctc_loss(frames, targets, lengths, counts, reduction="none")
        torch.autograd.grad(loss.sum(), logits)

    sizes = f"B={batch} T={num_steps} V={num_symbols} N={num_tokens}"
    measure(f"ctc + gradient, {sizes}", mine, theirs)
    frames = logits.detach().log_softmax(-1)
    measure("ctc_align", lambda: hf.ctc_align(frames, targets))


def monotonic(batch: int, num_tokens: int, num_frames: int) -> None:
    scores = torch.randn(batch, num_tokens, num_frames)
    numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))
    measure(
        f"monotonic_alignment_search, B={batch} N={num_tokens} T={num_frames}",
        lambda: hf.monotonic_alignment_search(scores),
        lambda: plain_search(scores.numpy().copy()),
    )
    turned = scores.mT.contiguous().mT
    measure("  of scores with tokens last in memory", lambda: hf.monotonic_alignment_search(turned))
    assert (plain_search(scores.numpy().copy()) == hf.monotonic_alignment_search(scores).numpy()).all()


def forced(batch: int, num_steps: int, num_tokens: int) -> None:
    scores = torch.randn(batch, num_steps, 120)
    targets = torch.randint(0, 40, (batch, num_tokens))
    topology = hf.Topology(states=3)
    for posteriors in (False, True):
        measure(
            f"forced_align, B={batch} T={num_steps} N={num_tokens}, posteriors={posteriors}",
            lambda posteriors=posteriors: hf.forced_align(scores, targets, topology=topology, posteriors=posteriors),
        )


def warping(size: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from dtw import dtw as peer

    x, y = torch.randn(size, 13, dtype=torch.float64), torch.randn(size, 13, dtype=torch.float64)
    measure(f"dtw, N=M={size}", lambda: hf.dtw(x, y), lambda: peer(x.numpy(), y.numpy()), 5)
    z = y.clone().requires_grad_()
    measure(f"soft_dtw + gradient, N=M={size}", lambda: torch.autograd.grad(hf.soft_dtw(x, z, gamma=1.0), z), None, 5)


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else torch.get_num_threads())
    torch.manual_seed(0)
    ctc(32, 500, 64, 80)
    ctc(1, 1000, 32, 120)
    monotonic(32, 200, 1000)
    frames = (3 * torch.randn(1000, 32)).log_softmax(-1)
    measure("ctc_prefix_search, T=1000 V=32 beam 16", lambda: hf.ctc_prefix_search(frames, beam_width=16), None, 3)
    forced(8, 1000, 100)
    for size in (500, 2000):
        warping(size)


if __name__ == "__main__":
    main()
