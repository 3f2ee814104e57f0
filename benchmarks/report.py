"""Verdicts, tables and the plot, from the entries `__main__` collects."""

from __future__ import annotations

import math
from typing import Any

from .contenders import EAGER, LEFT_OUT, NAMES, NOT_QUICK, OURS
from .truth import ERROR_OF, TOLERANCE

RULE = """A row passes if the best right peer takes at least 2 times as long as ours, or ours is within 1.5 of the
roofline or below 60 us; in a banded cell the best right peer, on the dense matrix, has to take at least 10 times as
long. Besides, the time loop in eager torch takes at least 50 times as long, and from 64 states on (dense) ours is
within 3 of the roofline. Peers that are wrong do not count."""
TARGET = 3.0
"""Of the geometric mean of best peer / ours."""


def judge(entry: dict[str, Any]) -> None:
    """Adds best_peer, ratio, eager_ratio, over_roofline and verdict to an entry whose contenders are in."""
    ours = entry["contenders"].get(OURS)
    entry |= {"best_peer": None, "ratio": None, "eager_ratio": None, "over_roofline": None}
    peers = {n: c for n, c in entry["contenders"].items() if n != OURS and c["is_right"]}
    if peers:
        entry["best_peer"] = min(peers, key=lambda name: peers[name]["median_s"])
        entry["ratio"] = peers[entry["best_peer"]]["ratio"]
    if ours is None:
        entry["verdict"] = f"FAIL: {entry['skipped'].get(OURS, 'did not run')}"
        return
    eager = entry["contenders"].get(EAGER)
    entry["eager_ratio"] = eager["ratio"] if eager else None
    over = entry["over_roofline"] = ours["median_s"] / entry["roofline_s"]
    faults = [] if ours["is_right"] else [f"wrong by {_error(ours)}"]
    ratio, is_banded = entry["ratio"], entry["cell"].startswith("banded")
    wanted = 10.0 if is_banded else 2.0
    is_enough = ratio is None or ratio >= wanted
    if not is_enough and (is_banded or (over > 1.5 and ours["median_s"] >= 60e-6)):
        faults.append(f"peer {ratio:.2g}x")
    if entry["eager_ratio"] is not None and entry["eager_ratio"] < 50:
        faults.append(f"eager {entry['eager_ratio']:.2g}x")
    if entry["states"] >= 64 and not is_banded and over > 3:
        faults.append(f"roofline {over:.2g}x")
    entry["verdict"] = "FAIL: " + ", ".join(faults) if faults else "pass"


def geometric_mean(entries: list[dict[str, Any]]) -> float | None:
    """Of best peer / ours, over the entries that have one."""
    logs = [math.log(entry["ratio"]) for entry in entries if entry["ratio"]]
    return math.exp(sum(logs) / len(logs)) if logs else None


def tables(entries: list[dict[str, Any]], dtype: str) -> str:
    """The table of verdicts and that of all contenders' medians, for one dtype."""
    entries = [entry for entry in entries if entry["dtype"] == dtype]
    head = ["cell", "operation", "ours ms", "best peer", "peer ms", "peer/ours", "ours/roof", "eager/ours", "verdict"]
    rows = [head]
    for entry in entries:
        ours, best = entry["contenders"].get(OURS), entry["best_peer"]
        rows.append(
            [
                entry["cell"],
                entry["operation"],
                _ms(ours),
                best or "-",
                _ms(entry["contenders"].get(best)),
                _number(entry["ratio"]),
                _number(entry["over_roofline"]),
                _number(entry["eager_ratio"]),
                entry["verdict"],
            ]
        )
    names = [name for name in NAMES if any(name in e["contenders"] or name in e["skipped"] for e in entries)]
    medians = [["cell", "operation", *names]]
    for entry in entries:
        medians.append([entry["cell"], entry["operation"], *(_median(entry, name) for name in names)])
    return "\n".join(
        [
            f"== {dtype} ==",
            _aligned(rows),
            "",
            f"-- {dtype}: median ms of everyone; ! wrong, * skipped, - does not have it --",
            _aligned(medians),
        ]
    )


def notes(entries: list[dict[str, Any]]) -> str:
    """Who was wrong and by how much, and who was skipped and why."""
    lines = []
    for entry in entries:
        place = f"{entry['cell']} {entry['operation']} {entry['dtype']}"
        for name, contender in entry["contenders"].items():
            if not contender["is_right"]:
                allowed = TOLERANCE[entry["dtype"]][entry["operation"]]
                lines.append(f"wrong: {name}, {place}: {_error(contender)}, allowed {allowed:.0e}")
    if lines:
        lines += [f"error of {operation}: {meaning}" for operation, meaning in ERROR_OF.items()]
    skipped: dict[tuple[str, str, str], list[str]] = {}
    for entry in entries:
        for name, why in entry["skipped"].items():
            key = (name, entry["cell"], entry["operation"])
            if why in (LEFT_OUT, NOT_QUICK):
                continue
            skipped.setdefault(key, []).append(f"{entry['dtype']} {why}")
    lines += [f"skipped: {' '.join(key)}: {', '.join(reasons)}" for key, reasons in skipped.items()]
    return "\n".join(lines)


