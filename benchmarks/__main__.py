"""Times hmm_functional beside other libraries, on the same inputs, in turns, and checks everyone's answers.

    python -m benchmarks [--quick] [--only PATTERN] [--dtype float32] [--json PATH] [--plot PATH]

`--only` is a regular expression, searched for in names such as `32x1000x10/viterbi`, `ragged-128x2000x20/gradient`,
`gmm-32x1000x10x3x80/gmm`, `long`, `start`, `quick_benchmark`, `em`,
`semi_markov`, `stream`, `hours_of_stream` (ten hours of frames in a quarter of one, only if asked for).
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import platform
import re
import sys
import time
import warnings
from importlib import metadata
from typing import Any

from . import durations, extras, learning, report, roofline, streaming
from .cells import CELLS, QUICK_CELLS, Cell, problem_of
from .contenders import OURS, entrants
from .timing import Lane, alternate, ratio, timed
from .truth import TOLERANCE, Truth

DTYPES = ("float64", "float32")
LIBRARIES = ("hmmlearn", "dynamax", "pomegranate", "torch-struct", "scikit-learn", "torch", "jax", "numpy", "numba")


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="under two minutes: smaller cells, slow peers skipped")
    parser.add_argument("--only", default="", metavar="PATTERN", help="regular expression on cell/operation")
    parser.add_argument("--without", metavar="PATTERN", help="regular expression on contenders to leave out")
    parser.add_argument("--dtype", choices=DTYPES, help="default: both")
    parser.add_argument("--json", metavar="PATH", help="all numbers")
    parser.add_argument("--plot", metavar="PATH", help="ratios as a picture")
    parser.add_argument("--budget", type=float, metavar="S", help="seconds of timing for a cell, operation and dtype")
    parser.add_argument("--limit-s", type=float, metavar="S", help="skip slower peers (20; quick: 0.3)")
    parser.add_argument("--limit-gb", type=float, default=8.0, metavar="GB", help="skip peers that need more")
    options = parser.parse_args(arguments)
    options.budget = options.budget or (0.2 if options.quick else 4.0)
    options.limit_s = options.limit_s or (0.2 if options.quick else 20.0)
    return options


def run_entry(
    cell: Cell, operation: str, dtype: str, problem: Any, truth: Truth, machine: dict[str, Any], options: Any
) -> dict[str, Any]:
    """One row: everyone's first call and answer, then everyone's timings in turns."""
    running, skipped = entrants(cell, operation, dtype, options)
    lanes, answers = {}, {}
    for contender in running:
        try:
            call, read = contender.build(problem, operation, dtype)
            out, first = timed(call)
            answers[contender.name] = read(out)
        except ImportError as error:
            skipped[contender.name] = f"not installed: {error.name}"
        except Exception as error:
            skipped[contender.name] = f"raised {type(error).__name__}: {error}".partition("\n")[0][:200]
        else:
            lanes[contender.name] = Lane(call, first, contender.is_compiled)
            del out
    errors = truth.errors(operation, answers)
    answers.clear()
    if lanes:
        alternate(lanes, options.budget)
    ours = lanes.get(OURS)
    entry = {
        "cell": cell.name,
        "states": cell.states,
        "operation": operation,
        "dtype": dtype,
        "roofline_s": roofline.least_seconds(cell, operation, dtype, machine),
        "contenders": {
            name: {
                "median_s": lane.median_s,
                "ratio": ratio(lane, ours) if ours else None,
                "error": errors[name] if math.isfinite(errors[name]) else None,
                "is_right": errors[name] <= TOLERANCE[dtype][operation],
                "first_call_s": lane.first_s,
                "samples_s": list(lane.samples.values()),
            }
            for name, lane in lanes.items()
        },
        "skipped": skipped,
    }
    report.judge(entry)
    return entry


def machine_of() -> dict[str, Any]:
    """What the numbers depend on."""
    import torch

    model = platform.processor()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            model = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), model)
    versions = {}
    for name in (*LIBRARIES, "pytorch-hmm"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "thread_variables": {k: v for k, v in os.environ.items() if k.endswith("_NUM_THREADS")},
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def main() -> None:
    options = options_of()
    warnings.simplefilter("ignore")
    start = time.perf_counter()
    wanted = re.compile(options.only).search
    jobs = [
        (cell, operation)
        for cell in (QUICK_CELLS if options.quick else CELLS)
        for operation in cell.operations
        if wanted(f"{cell.name}/{operation}")
    ]
    machine, entries, others = machine_of(), [], {}
    machine["roofline"] = roofline.measure()
    problem = truth = None
    for cell, operation in jobs:
        if problem is None or problem.cell != cell:
            problem = problem_of(cell)
            truth = Truth(problem)
        for dtype in [options.dtype] if options.dtype else DTYPES:
            entry = run_entry(cell, operation, dtype, problem, truth, machine["roofline"], options)
            entries.append((entry, cell))
            at = time.perf_counter() - start
            print(f"{at:6.1f} s  {cell.name} {operation} {dtype}: {entry['verdict']}", file=sys.stderr, flush=True)
    machine["roofline"] = roofline.measure(machine["roofline"])  # again: the machine may have been busy
    for entry, cell in entries:
        entry["roofline_s"] = roofline.least_seconds(cell, entry["operation"], entry["dtype"], machine["roofline"])
        report.judge(entry)
    entries = [entry for entry, _ in entries]
    if wanted("start"):
        others["start"] = extras.start(1 if options.quick else 5)
    if wanted("quick_benchmark"):
        others["quick_benchmark"] = extras.quick_benchmark(2.0 if options.quick else 10.0)
    if wanted("em") and (options.only or not options.quick):
        others["em"] = learning.em()
    if wanted("semi_markov") and (options.only or not options.quick):
        others["semi_markov"] = durations.semi_markov()
    if wanted("stream") and (options.only or not options.quick):
        others["stream"] = streaming.latency()
    if options.only and wanted("hours_of_stream"):
        others["hours_of_stream"] = streaming.hours()
    if wanted("long") and (options.only or not options.quick):
        others["long"] = extras.long()
    peaks = machine["roofline"]["multiply_adds_per_s"].items()
    peak = ", ".join(f"{value / 1e9:.3g} G multiply-adds/s {dtype}" for dtype, value in peaks)
    print(f"{machine['cpu']}, {machine['cores']} cores; {machine['roofline']['bytes_per_s'] / 1e9:.3g} GB/s, {peak}")
    for dtype in DTYPES:
        if any(entry["dtype"] == dtype for entry in entries):
            print(f"\n{report.tables(entries, dtype)}")
    print(f"\n{report.notes(entries)}\n\n{report.summary(entries, others)}")
    if options.json:
        chosen = {key: value for key, value in vars(options).items() if key not in ("json", "plot")}
        values = {"machine": machine, "options": chosen, "entries": entries, "extras": others}
        values["geometric_mean"] = report.geometric_mean(entries)
        with open(options.json, "w") as file:
            json.dump(values, file, indent=1, allow_nan=False)
    if options.plot and entries:
        report.plot(entries, options.plot)


if __name__ == "__main__":
    main()
