"""CTC against torch's loss, and monotonic alignment search against a plain Numba one, on the CPU.

Run as `python benchmarks/alignment.py [threads]`; times are medians of wall and of processor milliseconds.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numba
import numpy as np
import torch

import hmm_functional as hf


def measure(name: str, call: Callable[[], Any], repeats: int = 15) -> None:
    call()
    call()
    walls, processors = [], []
    for _ in range(repeats):
        wall, processor = time.perf_counter(), time.process_time()
        call()
        walls.append(1e3 * (time.perf_counter() - wall))
        processors.append(1e3 * (time.process_time() - processor))
    print(f"{name:44s} {median(walls):8.1f} wall {min(walls):8.1f} least {median(processors):8.1f} processor")


@numba.njit(parallel=True, fastmath=False)
def plain_search(scores: Any) -> Any:  # pragma: no cover
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
    measure(f"ctc + gradient, {sizes}", mine)
    measure("  torch.nn.functional.ctc_loss", theirs)
    frames = logits.detach().log_softmax(-1)
    measure("ctc_align", lambda: hf.ctc_align(frames, targets))


def monotonic(batch: int, num_tokens: int, num_frames: int) -> None:
    scores = torch.randn(batch, num_tokens, num_frames)
    measure(
        f"monotonic_alignment_search, B={batch} N={num_tokens} T={num_frames}",
        lambda: hf.monotonic_alignment_search(scores),
    )
    turned = scores.mT.contiguous().mT
    measure("  of scores with tokens last in memory", lambda: hf.monotonic_alignment_search(turned))
    numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))
    measure("  plain Numba", lambda: plain_search(scores.numpy().copy()))
    assert (plain_search(scores.numpy().copy()) == hf.monotonic_alignment_search(scores).numpy()).all()


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else torch.get_num_threads())
    torch.manual_seed(0)
    ctc(32, 500, 64, 80)
    ctc(1, 1000, 32, 120)
    monotonic(32, 200, 1000)
    frames = (3 * torch.randn(1000, 32)).log_softmax(-1)
    measure("ctc_prefix_search, T=1000 V=32 beam 16", lambda: hf.ctc_prefix_search(frames, beam_width=16), 3)


if __name__ == "__main__":
    main()