def summary(entries: list[dict[str, Any]], extras: dict[str, Any]) -> str:
    """The rule, the counts, the geometric mean and the entries without a peer."""
    lines = [RULE]
    if entries:
        passed = sum(entry["verdict"] == "pass" for entry in entries)
        mean = geometric_mean(entries)
        lines.append(f"{passed} of {len(entries)} pass.")
        if mean is not None:
            lines.append(f"Geometric mean of best peer / ours: {mean:.2f} (target {TARGET:g}).")
    for name, result in extras.items():
        if name == "long":
            lines += [f"long, {key}: {_long(value)}" for key, value in result.items() if isinstance(value, dict)]
        elif name == "stream":
            lines += [f"stream, {key}: {_fields(value)}" for key, value in result.items() if isinstance(value, dict)]
        elif name in ("em", "semi_markov"):
            lines += [f"{name}, {key}: {_iteration(value)}" for key, value in result.items()]
        else:
            lines.append(f"{name}: {_fields(result)}")
    return "\n".join(lines)


def _fields(result: dict[str, Any]) -> str:
    return ", ".join(f"{key} {_number(value)}" for key, value in result.items())


def plot(entries: list[dict[str, Any]], path: str) -> None:
    """Best peer / ours for each cell and operation, a panel a dtype, on a log axis."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    dtypes = list(dict.fromkeys(entry["dtype"] for entry in entries))
    cells = list(dict.fromkeys(entry["cell"] for entry in entries))
    operations = list(dict.fromkeys(entry["operation"] for entry in entries))
    width = 0.8 / max(1, min(4, len(operations)))
    figure, panels = plt.subplots(
        1, len(dtypes), figsize=(7 * len(dtypes), 1.5 + 0.8 * len(cells)), sharey=True, squeeze=False
    )
    for panel, dtype in zip(panels[0], dtypes, strict=True):
        for place, operation in enumerate(operations):
            chosen = [e for e in entries if e["dtype"] == dtype and e["operation"] == operation and e["ratio"]]
            # a mixture is the only one of its cell
            shift = 0.0 if operation == "gmm" else (place - 1.5) * width
            at, ratios = [cells.index(e["cell"]) + shift for e in chosen], [e["ratio"] for e in chosen]
            bars = panel.barh(at, [r - 1 for r in ratios], width, left=1, label=operation, color=f"C{place}")
            panel.bar_label(bars, [f"{r:.2g}  {e['best_peer']}" for r, e in zip(ratios, chosen, strict=True)], size=6)
        for ratio, style in ((1, "-"), (2, "--")):
            panel.axvline(ratio, color="black", linestyle=style, linewidth=0.8)
        panel.set(xscale="log", title=dtype, xlabel="best right peer's time / ours")
        panel.margins(x=0.2)
        panel.set_yticks(range(len(cells)), cells)
    panels[0][0].invert_yaxis()
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=len(labels), frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.4 / figure.get_figheight()))
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _iteration(result: dict[str, Any]) -> str:
    seconds = ", ".join(f"{name} {1e3 * value:.3g} ms" for name, value in result["seconds"].items())
    ratios = ", ".join(f"{name} {value:.2g}" for name, value in result["ratios"].items())
    peers = {"eager", "ours"} >= set(result["seconds"])
    verdict = "no peer" if peers and result["is_within"] else "pass" if result["is_within"] else "FAIL"
    return f"{verdict}: {seconds}; times ours: {ratios} (target {result['target']:g})"


def _long(result: dict[str, Any]) -> str:
    if "failed" in result:
        return f"FAIL: {result['failed']}"
    verdict = "pass" if result["is_within"] and result["is_finite"] else "FAIL"
    return f"{result['seconds']:.2f} s, peak {result['peak_bytes'] / 1e9:.2f} GB: {verdict} (targets 8 s, 2 GB)"


def _error(contender: dict[str, Any]) -> str:
    return "NaN or infinity" if contender["error"] is None else f"{contender['error']:.1e}"


def _median(entry: dict[str, Any], name: str) -> str:
    if name in entry["contenders"]:
        contender = entry["contenders"][name]
        return _ms(contender) + ("" if contender["is_right"] else "!")
    return "*" if name in entry["skipped"] else "-"


def _ms(contender: dict[str, Any] | None) -> str:
    return "-" if contender is None else f"{contender['median_s'] * 1e3:.3g}"


def _number(value: Any) -> str:
    return "-" if value is None else value if isinstance(value, str) else f"{value:.3g}"


def _aligned(rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(x.ljust(w) for x, w in zip(row, widths, strict=True)).rstrip() for row in rows)
