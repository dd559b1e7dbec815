"""``python -m tests.benchmarks``: CPU per request and added latency of the router, beside a bare pass-through.

The proxy under test has one core for itself, upstream and load generator share the others; floor and router take turns
in each round, and the median round counts. Every answer is checked, and the ledger must hold a settled row for each.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks.measure import Proxy, Start, floor, ledger_rows, load, measured, median, memory, router, upstream
from tests.benchmarks.processes import Process
from tests.benchmarks.scenarios import SCENARIOS, Scenario

COLUMNS = (
    "",
    "CPU ms: floor",
    "router",
    "goal",
    "ratio",
    "req/s: floor",
    "router",
    "added p50/p99 ms: floor",
    "router",
)
WIDTHS = (42, 14, 9, 8, 8, 14, 9, 25, 17)


def main() -> int:
    options = _options()
    chosen = [s for s in SCENARIOS if (s.name in options.scenarios if options.scenarios else s.always or options.full)]
    with tempfile.TemporaryDirectory(prefix="pixelroute-bench-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        host, port = stack.enter_context(upstream(folder))
        url = f"http://127.0.0.1:{port}"
        starts: dict[str, Start] = {"floor": floor} if options.floor_only else {"floor": floor, "router": router}
        proxies = [stack.enter_context(start(url, folder)) for start in starts.values()]
        idle = {proxy.name: proxy.process.rss_mb() for proxy in proxies}
        sent = 0
        results: dict[str, dict[str, Any]] = {}
        for scenario in chosen:
            results[scenario.name], requests = _scenario(scenario, proxies, host, folder, options)
            sent += requests
            _say(_row(scenario, results[scenario.name]), options)
        report: dict[str, Any] = {
            "scenarios": results,
            "idle_mb": idle,
            "ready_s": {p.name: p.ready_s for p in proxies},
        }
        if "router" in starts:
            attempts, settled = ledger_rows(folder)
            report["ledger"] = {"requests": sent, "attempts": attempts, "settled": settled}
            if not attempts == settled == sent:
                sys.stderr.write(f"the ledger does not match: {report['ledger']}\n")
                return 1
        if options.full:
            report["mb_in_flight"] = {}
            for each, start in starts.items():
                own = folder / each
                own.mkdir()
                report["mb_in_flight"][each] = memory(start, url, own)
    _finish(report, options)
    return 0


def _scenario(
    scenario: Scenario, proxies: list[Proxy], host: Process, folder: Path, options: argparse.Namespace
) -> tuple[dict[str, Any], int]:
    """Results by proxy, and how many requests the router was sent."""
    sent = 0
    rounds: dict[str, list[dict[str, Any]]] = {proxy.name: [] for proxy in proxies}
    for proxy in proxies:  # connections, caches and branch predictors are warm when it counts
        warm = load(scenario, proxy.port, proxy.path(scenario), folder, 0.5)
        sent += warm["requests"] if proxy.name == "router" else 0
    for _ in range(1 if scenario.rate else options.rounds):
        for proxy in proxies:
            seconds = max(scenario.seconds if scenario.rate else options.seconds, 0.5)
            one = measured(scenario, proxy, host, folder, seconds)
            sent += one["requests"] if proxy.name == "router" else 0
            rounds[proxy.name].append(one)
    return {name: median(each) for name, each in rounds.items()}, sent


def _row(scenario: Scenario, found: dict[str, Any]) -> list[str]:
    low, high = found["floor"], found.get("router")
    row = [f"{scenario.name} {scenario.title}", f"{low['cpu_ms']:.3f}"]
    if high is None:
        return [*row, "", "", "", f"{low['per_s']:.0f}", "", _added(low), ""]
    missed = scenario.goal_ms is not None and high["cpu_ms"] > scenario.goal_ms
    goal = "" if scenario.goal_ms is None else f"{scenario.goal_ms}{' !' if missed else ''}"
    row += [f"{high['cpu_ms']:.3f}", goal, f"{high['cpu_ms'] / low['cpu_ms']:.2f}"]
    return [*row, f"{low['per_s']:.0f}", f"{high['per_s']:.0f}", _added(low), _added(high)]


def _added(found: dict[str, Any]) -> str:
    return f"{found['added_ms']['p50']:.1f} / {found['added_ms']['p99']:.1f}"


def _line(cells: list[str] | tuple[str, ...]) -> str:
    first, *rest = zip(cells, WIDTHS, strict=True)
    return f"{first[0]:<{first[1]}}" + "".join(f"{cell:>{width}}" for cell, width in rest)


def _say(row: list[str], options: argparse.Namespace) -> None:
    if not options.json:
        if options.first:
            options.first = False
            print(_line(COLUMNS))
        print(_line(row), flush=True)


def _finish(report: dict[str, Any], options: argparse.Namespace) -> None:
    if options.json:
        print(json.dumps(report, indent=1))
        return
    for name, mb in report["idle_mb"].items():
        print(f"{name}: ready after {report['ready_s'][name]:.2f} s, {mb:.0f} MB resident when idle")
    for name, mb in report.get("mb_in_flight", {}).items():
        print(
            f"{name}: {mb['edit']:.1f} MB per 4 MB edit in flight, {mb['reply']:.1f} MB per 4 MB base64 reply in flight"
        )
    if ledger := report.get("ledger"):
        print(f"ledger: {ledger['settled']} settled rows for {ledger['requests']} requests")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("scenarios", nargs="*", help="names, such as S1 S3; without any, S1 to S5")
    parser.add_argument("--full", action="store_true", help="also S6, S7, links, and memory per request in flight")
    parser.add_argument("--json", action="store_true", help="print everything measured as JSON")
    parser.add_argument("--floor-only", action="store_true", help="measure the pass-through alone")
    parser.add_argument("--rounds", type=int, default=3, help="rounds per scenario (default 3)")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a round (default 2)")
    parser.set_defaults(first=True)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
