"""The guide runs as it is printed: every block, in order, in one namespace, in a process of its own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

GUIDE = Path(__file__).with_name("quickstart.md")

PRINTED = {
    1: [r"device: \w+", r"Log-likelihood: tensor\(\[.+, .+\].*\)", r"Posterior shape: torch\.Size\(\[2, 100, 5\]\)"],
    2: [r"best state sequence \(first 10\): tensor\(\[(\d, ){9}\d\].*\)", r"best score: -?\d+\.\d+"],
    3: [r"Log probabilities shape: torch\.Size\(\[2\]\)"],
    # of the first 160 frames 80 wait for their look-ahead; the others follow, five states each
    4: [
        r"chunk 1 done, result shape: torch\.Size\(\[80, 5\]\)",
        *(rf"chunk {number} done, result shape: torch\.Size\(\[160, 5\]\)" for number in range(2, 8)),
    ],
    5: [
        r"mel spectrogram shape: torch\.Size\(\[2, 100, 80\]\)",
        r"alignment probabilities shape: torch\.Size\(\[2, 100, 50\]\)",
    ],
    6: [
        r"results:",
        r"   mean time: \d+\.\d+ms",
        r"   throughput: \d+ frames/sec",
        r"   real-time factor: \d+\.\d+x",
        r"   (real-time capable|hardly real-time) .*",
    ],
    7: [],
    8: [r"JIT compiled|no JIT, the plain model is used"],
}
"""The lines of each block."""

RUNNER = r"""
import contextlib, io, json, re, sys, traceback, warnings

def refuse(event, args):
    if event in ("socket.connect", "socket.getaddrinfo"):
        raise RuntimeError(f"the guide reached for the network: {event} {args}")

sys.addaudithook(refuse)
blocks = re.findall(r"```python\n(.*?)```", open(sys.argv[1], encoding="utf-8").read(), re.S)
namespace = {"__name__": "quickstart"}
report = []
for number, block in enumerate(blocks, 1):
    printed, error = io.StringIO(), None
    with contextlib.redirect_stdout(printed), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            exec(compile(block, f"quickstart block {number}", "exec"), namespace)
        except Exception:
            error = traceback.format_exc()
    warned = [str(w.message) for w in caught if w.category is UserWarning]
    report.append({"printed": printed.getvalue(), "error": error, "warned": warned})
print(json.dumps(report))
"""


def test_guide_runs_and_prints_what_it_promises() -> None:
    # one test, since workers that share out several would each run the guide
    ran = subprocess.run(
        [sys.executable, "-c", RUNNER, str(GUIDE)],
        cwd=GUIDE.parents[1],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    report = json.loads(ran.stdout.splitlines()[-1])

    failed = [f"block {n}:\n{block['printed']}{block['error']}" for n, block in enumerate(report, 1) if block["error"]]
    assert not failed, "\n".join([*failed, ran.stderr])
    assert len(report) == len(PRINTED)
    for number, block in enumerate(report, 1):
        # a tensor on a GPU says so, perhaps over two lines
        lines = re.sub(r",\s+device=", ", device=", block["printed"]).splitlines()
        wanted = PRINTED[number]
        assert len(lines) == len(wanted), (number, lines)
        for line, pattern in zip(lines, wanted, strict=True):
            assert re.fullmatch(pattern, line), (number, line, pattern)
    untrained = [message for message in report[3]["warned"] if "untrained" in message]
    assert len(untrained) == 1, report[3]["warned"]
