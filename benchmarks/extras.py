"""Entries without a peer: a million steps, the import, the first call, and the guide's own benchmark."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from typing import Any

TARGET_S, TARGET_BYTES = 8.0, 2e9
"""Of each operation of the long entry."""

# VmHWM, not ru_maxrss, which a child inherits from its parent
LONG = """
import json, sys, time, torch
import hmm_functional as hf
def peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
def run(steps):
    generator = torch.Generator().manual_seed(0)
    emission = torch.randn(1, steps, 64, generator=generator).mul_(2)
    initial = torch.randn(64, generator=generator).log_softmax(0)
    transition = torch.randn(64, 64, generator=generator).log_softmax(1)
    start = time.perf_counter()
    out = getattr(hf, sys.argv[1])(initial, transition, emission)
    return time.perf_counter() - start, torch.isfinite(out[1]).all().item()
run(20_000)
before = peak()
seconds, is_finite = run(int(sys.argv[2]))
print(json.dumps({"seconds": seconds, "peak_bytes": peak(), "bytes_before": before, "is_finite": is_finite}))
"""

START = """
import json, time
start = time.perf_counter()
import torch
middle = time.perf_counter()
import hmm_functional as hf
end = time.perf_counter()
arrays = torch.zeros(5).log_softmax(0), torch.zeros(5, 5).log_softmax(1), torch.randn(2, 100, 5)
calls = []
for _ in range(2):
    before = time.perf_counter()
    hf.log_likelihood(*arrays)
    calls.append(time.perf_counter() - before)
print(json.dumps({"torch_s": middle - start, "beyond_torch_s": end - middle, "first_call_s": calls[0],
                  "second_call_s": calls[1]}))
"""


def long(steps: int = 1_000_000, timeout_s: float = 300.0) -> dict[str, Any]:
    """forward_backward and viterbi at B = 1, K = 64, float32: seconds and peak bytes of a process each."""
    out: dict[str, Any] = {"steps": steps, "target_s": TARGET_S, "target_bytes": TARGET_BYTES}
    for operation in ("forward_backward", "viterbi"):
        result = child(LONG, operation, str(steps), timeout_s=timeout_s)
        if "failed" not in result:
            result["is_within"] = result["seconds"] <= TARGET_S and result["peak_bytes"] <= TARGET_BYTES
        out[operation] = result
    return out


def start(processes: int = 5) -> dict[str, Any]:
    """Medians of what `import hmm_functional` adds to `import torch`, and of a small first and second call.

    One process goes before, so that whatever is cached on disk is there.
    """
    runs = [child(START) for _ in range(processes + 1)][1:]
    if any("failed" in run for run in runs):
        return next(run for run in runs if "failed" in run)
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


def quick_benchmark(budget_s: float = 5.0) -> dict[str, Any]:
    """The guide's section 6: `MixtureGaussianHMM(10, 80)` forward at B = 32, T = 1000, float32; frames a second."""
    import torch

    from pytorch_hmm import MixtureGaussianHMM

    torch.manual_seed(0)
    model = MixtureGaussianHMM(num_states=10, obs_dim=80)
    observations = torch.randn(32, 1000, 80)
    begin = time.perf_counter()
    for _ in range(10):  # warm-up, as the guide has it
        model.forward(observations)
        if time.perf_counter() - begin > budget_s / 2:
            break
    calls, begin = 0, time.perf_counter()
    while calls < 100 and (calls == 0 or time.perf_counter() - begin < budget_s):
        model.forward(observations)
        calls += 1
    seconds = (time.perf_counter() - begin) / calls
    return {"seconds": seconds, "frames_per_s": 32_000 / seconds, "calls": calls}


def child(code: str, *arguments: str, timeout_s: float = 120.0) -> dict[str, Any]:
    """What a process of its own prints as JSON, or why there is none."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"not done in {timeout_s:g} s"}
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]}
    return dict(json.loads(done.stdout))
